"""The registry program, on loopback behind the proxy."""

from kubeadm_registry.changes import Steps
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import distribution
from kubeadm_registry.host import Host
from kubeadm_registry.workflow import Phase


def install(cluster: Cluster, host: Host) -> Steps:
    """Install the frontend that the file names."""
    return distribution.install(cluster, host)


FRONTEND = Phase("frontend", "Install the registry program and start it", install, one_at_a_time=True)
