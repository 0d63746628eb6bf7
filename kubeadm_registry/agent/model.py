"""What the agent sees, says and decides, as plain values. Times are seconds of one clock that never steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from functools import cached_property
from typing import Optional

from kubeadm_registry.agent.timings import Timings


class Level(IntEnum):
    """How well a node serves reads; smaller is better."""

    FIT = 0
    CHAIN = 1  # the chain frontend - storage is slow, or its answer is wrong
    PROCESS = 2  # its own frontend or storage process is dead or silent
    SILENT = 3  # its agent is not heard


class Health(str, Enum):
    """What is known about one process."""

    UNKNOWN = "unknown"  # nothing was seen yet
    OK = "ok"
    SUSPECT = "suspect"  # late, or not yet good for long enough: only new reads move
    HUNG = "hung"  # silent without using the CPU, or silent for very long
    DEAD = "dead"  # its port refuses: certain


FAILED = (Health.DEAD, Health.HUNG)


class Verdict(str, Enum):
    """What reading the known object through frontend and storage said."""

    UNKNOWN = "unknown"
    GOOD = "good"
    MISSING = "missing"  # 404: really missing, or a storage error that the frontend calls so
    WRONG = "wrong"  # another status, or other bytes
    SLOW = "slow"


class Role(str, Enum):
    """A node's part in the lease: its holder is the one writer (zot), and retention acts there (with any frontend)."""

    STANDBY = "standby"
    CANDIDATE = "candidate"  # asks for votes; nothing is open
    OPENING = "opening"  # has the votes; the kernel's timer and then the frontend are made ready
    WRITER = "writer"  # holds the lease
    CLOSING = "closing"  # gate shut, what could act under the lease not yet known to be gone


class Presence(str, Enum):
    """What is known about a peer's agent."""

    UNHEARD = "unheard"  # never since this agent started
    FRESH = "fresh"
    GONE = "gone"  # its host says that nobody listens, or it said goodbye: the host lives
    SILENT = "silent"


@dataclass(frozen=True)
class Answers:
    """What the probes of one process saw."""

    first: float  # when probing began, or began anew
    answered: Optional[float] = None  # newest answer, however late
    good: Optional[float] = None  # newest answer within the deadline
    streak: int = 0  # answers within the deadline in a row
    refused: bool = False  # the newest attempt was refused
    idle: Optional[float] = None  # since when it has neither used the CPU nor waited for it; None: not known
    paged: Optional[float] = None  # when it was last seen to wait for memory, or all of this host was


@dataclass(frozen=True)
class Reading:
    """What the reads of one known object saw."""

    first: float
    good: Optional[float] = None
    streak: int = 0
    fault: Optional[Verdict] = None  # MISSING, WRONG or SLOW, if the newest finished read said so


@dataclass(frozen=True)
class Members:
    """Which list of members a node has: votes and claims count among nodes with equal ones only."""

    generation: int = 0  # grows with each change of the list; 0: not said
    digest: str = ""  # of the names and addresses of all members


@dataclass(frozen=True)
class HardState:
    """What a node must not forget in a restart or a power cut (Raft calls it so): both numbers never fall."""

    generation: int = 0  # the highest generation of members under which it has ever voted
    epoch: int = 0  # the highest term that it has let write


@dataclass(frozen=True)
class Report:
    """What a node says about itself in every heartbeat."""

    level: Level = Level.PROCESS
    fit: bool = False
    good: bool = False  # reads well itself, through a proxy that lives
    vip: bool = False
    held: float = 0.0  # for so many seconds
    sees: str = ""  # of the other nodes that it hears, the one that has held the VIP for longest and reads well
    verdict: Verdict = Verdict.UNKNOWN
    storage: bool = False  # its storage process answers
    role: Role = Role.STANDBY
    term: int = 0  # of its candidacy, and its epoch once it writes
    epoch: int = 0  # the highest term that it has let write, or has seen writing
    vote: str = ""  # the node that it lets write
    vote_term: int = 0
    bye: bool = False
    removed: bool = False  # said to a node that has left the members: it is none of them
    draining: bool = False  # the writer takes no new work: it is about to end or to move, as planned
    members: Members = Members()  # under which all of the above about writing is said


@dataclass(frozen=True)
class PeerView:
    """What was heard of one peer."""

    heard: Optional[float] = None  # newest heartbeat that was proved to be recent
    away: Optional[float] = None  # newest proof that its host lives without an agent
    said: Optional[Report] = None  # in the newest heartbeat
    echoed: Optional[float] = None  # when this agent sent the heartbeat that the peer's newest one answers
    offset: Optional[float] = None  # seconds that its wall clock is ahead of this node's, as well as is known
    believed: Optional[float] = None  # when the newest heartbeat came that this node answers; never falls
    #: Its host was asked at this time, and its kernel answered, or let the time pass. Only while it is not heard.
    lives: Optional[float] = None
    deaf: Optional[float] = None


@dataclass(frozen=True)
class Observation:
    """All that the rules may know about this moment."""

    frontend: Answers
    storage: Optional[Answers]  # None: this storage has no probe
    storage_whole: bool  # the storage says that all its members are connected
    manifest: Optional[Reading]  # None: no known object was given
    blob: Optional[Reading]
    proxies: tuple[Answers, ...]  # one for each HAProxy process
    proxy_door: Answers  # TLS to the public port
    peers: Mapping[str, PeerView]
    holds_vip: bool
    fenced: bool  # what could act under the lease is known to be gone: a writing frontend, the retention executor
    writable: Optional[bool] = None  # whether the frontend takes writes; None: not known
    wall_ms: int = 0
    guarded: Optional[bool] = None  # whether the nft rules are whole; None: not known yet, or nobody asked
    kept: HardState = HardState()  # what is known to be on disk
    timer: Optional[float] = None  # when the newest renewal was sent that the kernel's timer took; None: it has none
    timer_there: bool = False  # the kernel has such a timer
    copying: bool = False  # the storage brings over what this node missed
    moves_to: str = ""  # the node to which the VIP is to move, as planned
    yields: bool = False  # the one writer is to give up the lease, as planned
    writes: Optional[int] = None  # writing requests that this node's proxies pass on to its frontend; None: not known


@dataclass(frozen=True)
class ServiceMemory:
    """What is remembered of one process."""

    health: Health = Health.UNKNOWN
    since: float = 0.0  # when it became so
    resets: int = 0  # in this episode
    killed: Optional[float] = None
    kills: int = 0  # since it was last OK


@dataclass(frozen=True)
class PeerMemory:
    """What is remembered of one peer."""

    presence: Presence = Presence.UNHEARD
    silences: int = 0
    since: float = 0.0  # when it became so
    alarms: int = 0  # silences in a row that were too short for a dead host
    destroyed: float = 0.0
    spared: bool = False  # nothing says that its host is dead, so its connections are left alone


@dataclass(frozen=True)
class Vote:
    """Whom this node lets write, the term it last heard, and when it last heard that it is wanted."""

    candidate: str
    term: int
    heard: float


@dataclass(frozen=True)
class LeaseMemory:
    """What is remembered about the lease."""

    role: Role = Role.CLOSING  # at start an earlier life may have left a writer behind
    since: float = 0.0
    term: int = 0
    epoch: int = 0  # the highest term that was let write or was seen writing, as far as this node knows
    serving: int = 0  # the term of the newest writer that this node has seen: the epoch of uploads
    vote: Optional[Vote] = None
    until: float = 0.0  # a majority lets this node write until then


@dataclass(frozen=True)
class Holding:
    """What is remembered of others that have the VIP."""

    holder: str = ""  # of the peers that have it and read well, the one that has had it for longest
    behind: Optional[float] = None  # when that one was last known to have had it for longer than this node
    hidden_since: Optional[float] = None  # since when another holder is heard of, but not heard
    second_since: Optional[float] = None  # since when this node has it as well, and is behind
    outdone: Optional[float] = None  # until when it gives way to the holder, whose adverts it does not get
    outdone_for: float = 0.0  # seconds that this lasts; 0 once adverts have arrived for a while
    follows_since: Optional[float] = None  # since when it is fit and leaves the VIP to the holder


@dataclass(frozen=True)
class Memory:
    """All that is carried from one decision to the next."""

    started: float
    last: float = 0.0  # the decision before
    resumed: float = 0.0  # the agent was not run for a while until then: what is older says nothing
    frontend: ServiceMemory = ServiceMemory()
    storage: ServiceMemory = ServiceMemory()
    proxies: tuple[ServiceMemory, ...] = ()
    verdict: Verdict = Verdict.UNKNOWN
    peers: Mapping[str, PeerMemory] = field(default_factory=dict)
    level: Level = Level.PROCESS
    good: bool = False
    been_good: bool = False  # since this agent started
    held_since: Optional[float] = None  # since when this node has had the VIP
    wrong_since: Optional[float] = None
    failed_since: Optional[float] = None  # since when its storage has been dead or hung
    unwell_since: Optional[float] = None  # since when it has had another level than 0
    barred_since: Optional[float] = None  # since when it cannot become the one writer, for a reason of its own
    unguarded_since: Optional[float] = None  # since when the nft rules on loopback have been missing
    lonely_since: Optional[float] = None  # since when fewer than a majority are heard
    joined_since: Optional[float] = None  # since when a majority is heard
    alone: bool = False  # cut off from the majority, or only just back
    removed: bool = False  # this node has left the members; an agent with a later list begins anew
    quiet_since: Optional[float] = None  # since when no write is in flight at a writer that is about to end
    fit: bool = False
    connected: float = 0.0  # when the storage was last told to connect
    partial_since: Optional[float] = None  # since when the storage lacks a member that should be there
    apart: bool = True  # a storage was away since the tables were last compared; who starts does not know
    whole_since: Optional[float] = None  # since when all storages answer and are connected
    compared: Optional[float] = None  # when the storage was last told to compare its tables
    lease: LeaseMemory = LeaseMemory()
    holding: Holding = Holding()
    clock_off: Optional[float] = None  # seconds between this node's wall clock and the median of a majority's


@dataclass(frozen=True)
class Decisions:
    """What is to be done now."""

    readers: Optional[frozenset[str]]  # nodes that get reads; None: leave them as they are
    writers: Optional[frozenset[str]]  # nodes that get writes
    gate: bool  # this node's own gate
    epoch: int
    fit: bool
    report: Report
    levels: Mapping[str, Level]  # of the peers
    alone: bool = False
    behind: bool = False  # another node, which is well, has the VIP, and has had it for longer
    reset_reads: str = ""  # why, or empty
    reset_rpc: str = ""
    kill_frontend: str = ""
    kill_storage: str = ""
    kill_proxies: tuple[int, ...] = ()
    destroy: tuple[tuple[str, bool], ...] = ()  # (peer, only connections that are stuck)
    new_work: bool = True  # uploads may begin, and manifests may come
    count_writes: bool = False  # ask the proxies how many writes are in flight
    connect: bool = False  # tell the storage to connect to the peers
    compare: bool = False  # tell the storage to compare its tables with the peers'
    fence: bool = False  # end what could act under the lease
    renew: bool = False  # the kernel's timer lets that reach storage and proxy for another while
    writing: bool = False  # the frontend should have its writing configuration
    keep: HardState = HardState()  # what must be on disk before the next vote is said
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What the rules need of the configuration."""

    name: str
    peers: tuple[str, ...]
    single_writer: bool
    timings: Timings = field(default_factory=Timings)
    members: Members = Members()
    before: tuple[str, ...] = ()  # the members of the generation before, until all have the new list
    executor: bool = False  # the retention executor acts under the lease, also where all may write

    @property
    def leased(self) -> bool:
        """Whether one node at a time holds a lease: for the one writer, for the retention executor, or for both."""
        return self.single_writer or self.executor

    @cached_property
    def proxy_timings(self) -> Timings:
        """Those by which an HAProxy is judged: it is asked less often, and killed as soon as it is known to be hung."""
        timings = self.timings
        return replace(timings, kill=timings.hung, suspect=timings.proxy_interval + timings.probe_deadline)

    def term(self, after: int) -> int:
        """The next term after *after* that only this node can choose."""
        names = sorted((self.name, *self.peers))
        return (after // len(names) + 1) * len(names) + names.index(self.name)

    @property
    def majority(self) -> int:
        """How many nodes, this one among them, are more than half."""
        return majority(1 + len(self.peers))

    @property
    def quorums(self) -> tuple[frozenset[str], ...]:
        """The sets of nodes in each of which a writer needs more than half.

        While members change that is the list of before as well, so that no majority of it can act by itself
        (joint consensus: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm", section 6).
        """
        now = frozenset((self.name, *self.peers))
        return (now, frozenset(self.before)) if self.before else (now,)


def majority(nodes: int) -> int:
    """How many of *nodes* are more than half."""
    return nodes // 2 + 1


def true_since(before: Optional[float], true: bool, now: float) -> Optional[float]:
    """Since when something has been *true* without a break; None while it is not."""
    return (now if before is None else before) if true else None
