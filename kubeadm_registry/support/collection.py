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
from kubeadm_registry.components.services import services
from kubeadm_registry.components.units import Service
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.doctor import Diagnosis, diagnose, examine
from kubeadm_registry.errors import Error
from kubeadm_registry.support.masking import Mask, values
from kubeadm_registry.transport.host import UNFINISHED, Host, side_by_side

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
#: The text of each file ``$@`` behind its name, but for those that hold a key or a login and nothing else, and for what
#: a killed run has left of one: of half a key nobody knows that it is one.
_FILES = f"""
show() {{
  case $1 in */secrets.json*|*.key|*/rpc_secret|*/admin_token|*/auth.map|*/orders/*|*/.*{UNFINISHED}*)
    echo "=== $1 (left out)" ;;
  *) echo "=== $1"; cat -- "$1" 2>&1 | head -c 262144; echo ;;
  esac
}}
"""

_ITEMS: Sequence[Item] = (
    Item("journal.log", "journals of the registry's units",
         f"{_JOURNAL} --unit='{_OURS}'"),
    Item("journal-manager.log", "systemd's messages about these units",
         f"{_JOURNAL} _PID=1 | grep -F {paths.PREFIX}"),
    Item("journal-containerd.log", "journals of containerd and the kubelet",
         f"{_JOURNAL} --unit=containerd.service --unit=kubelet.service --unit=crio.service"),
    Item("journal-kernel.log", "kernel messages: warnings and worse",
         f"{_JOURNAL} --dmesg --priority=warning"),
    Item("agent-state.json", "the agent's view of the node",
         f"cat {paths.AGENT_STATE}"),
    Item("units.txt", "state, times and restarts of the units",
         f"systemctl --no-pager --full status '{_OURS}' containerd.service; echo; "
         f"systemctl show --property=Id,LoadState,ActiveState,SubState,Result,NRestarts,ActiveEnterTimestamp,"
         f"ExecMainStatus,MemoryCurrent,CPUUsageNSec,DropInPaths '{_OURS}'; echo; "
         "systemctl list-timers --all --no-pager"),
    Item("unit-files.txt", "unit files with drop-ins", f"systemctl cat --no-pager '{_OURS}' containerd.service"),
    Item("configuration.txt", f"{paths.ETC}, without secrets",
         f"{_FILES} find {paths.ETC} -type f | sort | while read -r file; do show \"$file\"; done"),
    Item("configuration-files.txt", "their modes, owners, sizes and times",
         f"ls -lAR --time-style=full-iso {paths.ETC} {paths.OPT}/programs.json {paths.RUN}; "
         f"cd {paths.RUN}/started && head -n 40 *"),
    Item("containerd.txt", "containerd's configuration and mirrors",
         f"{_FILES} find /etc/containerd /etc/crio /etc/containers/registries.conf* -type f 2>/dev/null | sort | "
         "while read -r file; do show \"$file\"; done; echo '=== containerd config dump'; containerd config dump"),
    Item("versions.txt", "versions of programs, kernel and OS",
         f"cat /etc/os-release; uname -a; systemctl --version; nft --version; containerd --version; "
         f"python3 --version; cat {paths.OPT}/programs.json"),
    Item("storage.txt", "disks, mounts, inodes, data directory",
         "df -hPT; echo; df -hPi; echo; findmnt; echo; cat /etc/fstab; echo; lsblk; echo; ls -lA \"$2\"; "
         "du -xs \"$2\"/* 2>&1"),
    Item("network.txt", "addresses, routes, neighbors, sockets",
         "ip address; echo; ip rule; ip route show table all; ip -6 route show table all; echo; ip neigh; echo; "
         "ss -tuanp; echo; ss -s"),
    Item("firewall.txt", "the nftables ruleset", "nft --stateless list ruleset"),
    Item("load.txt", "load, memory, clocks and processes",
         "date --iso-8601=ns; uptime; free -m; grep . /proc/pressure/*; timedatectl; chronyc -n tracking; "
         "chronyc -n sources; ps -eo pid,user,pcpu,pmem,rss,etimes,stat,comm --sort=-rss | head -n 60"),
)  # fmt: skip
"""What each node is asked, whatever its services. Nothing changes it."""


def items(of: Sequence[Service]) -> tuple[Item, ...]:
    """What a node with the services *of* is asked."""
    own = (Item(f"{one.name}.txt", f"{one.name}'s own status", one.inspect) for one in of if one.inspect)
    return (*_ITEMS, *own)


def contents(of: Sequence[Service]) -> dict[str, str]:
    """Each file of an archive of nodes with the services *of*, and what is in it; NAME stands for each node."""
    return {
        "index.md": "this page",
        "cluster.yaml": "the cluster file with all defaults",
        "status.json": "the output of `status -o json`",
        "doctor.json": "the output of `doctor -o json`",
        "workstation.json": "local versions, duration of queries",
        **{f"nodes/NAME/{item.name}": item.what for item in items(of)},
    }


@dataclass(slots=True)
class Collected:
    """The files of an archive by name; *missing* says why there is none, *withheld* which secrets a file had."""

    files: dict[str, bytes] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    withheld: dict[str, list[str]] = field(default_factory=dict)
    unreachable: Mapping[str, str] = field(default_factory=dict)
    untouched: Mapping[str, str] = field(default_factory=dict)
    """Nodes that answer and were asked for nothing, with the reason: nobody knows which secrets to mask."""
    masked: int = 0
    """Files in which something was masked."""
    state: str = ""


def collect(
    config: RegistryCluster, hosts: Sequence[Host], unreachable: Mapping[str, str], cluster_file: str, seconds: float
) -> Collected:
    """Ask *hosts* for what they logged in the last *seconds* and for the rest of what `items` lists, side by side.

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
    found = Collected(
        unreachable=unreachable, untouched=unknown, state=examined.state if examined is not None else "unknown"
    )
    took: dict[str, float] = {}
    since = f"@{began - seconds:.0f}"
    able = [host for host in hosts if host.name not in unknown]
    asked = items(services(config.spec))
    for host, answers in zip(able, side_by_side(lambda one: _ask(config, one, asked, since), able), strict=True):
        for item, (content, why, duration) in zip(asked, answers, strict=True):
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


def _ask(config: RegistryCluster, host: Host, asked: Sequence[Item], since: str) -> list[tuple[bytes, str, float]]:
    """The answers to *asked*: what came, why nothing or not all of it came, and the seconds it took."""
    answers = []
    for item in asked:
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
    for pattern, what in contents(services(config.spec)).items():
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
