"""The operator's helper on the nodes: `operator install` lets a key ask, `init` keeps what answers current."""

from __future__ import annotations

from functools import partial

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import helper
from kubeadm_registry.engine.changes import Steps
from kubeadm_registry.engine.phase import Phase, Workflow
from kubeadm_registry.transport.host import Host

HELPER = Phase("helper", "Update the helper of the operator, where there is one", helper.update)


def allow(public: str) -> Workflow:
    """Have the helper answer to the owner of the SSH key *public*, and to nobody else."""
    return (Phase("helper", "Install the helper and the operator's key", partial(_allow, public)),)


def _allow(public: str, cluster: Cluster, host: Host) -> Steps:
    yield from helper.install(cluster, host, public)


def _forbid(_: Cluster, __: Host) -> Steps:
    yield from helper.remove()


FORBID = (Phase("helper", "Remove the helper and the operator's key", _forbid),)
