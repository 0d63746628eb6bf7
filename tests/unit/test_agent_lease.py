"""One writer at most, whatever the network does: small clusters with lost and late messages, cuts and crashes."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeadm_registry.agent import lease
from kubeadm_registry.agent.heartbeat import Inbox, Outbox, Packet, Refused
from kubeadm_registry.agent.model import (
    Answers,
    HardState,
    Health,
    LeaseMemory,
    Members,
    Observation,
    PeerView,
    Report,
    Role,
    Settings,
    Vote,
)
from kubeadm_registry.agent.timings import Timings

TIMINGS = Timings()
STEP = 0.05


def observed(peers: dict[str, PeerView], **values: Any) -> Observation:
    """What an agent sees of a host where all is well."""
    fine = Answers(first=0.0)
    common: dict[str, Any] = {"kept": HardState(0, 10**15), "timer_there": True, "fenced": True}
    return Observation(
        frontend=fine,
        storage=None,
        storage_whole=True,
        manifest=None,
        blob=None,
        proxies=(),
        proxy_door=fine,
        peers=peers,
        holds_vip=True,
        **{**common, **values},
    )


@dataclass
class Node:
    """One agent with its frontend, in simulated time. *clock* is what its own clock is ahead."""

    name: str
    names: tuple[str, ...]
    clock: float
    started: float = 0.0
    lives: int = 0
    memory: LeaseMemory = field(default_factory=LeaseMemory)
    may_write: bool = False  # its frontend process has had the writing configuration
    gate: bool = False
    fence_at: float | None = None
    asleep_until: float = 0.0
    dead_until: float | None = None
    broken_until: float = 0.0  # its frontend process is not there
    writes_next: bool = False  # the next frontend process would find the writing configuration
    held: float | None = None

    def __post_init__(self) -> None:
        self.begin(0.0)

    @property
    def settings(self) -> Settings:
        return Settings(self.name, tuple(name for name in self.names if name != self.name), True, TIMINGS)

    def begin(self, now: float) -> None:
        self.lives += 1
        self.started = now + self.clock
        self.kept = lease.known(self.memory, self.settings)  # the one thing that outlives it
        self.memory = LeaseMemory(epoch=self.kept.epoch)
        self.outbox = Outbox(f"{self.name}-{self.lives}")
        self.inboxes = {name: Inbox(self.name, name, TIMINGS.echo_window) for name in self.names if name != self.name}
        self.dead_until = None

    def packets(self, now: float) -> list[Packet]:
        counter = self.outbox.next(now + self.clock)
        claim = self.memory
        report = Report(
            role=claim.role,
            term=claim.term,
            epoch=claim.epoch,
            vote=claim.vote.candidate if claim.vote else "",
            vote_term=claim.vote.term if claim.vote else 0,
        )
        return [
            Packet(self.name, name, self.outbox.instance, counter, inbox.answers, 0, report)
            for name, inbox in self.inboxes.items()
        ]

    def receive(self, packet: Packet, now: float) -> None:
        with contextlib.suppress(Refused):
            self.inboxes[packet.sender].take(packet, self.outbox, now + self.clock, now)

    def step(self, now: float, holds_vip: bool, fence_seconds: float) -> None:
        own = now + self.clock
        views = {name: inbox.view(None) for name, inbox in self.inboxes.items()}
        fresh = frozenset(
            name for name, view in views.items() if view.heard is not None and own - view.heard < TIMINGS.peer_silent
        )
        if self.fence_at is not None and now >= self.fence_at:
            self.may_write, self.writes_next, self.fence_at = False, False, None
        there = now >= self.broken_until
        self.may_write = there and self.writes_next
        self.held = (self.held if self.held is not None else own) if holds_vip else None
        seen = observed(
            views,
            writable=self.may_write,
            fenced=self.memory.role is Role.CLOSING and self.fence_at is None and not self.writes_next,
            wall_ms=int((now + self.clock) * 1000),
            kept=lease.known(self.memory, self.settings),
            timer=own,
        )
        self.memory = lease.step(
            self.memory,
            fresh,
            now=own,
            started=self.started,
            held=self.held,
            frontend=Health.OK if there else Health.DEAD,
            proxy_ok=True,
            yields=False,
            clock_off=0.0,
            seen=seen,
            settings=self.settings,
        )
        self.gate = self.memory.role is Role.WRITER
        if self.memory.role in (Role.OPENING, Role.WRITER):
            self.writes_next = True
            self.may_write = there
        if self.memory.role is Role.CLOSING and self.writes_next and self.fence_at is None:
            self.fence_at = now + fence_seconds


def play(  # noqa: PLR0912, PLR0915 - one story, told in order
    seed: int, size: int, seconds: float, calm_from: float
) -> tuple[list[Node], list[str], list[int]]:
    """A run: the nodes at its end, all violations, and the epochs of successive writers."""
    chance = random.Random(seed)
    names = tuple("abcde"[:size])
    nodes = {name: Node(name, names, chance.uniform(0, 1000)) for name in names}
    under_way: list[tuple[float, Packet]] = []
    cut: set[tuple[str, str]] = set()
    vips = {"a"}
    loss, violations, epochs = 0.0, [], []
    beat = 0
    for tick in range(int(seconds / STEP)):
        now = tick * STEP
        calm = now >= calm_from
        if calm:
            cut, vips, loss = set(), {names[seed % size]}, 0.0
        elif chance.random() < 0.03:
            kind = chance.choice(["cut", "heal", "vip", "vips", "loss", "crash", "pause", "one-way", "frontend"])
            one, two = chance.sample(names, 2)
            if kind == "cut":
                cut |= {(one, two), (two, one)}
            elif kind == "one-way":
                cut.add((one, two))
            elif kind == "heal":
                cut = set()
            elif kind == "vip":
                vips = {one}
            elif kind == "vips":
                vips = set(chance.sample(names, chance.randint(0, size)))
            elif kind == "loss":
                loss = chance.choice([0.0, 0.3, 0.7])
            elif kind == "frontend":
                nodes[one].broken_until = now + chance.uniform(0.1, 0.6)
            elif kind == "pause":
                nodes[one].asleep_until = now + chance.uniform(0.1, 0.4)
            elif nodes[one].dead_until is None:
                nodes[one].dead_until = now + chance.uniform(0.2, 3)
                nodes[one].fence_at = now + chance.uniform(0, 0.4)  # what --close does
        for due, packet in [entry for entry in under_way if entry[0] <= now]:
            node = nodes[packet.receiver]
            if node.asleep_until <= now:
                under_way.remove((due, packet))
                if node.dead_until is None:
                    node.receive(packet, now)
        beat += 1
        for name, node in nodes.items():
            if node.dead_until is not None:
                if node.fence_at is not None and now >= node.fence_at:
                    node.may_write, node.writes_next, node.gate, node.fence_at = False, False, False, None
                if now >= node.dead_until:
                    node.begin(now)
                continue
            if node.asleep_until > now:
                continue
            before = node.gate
            node.step(now, name in vips, chance.uniform(0, 0.3))
            if node.gate and not before:
                epochs.append(node.memory.term)
            if beat % 2 == 0:
                for packet in node.packets(now):
                    if (name, packet.receiver) in cut or chance.random() < loss:
                        continue
                    late = chance.choice([0.0, 0.0, 0.0, 0.05, 0.3, 1.5]) if not calm else 0.0
                    for _ in range(chance.choice([1, 1, 1, 2])):  # the network may repeat it
                        under_way.append((now + late, packet))
        writers = [node.name for node in nodes.values() if node.may_write]
        if len(writers) > 1:
            violations.append(f"{now:.2f} s: {writers}")
    return list(nodes.values()), violations, epochs


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(min_value=0, max_value=2**32), size=st.sampled_from([3, 3, 5]))
def test_no_two_frontends_may_write_at_a_time_and_a_calm_cluster_gets_its_writer(seed: int, size: int) -> None:
    nodes, violations, epochs = play(seed, size, 26.0, 18.0)
    assert violations == []
    assert epochs == sorted(set(epochs)), "epochs of successive writers grow"
    holder = nodes[seed % size]
    assert [node.name for node in nodes if node.gate] == [holder.name]
    assert {node.memory.serving for node in nodes} == {holder.memory.term}, "all nodes know the newest epoch"


def test_terms_grow_although_a_voter_was_restarted() -> None:
    """Found by chance: a voter forgot the term of the writer before, and an older candidate wrote with a lower one."""
    _, violations, epochs = play(1413, 3, 26.0, 18.0)
    assert violations == []
    assert len(epochs) > 1
    assert epochs == sorted(set(epochs))


def view(report: Report, heard: float, echoed: float) -> PeerView:
    return PeerView(heard, None, report, echoed, believed=heard)


KEPT = HardState(0, 100)
B = Settings("b", ("a", "c"), True, TIMINGS)
ALONE = Settings("a", (), True, TIMINGS)


def one_step(
    memory: LeaseMemory,
    now: float,
    *,
    peers: dict[str, PeerView] | None = None,
    config: Settings = ALONE,
    held: float | None = 0.0,
    frontend: Health = Health.OK,
    writable: bool | None = True,
    fenced: bool = True,
    clock_off: float | None = 0.0,
    **seen: Any,
) -> LeaseMemory:
    """One step of a node that all peers are fresh to, with a timer that has just been renewed."""
    values: dict[str, Any] = {"writable": writable, "fenced": fenced, "wall_ms": 7, "timer": now, **seen}
    return lease.step(
        memory,
        frozenset(name for name, one in (peers or {}).items() if one.heard is not None),
        now=now,
        started=0.0,
        held=held,
        frontend=frontend,
        proxy_ok=True,
        yields=False,
        clock_off=clock_off,
        seen=observed(peers or {}, **values),
        settings=config,
    )


def writing() -> LeaseMemory:
    """A single node that has become the writer after 5 s."""
    memory = LeaseMemory()
    for tick in range(100):
        memory = one_step(memory, tick * 0.05)
    assert memory.role is Role.WRITER
    return memory


def test_a_vote_lasts_until_the_lease_of_the_silent_node_is_over() -> None:
    peers = {"a": view(Report(role=Role.WRITER, term=5), 100.0, 99.9), "c": PeerView()}
    memory = one_step(LeaseMemory(role=Role.CANDIDATE, term=9), 100.1, peers=peers, config=B)
    assert memory.vote is not None
    assert memory.vote.candidate == "a"
    assert lease.next_vote(memory, peers, 99.9 + TIMINGS.lease, 0.0, B) == memory.vote
    late = lease.next_vote(memory, peers, 100.1 + TIMINGS.lease, 0.0, B)
    assert late is not None
    assert late.candidate == "b"


def test_a_vote_for_an_older_term_does_not_count() -> None:
    memory = LeaseMemory(role=Role.CANDIDATE, term=9)
    voter = Report(vote="b", vote_term=8)
    peers = {"a": view(voter, 100.0, 99.9), "c": view(voter, 100.0, 99.9)}
    assert lease.votes_until(memory, peers, KEPT, 100.0, B) == 0.0
    voter = Report(vote="b", vote_term=9)
    peers = {"a": view(voter, 100.0, 99.9), "c": view(voter, 100.0, 99.8)}
    assert lease.votes_until(memory, peers, KEPT, 100.0, B) == pytest.approx(99.8 + TIMINGS.lease)


def test_an_agent_that_has_just_started_gives_no_vote() -> None:
    peers = {"a": view(Report(role=Role.CANDIDATE, term=5), 100.0, 99.9), "c": PeerView()}
    assert lease.next_vote(LeaseMemory(), peers, 100.1, 99.0, B) is None
    assert lease.next_vote(LeaseMemory(), peers, 100.1, 90.0, B) is not None


def test_a_single_node_needs_nobody() -> None:
    memory = LeaseMemory()
    seen: list[Role] = []
    for tick in range(100):
        memory = one_step(memory, tick * 0.05)
        if not seen or memory.role is not seen[-1]:
            seen.append(memory.role)
    assert seen == [Role.STANDBY, Role.CANDIDATE, Role.OPENING, Role.WRITER]
    assert memory.serving == 8


def test_losing_the_address_closes_at_once_and_standby_waits_for_the_fence() -> None:
    memory = one_step(writing(), 5.0, held=None, fenced=False)
    assert memory.role is Role.CLOSING
    memory = one_step(memory, 9.0, fenced=False)
    assert memory.role is Role.CLOSING
    memory = one_step(memory, 9.1)
    assert memory.role is Role.STANDBY


def test_the_gate_opens_only_when_the_frontend_takes_writes() -> None:
    memory = LeaseMemory()
    for tick in range(200):
        memory = one_step(memory, tick * 0.05, writable=None if tick % 2 else False)
    assert memory.role is Role.OPENING
    assert one_step(memory, 10.0).role is Role.WRITER


def test_where_all_may_write_the_lease_needs_no_writing_frontend_and_outlives_a_dead_one() -> None:
    """What acts under it is an executor: it only needs the kernel's timer."""
    config = replace(ALONE, single_writer=False, executor=True)
    memory, seen = LeaseMemory(), []
    for tick in range(200):
        now = tick * 0.05
        timer = now - 0.05 if memory.role is Role.OPENING and now > 8.0 else None
        if memory.role is Role.WRITER:
            timer = now
        memory = one_step(memory, now, config=config, writable=None, timer=timer)
        if memory.role not in seen:
            seen.append(memory.role)
        if memory.role is Role.OPENING:
            assert now < 8.2
            assert lease.renews(memory, now, config), "the timer runs before the gate is opened"
            assert not lease.writes(memory, observed({}, timer=now), now, config), "no frontend is told to write"
    assert seen == [Role.STANDBY, Role.CANDIDATE, Role.OPENING, Role.WRITER]
    assert one_step(memory, 10.0, config=config, writable=None, frontend=Health.DEAD).role is Role.WRITER
    assert one_step(memory, 10.0, config=config, writable=None, timer=10.0 - TIMINGS.timer).role is Role.CLOSING


@pytest.mark.parametrize(
    ("frontend", "writable"), [(Health.DEAD, True), (Health.OK, False)], ids=["its process died", "it became a standby"]
)
def test_a_restarted_frontend_writes_under_a_new_term(frontend: Health, writable: bool) -> None:
    before = writing()
    memory = one_step(before, 5.0, frontend=frontend, writable=writable)
    assert memory.role is Role.CLOSING
    for tick in range(20):
        memory = one_step(memory, 5.05 + tick * 0.05)
    assert memory.role is Role.WRITER
    assert memory.term > before.term


def test_a_slow_frontend_stays_the_writer() -> None:
    assert one_step(writing(), 5.0, frontend=Health.HUNG, writable=None).role is Role.WRITER


def test_writes_go_to_the_claim_with_the_highest_term_only() -> None:
    peers = {
        "a": view(Report(role=Role.WRITER, term=5), 100.0, 99.9),
        "c": view(Report(role=Role.WRITER, term=7), 100.0, 99.9),
    }
    assert lease.writer(LeaseMemory(role=Role.STANDBY, term=99), peers, frozenset({"a", "c"}), "b") == "c"
    assert lease.writer(LeaseMemory(role=Role.STANDBY, term=99), peers, frozenset({"a"}), "b") == "a"
    assert lease.writer(LeaseMemory(role=Role.CANDIDATE, term=99), peers, frozenset(), "b") is None
    assert lease.writer(LeaseMemory(role=Role.WRITER, term=99), peers, frozenset({"a", "c"}), "b") == "b"


def test_votes_count_among_nodes_with_the_same_members_only() -> None:
    config = replace(B, members=Members(2, "x"))
    memory = LeaseMemory(role=Role.CANDIDATE, term=9)
    for members, counts in ((Members(2, "x"), True), (Members(2, "y"), False), (Members(1, "x"), False)):
        voter = Report(vote="b", vote_term=9, members=members)
        peers = {"a": view(voter, 100.0, 99.9), "c": view(voter, 100.0, 99.9)}
        assert (lease.votes_until(memory, peers, HardState(2, 100), 100.0, config) > 0) is counts


def test_who_hears_of_newer_members_closes_and_asks_no_more() -> None:
    config = replace(ALONE, members=Members(2, "x"))
    newer = {"z": view(Report(members=Members(3, "y")), 4.9, 4.9)}
    assert one_step(writing(), 5.0, peers=newer, config=config).role is Role.CLOSING
    assert one_step(LeaseMemory(role=Role.CANDIDATE, term=9), 5.0, peers=newer, config=config).role is Role.STANDBY
    kept = HardState(3, 0)
    assert one_step(writing(), 5.0, config=config, kept=kept).role is Role.CLOSING, "it had them itself once"


def test_a_vote_is_said_and_counted_once_it_is_on_disk() -> None:
    memory = LeaseMemory(role=Role.CANDIDATE, term=9, vote=Vote("a", 9, 100.0))
    assert lease.votes_until(memory, {}, HardState(0, 8), 100.0, ALONE) == 0.0
    assert lease.votes_until(memory, {}, HardState(0, 9), 100.0, ALONE) == 103.0
    assert lease.said_vote(memory, HardState(0, 8), ALONE) is None
    assert lease.said_vote(memory, HardState(1, 9), ALONE) is None, "of a generation that is not the highest there"
    assert lease.said_vote(memory, HardState(0, 9), ALONE) == memory.vote


def test_while_members_change_a_majority_of_those_before_is_needed_as_well() -> None:
    names = ("a", "c", "d", "e")
    config = Settings("b", names, True, TIMINGS, Members(2, "x"), before=("a", "b", "z"))
    memory = LeaseMemory(role=Role.CANDIDATE, term=9)
    voter = Report(vote="b", vote_term=9, members=Members(2, "x"))
    kept = HardState(2, 100)
    new = {name: view(voter, 100.0, 99.9) for name in ("c", "d", "e")}
    assert lease.votes_until(memory, new, kept, 100.0, config) == 0.0, "three of five, and none of the three before"
    own = replace(memory, vote=Vote("b", 9, 100.0))
    assert lease.votes_until(own, new, kept, 100.0, config) == 0.0, "one of the three before"
    both = {**new, "a": view(voter, 100.0, 99.0)}
    assert lease.votes_until(own, both, kept, 100.0, config) == pytest.approx(102.0), "for as long as the shorter lasts"


@pytest.mark.parametrize(("off", "closes"), [(0.45, False), (0.51, True), (None, True)])
def test_a_server_whose_clock_is_off_does_not_write(off: float | None, closes: bool) -> None:
    assert one_step(writing(), 5.0, clock_off=off).role is (Role.CLOSING if closes else Role.WRITER)


@pytest.mark.parametrize(("off", "asks"), [(0.39, True), (0.41, False)])
def test_a_clock_that_hovers_at_the_bound_opens_and_closes_nothing(off: float, asks: bool) -> None:
    memory = one_step(LeaseMemory(role=Role.STANDBY), 5.0, clock_off=off)
    assert memory.role is (Role.CANDIDATE if asks else Role.STANDBY)


def test_a_writer_without_the_kernels_timer_closes_and_nobody_asks_without_one() -> None:
    assert one_step(writing(), 5.0, timer_there=False).role is Role.CLOSING
    assert one_step(writing(), 5.0, timer=5.0 - TIMINGS.timer).role is Role.CLOSING
    assert one_step(writing(), 5.0, timer=5.0 - TIMINGS.timer + 0.1).role is Role.WRITER
    assert one_step(LeaseMemory(role=Role.STANDBY), 5.0, timer_there=False).role is Role.STANDBY


def test_the_frontend_gets_its_writing_configuration_under_a_timer_that_runs_only() -> None:
    memory = LeaseMemory(role=Role.OPENING, term=9, until=103.0)
    assert not lease.writes(memory, observed({}, timer=None), 100.0, ALONE)
    assert not lease.writes(memory, observed({}, timer=99.9, timer_there=False), 100.0, ALONE)
    assert lease.writes(memory, observed({}, timer=99.9), 100.0, ALONE)


def test_a_timer_is_renewed_under_a_lease_that_lasts_longer_only() -> None:
    """However late within its ticket a renewal comes, the timer ends before the votes."""
    lasts = TIMINGS.ticket + TIMINGS.timer + TIMINGS.timer_slack
    memory = LeaseMemory(role=Role.WRITER, term=9, until=100.001 + lasts)
    assert lease.renews(memory, 100.0, ALONE)
    assert not lease.renews(memory, 100.01, ALONE)
    assert not lease.renews(replace(memory, role=Role.CLOSING), 100.0, ALONE)
    assert lasts + TIMINGS.heartbeat_interval * 3 < TIMINGS.lease, "it is renewed also when heartbeats are lost"


@pytest.mark.parametrize(("left", "closes"), [(0.01, False), (-0.01, True)])
def test_a_writer_closes_its_margin_before_the_votes_end(left: float, closes: bool) -> None:
    voter = Report(vote="b", vote_term=9)
    ends = 99.0 + TIMINGS.lease
    peers = {"a": view(voter, 99.1, 99.0), "c": view(Report(), 99.1, 99.0)}
    memory = LeaseMemory(role=Role.WRITER, term=9, vote=Vote("b", 9, 99.0))
    now = ends - TIMINGS.lease_margin - left
    after = one_step(memory, now, peers=peers, config=B)
    assert after.until == pytest.approx(ends)
    assert after.role is (Role.CLOSING if closes else Role.WRITER)
