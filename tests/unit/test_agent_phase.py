"""How agents begin anew: with one writer no write is in flight then, and enough of the others vote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import paths
from kubeadm_registry.access.membership import Request
from kubeadm_registry.agent import moving
from kubeadm_registry.components import agent, health, zipapp
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.phases import agent as phase
from kubeadm_registry.phases import pausing, vip_move
from kubeadm_registry.phases.workflows import CHANGE_MEMBERS, INIT
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.fakes import FakeTransport
from tests.unit.installed import fresh
from tests.unit.test_members import FOUR, SKIP, THREE, changed, file, planned
from tests.unit.test_workflow import Recorder

DISTRIBUTION = (Path(__file__).parents[1] / "golden" / "ipv4-distribution" / "cluster.yaml").read_text()
STEPS = {phase.VotersBack.title, pausing.WritesPause.title, pausing.WritesGoOn.title, f"start {agent.UNIT}"}
PAUSE, RESUME, ANEW, WAIT = "pause writes", "resume writes", f"start {agent.UNIT}", phase.VotersBack.title


@pytest.fixture
def zot() -> FakeCluster:
    """Three nodes after init; cp-1 has the virtual IP and the lease."""
    return fresh(file(THREE))


@pytest.fixture
def newer(zot: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """This release has another agent than the nodes have."""
    archive = zipapp.build()
    monkeypatch.setattr(zipapp, "build", lambda: archive + b"newer")


def steps(recorder: Recorder) -> list[tuple[str, str]]:
    """What concerns agents that begin anew, in the order in which it was done: host and step."""
    return [(one.host, one.title) for one in recorder.actions if one.title in STEPS]


def init(fake: FakeCluster, *, dry_run: bool = False) -> list[tuple[str, str]]:
    recorder = Recorder()
    run(INIT, fake.cluster, recorder, skip=ELSEWHERE, dry_run=dry_run)
    return steps(recorder)


def says(server: FakeTransport, **changes: Any) -> None:
    """Have the agent say something else; *changes* of what it says of the lease."""
    base = {"time": 1000.0, "uptime": 60.0, "members": {"generation": 1}}
    role = {"mode": "single", "role": "standby", "yields": False}
    document = {**base, **{key: value for key, value in changes.items() if key in base}}
    document["writer"] = {**role, **{key: value for key, value in changes.items() if key in role}}
    server.answer("sh", "-c", health._STATE, "state", with_=f"1000.5\n{json.dumps(document)}")


def outdated(server: FakeTransport, unit: str, path: str) -> None:
    """Have *unit* run with an earlier version of the file *path*."""
    record = f"{health.STARTED}/{unit}"
    lines = server.content(record).decode().splitlines()
    assert any(path in one for one in lines)
    server.put(record, "".join(f"{'0' * 64 if path in one else one[:64]}{one[64:]}\n" for one in lines))


@pytest.mark.usefixtures("newer")
def test_the_writer_ends_before_its_own_agent_begins_anew(zot: FakeCluster) -> None:
    last = [("cp-1", PAUSE), ("cp-1", ANEW), ("cp-1", RESUME)]
    assert init(zot) == [("cp-2", ANEW), ("cp-3", ANEW), *last]
    assert all(paths.MOVE not in server.tree for server in zot.servers.values())
    assert init(zot) == []


@pytest.mark.usefixtures("newer")
def test_a_dry_run_says_the_same_and_asks_for_nothing(zot: FakeCluster) -> None:
    before = zot.snapshot()
    told = init(zot, dry_run=True)
    assert ("cp-1", PAUSE) in told
    assert zot.snapshot() == before
    assert sorted(init(zot)) == sorted(told)


def test_a_dry_run_of_a_change_of_members_tells_one_pause(zot: FakeCluster) -> None:
    _, cluster, _ = planned(zot, Request(joins="cp-4"), FOUR)
    recorder = Recorder()
    run(CHANGE_MEMBERS, cluster, recorder, skip=SKIP, dry_run=True)
    told = [one for one in steps(recorder) if one[1] in (PAUSE, RESUME)]
    assert sorted(told) == [("cp-1", RESUME), ("cp-2", PAUSE)], "hosts that are asked side by side, in any order"


def test_where_all_may_write_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, archive = fresh(DISTRIBUTION), zipapp.build()
    monkeypatch.setattr(zipapp, "build", lambda: archive + b"newer")
    assert [title for _, title in init(fake)] == [ANEW] * 3


def test_nothing_waits_where_no_agent_begins_anew(zot: FakeCluster) -> None:
    """Another key for heartbeats is taken up in place."""
    for server in zot.servers.values():
        outdated(server, agent.UNIT, agent.HEARTBEAT_KEY)
    assert init(zot) == [(name, ANEW) for name in ("cp-2", "cp-3", "cp-1")]


def test_writes_wait_from_before_the_first_agent_gets_another_list_until_all_have_it(zot: FakeCluster) -> None:
    """The writer gives up at once when it hears of a later list, whoever has it."""
    recorder = Recorder()
    four = changed(zot, Request(joins="cp-4"), FOUR, recorder=recorder)
    found = steps(recorder)
    begun = [one for one in found if one[1] != WAIT]
    assert begun[0][1] == PAUSE
    assert begun[0][0] != "cp-1"
    at = begun.index(("cp-1", RESUME))
    assert sorted(begun[1:at]) == [(name, ANEW) for name in sorted(FOUR)]
    assert [title for _, title in begun[at + 1 :]] == [ANEW] * 4, "the list that decides alone is taken up in place"
    assert all(paths.MOVE not in server.tree for server in four.servers.values())


@pytest.mark.usefixtures("newer")
def test_a_writer_that_does_not_end_is_asked_no_longer(zot: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that goes on and on must not keep the agent from being changed."""
    monkeypatch.setattr(pausing, "DRAIN", 0.0)
    monkeypatch.setattr(pausing, "WRITES", 0.0)
    says(zot.servers["cp-1"], role="writer", yields=True)
    assert init(zot)[-2:] == [("cp-1", PAUSE), ("cp-1", ANEW)]
    assert paths.MOVE not in zot.servers["cp-1"].tree


def test_nothing_is_asked_for_so_long_that_agents_take_it_for_no_request() -> None:
    assert pausing.DRAIN + pausing.DONE <= moving.LONGEST
    assert vip_move.DRAIN + vip_move.ARRIVAL <= moving.LONGEST


@pytest.mark.usefixtures("newer")
def test_an_agent_of_an_earlier_release_is_not_asked(zot: FakeCluster) -> None:
    server = zot.servers["cp-1"]
    said = {"time": 1000.0, "writer": {"mode": "single", "role": "writer", "term": 4}}
    server.answer("sh", "-c", health._STATE, "state", with_=f"1000.5\n{json.dumps(said)}")
    assert PAUSE not in {title for _, title in init(zot)}


@pytest.mark.usefixtures("newer")
def test_an_agent_begins_anew_when_the_others_vote(zot: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that begin at once leave the writer without a majority."""
    monkeypatch.setattr(phase, "VOTERS", 0.0)
    says(zot.servers["cp-3"], uptime=1.0)
    found = init(zot)
    assert found[:2] == [("cp-2", WAIT), ("cp-2", ANEW)], "one that starts again and again does not stop the run"
    assert ("cp-3", WAIT) not in found
