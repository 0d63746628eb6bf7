"""When the storage counts as whole, and when one of its servers may restart."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import garage
from kubeadm_registry.errors import NotYetKnown
from tests.unit.fake_cluster import FakeCluster

WELL = {
    "status": "healthy", "connectedNodes": 3, "storageNodes": 3, "storageNodesUp": 3,
    "partitions": 256, "partitionsAllOk": 256, "partitionsQuorum": 256,
}  # fmt: skip


def says(fake: FakeCluster, name: str = "", **health: object) -> None:
    """What Garage says of its health on the server *name*, or on all."""
    for server in fake.servers.values():
        if name in ("", server.name):
            executable = fake.programs["garage"].executable
            answer = json.dumps(WELL | health)
            server.answer(executable, "-c", garage.CONFIG, "json-api", "GetClusterHealth", with_=answer)


def without_the_third(cluster: Cluster) -> Cluster:
    """As a run sees it that cannot reach cp-3."""
    return replace(cluster, hosts=cluster.hosts[:2], absent={"cp-3": "no route to host"})


@pytest.mark.parametrize(
    ("health", "whole", "whole_for_two"),
    [
        ({}, True, True),
        ({"storageNodesUp": 2, "partitionsAllOk": 0}, False, True),
        # All servers answer, and copies are missing still: enough only where one server is known to be away.
        ({"partitionsAllOk": 255}, False, True),
        ({"storageNodesUp": 2, "partitionsAllOk": 0, "partitionsQuorum": 255}, False, False),
        ({"storageNodesUp": 1, "partitionsAllOk": 0}, False, False),
        ({"partitions": 0, "partitionsAllOk": 0, "partitionsQuorum": 0}, False, False),
    ],
)
def test_the_storage_is_whole_if_nothing_is_missing_but_who_is_away(
    installed: FakeCluster, health: dict[str, object], whole: bool, whole_for_two: bool
) -> None:
    says(installed, **health)
    cluster = installed.cluster
    assert (garage.storage_problem(cluster, cluster.hosts[0]) is None) is whole
    two = without_the_third(cluster)
    assert (garage.storage_problem(two, two.hosts[0]) is None) is whole_for_two


def test_before_there_is_a_layout_a_server_may_restart_at_once(three: FakeCluster) -> None:
    """Nothing can be lost, and the storage would never be whole."""
    for server in three.servers.values():
        server.unit(garage.UNIT).active = "active"
    cluster = three.cluster
    assert garage.storage_problem_anywhere(cluster, cluster.hosts[0]) is not None
    assert garage.gate(cluster)(cluster.hosts[0]) is None


def test_a_server_may_restart_once_all_have_seen_the_storage_whole_for_a_while(
    installed: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(garage.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(garage, "STABLE", 5.0)
    cluster = installed.cluster
    gate = garage.gate(cluster)
    says(installed, "cp-2", storageNodesUp=2, status="degraded")
    assert gate(cluster.hosts[0]) == "cp-2: 2 of 3 storage nodes are up, storage is degraded"
    says(installed)
    assert gate(cluster.hosts[0]) == "healthy; waiting another 5.0 s to confirm"
    now[0] += 5.0
    assert gate(cluster.hosts[0]) is None
    says(installed, "cp-3", partitionsAllOk=255)
    assert gate(cluster.hosts[0]) is not None


def test_where_garage_does_not_answer_nothing_may_restart(installed: FakeCluster) -> None:
    cluster = installed.cluster
    gate = garage.gate(cluster)
    installed.servers["cp-1"].unit(garage.UNIT).active = "failed"
    with pytest.raises(NotYetKnown, match="Garage does not respond"):
        gate(cluster.hosts[0])
