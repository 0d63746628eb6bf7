"""Which single node may write: a vote that every heartbeat carries, and a lease that follows from the votes.

Two holders of the VIP are normal while two of three servers do not see each other, and both then have a storage
quorum; so the address cannot decide. Each node lets one node write at a time, and says which in its heartbeats. A
node writes while more than half of all nodes (itself among them) let it.

A vote for X lasts until ``lease`` seconds after the voter last heard X ask. The voter's heartbeat answers a heartbeat
of X by its counter, and X knows when it sent that one, which is no later than the voter heard it. So X knows, by its
own clock, a time until which the vote lasts at least; clocks need not agree, only run at the same rate. X ends
``lease_margin`` seconds earlier, and says that it no longer asks only when the process that could write is gone.

Terms are unique to a node. A voter tells the highest term that it ever let write, and a candidate with a lower one
begins anew with a higher: any two majorities share a voter, so the terms of successive writers grow, and serve as the
epochs of uploads. A voter keeps that term across its own restarts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Optional

from kubeadm_registry.agent.model import Health, LeaseMemory, PeerView, Report, Role, Settings, Vote

ASKS = frozenset({Role.CANDIDATE, Role.OPENING, Role.WRITER, Role.CLOSING})
OPEN = frozenset({Role.OPENING, Role.WRITER, Role.CLOSING})


def votes_until(memory: LeaseMemory, peers: Mapping[str, PeerView], now: float, settings: Settings) -> float:
    """Until when a majority lets this node write under its present term; 0 without a majority.

    Invariant: only votes for this very term count, and a peer's vote counts from when this node *sent* what the peer
    answers.
    """
    lease = settings.timings.lease
    ends = []
    if memory.vote is not None and memory.vote.candidate == settings.name and memory.vote.term == memory.term:
        ends.append(now + lease)
    for view in peers.values():
        said = view.said
        if said is None or view.echoed is None:
            continue
        if said.vote == settings.name and said.vote_term == memory.term:
            ends.append(view.echoed + lease)
    if len(ends) < settings.majority:
        return 0.0
    return sorted(ends, reverse=True)[settings.majority - 1]


def next_vote(
    memory: LeaseMemory, peers: Mapping[str, PeerView], now: float, started: float, settings: Settings
) -> Optional[Vote]:
    """Whom this node lets write from now on.

    Invariant: a vote passes from one node to another only after the first has said that it no longer asks, or
    ``lease`` seconds after it was last heard to ask. An agent that has just started has forgotten its vote, so it
    gives none for ``lease`` seconds.
    """
    lease = settings.timings.lease
    vote = memory.vote
    if vote is not None and vote.candidate == settings.name:
        vote = Vote(settings.name, memory.term, now) if memory.role in ASKS else None
    elif vote is not None:
        view = peers.get(vote.candidate)
        if view is not None and view.said is not None and view.heard is not None and view.heard >= vote.heard:
            if view.said.role in ASKS:
                vote = Vote(vote.candidate, view.said.term, view.heard)
            elif view.heard > vote.heard:
                vote = None
    if vote is not None and now - vote.heard >= lease:
        vote = None
    if vote is not None or now - started < lease:
        return vote
    return _grant(memory, peers, now, settings)


def _grant(memory: LeaseMemory, peers: Mapping[str, PeerView], now: float, settings: Settings) -> Optional[Vote]:
    """A new vote: for a node that writes already, else for itself, else for the first that asks."""
    asking: list[tuple[int, int, Vote]] = []
    rank = {Role.WRITER: 0, Role.OPENING: 1, Role.CANDIDATE: 2}
    if memory.role in rank:
        asking.append((rank[memory.role], 0, Vote(settings.name, memory.term, now)))
    for name, view in sorted(peers.items()):
        if view.said is None or view.heard is None or now - view.heard >= settings.timings.peer_silent:
            continue
        if view.said.role in rank:
            asking.append((rank[view.said.role], 1, Vote(name, view.said.term, view.heard)))
    return min(asking, key=lambda entry: entry[:2])[2] if asking else None


def step(
    memory: LeaseMemory,
    peers: Mapping[str, PeerView],
    fresh: frozenset[str],
    *,
    now: float,
    started: float,
    held: Optional[float],
    frontend: Health,
    proxy_ok: bool,
    writable: Optional[bool],
    fenced: bool,
    wall_ms: int,
    settings: Settings,
) -> LeaseMemory:
    """The next role, term, epoch and vote of this node.

    *peers* is all that was ever heard, *fresh* names those whose heartbeat is recent, *held* says since when this node
    has had the VIP, *writable* whether its frontend takes writes, *fenced* that the process that could write is gone.

    Invariants: a node is WRITER only while it holds the VIP, its lease lasts, and its frontend lives and takes
    writes; it leaves OPENING and WRITER only through CLOSING, and CLOSING only when fenced; terms of successive
    writers grow, also when only the frontend was restarted, since uploads that the dead process had half stored must
    not go on.
    """
    timings = settings.timings
    said: list[Report] = [view.said for view in peers.values() if view.said is not None]
    serving = max([memory.serving] + [one.term for one in said if one.role is Role.WRITER])
    let = memory.vote.term if memory.vote is not None else 0
    epoch = max([memory.epoch, serving, let] + [one.epoch for one in said])
    highest = max([epoch, wall_ms, memory.term] + [one.term for one in said])
    memory = replace(memory, epoch=epoch)
    until = votes_until(memory, peers, now, settings)
    leased = now < until - timings.lease_margin
    role, since, term = memory.role, memory.since, memory.term
    if role is Role.CLOSING:
        role = Role.STANDBY if fenced else role
    elif role in (Role.WRITER, Role.OPENING):
        if held is None or not leased or frontend is Health.DEAD or (role is Role.WRITER and writable is False):
            role = Role.CLOSING
        elif role is Role.OPENING and writable:
            role, serving = Role.WRITER, term
    elif held is None or not proxy_ok or frontend is not Health.OK:
        role = Role.STANDBY
    elif role is Role.STANDBY:
        if now - held >= timings.settle:
            role, term = Role.CANDIDATE, settings.term(highest)
    elif term < epoch:  # a voter has let somebody else write since this node began to ask
        term = settings.term(highest)
    elif leased and not any(one.role in OPEN for name in fresh if (one := peers[name].said) is not None):
        role = Role.OPENING
    if role is not memory.role:
        since = now
    memory = replace(memory, role=role, since=since, term=term, epoch=epoch, serving=serving, until=until)
    return replace(memory, vote=next_vote(memory, peers, now, started, settings))


def writer(memory: LeaseMemory, peers: Mapping[str, PeerView], fresh: frozenset[str], name: str) -> Optional[str]:
    """The node that writes are sent to: of those that say they are WRITER, the one with the highest term."""
    claims = [(memory.term, name)] if memory.role is Role.WRITER else []
    for peer in fresh:
        said = peers[peer].said
        if said is not None and said.role is Role.WRITER:
            claims.append((said.term, peer))
    return max(claims)[1] if claims else None
