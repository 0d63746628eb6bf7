"""What an agent tells of itself: the JSON document that it writes each second, and that `status` and `/state` show.

The agent fills it (``status.state``), the command line reads it; both by the keys that stand here. An agent of another
release may lack keys that were added since, or tell more, so a reader takes from it by ``get``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional, TypedDict, cast

from kubeadm_registry.agent.formats import Damaged, Format, Newer

FORMAT = Format("the agent's state")
#: The lists that it keeps on disk for people, and an entry of one of them (``kept``).
MOVES_FILE, SPACE_FILE = "moves.json", "space.json"
Entry = Mapping[str, Any]


class Vip(TypedDict):
    """The virtual IP; *moves_to* is the node that is to have it, while a planned move goes on."""

    addresses: list[str]
    held: bool
    moves_to: Optional[str]


class Process(TypedDict):
    """A process of this node: a Health, and the seconds that its newest answer took."""

    health: str
    seconds: Optional[float]


class Canary(TypedDict):
    """The known object: a Verdict, and the seconds that the newest good reads took."""

    verdict: str
    manifest_seconds: Optional[float]
    blob_seconds: Optional[float]


class Proxy(TypedDict):
    """One HAProxy; *corrections* counts how often its servers were not as they should be."""

    socket: str
    health: str
    corrections: int


class Writer(TypedDict):
    """The lease: who writes, where only one node may (*mode* "single"), and where retention acts.

    *role* is a Role, "writer" on the node that holds it; *epoch* the term of the newest holder known; *yields*: it is
    to be given up, as planned. Without a lease, as with the mode "any" in the first release, *role*, *timer* and
    *yields* are None.
    """

    mode: str
    role: Optional[str]
    term: int
    epoch: int
    vote: Optional[str]
    lease_seconds: Optional[float]
    timer: Optional[bool]
    yields: Optional[bool]


class Members(TypedDict):
    """The list of members that counts here."""

    generation: int
    digest: str


class Quorum(TypedDict):
    """How many nodes there are, are heard, and have a storage that answers."""

    nodes: int
    heard: int
    majority: bool
    storage: int


class Peer(TypedDict):
    """Another node: a Presence, a Level, and seconds."""

    address: str
    presence: str
    level: int
    age: Optional[float]
    round_trip: Optional[float]
    silences: int
    received: int
    refused: int
    clock_skew: Optional[float]


class Data(TypedDict):
    """The file system of the data directory: what its services may still use and all of it, in bytes and in inodes (0
    of how many where it has no table of them), and whether it can be written.
    """

    free: int
    size: int
    free_inodes: int
    inodes: int
    writable: bool


class Left(TypedDict):
    """What the storage has yet to bring to this node: blocks, and parts of tables that it has to compare with others.

    While another node is away, parts that this one has to compare with it are left as well.
    """

    blocks: int
    tables: int


class Queues(TypedDict):
    """What the storage of this node has in its books: *blocks* that it should have, *errors*: those that it failed to
    get, *entries* of tables that wait to be sent to other nodes, and *merkle*: those that no comparison counts yet.
    """

    blocks: int
    errors: int
    entries: int
    merkle: int


class Trend(TypedDict):
    """How the data disk fills: bytes that became fewer in a second (*rate*) *since* then, and when it is *full*.

    The rate is below zero while space becomes free; *full* None: not within years.
    """

    since: float
    rate: float
    full: Optional[float]


class Move(TypedDict):
    """The virtual IP or the lease (*what* "vip", "lease") came to this node (*here*) or left it, at *time*, and *why*.

    *other* is who had it before, or has it now, as far as this node knows. *seconds* nobody had it, where this node
    knows that. Not *exact*: the agent did not run then, and only saw it later.
    """

    time: float
    what: str
    here: bool
    why: str
    other: str
    seconds: Optional[float]
    exact: bool


class Done(TypedDict):
    """How often the agent did what, since it started."""

    read_resets: int
    connections_ended: int
    kills: dict[str, int]
    storage_connects: int
    storage_compares: int
    own_pauses: int
    fences: int
    guard_losses: int
    vip_taken: int
    lease_taken: int
    errors: int


class State(TypedDict):
    """The document. Times are seconds; *time* and those that *expire* are counted from 1970."""

    name: str
    address: str
    version: str
    instance: str
    time: float
    uptime: float
    level: int
    fit: bool
    good: bool
    conditions: list[str]
    vip: Vip
    frontend: Process
    storage: Optional[Process]
    canary: Optional[Canary]
    proxies: list[Proxy]
    reads_go_to: Optional[list[str]]
    writes_go_to: Optional[list[str]]
    writer: Writer
    members: Members
    clock_off: Optional[float]
    quorum: Quorum
    peers: dict[str, Peer]
    guarded: Optional[bool]
    can_destroy_connections: Optional[bool]
    certificate_expires: Optional[float]
    ca_expires: Optional[float]
    data: Optional[Data]
    storage_left: Optional[Left]
    storage_queues: Optional[Queues]
    storage_lost: Optional[int]
    data_trend: Optional[Trend]
    moves: list[Move]
    done: Done


def sealed(state: State) -> dict[str, Any]:
    """The document with its format, as it is written."""
    return FORMAT.seal(cast("dict[str, Any]", state))


#: What a reader counts on, where it is there at all.
_KINDS: dict[str, tuple[type, ...]] = {
    "time": (float, int), "level": (int,), "fit": (bool,), "conditions": (list,), "quorum": (dict,), "peers": (dict,),
    "clock_off": (float, int, type(None)), "guarded": (bool, type(None)), "data": (dict, type(None)),
    "storage_left": (dict, type(None)), "storage_queues": (dict, type(None)), "storage_lost": (int, type(None)),
    "data_trend": (dict, type(None)), "moves": (list,),
}  # fmt: skip


def read(text: str) -> Optional[State]:
    """The document that *text* is, of this release or another; None if it is none, or must not be read here."""
    try:
        values = FORMAT.parse(text).values
    except (Damaged, Newer):
        return None
    good = "time" in values and all(isinstance(values[key], kinds) for key, kinds in _KINDS.items() if key in values)
    return cast(State, values) if good else None
