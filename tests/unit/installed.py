"""Registries that are installed already: ``init`` runs once for a cluster file, and whoever asks gets a copy of what it
made. Most of what a test of a killed run costs is the registry on which it begins."""

from __future__ import annotations

from functools import cache

from kubeadm_registry import config
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.phases.workflows import INIT
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.test_workflow import Recorder


def fresh(text: str = config.SMALLEST) -> FakeCluster:
    """What ``init`` makes of bare servers with this cluster file; no act of it is told."""
    fake = _made(text).copy()
    for server in fake.servers.values():
        server.acts.clear()
    return fake


@cache
def _made(text: str) -> FakeCluster:
    fake = FakeCluster.of(text)
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    return fake
