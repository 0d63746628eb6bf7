"""Everything that a phase may know: configuration, hosts, secrets, bundle. Passed as an argument, never global."""

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
    """The nodes that join the registry in this run, and those that leave it."""

    arriving: tuple[str, ...]
    """Names of nodes that are not members yet."""
    leaving: Mapping[str, Node]
    """Nodes that only the previous list of members has, by name; also a node that returns with another address."""
    former: tuple[str, ...] = ()
    """Addresses of nodes that left earlier; the members know them until they get the new list."""
    retiring: tuple[Host, ...] = ()
    """Those of the leaving nodes that answer: the others copy their data, then they are uninstalled."""
    lost: bool = False
    """Whether half of the previous members or more are lost: data that only they had is given up."""

    @property
    def nobody(self) -> bool:
        """Whether no node comes or goes, as where a member has a new disk: the run then does what ``init`` does."""
        return not (self.arriving or self.leaving or self.lost)


def _unwatched(_: int, __: int) -> None:
    """Discard the progress."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A registry as it should be, with a connection to each of its nodes."""

    config: RegistryCluster
    hosts: tuple[Host, ...]
    """The nodes in the cluster file that answer, in the order of the file."""
    vault: Vault
    programs: Mapping[str, Program]
    """Programs by name: those in the bundle if there is one, otherwise those that the hosts have."""
    bundle: Bundle | None = None
    """The bundle that programs are uploaded from. None: the hosts must have them already."""
    previewing: bool = False
    """Whether placeholders may stand for secrets that have not been generated yet, as in a dry-run."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """The members that cannot be reached, with the reason. Changes on the others are pending for them."""
    recorded: Members | None = None
    """The list of members as the nodes had it, or as it will be; None: no node has stored one."""
    change: MembersChange | None = None
    """How the members change in this run; None: they do not."""
    turn: AbstractContextManager[object] = field(default_factory=nullcontext, compare=False, repr=False)
    """Held during a restart that the pods of a host depend on, where many hosts are configured in parallel."""
    progress: Callable[[int, int], None] = field(default=_unwatched, compare=False, repr=False)
    """Called by long transfers with the bytes done and the total; in a run, the Reporter's ``progress``."""

    @property
    def spec(self) -> Spec:
        """The specification."""
        return self.config.spec

    @property
    def secrets(self) -> Secrets:
        """The secrets. Raises NotYetKnown before they are generated, unless *previewing*."""
        return self.vault.preview() if self.previewing else self.vault.secrets

    @property
    def members(self) -> Members:
        """The list of members that the nodes get: the nodes in the file."""
        nodes = {node.name: node.address for node in self.spec.nodes}
        if self.recorded is None:
            return Members(FIRST, nodes)
        if self.recorded.nodes == nodes:
            return self.recorded
        # Nothing can be stored yet, or SameCluster refuses each phase that writes of it.
        return self.recorded.without(nodes)

    @property
    def leader(self) -> Host:
        """The first host, where work is done that is needed once for the whole cluster."""
        return self.hosts[0]

    @property
    def everyone(self) -> tuple[Host, ...]:
        """All hosts, including those that leave in this run."""
        return self.hosts if self.change is None else (*self.hosts, *self.change.retiring)

    def with_hosts(self, made: Callable[[Host], Host]) -> Cluster:
        """The same cluster with each host replaced by what *made* returns for it."""
        change = self.change
        if change is not None:
            change = replace(change, retiring=tuple(map(made, change.retiring)))
        return replace(self, hosts=tuple(map(made, self.hosts)), change=change)

    def node(self, host: Host) -> Node:
        """The entry of *host* in the cluster file."""
        return self.spec.node(host.name)

    def peers(self, host: Host) -> tuple[Node, ...]:
        """All nodes except *host*."""
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

    def with_secrets(self, secrets: Secrets) -> Cluster:
        """The same cluster with *secrets* as their next revision. Raises NewerFormat."""
        return replace(self, vault=self.vault.revised(secrets))

    def for_dry_run(self) -> Cluster:
        """The same cluster with hosts that refuse to be changed."""
        return replace(self.with_hosts(Host.as_read_only), previewing=True)


def every_node(cluster: Cluster) -> Sequence[Host]:
    """The host of each node of the cluster file."""
    return cluster.hosts


def arriving(cluster: Cluster) -> Sequence[Host]:
    """The hosts that join the registry in this run."""
    return [] if cluster.change is None else [host for host in cluster.hosts if host.name in cluster.change.arriving]


def agreed(cluster: Cluster, path: str, *, undecided: bytes | None = None) -> bytes | None:
    """The content of the file *path* that more than half of the members have; nodes that join are not counted.

    None if most members have no such file, or if all were asked and no content has a majority; *undecided* if the
    members that cannot be reached could decide it. So a node that was down while the file was changed or removed does
    not bring it back, and a node that was reinstalled does not have it removed on the others.
    """
    new = set(arriving(cluster))
    found = [host.read(path) for host in cluster.hosts if host not in new]
    members = len(cluster.spec.nodes) - len(new)
    content, count = Counter(found).most_common(1)[0] if found else (None, 0)
    if 2 * count > members:
        return content
    return undecided if len(found) < members else None


def retiring(cluster: Cluster) -> Sequence[Host]:
    """The hosts that leave the registry in this run."""
    return () if cluster.change is None else cluster.change.retiring


def stayers(cluster: Cluster) -> Sequence[Host]:
    """The hosts that are members before and after this run; none if the members do not change."""
    new = set(arriving(cluster))
    return [host for host in cluster.hosts if host not in new] if cluster.change is not None else ()


def stayer(cluster: Cluster) -> Sequence[Host]:
    """The first of ``stayers``."""
    return stayers(cluster)[:1]


def as_it_is(cluster: Cluster) -> Cluster:
    """The cluster before its members change: with the nodes that leave, without those that join."""
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
    """All hosts, the VIP holder last: if each host gives up the VIP in turn, it then moves only once."""
    return sorted(cluster.hosts, key=lambda host: has_address(host, cluster.spec.vip.address))


def require_members(cluster: Cluster) -> None:
    """Raise Error (MembersDiffer) unless the file lists exactly the members: nodes that it omits are not asked."""
    require_listed(cluster.recorded, {node.name for node in cluster.spec.nodes})


def require_listed(known: Members | None, names: Collection[str]) -> None:
    """Raise Error (MembersDiffer) unless *names* are the members in *known*, and have those that are leaving it."""
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
    """Read the secrets of all hosts in parallel, and look for files in the directories *data*.

    The secrets file in a *backup* counts as that of one more host. Raises Error (SecretsConflict, SecretsDamaged).
    """
    directory = config.spec.data_directory

    def ask(host: Host) -> tuple[dict[str, bytes], bool]:
        files = secrets_file.contents(host, directory)
        return files, not files and secrets_file.has_data(host, data)

    found = dict(zip((host.name for host in hosts), side_by_side(ask, hosts), strict=True))
    held = {name: files for name, (files, _) in found.items()}
    if backup is not None:
        for name, files in held.items():
            _same_revision(name, files, backup)
        held["the backup"] = {secrets_file.PATH: backup}
    names = [node.name for node in config.spec.nodes]
    return Vault.read(config.metadata.name, names, held, [name for name, (_, has_data) in found.items() if has_data])


def _same_revision(name: str, files: Mapping[str, bytes], backup: bytes) -> None:
    """Raise Error (SecretsConflict) if the node *name* has an older or newer revision of the secrets in the *backup*.

    The newer one would win, and clients and nodes would not accept it.
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
    """The newest list of members on the *hosts*; None if none has one. Raises Error (MembersConflict, MembersDamaged).

    A reset that keeps the data keeps the list beside it.
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
