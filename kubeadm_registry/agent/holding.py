"""Who else has the VIP, and which of two nodes that have it gives way.

keepalived decides by the adverts of VRRP, the agents hear each other's heartbeats. Where one of the two does not pass,
or only now and then, two nodes have the address, and clients go now to the one, now to the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from kubeadm_registry.agent.model import Memory, Report, Settings, true_since

YIELD = 1.0  # seconds that another holder must be heard of; longer than all need to notice that it has died
SECOND = 2.0  # seconds with two holders that hear each other; where adverts pass, keepalived ends that in tenths of one
OUTDONE = 10.0  # seconds after which a node that gave way tries whether adverts pass; then twice as long each time
OUTDONE_AT_MOST = 600.0
FOLLOWS = 30.0  # seconds without taking the VIP that show that they do


@dataclass(frozen=True)
class Others:
    """What follows from who else has the VIP; the names are those of ``Memory`` and ``Decisions``."""

    hidden_since: Optional[float]
    second_since: Optional[float]
    follows_since: Optional[float]
    outdone: Optional[float]
    outdone_for: float
    behind: bool


def others(
    memory: Memory, reports: Mapping[str, Report], held: Optional[float], now: float, settings: Settings
) -> Others:
    """What to think of other holders by the *reports* of those that are heard; *held*: since when this node is one."""
    is_behind = behind(reports, held, now, settings)
    second_since = true_since(memory.second_since, is_behind and held is not None, now)
    until, lasts = _outdone(memory, second_since, reports, now)
    return Others(
        hidden_since=true_since(memory.hidden_since, _hidden_holder(reports, settings), now),
        second_since=second_since,
        follows_since=true_since(memory.follows_since, is_behind and held is None and memory.fit, now),
        outdone=until,
        outdone_for=lasts,
        behind=is_behind,
    )


def seen_holder(reports: Mapping[str, Report]) -> str:
    """Of the peers that hold the VIP and read well, the one that has held it for longest; empty without one."""
    holders = [(said.held, name) for name, said in reports.items() if said.vip and said.good and said.fit]
    return max(holders)[1] if holders else ""


def _hidden_holder(reports: Mapping[str, Report], settings: Settings) -> bool:
    """Whether a peer that this node hears sees a holder that this node does not hear.

    While two servers do not see each other, keepalived takes the VIP on both, and clients go now to the one, now to
    the other. The third server, which hears both, names one holder, so that exactly the other yields.
    """
    known = {*reports, settings.name}
    return any(said.sees and said.sees not in known for said in reports.values())


def behind(reports: Mapping[str, Report], held: Optional[float], now: float, settings: Settings) -> bool:
    """Whether a peer that reads well has the VIP, and has had it for longer than this node, which has it since *held*.

    Such a node is weaker in keepalived than the holder: when it misses some adverts and takes the VIP as well, it
    loses it by the next one that arrives, instead of taking it away from a node that is well.
    """
    mine = (now - held, settings.name) if held is not None else (-1.0, "")
    return any(said.vip and said.good and said.fit and (said.held, name) > mine for name, said in reports.items())


def _outdone(
    memory: Memory, second_since: Optional[float], reports: Mapping[str, Report], now: float
) -> tuple[Optional[float], float]:
    """Until when this node gives way to a holder that it hears, and for how long in all.

    It has the VIP beside that one, by whose adverts it should have lost it long before: VRRP does not pass from there
    to here, as by a filter that knows nothing of it. Both would keep the VIP, and clients go now to the one, now to the
    other. Invariant: None unless a peer that is well has the VIP.
    """
    lasted = 0.0 if memory.follows_since is not None and now - memory.follows_since >= FOLLOWS else memory.outdone_for
    if not seen_holder(reports):
        return None, lasted
    if memory.outdone is not None and now < memory.outdone:
        return memory.outdone, lasted
    if second_since is None or now - second_since < SECOND:
        return None, lasted
    lasts = min(2 * lasted, OUTDONE_AT_MOST) if lasted else OUTDONE
    return now + lasts, lasts
