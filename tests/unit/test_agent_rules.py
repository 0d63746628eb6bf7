"""The agent's rules as pure functions: their invariants under any observation, and the courses that were measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeadm_registry.agent import holding, presence, rules
from kubeadm_registry.agent.model import (
    Answers,
    Decisions,
    HardState,
    Health,
    Level,
    Members,
    Memory,
    Observation,
    PeerMemory,
    PeerView,
    Presence,
    Reading,
    Report,
    Role,
    ServiceMemory,
    Settings,
    Verdict,
)
from kubeadm_registry.agent.timings import Timings

T = Timings()
ANY = Settings("a", ("b", "c"), False, T)
GOOD_PEER = Report(level=Level.FIT, fit=True, good=True, verdict=Verdict.GOOD, storage=True)


def alive(now: float) -> Answers:
    return Answers(0.0, now, now, 10, refused=False, idle=None)


def read(now: float) -> Reading:
    return Reading(0.0, now, 10, None)


def well(now: float, **changes: object) -> Observation:
    """All is well on this node and its peers."""
    seen = Observation(
        frontend=alive(now),
        storage=alive(now),
        storage_whole=True,
        manifest=read(now),
        blob=read(now),
        proxies=(alive(now), alive(now)),
        proxy_door=alive(now),
        peers={name: PeerView(now, None, GOOD_PEER, now) for name in ("b", "c")},
        holds_vip=False,
        fenced=False,
        kept=HardState(0, 10**15),
        timer=now,
        timer_there=True,
    )
    return replace(seen, **changes)  # type: ignore[arg-type]


def play(
    course: Callable[[float], Observation],
    *,
    until: float,
    memory: Memory | None = None,
    start: float = 0.0,
    config: Settings = ANY,
) -> tuple[Memory, list[tuple[float, Decisions]]]:
    """Decide every tick from *start* to *until*."""
    memory = memory or Memory(started=start)
    taken = []
    for tick in range(round((until - start) / T.tick)):
        now = start + (tick + 1) * T.tick
        memory, decisions = rules.decide(memory, course(now), now, config)
        taken.append((now, decisions))
    return memory, taken


def near(time: float) -> object:
    """*time*, or one tick later: sums of floats decide on which side of a limit a tick falls."""
    return pytest.approx(time, abs=T.tick + 0.001)


def first(taken: list[tuple[float, Decisions]], test: Callable[[Decisions], object]) -> float | None:
    return next((now for now, decisions in taken if test(decisions)), None)


@pytest.fixture
def settled() -> Memory:
    memory, taken = play(well, until=5.0)
    assert taken[-1][1].fit
    assert taken[-1][1].readers == {"a", "b", "c"}
    return memory


def silent(since: float, *, idle: float | None) -> Answers:
    return Answers(0.0, since, since, 0, refused=False, idle=idle)


# ---- one process ---------------------------------------------------------------------------------------------------


def test_a_stopped_storage_loses_new_reads_then_waiting_ones_then_its_life(settled: Memory) -> None:
    _, taken = play(
        lambda now: well(now, storage=silent(5.0, idle=5.1), manifest=Reading(0.0, 5.0, 0, None)),
        until=8.0,
        memory=settled,
        start=5.0,
    )
    assert first(taken, lambda d: d.readers == {"b", "c"}) == near(5.3)
    assert first(taken, lambda d: d.reset_reads) == near(5.6)
    assert first(taken, lambda d: d.reset_rpc) == near(5.6)
    assert first(taken, lambda d: d.kill_storage) == near(6.6)
    assert sum(1 for _, d in taken if d.kill_storage) == 1
    assert sum(1 for _, d in taken if d.reset_reads) == len(rules.RESETS)
    assert not any(d.kill_frontend for _, d in taken)


def test_a_process_that_uses_the_cpu_is_slow_and_keeps_its_connections(settled: Memory) -> None:
    _, taken = play(lambda now: well(now, storage=silent(5.0, idle=now - 0.1)), until=9.9, memory=settled, start=5.0)
    assert first(taken, lambda d: d.readers == {"b", "c"}) == near(5.3)
    assert not any(d.reset_reads or d.reset_rpc or d.kill_storage for _, d in taken)
    _, taken = play(lambda now: well(now, storage=silent(5.0, idle=now - 0.1)), until=13.0, memory=settled, start=5.0)
    assert first(taken, lambda d: d.reset_rpc) == near(10.0)
    assert first(taken, lambda d: d.kill_storage) == near(11.0)


def test_a_process_that_waits_for_its_memory_is_hung_in_the_end_but_never_killed(settled: Memory) -> None:
    def starved(now: float) -> Answers:
        return replace(silent(5.0, idle=now - 0.1), paged=now - 0.1)

    _, taken = play(lambda now: well(now, storage=starved(now)), until=20.0, memory=settled, start=5.0)
    assert first(taken, lambda d: d.reset_reads) == near(10.0)
    assert not any(d.kill_storage for _, d in taken)

    def hung(now: float) -> Answers:
        return starved(min(now, 12.0))

    _, taken = play(lambda now: well(now, storage=hung(now)), until=22.0, memory=settled, start=5.0)
    assert first(taken, lambda d: d.kill_storage) == near(20.9), "once it had its memory, and time for what had waited"


def test_a_process_that_is_not_found_is_not_called_idle(settled: Memory) -> None:
    _, taken = play(lambda now: well(now, frontend=silent(5.0, idle=None)), until=9.9, memory=settled, start=5.0)
    assert not any(d.reset_reads or d.kill_frontend for _, d in taken)


def test_a_refused_connection_is_certain_and_acted_on_at_once(settled: Memory) -> None:
    refused = Answers(0.0, 5.0, 5.0, 0, refused=True)
    _, taken = play(lambda now: well(now, storage=refused), until=5.5, memory=settled, start=5.0)
    assert first(taken, lambda d: d.reset_reads) == near(5.05)
    assert first(taken, lambda d: d.readers == {"b", "c"}) == near(5.05)
    assert not any(d.reset_rpc or d.kill_storage for _, d in taken), "there is nothing left to kill or to free"


def test_good_again_only_after_three_good_answers_and_then_the_storage_is_told_to_connect(settled: Memory) -> None:
    def course(now: float) -> Observation:
        if now < 6.0:
            return well(now, storage=Answers(0.0, 5.0, 5.0, 0, refused=True))
        return well(now, storage=Answers(0.0, now, now, round((now - 6.0) / 0.1), refused=False))

    _, taken = play(course, until=11.0, memory=settled, start=5.0)
    back = first([entry for entry in taken if entry[0] >= 6.0], lambda d: d.readers == {"a", "b", "c"})
    assert back == near(6.3)
    assert [now for now, d in taken if d.connect] == [back]


answers = st.builds(
    Answers,
    first=st.just(0.0),
    answered=st.none() | st.floats(0, 20),
    good=st.none() | st.floats(0, 20),
    streak=st.integers(0, 5),
    refused=st.booleans(),
    idle=st.none() | st.floats(0, 20),
)


@given(memory=st.builds(ServiceMemory, health=st.sampled_from(Health), since=st.floats(0, 20)), seen=answers)
def test_a_process_is_killed_only_when_hung_and_reset_only_when_hung_or_dead(
    memory: ServiceMemory, seen: Answers
) -> None:
    after, reset, kill = rules.service(memory, seen, 0.0, 20.0, T)
    quiet = 20.0 - max(seen.answered or 0.0, 0.0)
    idle = seen.idle is not None and 20.0 - seen.idle >= T.idle
    if kill:
        assert after.health is Health.HUNG
        assert not seen.refused
        assert quiet >= T.kill and (idle or quiet >= T.hung_busy)
    if reset:
        assert seen.refused or (quiet >= T.hung and (idle or quiet >= T.hung_busy))
    if after.health is Health.OK and memory.health is not Health.OK:
        assert seen.streak >= T.recover
    assert (after.health is Health.DEAD) == seen.refused


# ---- reads ---------------------------------------------------------------------------------------------------------

levels = st.dictionaries(st.sampled_from("abcde"), st.sampled_from(Level), min_size=1)


@given(levels=levels)
def test_reads_go_to_the_best_level_present_and_nowhere_else(levels: dict[str, Level]) -> None:
    chosen = rules.readers(levels)
    assert chosen
    best = min(levels.values())
    assert chosen == {name for name, level in levels.items() if level == best}


def test_all_chains_look_bad_and_the_node_with_the_hung_process_comes_last(settled: Memory) -> None:
    slow = Report(level=Level.CHAIN, fit=True, verdict=Verdict.SLOW, storage=True)
    _, taken = play(
        lambda now: well(
            now,
            storage=silent(5.0, idle=5.1),
            manifest=Reading(0.0, 5.0, 0, None),
            peers={name: PeerView(now, None, slow if now > 5.4 else GOOD_PEER, now) for name in ("b", "c")},
        ),
        until=6.0,
        memory=settled,
        start=5.0,
    )
    assert all(d.readers == {"b", "c"} for now, d in taken if now > 5.35)


def test_without_any_peer_reads_stay_here_whatever_the_level(settled: Memory) -> None:
    gone = {name: PeerView(5.0, None, GOOD_PEER, 5.0) for name in ("b", "c")}
    _, taken = play(
        lambda now: well(now, storage=silent(5.0, idle=5.1), peers=gone), until=7.0, memory=settled, start=5.0
    )
    assert taken[-1][1].readers == {"a"}
    assert taken[-1][1].report.level is Level.PROCESS


def test_nothing_is_moved_before_anything_is_known() -> None:
    _, taken = play(well, until=1.0)
    assert all(d.readers is None for now, d in taken if now < T.warm_up)
    assert taken[-1][1].readers == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("seen", "somebody_reads", "level"),
    [
        (Verdict.GOOD, True, Level.FIT),
        (Verdict.MISSING, True, Level.CHAIN),
        (Verdict.MISSING, False, Level.FIT),
        (Verdict.WRONG, False, Level.CHAIN),
        (Verdict.SLOW, False, Level.CHAIN),
        (Verdict.UNKNOWN, False, Level.CHAIN),
    ],
)
def test_an_object_that_nobody_has_is_nobodys_fault(seen: Verdict, somebody_reads: bool, level: Level) -> None:
    assert rules.own_level(Health.OK, Health.OK, seen, somebody_reads) is level
    assert rules.own_level(Health.SUSPECT, Health.OK, seen, somebody_reads) is Level.PROCESS
    assert rules.own_level(Health.OK, Health.DEAD, seen, somebody_reads) is Level.PROCESS


def test_a_known_object_that_is_missing_everywhere_is_said_and_costs_nothing(settled: Memory) -> None:
    lost = replace(GOOD_PEER, verdict=Verdict.MISSING)
    _, taken = play(
        lambda now: well(
            now,
            manifest=Reading(0.0, 5.0, 0, Verdict.MISSING),
            peers={name: PeerView(now, None, lost, now) for name in ("b", "c")},
        ),
        until=20.0,
        memory=settled,
        start=5.0,
    )
    assert all(d.fit and d.readers == {"a", "b", "c"} for _, d in taken)
    assert "CanaryMissing" in taken[-1][1].conditions


# ---- peers ---------------------------------------------------------------------------------------------------------


def peers(b: PeerView, now: float) -> dict[str, PeerView]:
    return {"b": b, "c": PeerView(now, None, GOOD_PEER, now)}


def test_a_silent_peer_loses_all_connections_once_then_what_is_stuck_and_again_when_it_is_back(
    settled: Memory,
) -> None:
    def course(now: float) -> Observation:
        heard = 5.0 if now < 7.0 else now
        return well(now, peers=peers(PeerView(heard, None, GOOD_PEER, heard, deaf=now), now))

    memory, taken = play(course, until=8.0, memory=settled, start=5.0)
    cuts = [(round(now, 2), stuck) for now, d in taken for name, stuck in d.destroy]
    assert cuts[0] == (near(5.35), False)
    assert all(stuck for _, stuck in cuts[1:])
    assert cuts[-1][0] == near(7.0)
    assert len(cuts) == 5
    assert first(taken, lambda d: d.connect) == near(7.0)
    assert memory.peers["b"].silences == 1


def still_answers(until: float) -> Callable[[float], Observation]:
    """A course in which b is heard until 5.0, and its kernel answers *until* then, and no more afterwards."""

    def course(now: float) -> Observation:
        deaf = now if now > until else None
        said = PeerView(5.0, None, GOOD_PEER, 5.0, believed=5.0, lives=min(now, until), deaf=deaf)
        return well(now, peers=peers(said, now))

    return course


def cuts(taken: list[tuple[float, Decisions]]) -> list[tuple[float, bool]]:
    """When connections to b were ended, and whether only those that are stuck."""
    return [(now, stuck) for now, d in taken for name, stuck in d.destroy if name == "b"]


def test_a_peer_whose_agent_is_not_run_keeps_its_connections_while_its_kernel_answers(settled: Memory) -> None:
    memory, taken = play(still_answers(6.0), until=7.0, memory=settled, start=5.0)
    assert first(taken, lambda d: d.readers == {"a", "c"}) == near(5.35), "it gets no reads meanwhile"
    when, stuck = cuts(taken)[0]
    assert (when, stuck) == (near(6.05), False), "then it is dead, and before nothing was ended"
    assert [one for _, one in cuts(taken)].count(False) == 1
    assert memory.peers["b"].silences == 1


def test_a_silence_is_not_borne_for_long_though_the_kernel_answers(settled: Memory) -> None:
    _, taken = play(still_answers(60.0), until=10.0, memory=settled, start=5.0)
    assert cuts(taken)[0] == (near(5.0 + presence.BORNE), False)
    assert [one for _, one in cuts(taken)].count(False) == 1


def test_an_answer_from_before_a_host_died_spares_nothing(settled: Memory) -> None:
    _, taken = play(still_answers(5.05), until=7.0, memory=settled, start=5.0)
    assert cuts(taken)[0] == (near(5.35), False)


def test_that_nobody_could_ask_yet_is_no_proof_of_death(settled: Memory) -> None:
    """As on a node that has no processor for its own agent either."""
    unasked = PeerView(5.0, None, GOOD_PEER, 5.0, believed=5.0)
    _, taken = play(lambda now: well(now, peers=peers(unasked, now)), until=8.0, memory=settled, start=5.0)
    assert cuts(taken)[0] == (near(5.0 + presence.BORNE), False)


def test_a_peer_that_says_that_it_does_not_hear_this_node_is_asked_all_the_same(settled: Memory) -> None:
    """``heard`` falls by a second with each such heartbeat; its host lives all the time."""

    def course(now: float) -> Observation:
        said = PeerView(2.0, None, GOOD_PEER, 5.0, believed=5.0, lives=now)
        return well(now, peers=peers(said, now))

    _, taken = play(course, until=6.4, memory=settled, start=5.0)
    assert cuts(taken) == []


def test_a_silence_that_was_spared_is_over_without_a_trace(settled: Memory) -> None:
    def course(now: float) -> Observation:
        heard = 5.0 if now < 6.0 else now
        said = PeerView(heard, None, GOOD_PEER, heard, believed=heard, lives=now)
        return well(now, peers=peers(said, now))

    memory, taken = play(course, until=7.0, memory=settled, start=5.0)
    assert cuts(taken) == []
    assert not any(d.connect or d.compare for _, d in taken), "no connection was lost, so none is made"
    assert (memory.peers["b"].silences, memory.peers["b"].alarms) == (1, 0), "a real one would be seen as soon as ever"


@pytest.mark.parametrize(
    ("heard", "overdue"),
    [(None, False), (100.0, False), (99.85, False), (99.75, True), (50.0, True)],
)
def test_only_about_a_silence_a_host_is_asked(heard: float | None, overdue: bool) -> None:
    assert presence.overdue(heard, 100.0) is overdue


def test_an_agent_that_died_on_a_living_host_costs_its_host_no_connection(settled: Memory) -> None:
    _, taken = play(
        lambda now: well(now, peers=peers(PeerView(5.0, now - 0.3, GOOD_PEER, 5.0), now)),
        until=15.0,
        memory=settled,
        start=5.0,
    )
    assert not any(d.destroy for _, d in taken)
    assert taken[-1][1].readers == {"a", "c"}


def test_a_goodbye_is_no_silence(settled: Memory) -> None:
    bye = replace(GOOD_PEER, bye=True, level=Level.PROCESS)
    _, taken = play(
        lambda now: well(now, peers=peers(PeerView(5.0, 5.0, bye, 5.0), now)), until=6.0, memory=settled, start=5.0
    )
    assert not any(d.destroy for _, d in taken)
    assert taken[0][1].readers == {"a", "c"}


def test_a_peer_that_was_never_heard_loses_only_what_is_stuck() -> None:
    _, taken = play(lambda now: well(now, peers=peers(PeerView(), now)), until=10.0)
    cuts = [stuck for _, d in taken for _, stuck in d.destroy]
    assert cuts
    assert all(cuts)


views = st.builds(
    PeerView,
    heard=st.none() | st.floats(0, 30),
    away=st.none() | st.floats(0, 30),
    said=st.just(GOOD_PEER),
    echoed=st.none(),
    lives=st.none() | st.floats(28, 33),
    deaf=st.none() | st.floats(28, 33),
)


@given(course=st.lists(views, min_size=1, max_size=40))
def test_all_connections_to_a_peer_are_ended_at_most_once_a_silence(course: list[PeerView]) -> None:
    memory, cuts = PeerMemory(), 0
    heard: float | None = None
    for index, view in enumerate(course):
        now = 30.0 + index * 0.1
        heard = max(filter(None, (heard, view.heard)), default=None)
        before = memory
        memory, what, _ = presence.peer(before, replace(view, heard=heard), 0.0, 0.0, now, T)
        if what is False:
            cuts += 1
            assert heard is not None
            assert before.presence is not Presence.SILENT or before.spared
            assert memory.presence is Presence.SILENT
            assert not memory.spared
        assert cuts <= memory.silences


def test_the_agents_own_pause_is_not_the_silence_of_all_others(settled: Memory) -> None:
    """After 3 s in which the agent was not run, all that it knows is 3 s old."""
    stale = well(5.0, holds_vip=True)
    memory, decisions = rules.decide(settled, stale, 8.0, ANY)
    assert memory.resumed == 8.0
    for decided in (decisions, rules.decide(memory, stale, 8.05, ANY)[1]):
        assert not decided.destroy
        assert not decided.reset_reads
        assert not decided.kill_frontend
        assert not decided.kill_storage
        assert not decided.kill_proxies
        assert decided.fit
        assert decided.readers == {"a", "b", "c"}


@pytest.mark.parametrize("away", [None, 5.2], ids=["silent", "gone, then silent"])
def test_a_dead_peer_is_not_back_when_the_agent_itself_was_not_run(settled: Memory, away: float | None) -> None:
    """A starved agent is not run again and again; each time it took a node that died before for one that is there."""

    def course(now: float) -> Observation:
        dead = PeerView(5.0, away, GOOD_PEER, 5.0, deaf=6.0)
        return well(now, peers={"b": PeerView(now, None, GOOD_PEER, now), "c": dead})

    memory, _ = play(course, until=9.0, memory=settled, start=5.0)
    assert memory.peers["c"].presence is Presence.SILENT
    silences = memory.peers["c"].silences
    for now in (12.0, 15.0, 18.0):
        memory, decisions = rules.decide(memory, course(now), now, ANY)
        assert memory.resumed == now
        assert decisions.readers == {"a", "b"}
        assert (memory.peers["c"].presence, memory.peers["c"].silences) == (Presence.SILENT, silences)


def test_a_real_silence_after_a_pause_is_still_seen(settled: Memory) -> None:
    memory, _ = rules.decide(settled, well(5.0), 8.0, ANY)
    gone = peers(PeerView(5.0, None, GOOD_PEER, 5.0, deaf=8.3), 0.0)
    _, taken = play(
        lambda now: well(now, peers=gone | {"c": PeerView(now, None, GOOD_PEER, now)}),
        until=9.0,
        memory=memory,
        start=8.0,
    )
    assert first(taken, lambda d: ("b", False) in d.destroy) == near(8.35)


# ---- the VIP -------------------------------------------------------------------------------------------------------

reports = st.builds(
    Report,
    level=st.sampled_from(Level),
    fit=st.booleans(),
    good=st.booleans(),
    verdict=st.sampled_from(Verdict),
    storage=st.booleans(),
)
readings = st.builds(
    Reading,
    first=st.just(0.0),
    good=st.none() | st.floats(0, 30),
    streak=st.integers(0, 5),
    fault=st.none() | st.sampled_from([Verdict.MISSING, Verdict.WRONG]),
)
observations = st.builds(
    Observation,
    frontend=answers,
    storage=answers,
    storage_whole=st.booleans(),
    manifest=readings,
    blob=readings,
    proxies=st.tuples(answers, answers),
    proxy_door=answers,
    peers=st.fixed_dictionaries(
        {
            name: st.builds(
                PeerView,
                heard=st.none() | st.floats(0, 30),
                away=st.none() | st.floats(0, 30),
                said=st.none() | reports,
                echoed=st.none(),
            )
            for name in ("b", "c")
        }
    ),
    holds_vip=st.booleans(),
    fenced=st.booleans(),
)


def reads_well_elsewhere(seen: Observation, memory: Memory) -> bool:
    return any(
        memory.peers[name].presence is Presence.FRESH
        and view.said is not None
        and view.said.good
        and view.said.fit
        and view.said.level is Level.FIT
        for name, view in seen.peers.items()
    )


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(course=st.lists(observations, min_size=1, max_size=12), single=st.booleans())
def test_whatever_is_seen_the_invariants_hold(course: list[Observation], single: bool) -> None:
    config = Settings("a", ("b", "c"), single, T)
    memory, _ = play(well, until=5.0, config=config)
    for index, seen in enumerate(course):
        now = 20.0 + index * 0.1
        before = memory
        memory, decided = rules.decide(before, seen, now, config)
        assert before.been_good
        if not reads_well_elsewhere(seen, memory):
            assert decided.fit, "the VIP is not given up if nobody else reads well"
        assert decided.readers, "there is always somebody to read from"
        if "a" in (decided.readers or ()):
            best = min([Level.SILENT, *(decided.levels[name] for name in ("b", "c"))])
            assert decided.report.level <= best, "never back to this node while a better one is there"
        if decided.reset_reads:
            assert Health.HUNG in (memory.frontend.health, memory.storage.health) or Health.DEAD in (
                memory.frontend.health,
                memory.storage.health,
            )
        if decided.reset_rpc or decided.kill_storage:
            assert memory.storage.health is Health.HUNG
        if single:
            assert decided.gate == (memory.lease.role is Role.WRITER)
            assert not (decided.gate and decided.fence)
            assert len(decided.writers or ()) <= 1


def test_a_dead_frontend_gives_up_the_vip_after_a_moment_if_another_node_reads_well(settled: Memory) -> None:
    refused = Answers(0.0, 5.0, 5.0, 0, refused=True)
    _, taken = play(lambda now: well(now, frontend=refused, holds_vip=True), until=11.0, memory=settled, start=5.0)
    assert first(taken, lambda d: not d.fit) == near(5.05 + T.give_up)


def test_wrong_bytes_give_up_the_vip_after_a_moment(settled: Memory) -> None:
    _, taken = play(
        lambda now: well(now, blob=Reading(0.0, 5.0, 0, Verdict.WRONG)), until=11.0, memory=settled, start=5.0
    )
    assert first(taken, lambda d: d.readers == {"b", "c"}) == near(5.05)
    assert first(taken, lambda d: not d.fit) == near(5.05 + T.give_up)


def test_a_dead_storage_gives_up_the_vip_after_longer_than_it_takes_to_start(settled: Memory) -> None:
    refused = Answers(0.0, 5.0, 5.0, 0, refused=True)
    _, taken = play(lambda now: well(now, storage=refused), until=20.0, memory=settled, start=5.0)
    assert first(taken, lambda d: not d.fit) == near(5.05 + T.storage_give_up)


def test_a_slow_holder_stays_for_long_and_a_slow_rack_for_ever(settled: Memory) -> None:
    slow = Reading(0.0, 5.0, 0, None)
    _, taken = play(lambda now: well(now, manifest=slow), until=70.0, memory=settled, start=5.0)
    assert first(taken, lambda d: not d.fit) == near(5.0 + T.canary_interval + T.canary_deadline + T.slow_give_up)
    also = replace(GOOD_PEER, level=Level.CHAIN, good=False, verdict=Verdict.SLOW)
    _, taken = play(
        lambda now: well(now, manifest=slow, peers={name: PeerView(now, None, also, now) for name in ("b", "c")}),
        until=100.0,
        memory=settled,
        start=5.0,
    )
    assert all(d.fit for _, d in taken)


ZOT = replace(ANY, single_writer=True)


def peers_at(now: float, offset: float, **changes: object) -> dict[str, PeerView]:
    """Both others, whose clocks agree, and are *offset* seconds from the one here."""
    said = replace(GOOD_PEER, **changes)  # type: ignore[arg-type]
    return {name: PeerView(now, None, said, now, offset=offset) for name in ("b", "c")}


def test_a_holder_that_cannot_become_the_writer_gives_the_virtual_ip_up() -> None:
    """Its clock is off: pushes would wait for it for ever."""

    def course(now: float) -> Observation:
        return well(now, holds_vip=True, peers=peers_at(now, 2.0 if 5 <= now < 100 else 0.0))

    _, taken = play(course, until=110.0, config=ZOT)
    assert first(taken, lambda d: not d.fit) == near(5.0 + T.slow_give_up)
    assert not [now for now, d in taken if now < 5.0 + T.slow_give_up - T.tick and not d.fit]
    assert first([one for one in taken if one[0] > 90.0], lambda d: d.fit) == near(100.0)
    _, taken = play(course, until=110.0)
    assert all(d.fit for now, d in taken if now > T.start_grace), "with many writers the others take what is pushed"


def test_without_its_timer_a_holder_gives_the_virtual_ip_up() -> None:
    _, taken = play(lambda now: well(now, holds_vip=True, timer_there=False), until=70.0, config=ZOT)
    assert first([one for one in taken if one[0] > 1.0], lambda d: not d.fit) == near(T.slow_give_up)


def test_of_nodes_that_all_cannot_write_the_holder_stays() -> None:
    """Each says for itself that it is not good, and then nobody is there for whom another would give way."""

    def course(now: float) -> Observation:
        peers = peers_at(now, 2.0, good=now < T.slow_give_up)
        return well(now, holds_vip=True, peers=peers, timer_there=False)

    _, taken = play(course, until=90.0, config=ZOT)
    assert all(d.fit for now, d in taken if now > T.slow_give_up + 1)
    assert not any(d.report.good for now, d in taken if now > T.slow_give_up + 1)


def test_a_dead_proxy_gives_up_the_vip_at_once(settled: Memory) -> None:
    refused = Answers(0.0, 5.0, 5.0, 0, refused=True)
    _, taken = play(lambda now: well(now, proxies=(refused, refused)), until=6.0, memory=settled, start=5.0)
    assert first(taken, lambda d: not d.fit) == near(5.05)
    _, taken = play(lambda now: well(now, proxies=(alive(now), refused)), until=6.0, memory=settled, start=5.0)
    assert all(d.fit for _, d in taken), "one of two is enough"


def beside_a_hidden_holder(now: float, held: float, *, until: float = 1e9) -> Observation:
    """This node and b do not see each other; c sees both, and b has held the VIP for *held* seconds at 5.0 s."""
    tells = replace(GOOD_PEER, sees="b" if now < until else "")
    return well(
        now,
        holds_vip=now > 5.5,
        peers={
            "b": PeerView(5.0, None, replace(GOOD_PEER, vip=True, held=held), 5.0),
            "c": PeerView(now, None, tells, now),
        },
    )


def test_of_two_holders_that_do_not_see_each_other_the_one_that_the_third_names_stays(settled: Memory) -> None:
    memory, taken = play(lambda now: beside_a_hidden_holder(now, 9.0), until=9.0, memory=settled, start=5.0)
    assert first(taken, lambda d: not d.fit) == near(5.35 + holding.YIELD)
    assert not taken[-1][1].fit
    _, taken = play(well, until=10.0, memory=memory, start=9.0)
    assert taken[0][1].fit, "the cut is healed"


def test_a_holder_that_dies_does_not_make_its_heirs_unfit(settled: Memory) -> None:
    _, taken = play(lambda now: beside_a_hidden_holder(now, 9.0, until=5.6), until=9.0, memory=settled, start=5.0)
    assert all(d.fit for _, d in taken)


def test_the_third_node_names_the_holder_that_has_held_the_vip_for_longest(settled: Memory) -> None:
    def course(now: float) -> Observation:
        holders = {
            "b": replace(GOOD_PEER, vip=True, held=3.0),
            "c": replace(GOOD_PEER, vip=True, held=900.0),
        }
        return well(now, peers={name: PeerView(now, None, said, now) for name, said in holders.items()})

    _, taken = play(course, until=5.1, memory=settled, start=5.0)
    assert taken[-1][1].report.sees == "c"
    assert all(d.fit for _, d in taken), "a holder that is heard is keepalived's business"


def beside_a_holder(now: float, *, held: float = 900.0, until: float = 1e9, since: float = 5.5) -> Observation:
    """This node takes the VIP at *since* though b has it, has had it for *held* seconds, and is heard *until* then."""
    holder = replace(GOOD_PEER, vip=True, held=held + now)
    b = PeerView(min(now, until), None, holder, min(now, until))
    return well(now, holds_vip=now > since, peers={"b": b, "c": PeerView(now, None, GOOD_PEER, now)})


def test_whoever_has_the_vip_beside_a_holder_that_it_hears_gives_way(settled: Memory) -> None:
    memory, taken = play(beside_a_holder, until=9.0, memory=settled, start=5.0)
    assert first(taken, lambda d: not d.fit) == near(5.5 + holding.SECOND)
    assert "AdvertsLost" in taken[-1][1].conditions

    def without(now: float) -> Observation:
        return beside_a_holder(now, since=1e9)

    memory, taken = play(without, until=11.0, memory=memory, start=9.0)
    assert not any(d.fit for _, d in taken), "it would take the VIP again"
    _, taken = play(lambda now: beside_a_holder(now, since=1e9, until=12.0), until=14.0, memory=memory, start=11.0)
    assert first(taken, lambda d: d.fit) == near(12.0 + T.peer_silent), "the holder is gone"


@pytest.mark.slow
def test_whoever_gave_way_tries_again_later_and_later(settled: Memory) -> None:
    """keepalived takes the VIP half a second after it may, as long as no adverts arrive."""
    memory, now, fit_since = settled, 5.0, 0.0
    gave_way: list[float] = []
    while now < 1500.0:
        holds = memory.fit and now - fit_since > 0.5
        was = memory.fit
        memory, _ = rules.decide(memory, beside_a_holder(now, since=0.0 if holds else 1e9), now, ANY)
        fit_since = fit_since if was and memory.fit else now
        if was and not memory.fit:
            gave_way.append(now)
        now += T.tick
    pauses = [later - earlier for earlier, later in itertools.pairwise(gave_way)]
    assert [round(one - 2.5) for one in pauses][:6] == [10, 20, 40, 80, 160, 320]
    assert max(pauses) < holding.OUTDONE_AT_MOST + 4

    memory, _ = play(
        lambda now: beside_a_holder(now, since=1e9), until=now + 700 + holding.FOLLOWS, memory=memory, start=now
    )
    assert (memory.holding.outdone, memory.holding.outdone_for) == (None, 0.0), "they arrive again"


def test_two_holders_for_a_moment_are_keepalived_s_business(settled: Memory) -> None:
    def course(now: float) -> Observation:
        return replace(beside_a_holder(now), holds_vip=5.5 < now < 7.0)

    _, taken = play(course, until=12.0, memory=settled, start=5.0)
    assert all(d.fit for _, d in taken)


@pytest.mark.parametrize(
    ("holder", "mine", "expected"),
    [
        (replace(GOOD_PEER, vip=True, held=9.0), None, True),
        (replace(GOOD_PEER, vip=True, held=9.0), 8.0, True),
        (replace(GOOD_PEER, vip=True, held=9.0), 0.0, False),
        (replace(GOOD_PEER, vip=True, held=9.0, good=False), None, False),
        (replace(GOOD_PEER, vip=True, held=9.0, fit=False), None, False),
        (GOOD_PEER, None, False),
    ],
    ids=["not here", "here later", "here for longer", "reads badly", "gives it up", "nowhere"],
)
def test_who_is_behind_a_holder(holder: Report, mine: float | None, expected: bool) -> None:
    assert holding.look(Memory(0.0), {"b": holder}, mine, 10.0, ANY).behind == (10.0 if expected else None)


def test_a_node_stays_weaker_than_a_holder_whose_heartbeats_are_lost_for_a_moment(settled: Memory) -> None:
    """Its adverts are lost in the same moment; all heirs of a dead holder are weaker by as much."""
    _, taken = play(lambda now: beside_a_holder(now, since=1e9, until=6.0), until=10.0, memory=settled, start=5.0)
    assert first(taken, lambda d: not d.behind) == near(6.0 + T.peer_silent + holding.LINGERS)


def test_of_two_that_took_the_vip_at_the_same_time_one_is_behind() -> None:
    one, other = (replace(ANY, name=name) for name in ("a", "b"))
    for held in (4.5, 5.0, 5.5):  # whole seconds are told
        assert holding.look(Memory(0.0), {"b": replace(GOOD_PEER, vip=True, held=5.0)}, held, 10.0, one).behind == 10.0
        assert (
            holding.look(Memory(0.0), {"a": replace(GOOD_PEER, vip=True, held=5.0)}, held, 10.0, other).behind is None
        )


def test_a_holder_of_whom_this_node_has_never_heard_is_one_too(settled: Memory) -> None:
    """It joined while this node was away, which does not even know its name."""
    said = replace(GOOD_PEER, sees="d")
    _, taken = play(
        lambda now: well(now, peers={name: PeerView(now, None, said, now) for name in ("b", "c")}),
        until=8.0, memory=settled, start=5.0,
    )  # fmt: skip
    assert first(taken, lambda d: not d.fit) == near(5.0 + holding.YIELD)


def test_one_that_stays_silent_is_killed_later_and_later(settled: Memory) -> None:
    """What answers nobody may be the kernel's connection table: each kill ends what still works."""
    kills = []

    def silent_for_ever(now: float) -> Observation:
        return well(now, frontend=silent(5.0, idle=5.0))

    _, taken = play(silent_for_ever, until=130.0, memory=settled, start=5.0)
    kills = [at for at, d in taken if d.kill_frontend]
    pauses = [later - earlier for earlier, later in itertools.pairwise(kills)]
    assert pauses == [near(seconds) for seconds in (2.0, 4.0, 8.0, 16.0, 32.0, 60.0)][: len(pauses)]
    assert len(pauses) >= 5
    memory, _ = play(well, until=140.0, memory=settled, start=130.0)
    assert memory.frontend.kills == 0


def test_a_hung_proxy_is_killed_as_soon_as_it_is_known_to_be_hung(settled: Memory) -> None:
    _, taken = play(
        lambda now: well(now, proxies=(alive(now), silent(5.0, idle=5.1))), until=6.0, memory=settled, start=5.0
    )
    assert first(taken, lambda d: d.kill_proxies == (1,)) == near(5.6)


def test_proxies_that_the_machine_does_not_let_run_are_not_killed(settled: Memory) -> None:
    def starved(now: float) -> Observation:
        return well(now, proxies=(silent(5.0, idle=None), silent(5.2, idle=None)))

    _, taken = play(starved, until=20.0, memory=settled, start=5.0)
    assert not any(d.kill_proxies for _, d in taken)
    assert taken[-1][1].fit is False, "another server answers"

    def one_turns_in_circles(now: float) -> Observation:
        return well(now, proxies=(alive(now), silent(5.0, idle=None)))

    _, taken = play(one_turns_in_circles, until=20.0, memory=settled, start=5.0)
    assert first(taken, lambda d: d.kill_proxies == (1,)) == near(5.0 + T.hung_busy)


def test_a_node_that_was_never_good_is_fit_only_when_nobody_else_is() -> None:
    def course(now: float) -> Observation:
        return well(now, manifest=Reading(0.0, None, 0, None))

    _, taken = play(course, until=20.0)
    assert not any(d.fit for _, d in taken)

    def dark(now: float) -> Observation:
        return replace(course(now), peers={"b": PeerView(), "c": PeerView()})

    _, taken = play(dark, until=20.0)
    assert not any(d.fit for _, d in taken), "it can read nothing, and may have been replaced while it was away"

    def all_are_bad(now: float) -> Observation:
        bad = replace(GOOD_PEER, good=False, fit=False, level=Level.CHAIN, verdict=Verdict.SLOW)
        return replace(course(now), peers={"b": PeerView(now, None, bad, now), "c": PeerView(now, None, bad, now)})

    _, taken = play(all_are_bad, until=20.0)
    assert first(taken, lambda d: d.fit) == near(T.start_grace)


def test_a_rack_that_powers_on_at_once_ends_with_a_holder() -> None:
    """Three agents that hear each other; storage answers after 20 s on all, first on c."""
    names = ("a", "b", "c")
    memories = {name: Memory(started=0.0) for name in names}
    said: dict[str, Report] = {}
    for tick in range(1, 600):
        now = tick * T.tick
        new: dict[str, Report] = {}
        for name in names:
            ready = 20.0 if name == "c" else 22.0
            seen = well(
                now, peers={other: PeerView(now, None, said.get(other), now) for other in names if other != name}
            )
            if now < ready:
                seen = replace(seen, manifest=Reading(0.0, None, 0, Verdict.WRONG), blob=Reading(0.0, None, 0, None))
            config = Settings(name, tuple(other for other in names if other != name), False, T)
            memories[name], decided = rules.decide(memories[name], seen, now, config)
            new[name] = decided.report
        said = new
        if now > T.start_grace + 0.2:
            assert any(report.fit for report in said.values()), f"nobody may hold the VIP at {now}"
        if 20.5 < now < 21.9:
            assert [name for name in names if said[name].fit] == ["c"]
    assert all(report.fit for report in said.values())


def test_a_storage_that_lacks_a_member_which_is_there_is_told_to_connect_now_and_then(settled: Memory) -> None:
    _, taken = play(lambda now: well(now, storage_whole=False), until=18.0, memory=settled, start=5.0)
    times = [now for now, d in taken if d.connect]
    assert times[0] == near(6.05)
    assert len(times) == 3


def test_tables_are_compared_when_the_last_storage_is_back_and_not_again_soon(settled: Memory) -> None:
    """What was written while one was away comes to it then; by itself Garage compares every ten minutes."""

    def course(now: float) -> Observation:
        away = 40.0 <= now < 50.0 or 52.0 <= now < 53.0
        view = PeerView(40.0 if now < 50.0 else 52.0, None, GOOD_PEER, 1.0, deaf=now)
        return well(now, peers={**well(now).peers, "b": view} if away else well(now).peers)

    assert not settled.apart
    _, taken = play(course, until=120.0, memory=settled, start=5.0)
    times = [now for now, d in taken if d.compare]
    assert times == [near(50.0 + rules.WHOLE), near(50.0 + rules.WHOLE + T.compare_interval)]


def test_a_storage_that_was_only_late_has_missed_nothing(settled: Memory) -> None:
    late = replace(GOOD_PEER, storage=False, level=Level.PROCESS)

    def course(now: float) -> Observation:
        return well(now, peers={**well(now).peers, "b": PeerView(now, None, late if now < 50 else GOOD_PEER, now)})

    _, taken = play(course, until=70.0, memory=settled, start=5.0)
    assert not any(d.compare for _, d in taken)


def test_who_was_cut_off_is_alone_until_it_has_heard_the_majority_for_a_while(settled: Memory) -> None:
    def course(now: float) -> Observation:
        return well(
            now, peers={name: PeerView(5.0, None, GOOD_PEER, 5.0) for name in "bc"} if now < 20.0 else well(now).peers
        )

    assert not settled.alone
    _, taken = play(course, until=30.0, memory=settled, start=5.0)
    # Two limits one after the other, each reached at a tick.
    assert first(taken, lambda d: d.alone) == pytest.approx(5.0 + T.peer_silent + rules.ALONE, abs=2.1 * T.tick)
    assert first(taken[40:], lambda d: not d.alone) == near(20.0 + rules.BACK)
    assert all(d.fit for _, d in taken), "it keeps the VIP meanwhile: there may be nobody else"


def test_who_misses_one_of_two_peers_is_not_alone(settled: Memory) -> None:
    _, taken = play(
        lambda now: well(now, peers={**well(now).peers, "b": PeerView(5.0, None, GOOD_PEER, 5.0)}),
        until=10.0,
        memory=settled,
        start=5.0,
    )
    assert not any(d.alone for _, d in taken)


def test_tables_are_compared_once_after_the_start() -> None:
    _, taken = play(well, until=60.0)
    assert [now for now, d in taken if d.compare] == [near(rules.WHOLE)]


@pytest.mark.parametrize(("missing", "closes"), [(0.5, False), (3.0, True)])
def test_a_writer_without_the_guard_of_loopback_closes_unless_it_is_soon_loaded_again(
    missing: float, closes: bool
) -> None:
    alone = Settings("a", (), True, T)

    def course(now: float) -> Observation:
        lost = 10.0 <= now < 10.0 + missing
        return well(now, peers={}, holds_vip=True, fenced=True, writable=True, guarded=not lost)

    _, taken = play(course, until=20.0, config=alone)
    roles = {now: decided.report.role for now, decided in taken}
    assert all(role is Role.WRITER for now, role in roles.items() if 8.0 < now < 10.0 or now > 18.0)
    away = [now for now, role in roles.items() if now >= 10.0 and role is not Role.WRITER]
    assert bool(away) is closes
    if closes:
        assert away[0] == near(10.0 + rules.UNGUARDED)
    assert all(("Unguarded" in decided.conditions) is (10.0 <= now < 10.0 + missing) for now, decided in taken)


def test_where_all_may_write_the_lease_opens_the_own_gate_and_moves_no_write() -> None:
    """And nothing of the frontend depends on it: it is neither told to write nor ended."""
    config = Settings("a", (), False, T, executor=True)

    def course(now: float) -> Observation:
        return well(now, peers={}, holds_vip=now < 10.0, fenced=not 10.0 <= now <= 10.5)

    _, taken = play(course, until=12.0, config=config)
    held = [decided for now, decided in taken if 8.0 < now < 10.0]
    assert all(d.gate and d.renew and d.report.role is Role.WRITER and d.epoch == d.report.term > 0 for d in held)
    after = [decided for now, decided in taken if 10.1 < now < 10.5]
    assert all(d.fence and not d.gate and not d.renew and d.report.role is Role.CLOSING for d in after)
    assert taken[-1][1].report.role is Role.STANDBY
    assert all(d.writers == {"a"} for now, d in taken if now > T.warm_up)
    assert not any(d.writing or d.kill_frontend for _, d in taken)


def test_without_an_executor_and_where_all_may_write_there_is_no_lease() -> None:
    """As an agent of the first release says it, which knows no other way: nobody counts its votes."""
    _, taken = play(lambda now: well(now, holds_vip=True, fenced=True), until=10.0)
    said = taken[-1][1].report
    assert (said.role, said.vote, said.term) == (Role.STANDBY, "", 0)
    assert not any(d.gate or d.fence or d.renew for _, d in taken)


def offset(seconds: float | None) -> PeerView:
    return PeerView(5.0, None, GOOD_PEER, 5.0, seconds)


@pytest.mark.parametrize(
    ("offsets", "off"),
    [
        ((0.1, -0.2), 0.0),  # the middle one is this node
        ((9.0, 9.2), 9.0),  # this node is off
        ((9.0, 0.2), 0.2),  # one peer is
        ((0.8, None), 0.4),  # of two that disagree nobody knows which is right
        ((None, None), 7.0),  # no majority is heard: as before
    ],
)
def test_a_clock_is_compared_with_the_median_of_a_majority(offsets: tuple[float | None, ...], off: float) -> None:
    fresh = {name: offset(one) for name, one in zip("bc", offsets, strict=True)}
    assert rules.clocks(fresh, ANY).get(ANY.name, 7.0) == pytest.approx(off)


@pytest.mark.parametrize(
    ("offsets", "writers"),
    [
        ((0.1, -0.2), "abc"),
        ((9.0, 0.2), "ac"),
        ((9.0, 9.2), "bc"),
        ((1.2, None), ""),  # nobody knows which of the two is right
        ((0.9, None), "ab"),
    ],
)
def test_nobody_writes_whose_clock_is_off_where_all_may(offsets: tuple[float | None, ...], writers: str) -> None:
    peers = {name: offset(one) if one is not None else PeerView() for name, one in zip("bc", offsets, strict=True)}

    def course(now: float) -> Observation:
        return well(now, peers={name: replace(one, heard=one.heard and now) for name, one in peers.items()})

    _, taken = play(course, until=T.warm_up + 2)
    decided = taken[-1][1]
    assert decided.writers == frozenset(writers)
    assert decided.readers is not None
    assert decided.readers >= decided.writers
    assert ANY.name in decided.readers, "what is read has no time"


def test_a_clock_that_is_off_is_a_condition() -> None:
    peers = {name: replace(offset(9.0), heard=4.99) for name in ("b", "c")}
    _, decided = rules.decide(Memory(started=0.0), well(5.0, peers=peers), 5.0, ANY)
    assert "ClockOff" in decided.conditions


@pytest.mark.parametrize(("calm", "alarms"), [(presence.CALM - 0.1, 2), (presence.CALM, 0)])
def test_false_alarms_are_forgotten_after_a_calm_minute_and_not_before(calm: float, alarms: int) -> None:
    before = PeerMemory(presence=Presence.FRESH, since=100.0, alarms=2)
    now = 100.0 + calm
    after, what, _ = presence.peer(before, PeerView(now, None, GOOD_PEER, now), 0.0, 0.0, now, T)
    assert after.alarms == alarms
    assert what is None


@pytest.mark.parametrize(
    ("door", "shut"),
    [
        (Answers(0.0, 9.9, 9.9, 3, refused=True), True),
        (Answers(0.0, 10.0 - rules.DOOR_SILENT, 9.0, 3), True),
        (Answers(0.0, 10.0 - rules.DOOR_SILENT + 0.1, 9.0, 3), False),
    ],
    ids=["refused", "silent", "late"],
)
def test_the_public_port_is_shut_when_it_refuses_or_is_silent(door: Answers, shut: bool) -> None:
    _, decided = rules.decide(Memory(started=0.0), well(10.0, proxy_door=door), 10.0, ANY)
    assert ("ProxyDown" in decided.conditions) is shut


@pytest.mark.parametrize(("theirs", "fit"), [(2, False), (1, True), (0, True)], ids=["later", "the same", "earlier"])
def test_a_node_that_has_left_never_holds_the_vip(settled: Memory, theirs: int, fit: bool) -> None:
    """Only a node with a later list can say that it has; and it is not forgotten when that one falls silent."""
    mine = replace(ANY, members=Members(1, "before"))
    told = replace(GOOD_PEER, removed=True, members=Members(theirs, "after"))
    peers = {"b": PeerView(100.1, None, told, 100.1), "c": PeerView(100.1, None, GOOD_PEER, 100.1)}
    memory, decisions = rules.decide(settled, well(100.1, peers=peers), 100.1, mine)
    assert (decisions.fit, "Removed" in decisions.conditions) == (fit, not fit)
    _, decisions = rules.decide(memory, well(100.2, peers={name: PeerView() for name in "bc"}), 100.2, mine)
    assert (decisions.fit, "Removed" in decisions.conditions) == (fit, not fit)
