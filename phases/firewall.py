"""Whether the nodes can reach each other, with whole packets too. Host firewalls belong to the user; RHEL 9 has one on
by default."""

from __future__ import annotations

from collections.abc import Iterator

from kubeadm_registry import paths
from kubeadm_registry.cluster import Cluster, arriving
from kubeadm_registry.components.links import blocked, too_large
from kubeadm_registry.components.network import exposed
from kubeadm_registry.components.services import services
from kubeadm_registry.engine.phase import Check
from kubeadm_registry.transport.host import Host


def reachable(cluster: Cluster, host: Host) -> Iterator[str]:
    """The nodes can connect to each other on the ports of the services."""
    ports = exposed(services(cluster.spec))
    peers = [cluster.node(other) for other in cluster.hosts if other.name != host.name]
    # The nodes use each other's first address; clients use both.
    used = {node.address: ports for node in peers} | {
        other: [paths.REGISTRY_PORT] for node in peers for other in node.addresses if other != node.address
    }
    joining = arriving(cluster)
    new = {cluster.node(one).address for one in joining}
    # A node that had left is let in only when it joins, and the storages find out by themselves.
    pairs = [
        (address, str(port))
        for address, some in used.items()
        for port in some
        if port != paths.RPC_PORT or not (address in new or host in joining)
    ]
    if not pairs:
        return
    shut = blocked(host, pairs)
    for node in peers:
        for address in node.addresses:
            if closed := [port for to, port in pairs if to == address and (to, port) in shut]:
                yield (
                    f"cannot connect to {node.name} ({address}) on TCP port{'s' * (len(closed) > 1)} "
                    f"{', '.join(closed)}; open {'them' if len(closed) > 1 else 'it'} in the firewall of {node.name}, "
                    f"and UDP port {paths.HEARTBEAT_PORT} and protocol 112 (VRRP) as well; see docs/requirements.md"
                )


def whole(cluster: Cluster, host: Host) -> Iterator[str]:
    """Packets as large as the interfaces send reach the other nodes.

    A connection opens where they are lost, and hangs with the first large answer.
    """
    peers = {cluster.node(other).address: other.name for other in cluster.hosts if other.name != host.name}
    if not peers:
        return
    for address, way in sorted(too_large(host, peers).items()):
        yield (
            f"small packets reach {peers[address]} ({address}), but packets of {way.mtu} bytes, the MTU of "
            f"{way.interface}, do not; set the same MTU on all nodes, one that every switch between them passes "
            f"(`ip link set dev {way.interface} mtu 1500`, and in the network configuration), or enable jumbo frames "
            "on the switches"
        )


REACHABLE = Check("Firewall", reachable)
WHOLE = Check("PathMTU", whole)
