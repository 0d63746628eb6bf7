"""What observations of the registry mean: conditions for the whole of it and for each node. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from kubeadm_registry.agent import reserve
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.operator.conditions import Verdict
from kubeadm_registry.operator.probes import Agent, Probe
from kubeadm_registry.pki import AUTHORITY_WARNING
from kubeadm_registry.printable import counted
from kubeadm_registry.status import CERTIFICATE_WARNING_DAYS, blocks_lost, members_differ

#: As the alerts RegistryDiskFills and RegistryDiskFull have it (manifests/monitoring/prometheus-rules.yaml).
FILLING, FULL, FULL_BYTES = reserve.FILLS, reserve.SHARE, reserve.LEAST
#: Seconds before a disk is full, as its agent forecasts it. Retention needs a trash's window to free anything.
SOON = 7 * 86400


@dataclass(frozen=True, slots=True)
class Seen:
    """A node as it was found: by a *probe* of its address, and by its *agent*, or why that said nothing."""

    name: str
    probe: Probe
    agent: Agent | str

    @property
    def says(self) -> Agent | None:
        """What the agent says, if it does."""
        return self.agent if isinstance(self.agent, Agent) else None


def of_node(seen: Seen, now: datetime) -> list[Verdict]:
    """The conditions of one node."""
    probe = seen.probe
    if probe.serves:
        available = Verdict("Available", True, "Serving", "it serves the canary image")
    else:
        available = Verdict("Available", _no(probe), probe.reason, probe.why)
    return [available, _degraded_node(seen), _copies(seen), _certificate(probe, now), _space(seen, now)]


def of_cluster(
    config: RegistryCluster, vip: Probe, nodes: Sequence[Seen], authority_ends: datetime, now: datetime
) -> list[Verdict]:
    """The conditions of the whole registry."""
    redundant = _redundant(config, nodes)
    return [
        _available(vip),
        _degraded(nodes),
        redundant,
        _can_lose_a_node(config, vip, nodes, redundant),
        _certificates(nodes, authority_ends, now),
        _filling(nodes, now),
        _split(nodes),
    ]


def unknown(reason: str, message: str, *more: str) -> list[Verdict]:
    """The conditions of a registry that cannot be looked at, and those called *more*."""
    kinds = ("Available", "Degraded", "RedundancyComplete", "CanLoseANode", "CertificatesValid", "StorageFilling",
             "SplitVIP", *more)  # fmt: skip
    return [Verdict(kind, None, reason, message) for kind in dict.fromkeys(kinds)]


def invalid(mine: Mapping[str, Any]) -> list[Verdict]:
    """The conditions of the object *mine*, which the operator cannot read: nobody looks whether what they said before
    is still so. What was freed last is."""
    said = [one["type"] for one in mine.get("status", {}).get("conditions", ())]
    text = "the RegistryCluster is not valid, so the operator does not check the registry"
    return unknown("Invalid", text, *(kind for kind in said if kind not in ("Adopted", "SpaceFreed")))


def _no(probe: Probe) -> bool | None:
    """A probe that was refused says nothing of the registry."""
    return None if probe.reason == "CredentialsRefused" else False


def _degraded_node(seen: Seen) -> Verdict:
    if not seen.probe.serves:
        return Verdict("Degraded", True, seen.probe.reason, seen.probe.why)
    says = seen.says
    if says is None:
        return Verdict("Degraded", None, "AgentSilent", f"its agent cannot be asked: {seen.agent}")
    if says.conditions:
        return Verdict("Degraded", True, "AgentReports", f"its agent reports {', '.join(sorted(says.conditions))}")
    if lost := says.values.get("storage_lost_blocks"):
        return Verdict("Degraded", True, "BlocksLost", blocks_lost(int(lost)))
    return Verdict("Degraded", False, "Healthy", "its agent reports nothing")


def _copies(seen: Seen) -> Verdict:
    kind = "RedundancyComplete"
    says = seen.says
    if says is None:
        return Verdict(kind, None, "AgentSilent", f"its agent cannot be asked: {seen.agent}")
    for name, text in (
        ("StorageDown", "its storage does not respond"),
        ("StoragePartial", "its storage does not reach all others"),
        ("StorageCopying", "its storage is still copying what it missed"),
    ):
        if name in says.conditions:
            return Verdict(kind, False, name, text)
    if says.values.get("data_writable") == 0:
        return Verdict(kind, False, "DiskUnwritable", "its data disk cannot be written")
    if says.values.get("data_free_inodes", 1) < reserve.FEW_INODES * says.values.get("data_inodes", 0):
        text = f"less than {reserve.FEW_INODES:.0%} of the inodes of its data disk are free"
        return Verdict(kind, False, "InodesExhausted", text)
    return Verdict(kind, True, "AllCopied", "its storage reaches all others and copies nothing")


def _certificate(probe: Probe, now: datetime) -> Verdict:
    kind = "CertificatesValid"
    if probe.reason == "NotTrusted":
        return Verdict(kind, False, "NotTrusted", probe.why)
    if probe.ends is None:
        return Verdict(kind, None, "NoCertificate", "it presented no certificate")
    days = (probe.ends - now).days
    text = f"it expires on {probe.ends:%Y-%m-%d}"
    if days < CERTIFICATE_WARNING_DAYS:
        return Verdict(kind, days >= 0, "EndsSoon" if days >= 0 else "Expired", f"{text}; run init")
    return Verdict(kind, True, "Valid", text)


def _space(seen: Seen, now: datetime) -> Verdict:
    kind = "StorageFilling"
    values = seen.says.values if seen.says is not None else {}
    free, size = values.get("data_free_bytes"), values.get("data_size_bytes")
    if free is None or not size:
        why = f"its agent cannot be asked: {seen.agent}" if seen.says is None else "its agent does not say"
        return Verdict(kind, None, "AgentSilent", why)
    text = f"{free / size:.0%} of {size / 1e9:.1f} GB are free"
    if free < size * FULL or free < FULL_BYTES:
        return Verdict(kind, True, "DiskFull", f"{text}; pushes fail soon")
    if free < size * FILLING:
        return Verdict(kind, True, "DiskFills", text)
    full = values.get("data_full_seconds")
    if full is not None and full - now.timestamp() < SOON:
        day = datetime.fromtimestamp(full, UTC)
        return Verdict(kind, True, "FullSoon", f"at the rate of the last days it is full about {day:%Y-%m-%d}")
    # Not the figure itself: it changes all the time, and each change would be a write to the API server.
    return Verdict(kind, False, "EnoughSpace", f"at least {FILLING:.0%} are free")


def _available(vip: Probe) -> Verdict:
    if vip.serves:
        return Verdict("Available", True, "Serving", f"the virtual IP serves the canary image{_by(vip)}")
    return Verdict("Available", _no(vip), vip.reason, f"at the virtual IP{_by(vip)}: {vip.why}")


def _by(vip: Probe) -> str:
    return f" on {vip.node}" if vip.node else ""


def _degraded(nodes: Sequence[Seen]) -> Verdict:
    wrong = [one for one in nodes if not one.probe.serves]
    if wrong:
        text = "; ".join(f"{one.name}: {one.probe.why}" for one in wrong)
        return Verdict("Degraded", True, wrong[0].probe.reason, text)
    told = {one.name: sorted(one.says.conditions) for one in nodes if one.says is not None and one.says.conditions}
    if told:
        text = "; ".join(f"the agent of {name} reports {', '.join(words)}" for name, words in told.items())
        return Verdict("Degraded", True, "AgentReports", text)
    if lost := max((one.says.values.get("storage_lost_blocks", 0) for one in nodes if one.says is not None), default=0):
        return Verdict("Degraded", True, "BlocksLost", blocks_lost(int(lost)))
    return _unless_silent("Degraded", nodes) or Verdict(
        "Degraded", False, "AllServe", f"all {counted(len(nodes), 'node')} serve, and no agent reports anything"
    )


def _redundant(config: RegistryCluster, nodes: Sequence[Seen]) -> Verdict:
    kind = "RedundancyComplete"
    if not config.spec.highly_available:
        return Verdict(kind, False, "OneNode", "there is only one node")
    verdicts = {one.name: _copies(one) for one in nodes}
    for name, verdict in verdicts.items():
        if verdict.status is False:
            return Verdict(kind, False, verdict.reason, f"{name}: {verdict.message}")
    unreachable = [one.name for one in nodes if one.probe.reason == "Unreachable" and one.says is None]
    if unreachable:
        return Verdict(kind, False, "NodeUnreachable", f"{', '.join(unreachable)} cannot be reached")
    return _unless_silent(kind, nodes) or Verdict(
        kind, True, "AllCopied", f"the storages of all {counted(len(nodes), 'node')} reach each other, none is copying"
    )


def _can_lose_a_node(config: RegistryCluster, vip: Probe, nodes: Sequence[Seen], redundant: Verdict) -> Verdict:
    kind = "CanLoseANode"
    if not config.spec.highly_available:
        return Verdict(kind, False, "OneServer", "there is only one node")
    for one in nodes:
        if one.probe.reason and _no(one.probe) is False:
            return Verdict(kind, False, "NodeNotServing", f"{one.name}: {one.probe.why}")
    if vip.reason and _no(vip) is False:
        return Verdict(kind, False, "VipNotServing", f"at the virtual IP: {vip.why}")
    lacking = None if redundant.status else Verdict(kind, redundant.status, redundant.reason, redundant.message)
    if (worst := _few_votes(nodes) or lacking) is not None:
        return worst
    if any(not one.probe.serves for one in nodes):
        return Verdict(kind, None, "CredentialsRefused", "the registry refuses the credentials of the operator")
    return Verdict(kind, True, "Redundant", "all nodes serve and storage is fully replicated")


def _few_votes(nodes: Sequence[Seen]) -> Verdict | None:
    """That an agent counts on fewer votes than there are nodes already."""
    for one in nodes:
        if one.says is not None and one.says.unheard:
            text = f"the agent of {one.name} does not hear {', '.join(sorted(one.says.unheard))}"
            return Verdict("CanLoseANode", False, "PeerSilent", text)
        if one.says is not None and "MembersDiffer" in one.says.conditions:
            return Verdict("CanLoseANode", False, "MembersDiffer", members_differ(one.name))
    return None


def _certificates(nodes: Sequence[Seen], authority_ends: datetime, now: datetime) -> Verdict:
    kind = "CertificatesValid"
    if authority_ends < now:
        return Verdict(kind, False, "AuthorityEnded", f"the CA expired on {authority_ends:%Y-%m-%d}")
    verdicts = [(one, _certificate(one.probe, now)) for one in nodes]
    for status in (False, None):
        for one, verdict in verdicts:
            if verdict.status is status:
                return Verdict(kind, status, verdict.reason, f"{one.name}: {verdict.message}")
    first = min((one for one in nodes if one.probe.ends), key=lambda one: str(one.probe.ends))
    soon = next((verdict.reason for _, verdict in verdicts if verdict.reason == "EndsSoon"), "")
    ends = f"the certificate of {first.name} expires first, on {first.probe.ends:%Y-%m-%d}; the CA on " \
           f"{authority_ends:%Y-%m-%d}"  # fmt: skip
    if soon:
        return Verdict(kind, True, soon, f"{ends}; run init")
    late: timedelta = authority_ends - now
    return Verdict(kind, True, "AuthorityEndsSoon" if late < AUTHORITY_WARNING else "Valid", ends)


def _filling(nodes: Sequence[Seen], now: datetime) -> Verdict:
    kind = "StorageFilling"
    verdicts = [(one.name, _space(one, now)) for one in nodes]
    for reason in ("DiskFull", "DiskFills", "FullSoon"):
        for name, verdict in verdicts:
            if verdict.reason == reason:
                return Verdict(kind, True, reason, f"{name}: {verdict.message}")
    return _unless_silent(kind, nodes) or Verdict(kind, False, "EnoughSpace", f"at least {FILLING:.0%} are free")


def _split(nodes: Sequence[Seen]) -> Verdict:
    holders = _holders(nodes)
    if len(holders) > 1:
        return Verdict("SplitVIP", True, "TwoHolders", f"{', '.join(holders)} all hold the virtual IP")
    return _unless_silent("SplitVIP", nodes) or Verdict(
        "SplitVIP", False, "OneHolder" if holders else "NoHolder", f"{holders[0] if holders else 'no node'} holds it"
    )


def _unless_silent(kind: str, nodes: Sequence[Seen]) -> Verdict | None:
    """The verdict where agents are silent, which would know."""
    silent = {one.name: one.agent for one in nodes if one.says is None}
    if not silent:
        return None
    return Verdict(kind, None, "AgentsSilent", "; ".join(f"the agent of {name} cannot be asked: {why}"
                                                         for name, why in silent.items()))  # fmt: skip


def holders(nodes: Sequence[Seen], vip: Probe) -> list[str]:
    """Who holds the virtual IP: by the agents, else by the certificate that is presented there."""
    return _holders(nodes) or ([vip.node] if vip.node else [])


def _holders(nodes: Sequence[Seen]) -> list[str]:
    """Those whose agents say that they hold it."""
    return [one.name for one in nodes if one.says is not None and one.says.holds_vip]
