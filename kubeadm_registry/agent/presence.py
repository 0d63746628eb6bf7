"""Whether a peer is there, silent or gone, and which connections to it are ended. Pure, and a part of ``rules``."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

from kubeadm_registry.agent.model import PeerMemory, PeerView, Presence
from kubeadm_registry.agent.timings import Timings

LIVES = 1.5  # seconds that a proof of "host lives, agent does not" lasts: kernels limit these answers to one a second
FALSE_ALARM = 2.0  # seconds: a host that is heard again sooner was neither dead nor cut off, but busy
MOST_ALARMS = 2
CALM = 60.0  # seconds
OVERDUE = 0.2  # seconds without a heartbeat from which on the host's kernel is asked whether it answers
FIRST_LOOK = 1.0  # seconds after the start before a peer that was never heard is looked at
#: Seconds for which an agent that says nothing is borne while its host may live. Longer than systemd lets one hang,
#: which then costs no connection. A host on which nothing runs at all, and whose kernel answers, holds others up
#: for as long.
BORNE = 2.5


def peer(
    memory: PeerMemory, view: PeerView, started: float, resumed: float, now: float, timings: Timings
) -> tuple[PeerMemory, Optional[bool], bool]:
    """The next memory of a peer, what to destroy (None: nothing, True: what is stuck, False: all), whether it is back.

    Invariants: all connections are destroyed at most once a silence, and only of a peer that was heard before, and
    whose host is known not to answer, or has been borne for long enough. A peer that was never heard (a firewall may
    forbid it) loses only connections that are stuck; one whose host may only be busy loses none. One that was silent
    before this agent was not run for a while is so until it is heard again.
    """
    old = memory.presence
    heard = max(view.heard or 0.0, resumed if old in (Presence.UNHEARD, Presence.FRESH) else 0.0)
    away = max(view.away or 0.0, resumed if old is Presence.GONE else 0.0)
    if memory.alarms and old is Presence.FRESH and now - memory.since >= CALM:
        memory = replace(memory, alarms=0)
    if view.heard is not None and now - heard < patience(memory, timings) and not _bye(view):
        back = old in (Presence.SILENT, Presence.GONE) and not memory.spared
        if old is not Presence.FRESH:
            false_alarm = old is Presence.SILENT and not memory.spared and now - memory.since < FALSE_ALARM
            alarms = min(memory.alarms + 1, MOST_ALARMS) if false_alarm else memory.alarms
            memory = replace(memory, presence=Presence.FRESH, since=now, alarms=alarms, spared=False)
        return memory, True if back else None, back
    if view.away is not None and now - away < LIVES:
        gone = replace(memory, presence=Presence.GONE, since=now, spared=False)
        return memory if old is Presence.GONE else gone, None, False
    due = now - memory.destroyed >= timings.destroy_interval
    if view.heard is None:
        new, what = memory, True if due and now - started >= FIRST_LOOK else None
    elif old is Presence.SILENT and not memory.spared:
        new, what = memory, True if due else None
    else:
        fell = replace(memory, presence=Presence.SILENT, since=now, silences=memory.silences + 1)
        new = memory if old is Presence.SILENT else fell
        if old is Presence.GONE:
            what = True
        elif busy(view, resumed, now):
            return replace(new, spared=True), None, False
        else:
            new, what = replace(new, spared=False, since=now), False
    return new if what is None else replace(new, destroyed=now), what, False


def overdue(believed: Optional[float], now: float) -> bool:
    """Whether a peer that was *believed* last at that time has been silent for so long that its host is asked."""
    return believed is not None and now - believed >= OVERDUE


def busy(view: PeerView, resumed: float, now: float) -> bool:
    """Whether the host of a peer that is not heard may only be so busy that its agent has to wait for a processor.

    To end its connections would cut off every body in hand, and the storages from each other. That nobody has asked
    yet, or that this agent was not run itself, proves nothing; a dead host lets the first question pass.
    """
    # Not when it was heard, which falls when a peer says that it does not hear this node.
    believed = view.heard if view.believed is None else view.believed
    last = max(believed or 0.0, resumed)
    passed = view.deaf is not None and view.deaf > last and (view.lives is None or view.deaf > view.lives)
    return now - last < BORNE and not passed


def patience(memory: PeerMemory, timings: Timings) -> float:
    """Seconds without a heartbeat that make this peer silent: longer when its last silences were only load."""
    return timings.peer_silent * (1 << memory.alarms)


def _bye(view: PeerView) -> bool:
    return view.said is not None and view.said.bye
