"""A node that leaves with the virtual IP: it goes by a planned move before anything else is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from kubeadm_registry import paths, pki
from kubeadm_registry.access.membership import Request
from kubeadm_registry.cluster import Cluster, retiring
from kubeadm_registry.components import keepalived
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.errors import PreflightFailed
from kubeadm_registry.phases import moves
from kubeadm_registry.phases.changing import carry_out
from kubeadm_registry.phases.workflows import CHANGE_MEMBERS
from kubeadm_registry.transport.host import Host
from tests.unit.fake_cluster import authority
from tests.unit.installed import fresh
from tests.unit.test_members import FOUR, SKIP, THREE, changed, file, planned
from tests.unit.test_vip_move import World, impatient
from tests.unit.test_workflow import Recorder


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[World, Cluster]]:
    """Four nodes with agents that know of planned moves; cp-1 has the virtual IP, and the given one is to leave."""

    def without(leaver: str) -> tuple[World, Cluster]:
        four = changed(fresh(file(THREE)), Request(joins="cp-4"), FOUR)
        left = four.servers[leaver]
        other, cluster, change = planned(four, Request(leaves=leaver), FOUR)
        other.servers[leaver] = left
        world = World(other)
        for server in other.servers.values():
            server.prefer("ss", "-Hltn")
        left.closed, left.cut_at = False, None
        host = Host(leaver, change.leaving[leaver].address, left)
        cluster = replace(cluster, change=replace(change, retiring=(host,)))
        other.garage.hosts = {**other.garage.hosts, leaver: left}
        act = left._act

        def acts(what: str) -> None:
            act(what)
            if what == f"stop {keepalived.UNIT}" and world.holder == leaver:
                world.holder = "cp-3"

        monkeypatch.setattr(left, "_act", acts)
        return world, cluster

    impatient(monkeypatch)
    return without


@pytest.fixture
def leaving(without: Callable[[str], tuple[World, Cluster]]) -> tuple[World, Cluster]:
    """The holder of the virtual IP leaves."""
    return without("cp-1")


def run(cluster: Cluster, *, dry_run: bool = False) -> Recorder:
    recorder = Recorder()
    carry_out(CHANGE_MEMBERS, cluster, recorder, skip=SKIP, dry_run=dry_run)
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


def dual(cluster: Cluster) -> Cluster:
    """*cluster* with a virtual IP of two addresses. The list of members has one address of each node."""
    vip = cluster.spec.vip.model_copy(update={"secondary_address": "fd00::10"})
    return replace(cluster, config=cluster.config.with_spec(vip=vip))


def test_a_node_whose_secondary_address_is_not_known_gives_it_up_when_clients_have_ended(
    leaving: tuple[World, Cluster],
) -> None:
    """The file does not list it any more, and its certificate has one address, as that of a node that was cut off."""
    world, cluster = leaving
    recorder = Recorder()
    carry_out((), dual(cluster), recorder)
    assert world.story == []
    assert any(
        "secondary address is not in its certificate" in text and host == "cp-1" for host, text in recorder.notes
    )


def test_the_secondary_address_of_a_node_that_leaves_is_in_its_certificate(
    leaving: tuple[World, Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cluster = leaving
    names = ("cp-1", "10.0.0.11", "fd00::11", "10.0.0.10", "fd00::10", "localhost", "127.0.0.1", "::1")
    made = pki.issue(authority(), "cp-1", names)
    [left] = [host for host in retiring(cluster) if host.name == "cp-1"]
    left.transport.put(paths.NODE_PEM, f"{made.certificate}{made.key}")  # type: ignore[attr-defined]
    asked: list[Cluster] = []
    monkeypatch.setattr(moves, "away", lambda before, *_, **__: asked.append(before) or ())
    recorder = Recorder()
    carry_out((), dual(cluster), recorder)
    assert [one.node(left).addresses for one in asked] == [("10.0.0.11", "fd00::11")]
    assert not [text for _, text in recorder.notes if "no planned move" in text]


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


def test_another_node_that_leaves_moves_nothing(without: Callable[[str], tuple[World, Cluster]]) -> None:
    world, cluster = without("cp-4")
    recorder = run(cluster)
    assert any(one.phase.startswith("move/") for one in recorder.actions), "the change was carried out"
    assert world.holder == "cp-1"
    assert world.story == []
