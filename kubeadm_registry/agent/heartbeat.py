"""The datagrams between agents: what they carry, who may be believed, and what is old.

A heartbeat is ``KR1``, an HMAC-SHA256 of the rest under the key that all nodes share, and a JSON array. It names
sender and receiver, the sender's *instance* (random, new at each start) and a counter that only grows, and it
*answers* the newest heartbeats that the sender has from the receiver by their instance and counter: first the one
that it believed, then one that it could not yet believe. Only the first renews a vote.

A receiver believes a heartbeat as news only if it answers one that the receiver sent a short while ago, by the
receiver's own clock. So neither a replay, nor a delayed datagram, nor one that was recorded before either side
restarted is believed, and clocks need not agree. It also means that a link that works one way only counts as silent
on both sides.
"""

from __future__ import annotations

import hmac
import json
from collections import deque
from dataclasses import dataclass
from typing import Optional

from kubeadm_registry.agent.model import Level, Report, Role, Verdict

MAGIC = b"KR1"
DIGEST = 32
LARGEST = 1200  # bytes; fits any path without fragments
LEAST_KEY = 16  # bytes

Answer = tuple[str, int]  # (instance, counter) of a heartbeat of the receiver's
NOTHING: Answer = ("", 0)


class Refused(Exception):
    """A datagram that is not to be believed; the text says why."""


@dataclass(frozen=True)
class Packet:
    """One heartbeat. ``wall`` is milliseconds since 1970 by the sender's clock; nothing is decided by it."""

    sender: str
    receiver: str
    instance: str
    counter: int
    answers: tuple[Answer, ...]
    wall: int
    report: Report


def encode(key: bytes, packet: Packet) -> bytes:
    """The datagram for *packet*."""
    report = packet.report
    flags = [report.fit, report.good, report.vip, report.storage, report.bye]
    body = json.dumps(
        [
            packet.sender,
            packet.receiver,
            packet.instance,
            packet.counter,
            packet.answers,
            packet.wall,
            int(report.level),
            "".join("1" if flag else "0" for flag in flags),
            report.verdict.value,
            report.role.value,
            report.term,
            report.epoch,
            report.vote,
            report.vote_term,
            round(report.held, 1),
            report.sees,
        ],
        separators=(",", ":"),
    ).encode()
    return MAGIC + hmac.digest(key, body, "sha256") + body


def decode(key: bytes, datagram: bytes) -> Packet:
    """The heartbeat in *datagram*. Raises Refused if it was not made with *key* or is not a heartbeat."""
    if len(datagram) > LARGEST or not datagram.startswith(MAGIC):
        raise Refused("not a heartbeat")
    head = len(MAGIC) + DIGEST
    body = datagram[head:]
    if not hmac.compare_digest(hmac.digest(key, body, "sha256"), datagram[len(MAGIC) : head]):
        raise Refused("made with another key")
    try:
        sender, receiver, instance, counter, answers, wall, level, flags, *rest = json.loads(body)
        seen, role, term, epoch, vote, vote_term, held, sees = rest
        fit, good, vip, storage, bye = (flag == "1" for flag in flags)
        report = Report(
            level=Level(level),
            fit=fit,
            good=good,
            vip=vip,
            verdict=Verdict(seen),
            storage=storage,
            role=Role(role),
            term=int(term),
            epoch=int(epoch),
            vote=str(vote),
            vote_term=int(vote_term),
            bye=bye,
            held=float(held),
            sees=str(sees),
        )
        answered = tuple((str(one), int(two)) for one, two in answers)
        return Packet(str(sender), str(receiver), str(instance), int(counter), answered, int(wall), report)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Refused(f"of another version: {error}") from error


class Outbox:
    """Counts the heartbeats that this agent sends, and remembers when it sent them."""

    def __init__(self, instance: str, kept: int = 128) -> None:
        self.instance = instance
        self.counter = 0
        self._sent: deque[tuple[int, float]] = deque(maxlen=kept)

    def next(self, now: float) -> int:
        """The counter of the heartbeat that is sent now."""
        self.counter += 1
        self._sent.append((self.counter, now))
        return self.counter

    def sent(self, answers: tuple[Answer, ...]) -> Optional[float]:
        """When this agent sent the newest heartbeat that is answered; None if it never did, or too long ago."""
        counters = [counter for instance, counter in answers if instance == self.instance]
        if not counters or not self._sent:
            return None
        index = max(counters) - self._sent[0][0]
        return self._sent[index][1] if 0 <= index < len(self._sent) else None


class Inbox:
    """What was received from one peer: decides what is news, and what to answer."""

    def __init__(self, own: str, peer: str, window: float) -> None:
        self.own = own
        self.peer = peer
        self.window = window
        self.heard: Optional[float] = None
        self.echoed: Optional[float] = None
        self.said: Optional[Report] = None
        self.wall = 0
        self.instance = ""
        self.counter = 0
        self._unproved: Optional[Answer] = None
        self._muted = False

    @property
    def answers(self) -> tuple[Answer, ...]:
        """What the next heartbeat to this peer answers: the newest believed one, and the newest not yet believed."""
        proved = (self.instance, self.counter) if self.instance and not self._muted else NOTHING
        return (proved, self._unproved) if self._unproved else (proved,)

    def take(self, packet: Packet, outbox: Outbox, now: float) -> bool:
        """Whether *packet* is news. False also for an honest first heartbeat: the answer to it makes the next one news.

        Raises Refused for what can only be a replay, a reflection or a mistake.
        """
        if packet.sender != self.peer or packet.receiver != self.own:
            raise Refused(f"from {packet.sender} for {packet.receiver}")
        if packet.instance == outbox.instance:
            raise Refused("of this very agent")
        known = packet.instance == self.instance
        if known and packet.counter <= self.counter:
            raise Refused("seen before")
        sent = outbox.sent(packet.answers)
        if sent is None or now - sent > self.window:
            if known and not any(instance for instance, _ in packet.answers):
                self.heard = None if self.heard is None else self.heard - self.window  # it does not hear this node
            if not known or self._unproved is None or packet.counter > self._unproved[1]:
                self._unproved = (packet.instance, packet.counter)
            return False
        self.instance, self.counter = packet.instance, packet.counter
        self._unproved, self._muted = None, False
        self.heard, self.said, self.wall = now, packet.report, packet.wall
        believed = outbox.sent(packet.answers[:1])
        self.echoed = believed if believed is not None else self.echoed
        return True

    def mute(self) -> None:
        """Stop answering this peer until it is heard again: it is silent, and shall know that it is not heard."""
        self._muted, self._unproved = True, None
