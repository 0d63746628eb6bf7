"""The virtual IP."""

from functools import partial

from kubeadm_registry.cluster import Cluster, holder_last, leader
from kubeadm_registry.components.services import vip_manager
from kubeadm_registry.engine.changes import Steps, Wait
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.transport.host import Host, has_address


def install(cluster: Cluster, host: Host) -> Steps:
    """Install what moves the virtual IP."""
    return vip_manager(cluster.spec).install(cluster, host)


def one_holder(cluster: Cluster, host: Host) -> Steps:
    """Wait until exactly one node holds the VIP, with all its addresses."""
    yield Wait("exactly one node holds the virtual IP", partial(_one_holder, cluster), timeout=30)


def _one_holder(cluster: Cluster, _: Host) -> str | None:
    for address in cluster.spec.vip.addresses:
        holders = [host.name for host in cluster.hosts if has_address(host, address)]
        # A server that does not answer by SSH may have it and serve it; the phase verify reads through it.
        if len(holders) != 1 and (holders or not cluster.absent):
            return f"{', '.join(holders)} hold {address}" if holders else f"no node holds {address}"
    return None


INSTALL = Phase(
    "install",
    "Install and start keepalived",
    install,
    on=holder_last,
    one_at_a_time=True,
)
HOLDER = Phase("holder", "Wait until exactly one node holds the virtual IP", one_holder, on=leader)
VIP = Phase("vip", "Assign the virtual IP to a healthy node", phases=(INSTALL, HOLDER))
