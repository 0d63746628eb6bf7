"""HAProxy: TLS, authorization, and the route to a healthy frontend."""

from collections.abc import Sequence

from kubeadm_registry.cluster import Cluster, arriving
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


def _arriving_first(cluster: Cluster) -> Sequence[Host]:
    """New nodes before the others, which send reads to them as soon as they know them: their agents do not yet."""
    new = arriving(cluster)
    return sorted(cluster.hosts, key=lambda host: host not in new)


PROXY = Phase(
    "proxy",
    "Install and start HAProxy",
    install,
    on=_arriving_first,
    checks=OF_MEMBERS,
    one_at_a_time=True,
    first_at_once=True,
)
