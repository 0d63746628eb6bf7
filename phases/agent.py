"""The node agent."""

from kubeadm_registry.components import agent
from kubeadm_registry.workflow import Phase

AGENT = Phase("agent", "Install the node agent and start it", agent.install, one_at_a_time=True)
