"""One writer at most, whatever the network does: small clusters with lost and late messages, cuts and crashes."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeadm_registry.agent import lease
from kubeadm_registry.agent.epoch import Epoch, known
from kubeadm_registry.agent.heartbeat import Inbox, Outbox, Packet, Refused
from kubeadm_registry.agent.model import Health, LeaseMemory, PeerView, Report, Role, Settings, Timings, Vote

TIMINGS = Timings()
STEP = 0.05


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
        self.memory = LeaseMemory(epoch=known(self.memory))  # the one thing that outlives it
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
            self.inboxes[packet.sender].take(packet, self.outbox, now + self.clock)

    def step(self, now: float, holds_vip: bool, fence_seconds: float) -> None:
        own = now + self.clock
        views = {name: PeerView(inbox.heard, None, inbox.said, inbox.echoed) for name, inbox in self.inboxes.items()}
        fresh = frozenset(
            name for name, view in views.items() if view.heard is not None and own - view.heard < TIMINGS.peer_silent
        )
        if self.fence_at is not None and now >= self.fence_at:
            self.may_write, self.writes_next, self.fence_at = False, False, None
        there = now >= self.broken_until
        self.may_write = there and self.writes_next
        self.held = (self.held if self.held is not None else own) if holds_vip else None
        self.memory = lease.step(
            self.memory,
            views,
            fresh,
            now=own,
            started=self.started,
            held=self.held,
            frontend=Health.OK if there else Health.DEAD,
            proxy_ok=True,
            writable=self.may_write,
            fenced=self.memory.role is Role.CLOSING and self.fence_at is None and not self.writes_next,
            wall_ms=int((now + self.clock) * 1000),
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


def test_a_term_outlives_the_agent_that_let_it_write(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    one = Epoch(path)
    assert one.read() == 0
    one.keep(known(LeaseMemory(epoch=7, vote=Vote("b", 9, 1.0))))
    one.keep(8)
    assert Epoch(path).read() == 9
    path.write_text("rubbish")
    assert Epoch(path).read() == 0
    with pytest.raises(OSError, match="epoch"):
        Epoch(tmp_path / "none" / "epoch").keep(1)


def view(report: Report, heard: float, echoed: float) -> PeerView:
    return PeerView(heard, None, report, echoed)


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
) -> LeaseMemory:
    """One step of a node that all peers are fresh to."""
    return lease.step(
        memory,
        peers or {},
        frozenset(name for name, one in (peers or {}).items() if one.heard is not None),
        now=now,
        started=0.0,
        held=held,
        frontend=frontend,
        proxy_ok=True,
        writable=writable,
        fenced=fenced,
        wall_ms=7,
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
    assert lease.votes_until(memory, peers, 100.0, B) == 0.0
    voter = Report(vote="b", vote_term=9)
    peers = {"a": view(voter, 100.0, 99.9), "c": view(voter, 100.0, 99.8)}
    assert lease.votes_until(memory, peers, 100.0, B) == pytest.approx(99.8 + TIMINGS.lease)


def test_an_agent_that_has_just_started_gives_no_vote() -> None:
    peers = {"a": view(Report(role=Role.CANDIDATE, term=5), 100.0, 99.9), "c": PeerView()}
    assert lease.next_vote(LeaseMemory(), peers, 100.1, 99.0, B) is None
    assert lease.next_vote(LeaseMemory(), peers, 100.1, 90.0, B) is not None


def test_a_single_node_needs_nobody() -> None:
    memory = LeaseMemory()
    seen = []
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
