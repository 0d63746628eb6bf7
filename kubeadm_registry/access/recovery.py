"""Half of the nodes or more are lost: what is left, what is given up, and whether the lost ones are really dead."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kubeadm_registry import paths
from kubeadm_registry.access import membership, session
from kubeadm_registry.access.session import Note, Prompts
from kubeadm_registry.cluster import Cluster, MembersChange, stayers
from kubeadm_registry.components import agent
from kubeadm_registry.components.health import report
from kubeadm_registry.components.links import blocked
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.engine.workflow import take_locks
from kubeadm_registry.errors import ConnectionFailed, Error
from kubeadm_registry.members import outvoted
from kubeadm_registry.transport.host import Host
from kubeadm_registry.transport.ssh import UNREACHABLE


@contextmanager
def recovering(
    config: RegistryCluster, prompts: Prompts, note: Note, *, bundle: Path | None = None, key: Path | None = None
) -> Iterator[Cluster]:
    """The cluster as it is to become, otherwise as ``session.cluster``; with a change if nodes are lost.

    A run that was broken off goes on: a node that has no agent yet is still to come. Raises ConfigError, BundleError,
    ConnectionFailed, Error (NothingLeft, MajorityLeft, MembersDiffer, CopiesDiffer, NodeAlive).
    """
    with session.cluster(config, prompts, note, bundle=bundle, key=key) as opened:
        cluster = planned(opened)
        if cluster.change is not None:
            require_dead(cluster, cluster.change, prompts)
        yield cluster


def planned(cluster: Cluster) -> Cluster:
    """*cluster* with the list of members that it gets, and with who comes and who is lost.

    There is no change if more than half are left and the file lists the members. Raises Error as ``recovering``.
    """
    left = _left(cluster)
    if not (left and cluster.vault.made):
        raise Error(
            "no node in the cluster file has data of a registry", code="NothingLeft",
            hint="list a remaining node in the cluster file; if all are lost, run `restore` with a backup",
        )  # fmt: skip
    before = membership.present(cluster)
    nodes = {node.name: node.address for node in cluster.spec.nodes}
    membership.same_copies(before, nodes)
    old = {*before.nodes, *before.before}
    if strangers := [host.name for host in left if host.name not in old]:
        raise Error(
            f"{', '.join(strangers)} runs the agent of a registry but is not a member of this one, which consists of "
            f"{', '.join(sorted(old))}", code="MembersDiffer",
            hint="uninstall it with `leave` or `reset`, or list another node in the cluster file",
        )  # fmt: skip
    names = [host.name for host in left]
    majority = not any(listed and outvoted(listed, names) for listed in (tuple(before.nodes), before.before))
    if majority and nodes != dict(before.nodes):
        raise Error(
            f"more than half of the members ({', '.join(sorted(old))}) remain", code="MajorityLeft",
            hint="run `join`, `leave` or `replace`, which lose no data; if two of five are lost, list bare nodes with "
            "their names and addresses in the cluster file",
        )  # fmt: skip
    # Until the agents that are left have the new list, they count on those whom the nodes must keep out.
    counted_on = {*before.nodes.items(), *(one for host in left for one in _voting(host))}
    leaving = {
        name: Node(name=name, address=at)
        for name, at in sorted(counted_on)
        if nodes.get(name) != at and name not in names
    }
    if majority and not leaving:
        return cluster
    members = before
    if not before.settled or dict(before.nodes) != nodes:
        # Lost nodes may have the next generation, of a change that never came to those that are left. If they return,
        # they believe only a higher one that they are members no more (agent/rules.py, removed).
        members = replace(before.without(nodes), generation=before.generation + 2)
    change = MembersChange(
        tuple(host.name for host in cluster.hosts if host not in left), leaving,
        former=tuple(at for _, at in before.left), lost=True,
    )  # fmt: skip
    return replace(cluster, recorded=members, change=change)


def _left(cluster: Cluster) -> Sequence[Host]:
    """The hosts that are not new: without an agent a node has never served anything."""
    return [host for host in cluster.hosts if host.read(agent.CONFIG) is not None]


def _voting(host: Host) -> Iterator[tuple[str, str]]:
    """Names and addresses of those with whom the agent of *host* votes: nobody if it cannot read its file."""
    try:
        for peer in json.loads(host.read(agent.CONFIG) or b"{}").get("peers", ()):
            yield peer["name"], peer["address"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return


def require_dead(cluster: Cluster, change: MembersChange, prompts: Prompts) -> None:
    """Raise Error (NodeAlive) if a lost node answers anybody: the registry may live on there, unseen.

    It is asked by SSH from here, and from each node that is left whether it takes or refuses a connection to its agent;
    and their agents, whether they hear it. An address that a node of the cluster has by now says nothing.
    """
    taken = {address for node in cluster.spec.nodes for address in node.addresses}
    gone = [node for node in change.leaving.values() if node.address not in taken]
    for node in gone:
        try:
            session.attempt(cluster.config, node, prompts).transport.close()
        except ConnectionFailed as error:
            if error.code == UNREACHABLE:
                continue
        raise _alive(node, change, "it answers SSH")
    port = str(paths.AGENT_PORT)
    for host in stayers(cluster) if gone else ():
        said = report(host)
        silent = blocked(host, [(node.address, port) for node in gone])
        for node in gone:
            if membership.hears(said, node):
                raise _alive(node, change, f"the agent of {host.name} hears it")
            if (node.address, port) not in silent:
                raise _alive(node, change, f"it answers {host.name} at TCP port {port}")


def require_still_dead(cluster: Cluster, prompts: Prompts) -> None:
    """``require_dead`` once more, under the locks: for whoever was asked, and may have taken an hour to answer.

    Raises HostBusy as well.
    """
    if cluster.change is not None:
        take_locks(cluster.everyone)
        require_dead(cluster, cluster.change, prompts)


def _alive(node: Node, change: MembersChange, why: str) -> Error:
    hint = (
        "repair the network or bring the node back: it may hold data that this side lacks; if it is lost for good, "
        "switch it off and run the command again"
    )
    if node.address in change.former:  # the nodes that are left have a list without it, and the storage may have moved
        hint = (
            "an earlier run has begun to continue without it, and the others keep it out: switch it off and run the "
            "command again; what it alone has cannot come back"
        )
    return Error(f"{node.name} ({node.address}) still responds: {why}", code="NodeAlive", hint=hint)


def given_up(cluster: Cluster) -> str:
    """What this run gives up, in words; empty if nothing."""
    change = cluster.change
    if change is None:
        return ""
    left = ", ".join(host.name for host in stayers(cluster))
    gone = ", ".join(f"{name} ({node.address})" for name, node in sorted(change.leaving.items()))
    out = f"; {gone} will be excluded if switched on again" if gone else ""
    return f"everything that is not on {left} will be lost permanently: images, tags and parts of images{out}"
