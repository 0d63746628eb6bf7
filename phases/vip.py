"""The virtual IP."""

from kubeadm_registry.cluster import leader
from kubeadm_registry.components import keepalived
from kubeadm_registry.engine.workflow import Phase

INSTALL = Phase(
    "install",
    "Install keepalived and start it",
    keepalived.install,
    on=keepalived.holder_last,
    one_at_a_time=True,
)
HOLDER = Phase("holder", "Wait until exactly one server has the address", keepalived.one_holder, on=leader)
VIP = Phase("vip", "Give the virtual IP to a healthy server", phases=(INSTALL, HOLDER))
