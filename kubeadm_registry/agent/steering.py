"""One round of an agent: what is asked of its eyes and hands, in which order. No clock, no network and no files here.

The order is what safety hangs on, so the simulator of ``tests/simulation`` runs this very module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Callable, Optional, Protocol

from kubeadm_registry.agent import rules
from kubeadm_registry.agent.lease import ASKS
from kubeadm_registry.agent.model import (
    Decisions,
    HardState,
    LeaseMemory,
    Level,
    Memory,
    Observation,
    Report,
    Role,
    Settings,
)

Servers = Mapping[tuple[str, str], bool]
"""Servers of HAProxy, (backend, server): whether it takes requests."""


class Hands(Protocol):
    """What an agent can do. Nothing of it waits; what comes of it is seen in a later observation."""

    def ticket(self) -> None:
        """Tell the kernel's timer that a decision begins: a renewal counts for a short while from now on only."""

    def renew(self) -> None:
        """Let the kernel's timer run anew."""

    def keep(self, state: HardState, now: float) -> None:
        """See that at least *state* comes to the disk."""

    def route(self, servers: Servers, epoch: int) -> None:
        """Tell HAProxy which servers take requests, and the epoch of uploads."""

    def claim(self, fit: bool, alone: bool, behind: bool, *, changed: bool) -> None:
        """Tell keepalived what it goes by; also when nothing has *changed*, from time to time."""

    def say(self, report: Report) -> None:
        """Say this in every heartbeat from now on, and at once if it is news."""

    def mend(self, new: Decisions) -> None:
        """Reset, kill, cut, connect and compare as decided."""

    def fence(self) -> None:
        """Begin to shut the gate and to end what could act under the lease, unless that is going on."""

    def write(self, now: float, *, writer: bool) -> None:
        """Give the frontend its writing configuration, until it is known to be the *writer*; look at it then."""

    def stop_writing(self) -> None:
        """The frontend is no writer, or will be one anew."""


def wanted(decisions: Decisions, name: str, peers: tuple[str, ...]) -> Servers:
    """What the servers of this node's HAProxy should be. What was not decided is not named."""
    servers: dict[tuple[str, str], bool] = {}
    for backend, nodes in (("reads", decisions.readers), ("writer", decisions.writers)):
        if nodes is None:
            continue
        servers[backend, "local"] = name in nodes
        for peer in peers:
            servers[backend, peer] = peer in nodes
    servers["gate", "open"] = decisions.gate
    servers["vip", "here"] = decisions.report.vip
    if decisions.writers is not None:
        servers["newwork", "open"] = decisions.new_work
    return servers


class Steering:
    """An agent's memory, its newest decisions, and the order in which they are carried out."""

    def __init__(self, settings: Settings, hands: Hands, clock: Callable[[], float], memory: Memory) -> None:
        self.settings = settings
        self.memory = memory
        self.decisions: Optional[Decisions] = None
        self.fenced = False
        """What could act under the lease is known to be gone. Set by who fences."""
        self._hands = hands
        self._clock = clock

    def step(self, observe: Callable[[], Observation]) -> float:
        """Decide, and do it; returns the time of the decision.

        The ticket comes before the look at the clock and at the world, the renewal after the decision: however long
        the agent stands still in between, the kernel's timer never lasts longer than the lease by which it decided.
        What is owed to the disk, and what goes to HAProxy, comes before others hear of it.
        """
        if self.settings.leased:
            self._hands.ticket()
        now = self._clock()
        old = self.decisions
        self.memory, new = rules.decide(self.memory, observe(), now, self.settings)
        self.decisions = new
        if new.renew:
            self._hands.renew()
        self._hands.route(wanted(new, self.settings.name, self.settings.peers), new.epoch)
        claim = (new.fit, new.alone, new.behind)
        self._hands.claim(*claim, changed=old is None or (old.fit, old.alone, old.behind) != claim)
        if self.settings.leased:
            self._hands.keep(new.keep, now)
        self._hands.say(new.report)
        self._hands.mend(new)
        if not new.fence:
            self.fenced = False
        elif not self.fenced:
            self._hands.fence()
        if new.writing:
            self._hands.write(now, writer=self.memory.lease.role is Role.WRITER)
        else:
            self._hands.stop_writing()
        return now

    @property
    def asks(self) -> bool:
        """Whether others were last told that this node has the lease, or wants it."""
        return self.decisions is not None and self.decisions.report.role in ASKS

    def shut(self) -> None:
        """Let this node's HAProxy pass on nothing any more that needs the lease."""
        shut = {("gate", "open"): False}
        if self.settings.single_writer:
            shut.update({("writer", name): False for name in ("local", *self.settings.peers)})
        self._hands.route(shut, self.memory.lease.serving)

    def goodbye(self) -> Report:
        """What an agent says last. It still asks if what could act under the lease is not known to be gone."""
        report = self.decisions.report if self.decisions is not None else Report()
        if self.settings.leased:
            report = replace(report, role=Role.CLOSING if self.asks and not self.fenced else Role.STANDBY)
        return replace(report, fit=False, good=False, level=Level.PROCESS, bye=True)


def remembered(started: float, kept: HardState, *, fit: bool) -> Memory:
    """The memory of an agent that starts. *fit*: it goes on for an earlier one that held itself fit."""
    return Memory(started=started, been_good=fit, fit=fit, lease=LeaseMemory(epoch=max(0, kept.epoch)))
