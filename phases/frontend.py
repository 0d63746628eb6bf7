"""The registry program, on loopback behind the proxy."""

from kubeadm_registry.changes import Steps
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import distribution, zot
from kubeadm_registry.host import Host
from kubeadm_registry.workflow import Phase


def install_frontend(cluster: Cluster, host: Host) -> Steps:
    """Install the frontend that the file names."""
    install = {zot.NAME: zot.install, distribution.NAME: distribution.install}[cluster.spec.frontend.type]
    return install(cluster, host)


FRONTEND = Phase("frontend", "Install the registry program and start it", install_frontend, one_at_a_time=True)
