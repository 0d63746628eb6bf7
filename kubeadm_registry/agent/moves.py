"""When the virtual IP and the lease came to this node and left it, and why: noted for people, nothing is decided by it.

How long nobody had one is measured by who got it, on one clock: from the newest heartbeat in which another node said
that it has it until it was here. So it is right within the interval of the heartbeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

from kubeadm_registry.agent.document import Entry, Move
from kubeadm_registry.agent.formats import Format
from kubeadm_registry.agent.model import FAILED, Decisions, Memory, PeerView, Report, Role, Settings

FORMAT = Format("the moves of the virtual IP and the lease")
KEY = "moves"
MOST = 64
TOLD = 16
"""So many of them are in the agent's state."""
VIP, LEASE = "vip", "lease"
#: Heartbeats that may be late before one says that a peer was not heard.
LATE = 2.5
AGENT_OFF = "it came while the agent did not run"
AGENT_WAS_OFF = "it left while the agent did not run: the agent or the node was restarted"
AGENT_STOPS = "the agent stopped or was reloaded"


def has(what: str, said: Report) -> bool:
    """Whether a node that *said* this has the virtual IP, or the lease."""
    return said.vip if what == VIP else said.role is Role.WRITER


class Moves:
    """Sees what comes and leaves, decision by decision. *before*: what an earlier agent noted, the newest last."""

    def __init__(self, settings: Settings, before: list[Entry]) -> None:
        self._settings = settings
        self._here = {what: _held(what, before) for what in (VIP, LEASE)}
        self._first = True
        self._last: dict[str, tuple[str, float]] = {}
        """Who had it last as far as this node knows, and when this node last knew that."""

    def see(
        self, memory: Memory, decided: Decisions, peers: Mapping[str, PeerView], now: float, wall: float
    ) -> list[Move]:
        """What has moved by the decision at *now*, which is *wall* in seconds since 1970."""
        found: list[Move] = []
        for what in (VIP, LEASE):
            here, was = has(what, decided.report), self._here[what]
            if here is not was:
                self._here[what] = here
                why, seconds, other = self._came(what, peers, now) if here else self._left(what, memory, decided, peers)
                if self._first:
                    why, seconds = AGENT_OFF if here else AGENT_WAS_OFF, None
                found.append(_move(what, wall, here=here, why=why, other=other, seconds=seconds, exact=not self._first))
            self._look(what, peers, now, here=here)
        self._first = False
        return found

    def end(self, wall: float) -> list[Move]:
        """What is given up by an agent that leaves at *wall*. The virtual IP is keepalived's, and stays for now."""
        if not self._here[LEASE]:
            return []
        self._here[LEASE] = False
        return [_move(LEASE, wall, here=False, why=AGENT_STOPS, other="", seconds=None, exact=True)]

    def _look(self, what: str, peers: Mapping[str, PeerView], now: float, *, here: bool) -> None:
        if here:
            self._last[what] = self._settings.name, now
            return
        for name, view in peers.items():
            if view.said is None or view.heard is None or not has(what, view.said):
                continue
            if what not in self._last or self._last[what][1] < view.heard:
                self._last[what] = name, view.heard

    def _came(self, what: str, peers: Mapping[str, PeerView], now: float) -> tuple[str, Optional[float], str]:
        if what not in self._last:
            return "no other node was heard to have it", None, ""
        name, heard = self._last[what]
        seconds = round(max(0.0, now - heard), 2)
        if name == self._settings.name:
            return "no other node took it", seconds, name
        return self._why(what, name, peers.get(name, PeerView()), now), seconds, name

    def _why(self, what: str, name: str, view: PeerView, now: float) -> str:
        said = view.said
        silent = None if view.heard is None else now - view.heard
        if said is not None and said.bye:
            return f"the agent of {name} stopped"
        if silent is None or silent >= LATE * self._settings.timings.heartbeat_interval:
            return f"no heartbeat of {name}" if silent is None else f"no heartbeat of {name} for {silent:.1f} s"
        if said is not None and has(what, said):
            return f"{name} says that it has it as well"
        if said is not None and not said.fit:
            return f"{name} may not hold the virtual IP any more (level {int(said.level)})"
        return f"{name} gave it up"

    def _left(
        self, what: str, memory: Memory, decided: Decisions, peers: Mapping[str, PeerView]
    ) -> tuple[str, Optional[float], str]:
        other = next((name for name, view in peers.items() if view.said is not None and has(what, view.said)), "")
        named = ", ".join(decided.conditions)
        if what == LEASE and "ClockOff" in decided.conditions:
            why = "the clock is off"
        elif what == LEASE and "Unguarded" in decided.conditions:
            why = "the firewall rules of loopback are missing"
        elif "NoMajority" in decided.conditions:
            why = "not more than half of the nodes are heard"
        elif what == LEASE and self._settings.single_writer and memory.frontend.health in FAILED:
            why = "the registry service is down or hangs"
        elif what == LEASE and not self._here[VIP]:
            why = "the virtual IP left"
        elif not decided.fit:
            why = f"this node may not hold it: {named or f'level {int(memory.level)}'}"
        elif what == VIP:
            why = f"keepalived gave it to {other}" if other else "keepalived gave it up, or it was removed by hand"
        else:
            why = "its votes expired"
        return why, None, other


def _move(what: str, wall: float, *, here: bool, why: str, other: str, seconds: Optional[float], exact: bool) -> Move:
    return {
        "time": round(wall, 3), "what": what, "here": here, "why": why, "other": other, "seconds": seconds,
        "exact": exact,
    }  # fmt: skip


def told(entry: Entry) -> Move:
    """An entry of the file as the state tells it; what another release wrote otherwise has defaults."""
    seconds = entry.get("seconds")
    return _move(
        str(entry.get("what", "")), _number(entry.get("time")) or 0.0, here=entry.get("here") is True,
        why=str(entry.get("why", "")), other=str(entry.get("other", "")), seconds=_number(seconds),
        exact=entry.get("exact") is not False,
    )  # fmt: skip


def _number(value: object) -> Optional[float]:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _held(what: str, moves: list[Entry]) -> bool:
    return next((one.get("here") is True for one in reversed(moves) if one.get("what") == what), False)
