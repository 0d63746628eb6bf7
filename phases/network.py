"""The loopback address, the routes and the guard that the services need."""

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import network
from kubeadm_registry.components.services import frontend, services
from kubeadm_registry.engine.changes import Steps
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.phases.immutable import OF_MEMBERS
from kubeadm_registry.transport.host import Host


def install(cluster: Cluster, host: Host) -> Steps:
    """Install what the services of this cluster need of the kernel."""
    return network.install(cluster, host, services(cluster.spec), frontend(cluster.spec))


NETWORK = Phase(
    "network",
    "Configure loopback address, routes and nftables",
    install,
    checks=OF_MEMBERS,
    one_at_a_time=True,
    first_at_once=True,
)
