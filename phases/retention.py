"""The executor of retention: its place on each node. What it does there is an order's business."""

from __future__ import annotations

from collections.abc import Iterator

from kubeadm_registry.bundle import TOOL
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import retention
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.transport.host import Host


def lacking(cluster: Cluster, host: Host) -> Iterator[str]:
    """That the program is not there, once for all nodes."""
    if host == cluster.leader and TOOL not in cluster.programs:
        yield (
            f"retention cannot run on the nodes: {'the bundle has' if cluster.bundle else 'they have'} no program "
            f"{TOOL}; create a bundle with it (without --with, or with --with ...,{TOOL})"
        )


RETENTION = Phase("retention", "Install the units of the retention executor", retention.install, notices=lacking)
