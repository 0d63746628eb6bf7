"""The agent's state for people and machines: one JSON object, and Prometheus text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from kubeadm_registry.agent.config import Config
from kubeadm_registry.agent.document import Data, Left, Move, Queues, State, Trend, Writer
from kubeadm_registry.agent.model import Decisions, Health, Level, Memory, Presence, Role
from kubeadm_registry.agent.moving import NOTHING, Request
from kubeadm_registry.agent.peers import Links
from kubeadm_registry.agent.presence import LIVES
from kubeadm_registry.agent.probes import Probes


@dataclass
class Counters:
    """What the agent has done since it started."""

    read_resets: int = 0
    connections_ended: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    connects: int = 0
    compares: int = 0
    pauses: int = 0
    errors: int = 0
    fences: int = 0
    vip_taken: int = 0
    lease_taken: int = 0


@dataclass(frozen=True)
class Facts:
    """What the state holds beside memory and decisions."""

    version: str
    instance: str
    wall: float
    now: float
    holds_vip: bool
    expires: Optional[float]  # seconds since 1970
    can_destroy: Optional[bool]  # None: not tried yet
    seconds: dict[str, Optional[float]]  # newest answer of each probe took so long
    corrections: tuple[int, ...]  # of each HAProxy
    heard: dict[str, tuple[Optional[float], Optional[float], int, int]]  # age, round trip, received, refused
    wall_skew: dict[str, Optional[float]]
    timer_there: bool = False
    guarded: Optional[bool] = None  # None: not known yet, or nobody asked
    guard_losses: int = 0
    ca_expires: Optional[float] = None  # seconds since 1970
    data: Optional[Data] = None  # None: not known yet
    storage_left: Optional[Left] = None  # None: not known yet
    asked: Request = NOTHING  # what root asks for
    storage_queues: Optional[Queues] = None  # None: not known yet
    storage_lost: Optional[int] = None  # None: not known yet
    data_trend: Optional[Trend] = None  # None: not known yet
    moves: tuple[Move, ...] = ()  # the newest last
    never: frozenset[str] = frozenset()  # see ``never``


def seconds(probes: Probes) -> dict[str, Optional[float]]:
    """How long the newest answer to each probe took; None before the first."""

    def newest(seen: Any, enough: Optional[float]) -> Optional[float]:
        return None if enough is None else round(seen.seconds, 4)

    found = {"frontend": newest(probes.frontend, probes.frontend.answered)}
    if probes.storage is not None:
        found["storage"] = newest(probes.storage, probes.storage.answered)
    if probes.manifest is not None and probes.blob is not None:
        found["manifest"] = newest(probes.manifest, probes.manifest.good)
        found["blob"] = newest(probes.blob, probes.blob.good)
    return found


def hearing(
    links: Links, now: float
) -> tuple[dict[str, tuple[Optional[float], Optional[float], int, int]], dict[str, Optional[float]]]:
    """By peer: age of its newest heartbeat, round trip, received, refused; and how far its wall clock is off."""
    heard: dict[str, tuple[Optional[float], Optional[float], int, int]] = {}
    skew: dict[str, Optional[float]] = {}
    for name, link in links.links.items():
        inbox = link.inbox
        age = None if inbox.heard is None else round(now - inbox.heard, 3)
        trip = None if inbox.heard is None or inbox.echoed is None else round(inbox.heard - inbox.echoed, 3)
        heard[name] = (age, trip, link.received, link.refused)
        skew[name] = None if inbox.offset is None else round(-inbox.offset, 2)
    return heard, skew


def never(links: Links, now: float) -> frozenset[str]:
    """The peers that were never heard, and whose hosts do not say any more that they run without an agent."""
    return frozenset(
        name for name, link in links.links.items()
        if link.inbox.heard is None and (link.away is None or now - link.away >= LIVES)
    )  # fmt: skip


def sentence(memory: Memory, decisions: Decisions, config: Config, holds_vip: bool) -> str:
    """The state in one sentence."""
    fresh = sum(1 for one in memory.peers.values() if one.presence is Presence.FRESH)
    parts = [
        f"{config.name} is {'fit' if memory.fit else 'not fit'}, level {int(memory.level)}",
        f"hears {fresh} of {len(config.peers)} peers",
        "holds the VIP" if holds_vip else "does not hold the VIP",
    ]
    if config.settings.leased:
        parts.append(f"is {memory.lease.role.value}")
    if decisions.conditions:
        parts.append("conditions: " + ", ".join(decisions.conditions))
    return "; ".join(parts)


def state(memory: Memory, decisions: Decisions, config: Config, facts: Facts, counters: Counters) -> State:
    """What this agent sees. No secrets."""
    claim = memory.lease
    fresh = [name for name, one in memory.peers.items() if one.presence is Presence.FRESH]
    majority = (1 + len(config.peers)) // 2 + 1
    return {
        "name": config.name,
        "address": config.address,
        "version": facts.version,
        "instance": facts.instance,
        "time": round(facts.wall, 3),
        "uptime": round(facts.now - memory.started, 1),
        "level": int(memory.level),
        "fit": memory.fit,
        "good": memory.good,
        "conditions": list(decisions.conditions),
        "vip": {"addresses": list(config.vips), "held": facts.holds_vip, "moves_to": facts.asked.to or None},
        "frontend": {"health": memory.frontend.health.value, "seconds": facts.seconds.get("frontend")},
        "storage": None
        if config.storage is None
        else {"health": memory.storage.health.value, "seconds": facts.seconds.get("storage")},
        "canary": None
        if config.canary is None
        else {
            "verdict": memory.verdict.value,
            "manifest_seconds": facts.seconds.get("manifest"),
            "blob_seconds": facts.seconds.get("blob"),
        },
        "proxies": [
            {"socket": path, "health": one.health.value, "corrections": count}
            for path, one, count in zip(config.proxy.sockets, memory.proxies, facts.corrections)
        ],
        "reads_go_to": None if decisions.readers is None else sorted(decisions.readers),
        "writes_go_to": None if decisions.writers is None else sorted(decisions.writers),
        "writer": {
            "mode": config.writer,
            "role": claim.role.value if config.settings.leased else None,
            "term": claim.term,
            "epoch": claim.serving,
            "vote": claim.vote.candidate if claim.vote is not None else None,
            "lease_seconds": round(max(0.0, claim.until - facts.now), 2) if claim.role is Role.WRITER else None,
            "timer": facts.timer_there if config.settings.leased else None,
            "yields": facts.asked.yields if config.settings.leased else None,
        },
        "members": {"generation": config.generation, "digest": config.members.digest},
        "clock_off": None if memory.clock_off is None else round(memory.clock_off, 3),
        "quorum": {
            "nodes": 1 + len(config.peers),
            "heard": 1 + len(fresh),
            "majority": 1 + len(fresh) >= majority,
            "storage": sum(1 for name in fresh if decisions.levels.get(name, Level.SILENT) < Level.PROCESS)
            + (memory.level < Level.PROCESS),
        },
        "peers": {
            peer.name: {
                "address": peer.address,
                "presence": (Presence.UNHEARD if peer.name in facts.never else memory.peers[peer.name].presence).value,
                "level": int(decisions.levels.get(peer.name, Level.SILENT)),
                "age": facts.heard[peer.name][0],
                "round_trip": facts.heard[peer.name][1],
                "silences": memory.peers[peer.name].silences,
                "received": facts.heard[peer.name][2],
                "refused": facts.heard[peer.name][3],
                "clock_skew": facts.wall_skew.get(peer.name),
            }
            for peer in config.peers
            if peer.name in memory.peers
        },
        "guarded": facts.guarded,
        "can_destroy_connections": facts.can_destroy,
        "certificate_expires": facts.expires,
        "ca_expires": facts.ca_expires,
        "data": facts.data,
        "storage_left": facts.storage_left,
        "storage_queues": facts.storage_queues,
        "storage_lost": facts.storage_lost,
        "data_trend": facts.data_trend,
        "moves": list(facts.moves),
        "done": {
            "read_resets": counters.read_resets,
            "connections_ended": counters.connections_ended,
            "kills": counters.kills,
            "storage_connects": counters.connects,
            "storage_compares": counters.compares,
            "own_pauses": counters.pauses,
            "fences": counters.fences,
            "guard_losses": facts.guard_losses,
            "vip_taken": counters.vip_taken,
            "lease_taken": counters.lease_taken,
            "errors": counters.errors,
        },
    }


def _lease(writer: Writer) -> tuple[tuple[str, str, Optional[float]], ...]:
    """Name, text and value of the metrics about the lease; those of the one writer mean nothing where all may write."""
    holds, single = writer["role"] == Role.WRITER.value, writer["mode"] == "single"
    return (
        ("lease", "1 if this node holds the lease, under which retention acts.", holds),
        ("writer", "1 if this node is the one writer.", single and holds),
        ("epoch", "Epoch of the newest holder of the lease known.", writer["epoch"]),
        ("timer", "1 if the kernel ends what a stopped agent let write.", writer["timer"] if single else None),
    )


def _disk(state: State) -> Iterator[tuple[str, str, Optional[float]]]:
    """Name, text and value of the metrics about the data disk."""
    data, trend = state["data"], state["data_trend"]
    if data is not None:
        yield "data_free_bytes", "Free in the file system of the data directory.", data["free"]
        yield "data_size_bytes", "Size of the file system of the data directory.", data["size"]
        yield "data_free_inodes", "Free inodes of the file system of the data directory.", data["free_inodes"]
        yield "data_inodes", "Inodes of the file system of the data directory.", data["inodes"]
        yield "data_writable", "1 if a file can be created in the data directory, or could with room.", data["writable"]
    if trend is not None:
        yield "data_fill_bytes_per_second", "What became used a second in the last days.", trend["rate"]
        yield "data_full_seconds", "When it is full at that rate, seconds since 1970.", trend["full"]


def _storage(state: State) -> Iterator[tuple[str, str, Optional[float]]]:
    """Name, text and value of the metrics about what the storage has to heal, and about the VIP's last move."""
    left, queues = state["storage_left"], state["storage_queues"]
    if left is not None:
        yield "storage_left_blocks", "Blocks that the storage has yet to bring to this node.", left["blocks"]
        yield "storage_left_tables", "Parts of tables that it has yet to compare with other nodes.", left["tables"]
    if (lost := state["storage_lost"]) is not None:
        yield "storage_lost_blocks", "Blocks that this node should have, and no node has.", lost
    if queues is not None:
        yield "storage_blocks", "Blocks that this node should have.", queues["blocks"]
        yield "storage_errors", "Blocks that the storage failed to bring to this node.", queues["errors"]
        yield "storage_queued_entries", "Entries of tables that wait to be sent to other nodes.", queues["entries"]
    came = [move for move in state["moves"] if move["what"] == "vip" and move["here"]]
    yield "vip_gap_seconds", "Without a holder, before the VIP last came here.", came[-1]["seconds"] if came else None


def metrics(state: State, cpu: float) -> str:
    """The state as Prometheus text (version 0.0.4)."""
    lines: list[str] = []

    def gauge(name: str, text: str, values: list[tuple[str, Any]], kind: str = "gauge") -> None:
        known = [(labels, value) for labels, value in values if value is not None]
        if not known:
            return
        full = f"kubeadm_registry_agent_{name}"
        lines.extend((f"# HELP {full} {text}", f"# TYPE {full} {kind}"))
        lines.extend(f"{full}{labels} {float(value):.15g}" for labels, value in known)

    def one(name: str, text: str, value: Any, kind: str = "gauge") -> None:
        gauge(name, text, [("", value)], kind)

    peers: Mapping[str, Mapping[str, object]] = state["peers"]
    done: Mapping[str, object] = state["done"]
    one("level", "How well this node serves reads: 0 fit, 1 chain, 2 process.", state["level"])
    one("fit", "1 if this node may hold the VIP.", state["fit"])
    one("vip_held", "1 if this node has the VIP.", state["vip"]["held"])
    for name, text, value in _lease(state["writer"]):
        one(name, text, value)
    one("clock_off_seconds", "Wall clock against the median of a majority's.", state["clock_off"])
    one("majority", "1 if more than half of the nodes are heard.", state["quorum"]["majority"])
    one("certificate_expires_seconds", "End of the node certificate, seconds since 1970.", state["certificate_expires"])
    one("ca_expires_seconds", "End of the cluster CA, seconds since 1970.", state["ca_expires"])
    for name, text, value in (*_disk(state), *_storage(state)):
        one(name, text, value)
    one("guarded", "1 if the nft rules on loopback are loaded.", state["guarded"])
    one("can_destroy_connections", "1 if the kernel lets the agent end connections.", state["can_destroy_connections"])
    healths: list[tuple[str, Any]] = [('{process="frontend"}', state["frontend"]["health"] == Health.OK.value)]
    if state["storage"] is not None:
        healths.append(('{process="storage"}', state["storage"]["health"] == Health.OK.value))
    healths += [
        (f'{{process="proxy-{index}"}}', proxy["health"] == Health.OK.value)
        for index, proxy in enumerate(state["proxies"], 1)
    ]
    gauge("healthy", "1 if the process answers in time.", healths)
    probes: list[tuple[str, Any]] = [('{probe="frontend"}', state["frontend"]["seconds"])]
    if state["storage"] is not None:
        probes.append(('{probe="storage"}', state["storage"]["seconds"]))
    if state["canary"] is not None:
        probes.append(('{probe="manifest"}', state["canary"]["manifest_seconds"]))
        probes.append(('{probe="blob"}', state["canary"]["blob_seconds"]))
    gauge("probe_seconds", "What the newest answer took.", probes)
    for key, text in (
        ("level", "How well a peer serves reads; 3 is silent."),
        ("age", "Seconds since a peer was heard."),
        ("round_trip", "Seconds from a heartbeat to the one that answers it."),
    ):
        gauge(f"peer_{key}", text, [(f'{{peer="{name}"}}', peer[key]) for name, peer in peers.items()])
    for key, text in (
        ("silences", "Times that a peer stopped sending heartbeats."),
        ("received", "Datagrams from a peer."),
        ("refused", "Datagrams from a peer that were not believed."),
    ):
        values = [(f'{{peer="{name}"}}', peer[key]) for name, peer in peers.items()]
        gauge(f"peer_{key}_total", text, values, "counter")
    gauge("condition", "1 for each condition that holds.", [(f'{{name="{name}"}}', 1) for name in state["conditions"]])
    for key, text in (
        ("read_resets", "Times that waiting reads were reset."),
        ("connections_ended", "TCP connections ended."),
        ("storage_connects", "Times that the storage was told to connect to its peers."),
        ("storage_compares", "Times that the storage was told to compare its tables with its peers'."),
        ("own_pauses", "Times that the agent itself was not run."),
        ("fences", "Attempts to end what could act under the lease, also where nothing was there."),
        ("vip_taken", "Times that the VIP came to this node."),
        ("lease_taken", "Times that the lease came to this node."),
        ("guard_losses", "Times that the nft rules on loopback were changed or lost, and loaded again."),
        ("errors", "Things that the agent could not do."),
    ):
        one(f"{key}_total", text, done[key], "counter")
    kills = [(f'{{process="{name}"}}', count) for name, count in state["done"]["kills"].items()]
    gauge("kills_total", "Hung processes killed.", kills, "counter")
    corrections = [(f'{{proxy="{index}"}}', one["corrections"]) for index, one in enumerate(state["proxies"], 1)]
    gauge("proxy_corrections_total", "Times that HAProxy's servers were not as they should be.", corrections, "counter")
    one("cpu_seconds_total", "CPU time of the agent.", cpu, "counter")
    return "\n".join(lines) + "\n"
