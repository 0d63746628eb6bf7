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
    cluster: Cluster, items: Sequence[seeding.Item], workers: int, *, direct: bool, known: Collection[str] = ()
) -> tuple[list[ReadFailure], dict[str, str]]:
    """What cannot be read, by each address of each server; and the servers that do not answer, with the reason.

    Those *known* by name were read everywhere before. They are read through the virtual IP, which shows what the
    storage has lost, and at the servers only looked for, unless something is missing there. Raises RegistryError when
    the virtual IP does not answer.
    """

    over = threading.Event()

    def look(place: tuple[str, Host, tuple[str, ...]], known: Collection[str]) -> list[ReadFailure]:
        name, host, (address, *others) = place
        found = seeding.prove(_way(cluster, host, address, direct=direct), items, workers, known=known, stop=over)
        flaws = [ReadFailure(image, name, why) for image, why in found.items()]
        for other in others:
            flaws += _second_look(_way(cluster, host, other, direct=direct), items[:1], name, other)
        return flaws

    def attempt(known: Collection[str], host: Host) -> list[ReadFailure] | RegistryError | ConnectionFailed:
        try:
            return look((host.name, host, cluster.node(host).addresses), known)
        except (RegistryError, ConnectionFailed) as error:
            return error

    with ThreadPoolExecutor(1) as beside:
        of_nodes = beside.submit(side_by_side, partial(attempt, known), cluster.hosts)
        try:
            at_vip = look((VIRTUAL_IP, cluster.hosts[0], cluster.spec.vip.addresses), ())
            outcomes = of_nodes.result()
        except BaseException:
            over.set()  # what the nodes have is of no use any more, and may take minutes
            raise
    if at_vip and known:
        outcomes = side_by_side(partial(attempt, ()), cluster.hosts)
    flaws: list[ReadFailure] = []
    silent: dict[str, str] = {}
    for host, outcome in zip(cluster.hosts, outcomes, strict=True):
        if isinstance(outcome, list):
            flaws += outcome
        else:
            silent[host.name] = outcome.message
    return flaws + at_vip, silent


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
        raise NotYetKnown("not every node has the registry's secrets yet")
    secrets = cluster.secrets
    login = Login(role, secrets.password(role))
    via = None if direct else host.dial(address, paths.REGISTRY_PORT)
    return partial(Registry, address, paths.REGISTRY_PORT, ca=secrets.trust, login=login, via=via, timeout=timeout)


def answers(address: str) -> bool:
    """Whether somebody takes connections at the registry's port of *address*, as seen from this machine."""
    try:
        socket.create_connection((address, paths.REGISTRY_PORT), timeout=DIRECT).close()
    except OSError:
        return False
    return True
