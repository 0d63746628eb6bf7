"""Heartbeats: who is believed, and what is old."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeadm_registry.agent.heartbeat import (
    DIGEST,
    LARGEST,
    MAGIC,
    Inbox,
    Outbox,
    Packet,
    Refused,
    decode,
    decode_any,
    encode,
)
from kubeadm_registry.agent.model import Level, Members, Report, Role, Verdict

KEY = b"k" * 32
REPORT = Report(
    level=Level.CHAIN,
    fit=True,
    vip=True,
    verdict=Verdict.SLOW,
    storage=True,
    role=Role.WRITER,
    term=7,
    epoch=9,
    vote="b",
    vote_term=7,
    members=Members(3, "0123456789abcdef"),
)


class Side:
    """One agent's half of a conversation; its clock shows what nobody else's does."""

    def __init__(self, name: str, peer: str, clock: float, wall: float = 1.8e9) -> None:
        self.name, self.peer, self.clock, self.wall = name, peer, clock, wall
        self.begin("1")

    def begin(self, life: str) -> None:
        self.outbox = Outbox(self.name + life)
        self.inbox = Inbox(self.name, self.peer, 1.0)

    def send(self, now: float) -> bytes:
        counter = self.outbox.next(now + self.clock)
        wall = round((now + self.wall) * 1000)
        packet = Packet(self.name, self.peer, self.outbox.instance, counter, self.inbox.answers, wall, REPORT)
        return encode(KEY, packet)

    def take(self, datagram: bytes, now: float) -> bool:
        return self.inbox.take(decode(KEY, datagram), self.outbox, now + self.clock, now + self.wall)


@pytest.fixture
def pair() -> tuple[Side, Side]:
    """Two agents that have heard each other until 1.0 s."""
    a, b = Side("a", "b", 1000.0), Side("b", "a", -500.0)
    for tick in range(10):
        now = tick * 0.1
        first, second = a.send(now), b.send(now)
        b.take(first, now + 0.01)
        a.take(second, now + 0.01)
    return a, b


@given(
    level=st.sampled_from(Level),
    flags=st.lists(st.booleans(), min_size=5, max_size=5),
    verdict=st.sampled_from(Verdict),
    role=st.sampled_from(Role),
    numbers=st.lists(st.integers(0, 2**62), min_size=3, max_size=3),
    vote=st.text(max_size=63),
)
def test_what_is_said_arrives(
    level: Level, flags: list[bool], verdict: Verdict, role: Role, numbers: list[int], vote: str
) -> None:
    fit, good, vip, storage, bye = flags
    term, epoch, vote_term = numbers
    report = Report(
        level=level,
        fit=fit,
        good=good,
        vip=vip,
        held=12.0,
        sees="c",
        verdict=verdict,
        storage=storage,
        role=role,
        term=term,
        epoch=epoch,
        vote=vote,
        vote_term=vote_term,
        bye=bye,
        members=Members(term, "0123456789abcdef"),
    )
    packet = Packet("a" * 63, "b" * 63, "0123456789abcdef", 2**40, (("0123456789abcdef", 2**40),) * 2, 2**41, report)
    datagram = encode(KEY, packet)
    assert decode(KEY, datagram) == packet
    assert len(datagram) <= LARGEST


@given(st.binary(max_size=400), st.integers(0, 10**6))
def test_nothing_is_believed_without_the_key(noise: bytes, at: int) -> None:
    with pytest.raises(Refused):
        decode(KEY, noise)
    good = encode(KEY, Packet("a", "b", "i", 1, (), 0, REPORT))
    with pytest.raises(Refused):
        decode(b"other" * 8, good)
    at %= len(good)
    with pytest.raises(Refused):
        decode(KEY, good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    with pytest.raises(Refused):
        decode(KEY, good[:-1])


def test_while_a_key_is_replaced_heartbeats_of_either_are_believed() -> None:
    new = b"another key" * 4
    packet = Packet("a", "b", "i", 1, (), 0, REPORT)
    for keys in ((KEY, new), (new, KEY)):
        for key in (KEY, new):
            assert decode_any(keys, encode(key, packet)) == packet
        with pytest.raises(Refused):
            decode_any(keys, encode(b"other" * 8, packet))
    with pytest.raises(Refused):
        decode_any((KEY,), encode(new, packet))


def test_two_agents_believe_each_other_after_two_heartbeats_whatever_their_clocks_show() -> None:
    a, b = Side("a", "b", 1000.0), Side("b", "a", -500.0)
    assert not b.take(a.send(0.0), 0.0), "nothing proves yet that it is new"
    assert a.take(b.send(0.1), 0.1), "it answers what a has just sent"
    assert b.take(a.send(0.2), 0.2)
    assert a.take(b.send(0.3), 0.3)
    assert b.inbox.said == REPORT
    assert b.inbox.heard == pytest.approx(-499.8)
    assert a.inbox.echoed == pytest.approx(1000.2), "when a sent what b answers"


def test_a_replay_is_refused(pair: tuple[Side, Side]) -> None:
    a, b = pair
    datagram = a.send(1.0)
    assert b.take(datagram, 1.0)
    with pytest.raises(Refused, match="seen before"):
        b.take(datagram, 1.05)


def test_a_datagram_that_comes_late_is_no_news(pair: tuple[Side, Side]) -> None:
    a, b = pair
    late = a.send(1.0)
    heard = b.inbox.heard
    assert not b.take(late, 2.5)
    assert b.inbox.heard == heard


def test_what_was_recorded_before_the_receiver_restarted_is_no_news(pair: tuple[Side, Side]) -> None:
    a, b = pair
    recorded = a.send(1.0)
    b.begin("2")
    assert not b.take(recorded, 1.1)
    assert b.inbox.heard is None


def test_what_was_recorded_before_the_sender_restarted_is_no_news(pair: tuple[Side, Side]) -> None:
    a, b = pair
    recorded = [a.send(1.0 + tick * 0.01) for tick in range(3)]
    a.begin("2")
    for tick in range(20):
        now = 1.1 + tick * 0.1
        b.take(a.send(now), now)
        a.take(b.send(now), now)
    heard = b.inbox.heard
    for datagram in recorded:
        assert not b.take(datagram, 3.2)
    assert b.inbox.heard == heard
    assert b.take(a.send(3.2), 3.2), "the recorded ones do not stand in the way"


def test_a_restarted_agent_is_heard_again_within_two_heartbeats(pair: tuple[Side, Side]) -> None:
    a, b = pair
    a.begin("2")
    assert not b.take(a.send(1.1), 1.1)
    a.take(b.send(1.15), 1.15)
    assert b.take(a.send(1.2), 1.2)


def test_reflections_and_strangers_are_refused(pair: tuple[Side, Side]) -> None:
    a, b = pair
    with pytest.raises(Refused):
        a.take(a.send(1.0), 1.0)
    stranger = encode(KEY, Packet("c", "b", "x", 1, (), 0, REPORT))
    with pytest.raises(Refused):
        b.take(stranger, 1.0)
    for_another = encode(KEY, Packet("a", "c", "x", 1, (), 0, REPORT))
    with pytest.raises(Refused):
        b.take(for_another, 1.0)


def test_a_link_that_works_one_way_is_silent_on_both_sides(pair: tuple[Side, Side]) -> None:
    a, b = pair
    muted = heard_by_a = None
    for tick in range(1, 20):
        now = 1.0 + tick * 0.1
        a.send(now)  # never arrives
        a.take(b.send(now), now)
        own = now + b.clock
        if muted is None and b.inbox.heard is not None and own - b.inbox.heard >= 0.35:
            b.inbox.mute()  # what the agent does with a silent peer
            muted = now
        silent = a.inbox.heard is None or now + a.clock - a.inbox.heard >= 0.35
        if heard_by_a is None and silent:
            heard_by_a = now
    assert muted is not None
    assert heard_by_a is not None
    assert heard_by_a <= muted + 0.11
    for tick in range(4):  # healed
        now = 3.0 + tick * 0.1
        b.take(a.send(now), now)
        a.take(b.send(now), now)
    assert a.inbox.heard == pytest.approx(now + a.clock)
    assert b.inbox.heard == pytest.approx(now + b.clock)


def test_a_heartbeat_that_was_not_believed_renews_no_vote(pair: tuple[Side, Side]) -> None:
    """A vote is as old as what the voter last believed; datagrams that it has only seen make it no younger."""
    a, b = pair
    a.take(b.send(1.0), 1.0)
    before = a.inbox.echoed
    assert before is not None
    unheard = [b.send(1.0 + tick * 0.1) for tick in range(1, 13)]  # all lost: what a sends now answers nothing recent
    assert len(unheard) == 12
    assert not b.take(a.send(2.4), 2.4), "b sees it, and cannot believe it"
    assert a.take(b.send(2.45), 2.45), "a believes b, since b has just seen a"
    assert a.inbox.echoed == before


def test_a_peer_that_says_it_is_deaf_takes_back_no_answer(pair: tuple[Side, Side]) -> None:
    """It counts a vote from when it asked, and so must the voter, whatever it hears between hearing that and its step.

    It says so when it has not heard this node for a while, as after a cut: its first heartbeats then are of both kinds.
    """
    a, b = pair
    asked = 1.0
    assert b.take(a.send(asked), 1.01)
    answer = b.send(1.02)
    a.inbox.mute()
    assert not b.take(a.send(1.03), 1.04)
    assert b.inbox.heard is not None
    assert b.inbox.heard < 1.01 + b.clock - 0.9, "it does not hear this node, so it is soon held for silent"
    assert a.take(answer, 1.05)
    assert a.inbox.echoed == asked + a.clock
    assert b.inbox.believed == 1.01 + b.clock, "not before it was asked"


@given(ahead=st.floats(-100, 100), there=st.floats(0, 0.2), back=st.floats(0, 0.2))
def test_each_knows_how_far_the_clock_of_the_other_is_off(ahead: float, there: float, back: float) -> None:
    a, b = Side("a", "b", 1000.0), Side("b", "a", -500.0, 1.8e9 + ahead)
    for tick in range(4):
        now = tick * 0.5
        b.take(a.send(now), now + there)
        a.take(b.send(now + there), now + there + back)
    assert a.inbox.offset is not None
    assert abs(a.inbox.offset - ahead) <= max(there, back) / 2 + 0.002, "as well as the way there and back can differ"


def test_the_quickest_of_the_newest_answers_says_it_best() -> None:
    a, b = Side("a", "b", 0.0), Side("b", "a", 0.0)
    for tick in range(30):
        slow = 0.0 if tick in (4, 11, 18, 25) else 0.4
        b.take(a.send(tick * 1.0), tick * 1.0)
        a.take(b.send(tick * 1.0), tick * 1.0 + slow)
        assert tick < 5 or a.inbox.offset == pytest.approx(0.0, abs=0.002)
    b.wall += 9
    for tick in range(30, 38):
        b.take(a.send(tick * 1.0), tick * 1.0)
        a.take(b.send(tick * 1.0), tick * 1.0 + 0.4)
    assert a.inbox.offset == pytest.approx(8.8, abs=0.002), "and no old one for ever"


def changed(datagram: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The datagram as another release would make it."""
    said = json.loads(datagram[len(MAGIC) + DIGEST :])
    change(said)
    body = json.dumps(said).encode()
    return MAGIC + hmac.digest(KEY, body, "sha256") + body


@pytest.fixture(scope="module")
def frozen(root: Path) -> bytes:
    """A heartbeat as 0.1 sends it, under KEY."""
    return (root / "tests/golden/formats/0.1/heartbeat").read_bytes()


def test_a_heartbeat_of_0_1_is_understood_and_made_so_still(frozen: bytes) -> None:
    packet = Packet("cp-1", "cp-2", "0123456789abcdef", 7, (("fedcba9876543210", 6),), 1_800_000_000_123, REPORT)
    assert decode(KEY, frozen) == packet
    assert encode(KEY, packet) == frozen


def test_one_key_more_is_passed_over(frozen: bytes) -> None:
    more = changed(frozen, lambda said: said.update(later={"a": [1]}))
    assert decode(KEY, more) == decode(KEY, frozen)


def test_one_key_less_grants_nothing(frozen: bytes) -> None:
    """A vote, a claim or a fitness that was not said is none; who sent it must be said."""
    whole = decode(KEY, frozen).report
    for key in json.loads(frozen[len(MAGIC) + DIGEST :]):
        less = changed(frozen, lambda said, key=key: said.pop(key))  # type: ignore[misc]
        if key in ("from", "to", "instance", "counter"):
            with pytest.raises(Refused):
                decode(KEY, less)
            continue
        report = decode(KEY, less).report
        if key in ("answers", "wall"):
            assert report == whole
        if key == "role":
            assert report.role is Role.CLOSING, "who may write, as far as one knows, keeps the votes that it has"
        if key in ("term", "epoch"):
            assert getattr(report, key) == 0
        if key in ("generation", "members"):
            assert report.members != whole.members
        if key in ("vote", "voteTerm"):
            assert (report.vote, report.vote_term) != (whole.vote, whole.vote_term)
        if key == "flags":
            assert not (report.fit or report.good or report.vip)


def test_words_of_a_later_release_are_taken_for_the_careful_one(frozen: bytes) -> None:
    report = decode(KEY, changed(frozen, lambda said: said.update(role="pausing", level=9, verdict="odd"))).report
    assert (report.role, report.level, report.verdict) == (Role.CLOSING, Level.PROCESS, Verdict.UNKNOWN)


def test_a_heartbeat_that_cannot_be_understood_is_refused_by_name() -> None:
    with pytest.raises(Refused, match="older or newer"):
        decode(KEY, b"KR1" + bytes(80))
