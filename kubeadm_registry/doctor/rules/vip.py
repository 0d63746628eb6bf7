"""The virtual IP is on one node and nobody else's, and the loopback ports are guarded."""

from __future__ import annotations

from collections.abc import Iterator

from kubeadm_registry import paths
from kubeadm_registry.addresses import prefix
from kubeadm_registry.components import keepalived, network
from kubeadm_registry.doctor.finding import Command, Finding, Kind, here, limited
from kubeadm_registry.doctor.rules.nodes import blocking_vrrp
from kubeadm_registry.doctor.snapshot import Snapshot

TWICE = Kind("VIPTwice", "error", "Clients reach one or the other; pushes and pulls fail at random.")
FOREIGN = Kind("VIPForeign", "error", "Clients reach a machine that is not the registry, some or all of the time.")
NOWHERE = Kind("VIPNowhere", "error", "No client reaches the registry.")
ROUTER_ID = Kind(
    "RouterIDTaken", "warning",
    "The nodes drop these advertisements; without their firewall rules the virtual IP would be given up.",
)  # fmt: skip
UNGUARDED = Kind(
    "Unguarded", "error",
    "Every local user and every pod in the host network can push without a login and read the storage.",
)  # fmt: skip


def held_once(snapshot: Snapshot) -> Iterator[Finding]:
    """One node holds the virtual IP."""
    vip, holders = snapshot.config.spec.vip.address, snapshot.holders
    if len(holders) > 1:
        shown = [f"{name}: ip address: {prefix(vip)}" for name in holders]
        shown += [f"{node.name}: sees advertisements of {', '.join(facts.vrrp) or 'no node'} on the wire"
                  for node, facts in snapshot.answering if node.name in holders]  # fmt: skip
        rules, fix = blocking_vrrp(snapshot, [node.name for node in snapshot.nodes])
        generic = Command(holders[-1], "nft list ruleset  # allow IP protocol 112 (VRRP) from the other nodes")
        yield Finding(TWICE, "", f"{', '.join(holders)} all hold the virtual IP {vip}", limited([*rules, *shown]),
                      fix or (generic,))  # fmt: skip
    elif not (snapshot.held or snapshot.unreachable or snapshot.unlisted) and snapshot.made:
        any_node = snapshot.nodes[0].name
        yield Finding(
            NOWHERE, "", f"no node holds the virtual IP {vip}",
            [f"{node.name}: ip address: no {prefix(vip)}" for node, _ in snapshot.answering],
            (Command(any_node, f"journalctl -u {keepalived.UNIT} -n 30"), here("init")), symptom=True,
        )  # fmt: skip


def nobody_else(snapshot: Snapshot) -> Iterator[Finding]:
    """No other machine has the virtual IP, nor sends VRRP for our virtual router."""
    if not (snapshot.unreachable or snapshot.unlisted):  # whose link-layer addresses nobody knows
        ours = frozenset().union(*(facts.hardware for _, facts in snapshot.answering))
        for vip in snapshot.config.spec.vip.addresses:
            found = {
                mac: node.name
                for node, facts in snapshot.answering
                for mac in facts.answers.get(vip, ())
                if mac not in ours
            }
            for mac, name in found.items():
                yield Finding(
                    FOREIGN, "", f"{vip} is in use by a machine that is not a node, {mac}",
                    [f"{name}: ARP probe for {vip}: answered by {mac}"],
                    (Command(f"the machine with {mac}", f"ip address del {prefix(vip)} dev INTERFACE"),),
                )  # fmt: skip
    listed = {address for node in snapshot.config.spec.nodes for address in node.addresses}
    members = listed.union(snapshot.unlisted.values())
    seen = {
        (address, mac): node.name
        for node, facts in snapshot.answering
        for address, mac in facts.vrrp.items()
        if address not in members
    }
    router = snapshot.config.spec.vip.router_id
    for (address, mac), name in seen.items():
        yield Finding(
            ROUTER_ID, "", f"{address} ({mac}) uses the virtual router ID {router} as well",
            [f"{name}: VRRP advertisement of router {router} from {address}, {mac}"],
            (Command(f"{address}", "set another virtual_router_id in keepalived.conf, then reload it"),),
        )  # fmt: skip


def guarded(snapshot: Snapshot) -> Iterator[Finding]:
    """The nft rules of loopback are loaded."""
    for node, _ in snapshot.answering:
        if not node.installed:
            continue
        told = [one.agent.get("guarded") for one in (node.earlier, node.status) if one.agent is not None]
        missing = node.status.guarded is False and node.earlier.guarded is False
        if missing or (told and all(said is False for said in told)):
            yield Finding(
                UNGUARDED, node.name, "the firewall rules that guard loopback are not loaded",
                [f"nft list table inet {paths.PREFIX}: {'no such table' if missing else 'not as init wrote it'}",
                 *(f"{paths.AGENT_STATE}: guarded={str(said).lower()}" for said in told[-1:])],
                (here("init"), Command(node.name, f"systemctl restart {network.GUARD_UNIT}")),
            )  # fmt: skip


KINDS = (TWICE, FOREIGN, NOWHERE, ROUTER_ID, UNGUARDED)
