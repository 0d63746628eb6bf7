"""The datagrams between agents: what they carry, who may be believed, and what is old.

A heartbeat is ``KR2``, an HMAC-SHA256 of the rest under a key that all nodes share, and a JSON object. While that key
is replaced there are two: a node makes heartbeats with one, and believes those of either. It names
sender and receiver, the sender's *instance* (random, new at each start) and a counter that only grows, and it
*answers* the newest heartbeats that the sender has from the receiver by their instance and counter: first the one
that it believed, then one that it could not yet believe. Only the first renews a vote.

Agents of two releases run side by side during an upgrade. A key that a reader does not know is passed over, one that
is missing has a value that grants nothing: a vote without members counts for nobody. A release whose heartbeats the
earlier ones must not read begins them with ``KR3``.

A receiver believes a heartbeat as news only if it answers one that the receiver sent a short while ago, by the
receiver's own clock. So neither a replay, nor a delayed datagram, nor one that was recorded before either side
restarted is believed, and clocks need not agree. It also means that a link that works one way only counts as silent
on both sides.
"""

from __future__ import annotations

import hmac
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional, TypeVar

from kubeadm_registry.agent.model import Level, Members, PeerView, Report, Role, Verdict

T = TypeVar("T")

_JSON = json.JSONEncoder(separators=(",", ":"))

MAGIC = b"KR2"
FAMILY = b"KR"
DIGEST = 32
LARGEST = 1200  # bytes; fits any path without fragments
LEAST_KEY = 16  # bytes
SENT = 128  # heartbeats of which a sender remembers when it sent them
SAMPLES = 8  # heartbeats of which the quickest tells how far a peer's clock is off

Answer = tuple[str, int]  # (instance, counter) of a heartbeat of the receiver's
NOTHING: Answer = ("", 0)


class Refused(Exception):
    """A datagram that is not to be believed; the text says why."""


@dataclass(frozen=True)
class Packet:
    """One heartbeat. ``wall`` is milliseconds since 1970 by the sender's clock: one that is off may not write."""

    sender: str
    receiver: str
    instance: str
    counter: int
    answers: tuple[Answer, ...]
    wall: int
    report: Report


#: What is said of a node by one letter each in ``flags``, and the field of its report.
FLAGS = {"f": "fit", "g": "good", "v": "vip", "s": "storage", "b": "bye", "r": "removed", "d": "draining"}


def encode(key: bytes, packet: Packet) -> bytes:
    """The datagram for *packet*."""
    report = packet.report
    body = _JSON.encode(
        {
            "from": packet.sender,
            "to": packet.receiver,
            "instance": packet.instance,
            "counter": packet.counter,
            "answers": packet.answers,
            "wall": packet.wall,
            "level": int(report.level),
            "flags": "".join(letter for letter, name in FLAGS.items() if getattr(report, name)),
            "verdict": report.verdict.value,
            "held": round(report.held, 1),
            "sees": report.sees,
            "generation": report.members.generation,
            "members": report.members.digest,
            "role": report.role.value,
            "term": report.term,
            "epoch": report.epoch,
            "vote": report.vote,
            "voteTerm": report.vote_term,
        }
    ).encode()
    return MAGIC + hmac.digest(key, body, "sha256") + body


def decode(key: bytes, datagram: bytes) -> Packet:
    """The heartbeat in *datagram*. Raises Refused if it was not made with *key* or is not a heartbeat."""
    if len(datagram) > LARGEST or not datagram.startswith(FAMILY):
        raise Refused("not a heartbeat")
    if not datagram.startswith(MAGIC):
        raise Refused("of an agent that is older or newer, and cannot be understood")
    head = len(MAGIC) + DIGEST
    body = datagram[head:]
    if not hmac.compare_digest(hmac.digest(key, body, "sha256"), datagram[len(MAGIC) : head]):
        raise Refused("made with another key")
    try:
        return _packet(json.loads(body))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, AttributeError) as error:
        raise Refused(f"not to be understood: {error!r}") from error


def decode_any(keys: Sequence[bytes], datagram: bytes) -> Packet:
    """The heartbeat in *datagram*, made with one of *keys*. Raises Refused, as for the last of them."""
    *others, last = keys
    for key in others:
        try:
            return decode(key, datagram)
        except Refused:
            continue
    return decode(last, datagram)


def _packet(said: dict[str, Any]) -> Packet:
    """The heartbeat that the object *said* stands for. Raises ValueError, TypeError, KeyError and others."""
    flags = str(said.get("flags", ""))
    report = Report(
        level=_known(Level, said.get("level"), Level.PROCESS),
        verdict=_known(Verdict, said.get("verdict"), Verdict.UNKNOWN),
        # What a later release calls otherwise, or does not tell, may write, as far as this one knows.
        role=_known(Role, said.get("role"), Role.CLOSING),
        term=int(said.get("term", 0)),
        epoch=int(said.get("epoch", 0)),
        vote=str(said.get("vote", "")),
        vote_term=int(said.get("voteTerm", 0)),
        held=float(said.get("held", 0.0)),
        sees=str(said.get("sees", "")),
        members=Members(int(said.get("generation", 0)), str(said.get("members", ""))),
        **{name: letter in flags for letter, name in FLAGS.items()},
    )
    answered = tuple((str(one), int(two)) for one, two in said.get("answers", ()))
    wall = int(said.get("wall", 0))
    return Packet(
        str(said["from"]), str(said["to"]), str(said["instance"]), int(said["counter"]), answered, wall, report
    )


def _known(kind: Callable[[Any], T], value: object, otherwise: T) -> T:
    """*value* as one of *kind*; a word of a later release is taken for *otherwise*."""
    try:
        return kind(value)
    except ValueError:
        return otherwise


class Outbox:
    """Counts the heartbeats that this agent sends, and remembers when it sent them."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.counter = 0
        self._sent: deque[tuple[int, float]] = deque(maxlen=SENT)

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
        """When it was last heard; put back by *window* once it says that it does not hear this node."""
        self.believed: Optional[float] = None
        """When its newest believed heartbeat came, which this node answers. Never falls: a vote lasts from then on."""
        self.echoed: Optional[float] = None
        self.said: Optional[Report] = None
        self.instance = ""
        self.counter = 0
        self._unproved: Optional[Answer] = None
        self._muted = False
        self._offsets: deque[tuple[float, float]] = deque(maxlen=SAMPLES)  # (round trip, offset), the newest ones

    @property
    def offset(self) -> Optional[float]:
        """Seconds that the peer's wall clock is ahead of this node's; None if it was not heard.

        Of the newest answers the quickest says it best (as NTP's clock filter has it: RFC 5905, section 10).
        """
        return min(self._offsets)[1] if self._offsets else None

    @property
    def answers(self) -> tuple[Answer, ...]:
        """What the next heartbeat to this peer answers: the newest believed one, and the newest not yet believed."""
        proved = (self.instance, self.counter) if self.instance and not self._muted else NOTHING
        return (proved, self._unproved) if self._unproved else (proved,)

    def view(self, away: Optional[float]) -> PeerView:
        """What the rules may know of this peer; *away* is since when it refuses, or has said goodbye."""
        return PeerView(self.heard, away, self.said, self.echoed, self.offset, self.believed)

    def take(self, packet: Packet, outbox: Outbox, now: float, wall: float) -> bool:
        """Whether *packet* is news. False also for an honest first heartbeat: the answer to it makes the next one news.

        *wall* is this node's wall clock, in seconds since 1970.

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
        self.heard = self.believed = now
        self.said = packet.report
        # The peer looked at its clock after it had heard what this node sent, and before this node heard the answer.
        self._offsets.append((now - sent, packet.wall / 1000 - wall + (now - sent) / 2))
        believed = outbox.sent(packet.answers[:1])
        self.echoed = believed if believed is not None else self.echoed
        return True

    def mute(self) -> None:
        """Stop answering this peer until it is heard again: it is silent, and shall know that it is not heard."""
        self._muted, self._unproved = True, None
