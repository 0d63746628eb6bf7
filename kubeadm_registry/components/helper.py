"""The operator's way onto a node: an SSH key that may ask for a few things by name, and a helper that does them.

sshd starts one program for the key, whatever its owner asks for, as a user without rights. That passes the question on
to a socket of systemd's, which starts the helper for each, as root. Both are modules of the tool in the bundle. Nothing
of this is on a node before ``operator install``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType

from kubeadm_registry import paths
from kubeadm_registry.bundle import TOOL
from kubeadm_registry.bundle.tool import MODULE
from kubeadm_registry.cluster import Cluster, agreed
from kubeadm_registry.components import replacing, retention
from kubeadm_registry.config import RegistryCluster, from_object
from kubeadm_registry.config.model import SSH_PORT
from kubeadm_registry.engine.changes import RECORD_START, Absent, Directory, File, NoService, Running, Steps
from kubeadm_registry.engine.render import render
from kubeadm_registry.engine.users import NoUser, User
from kubeadm_registry.errors import ConfigError, Error
from kubeadm_registry.formats import Damaged, Format
from kubeadm_registry.transport.host import Host

NAME = "helper"
USER = paths.user(NAME)
ETC = f"{paths.ETC}/{NAME}"
"""The home of the user, which only root writes."""
DOOR = f"{ETC}/door"
"""What sshd starts. The program behind it changes with the release, and the line of the key does not."""
KEYS = f"{ETC}/.ssh/authorized_keys"
SOCKET = f"{paths.PREFIX}-{NAME}.socket"
TEMPLATE = f"{paths.PREFIX}-{NAME}@.service"
SPACE = f"{paths.PREFIX}-space@.service"
"""What does a step of freeing space, by the name of the step."""
_UNITS = {"unit": f"{paths.UNITS}/{TEMPLATE}", "space": f"{paths.UNITS}/{SPACE}", "socket": f"{paths.UNITS}/{SOCKET}"}
NODE = f"{ETC}/node.json"
"""What the steps must know: which node this is, and the cluster file."""
STEPS = f"{ETC}/space"
"""What the steps are asked for, and what came of them; root's alone."""
NOTES = f"{STEPS}/notes.json"
SETTINGS = Format(NODE)
REQUEST, RESULT = Format("what a step is asked for"), Format("the result of a step")


def space_unit(step: str) -> str:
    """The unit that does *step*."""
    return SPACE.replace("@", f"@{step}")


def request_path(step: str) -> str:
    """What *step* is asked for."""
    return f"{STEPS}/{step}.request.json"


def result_path(step: str) -> str:
    """What came of *step*."""
    return f"{STEPS}/{step}.json"


def key_line(public: str) -> bytes:
    """The file of sshd for the key *public*, as ``ssh-ed25519 AAAA...`` (sshd(8), AUTHORIZED_KEYS FILE FORMAT)."""
    return (
        "# Written by kubeadm-registry: the key of the operator in Kubernetes.\n"
        f'restrict,command="{DOOR}" {public} kubeadm-registry operator\n'
    ).encode()


#: The host keys of sshd, as sshd_config(5) has them where it says nothing.
_HOST_KEYS = "cat /etc/ssh/ssh_host_*_key.pub"


def known_name(address: str, port: int) -> str:
    """What known_hosts calls the sshd at *address* and *port* (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
    return address if port == SSH_PORT else f"[{address}]:{port}"


def known_host(host: Host, address: str, port: int) -> str:
    """The sshd of *host* at *address* and *port* as lines of known_hosts."""
    name = known_name(address, port)
    return "".join(f"{name} {key}\n" for key in _host_keys(host))


def _host_keys(host: Host) -> list[str]:
    """Type and key of each."""
    return [" ".join(line.split()[:2]) for line in host.query("sh", "-c", _HOST_KEYS).text.splitlines()]


def update(cluster: Cluster, host: Host) -> Steps:
    """Where a key may ask, have the programs of this release answer; every node gets the key that most nodes have.

    Where most have none, it is removed; while nodes are away that could decide, each node keeps its own. So it is with
    the key by which nodes replace each other.
    """
    keys = agreed(cluster, KEYS, undecided=host.read(KEYS))
    if keys is not None and TOOL in cluster.programs:
        yield from _steps(cluster, host, keys, replacing.key_of(cluster, host))
    elif host.query("test", "-e", ETC).ok:
        yield from remove(cluster, host)


def install(cluster: Cluster, host: Host, public: str, private: str = "") -> Steps:
    """Let the owner of the key *public* ask, and the nodes replace each other by the key *private*, unless it is empty.

    Raises Error (ProgramMissing).
    """
    yield from _steps(cluster, host, key_line(public), private)


def _steps(cluster: Cluster, host: Host, keys: bytes, private: str) -> Steps:
    yield User(USER, home=ETC, shell="/bin/sh")  # noqa: S604  a field, and sshd needs one for its command
    yield Directory(ETC)
    yield Directory(STEPS, mode=0o700)
    yield File(NODE, settings(cluster, host, _pins(cluster, host) if private else {}), mode=0o600)
    yield from _programs(cluster)
    yield from replacing.install(cluster, host, private) if private else replacing.remove(cluster, host)
    yield Directory(f"{ETC}/.ssh")
    yield File(KEYS, keys)
    yield NoSessions(before=KEYS)


def settings(cluster: Cluster, host: Host, pins: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """What *host* must know to do what it is asked for; there is no secret in it.

    *pins* are the host keys of nodes whose ``hostKey`` the cluster file does not have.
    """
    config = cluster.config.without_files()
    nodes = [node.model_copy(update={"host_key": node.host_key or pins.get(node.name)}) for node in config.spec.nodes]
    described = config.with_spec(nodes=tuple(nodes)).model_dump(by_alias=True, exclude_none=True, mode="json")
    return SETTINGS.render({"node": host.name, "cluster": described})


def read_settings(content: bytes | None, host: str) -> tuple[str, RegistryCluster]:
    """The name of a node and its cluster file, by what ``settings`` wrote there. Raises Error (HelperUnknown)."""
    try:
        values = SETTINGS.parse(content or b"").values
        return str(values["node"]), from_object(values["cluster"])
    except (Damaged, KeyError) as error:
        raise Error(
            f"{NODE}: {error}", host=host, code="HelperUnknown", hint="run `kubeadm-registry init`, which writes it"
        ) from error
    except ConfigError as error:  # the program that wrote it is newer than the one in the bundle that reads it
        raise Error(
            f"{NODE} cannot be read: {error.message}", host=host, code="HelperUnknown",
            hint="the kubeadm-registry that wrote it is newer than that in the node's bundle: run `upgrade` with its "
            "own bundle",
        ) from error  # fmt: skip


def _pins(cluster: Cluster, host: Host) -> dict[str, str]:
    """The host keys of all nodes; those of nodes that cannot be reached as *host* knows them."""
    known: dict[str, str] = {}
    with suppress(Error):
        _, before = read_settings(host.read(NODE), host.name)
        known = {node.name: node.host_key for node in before.spec.nodes if node.host_key is not None}
    for one in cluster.hosts:
        # The usual kind before others, and each time the same.
        keys = sorted(_host_keys(one), key=lambda key: (not key.startswith("ssh-ed25519 "), key))
        known.update({one.name: keys[0]} if keys else {})
    return known


def _programs(cluster: Cluster) -> Steps:
    values = {
        "slice": paths.SLICE, "program": f"{cluster.program(TOOL).prefix}/{MODULE}", "user": USER,
        "listens": paths.HELPER_SOCKET, "writes": (retention.ETC, STEPS, replacing.ETC), "etc": paths.ETC,
        "record": f"{RECORD_START} %n {_UNITS['socket']}",
    }  # fmt: skip
    yield File(DOOR, render(f"{NAME}/door.j2", **values), mode=0o755)
    files = {kind: File(path, render(f"{NAME}/{kind}.j2", **values)) for kind, path in _UNITS.items()}
    yield from files.values()
    yield Running(SOCKET, (files["socket"],))


#: The processes of the user ``$1``, if there is one; with ``$2`` they are killed before, and their end is waited for.
#: With ``$3`` only those count that began before this file was written, or in the same second.
_SESSIONS = """
file=$3
booted=$(sed -n 's/^btime //p' /proc/stat) tick=$(getconf CLK_TCK)
written=$([ -z "$file" ] || stat -c %Y -- "$file" 2>/dev/null || echo 0)
here() {
  find /proc -maxdepth 1 -name '[0-9]*' -user "$1" 2>/dev/null | while read -r process; do
    [ -n "$file" ] || { echo "$process"; continue; }
    began=$(sed 's/.*) //' "$process/stat" 2>/dev/null | cut -d' ' -f20)
    [ -z "$began" ] || [ "$((booted + began / tick))" -gt "$written" ] || echo "$process"
  done
}
if [ -n "$2" ]; then
  for attempt in 1 2 3 4 5 6 7 8 9 10; do
    found=$(here "$1")
    [ -n "$found" ] || break
    kill -KILL $(echo "$found" | sed 's,/proc/,,') 2>/dev/null || :
    sleep 0.2
  done
fi
here "$1" || :
"""


@dataclass(frozen=True, slots=True)
class NoSessions:
    """Nobody is logged in with the key: whoever is stays so without it, and userdel(8) removes no user who is.

    *before*: only nobody who was before this file was written, as with a key that it does not have any more.
    """

    before: str = ""
    title = "end the sessions of the operator's key"

    def diff(self, host: Host) -> str | None:
        """That somebody is, or None."""
        found = host.query("sh", "-c", _SESSIONS, "sessions", USER, "", self.before).text.split()
        return f"user {USER}: {len(found)} processes are ended" if found else None

    def apply(self, host: Host) -> None:
        """End them."""
        host.run("sh", "-c", _SESSIONS, "sessions", USER, "kill", self.before)


def remove(cluster: Cluster, host: Host) -> Steps:
    """Nobody may ask any more. What is being answered has two minutes at most; a step that runs is completed."""
    yield Absent(KEYS)
    yield from replacing.remove(cluster, host)
    yield Absent(_UNITS["unit"])
    yield Absent(_UNITS["space"])
    yield NoService(SOCKET)
    yield NoSessions()
    yield NoUser(USER)
    # Last: as long as it is there, a removal is not complete.
    yield Absent(ETC)
