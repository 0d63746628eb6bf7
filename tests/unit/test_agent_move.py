"""A planned move of the VIP, as the agents carry it out: who gives way to whom, and when the one writer lets go."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kubeadm_registry.agent import moving, planned
from kubeadm_registry.agent.model import Decisions, LeaseMemory, Level, Memory, Observation, PeerView, Report, Role
from kubeadm_registry.agent.planned import QUIET
from tests.unit.test_agent_rules import ANY, GOOD_PEER, first, near, play, well

ONE = replace(ANY, single_writer=True)
FORMATS = Path(__file__).parents[1] / "golden" / "formats"
SAMPLE, YIELDS = FORMATS / "move.json", FORMATS / "move-yields.json"


@pytest.fixture
def settled() -> Memory:
    return play(well, until=5.0)[0]


def course(moves_to: str = "b", said: Report = GOOD_PEER, **changes: object) -> Callable[[float], Observation]:
    """All is well, the VIP is to move, and the node b says *said*."""

    def seen(now: float) -> Observation:
        peers = {"b": PeerView(now, None, said, now), "c": PeerView(now, None, GOOD_PEER, now)}
        return well(now, moves_to=moves_to, peers=peers, **changes)

    return seen


def after(settled: Memory, seen: Callable[[float], Observation], until: float = 6.0) -> list[tuple[float, Decisions]]:
    return play(seen, until=until, memory=settled, start=5.0)[1]


# ---- who gives way -------------------------------------------------------------------------------------------------


def test_the_holder_gives_the_vip_up_at_once_where_all_may_write(settled: Memory) -> None:
    taken = after(settled, course(holds_vip=True))
    assert first(taken, lambda decided: not decided.fit) == near(5.05)
    assert not any(decided.alone for _, decided in taken)


def test_others_stay_fit_and_are_weaker_than_the_target(settled: Memory) -> None:
    taken = after(settled, course())
    assert all(decided.fit and decided.alone for _, decided in taken)


def test_the_target_itself_does_nothing(settled: Memory) -> None:
    for holds in (False, True):
        taken = after(settled, course(moves_to="a", holds_vip=holds))
        assert all(decided.fit and not decided.alone for _, decided in taken)


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize(
    "said",
    [
        replace(GOOD_PEER, vip=True),
        replace(GOOD_PEER, fit=False),
        replace(GOOD_PEER, good=False),
        replace(GOOD_PEER, level=Level.CHAIN),
    ],
    ids=["it has the VIP", "it is not fit", "its proxy is dead", "it is slow"],
)
def test_nobody_gives_way_to_a_node_that_cannot_take_the_vip_or_has_it(
    settled: Memory, said: Report, holds: bool
) -> None:
    taken = after(settled, course(said=said, holds_vip=holds))
    assert all(decided.fit and not decided.alone for _, decided in taken)


@pytest.mark.parametrize("name", ["", "z"])
def test_nobody_gives_way_to_nobody(settled: Memory, name: str) -> None:
    assert all(decided.fit for _, decided in after(settled, course(moves_to=name, holds_vip=True)))


def test_who_hears_the_target_no_longer_keeps_the_vip(settled: Memory) -> None:
    """It dies in the middle of the move."""

    def seen(now: float) -> Observation:
        gone = PeerView(5.0, None, GOOD_PEER, 5.0)
        peers = {"b": gone, "c": PeerView(now, None, GOOD_PEER, now)}
        return well(now, moves_to="b", holds_vip=True, peers=peers)

    taken = after(settled, seen)
    assert first(taken, lambda decided: not decided.fit) == near(5.05)
    assert first([one for one in taken if one[0] > 5.1], lambda decided: decided.fit) == near(5.35)


# ---- the one writer ------------------------------------------------------------------------------------------------


def writer(settled: Memory) -> Memory:
    """The memory of the node that has the lease."""
    claim = LeaseMemory(role=Role.WRITER, term=9, epoch=9, serving=9)
    return replace(settled, lease=claim, held_since=1.0, clock_off=0.0)


def votes(now: float, **changes: object) -> Observation:
    """The lease lasts; the VIP is to move to b."""
    said = replace(GOOD_PEER, vote="a", vote_term=9)
    peers = {name: PeerView(now, None, said, now, offset=0.0) for name in ("b", "c")}
    wanted: dict[str, object] = {"holds_vip": True, "moves_to": "b", "writable": True, "peers": peers, **changes}
    return well(now, **wanted)


def test_the_writer_takes_no_new_work_and_keeps_the_vip_until_no_write_is_in_flight(settled: Memory) -> None:
    def seen(now: float) -> Observation:
        return votes(now, writes=0 if now > 6.0 else 2)

    taken = play(seen, until=7.0 + QUIET, memory=writer(settled), start=5.0, config=ONE)[1]
    assert first(taken, lambda decided: not decided.new_work) == near(5.05)
    assert first(taken, lambda decided: decided.report.draining) == near(5.05)
    assert first(taken, lambda decided: decided.count_writes) == near(5.05)
    assert first(taken, lambda decided: not decided.fit) == near(6.05 + QUIET)
    assert all(decided.gate for at, decided in taken if at < 6.5), "what was begun goes on"


def test_writes_that_come_and_go_begin_the_wait_anew(settled: Memory) -> None:
    def seen(now: float) -> Observation:
        return votes(now, writes=int(now * 5) % 2)

    taken = play(seen, until=9.0, memory=writer(settled), start=5.0, config=ONE)[1]
    assert all(decided.fit for _, decided in taken)


def test_the_writer_keeps_the_vip_while_it_does_not_know_of_its_writes(settled: Memory) -> None:
    taken = play(votes, until=9.0, memory=writer(settled), start=5.0, config=ONE)[1]
    assert all(decided.fit for _, decided in taken)


def test_a_request_that_ends_lets_in_what_waited(settled: Memory) -> None:
    def seen(now: float) -> Observation:
        return votes(now, writes=1, moves_to="b" if now < 6.0 else "")

    taken = play(seen, until=7.0 + QUIET, memory=writer(settled), start=5.0, config=ONE)[1]
    assert first(taken, lambda decided: not decided.new_work) == near(5.05)
    assert first([one for one in taken if one[0] > 5.1], lambda decided: decided.new_work) == near(6.0)
    assert all(decided.fit for _, decided in taken)


def test_new_work_waits_at_the_proxies_of_all_nodes(settled: Memory) -> None:
    drains = replace(GOOD_PEER, role=Role.WRITER, term=9, vip=True, draining=True)

    def seen(now: float) -> Observation:
        peers = {"b": PeerView(now, None, GOOD_PEER, now), "c": PeerView(now, None, drains, now)}
        return well(now, peers=peers)

    taken = play(seen, until=6.0, memory=settled, start=5.0, config=ONE)[1]
    assert taken[-1][1].writers == frozenset({"c"})
    assert not taken[-1][1].new_work


def test_a_holder_without_the_lease_waits_for_no_write(settled: Memory) -> None:
    taken = play(course(holds_vip=True), until=5.3, memory=settled, start=5.0, config=ONE)[1]
    assert first(taken, lambda decided: not decided.fit) == near(5.05)


# ---- the lease alone ------------------------------------------------------------------------------------------------


def yields(now: float, **changes: object) -> Observation:
    """The lease lasts; it is to be given up, and the VIP to stay."""
    return votes(now, **{"moves_to": "", "yields": True, **changes})


def test_the_writer_yields_the_lease_once_no_write_is_in_flight_and_keeps_the_vip(settled: Memory) -> None:
    def seen(now: float) -> Observation:
        return yields(now, writes=0 if now > 6.0 else 2)

    taken = play(seen, until=7.0 + QUIET, memory=writer(settled), start=5.0, config=ONE)[1]
    assert first(taken, lambda decided: not decided.new_work) == near(5.05)
    assert first(taken, lambda decided: decided.report.draining) == near(5.05)
    assert first(taken, lambda decided: not decided.gate) == near(6.05 + QUIET)
    assert first(taken, lambda decided: decided.fence) == near(6.05 + QUIET)
    assert all(decided.fit and not decided.alone for _, decided in taken)


def test_new_work_waits_for_as_long_as_that_is_asked_for_and_then_there_is_a_writer_again(settled: Memory) -> None:
    """What waits for a writer to appear, waits less long than what waits for new work to be taken."""

    def seen(now: float) -> Observation:
        wanted = yields if now < 9.0 else votes
        return wanted(now, moves_to="", writes=0, fenced=True, timer=now, wall_ms=1)

    taken = play(seen, until=10.0, memory=writer(settled), start=5.0, config=ONE)[1]
    assert {decided.report.role for at, decided in taken if 7.0 < at < 9.0} == {Role.STANDBY}
    assert not any(decided.new_work for at, decided in taken if 5.1 < at < 9.0)
    assert first([one for one in taken if one[0] > 5.1], lambda decided: decided.new_work) == near(9.0)
    assert Role.CANDIDATE in {decided.report.role for at, decided in taken if at >= 9.0}


def test_the_lease_of_retention_is_not_asked_for(settled: Memory) -> None:
    """Where all may write, nothing is in flight that could be lost with it."""
    lets = replace(ANY, executor=True)
    taken = play(lambda now: yields(now, writes=0), until=8.0, memory=writer(settled), start=5.0, config=lets)[1]
    assert all(decided.gate and decided.new_work for _, decided in taken)


# ---- the file ------------------------------------------------------------------------------------------------------


def asked(folder: Path, content: str, now: float) -> moving.Request:
    (folder / "move").write_text(content)
    return moving.asked(folder / "move", now)


def test_the_request_counts_until_its_end(tmp_path: Path) -> None:
    content = json.dumps({"to": "b", "until": 100.0})
    assert asked(tmp_path, content, 99.9) == moving.Request("b")
    assert asked(tmp_path, content, 100.0) == moving.NOTHING
    assert asked(tmp_path, content, 100.0 - moving.LONGEST - 0.1) == moving.NOTHING, (
        "whoever wrote it had another clock"
    )


def test_the_request_as_it_was_first_written_counts(tmp_path: Path) -> None:
    content = SAMPLE.read_text()
    assert asked(tmp_path, content, 1230.0) == moving.Request("cp-2")
    assert asked(tmp_path, json.dumps({**json.loads(content), "added": 1}), 1230.0) == moving.Request("cp-2")


def test_a_request_for_the_lease_alone_moves_nothing(tmp_path: Path) -> None:
    content = YIELDS.read_text()
    assert asked(tmp_path, content, 1230.0) == moving.Request(yields=True)
    for other in ('"true"', "1", "null", "false"):
        changed = content.replace("true", other)
        assert changed != content
        assert asked(tmp_path, changed, 1230.0) == moving.NOTHING


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "{}", '{"to": "b"}', '{"until": 100}', '{"to": "b", "until": "soon"}',
        '{"to": "b", "until": NaN}',
        '{"format": {"version": 2, "minReader": 2}, "to": "b", "until": 100}',
    ],
)  # fmt: skip
def test_what_is_no_request_counts_for_nothing(tmp_path: Path, content: str) -> None:
    assert asked(tmp_path, content, 99.0) == moving.NOTHING
    assert moving.asked(tmp_path / "none", 99.0) == moving.NOTHING


def test_what_is_asked_for_is_told() -> None:
    assert moving.told(moving.Request("b")) == "the VIP is to move to b"
    assert moving.told(moving.Request(yields=True)) == "the one writer is to give up the lease"
    assert moving.told(moving.NOTHING) == "VIP and lease may stay"


def test_moving_is_decided_of_what_is_freshly_heard_only() -> None:
    assert not planned.moves(well(5.0, moves_to="b"), {})
    assert planned.moves(well(5.0, moves_to="b"), {"b": GOOD_PEER})
