"""The registry program, on loopback behind the proxy."""

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.services import FRONTENDS, backend, frontend
from kubeadm_registry.engine.changes import NoService, Steps
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.phases.immutable import OF_MEMBERS
from kubeadm_registry.phases.pausing import while_restarting
from kubeadm_registry.transport.host import Host


def install_frontend(cluster: Cluster, host: Host) -> Steps:
    """Install the frontend in the cluster file, and remove the other one."""
    wanted = frontend(cluster.spec)
    for other in FRONTENDS.values():
        if other is not wanted:
            yield NoService(other.SERVICE.unit)
    yield from while_restarting(cluster, host, _install)


def _install(cluster: Cluster, host: Host) -> Steps:
    return frontend(cluster.spec).install(cluster, host, backend(cluster.spec))


FRONTEND = Phase(
    "frontend",
    "Install and start the registry (zot or Distribution)",
    install_frontend,
    checks=OF_MEMBERS,
    one_at_a_time=True,
    first_at_once=True,
)
