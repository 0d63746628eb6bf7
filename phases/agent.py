"""The node agent."""

from kubeadm_registry.cluster import Cluster, holder_last
from kubeadm_registry.components import agent
from kubeadm_registry.components.services import backend, frontend
from kubeadm_registry.engine.changes import Steps
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.phases.immutable import OF_MEMBERS
from kubeadm_registry.transport.host import Host


def install(cluster: Cluster, host: Host) -> Steps:
    """Install the agent, which looks after the frontend and the storage."""
    return agent.install(cluster, host, frontend(cluster.spec), backend(cluster.spec))


# An agent that restarts gives up the virtual IP.
AGENT = Phase(
    "agent", "Install and start the node agent", install, on=holder_last, checks=OF_MEMBERS, one_at_a_time=True
)
