"""Client nodes: their containerd pulls through the virtual IP, and nothing else is installed on them."""

from __future__ import annotations

from kubeadm_registry import containerd, paths
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.changes import Absent, Steps
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.phases import reset
from kubeadm_registry.phases.containerd import CONTAINERD, point
from kubeadm_registry.transport.host import Host


def leave(cluster: Cluster, host: Host) -> Steps:
    """Restore containerd's original configuration, and remove what that needed."""
    yield from reset.give_back(cluster, host)
    yield Absent(containerd.OWED)
    for path in (paths.RUN, f"{paths.ETC}/backup", paths.ETC):
        yield Absent(path, only_if_empty=True)


# Restarts take turns over all clients, see Cluster.turn: a phase knows only the one host that it is run for.
POINT = Phase("mirrors", CONTAINERD.summary, point, checks=CONTAINERD.checks, notices=CONTAINERD.notices)
LEAVE = Phase("mirrors", reset.CONTAINERD.summary, leave, checks=reset.CONTAINERD.checks)
