"""The door: TLS, who may do what, and the way to a healthy frontend."""

from kubeadm_registry.components import haproxy
from kubeadm_registry.workflow import Phase

PROXY = Phase("proxy", "Install HAProxy and start it", haproxy.install, one_at_a_time=True)
