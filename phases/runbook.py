"""What a node has for people who lost something: recovery commands without this tool, and the cluster file."""

from __future__ import annotations

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import cluster_file, runbook
from kubeadm_registry.engine.changes import Steps
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.phases.immutable import OF_MEMBERS
from kubeadm_registry.transport.host import Host


def _install(cluster: Cluster, host: Host) -> Steps:
    yield from runbook.install(cluster, host)
    yield from cluster_file.install(cluster, host)


RUNBOOK = Phase("runbook", "Write the RUNBOOK and a copy of the cluster file", _install, checks=OF_MEMBERS)
