"""The loopback address, the routes and the guard that the services need."""

from kubeadm_registry.components import network
from kubeadm_registry.engine.workflow import Phase

NETWORK = Phase(
    "network",
    "Give the storage its loopback address and quick routes, guard it from other users",
    network.install,
    one_at_a_time=True,
)
