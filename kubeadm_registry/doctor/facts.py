"""What a node says of itself, by one question: units, journal, disks, files, ports, and who is on the wire."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubeadm_registry import paths, secrets
from kubeadm_registry.agent.pulls import REQUEST, SILENT
from kubeadm_registry.components import haproxy, network, retention
from kubeadm_registry.components.services import services
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.containerd.survey import UNIT as CONTAINERD
from kubeadm_registry.doctor import wire
from kubeadm_registry.transport import host_python
from kubeadm_registry.transport.host import UNFINISHED, Host

#: Seconds for which a node listens for VRRP: several advertisements of ours, and one of a keepalived with defaults.
LISTEN = 1.2
#: Those of our directories and files that tell a node on which nothing is installed from one that lost a part.
_TREE = (paths.ETC, paths.PROGRAMS, f"{paths.UNITS}/{paths.unit('agent')}")
_SHOWN = (
    "Id,LoadState,ActiveState,SubState,UnitFileState,Result,ExecMainStatus,NRestarts,FragmentPath,DropInPaths,"
    "NeedDaemonReload"
)
#: ``$1`` data directory, ``$2`` who holds the lock, ``$3`` secrets, ``$4`` until when pushes are closed, ``$5`` the
#: node's address, ``$6`` router id, ``$7`` the source for Python, ``$8`` what starts it, ``$9`` seconds; behind them
#: IPv4 addresses to ask for, ports, and units. A part begins with a line "=== NAME". What hangs, as a dead network file
#: system does, holds up the rest for no longer than its timeout. The wire is listened to meanwhile.
_ASK = f"""
data=$1 lock=$2 secrets=$3 pushes=$4 address=$5 router=$6 source=$7 python=$8 seconds=$9
shift 9
vips=$1 ports=$2; shift 2
interface=$(ip -oneline address show to "$address" 2>/dev/null | head -n 1 | cut -d' ' -f2)
sh -c "$python" wire {paths.PROGRAMS} "$source" "${{interface:-lo}}" "$router" "$seconds" $vips 2>&1 | {{
exec 3<&0 </dev/null
echo "=== clock"; date +%s
echo "=== units"; systemctl show --property={_SHOWN} -- "$@"
echo "=== words"
for unit; do
  [ "$(systemctl show --property=ActiveState --value -- "$unit")" != active ] || continue
  echo "--- $unit"
  timeout 5 journalctl --quiet --no-pager --output=cat --lines=6 --unit="$unit" 2>/dev/null
done
echo "=== manager"
matches=
for unit; do matches="$matches ${{matches:++}} _PID=1 UNIT=$unit"; done
timeout 5 journalctl --quiet --no-pager --output=short-unix --since=-1h --lines=300 $matches 2>/dev/null
echo "=== requests"
lines=$(timeout 5 journalctl --quiet --no-pager --output=cat --since=-{SILENT:.0f}s --lines=200 \
  {" ".join(f"--unit={unit}" for unit in paths.HAPROXY_UNITS)} 2>/dev/null) &&
  case $lines in *'{REQUEST}'*) echo some ;; *) echo none ;; esac
echo "=== space"; timeout 5 df -P -B1 -- "$data" 2>/dev/null
echo "=== inodes"; timeout 5 df -P -i -- "$data" 2>/dev/null
echo "=== mount"; timeout 5 findmnt --noheadings --output TARGET,SOURCE,FSTYPE,OPTIONS --target "$data" 2>/dev/null
echo "=== fstab"; findmnt --fstab --noheadings --output TARGET,SOURCE 2>/dev/null
echo "=== mounts"; findmnt --noheadings --list --output TARGET 2>/dev/null
echo "=== data"; timeout 5 ls -A -- "$data" 2>/dev/null | head -n 5
echo "=== tree"
for path in {" ".join(_TREE)}; do [ ! -e "$path" ] || echo "$path"; done
echo "=== secrets"; stat -c '%a %U:%G' -- "$secrets" 2>/dev/null
echo "=== lock"; cat -- "$lock" 2>/dev/null
pid=$(sed -n 's/.*process \\([0-9]*\\)$/\\1/p' "$lock" 2>/dev/null)
[ -z "$pid" ] || [ ! -d "/proc/$pid" ] || echo running
echo "=== unfinished"; find /etc /opt -xdev -name '.*.??????????{UNFINISHED}*' 2>/dev/null | head -n 20
echo "=== pushes"; cat -- "$pushes" 2>/dev/null
echo "=== pressure"; cat /proc/pressure/memory 2>/dev/null
echo "=== links"; ip -oneline link show 2>/dev/null
echo "=== listeners"
ss -Hltnp 2>/dev/null | while read -r state receive send local peer rest; do
  case " $ports " in *" ${{local##*:}} "*) ;; *) continue ;; esac
  pid=$(printf '%s' "$rest" | sed -n 's/.*pid=\\([0-9]*\\).*/\\1/p')
  echo "$local $rest $(tail -n 1 "/proc/$pid/cgroup" 2>/dev/null)"
done
echo "=== firewall"; timeout 5 nft --handle list ruleset 2>/dev/null | awk -v ours={paths.PREFIX} '
/^table / {{ table = $2 " " $3 }}
/^[ \t]*chain / {{ chain = $2 }}
/drop|reject/ {{ if (index(table, ours) == 0) {{ sub(/^[ \t]+/, ""); print table "|" chain "|" $0 }} }}' | head -n 200
echo "=== wire"; cat <&3
}}
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """What systemd says of a unit, and the last lines that it logged unless it runs."""

    name: str
    properties: Mapping[str, str]
    words: Sequence[str] = ()

    def get(self, name: str) -> str:
        """A property by systemd's name for it."""
        return self.properties.get(name, "")

    @property
    def active(self) -> bool:
        """Whether it runs, or is just being reloaded."""
        return self.get("ActiveState") in ("active", "reloading")

    @property
    def masked(self) -> bool:
        """Whether it is masked."""
        return self.get("LoadState") == "masked" or self.get("UnitFileState").startswith("masked")

    @property
    def there(self) -> bool:
        """Whether it has a unit file."""
        return self.get("LoadState") not in ("", "not-found")

    @property
    def drop_ins(self) -> list[str]:
        """The files that change its unit file; not those that a distribution has for all units."""
        return [path for path in self.get("DropInPaths").split() if f"/{paths.PREFIX}" in path]

    def line(self, *names: str) -> str:
        """Some of its properties as evidence."""
        shown = " ".join(f"{name}={self.get(name)}" for name in names)
        return f"systemctl show {self.name}: {shown}"


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A line of df: *size* and *free* in bytes or, of inodes, in numbers."""

    size: int
    free: int
    mount: str
    line: str


@dataclass(frozen=True, slots=True)
class Listener:
    """Who listens on a TCP port: the *line* of ss, and the *unit* of the process."""

    port: int
    local: str
    program: str
    pid: str
    unit: str
    line: str

    @property
    def ours(self) -> bool:
        """Whether it is a service of the registry."""
        return self.unit.startswith(paths.PREFIX)


@dataclass(frozen=True, slots=True)
class FirewallRule:
    """A rule of somebody else's that drops or rejects packets: nft's *table* (family and name), *chain*, *text*."""

    table: str
    chain: str
    text: str

    @property
    def handle(self) -> str:
        """The number by which nft deletes it; empty for the policy of a chain."""
        return self.text.rpartition("# handle ")[2] if "# handle " in self.text else ""

    def concerns(self, protocol: str, ports: Sequence[int] = ()) -> bool:
        """Whether it names *protocol* or one of its *ports*."""
        words = self.text.partition(" # handle")[0]
        numbers = {int(word) for word in re.findall(r"\b\d+\b", words)}
        return bool(numbers & set(ports)) if ports else bool(re.search(rf"\b{protocol}\b", words))


@dataclass(frozen=True, slots=True)
class Facts:
    """The answers of one node. Sizes are bytes, *clock* is seconds since 1970."""

    clock: float = 0.0
    units: Mapping[str, Unit] = field(default_factory=dict)
    manager: Sequence[str] = ()
    """What systemd itself said of the units in the last hour, each line with its time."""
    requests: bool | None = None
    """Whether the journal has a request of the last SILENT seconds, with which the proxies log it; None: not known."""
    space: FileSystem | None = None
    inodes: FileSystem | None = None
    mount: str = ""
    """The mount on which the data directory is: target, source, type, options."""
    unmounted: Sequence[str] = ()
    """What /etc/fstab says is mounted at or above the data directory, and is not."""
    entries: Sequence[str] = ()
    """Some of what is in the data directory."""
    tree: frozenset[str] = frozenset()
    """Those of our directories that are there."""
    secrets: str = ""
    """Mode and owner of the secrets; empty: there are none."""
    lock: str = ""
    """Who holds the lock, and since when."""
    running: bool = False
    """Whether the process that holds the lock is there."""
    unfinished: Sequence[str] = ()
    pushes: Mapping[str, int] = field(default_factory=dict)
    """Until when pushes are closed, in seconds since 1970, and why."""
    pressure: Mapping[str, float] = field(default_factory=dict)
    """The share of time, in percent of the last minute, that "some" or all ("full") processes wait for memory."""
    hardware: frozenset[str] = frozenset()
    """Its link-layer addresses."""
    listeners: Sequence[Listener] = ()
    firewall: Sequence[FirewallRule] = ()
    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By address of the virtual IP, the link-layer addresses that answered for it; none if nobody could ask."""
    vrrp: Mapping[str, str] = field(default_factory=dict)
    """Who sends VRRP for our router id: address and link-layer address."""


def units(config: RegistryCluster) -> list[str]:
    """The units of a node that run all the time, containerd's among them."""
    ours = [unit for service in (network.GUARD, *services(config.spec)) for unit in service.units]
    return [*ours, CONTAINERD]


def ask(config: RegistryCluster, node: Node, host: Host) -> Facts:
    """Ask *host*, in one round trip. Raises Error if it does not answer."""
    spec = config.spec
    data = spec.data_directory
    ports = sorted({port.number for one in services(spec) for port in one.ports if port.protocol == "tcp"})
    vips = [address for address in spec.vip.addresses if ":" not in address]
    answer = host.query(
        "sh", "-c", _ASK, "doctor", data, f"{paths.LOCK}.who", secrets.PATH, haproxy.PUSHES_MAP, node.address,
        str(spec.vip.router_id), host_python.source(wire), host_python.RUN, str(LISTEN), " ".join(vips),
        " ".join(map(str, ports)), *units(config), retention.DAILY, timeout=40,
    )  # fmt: skip
    return parse(answer.stdout.decode(errors="replace"), data)


def parse(text: str, data: str) -> Facts:
    """What the answer *text* of a node with the data directory *data* says. What is not there has its default."""
    parts: dict[str, list[str]] = {}
    for name, body in re.findall(r"^=== (\w+)\n(.*?)(?=^=== |\Z)", text, re.MULTILINE | re.DOTALL):
        parts[name] = body.splitlines()

    def part(name: str) -> list[str]:
        return parts.get(name, [])

    def first(name: str) -> str:
        return next(iter(part(name)), "")

    mounted = {line.strip() for line in part("mounts")}
    fstab = [line.split() for line in part("fstab") if line.strip()]
    above = {"/", *(data[: found.start()] for found in re.finditer("/", data) if found.start()), data}
    shown = _json("\n".join(part("wire")))
    return Facts(
        clock=float(first("clock") or 0),
        units=_units(part("units"), part("words")),
        manager=part("manager"),
        requests={"some": True, "none": False}.get(first("requests")),
        space=_file_system(part("space")),
        inodes=_file_system(part("inodes")),
        mount=" ".join((part("mount") or [""])[-1].split()),  # of several on one directory the last one is on top
        unmounted=[" ".join(one) for one in fstab if one[0] in above and one[0] not in mounted],
        entries=part("data"),
        tree=frozenset(part("tree")),
        secrets=first("secrets"),
        lock=first("lock"),
        running="running" in part("lock"),
        unfinished=part("unfinished"),
        pushes={name: int(until) for name, until in re.findall(r"^(closed|full) (\d+)$", "\n".join(part("pushes")),
                                                              re.MULTILINE)},
        pressure={kind: float(share) for kind, share in re.findall(r"^(some|full) .*avg60=([\d.]+)",
                                                                   "\n".join(part("pressure")), re.MULTILINE)},
        hardware=frozenset(re.findall(r"link/ether ([0-9a-f:]+)", "\n".join(part("links")))),
        listeners=[one for line in part("listeners") if (one := _listener(line)) is not None],
        firewall=[FirewallRule(*line.split("|", 2)) for line in part("firewall") if line.count("|") >= 2],
        answers=shown.get("answers", {}),
        vrrp=shown.get("vrrp", {}),
    )  # fmt: skip


def _json(text: str) -> dict[str, Any]:
    try:
        shown = json.loads(text)
    except ValueError:
        return {}
    return shown if isinstance(shown, dict) else {}


def _units(lines: Sequence[str], said: Sequence[str]) -> dict[str, Unit]:
    words: dict[str, list[str]] = {}
    for line in said:
        if line.startswith("--- "):
            words[line.removeprefix("--- ")] = []
        elif words:
            words[next(reversed(words))].append(line)
    found = {}
    for block in "\n".join(lines).strip().split("\n\n"):
        properties = dict(line.partition("=")[::2] for line in block.splitlines())
        name = properties.get("Id", "")
        found[name] = Unit(name, properties, words.get(name, ()))
    found.pop("", None)
    return found


def _file_system(lines: Sequence[str]) -> FileSystem | None:
    """The first file system of df's output."""
    # What is mounted stands first, and may have blanks: a pool of ZFS, or the source of an NFS share.
    found = re.fullmatch(r".* (\d+) +\S+ +(\d+) +\S+ (/.*)", lines[1].rstrip()) if len(lines) > 1 else None
    if found is None:
        return None
    return FileSystem(int(found[1]), int(found[2]), found[3], f"df {' '.join(lines[1].split())}")


def _listener(line: str) -> Listener | None:
    local, _, rest = line.partition(" ")
    port = local.rpartition(":")[2]
    if not port.isdigit():
        return None
    who = re.search(r'\(\("([^"]*)",pid=(\d+)', rest)
    program, pid = (who[1], who[2]) if who else ("another program", "")
    unit = re.search(r"([^/]+\.(?:service|scope))(?:/[^/ ]*)*$", rest.strip())
    return Listener(int(port), local, program, pid, unit[1] if unit else "", f"ss -ltnp: {local} {rest.strip()}")


def registry_units(config: RegistryCluster) -> list[str]:
    """The units of ours without which a node does not serve."""
    return [unit for unit in units(config) if unit != CONTAINERD]
