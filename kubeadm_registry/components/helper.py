"""The operator's way onto a node: an SSH key that may ask for a few things by name, and a helper that does them.

sshd starts one program for the key, whatever its owner asks for, as a user without rights. That passes the question on
to a socket of systemd's, which starts the helper for each, as root. Both are modules of the tool in the bundle. Nothing
of this is on a node before ``operator install``.
"""

from __future__ import annotations

from kubeadm_registry import paths
from kubeadm_registry.bundle import TOOL
from kubeadm_registry.bundle.tool import MODULE
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import retention
from kubeadm_registry.components.units import Service
from kubeadm_registry.config.model import SSH_PORT
from kubeadm_registry.engine.changes import Absent, Directory, File, NoService, Running, Steps
from kubeadm_registry.engine.render import render
from kubeadm_registry.engine.users import NoUser, User
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
SERVICE = Service(NAME, units=(), user=USER)
_UNITS = {"socket": f"{paths.UNITS}/{SOCKET}", "unit": f"{paths.UNITS}/{TEMPLATE}"}
#: What it writes: the orders that it takes.
_WRITES = (retention.ETC,)


def key_line(public: str) -> bytes:
    """The file of sshd for the key *public*, as ``ssh-ed25519 AAAA...`` (sshd(8), AUTHORIZED_KEYS FILE FORMAT)."""
    return (
        "# Written by kubeadm-registry: the key of the operator in Kubernetes.\n"
        f'restrict,command="{DOOR}" {public} kubeadm-registry operator\n'
    ).encode()


#: The host keys of sshd, as sshd_config(5) has them where it says nothing.
_HOST_KEYS = "cat /etc/ssh/ssh_host_*_key.pub"


def known_host(host: Host, address: str, port: int) -> str:
    """The sshd of *host* at *address* and *port* as lines of known_hosts (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
    name = address if port == SSH_PORT else f"[{address}]:{port}"
    keys = [line.split()[:2] for line in host.run("sh", "-c", _HOST_KEYS).text.splitlines()]
    return "".join(f"{name} {' '.join(key)}\n" for key in keys)


def is_installed(host: Host) -> bool:
    """Whether a key may ask *host*."""
    return host.query("test", "-e", KEYS).ok


def update(cluster: Cluster, host: Host) -> Steps:
    """Where a key may ask, have the programs of this release answer."""
    if not is_installed(host):
        return
    yield from _programs(cluster) if TOOL in cluster.programs else remove()


def install(cluster: Cluster, _: Host, public: str) -> Steps:
    """Let the owner of the key *public* ask. Raises Error (ProgramMissing)."""
    yield User(USER, home=ETC, shell="/bin/sh")  # noqa: S604  a field, and sshd needs one for its command
    yield Directory(ETC)
    yield from _programs(cluster)
    yield Directory(f"{ETC}/.ssh")
    yield File(KEYS, key_line(public))


def _programs(cluster: Cluster) -> Steps:
    values = {
        "slice": paths.SLICE, "program": f"{cluster.program(TOOL).prefix}/{MODULE}", "user": USER,
        "listens": paths.HELPER_SOCKET, "writes": " ".join(_WRITES),
    }  # fmt: skip
    yield File(DOOR, render(f"{NAME}/door.j2", **values), mode=0o755)
    for kind, path in _UNITS.items():
        yield File(path, render(f"{NAME}/{kind}.j2", **values))
    yield Running(SOCKET, ())


def remove() -> Steps:
    """Nobody may ask any more. What is being answered has two minutes at most."""
    yield Absent(KEYS)
    yield Absent(_UNITS["unit"])
    yield NoService(SOCKET)
    yield Absent(ETC)
    yield NoUser(USER)
