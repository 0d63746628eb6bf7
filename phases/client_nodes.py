"""Client nodes: their containerd pulls through the virtual IP, and nothing else is installed on them."""

from __future__ import annotations

from collections.abc import Iterator

from kubeadm_registry import containerd, paths
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.links import blocked
from kubeadm_registry.components.services import existing
from kubeadm_registry.engine.changes import Absent, Steps
from kubeadm_registry.engine.phase import Check, Phase
from kubeadm_registry.phases import reset
from kubeadm_registry.phases.containerd import CONTAINERD, USABLE, notices, point
from kubeadm_registry.transport.host import Host


def elsewhere(cluster: Cluster, host: Host) -> Iterator[str]:
    """The node is not a server of another registry, whose init points its containerd at that one."""
    made = existing(host)
    if made is None:
        return
    secrets = cluster.vault.preview()
    if not {secrets.node_id(name) for name in secrets.node_keys} & made.members.keys():
        yield (
            "it is a node of another registry: remove it from the list, or first run `reset` for it with the "
            "cluster file of that registry"
        )


def unreachable(cluster: Cluster, host: Host) -> Iterator[str]:
    """Those of a registry node; and that the node gets no connection to the registry, by no address of it."""
    yield from notices(cluster, host)
    places = [(vip, str(paths.REGISTRY_PORT)) for vip in cluster.spec.vip.addresses]
    if len(blocked(host, places)) == len(places):
        yield (
            f"cannot connect to {' or '.join(vip for vip, _ in places)} on TCP port {paths.REGISTRY_PORT}, the only "
            "place from which containerd now pulls these images; check the routes, and open the port in the firewalls "
            "on the way"
        )


def no_server(_: Cluster, host: Host) -> Iterator[str]:
    """The node is not a registry node, whose containerd `init` configures: the list may have another name or address
    of it than the cluster file."""
    if existing(host) is not None:
        yield "it is a registry node: remove it from the list, and use `kubeadm-registry reset` or `leave` for it"


def leave(cluster: Cluster, host: Host) -> Steps:
    """Restore containerd's original configuration, and remove what that needed."""
    yield from reset.give_back(cluster, host)
    yield Absent(containerd.OWED)
    for path in (paths.RUN, f"{paths.ETC}/backup", paths.ETC):
        yield Absent(path, only_if_empty=True)


# Restarts take turns over all clients, see Cluster.turn: a phase knows only the one host that it is run for. That host
# is no member, so what it may have of a list of members is of an earlier time: it has left, or was reset.
POINT = Phase(
    "mirrors",
    CONTAINERD.summary,
    point,
    checks=(Check("OtherRegistry", elsewhere), USABLE),
    notices=unreachable,
)
LEAVE = Phase(
    "mirrors",
    reset.CONTAINERD.summary,
    leave,
    checks=(Check("RegistryNode", no_server), *reset.CONTAINERD.checks),
)
