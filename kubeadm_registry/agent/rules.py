"""What follows from what was seen: pure functions of (memory, observation, now), each with its invariant.

The rules were measured (docs/agent.md has the figures). Three of them keep an eager agent from doing harm: only
connections that carry reads are reset, never those that may carry a write; a process that still uses the CPU is slow,
not hung; reads go to the best nodes present, and a node with a hung process comes last even while all look bad.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Optional

from kubeadm_registry.agent import holding, lease, planned
from kubeadm_registry.agent.conditions import conditions
from kubeadm_registry.agent.model import (
    FAILED,
    Answers,
    Decisions,
    Health,
    LeaseMemory,
    Level,
    Memory,
    Observation,
    PeerMemory,
    PeerView,
    Presence,
    Reading,
    Report,
    Role,
    ServiceMemory,
    Settings,
    Verdict,
    true_since,
)
from kubeadm_registry.agent.presence import FIRST_LOOK, peer
from kubeadm_registry.agent.timings import Timings

RESETS = (0.0, 0.05, 0.25)  # reads that were sent while HAProxy took up its new state are caught by the later ones
ALONE = 0.2  # seconds without a majority that make a server alone
BACK = 2.0  # seconds with one after which it is no longer
WHOLE = 1.0  # seconds that all storages must have been there before their tables are compared
KILL_AGAIN = 2.0  # seconds; then twice as long each time, until the process was well once
KILL_AT_MOST = 60.0  # seconds from one kill to the next
STARVED = 3.0  # seconds after memory was last short, from which on a silence counts again
DOOR_SILENT = 2.5  # seconds: two answers in a row are missing
UNGUARDED = 1.0  # seconds without the nft rules that who has the lease may have: longer than loading them takes
NEVER_SEEN = PeerMemory()


def silence(newest: Optional[float], first: float, resumed: float, now: float) -> float:
    """Seconds without an answer. Time in which the agent itself was not run does not count."""
    return now - max(first if newest is None else newest, resumed)


def health(previous: Health, answers: Answers, resumed: float, now: float, timings: Timings) -> Health:
    """What to think of a process.

    Invariants: DEAD only when its port refuses. HUNG only when it is silent for ``hung`` seconds and is known to have
    used no CPU time for ``idle`` seconds, or silent for ``hung_busy`` seconds. OK only after ``recover`` good answers
    in a row.
    """
    if answers.refused:
        return Health.DEAD
    silent = silence(answers.answered, answers.first, resumed, now)
    idle = 0.0 if answers.idle is None else now - max(answers.idle, resumed)
    if silent >= timings.hung_busy or (silent >= timings.hung and idle >= timings.idle):
        return Health.HUNG
    if answers.answered is None:
        return previous if previous is not Health.OK else Health.SUSPECT
    if silence(answers.good, answers.first, resumed, now) >= timings.suspect:
        return Health.SUSPECT
    if previous is not Health.OK and answers.streak < timings.recover:
        return Health.SUSPECT
    return Health.OK


def service(
    memory: ServiceMemory, answers: Answers, resumed: float, now: float, timings: Timings
) -> tuple[ServiceMemory, bool, bool]:
    """The next memory of a process, whether the reads that wait for it are to be reset, and whether it is to be killed.

    Invariants: resets only while DEAD or HUNG, at most ``len(RESETS)`` an episode. Kills only while HUNG, ``kill``
    seconds after its last answer at the earliest, and again after ``KILL_AGAIN`` seconds, later and later: where new
    ones are silent as well, something else is wrong, and what still works ends with each. Never a process that waits
    for memory, since where that is short a new one has to wait for more. One that did while it was silent has as long
    afterwards as one that is busy: it works off what had to wait with it.
    """
    new = health(memory.health, answers, resumed, now, timings)
    if new is not memory.health:
        same_episode = new in FAILED and memory.health in FAILED
        memory = replace(memory, health=new, since=now, resets=memory.resets if same_episode else 0)
    if new is Health.OK and memory.kills:
        memory = replace(memory, kills=0)
    if new not in FAILED:
        return memory, False, False
    reset = memory.resets < len(RESETS) and now - memory.since >= RESETS[memory.resets]
    if reset:
        memory = replace(memory, resets=memory.resets + 1)
    silent = silence(answers.answered, answers.first, resumed, now)
    idle = 0.0 if answers.idle is None else now - max(answers.idle, resumed)
    busy = timings.hung_busy + timings.kill - timings.hung
    patience = timings.kill if idle >= timings.idle else busy
    if answers.paged is not None and now - answers.paged < silent:
        silent, patience = now - answers.paged - STARVED, busy
    rest = min(KILL_AGAIN * 2 ** (max(memory.kills, 1) - 1), KILL_AT_MOST)
    again = memory.killed is None or now - memory.killed >= rest
    kill = new is Health.HUNG and silent >= patience and again
    if kill:
        memory = replace(memory, killed=now, kills=memory.kills + 1)
    return memory, reset, kill


def verdict(
    previous: Verdict,
    manifest: Optional[Reading],
    blob: Optional[Reading],
    resumed: float,
    now: float,
    timings: Timings,
) -> Verdict:
    """What the known object says about the chain frontend - storage.

    Invariants: a fault counts at once; GOOD again only after ``recover`` good manifests in a row and a good blob.
    """
    if manifest is None or blob is None:
        return Verdict.GOOD
    faults = {manifest.fault, blob.fault}
    for fault in (Verdict.WRONG, Verdict.MISSING, Verdict.SLOW):
        if fault in faults:
            return fault
    for reading, interval in ((manifest, timings.canary_interval), (blob, timings.blob_interval)):
        if silence(reading.good, reading.first, resumed, now) >= interval + timings.canary_deadline:
            return Verdict.SLOW
    if manifest.good is None or blob.good is None:
        return previous
    if previous is not Verdict.GOOD and manifest.streak < timings.recover:
        return previous
    return Verdict.GOOD


def own_level(frontend: Health, storage: Optional[Health], seen: Verdict, somebody_reads: bool) -> Level:
    """This node's level.

    Invariants: PROCESS whenever a process of its own is not OK, whatever the chain says: a hung storage process makes
    every node's chain look bad, and its own node must still come last. An object that is missing here is a fault of
    this node only if somebody else reads it (*somebody_reads*).
    """
    if frontend is not Health.OK or storage not in (None, Health.OK):
        return Level.PROCESS
    if seen is Verdict.GOOD or (seen is Verdict.MISSING and not somebody_reads):
        return Level.FIT
    return Level.CHAIN


def readers(levels: Mapping[str, Level]) -> frozenset[str]:
    """The nodes that get reads: those of the best level present.

    Invariants: never empty; never a node for whom a better one is present; in particular no fall-back to the own node.
    """
    best = min(levels.values())
    return frozenset(name for name, level in levels.items() if level == best)


def fit(memory: Memory, *, proxy_dead: bool, proxy_ok: bool, somebody_good: bool, now: float, timings: Timings) -> bool:
    """Whether this node may hold the VIP.

    Invariants: a node that was good since its agent started is unfit only while another node, freshly heard by this
    one or by one that this one hears, reads well and is fit itself; so all slow, all full and all dark leave the
    holder where it is. So is one that cannot become the one writer for a reason of its own: pushes would wait for it
    for ever. A node that was never good is fit only when nobody else is, after ``start_grace`` seconds, if
    its proxy answers, and not while it is alone: without the others it can read nothing, and they may have replaced it
    while it was away. A node that has left the members is never fit.
    """
    hidden = memory.holding.hidden_since
    if hidden is not None and now - hidden >= holding.YIELD:
        return False
    if memory.removed or memory.holding.outdone is not None:
        return False
    if somebody_good:
        if proxy_dead or not memory.been_good:
            return False
        wrong = memory.wrong_since is not None and now - memory.wrong_since >= timings.give_up
        failed = memory.failed_since is not None and now - memory.failed_since >= timings.storage_give_up
        unwell = memory.unwell_since is not None and now - memory.unwell_since >= timings.slow_give_up
        return not (wrong or failed or unwell or barred(memory, now, timings))
    return memory.been_good or (proxy_ok and not memory.alone and now - memory.started >= timings.start_grace)


def barred(memory: Memory, now: float, timings: Timings) -> bool:
    """Whether this node has for long been unable to become the one writer, for a reason of its own.

    It does not count as good then: of nodes that are all barred, none gives the VIP up for another.
    """
    return memory.barred_since is not None and now - memory.barred_since >= timings.slow_give_up


def _against_writing(
    memory: Memory, seen: Observation, off: Mapping[str, float], *, open_to_all: bool, now: float, settings: Settings
) -> Memory:
    """*memory* with how far this node's clock is off, and since when it cannot become the one writer by itself."""
    clock_off = off.get(settings.name, memory.clock_off)
    astray = clock_off is not None and clock_off > lease.IN_STEP * settings.timings.clock_off
    cannot = settings.single_writer and (astray or open_to_all or not seen.timer_there)
    return replace(memory, clock_off=clock_off, barred_since=true_since(memory.barred_since, cannot, now))


def alone(before: bool, lonely_since: Optional[float], joined_since: Optional[float], now: float) -> bool:
    """Whether this node's claim to the VIP is weaker than that of any node in a majority.

    A holder that was cut off keeps the VIP, and so has another one on the other side. When the cut heals, this one
    must lose at once: had it the higher priority it would win, find itself unwell and give the VIP back, and clients
    would wait a second for the SYN that they sent to it. Invariant: stays true until the majority was heard for
    ``BACK`` seconds, in which keepalived hears many adverts.
    """
    if lonely_since is not None:
        return before or now - lonely_since >= ALONE
    return before and (joined_since is None or now - joined_since < BACK)


def clocks(fresh: Mapping[str, PeerView], settings: Settings) -> Mapping[str, float]:
    """Seconds between the wall clock of each node heard, this one's too, and the median of those of a majority.

    Empty while none is heard. Of two that disagree nobody knows which is right, so each is half of it off.
    """
    told = {name: view.offset for name, view in fresh.items() if view.offset is not None}
    offsets = {settings.name: 0.0, **told}
    if len(offsets) < settings.majority:
        return {}
    middle = median(offsets.values())
    return {name: abs(offset - middle) for name, offset in offsets.items()}


def removed(peers: Mapping[str, PeerView], settings: Settings) -> bool:
    """Whether a peer says that this node has left the members.

    Invariant: only one with a later list can say so. One with an earlier list has missed that this node came back.
    """
    said = (view.said for view in peers.values() if view.said is not None)
    return any(one.removed and one.members.generation > settings.members.generation for one in said)


def decide(memory: Memory, seen: Observation, now: float, settings: Settings) -> tuple[Memory, Decisions]:
    """One step: what is remembered next, and what is to be done.

    Invariant: what this agent knows from before a pause of its own (longer than ``pause``) is not taken as silence of
    others; its right to write is not prolonged by that.
    """
    timings = settings.timings
    if memory.last and now - memory.last > timings.pause:
        memory = replace(memory, resumed=now)
    resumed = memory.resumed
    peers, destroy, back = _peers(memory, seen, now, settings)
    fresh = frozenset(name for name, one in peers.items() if one.presence is Presence.FRESH)
    reports = {name: said for name in fresh if (said := seen.peers[name].said) is not None}

    frontend, reset_frontend, kill_frontend = service(memory.frontend, seen.frontend, resumed, now, timings)
    storage, reset_storage, kill_storage = memory.storage, False, False
    if seen.storage is not None:
        storage, reset_storage, kill_storage = service(memory.storage, seen.storage, resumed, now, timings)
    proxies, kill_proxies = _proxies(memory, seen, now, settings)
    proxy_ok, proxy_dead = _proxy(proxies, seen, resumed, now)

    somebody_reads = any(said.verdict is Verdict.GOOD for said in reports.values())
    somebody_good = any(said.good and said.fit and said.level is Level.FIT for said in reports.values())
    found = verdict(memory.verdict, seen.manifest, seen.blob, resumed, now, timings)
    level = own_level(frontend.health, None if seen.storage is None else storage.health, found, somebody_reads)
    wrong = frontend.health in FAILED or (found in (Verdict.WRONG, Verdict.MISSING) and level is not Level.FIT)
    all_answer = (
        storage.health is Health.OK
        and len(reports) == len(settings.peers)
        and all(said.storage for said in reports.values())
    )
    partial = all_answer and not seen.storage_whole
    storage_back = storage.health is Health.OK and memory.storage.health not in (Health.OK, Health.UNKNOWN)
    partial_since = true_since(memory.partial_since, partial, now)
    waited = partial_since is not None and now - partial_since >= FIRST_LOOK
    connect = back or storage_back or (waited and now - memory.connected >= timings.connect_interval)
    # A peer that is only too busy to speak has lost no connection, and its storage has missed nothing.
    heard = len(reports) + sum(one.spared for one in peers.values())
    away = storage.health in FAILED or not seen.storage_whole or heard < len(settings.peers)
    apart, whole_since, compare = _reunion(memory, away=away, all_answer=all_answer, now=now, timings=timings)

    joined = 1 + len(fresh) >= settings.majority
    lonely_since = true_since(memory.lonely_since, not joined, now)
    joined_since = true_since(memory.joined_since, joined, now)
    held = true_since(memory.held_since, seen.holds_vip, now)
    unguarded = true_since(memory.unguarded_since, seen.guarded is False, now)
    # Where any user of this host could push without a login, nobody holds the lease.
    open_to_all = unguarded is not None and now - unguarded >= UNGUARDED
    off = clocks({name: seen.peers[name] for name in fresh}, settings)
    memory = _against_writing(memory, seen, off, open_to_all=open_to_all, now=now, settings=settings)
    good = level is Level.FIT and proxy_ok and not barred(memory, now, timings)
    asked = planned.planned(memory, seen, reports, now=now, settings=settings)
    new = replace(
        memory,
        last=now,
        frontend=frontend,
        storage=storage,
        proxies=proxies,
        verdict=found,
        peers=peers,
        level=level,
        good=good,
        been_good=memory.been_good or good,
        wrong_since=true_since(memory.wrong_since, wrong, now),
        held_since=held,
        holding=holding.look(memory, reports, held, now, settings),
        unguarded_since=unguarded,
        quiet_since=asked.quiet_since,
        lonely_since=lonely_since,
        joined_since=joined_since,
        alone=alone(memory.alone, lonely_since, joined_since, now),
        removed=memory.removed or removed(seen.peers, settings),
        failed_since=true_since(memory.failed_since, storage.health in FAILED, now),
        unwell_since=true_since(memory.unwell_since, level is not Level.FIT, now),
        connected=now if connect else memory.connected,
        partial_since=partial_since,
        apart=apart and not compare,
        whole_since=whole_since,
        compared=now if compare else memory.compared,
    )
    is_fit = fit(new, proxy_dead=proxy_dead, proxy_ok=proxy_ok, somebody_good=somebody_good, now=now, timings=timings)
    is_fit = is_fit and not asked.gives
    claim = new.lease
    if settings.leased:
        claim = lease.step(
            new.lease,
            fresh,
            now=now,
            started=memory.started,
            held=None if open_to_all else held,
            frontend=frontend.health,
            proxy_ok=proxy_ok,
            yields=asked.yields,
            clock_off=new.clock_off,
            seen=seen,
            settings=settings,
        )
    new = replace(new, fit=is_fit, lease=claim)

    levels = {name: reports[name].level if name in reports else Level.SILENT for name in settings.peers}
    best = None if now - memory.started < timings.warm_up else readers({settings.name: level, **levels})
    writers = _writers(claim, best, off, seen=seen, fresh=fresh, settings=settings)
    draining_there = any(said.draining for name, said in reports.items() if writers is not None and name in writers)
    return new, Decisions(
        readers=best,
        writers=writers,
        gate=settings.leased and claim.role is Role.WRITER,
        epoch=claim.serving,
        fit=is_fit,
        # Where the VIP is to move, that node must win: this one gives way to it.
        alone=new.alone or (asked.moving and not seen.holds_vip),
        behind=holding.weaker(new.holding, now),
        new_work=not (asked.draining or asked.yields or draining_there),
        count_writes=asked.draining,
        report=_report(new, seen, settings, draining=asked.draining, now=now),
        levels=levels,
        reset_reads=_reason(frontend, reset_frontend, "frontend") or _reason(storage, reset_storage, "storage"),
        reset_rpc=_reason(storage, reset_storage, "storage") if storage.health is Health.HUNG else "",
        kill_frontend="the frontend is hung" if kill_frontend else "",
        kill_storage="the storage is hung" if kill_storage else "",
        kill_proxies=kill_proxies,
        destroy=destroy,
        connect=connect,
        compare=compare,
        fence=settings.leased and claim.role is Role.CLOSING,
        renew=settings.leased and lease.renews(claim, now, settings),
        writing=lease.writes(claim, seen, now, settings),
        keep=lease.known(claim, settings),
        conditions=conditions(new, seen, reports, proxy_dead=proxy_dead, proxy_ok=proxy_ok, settings=settings),
    )


def _writers(
    claim: LeaseMemory,
    best: Optional[frozenset[str]],
    off: Mapping[str, float],
    *,
    seen: Observation,
    fresh: frozenset[str],
    settings: Settings,
) -> Optional[frozenset[str]]:
    """The nodes that get writes; None while that is not decided.

    Invariants: where only one node may write, the one that says so. Else never one whose clock is *off* by more than
    ``clock_off``: the storage orders what is written by the clock of the node that writes.
    """
    if settings.single_writer:
        one = lease.writer(claim, seen.peers, fresh, settings.name)
        return frozenset() if one is None else frozenset({one})
    doubtful = {name for name, seconds in off.items() if seconds > settings.timings.clock_off}
    return None if best is None else best - doubtful


def _reunion(
    memory: Memory, *, away: bool, all_answer: bool, now: float, timings: Timings
) -> tuple[bool, Optional[float], bool]:
    """Whether a storage was away, since when all have been there, and whether the tables are to be compared now.

    Invariants: compares only when a storage was *away* since the last time, which one that is only late was not; once
    all have answered in time for ``WHOLE`` seconds; and at most every ``compare_interval`` seconds.
    """
    apart = memory.apart or away
    since = true_since(memory.whole_since, all_answer and not away, now)
    rested = memory.compared is None or now - memory.compared >= timings.compare_interval
    return apart, since, apart and rested and since is not None and now - since >= WHOLE


def _peers(
    memory: Memory, seen: Observation, now: float, settings: Settings
) -> tuple[Mapping[str, PeerMemory], tuple[tuple[str, bool], ...], bool]:
    peers: dict[str, PeerMemory] = {}
    destroy: list[tuple[str, bool]] = []
    anyone_back = False
    for name in settings.peers:
        old = memory.peers.get(name, NEVER_SEEN)
        peers[name], what, back = peer(old, seen.peers[name], memory.started, memory.resumed, now, settings.timings)
        if what is not None:
            destroy.append((name, what))
        anyone_back = anyone_back or back
    return peers, tuple(destroy), anyone_back


def _proxies(
    memory: Memory, seen: Observation, now: float, settings: Settings
) -> tuple[tuple[ServiceMemory, ...], tuple[int, ...]]:
    """A hung HAProxy is killed as soon as it is known to be hung: half of all new connections wait for it.

    Invariant: none is killed while all are silent and none is idle. Then the machine does not let them run, and to
    start them anew takes more of what it lacks.
    """
    quick = settings.proxy_timings
    old = memory.proxies or tuple(ServiceMemory() for _ in seen.proxies)
    steps = [service(one, answers, memory.resumed, now, quick) for one, answers in zip(old, seen.proxies)]
    starved = all(step[0].health is not Health.OK for step in steps) and all(one.idle is None for one in seen.proxies)
    kill = () if starved else tuple(index for index, step in enumerate(steps) if step[2])
    return tuple(step[0] for step in steps), kill


def _proxy(proxies: tuple[ServiceMemory, ...], seen: Observation, resumed: float, now: float) -> tuple[bool, bool]:
    """Whether the proxy is known to work, and whether it is known not to."""
    door = seen.proxy_door
    shut = door.refused or silence(door.answered, door.first, resumed, now) >= DOOR_SILENT
    ok = any(one.health is Health.OK for one in proxies) and door.answered is not None and not shut
    return ok, shut or all(one.health in FAILED for one in proxies)


def _reason(memory: ServiceMemory, due: bool, name: str) -> str:
    if not due:
        return ""
    return f"the {name} {'refuses connections' if memory.health is Health.DEAD else 'is hung'}"


def _report(memory: Memory, seen: Observation, settings: Settings, *, draining: bool, now: float) -> Report:
    claim: LeaseMemory = memory.lease
    vote = lease.said_vote(claim, seen.kept, settings)
    return Report(
        level=memory.level,
        fit=memory.fit,
        good=memory.good,
        vip=seen.holds_vip,
        held=0.0 if memory.held_since is None else round(now - memory.held_since),
        sees=memory.holding.holder,
        verdict=memory.verdict,
        storage=seen.storage is None or memory.storage.health is Health.OK,
        role=claim.role if settings.leased else Role.STANDBY,
        term=claim.term,
        epoch=claim.epoch,
        vote=vote.candidate if vote is not None else "",
        vote_term=vote.term if vote is not None else 0,
        draining=draining,
        members=settings.members,
    )
