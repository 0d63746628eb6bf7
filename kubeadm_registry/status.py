"""How the cluster is: asked of every host that answers, judged by pure functions, shaped like a resource's status."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kubeadm_registry import certificates, paths, pki
from kubeadm_registry.access.following import Follower
from kubeadm_registry.access.session import Prompts
from kubeadm_registry.agent import volume
from kubeadm_registry.agent.document import Move, State
from kubeadm_registry.agent.timings import Timings
from kubeadm_registry.certificates import Certificates
from kubeadm_registry.components.certificates import SOON
from kubeadm_registry.components.health import fresh
from kubeadm_registry.components.services import backend, services
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.errors import Error
from kubeadm_registry.printable import counted
from kubeadm_registry.transport.host import Host, has_address, side_by_side

CERTIFICATE_WARNING_DAYS = SOON.days
#: Failovers that are told of, the newest.
FAILOVERS = 10
#: Seconds between what two nodes noted of the same failover: their clocks differ, and a node without power notes late.
_SAME = 30.0


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What one node said, and in *trouble* what it could not say. Not *reachable*: nothing."""

    name: str
    reachable: bool = True
    trouble: str = ""
    services: Mapping[str, str] = field(default_factory=dict)
    """``active``, ``failed``, ... by service; of several processes the worst."""
    agent: State | None = None
    """The agent's state; None if it tells none, or an old one."""
    vip: tuple[str, ...] = ()
    """The addresses of the virtual IP that it has."""
    certificate_ends: datetime | None = None
    """The end of the certificate that is served."""
    authority_ends: datetime | None = None
    certificate_flaw: tuple[str, str] | None = None
    """What is wrong with what is served: in one word, and in a sentence that begins with the node's name."""
    guarded: bool | None = None
    """Whether the nft rules that guard loopback are loaded."""
    read_only: bool = False
    """Whether its data directory is mounted so, or its agent cannot write there."""


CLOCK_OFF = Timings().clock_off  # seconds
#: ``$1`` the agent's state, ``$2`` the guard's nft table, ``$3`` the data directory, ``$4...`` units. One round trip.
_ASK = """
state=$1 table=$2 data=$3; shift 3
systemctl show --property=Id,ActiveState -- "$@"
echo ---
date +%s.%N
nft list table inet "$table" 2>/dev/null | grep -c dport || :
echo "$(timeout 5 findmnt --noheadings --output OPTIONS --target "$data" 2>/dev/null | tail -n 1)"
cat -- "$state" 2>/dev/null || :
"""


def observe(config: RegistryCluster, host: Host) -> NodeStatus:
    """Ask *host* for everything. A host that fails to answer is an observation too."""
    units = {service.name: service.units for service in services(config.spec)}
    try:
        flat = [config.spec.data_directory, *(unit for group in units.values() for unit in group)]
        answer = host.query("sh", "-c", _ASK, "status", paths.AGENT_STATE, paths.PREFIX, *flat, timeout=15)
        shown, _, rest = answer.stdout.decode(errors="replace").partition("---\n")
        now, rules, options, state = (*rest.split("\n", 3), "", "", "")[:4]
        seen, trouble = _certificates_of(host)
        return NodeStatus(
            host.name,
            trouble=trouble,
            services=_states(units, shown),
            agent=(agent := fresh(state, float(now))),
            vip=tuple(address for address in config.spec.vip.addresses if has_address(host, address)),
            certificate_ends=seen.ends,
            authority_ends=seen.authority_ends,
            certificate_flaw=(seen.reason, f"{host.name} {seen.flaw}") if seen.reason else None,
            guarded=int(rules) > 0,
            read_only=volume.refuses(options.strip(), agent),
        )
    except (Error, ValueError) as error:
        return NodeStatus(host.name, reachable=False, trouble=str(error))


def _certificates_of(host: Host) -> tuple[Certificates, str]:
    """The certificates of a host, and what hinders to read them."""
    try:
        return certificates.look(host), ""
    except ValueError as error:
        return Certificates(), str(error)


def _states(units: Mapping[str, Sequence[str]], shown: str) -> dict[str, str]:
    active = {}
    for block in shown.strip().split("\n\n"):
        values = dict(line.partition("=")[::2] for line in block.splitlines())
        state = values.get("ActiveState", "unknown")
        active[values.get("Id", "")] = "active" if state == "reloading" else state
    states = {}
    for service, members in units.items():
        wrong = [active.get(unit, "unknown") for unit in members if active.get(unit) != "active"]
        states[service] = wrong[0] if wrong else "active"
    return states


def gather(config: RegistryCluster, hosts: Sequence[Host], unreachable: Mapping[str, str]) -> list[NodeStatus]:
    """Observe all *hosts* side by side; add those that are *unreachable*, with the reason. In the order of the file."""
    return _in_order(config, side_by_side(lambda host: observe(config, host), hosts), unreachable)


def follow(config: RegistryCluster, hosts: Sequence[Host], prompts: Prompts) -> Follower[NodeStatus]:
    """What observes all nodes again and again; ``followed`` makes of its answers what ``gather`` returns."""
    return Follower(config, hosts, prompts, lambda host: observe(config, host), lambda one: not one.reachable)


def followed(config: RegistryCluster, follower: Follower[NodeStatus], patience: float) -> list[NodeStatus]:
    """One round. A node that does not answer within *patience* seconds counts as unreachable."""
    return _in_order(config, *follower.look(patience))


def _in_order(config: RegistryCluster, said: Sequence[NodeStatus], silent: Mapping[str, str]) -> list[NodeStatus]:
    seen = {one.name: one for one in said}
    for name, reason in silent.items():
        seen[name] = NodeStatus(name, reachable=False, trouble=reason)
    return [seen[node.name] for node in config.spec.nodes]


def judge(config: RegistryCluster, seen: Sequence[NodeStatus], now: float | None = None) -> dict[str, Any]:
    """The status of the cluster, in the shape of the custom resource's status: conditions, vip, nodes."""
    moment = datetime.fromtimestamp(time.time() if now is None else now, UTC)
    vip = config.spec.vip
    holders, *others = ([one.name for one in seen if address in one.vip] for address in vip.addresses)
    # keepalived moves them together.
    astray = [address for address, there in zip(vip.addresses[1:], others, strict=True) if there != holders]
    conditions = [
        _available(config, seen, holders, astray),
        _can_lose_a_node(config, seen, holders),
        _storage_whole(config, seen),
        _certificates(seen, moment),
        _clocks(seen),
        _guarded(seen),
        *_blocks(seen),
    ]
    return {
        "conditions": conditions,
        "vip": {"address": vip.address, "holder": holders[0] if len(holders) == 1 else None},
        "nodes": [_node(one, moment, backend(config.spec).BLOCK) for one in seen],
        "failovers": failovers(seen),
        "time": _rfc3339(moment),
    }


def unlisted(config: RegistryCluster, seen: Sequence[NodeStatus]) -> dict[str, str]:
    """Nodes of the registry, by their agents, that the cluster file does not list, with their addresses: it is old."""
    listed = {node.name for node in config.spec.nodes}
    members = [one for one in seen if "Removed" not in _conditions(one)]
    told = [peer for one in members if one.agent is not None for peer in one.agent.get("peers", {}).items()]
    return {name: str(peer.get("address", "")) for name, peer in told if name not in listed and isinstance(peer, dict)}


def _other_file(config: RegistryCluster, seen: Sequence[NodeStatus]) -> str:
    names = ", ".join(sorted(unlisted(config, seen)))
    return f"{names}: in the registry, but not in the cluster file, which is out of date" if names else ""


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def failovers(seen: Sequence[NodeStatus]) -> list[dict[str, Any]]:
    """When the virtual IP or the lease came to another node, as the agents noted it; the newest first.

    ``seconds`` nobody had it, within the interval of the heartbeats; None: nobody knows. ``cause`` is in the words of
    the node that lost it, where that one could note it, else of the one that got it. Not ``exact``: the agent did not
    run then, and ``time`` is when it started.
    """
    noted = [
        (one.name, move)
        for one in seen
        if one.agent is not None
        for move in one.agent.get("moves", ())
        if isinstance(move, dict) and isinstance(move.get("time"), (int, float))
    ]
    came = sorted((one for one in noted if one[1].get("here") is True), key=lambda one: one[1]["time"])
    return [_failover(name, move, noted) for name, move in reversed(came[-FAILOVERS:])]


def _failover(name: str, move: Move, noted: Sequence[tuple[str, Move]]) -> dict[str, Any]:
    before, cause = move.get("other") or None, str(move.get("why", ""))
    left = [
        other
        for node, other in noted
        if node == before and other.get("what") == move.get("what") and other.get("here") is False
        and other.get("exact") is True and abs(other["time"] - move["time"]) <= _SAME
    ]  # fmt: skip
    if left:
        nearest = min(left, key=lambda one: abs(one["time"] - move["time"]))
        cause = f"{before}: {nearest.get('why', '')}"
    return {
        "time": _rfc3339(datetime.fromtimestamp(move["time"], UTC)),
        "what": move.get("what"),
        "from": before,
        "to": name,
        "seconds": move.get("seconds"),
        "cause": cause,
        "exact": move.get("exact") is not False,
    }


def _condition(kind: str, status: bool | None, reason: str, message: str) -> dict[str, str]:
    """A condition by Kubernetes' API conventions; None is "Unknown"."""
    return {"type": kind, "status": "Unknown" if status is None else str(status), "reason": reason, "message": message}


def _fit(one: NodeStatus) -> bool:
    return one.agent is not None and bool(one.agent.get("fit"))


def _node(one: NodeStatus, now: datetime, block: int) -> dict[str, Any]:
    """What is told of a node. A block of its storage has *block* bytes at most."""
    node: dict[str, Any] = {
        "name": one.name,
        "reachable": one.reachable,
        "fit": _fit(one),
        "services": dict(one.services),
    }
    if one.trouble:
        node["message"] = one.trouble
    if one.agent is not None:
        node["level"] = one.agent.get("level")
        node["conditions"] = list(one.agent.get("conditions", ()))
        node.update(_figures(one.agent, block))
    if one.certificate_ends is not None:
        node["certificateExpires"] = _rfc3339(one.certificate_ends)
        node["certificateDays"] = (one.certificate_ends - now).days
    if one.authority_ends is not None:
        node["authorityExpires"] = _rfc3339(one.authority_ends)
        node["authorityDays"] = (one.authority_ends - now).days
    return node


def _figures(agent: State, block: int) -> dict[str, Any]:
    """What an agent counts and measures. What an older one does not tell is left out."""
    found: dict[str, Any] = {}
    if (version := agent.get("version")) is not None:
        found["agentVersion"] = version
    if (off := agent.get("clock_off")) is not None:
        found["clockOff"] = off
    if (left := agent.get("storage_left")) is not None:
        blocks = left.get("blocks", 0)
        found["toHeal"] = {"blocks": blocks, "bytes": blocks * block, "tables": left.get("tables", 0)}
        if (lost := agent.get("storage_lost")) is not None:
            found["toHeal"] |= {"lost": lost}
        if (queues := agent.get("storage_queues")) is not None:
            found["toHeal"] |= {"errors": queues.get("errors", 0), "entries": queues.get("entries", 0)}
    if (data := agent.get("data")) is not None and "free" in data and "size" in data:
        found["disk"] = {"free": data["free"], "size": data["size"]}
        if (trend := agent.get("data_trend")) is not None:
            full = trend.get("full")
            found["disk"] |= {
                "bytesPerDay": round(trend.get("rate", 0) * 86400),
                "since": _rfc3339(datetime.fromtimestamp(trend.get("since", 0), UTC)),
                "full": None if full is None else _rfc3339(datetime.fromtimestamp(full, UTC)),
            }
    return found


def _available(
    config: RegistryCluster, seen: Sequence[NodeStatus], holders: Sequence[str], astray: Sequence[str]
) -> dict[str, str]:
    if all(one.reachable and "active" not in one.services.values() for one in seen):
        text = "no registry service runs on any node; run `kubeadm-registry init`"
        return _condition("Available", False, "NotInstalled", text)
    if len(holders) > 1:
        return _condition("Available", False, "TwoHolders", f"{', '.join(holders)} all hold the virtual IP")
    if holders and astray:
        text = f"{holders[0]} holds the virtual IP, but {', '.join(astray)} is missing there or also on another node"
        return _condition("Available", False, "AddressAstray", text)
    return _serving(config, seen, holders[0]) if holders else _not_held(config, seen)


def _not_held(config: RegistryCluster, seen: Sequence[NodeStatus]) -> dict[str, str]:
    """Whether somebody holds the virtual IP, which no node does that answers."""
    if silent := [one.name for one in seen if not one.reachable]:
        text = f"no reachable node holds the virtual IP; {', '.join(silent)} cannot be reached"
        return _condition("Available", None, "HolderUnknown", text)
    if text := _other_file(config, seen):
        return _condition("Available", None, "HolderUnlisted", f"no listed node holds the virtual IP; {text}")
    return _condition("Available", False, "NoHolder", "no node holds the virtual IP")


def _serving(config: RegistryCluster, seen: Sequence[NodeStatus], name: str) -> dict[str, str]:
    """What the holder *name* of the virtual IP is worth."""
    if all(_conditions(one) & _UNREADABLE for one in seen):
        text = "no node can read the canary image, so other images may be lost"
        return _condition("Available", False, "CanaryUnreadable", text)
    holder = next(one for one in seen if one.name == name)
    if not _fit(holder):
        return _condition("Available", False, "HolderUnfit", f"{name} holds the virtual IP but does not serve reads")
    # It keeps the address, since nobody is better; its storage waits for a second copy of whatever it is asked for.
    # With more nodes than copies that may go well for the canary image, and not for others.
    count = len(config.spec.nodes) + len(unlisted(config, seen))
    few = count > 1 and holder.agent is not None and (reached := _reached(holder.agent)) < count - 1
    if few and (count > backend(config.spec).copies(count) or "ChainSlow" in _conditions(holder)):
        text = f"{name} holds the virtual IP, but reaches {reached} of {count} storage nodes; reads need two copies"
        return _condition("Available", False, "NoReadQuorum", text)
    return _condition("Available", True, "Serving", f"{name} holds the virtual IP and serves reads")


def _can_lose_a_node(config: RegistryCluster, seen: Sequence[NodeStatus], holders: Sequence[str]) -> dict[str, str]:
    if text := _other_file(config, seen):
        return _condition("CanLoseANode", False, "NodeUnlisted", text)
    for reason, obstacle in _obstacles(config, seen, holders):
        return _condition("CanLoseANode", False, reason, obstacle)
    return _condition("CanLoseANode", True, "Redundant", "all nodes are healthy and storage is fully replicated")


def _obstacles(
    config: RegistryCluster, seen: Sequence[NodeStatus], holders: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Why no server may be lost, the gravest first."""
    if not config.spec.highly_available:
        yield "OneServer", "there is only one node"
    for one in seen:
        if not one.reachable:
            yield "NodeUnreachable", f"{one.name} cannot be reached"
        for name, state in one.services.items():
            if state != "active":
                yield "ServiceDown", f"{name} on {one.name} is {state}"
    for one in seen:
        if not _fit(one):
            yield "NodeUnfit", f"{one.name} does not serve reads"
        if _conditions(one) & _UNREADABLE:
            yield "CanaryUnreadable", f"{one.name} cannot read the canary image, so other images may be lost there too"
    if (whole := _storage_whole(config, seen))["status"] != "True":
        yield "StorageNotWhole", whole["message"]
    for one in seen:
        if "MembersDiffer" in _conditions(one):
            yield "MembersDiffer", members_differ(one.name)
    yield from _without_writer(seen)
    if len(holders) != 1:
        yield "NoHolder", "the virtual IP is not held by exactly one node"


#: What an agent says of a node that does not take the lease.
_BARRED = frozenset({"ClockOff", "NoTimer"})


def _without_writer(seen: Sequence[NodeStatus]) -> Iterator[tuple[str, str]]:
    """Where only one node may write: why none does, or none would without the one that does."""
    said = [one.agent.get("writer", {}) for one in seen if one.agent is not None]
    if len(said) < len(seen) or any(one.get("mode") != "single" for one in said):
        return
    if all(one.get("role") != "writer" for one in said):
        yield "NoWriter", "no node has the lease, so no node accepts pushes"
    able = [one.name for one in seen if not _conditions(one) & _BARRED]
    if len(able) < 2:
        yield "OneWriter", f"{f'only {able[0]}' if able else 'no node'} can become writer; see `doctor`"


#: What an agent says of a node that does not find the canary image in the storage.
_UNREADABLE = frozenset({"CanaryBroken", "CanaryMissing"})


def _conditions(one: NodeStatus) -> set[str]:
    """The conditions that the agent of a node reports."""
    return set() if one.agent is None else set(one.agent.get("conditions", ()))


def _reached(agent: State) -> int:
    """How many storages an agent reaches; none if it does not tell."""
    quorum = agent.get("quorum")
    return 0 if quorum is None else int(quorum.get("storage", 0))


def _storage_whole(config: RegistryCluster, seen: Sequence[NodeStatus]) -> dict[str, str]:
    """As the agents see it: Garage itself calls a silently dead server healthy for over a minute."""
    wanted = len(config.spec.nodes) + len(unlisted(config, seen))
    counts = {one.name: _reached(one.agent) for one in seen if one.agent is not None}
    if not counts:
        return _condition("StorageWhole", None, "NoAgent", "no node agent is reporting")
    least = min(counts, key=lambda name: counts[name])
    if len(counts) == len(config.spec.nodes) and counts[least] == wanted:
        for one in seen:
            if one.read_only:
                text = f"{one.name} stores nothing, because its data disk cannot be written; see `doctor`"
                return _condition("StorageWhole", False, "ReadOnly", text)
            if "StorageCopying" in _conditions(one):
                left = (one.agent.get("storage_left") if one.agent is not None else None) or {"blocks": 0, "tables": 0}
                text = (
                    f"{one.name} is still copying what it missed: {counted(left['blocks'], 'block')} and "
                    f"{counted(left['tables'], 'part')} of tables left"
                )
                return _condition("StorageWhole", False, "Copying", text)
        if text := _other_file(config, seen):
            return _condition("StorageWhole", None, "NodeUnlisted", text)
        return _condition("StorageWhole", True, "AllServe", f"all {wanted} storage nodes respond, and none is copying")
    text = f"{least} reaches {counts[least]} of {wanted} storage nodes"
    return _condition("StorageWhole", False, "ServersMissing", text)


def members_differ(name: str) -> str:
    """That of the votes that the node *name* hears one does not count, which are too few where another is lost."""
    return (
        f"{name} hears a node with another list of members, whose vote does not count there; finish the change of "
        "members: run `init`"
    )


def blocks_lost(count: int) -> str:
    """That no node has so many blocks, and what is to be done about it."""
    return (
        f"no node has {counted(count, 'block')} that images need; "
        "run `recover` with the bundles that have these images, which loads them again and names the others"
    )


def _blocks(seen: Sequence[NodeStatus]) -> Iterator[dict[str, str]]:
    """Whether each block is on some node, if an agent says so: one of an older release does not.

    A node that lacks a block which another one has is still copying.
    """
    kind = "BlocksPresent"
    counts = [count for one in seen if one.agent is not None and (count := one.agent.get("storage_lost")) is not None]
    # Of three nodes each should have every block, of more each a part of them.
    if most := max(counts, default=0):
        yield _condition(kind, False, "BlocksLost", blocks_lost(most))
    elif counts:
        yield _condition(kind, True, "AllPresent", "every block that images need is on at least one node")


def _certificates(seen: Sequence[NodeStatus], now: datetime) -> dict[str, str]:
    """As clients see them, so by what is served. Nothing is worth more than the authority."""
    kind = "CertificatesValid"
    ends = {one.name: one.certificate_ends for one in seen if one.certificate_ends is not None}
    if not ends:
        return _condition(kind, None, "NoCertificate", "no node presented a certificate")
    first = min(ends, key=lambda name: ends[name])
    days = (ends[first] - now).days
    text = f"the certificate of {first} expires first, on {ends[first]:%Y-%m-%d}, in {days} days"
    last = min((one.authority_ends for one in seen if one.authority_ends is not None), default=None)
    if last is not None:
        text += f"; the CA expires on {last:%Y-%m-%d}"
    flaws = dict(one.certificate_flaw for one in seen if one.certificate_flaw is not None)
    served = (("OtherAuthority", False), ("NotSeen", None), ("NotLoaded", True))
    # The gravest first.
    verdicts: list[tuple[bool, bool | None, str, str]] = [
        (last is not None and last < now, False, "AuthorityEnded", f"{text}: clients reject every certificate"),
        (days < 0, False, "Expired", text),
        *((reason in flaws, status, reason, f"{flaws.get(reason)}; run init") for reason, status in served),
        (days < CERTIFICATE_WARNING_DAYS, True, "EndsSoon", f"{text}; run init"),
        (last is not None and last - now < pki.AUTHORITY_WARNING, True, "AuthorityEndsSoon", text),
        (True, True, "Valid", text),
    ]
    return next(_condition(kind, status, reason, words) for holds, status, reason, words in verdicts if holds)


def _clocks(seen: Sequence[NodeStatus]) -> dict[str, str]:
    """Whether the servers' clocks agree: the storage takes the write with the latest time for the newest."""
    kind = "ClocksAgree"
    off = {one.name: one.agent.get("clock_off") for one in seen if one.agent is not None}
    known = {name: float(seconds) for name, seconds in off.items() if isinstance(seconds, (int, float))}
    if not known:
        return _condition(kind, None, "NoAgent", "no node agent reports its clock offset")
    wrong = [f"{name} is {seconds:.1f} s off" for name, seconds in known.items() if seconds > CLOCK_OFF]
    if wrong:
        text = f"{', '.join(wrong)} and does not become writer; check time synchronization (chronyc tracking)"
        return _condition(kind, False, "ClockOff", text)
    return _condition(kind, True, "InStep", f"all clocks agree within {max(known.values()):.2f} s")


def _guarded(seen: Sequence[NodeStatus]) -> dict[str, str]:
    """By the rules in the kernel, and by the agents, which know how many there should be."""
    known = [one for one in seen if one.guarded is not None]
    if not known:
        return _condition("LoopbackGuarded", None, "NoAnswer", "no node could be queried for its nft rules")
    bare = [one.name for one in known if not one.guarded or (one.agent and one.agent.get("guarded") is False)]
    if bare:
        return _condition(
            "LoopbackGuarded", False, "RulesMissing",
            f"nft rules of {paths.PREFIX} are missing on {', '.join(bare)}: local users may push there and "
            "reach the storage; run init",
        )  # fmt: skip
    text = "the firewall rules are loaded on every node that responds"
    return _condition("LoopbackGuarded", True, "RulesLoaded", text)


def condition(status: Mapping[str, Any], kind: str) -> str:
    """The value of a condition: ``True``, ``False`` or ``Unknown``."""
    return next(str(one["status"]) for one in status["conditions"] if one["type"] == kind)
