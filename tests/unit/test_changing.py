"""A node that leaves with the virtual IP: it goes by a planned move before anything else is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from kubeadm_registry.access.membership import Request
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import drain, keepalived
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.errors import PreflightFailed
from kubeadm_registry.phases import vip_move
from kubeadm_registry.phases.changing import carry_out
from kubeadm_registry.phases.workflows import CHANGE_MEMBERS
from kubeadm_registry.transport.host import Host
from tests.unit.installed import fresh
from tests.unit.test_members import FOUR, SKIP, changed, file, planned
from tests.unit.test_vip_move import World
from tests.unit.test_workflow import Recorder


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch) -> tuple[World, Cluster]:
    """Four nodes with agents that know of planned moves; cp-1 has the virtual IP, and is to leave."""
    four = changed(fresh(file({name: FOUR[name] for name in ("cp-1", "cp-2", "cp-3")})), Request(joins="cp-4"), FOUR)
    left = four.servers["cp-1"]
    other, cluster, change = planned(four, Request(leaves="cp-1"), FOUR)
    other.servers["cp-1"] = left
    world = World(other)
    for server in other.servers.values():
        server.prefer("ss", "-Hltn")
    left.closed, left.cut_at = False, None
    cluster = replace(cluster, change=replace(change, retiring=(Host("cp-1", change.leaving["cp-1"].address, left),)))
    other.garage.hosts = {**other.garage.hosts, "cp-1": left}
    act = left._act

    def acts(what: str) -> None:
        act(what)
        if what == f"stop {keepalived.UNIT}" and world.holder == "cp-1":
            world.holder = "cp-3"

    monkeypatch.setattr(left, "_act", acts)
    plan = vip_move.plan

    def impatient(*given: object, **options: object) -> vip_move.Move:
        made = plan(*given, **{**options, "patience": 0.0})  # type: ignore[arg-type]
        made.reads, made.drain_seconds = lambda *_: None, 0.0
        return made

    monkeypatch.setattr(vip_move, "plan", impatient)
    monkeypatch.setattr(vip_move, "ARRIVAL", 0.2)
    monkeypatch.setattr(drain, "LONG", 0.0)
    monkeypatch.setattr(drain, "SHORT", 0.0)
    return world, cluster


def run(cluster: Cluster, **options: object) -> Recorder:
    recorder = Recorder()
    carry_out(CHANGE_MEMBERS, cluster, recorder, skip=SKIP, **options)  # type: ignore[arg-type]
    return recorder


def test_it_goes_by_a_planned_move_before_the_data_is_moved(leaving: tuple[World, Cluster]) -> None:
    world, cluster = leaving
    recorder = run(cluster)
    assert world.holder == "cp-2"
    phases = list(dict.fromkeys(one.phase.partition("/")[0] for one in recorder.actions))
    assert phases.index("ask") < phases.index("move")
    assert "move/vip-leaves" not in {one.phase for one in recorder.actions}
    assert not world.asked, "nothing is asked of the agents any more"


def test_where_it_cannot_be_planned_it_moves_when_clients_have_ended(leaving: tuple[World, Cluster]) -> None:
    world, cluster = leaving
    world.stuck = True
    recorder = run(cluster)
    assert world.holder == "cp-3"
    assert "move/vip-leaves" in {one.phase for one in recorder.actions}
    assert any("no planned move" in text and host == "cp-1" for host, text in recorder.notes)


def test_a_node_whose_secondary_address_is_not_known_gives_it_up_when_clients_have_ended(
    leaving: tuple[World, Cluster],
) -> None:
    """The list of members has one address of each, and the file does not list it any more."""
    world, cluster = leaving
    two = cluster.spec.vip.model_copy(update={"secondary_address": "fd00::10"})
    spec = cluster.spec.model_copy(update={"vip": two})
    recorder = Recorder()
    cluster = replace(cluster, config=cluster.config.model_copy(update={"spec": spec}))
    carry_out((), cluster, recorder)
    assert world.story == []
    assert any("secondary address is not known" in text and host == "cp-1" for host, text in recorder.notes)


def test_a_dry_run_and_a_refused_change_move_nothing(leaving: tuple[World, Cluster]) -> None:
    world, cluster = leaving
    run(cluster, dry_run=True)

    def refused(phase: Phase) -> Phase:
        def ill(_: Cluster, __: Host) -> list[str]:
            return ["it is ill"]

        return replace(phase, checks=tuple(replace(check, probe=ill) for check in phase.checks))

    workflow = tuple(refused(phase) for phase in CHANGE_MEMBERS)
    with pytest.raises(PreflightFailed):
        carry_out(workflow, cluster, Recorder(), skip=SKIP)
    assert world.holder == "cp-1"
    assert world.story == []


def test_another_node_that_leaves_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    four = changed(fresh(file({name: FOUR[name] for name in ("cp-1", "cp-2", "cp-3")})), Request(joins="cp-4"), FOUR)
    world = World(four)
    look: Callable[[Cluster], vip_move.Standing] = vip_move.look

    def never(cluster: Cluster) -> vip_move.Standing:
        raise AssertionError("nobody looks who could take it")

    monkeypatch.setattr(vip_move, "look", never)
    changed(four, Request(leaves="cp-4"), FOUR, retiring="cp-4")
    assert look is not never
    assert world.holder == "cp-1"
