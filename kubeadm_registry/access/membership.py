"""Which nodes come to a registry and which leave it: what was asked for, against the list that the nodes have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kubeadm_registry import secrets
from kubeadm_registry.access import session
from kubeadm_registry.access.session import Note, Prompts
from kubeadm_registry.cluster import Cluster, MembersChange, stayers
from kubeadm_registry.components import health
from kubeadm_registry.components.services import backend, existing
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.errors import ConfigError, ConnectionFailed, Error
from kubeadm_registry.members import FIRST, PATH, SIZES, Members, outvoted
from kubeadm_registry.transport.host import Host, has_address, side_by_side
from kubeadm_registry.transport.ssh import UNREACHABLE


@dataclass(frozen=True, slots=True)
class Request:
    """Which nodes are to come and go, by name. One that does both gets a new address, or a new disk."""

    joins: str = ""
    leaves: str = ""

    @property
    def words(self) -> str:
        """The command that asks for it."""
        if self.joins and self.leaves:
            return f"replace {self.leaves} {self.joins}"
        return f"join {self.joins}" if self.joins else f"leave {self.leaves}"


def wanted(config: RegistryCluster, request: Request) -> RegistryCluster:
    """The cluster file after the change: with the node that joins, without the one that leaves.

    Raises ConfigError if the file does not list a node that joins, if too few would be left, or if no node would stay.
    """
    listed = {node.name: node for node in config.spec.nodes}
    if request.joins and request.joins not in listed:
        raise ConfigError(
            f"spec.nodes does not list {request.joins}", code="NodeUnknown",
            hint=f"add {request.joins} with its address to spec.nodes of the cluster file, then run "
            f"`{request.words}` again",
        )  # fmt: skip
    nodes = tuple(node for node in listed.values() if node.name != request.leaves or node.name == request.joins)
    if len(nodes) not in SIZES:
        raise ConfigError(
            f"spec.nodes: {len(nodes)} nodes would be left, and a registry has 3, 4 or 5 (or 1, for testing)",
            code="TooFewNodes",
            hint="add another node to the file and `join` it first, or `replace` this one by another",
        )  # fmt: skip
    if len(nodes) == 1 and request.leaves and request.joins not in ("", request.leaves):
        raise ConfigError(
            f"spec.nodes: {request.joins} would be the only node, with no node to copy the images from: the only "
            "node of a registry cannot be replaced", code="OneNode",
            hint=f"install a new registry on {request.joins} with `init`, and fill it with `seed` and `skopeo copy`",
        )  # fmt: skip
    return config.with_spec(nodes=nodes)


@contextmanager
def changing(
    config: RegistryCluster, request: Request, prompts: Prompts, note: Note, *, bundle: Path | None = None,
    key: Path | None = None,
) -> Iterator[Cluster]:  # fmt: skip
    """The cluster as it is to become, with its change; otherwise as ``session.cluster``.

    A run that was broken off goes on: the list on the nodes says what was begun. Raises ConfigError, BundleError,
    ConnectionFailed, Error (NotInstalled, MembersDiffer, MembersUnsettled, NoMajority, CopiesDiffer, OneNode,
    NodeAlive).
    """
    after = wanted(config, request)
    with ExitStack() as stack:
        cluster = stack.enter_context(session.cluster(after, prompts, note, bundle=bundle, key=key))
        cluster, change = planned(cluster, config, request)
        retiring: list[Host] = []
        for node in change.leaving.values():
            _require_moved(cluster, change, node, prompts)
            if any(host.name == node.name or host.address == node.address for host in cluster.hosts):
                continue  # it comes back with another address, or its successor has its own
            try:
                host = session.host(config, node, prompts)
                stack.callback(host.transport.close)
                if _of_another(cluster, host):
                    note("it is a node of another registry, and is left as it is", host=node.name, level="warning")
                else:
                    retiring.append(host)
            except ConnectionFailed as error:
                if error.code != UNREACHABLE and node.address not in change.former:
                    raise  # it answers, so it is not dead, and no earlier run is done with it
                if node.address not in change.former:
                    _require_unheard(cluster, node, error)
                note(f"{error.message}; it is treated as lost, and the others copy its data", host=node.name,
                     level="warning")  # fmt: skip
        yield replace(cluster, change=replace(change, retiring=tuple(retiring)))


def _of_another(cluster: Cluster, host: Host) -> bool:
    """Whether *host*, which has left or was lost, is a node of another registry by now: that one is not uninstalled."""
    generation, _ = secrets.revision_in(host.read(secrets.PATH) or b"")
    return bool(generation) and cluster.vault.made and generation != cluster.vault.preview().generation


def _require_moved(cluster: Cluster, change: MembersChange, node: Node, prompts: Prompts) -> None:
    """Raise Error (NodeAlive) if *node* gets another address, and another machine of it answers at the one it had.

    The storage knows it by its name's key, which both machines would have.
    """
    here = next((host for host in cluster.hosts if host.name == node.name), None)
    if here is None or here.address == node.address or node.address in change.former:
        return
    with suppress(ConnectionFailed):
        before = session.attempt(cluster.config, node, prompts)
        with closing(before.transport):
            # Somebody else may have got the old address by now, who is no node.
            same = has_address(before, here.address) or before.read(PATH) is None or _of_another(cluster, before)
        if not same:
            raise Error(
                f"the machine at {node.address} still runs, and does not have the address {here.address}: these are "
                f"two machines, and both would be named {node.name}", host=node.name, code="NodeAlive",
                hint="switch the old one off and run the same command again; or give the new one another name, and "
                f"run `replace {node.name} NAME`, which copies from the old one as well",
            )  # fmt: skip


def _require_unheard(cluster: Cluster, node: Node, error: ConnectionFailed) -> None:
    """Raise Error (NodeAlive) if the agent of a node that stays hears *node*, which *error* says cannot be reached.

    It may have the virtual IP, and would keep it beside the node that takes it, until it learns that it has left.
    """
    for report in side_by_side(health.report, stayers(cluster)):
        if hears(report, node):
            raise Error(
                f"{error.message}, but it is running: the agent of {report.node} hears it", host=node.name,
                code="NodeAlive", hint=f"repair SSH to {node.name}, or switch it off; then run the same command again",
            ) from error  # fmt: skip


def hears(report: health.Report, node: Node) -> bool:
    """Whether an agent hears *node*, or knows that its machine runs; not if it reports nothing."""
    from kubeadm_registry.agent.model import Presence  # noqa: PLC0415  not needed by commands that only start with this

    peer = ((report.state or {}).get("peers") or {}).get(node.name, {})
    return peer.get("address") == node.address and peer.get("presence") in (Presence.FRESH, Presence.GONE)


def planned(cluster: Cluster, config: RegistryCluster, request: Request) -> tuple[Cluster, MembersChange]:
    """*cluster*, of the nodes that are wanted, with the list of members that they get; and who comes and goes.

    *config* is the cluster file as it was given. Raises Error as ``changing``.
    """
    before = present(cluster, request.joins)
    nodes = {node.name: node.address for node in cluster.spec.nodes}
    same_copies(before, nodes)
    members = before.changed_to(nodes)
    begun = _begun(cluster, request, before)
    change = replace(_change(config, request, before, members, begun), former=tuple(at for _, at in before.left))
    if change.arriving and len(nodes) == 1:
        raise Error(
            f"spec.nodes: {change.arriving[0]} is the only node of the registry: no other node has the images while "
            "its address changes", code="OneNode",
            hint="run `reset` with the old address in the file (the images stay on it), then `init` with the new one",
        )  # fmt: skip
    _majorities(members, cluster.hosts)
    return replace(cluster, recorded=members, change=change), change


def present(cluster: Cluster, joins: str = "") -> Members:
    """The list that the nodes have, be it of a release that did not write one; the node that *joins* may have another.

    Raises Error (NotInstalled).
    """
    if cluster.recorded is not None:
        return cluster.recorded
    # What joins has the new list already, if a run died after that.
    old = [host for host in cluster.hosts if host.name != joins]
    found = [one for one in side_by_side(existing, old) if one is not None]
    if not found or not cluster.vault.made:
        raise Error("none of the nodes belongs to a registry yet", hint="run init first", code="NotInstalled")
    secrets = cluster.vault.preview()
    names = {secrets.node_id(name): name for name in secrets.node_keys}
    return Members(FIRST, {names[identity]: at for identity, at in found[0].members.items() if identity in names})


def same_copies(before: Members, nodes: Mapping[str, str]) -> None:
    """Raise Error if the storage would keep another number of copies, which it cannot change."""
    if (len(before.nodes) == 1) is not (len(nodes) == 1):
        hint = "list three nodes or more in the cluster file; bare ones may take the place of lost ones"
        if len(before.nodes) == 1:
            hint = (
                "install a new registry on other nodes, three or more, with `init`, under another virtual IP, and fill "
                "it with `seed` and `skopeo copy` (docs/members.md, Limits)"
            )
        raise Error(
            "a registry of one node keeps one copy of each image, one of three or more keeps three, and that cannot "
            "be changed in place", code="CopiesDiffer",
            hint=hint,
        )  # fmt: skip


def _begun(cluster: Cluster, request: Request, before: Members) -> bool:
    """Whether the node that is to leave has a place in the storage only: a run that was to bring it did not end."""
    if not request.leaves or request.leaves in {*before.nodes, *before.before, *before.former}:
        return False
    for host in cluster.hosts:
        with suppress(Error):  # another one may answer
            return request.leaves in backend(cluster.spec).places(cluster, host)
    return False


def _change(config: RegistryCluster, request: Request, before: Members, after: Members, begun: bool) -> MembersChange:
    """Who comes and goes; *begun*: see ``_begun``. Raises Error (MembersDiffer) if that is not what was asked for."""
    # While a change is under way, the list before is named in the new one.
    old = {name: before.nodes.get(name) or before.former.get(name, "") for name in before.before or before.nodes}
    unfinished = after is before
    arriving = tuple(name for name, at in after.nodes.items() if old.get(name, "") != at)
    gone = {name: at for name, at in old.items() if after.nodes.get(name) != at}
    if unfinished and request.leaves in before.former:
        gone[request.leaves] = before.former[request.leaves]
    if begun:
        gone[request.leaves] = next((node.address for node in config.spec.nodes if node.name == request.leaves), "")
    asked = ({request.joins} - {""}, {request.leaves} - {""})
    # A change that was finished may be asked for again.
    if not (set(arriving) <= asked[0] and set(gone) <= asked[1]):
        come, go = sorted(set(arriving) - asked[0]), sorted(set(gone) - asked[1])
        words = " and ".join([f"adds {', '.join(come)}"] * bool(come) + [f"omits {', '.join(go)}"] * bool(go))
        raise Error(
            f"spec.nodes: the registry consists of {', '.join(sorted(old))}, and the file {words}, which "
            f"`{request.words}` does not cover", code="MembersDiffer",
            hint="change one node at a time: list the others in the file as they are",
        )  # fmt: skip
    if request.leaves and request.leaves not in gone and request.leaves not in after.nodes:
        raise Error(
            f"{request.leaves} is not a member of the registry, which consists of {', '.join(sorted(old))}",
            hint="name one of its members; `status` lists them", code="NodeUnknown",
        )  # fmt: skip
    listed = {node.name: node for node in config.spec.nodes}
    leaving = {
        name: listed[name].model_copy(update={"address": at}) if name in listed else Node(name=name, address=at)
        for name, at in gone.items()
        if at
    }
    return MembersChange(arriving, leaving)


def _majorities(members: Members, hosts: tuple[Host, ...]) -> None:
    """Raise Error (NoMajority) unless more than half of both lists take part."""
    present = [host.name for host in hosts]
    for names, which in ((tuple(members.nodes), "new"), (members.before, "present")):
        if names and outvoted(names, present):
            raise Error(
                f"no more than half of the {which} members ({', '.join(sorted(names))}) take part",
                hint="bring the nodes back that are down, then run the command again; if they are lost for good, run "
                '`recover` (docs/recovery.md, "Two nodes are lost")', code="NoMajority",
            )  # fmt: skip
