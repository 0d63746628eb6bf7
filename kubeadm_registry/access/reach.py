"""Connect to the registry directly or through an SSH tunnel, and check images through every node."""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from kubeadm_registry import paths
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.errors import ConnectionFailed, NotYetKnown, RegistryError
from kubeadm_registry.images import pool
from kubeadm_registry.images import seed as seeding
from kubeadm_registry.registry import SILENCE, Login, Registry
from kubeadm_registry.transport.host import Host, side_by_side

#: Seconds to find out whether the registry can be reached without SSH.
DIRECT = 2.0
#: Whose login our own questions carry: nodes pull as anybody or as ``pull``, and `images wanted` tells them by that.
ROLE = "push"
#: What the virtual IP is called among the places where an image is looked for.
VIRTUAL_IP = "the virtual IP"


@dataclass(frozen=True, slots=True)
class ReadFailure:
    """What cannot be read of *image* at the server *where* (or through the virtual IP), and why."""

    image: str
    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.image} at {self.where}: {self.why}"


def prove(
    cluster: Cluster, items: Sequence[seeding.Item], workers: int, *, direct: bool, known: Collection[str] = (),
    read: Collection[str] = (),
) -> tuple[list[ReadFailure], dict[str, str]]:  # fmt: skip
    """What cannot be read, by each address of each server; and the servers that do not answer, with the reason.

    Those *known* by name were read everywhere before. They are read through the virtual IP, unless they have been
    *read* there just now: that shows what the storage has lost. Which server serves an image makes no difference to
    that, so each is looked for at one of them, by its name; if anything is missing, all are read at all of them.
    Raises RegistryError when the virtual IP does not answer.
    """

    over = threading.Event()

    def look(
        what: Sequence[seeding.Item], known: Collection[str], name: str, host: Host, addresses: Sequence[str]
    ) -> list[ReadFailure]:
        first, *others = addresses
        found = seeding.prove(_way(cluster, host, first, direct=direct), what, workers, known=known, stop=over)
        flaws = [ReadFailure(image, name, why) for image, why in found.items()]
        for other in others:
            flaws += _second_look(_way(cluster, host, other, direct=direct), items[:1], name, other)
        return flaws

    def attempt(known: Collection[str], host: Host) -> list[ReadFailure] | RegistryError | ConnectionFailed:
        share = _share(items, known, cluster.hosts.index(host), len(cluster.hosts))
        try:
            return look(share, known, host.name, host, cluster.node(host).addresses)
        except (RegistryError, ConnectionFailed) as error:
            return error

    with ThreadPoolExecutor(1) as beside:
        of_nodes = beside.submit(side_by_side, partial(attempt, known), cluster.hosts)
        try:
            unread = [item for item in items if item.name not in read]
            at_vip = look(unread, (), VIRTUAL_IP, cluster.hosts[0], cluster.spec.vip.addresses)
            outcomes = of_nodes.result()
        except BaseException:
            over.set()  # what the nodes have is of no use any more, and may take minutes
            raise
    if known and (at_vip or any(isinstance(one, list) and one for one in outcomes)):
        outcomes = side_by_side(partial(attempt, ()), cluster.hosts)
    flaws: list[ReadFailure] = []
    silent: dict[str, str] = {}
    for host, outcome in zip(cluster.hosts, outcomes, strict=True):
        if isinstance(outcome, list):
            flaws += outcome
        else:
            silent[host.name] = outcome.message
    return flaws + at_vip, silent


def _share(items: Sequence[seeding.Item], known: Collection[str], place: int, places: int) -> Sequence[seeding.Item]:
    """What of *items* is looked for at one of so many *places*: all that is not *known*, and its part of the others."""
    part = [item for number, item in enumerate(items) if item.name not in known or number % places == place]
    return part or items[:1]


def _way(cluster: Cluster, host: Host, address: str, *, direct: bool) -> pool.Connect:
    return connection(cluster, host, address, direct=direct and answers(address))


def _second_look(way: pool.Connect, items: Sequence[seeding.Item], where: str, address: str) -> list[ReadFailure]:
    """What of *items* cannot be read by a server's address of the other family.

    The registry behind it is the same, and has been looked at: the name of one image shows that the address leads
    there.
    """
    try:
        found = seeding.prove(way, items, workers=1, known={item.name for item in items})
    except (RegistryError, ConnectionFailed) as error:
        found = {item.name: error.message for item in items}
    return [ReadFailure(image, f"{where} ({address})", why) for image, why in found.items()]


def connection(
    cluster: Cluster, host: Host, address: str, *, direct: bool = False, role: str = ROLE, timeout: float = SILENCE
) -> pool.Connect:
    """Returns what connects to the registry at *address*, logged in as *role*.

    *direct*: by the registry's own network; else through *host*, by SSH. *timeout* is seconds of silence. Raises
    ConnectionFailed, and NotYetKnown before there are secrets, when there can be no registry either.
    """
    if not cluster.vault.known:
        raise NotYetKnown("not every node has the registry's secrets yet", hint="run init first")
    secrets = cluster.secrets
    login = Login(role, secrets.password(role))
    via = None if direct else host.dial(address, paths.REGISTRY_PORT)
    return partial(Registry, address, paths.REGISTRY_PORT, ca=secrets.trust, login=login, via=via, timeout=timeout)


def to_vip(cluster: Cluster) -> tuple[pool.Connect, bool]:
    """What connects to the registry at the virtual IP, and whether that is by the registry's own network."""
    vip = cluster.spec.vip.address
    direct = answers(vip)
    return connection(cluster, cluster.hosts[0], vip, direct=direct), direct


def answers(address: str) -> bool:
    """Whether somebody takes connections at the registry's port of *address*, as seen from this machine."""
    try:
        socket.create_connection((address, paths.REGISTRY_PORT), timeout=DIRECT).close()
    except OSError:
        return False
    return True
