"""What makes a registry healthy enough to change a node, or to go on with the next one."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from kubeadm_registry.agent import document
from kubeadm_registry.components import garage, health
from kubeadm_registry.components.health import Report, by_node, ill, problems, report, uncompared
from tests.unit.fake_cluster import FakeCluster
from tests.unit.fakes import FakeTransport

NODES = ("a", "b", "c")


def state(node: str, **changes: Any) -> dict[str, Any]:
    others = [one for one in NODES if one != node]
    return {
        "time": 1000.0, "fit": True, "level": 0, "conditions": [], "quorum": {"storage": 3},
        "storage_left": {"blocks": 0, "tables": 0}, "vip": {"held": node == "a"},
        "writer": {"role": "writer" if node == "a" else "standby"},
        "peers": {one: {"presence": "fresh"} for one in others}, **changes,
    }  # fmt: skip


def reports(**changes: dict[str, Any]) -> list[Report]:
    return [Report(node, state(node, **changes.get(node, {}))) for node in NODES]


def test_a_healthy_registry_has_no_problem() -> None:
    assert problems(reports()) == []
    assert ill(reports()) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"b": {"fit": False, "level": 2, "conditions": ["StorageDown"]}},
            "b: does not serve reads (level 2, StorageDown)",
        ),
        ({"b": {"level": 1, "conditions": ["ChainSlow"]}}, "b: does not serve reads (level 1, ChainSlow)"),
        ({"b": {"conditions": ["ClockOff"]}}, "b: its agent reports ClockOff"),
        (
            {"b": {"conditions": ["StorageCopying"], "storage_left": {"blocks": 7, "tables": 1}}},
            "b: its storage is copying what it missed, 7 blocks and 1 part of tables are left",
        ),
        ({"b": {"quorum": {"storage": 2}}}, "b: its storage reaches 2 of 3 nodes"),
        (
            {"c": {"peers": {"a": {"presence": "fresh"}, "b": {"presence": "silent"}}}},
            "c: does not hear the agent of b (silent)",
        ),
        ({"c": {"peers": {"a": {"presence": "fresh"}}}}, "c: does not hear the agent of b (unknown)"),
        ({"a": {"vip": {"held": False}}}, "no node: holds the virtual IP, and exactly one node must"),
        ({"b": {"vip": {"held": True}}}, "a, b: holds the virtual IP, and exactly one node must"),
        ({"a": {"writer": {"role": "closing"}}}, "no node: has the lease, and exactly one node must"),
    ],
)  # fmt: skip
def test_each_of_these_is_told(changes: dict[str, dict[str, Any]], told: str) -> None:
    assert problems(reports(**changes)) == [told]


def test_agents_without_a_lease_are_of_a_release_that_had_none() -> None:
    none = {node: {"writer": {"role": None}} for node in NODES}
    assert problems(reports(**none)) == []


def test_a_node_may_be_changed_while_only_itself_is_not_healthy() -> None:
    """The others report what its absence does to them; what they miss themselves counts."""
    away = {
        "b": {"conditions": ["StoragePartial", "StorageCopying"], "quorum": {"storage": 2},
              "storage_left": {"blocks": 0, "tables": 3},
              "peers": {"a": {"presence": "fresh"}, "c": {"presence": "gone"}}},
        "a": {"conditions": ["StoragePartial"], "quorum": {"storage": 2},
              "peers": {"b": {"presence": "fresh"}, "c": {"presence": "gone"}}},
    }  # fmt: skip
    found = [*reports(**away)[:2], Report("c", None, "cannot be asked: no route to host")]
    assert by_node(found, but="c") == {"a": [], "b": []}
    assert ill(found) == ["c"]
    assert "c: cannot be asked: no route to host" in problems(found)
    there = [*found[:2], Report("c", state("c"))]
    assert by_node(there, but="c") == {
        "a": ["a: its agent reports StoragePartial", "a: its storage reaches 2 of 3 nodes"],
        "b": [
            "b: its storage is copying what it missed, 0 blocks and 3 parts of tables are left",
            "b: its agent reports StoragePartial",
            "b: its storage reaches 2 of 3 nodes",
        ],
    }, "while it is well itself, this is no consequence of it"


def test_blocks_of_pushes_in_flight_are_no_problem() -> None:
    """While images are pushed the agents report copying all the time: a moment without anything left is enough."""
    assert problems(reports(b={"storage_left": {"blocks": 20, "tables": 0}})) == []
    copying = state("b", conditions=["StorageCopying"])
    assert problems([Report("a", state("a")), Report("b", copying, runs=30.0), Report("c", state("c"))]) == []
    soon = [Report("a", state("a")), Report("b", copying, runs=8.0), Report("c", state("c"))]
    assert problems(soon) == ["b: its storage is copying what it missed, 0 blocks and 0 parts of tables are left"]


def test_lost_blocks_that_an_agent_leaves_out_are_not_left_out_twice(
    three: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third block that it failed to get may still come."""
    monkeypatch.setattr(garage, "lost", lambda _: {"cp-1": 2, "cp-2": 2})
    told = {"storage_left": {"blocks": 1, "tables": 0}, "storage_queues": {"errors": 3}}
    older = {"storage_left": {"blocks": 3, "tables": 0}, "storage_queues": {"errors": 3}}
    assert health.lost(three.cluster, {"cp-1": {**told, "storage_lost": 2}, "cp-2": older}) == {"cp-1": 0, "cp-2": 2}


def test_each_node_is_healthy_once(three: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine never all at the same look."""
    slow = {"level": 1, "conditions": ["ChainSlow"]}
    looks = iter([reports(a=slow), reports(b=slow, c=slow), reports(a=slow, c=slow), reports(a=slow, b=slow)])
    monkeypatch.setattr(health, "reports", lambda _: next(looks))
    watch = health.Watch(three.cluster)
    assert watch.look() == "a: does not serve reads (level 1, ChainSlow)"
    assert watch.look() is None, "b and c were well at the first look"
    assert watch.look() is None, "and it stays so"


def told(text: str) -> Report:
    server = FakeTransport("a")
    server.answer("sh", "-c", health._ASK, "health", with_=text)
    return report(server.host())


def test_only_a_fresh_report_counts_and_one_from_after_the_latest_start() -> None:
    sealed = json.dumps(document.sealed(copy.deepcopy(state("a"))))  # type: ignore[arg-type]
    assert told(f"1001.0\n900.5\n---\n{sealed}").state is not None
    assert told(f"1001.0\n---\n{sealed}").state is not None, "no record of a start"
    assert told(f"1009.0\n900.5\n---\n{sealed}").trouble == "its agent last reported 9 s ago"
    assert told(f"990.0\n900.5\n---\n{sealed}").trouble == "its agent last reported -10 s ago"
    assert "have just been started" in told(f"1001.0\n998.0\n---\n{sealed}").trouble
    assert told("1001.0\n---\n").trouble == "its agent reports no state"
    newer = json.dumps({**state("a"), "format": {"version": 9, "minReader": 9, "minWriter": 9}})
    assert told(f"1001.0\n---\n{newer}").trouble == (
        "a newer release wrote the agent's state: version 9 of its format is needed to read it, and this release has "
        "version 1; use a newer kubeadm-registry"
    )
    assert told("nonsense\n---\n").trouble.startswith("cannot be asked: ")


def test_a_node_that_is_ill_for_a_moment_is_not(three: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([["a", "b"], ["b", "c"], ["b"], []])
    monkeypatch.setattr(health, "ill", lambda _: next(looks))
    monkeypatch.setattr(health, "APART", 0.0)
    assert health.lastingly_ill(three.cluster) == []
    monkeypatch.setattr(health, "ill", lambda _: ["b"])
    monkeypatch.setattr(health, "PATIENCE", 0.05)
    assert health.lastingly_ill(three.cluster) == ["b"]


def test_what_a_node_that_leaves_does_to_the_others_is_no_problem_of_theirs() -> None:
    """It has lost its way to one of them, and is well for all that it sees itself."""
    partial = {"conditions": ["StoragePartial"], "quorum": {"storage": 2}}
    found = reports(a=partial, c=partial)
    assert by_node(found, but="c", leaves=True) == {"a": [], "b": []}
    assert by_node(found, but="c")["a"], "but where it stays"
    copying = reports(a={**partial, "conditions": ["StorageCopying"], "storage_left": {"blocks": 7, "tables": 0}})
    assert by_node([*copying[:1], Report("b", state("b")), *copying[2:]], but="c", leaves=True)["a"]


def test_a_storage_that_does_not_tell_what_it_compares_has_not_compared_it() -> None:
    """Its admin API has not answered yet; a node that copies is slow to answer."""
    assert uncompared(reports()) == []
    assert uncompared(reports(b={"storage_left": None})) == [
        "b: its storage has not reported yet which tables it has to compare"
    ]
