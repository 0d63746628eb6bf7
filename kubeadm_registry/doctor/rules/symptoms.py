"""What does not work, as the agents see it: where a rule above found why, this adds nothing, or says what follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kubeadm_registry import paths
from kubeadm_registry.components import agent, haproxy
from kubeadm_registry.components.services import backend, frontend
from kubeadm_registry.doctor.finding import Command, Finding, Kind, here, limited
from kubeadm_registry.doctor.rules.nodes import blocking_vrrp
from kubeadm_registry.doctor.snapshot import NodeSnapshot, Snapshot
from kubeadm_registry.status import condition

AGENT_SILENT = Kind("AgentSilent", "error", "The node counts as unhealthy and cannot hold the virtual IP.")
NOT_SERVING = Kind("NodeUnfit", "error", "The node does not serve pulls; the others do, and none of them may fail.")
HANGS = Kind("ServiceHangs", "error", "It does not respond; the agent restarts it if it uses no processor time.")
STORAGE_PARTIAL = Kind("StoragePartial", "error", "New images have fewer copies, and another failure loses pushes.")
COPYING = Kind("StorageCopying", "warning", "No other node may fail until it has caught up. No action is needed.")
CANARY_MISSING = Kind(
    "CanaryMissing", "error",
    "Other images may be lost too. If only this one was deleted, no node notices when its storage returns wrong data.",
)  # fmt: skip
CANARY_BROKEN = Kind("CanaryBroken", "error", "Other images may be unreadable through this node as well.")
NO_MAJORITY = Kind("NoMajority", "error", "The node hears too few others; it neither writes nor leads.")
MEMBERS_DIFFER = Kind("MembersDiffer", "error", "Nodes disagree on who is a member, so no writer is elected.")
NO_TIMER = Kind("NoTimer", "error", "The kernel's timer does not respond, so the node does not become writer.")
HOLDER_HIDDEN = Kind("HiddenHolder", "error", "Another node, which this one cannot hear, holds the virtual IP.")
ADVERTS_LOST = Kind(
    "AdvertsLost", "error", "The node avoids the virtual IP; if the holder failed, it would take over one second late."
)
UNHEALTHY = Kind("StatusNotHealthy", "error", "`kubeadm-registry status` reports it.")


def agents(snapshot: Snapshot) -> Iterator[Finding]:
    """Every agent tells that its node is well."""
    for node, _ in snapshot.answering:
        if not node.installed:
            continue
        if node.silent:
            unit = node.unit(agent.UNIT)
            if unit is not None and unit.active:
                yield Finding(
                    AGENT_SILENT, node.name, "its agent runs, but has not written its state for 5 s",
                    [f"{paths.AGENT_STATE}: absent or old", unit.line("ActiveState", "SubState")],
                    (Command(node.name, f"df {paths.RUN}  # if full, free space: an agent starts as unhealthy"),
                     Command(node.name, f"systemctl restart {agent.UNIT}")), symptom=True,
                )  # fmt: skip
            continue
        yield from _conditions(snapshot, node)


def _conditions(snapshot: Snapshot, node: NodeSnapshot) -> Iterator[Finding]:
    spec = snapshot.config.spec
    registry, storage = frontend(spec).SERVICE.unit, backend(spec).SERVICE.unit
    restart: Mapping[str, str] = {"FrontendDown": registry, "StorageDown": storage, "ProxyDown": haproxy.SERVICE.unit,
                                  "ProxyPartial": haproxy.SERVICE.unit}  # fmt: skip
    found = node.conditions
    shown = [f"{paths.AGENT_STATE}: conditions={', '.join(sorted(found))}"]
    for name, unit in restart.items():
        if name in found:
            yield Finding(HANGS, node.name, f"{unit} runs, but does not answer ({name})", shown,
                          (Command(node.name, f"systemctl restart {unit}"),), subject=unit, symptom=True)  # fmt: skip
    others = {
        "StoragePartial": (STORAGE_PARTIAL, "its storage does not reach all others", here("init phase backend")),
        "CanaryBroken": (CANARY_BROKEN, "it cannot read the canary image, or reads a wrong one", here("verify")),
        "NoMajority": (NO_MAJORITY, "it hears no majority of the nodes",
                       Command(node.name, f"journalctl -u {agent.UNIT} -n 30")),
        "MembersDiffer": (MEMBERS_DIFFER, "a node that it hears has another list of members", here("init")),
        "NoTimer": (NO_TIMER, "the kernel's timer for the lease does not respond", here("init phase network")),
        "HiddenHolder": (HOLDER_HIDDEN, "another node, which it cannot hear, holds the virtual IP", here("status")),
    }  # fmt: skip
    for name, (kind, message, fix) in others.items():
        if name in found:
            yield Finding(kind, node.name, message, shown, (fix,), subject=kind.code, symptom=True)
    if "AdvertsLost" in found:
        rules, delete = blocking_vrrp(snapshot, [one.name for one in snapshot.nodes])
        yield Finding(ADVERTS_LOST, node.name, "VRRP advertisements of the holder do not arrive, its heartbeats do",
                      limited([*shown, *rules]), delete or (Command(node.name, "nft list ruleset"),),
                      subject=ADVERTS_LOST.code, symptom=True)  # fmt: skip
    if "StorageCopying" in found:
        yield Finding(COPYING, node.name, "its storage is still copying what it missed", shown, (here("status"),),
                      symptom=True)  # fmt: skip
    both = all(one.agent is not None and not one.agent.get("fit") for one in (node.earlier, node.status))
    if both and not found & {*restart, *others, "AdvertsLost"}:
        yield Finding(NOT_SERVING, node.name, "it does not serve reads", shown,
                      (Command(node.name, f"journalctl -u {agent.UNIT} -n 30"),), symptom=True)  # fmt: skip


def canary(snapshot: Snapshot) -> Iterator[Finding]:
    """The canary image is there."""
    names = [node.name for node in snapshot.nodes if node.conditions & {"CanaryMissing", "NoCanary"}]
    if names:
        yield Finding(
            CANARY_MISSING, "", "the canary image is not in the registry",
            [f"{name}: {paths.AGENT_STATE}: CanaryMissing" for name in names],
            (here("verify"), here("images check")),
        )  # fmt: skip


def healthy(snapshot: Snapshot) -> Iterator[Finding]:
    """``status`` finds nothing wrong either."""
    if not snapshot.made:
        return
    single = not snapshot.config.spec.highly_available
    for one in snapshot.judged["conditions"]:
        well = "True" in (one["status"], condition(snapshot.judged_earlier, one["type"]))
        if well or (single and one["type"] == "CanLoseANode"):
            continue
        yield Finding(
            UNHEALTHY, "", one["message"], [f"status: {one['type']}={one['status']} ({one['reason']})"],
            (here("status"),), symptom=True,
        )  # fmt: skip


KINDS = (
    AGENT_SILENT, NOT_SERVING, HANGS, STORAGE_PARTIAL, COPYING, CANARY_MISSING, CANARY_BROKEN, NO_MAJORITY,
    MEMBERS_DIFFER, NO_TIMER, HOLDER_HIDDEN, ADVERTS_LOST, UNHEALTHY,
)  # fmt: skip
