"""Carries out a change of members. If a node that leaves holds the virtual IP, a planned move comes first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

from kubeadm_registry import paths, pki
from kubeadm_registry.addresses import is_ipv6
from kubeadm_registry.cluster import Cluster, as_it_is, retiring, stayers
from kubeadm_registry.engine.memory import remembering
from kubeadm_registry.engine.phase import Workflow, select
from kubeadm_registry.engine.report import Action, Reporter
from kubeadm_registry.engine.workflow import preflight, run, take_locks
from kubeadm_registry.phases import moves
from kubeadm_registry.transport.host import Host, has_address


def carry_out(
    workflow: Workflow, cluster: Cluster, reporter: Reporter, *, only: Sequence[str] = (), skip: Sequence[str] = (),
    ignore: Sequence[str] = (), dry_run: bool = False,
) -> list[Action]:  # fmt: skip
    """Run *workflow*, by which *cluster* gets the members that it is to have; as ``engine.workflow.run``.

    A node that leaves gives the virtual IP up first, and then its data. Where that cannot be planned, as when it is
    half dead, the workflow moves the address when the requests in flight have ended.
    """
    holder = None if dry_run else _holder(cluster)
    moved: Sequence[Action] = ()
    if holder is not None:
        take_locks(cluster.everyone)
        preflight(select(workflow, only, skip), remembering(cluster), reporter, ignore=ignore)
        before = _with_both_addresses(as_it_is(cluster), holder)
        if len(before.node(holder).addresses) < len(before.spec.vip.addresses):
            what = "is not in its certificate, and the cluster file no longer lists the node"
            text = f"no planned move of the virtual IP: the node's secondary address {what}; {moves.OTHERWISE}"
            reporter.note(text, host=holder.name, level="warning")
        else:
            moved = moves.away(before, holder, reporter, degraded=True)
    return [*moved, *run(workflow, cluster, reporter, only=only, skip=skip, ignore=ignore, dry_run=dry_run)]


def _with_both_addresses(cluster: Cluster, holder: Host) -> Cluster:
    """*cluster* with the secondary address of *holder*, by its certificate: the list of members has one of each."""
    node, vip = cluster.node(holder), cluster.spec.vip
    if len(node.addresses) >= len(vip.addresses):
        return cluster
    try:
        named = pki.addresses((holder.read(paths.NODE_PEM) or b"").decode())
    except ValueError:
        return cluster
    others = [one for one in named if is_ipv6(one) != is_ipv6(node.address)]
    found = [one for one in others if one not in vip.addresses and not ip_address(one).is_loopback]
    if len(found) != 1:
        return cluster
    known = node.model_copy(update={"secondary_address": found[0]})
    nodes = tuple(known if one.name == node.name else one for one in cluster.spec.nodes)
    return replace(cluster, config=cluster.config.with_spec(nodes=nodes))


def _holder(cluster: Cluster) -> Host | None:
    """The node that leaves, if it holds the virtual IP and other members stay."""
    vip = cluster.spec.vip.address
    return next((host for host in retiring(cluster) if stayers(cluster) and has_address(host, vip)), None)
