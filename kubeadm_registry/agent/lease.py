"""Which single node holds the lease: a vote that every heartbeat carries, and a lease that follows from the votes.

What may be done under it is to write, where only one node may (zot), and to carry out retention, with any frontend.
Below, to write stands for both.

Two holders of the VIP are normal while two of three servers do not see each other, and both then have a storage
quorum; so the address cannot decide. Each node lets one node write at a time, and says which in its heartbeats. A
node writes while more than half of all nodes (itself among them) let it.

A vote for X lasts until ``lease`` seconds after the voter last heard X ask. The voter's heartbeat answers a heartbeat
of X by its counter, and X knows when it sent that one, which is no later than the voter heard it (whatever the voter
hears afterwards: that X does not hear it, say, takes nothing back of what it has answered). So X knows, by its
own clock, a time until which the vote lasts at least; clocks need not agree, only run at the same rate. X ends
``lease_margin`` seconds earlier, and says that it no longer asks only when the process that could write is gone.

Terms are unique to a node. A voter tells the highest term that it ever let write, and a candidate with a lower one
begins anew with a higher: any two majorities share a voter, so the terms of successive writers grow, and serve as the
epochs of uploads. A voter says a vote only once its term is on disk, so it keeps that term in a power cut.

Votes and claims count among nodes only that have the same list of members, by generation and digest. A node that was
given a list of a higher generation never votes under a lower one again; who hears of a higher one closes.

The storage orders what is written by the wall clock of the server that writes, so a server whose clock is off may
neither become nor stay the writer. And since an agent may stand still at any moment, a timer in the kernel ends what
its frontend can write unless the agent renews it, which it does only under a lease that is good for longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Optional

from kubeadm_registry.agent.model import (
    HardState,
    Health,
    LeaseMemory,
    Observation,
    PeerView,
    Report,
    Role,
    Settings,
    Vote,
    majority,
)

ASKS = frozenset({Role.CANDIDATE, Role.OPENING, Role.WRITER, Role.CLOSING})
OPEN = frozenset({Role.OPENING, Role.WRITER, Role.CLOSING})
IN_STEP = 0.8  # of what ends a writer: a clock that hovers there must not open and close it again and again


def known(memory: LeaseMemory, settings: Settings) -> HardState:
    """What must be on disk before a vote of *memory* is said."""
    vote = memory.vote.term if memory.vote is not None else 0
    return HardState(settings.members.generation, max(memory.epoch, vote))


def said_vote(memory: LeaseMemory, kept: HardState, settings: Settings) -> Optional[Vote]:
    """The vote that this node may tell of, and count for itself.

    Invariant: its term is on disk, and so is the generation of its members, which is the highest there.
    """
    vote = memory.vote
    if vote is None or vote.term > kept.epoch or kept.generation != settings.members.generation:
        return None
    return vote


def allies(peers: Mapping[str, PeerView], settings: Settings) -> Mapping[str, PeerView]:
    """The peers with the same list of members: what others say about writing is said to other nodes."""
    return {name: one for name, one in peers.items() if one.said is not None and one.said.members == settings.members}


def votes_until(
    memory: LeaseMemory, peers: Mapping[str, PeerView], kept: HardState, now: float, settings: Settings
) -> float:
    """Until when a majority lets this node write under its present term; 0 without a majority.

    Invariant: only votes for this very term count, of nodes with the same members, and a peer's vote counts from when
    this node *sent* what the peer answers.
    """
    lease = settings.timings.lease
    ends: dict[str, float] = {}
    own = said_vote(memory, kept, settings)
    if own is not None and own.candidate == settings.name and own.term == memory.term:
        ends[settings.name] = now + lease
    for name, view in allies(peers, settings).items():
        said = view.said
        counts = said is not None and said.vote == settings.name and said.vote_term == memory.term
        if counts and view.echoed is not None:
            ends[name] = view.echoed + lease
    return min(_until(ends, quorum) for quorum in settings.quorums)


def _until(ends: Mapping[str, float], quorum: frozenset[str]) -> float:
    """Until when more than half of *quorum* are in *ends*."""
    needed = majority(len(quorum))
    found = sorted((end for name, end in ends.items() if name in quorum), reverse=True)
    return found[needed - 1] if len(found) >= needed else 0.0


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
        if view is not None and view.said is not None and view.believed is not None and view.believed >= vote.heard:
            if view.said.role in ASKS:
                vote = Vote(vote.candidate, view.said.term, view.believed)
            elif view.believed > vote.heard:
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
        if view.said.role in rank and view.believed is not None:
            asking.append((rank[view.said.role], 1, Vote(name, view.said.term, view.believed)))
    return min(asking, key=lambda entry: entry[:2])[2] if asking else None


def step(
    memory: LeaseMemory,
    fresh: frozenset[str],
    *,
    now: float,
    started: float,
    held: Optional[float],
    frontend: Health,
    proxy_ok: bool,
    yields: bool,
    clock_off: Optional[float],
    seen: Observation,
    settings: Settings,
) -> LeaseMemory:
    """The next role, term, epoch and vote of this node.

    *seen* holds all that was ever heard of the peers, whether the frontend takes writes, that the process that could
    write is gone, what is on disk and how the kernel's timer is; *fresh* names the peers whose heartbeat is recent,
    *held* says since when this node has had the VIP; who *yields* gives the lease up, and asks for none.

    Invariants: a node is WRITER only while it holds the VIP, its lease lasts, its clock agrees with the others' and the
    kernel's timer runs; where only one node may write, also only while its frontend lives and takes writes. It leaves
    OPENING and WRITER only through CLOSING, and CLOSING only when fenced; terms of successive writers grow, also when
    only the one writing frontend was restarted, since uploads that the dead process had half stored must not go on.
    """
    timings, peers = settings.timings, seen.peers
    said: list[Report] = [view.said for view in peers.values() if view.said is not None]
    outdated = any(one.members.generation > settings.members.generation for one in said)
    outdated = outdated or seen.kept.generation > settings.members.generation
    limit = timings.clock_off if memory.role in OPEN else IN_STEP * timings.clock_off
    doubtful = clock_off is None or clock_off > limit or not seen.timer_there
    serving = max([memory.serving] + [one.term for one in said if one.role is Role.WRITER])
    let = memory.vote.term if memory.vote is not None else 0
    epoch = max([memory.epoch, serving, let] + [one.epoch for one in said])
    highest = max([epoch, seen.wall_ms, memory.term] + [one.term for one in said])
    until = votes_until(memory, peers, seen.kept, now, settings)
    leased = now < until - timings.lease_margin
    role, since, term = memory.role, memory.since, memory.term
    if role is Role.CLOSING:
        role = Role.STANDBY if seen.fenced else role
    elif role in (Role.WRITER, Role.OPENING):
        # A later writer there was: a paused machine whose clock stood still goes on under votes that it had before.
        lost = held is None or yields or not leased or outdated or doubtful or serving > term
        lost = lost or (settings.single_writer and frontend is Health.DEAD)
        if lost or (role is Role.WRITER and (seen.writable is False or not timed(seen, now, settings))):
            role = Role.CLOSING
        elif role is Role.OPENING and ready(seen, now, settings):
            role, serving = Role.WRITER, term
    elif held is None or yields or not proxy_ok or frontend is not Health.OK or outdated or doubtful:
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
    return replace(memory, vote=next_vote(memory, allies(peers, settings), now, started, settings))


def timed(seen: Observation, now: float, settings: Settings) -> bool:
    """Whether the kernel's timer is known to run: without it nothing ends what a stopped agent let write."""
    return seen.timer_there and seen.timer is not None and now - seen.timer < settings.timings.timer


def ready(seen: Observation, now: float, settings: Settings) -> bool:
    """Whether the gate may be opened: the one writer's frontend takes writes; any other does so at all times."""
    return bool(seen.writable) if settings.single_writer else timed(seen, now, settings)


def renews(memory: LeaseMemory, now: float, settings: Settings) -> bool:
    """Whether the kernel's timer is to run anew from *now*.

    Invariant: it ends before the votes do, whenever the renewal reaches the kernel, which is within ``ticket`` seconds.
    """
    timings = settings.timings
    lasts = timings.ticket + timings.timer + timings.timer_slack
    return memory.role in (Role.OPENING, Role.WRITER) and memory.until - now >= lasts


def writes(memory: LeaseMemory, seen: Observation, now: float, settings: Settings) -> bool:
    """Whether the one writer's frontend should have its writing configuration: only under a timer that runs."""
    return settings.single_writer and memory.role in (Role.OPENING, Role.WRITER) and timed(seen, now, settings)


def writer(memory: LeaseMemory, peers: Mapping[str, PeerView], fresh: frozenset[str], name: str) -> Optional[str]:
    """The node that writes are sent to: of those that say they are WRITER, the one with the highest term."""
    claims = [(memory.term, name)] if memory.role is Role.WRITER else []
    for peer in fresh:
        said = peers[peer].said
        if said is not None and said.role is Role.WRITER:
            claims.append((said.term, peer))
    return max(claims)[1] if claims else None
