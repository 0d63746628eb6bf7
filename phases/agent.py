"""The node agent."""

from kubeadm_registry.components import agent, keepalived
from kubeadm_registry.engine.workflow import Phase

# One that restarts gives the address up.
AGENT = Phase(
    "agent", "Install the node agent and start it", agent.install, on=keepalived.holder_last, one_at_a_time=True
)
