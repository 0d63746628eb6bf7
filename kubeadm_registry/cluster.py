"""Everything that a phase may know: configuration, hosts, secrets, bundle. Passed along, never global."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from kubeadm_registry import members as members_file
from kubeadm_registry import secrets as secrets_file
from kubeadm_registry.bundle import Bundle, Program
from kubeadm_registry.config import Node, RegistryCluster, Spec
from kubeadm_registry.errors import Error
from kubeadm_registry.formats import Damaged, NewerFormat
from kubeadm_registry.members import FIRST, Members
from kubeadm_registry.secrets import Secrets, Vault
from kubeadm_registry.transport.host import Host, has_address, side_by_side


@dataclass(frozen=True, slots=True)
class MembersChange:
    """Nodes that come to the registry or leave it."""

    arriving: tuple[str, ...]
    """Names of nodes that are no members yet."""
    leaving: Mapping[str, Node]
    """Members of the list before that are not in the new one, by name; one that comes back with another address too."""
    former: tuple[str, ...] = ()
    """Addresses of nodes that had left before, as the members know them until they get the new list."""
    retiring: tuple[Host, ...] = ()
    """Those of them that answer: they give their data away, and are uninstalled at the end."""
    lost: bool = False
    """Whether half of the members before or more are lost: what the others do not have is given up."""


def _unwatched(_: int, __: int) -> None:
    """Nobody is told."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """One cluster of registry servers, as it should be, and the way to each of them."""

    config: RegistryCluster
    hosts: tuple[Host, ...]
    """All members of the wanted cluster that answer, in the order of the file."""
    vault: Vault
    programs: Mapping[str, Program]
    """The programs by name, from the bundle if there is one, else as the hosts have them."""
    bundle: Bundle | None = None
    """Where programs come from. None: they must be on the hosts already."""
    previewing: bool = False
    """Whether placeholders may stand for secrets that nobody has made yet, as in a dry-run."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """The members that cannot be reached, and why. What the others get is owed to them."""
    recorded: Members | None = None
    """The list of members as the nodes had it, or as it is to become; None: it was never written down."""
    change: MembersChange | None = None
    """How the members change in this run; None: they stay."""
    turn: AbstractContextManager[object] = field(default_factory=nullcontext, compare=False, repr=False)
    """Held while something restarts that the pods of a host depend on, where many hosts are worked on side by side."""
    progress: Callable[[int, int], None] = field(default=_unwatched, compare=False, repr=False)
    """Told how many bytes are done, and of how many, by what takes long: the Reporter's of a run."""

    @property
    def spec(self) -> Spec:
        """The specification."""
        return self.config.spec

    @property
    def secrets(self) -> Secrets:
        """The secrets. Raises NotYetKnown before they are made, unless previewing."""
        return self.vault.preview() if self.previewing else self.vault.secrets

    @property
    def members(self) -> Members:
        """The list of members that the nodes get, which is that of the file."""
        nodes = {node.name: node.address for node in self.spec.nodes}
        if self.recorded is None:
            return Members(FIRST, nodes)
        if self.recorded.nodes == nodes:
            return self.recorded
        # Nothing can be stored yet, or SameCluster refuses each phase that writes of it.
        return self.recorded.without(nodes)

    @property
    def leader(self) -> Host:
        """The first host: where things are done that are done once for all."""
        return self.hosts[0]

    @property
    def everyone(self) -> tuple[Host, ...]:
        """All hosts, those that leave in this run as well."""
        return self.hosts if self.change is None else (*self.hosts, *self.change.retiring)

    def with_hosts(self, made: Callable[[Host], Host]) -> Cluster:
        """The same cluster with what *made* returns in place of each host."""
        change = self.change
        if change is not None:
            change = replace(change, retiring=tuple(map(made, change.retiring)))
        return replace(self, hosts=tuple(map(made, self.hosts)), change=change)

    def node(self, host: Host) -> Node:
        """The node of the file that *host* is."""
        return self.spec.node(host.name)

    def peers(self, host: Host) -> tuple[Node, ...]:
        """All nodes but *host*."""
        return tuple(node for node in self.spec.nodes if node.name != host.name)

    def program(self, name: str) -> Program:
        """The program *name*. Raises Error when neither bundle nor hosts have it."""
        try:
            return self.programs[name]
        except KeyError:
            where = "the bundle" if self.bundle is not None else "no bundle with programs was given, and the nodes"
            raise Error(
                f"{where} {'has' if self.bundle is not None else 'have'} no program {name}", code="ProgramMissing",
                hint=f"create a bundle with it, `kubeadm-registry bundle create --with {name},...` (or "
                f"--program {name}=PATH), and pass it with --bundle FILE",
            ) from None  # fmt: skip

    def with_vault(self, vault: Vault) -> Cluster:
        """The same cluster, which is to have other secrets."""
        return replace(self, vault=vault)

    def for_dry_run(self) -> Cluster:
        """The same cluster with hosts that refuse to be changed."""
        return replace(self.with_hosts(Host.as_read_only), previewing=True)


def every_node(cluster: Cluster) -> Sequence[Host]:
    """The host of each node of the cluster file."""
    return cluster.hosts


def arriving(cluster: Cluster) -> Sequence[Host]:
    """The hosts that come to the registry in this run."""
    return [] if cluster.change is None else [host for host in cluster.hosts if host.name in cluster.change.arriving]


def agreed(cluster: Cluster, path: str, *, undecided: bytes | None = None) -> bytes | None:
    """The content of the file *path* that more than half of the members have; those that arrive have no say.

    None if most have no such file, or if all were asked and no content has a majority. *undecided* while nodes that are
    away could decide it. A node that was away when the file was changed or removed does not bring it back, nor does one
    that was installed again have it removed on the others.
    """
    new = set(arriving(cluster))
    found = [host.read(path) for host in cluster.hosts if host not in new]
    members = len(cluster.spec.nodes) - len(new)
    content, count = Counter(found).most_common(1)[0] if found else (None, 0)
    if 2 * count > members:
        return content
    return undecided if len(found) < members else None


def retiring(cluster: Cluster) -> Sequence[Host]:
    """The hosts that leave it."""
    return () if cluster.change is None else cluster.change.retiring


def stayers(cluster: Cluster) -> Sequence[Host]:
    """The hosts that were members before this run and stay so; none if the members do not change."""
    new = set(arriving(cluster))
    return [host for host in cluster.hosts if host not in new] if cluster.change is not None else ()


def stayer(cluster: Cluster) -> Sequence[Host]:
    """The first of ``stayers``."""
    return stayers(cluster)[:1]


def as_it_is(cluster: Cluster) -> Cluster:
    """The registry before its members change: with the node that leaves, and without the one that comes."""
    leaving = {} if cluster.change is None else cluster.change.leaving
    hosts = (*stayers(cluster), *retiring(cluster))
    nodes = tuple(leaving[host.name] if host.name in leaving else cluster.node(host) for host in hosts)
    lost = leaving.keys() - {host.name for host in hosts}
    return replace(
        cluster,
        config=cluster.config.with_spec(nodes=nodes),
        hosts=hosts,
        absent=dict.fromkeys(sorted(lost), "it cannot be reached"),
        change=None,
    )


def leader(cluster: Cluster) -> Sequence[Host]:
    """The first host only."""
    return (cluster.leader,)


def holder_last(cluster: Cluster) -> Sequence[Host]:
    """All hosts, the one that has the VIP after the others: it then moves only once where each host gives it up."""
    return sorted(cluster.hosts, key=lambda host: has_address(host, cluster.spec.vip.address))


def require_members(cluster: Cluster) -> None:
    """Raise Error (MembersDiffer) if the file does not list the members: those that it omits would not be asked."""
    require_listed(cluster.recorded, {node.name for node in cluster.spec.nodes})


def require_listed(known: Members | None, names: Collection[str]) -> None:
    """Raise Error (MembersDiffer) unless *names* are those of the list *known*, if there is one, and of who leaves."""
    if known is not None and (differ := (set(names) ^ set(known.nodes)) | (set(known.before) - set(names))):
        raise Error(
            f"spec.nodes: the registry consists of {', '.join(sorted(known.nodes))}, and the file differs in "
            f"{', '.join(sorted(differ))}", code="MembersDiffer",
            hint="use the cluster file that lists these nodes, apply it (`kubectl apply`) if the operator runs, or "
            "complete a `join`, `leave` or `replace`",
        )  # fmt: skip


def read_vault(
    config: RegistryCluster, hosts: Sequence[Host], data: Sequence[str], backup: bytes | None = None
) -> Vault:
    """Ask every host, side by side, for the secrets it has, and for files in the directories *data*.

    The secrets file of a *backup* counts like that of one more host. Raises Error (SecretsConflict, SecretsDamaged).
    """
    directory = config.spec.data_directory

    def ask(host: Host) -> tuple[dict[str, bytes], bool]:
        files = secrets_file.contents(host, directory)
        return files, not files and secrets_file.has_data(host, data)

    found = dict(zip((host.name for host in hosts), side_by_side(ask, hosts), strict=True))
    for name, (files, _) in found.items() if backup is not None else ():
        _same_revision(name, files, backup or b"")
    return Vault.read(
        config.metadata.name,
        [node.name for node in config.spec.nodes],
        {name: files for name, (files, _) in found.items()}
        | ({"the backup": {secrets_file.PATH: backup}} if backup is not None else {}),
        [name for name, (_, has_data) in found.items() if has_data],
    )


def _same_revision(name: str, files: Mapping[str, bytes], backup: bytes) -> None:
    """Raise Error (SecretsConflict) if the node *name* has secrets of before or after those in the *backup*.

    The newer would win, and clients and nodes would be given what they do not know.
    """
    generation, wanted = secrets_file.revision_in(backup)
    for path, content in files.items():
        there, revision = secrets_file.revision_in(content)
        if there == generation and revision not in (wanted, -1):
            raise Error(
                f"{name} has secrets of revision {revision} in {path}, the backup has revision {wanted}",
                host=name, code="SecretsConflict",
                hint="the registry is in use with other secrets: run `init`, which needs no backup, use a backup of "
                "this revision, or name bare nodes",
            )  # fmt: skip


def read_members(config: RegistryCluster, hosts: Sequence[Host]) -> Members | None:
    """The list of members that the *hosts* have; None if none has one. Raises Error (MembersConflict, MembersDamaged).

    A reset that leaves the data leaves the list with it.
    """

    def ask(host: Host) -> Members | None:
        return members_at(host) or members_at(host, members_file.kept_path(config.spec.data_directory))

    found = zip((host.name for host in hosts), side_by_side(ask, hosts), strict=True)
    return members_file.newest({name: one for name, one in found if one is not None})


def members_at(host: Host, path: str = members_file.PATH) -> Members | None:
    """The list of members in the file *path* of *host*; None if there is none. Raises Error (MembersDamaged)."""
    content = host.read(path)
    if content is None:
        return None
    try:
        return members_file.parse(content)
    except NewerFormat as error:
        raise NewerFormat(error.message, host=host.name) from error
    except Damaged as error:
        raise Error(
            f"{path} is damaged: {error}", host=host.name, code="MembersDamaged",
            hint="copy the file from another node of this registry (owner root, mode 644)",
        ) from error  # fmt: skip
