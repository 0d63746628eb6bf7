"""The replicated storage: installed on each node, formed once, and connected on each node."""

from kubeadm_registry.cluster import Cluster, leader
from kubeadm_registry.components.services import backend
from kubeadm_registry.engine.changes import Steps
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.phases.immutable import OF_MEMBERS
from kubeadm_registry.phases.pausing import while_restarting
from kubeadm_registry.transport.host import Host


def install(cluster: Cluster, host: Host) -> Steps:
    """Install the storage on this node; with zot, pause writes while it restarts."""
    return while_restarting(cluster, host, lambda one, at: backend(one.spec).install(one, at))


def form(cluster: Cluster, host: Host) -> Steps:
    """Create the storage cluster of all nodes."""
    return backend(cluster.spec).form(cluster, host)


def joined(cluster: Cluster, host: Host) -> Steps:
    """Wait until this node is connected to all other storage nodes."""
    return backend(cluster.spec).joined(cluster, host)


INSTALL = Phase(
    "install", "Install and start the storage", install, checks=OF_MEMBERS, one_at_a_time=True, first_at_once=True
)
FORM = Phase("form", "Create the storage cluster: layout, key and buckets", form, on=leader, checks=OF_MEMBERS)
JOINED = Phase("joined", "Wait for all storage nodes to be connected", joined)
BACKEND = Phase("backend", "Set up the replicated storage", phases=(INSTALL, FORM, JOINED))
