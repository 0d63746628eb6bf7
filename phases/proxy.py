"""HAProxy: TLS, authorization, and the route to a healthy frontend."""

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import haproxy
from kubeadm_registry.components.served import Served, Trusted
from kubeadm_registry.components.services import frontend
from kubeadm_registry.engine.changes import Steps
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.phases.immutable import OF_MEMBERS
from kubeadm_registry.transport.host import Host


def install(cluster: Cluster, host: Host) -> Steps:
    """Install and start HAProxy; a running one loads a renewed certificate, and is reloaded for another CA."""
    yield from haproxy.install(cluster, host, single_writer=frontend(cluster.spec).SINGLE_WRITER)
    yield Trusted()
    yield Served()


PROXY = Phase("proxy", "Install and start HAProxy", install, checks=OF_MEMBERS, one_at_a_time=True)
