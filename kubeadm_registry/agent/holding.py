"""Who else has the VIP, and which of two nodes that have it gives way.

keepalived decides by the adverts of VRRP, the agents hear each other's heartbeats. Where one of the two does not pass,
or only now and then, two nodes have the address, and clients go now to the one, now to the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

from kubeadm_registry.agent.model import Holding, Memory, Report, Settings, true_since

YIELD = 1.0  # seconds that another holder must be heard of; longer than all need to notice that it has died
SECOND = 2.0  # seconds with two holders that hear each other; where adverts pass, keepalived ends that in tenths of one
OUTDONE = 10.0  # seconds after which a node that gave way tries whether adverts pass; then twice as long each time
OUTDONE_AT_MOST = 600.0
FOLLOWS = 30.0  # seconds without taking the VIP that show that they do
LINGERS = 2.0  # seconds for which a node stays weaker than a holder of which it hears nothing, as through a bad cable
NEAR = 0.9  # seconds; how long a peer has had it is told in whole ones, and was told a moment ago


def look(
    memory: Memory, reports: Mapping[str, Report], held: Optional[float], now: float, settings: Settings
) -> Holding:
    """What to think of other holders by the *reports* of those that are heard; *held*: since when this node is one."""
    before = memory.holding
    # Of two that have had it for equally long, all take the same one for the holder.
    there = [(said.held, name) for name, said in reports.items() if said.vip and said.good and said.fit]
    longest, holder = max(there, default=(0.0, ""))
    mine = None if held is None else now - held
    is_behind = _behind(longest, holder, mine, settings.name, was=before.second_since is not None)
    second_since = true_since(before.second_since, is_behind and held is not None, now)
    outdone, outdone_for = _outdone(before, second_since, holder, now)
    return Holding(
        holder=holder,
        behind=now if is_behind else before.behind,
        hidden_since=true_since(before.hidden_since, _hidden_holder(reports, settings), now),
        second_since=second_since,
        outdone=outdone,
        outdone_for=outdone_for,
        follows_since=true_since(before.follows_since, is_behind and held is None and memory.fit, now),
    )


def weaker(holding: Holding, now: float) -> bool:
    """Whether keepalived is to be weaker here than at a holder that is well. Where that one has died all heirs are."""
    return holding.behind is not None and now - holding.behind < LINGERS


def _hidden_holder(reports: Mapping[str, Report], settings: Settings) -> bool:
    """Whether a peer that this node hears sees a holder that this node does not hear.

    While two servers do not see each other, keepalived takes the VIP on both, and clients go now to the one, now to
    the other. The third server, which hears both, names one holder, so that exactly the other yields.
    """
    known = {*reports, settings.name}
    return any(said.sees and said.sees not in known for said in reports.values())


def _behind(longest: float, holder: str, mine: Optional[float], name: str, *, was: bool) -> bool:
    """Whether *holder*, which has had the VIP for *longest* seconds, has had it for longer than this node, for *mine*.

    Such a node is weaker in keepalived than the holder: when it misses some adverts and takes the VIP as well, it
    loses it by the next one that arrives, instead of taking it away from a node that is well. Of two that took it at
    the same moment the name decides; one that *was* behind stays so until it clearly is not, else none would give way.
    """
    if not holder or mine is None:
        return bool(holder)
    return longest > mine + NEAR or (longest >= mine - NEAR and (was or holder > name))


def _outdone(before: Holding, second_since: Optional[float], holder: str, now: float) -> tuple[Optional[float], float]:
    """Until when this node gives way to a *holder* that it hears, and for how long in all.

    It has the VIP beside that one, by whose adverts it should have lost it long before: VRRP does not pass from there
    to here, as by a filter that knows nothing of it. Both would keep the VIP, and clients go now to the one, now to the
    other. Invariant: None unless a peer that is well has the VIP.
    """
    lasted = 0.0 if before.follows_since is not None and now - before.follows_since >= FOLLOWS else before.outdone_for
    if not holder:
        return None, lasted
    if before.outdone is not None and now < before.outdone:
        return before.outdone, lasted
    if second_since is None or now - second_since < SECOND:
        return None, lasted
    lasts = min(2 * lasted, OUTDONE_AT_MOST) if lasted else OUTDONE
    return now + lasts, lasts
