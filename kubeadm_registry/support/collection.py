"""What is asked of the nodes for an archive, and the page that says what is where."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kubeadm_registry import __version__, paths, secrets
from kubeadm_registry import status as cluster_status
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.doctor import Diagnosis, diagnose, examine
from kubeadm_registry.errors import Error
from kubeadm_registry.support.masking import Mask, values
from kubeadm_registry.transport.host import Host, side_by_side

#: Bytes of each file of a node, the newest.
MOST = 4 * 2**20
#: Seconds for each question.
PATIENCE = 40.0


@dataclass(frozen=True, slots=True)
class Item:
    """A file of the archive for each node: what is in it, and the shell command whose output it is.

    ``$1`` is since when, as journalctl takes it, ``$2`` the data directory.
    """

    name: str
    what: str
    script: str


_OURS = f"{paths.PREFIX}*"
_JOURNAL = 'journalctl --quiet --no-pager --output=short-iso-precise --since="$1"'
#: The text of each file ``$@`` behind its name, but for those that hold a key or a login and nothing else.
_FILES = """
show() {
  case $1 in */secrets.json*|*.key|*/rpc_secret|*/admin_token|*/auth.map|*/orders/*) echo "=== $1 (left out)" ;;
  *) echo "=== $1"; cat -- "$1" 2>&1 | head -c 262144; echo ;;
  esac
}
"""

ITEMS: Sequence[Item] = (
    Item("journal.log", "the journals of the registry's units",
         f"{_JOURNAL} --unit='{_OURS}'"),
    Item("journal-manager.log", "what systemd said of these units",
         f"{_JOURNAL} _PID=1 | grep -F {paths.PREFIX}"),
    Item("journal-containerd.log", "the journals of containerd and the kubelet",
         f"{_JOURNAL} --unit=containerd.service --unit=kubelet.service --unit=crio.service"),
    Item("journal-kernel.log", "the kernel's messages, warnings and worse",
         f"{_JOURNAL} --dmesg --priority=warning"),
    Item("agent-state.json", "what the node's agent sees, with the time that each answer took",
         f"cat {paths.AGENT_STATE}"),
    Item("units.txt", "systemd's view of the units, with times and restarts",
         f"systemctl --no-pager --full status '{_OURS}' containerd.service; echo; "
         f"systemctl show --property=Id,LoadState,ActiveState,SubState,Result,NRestarts,ActiveEnterTimestamp,"
         f"ExecMainStatus,MemoryCurrent,CPUUsageNSec,DropInPaths '{_OURS}'; echo; "
         "systemctl list-timers --all --no-pager"),
    Item("unit-files.txt", "the unit files, with drop-ins", f"systemctl cat --no-pager '{_OURS}' containerd.service"),
    Item("configuration.txt", f"the files below {paths.ETC}, without those that are a secret",
         f"{_FILES} find {paths.ETC} -type f | sort | while read -r file; do show \"$file\"; done"),
    Item("configuration-files.txt", "mode, owner, size and time of our files",
         f"ls -lAR --time-style=full-iso {paths.ETC} {paths.OPT}/programs.json {paths.RUN}; "
         f"cd {paths.RUN}/started && head -n 40 *"),
    Item("containerd.txt", "containerd's configuration, and which registries it pulls from",
         f"{_FILES} find /etc/containerd /etc/crio /etc/containers/registries.conf* -type f 2>/dev/null | sort | "
         "while read -r file; do show \"$file\"; done; echo '=== containerd config dump'; containerd config dump"),
    Item("versions.txt", "versions of programs, kernel and system",
         f"cat /etc/os-release; uname -a; systemctl --version; nft --version; containerd --version; "
         f"python3 --version; cat {paths.OPT}/programs.json"),
    Item("storage.txt", "disks, mounts, inodes, and the data directory",
         "df -hPT; echo; df -hPi; echo; findmnt; echo; cat /etc/fstab; echo; lsblk; echo; ls -lA \"$2\"; "
         "du -xs \"$2\"/* 2>&1"),
    Item("garage.txt", "Garage's own status, layout and workers",
         f"g=\"$(readlink \"/proc/$(systemctl show -P MainPID {paths.unit('garage')})/exe\")\"; "
         f"for what in status 'layout show' 'stats' 'worker list' 'block list-errors'; do echo \"=== garage $what\"; "
         f"timeout 10 \"$g\" -c {paths.ETC}/garage/garage.toml $what 2>&1; done"),
    Item("network.txt", "addresses, routes, neighbors and sockets",
         "ip address; echo; ip rule; ip route show table all; ip -6 route show table all; echo; ip neigh; echo; "
         "ss -tuanp; echo; ss -s"),
    Item("firewall.txt", "nft's whole ruleset", "nft --stateless list ruleset"),
    Item("load.txt", "load, memory, pressure, clocks and processes",
         "date --iso-8601=ns; uptime; free -m; grep . /proc/pressure/*; timedatectl; chronyc -n tracking; "
         "chronyc -n sources; ps -eo pid,user,pcpu,pmem,rss,etimes,stat,comm --sort=-rss | head -n 60"),
)  # fmt: skip
"""What is asked of each node. Nothing changes it."""

CONTENTS: Mapping[str, str] = {
    "index.md": "this page",
    "cluster.yaml": "the cluster file, with every default",
    "status.json": "what `kubeadm-registry status -o json` says",
    "doctor.json": "what `kubeadm-registry doctor -o json` says",
    "workstation.json": "versions of this program and of the workstation, and how long each question took",
    **{f"nodes/NAME/{item.name}": item.what for item in ITEMS},
}
"""Each file, and what is in it."""


@dataclass(slots=True)
class Collected:
    """The files of an archive by name; *missing* says why there is none, *withheld* which secrets a file had."""

    files: dict[str, bytes] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    withheld: dict[str, list[str]] = field(default_factory=dict)
    unreachable: Mapping[str, str] = field(default_factory=dict)
    masked: int = 0
    """Files in which something was masked."""
    state: str = ""


def collect(
    config: RegistryCluster, hosts: Sequence[Host], unreachable: Mapping[str, str], cluster_file: str, seconds: float
) -> Collected:
    """Ask *hosts* for what they logged in the last *seconds* and for the rest of ITEMS, side by side.

    *cluster_file* is the cluster file as text. Every file is masked, and then searched for each secret: one in which a
    secret is left is not among the files, nor is anything from a node whose secrets could not be read.
    """
    began = time.time()
    hosts = [host.as_read_only() for host in hosts]
    mask, unknown = _mask(config, hosts)
    examined, status, failure = _examined(config, hosts, unreachable)
    if status is None:
        status = cluster_status.judge(config, cluster_status.gather(config, hosts, unreachable))
    raw: dict[str, bytes] = {
        "cluster.yaml": cluster_file.encode(),
        "status.json": _json(status),
        "doctor.json": _json(examined.to_dict() if examined is not None else {"error": failure}),
    }
    found = Collected(unreachable=unreachable, state=examined.state if examined is not None else "unknown")
    took: dict[str, float] = {}
    since = f"@{began - seconds:.0f}"
    able = [host for host in hosts if host.name not in unknown]
    for host, answers in zip(able, side_by_side(lambda one: _ask(config, one, since), able), strict=True):
        for item, (content, why, duration) in zip(ITEMS, answers, strict=True):
            name = f"nodes/{host.name}/{item.name}"
            took[name] = round(duration, 2)
            if why:
                found.missing[name] = why
            if content:
                raw[name] = content
    found.missing |= {f"nodes/{name}/": why for name, why in unknown.items()}
    raw["workstation.json"] = _json(
        {
            "version": __version__, "python": platform.python_version(), "platform": platform.platform(),
            "began": datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - began, 1), "questions": took,
        }
    )  # fmt: skip
    for name, content in raw.items():
        _add(found, mask, name, content)
    _add(found, mask, "index.md", index(config, found, seconds, began).encode())
    return found


def _add(found: Collected, mask: Mask, name: str, content: bytes) -> None:
    masked = mask.masked(content)
    left = mask.found(masked)
    if left:
        found.withheld[name] = left
        return
    found.masked += masked != content
    found.files[name] = masked


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _examined(
    config: RegistryCluster, hosts: Sequence[Host], unreachable: Mapping[str, str]
) -> tuple[Diagnosis | None, Mapping[str, Any] | None, str]:
    """What doctor and status say. An archive is needed most where something goes wrong that nobody thought of."""
    status: Mapping[str, Any] | None = None
    try:
        snapshot = examine(config, hosts, unreachable)
        status = snapshot.judged
        return diagnose(snapshot), status, ""
    except Exception as error:
        return None, status, f"{type(error).__name__}: {error}"


def _mask(config: RegistryCluster, hosts: Sequence[Host]) -> tuple[Mask, dict[str, str]]:
    """What is masked, by the secrets of all nodes; and the nodes that are installed and whose secrets nobody knows."""
    known: dict[str, str] = {}
    unknown: dict[str, str] = {}
    bare: dict[str, bool] = {}

    def read(host: Host) -> dict[str, bytes] | Error:
        try:
            bare[host.name] = not host.query("test", "-d", paths.ETC).ok
            return secrets.contents(host, config.spec.data_directory)
        except Error as error:
            return error

    for host, answer in zip(hosts, side_by_side(read, hosts), strict=True):
        if isinstance(answer, Error):
            unknown[host.name] = f"its secrets cannot be read, so nothing could be masked: {answer.message}"
            continue
        for content in answer.values():
            for name, value in values(content).items():
                other = name in known and known[name] != value
                known[f"{name} of {host.name}" if other else name] = value
    if not known:
        why = "no node has the secrets, so nothing could be masked"
        unknown |= {host.name: why for host in hosts if not bare.get(host.name, False)}
    return Mask.of(known), unknown


def _ask(config: RegistryCluster, host: Host, since: str) -> list[tuple[bytes, str, float]]:
    """The answers to ITEMS: what came, why nothing or not all of it came, and the seconds it took."""
    answers = []
    for item in ITEMS:
        began = time.monotonic()
        try:
            script = f"{{ {item.script}\n}} 2>&1 | tail -c {MOST}"
            result = host.query("sh", "-c", script, "support", since, config.spec.data_directory, timeout=PATIENCE)
            content, why = result.stdout, "" if result.stdout else "no output"
        except Error as error:
            content, why = b"", error.message
        answers.append((content, why, time.monotonic() - began))
    return answers


def index(config: RegistryCluster, found: Collected, seconds: float, began: float) -> str:
    """The page that says what is where."""
    moment = datetime.fromtimestamp(began, UTC)
    lines = [
        f"# Support archive of {config.metadata.name}",
        "",
        f"Made by kubeadm-registry {__version__} on {moment:%Y-%m-%d %H:%M:%S} UTC. Journals reach back "
        f"{seconds / 3600:.1f} hours; of each file the last {MOST // 2**20} MiB are kept.",
        f"State of the registry: **{found.state}**. Begin with [doctor.json](doctor.json).",
        "",
        "Secrets are masked, and every file was searched for each secret of the registry (as it is, URL-quoted, in "
        "base64 and in hexadecimal digits) before it was written.",
        "",
        "| file | what is in it | bytes |",
        "| --- | --- | --- |",
    ]
    for pattern, what in CONTENTS.items():
        names = [pattern] if "NAME" not in pattern else [
            pattern.replace("NAME", node.name) for node in config.spec.nodes
        ]  # fmt: skip
        for name in names:
            if name in found.files:
                lines.append(f"| [{name}]({name}) | {what} | {len(found.files[name])} |")
    lines += _reasons("Nodes that did not answer", found.unreachable)
    lines += _reasons("Files that are missing, or not complete", found.missing)
    withheld = {name: f"left out, because it still contained {', '.join(which)}"
                for name, which in found.withheld.items()}  # fmt: skip
    lines += _reasons("Files that were left out", withheld)
    return "\n".join([*lines, ""])


def _reasons(title: str, found: Mapping[str, str]) -> list[str]:
    if not found:
        return []
    rows = [f"| {name} | {' '.join(why.split()).replace('|', ' ')} |" for name, why in found.items()]
    return ["", f"## {title}", "", "| what | why |", "| --- | --- |", *rows]
