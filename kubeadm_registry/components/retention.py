"""The retention executor's place on a node: user, settings, units. Nothing runs until an order comes, or the timer.

The executor is a module of the tool in the bundle. Each order is an instance of a template unit, named by its digest:
systemd then knows what runs, keeps its log and can end it. What the timer starts is an instance as well, since the
agent of a node that loses the lease ends all instances. Another build of the tool has another directory, so an executor
that runs keeps its own files.
"""

from __future__ import annotations

from dataclasses import dataclass

from kubeadm_registry import paths
from kubeadm_registry.addresses import endpoint
from kubeadm_registry.bundle import TOOL
from kubeadm_registry.bundle.tool import MODULE
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.executor_files import Settings
from kubeadm_registry.components.units import Service
from kubeadm_registry.engine.changes import Directory, File, NoService, Running, Steps
from kubeadm_registry.engine.render import render
from kubeadm_registry.transport.host import Host

NAME = paths.RETENTION_NAME
USER = paths.user(NAME)
ETC = f"{paths.ETC}/{NAME}"
CONFIG = f"{ETC}/config.json"
ORDERS = f"{ETC}/orders"
"""Where root leaves orders; the executor reads them there and cannot change them."""
POLICY = f"{ETC}/policy.yaml"
"""The policy of the timer, which is enabled while the file is there."""
TIMER = f"{paths.PREFIX}-{NAME}.timer"
TEMPLATE = paths.RETENTION_UNIT
DAILY = f"{paths.PREFIX}-{NAME}@timer.service"
"""What the timer starts: systemd takes this file for the one instance in place of the template."""
INSTANCES = f"{paths.PREFIX}-{NAME}@*.service"
SERVICE = Service(NAME, units=(), user=USER)
KUBELET = ("/var/lib/kubelet/config.yaml", "/etc/kubernetes/kubelet.conf")
"""kubeadm's files on a node of a cluster."""


def unit(order: str) -> str:
    """The unit that carries out *order*, 64 hexadecimal digits."""
    return TEMPLATE.replace("@", f"@{order}")


def settings(cluster: Cluster, host: Host) -> Settings:
    """What the executor on *host* is told."""
    secrets = cluster.secrets
    return Settings(
        node=host.name,
        registry=f"https://{endpoint(cluster.node(host).address, paths.REGISTRY_PORT)}",
        ca=paths.CA,
        username=NAME,
        password=secrets.password(NAME),
        key=secrets.retention_key,
        agent_state=paths.AGENT_STATE,
        sandbox_image=cluster.spec.containerd.sandbox_image,
    )


@dataclass(frozen=True, slots=True)
class Loaded:
    """systemd has read the present files of the units that it knows: the timer, and instances that run or failed."""

    title = "reload systemd's unit files"

    def diff(self, host: Host) -> str | None:
        """That it knows an earlier file, or None."""
        said = host.query("systemctl", "show", "--property=NeedDaemonReload", "--", TIMER, INSTANCES).text
        return f"{TIMER} and {INSTANCES}: their files are read again" if "=yes" in said else None

    def apply(self, host: Host) -> None:
        """Have it read all unit files. What runs goes on."""
        host.run("systemctl", "daemon-reload")


#: The instances ``$1`` that systemd knows; then those of the files ``$2...`` that are there.
_UNITS = """
systemctl list-units --all --plain --no-legend --no-pager -- "$1"
shift
for file; do [ ! -e "$file" ] || echo "$file"; done
"""
#: Ends the instances ``$1``, and removes the files ``$2...``.
_REMOVE = """
set -e
systemctl stop -- "$1"
pattern=$1; shift
rm -f -- "$@"
systemctl daemon-reload
systemctl reset-failed -- "$pattern" 2>/dev/null || :
"""
_FILES = (f"{paths.UNITS}/{TEMPLATE}", f"{paths.UNITS}/{DAILY}")


@dataclass(frozen=True, slots=True)
class NoInstances:
    """No executor runs, and nothing can start one."""

    title = f"stop {INSTANCES}"

    def diff(self, host: Host) -> str | None:
        """What is there of it, or None."""
        found = host.query("sh", "-c", _UNITS, "units", INSTANCES, *_FILES).text.splitlines()
        return f"{INSTANCES}: stopped and removed" if found else None

    def apply(self, host: Host) -> None:
        """End those that run, and remove the unit files."""
        host.run("sh", "-c", _REMOVE, "remove", INSTANCES, *_FILES, timeout=120)


def install(cluster: Cluster, host: Host) -> Steps:
    """Install the executor's settings and units. Without its program, which a bundle may lack, there are no units."""
    config = settings(cluster, host).to_json()
    yield Directory(ETC, mode=0o750, owner=f"root:{USER}")
    yield Directory(ORDERS, mode=0o750, owner=f"root:{USER}")
    yield File(CONFIG, config, mode=0o640, owner=f"root:{USER}", secret_keys=("password", "retention_key"))
    tool = cluster.programs.get(TOOL)
    if tool is None:
        yield from remove()
        return
    values = {
        "slice": paths.SLICE, "user": USER, "program": f"{tool.prefix}/{MODULE}", "config": CONFIG,
        "state": paths.RETENTION_STATE.rpartition("/")[2], "policy": POLICY, "kubelet": KUBELET,
        "pulls": paths.user(paths.PULLS_NAME),
    }  # fmt: skip
    for path, daily in zip(_FILES, (False, True), strict=True):
        yield File(path, render("retention/unit.j2", daily=daily, **values))
    yield File(f"{paths.UNITS}/{TIMER}", render("retention/timer.j2", unit=DAILY))
    yield Loaded()
    if host.query("test", "-e", POLICY).ok:
        yield Running(TIMER, ())


def remove() -> Steps:
    """Take the units away; settings, state and user are removed with those of the other services."""
    yield NoService(TIMER)
    yield NoInstances()


#: ``$1`` the timer, ``$2`` what it starts, ``$3`` the policy.
_TIMER = """
systemctl show --property=ActiveState,NextElapseUSecRealtime,LastTriggerUSec -- "$1"
systemctl show --property=Result,ExecMainStatus -- "$2"
[ ! -e "$3" ] || echo "Policy=$(sha256sum < "$3")"
"""


@dataclass(frozen=True, slots=True)
class TimerState:
    """The timer of a node: whether it is *enabled*, the digest of its *policy*, and its runs in systemd's words."""

    enabled: bool
    policy: str
    next: str
    last: str
    result: str

    def to_dict(self) -> dict[str, object]:
        """The same as JSON; null for what is not known."""
        return {"enabled": self.enabled} | {
            key: getattr(self, key) or None for key in ("policy", "next", "last", "result")
        }


def timer_state(host: Host) -> TimerState:
    """The timer of *host*."""
    lines = host.query("sh", "-c", _TIMER, "timer", TIMER, DAILY, POLICY).text.splitlines()
    found = dict(line.partition("=")[::2] for line in lines)
    last = found.get("LastTriggerUSec", "").removeprefix("n/a")
    return TimerState(
        enabled=found.get("ActiveState") == "active",
        policy=found.get("Policy", "").partition(" ")[0],
        next=found.get("NextElapseUSecRealtime", "").removeprefix("n/a"),
        last=last,
        result=f"{found.get('Result', '')} ({found.get('ExecMainStatus', '')})" if last else "",
    )
