"""Everything that a phase may know: configuration, hosts, secrets, bundle. Passed along, never global."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from kubeadm_registry import secrets as secrets_file
from kubeadm_registry.bundle import Bundle, Program
from kubeadm_registry.config import Node, RegistryCluster, Spec
from kubeadm_registry.errors import Error
from kubeadm_registry.secrets import Secrets, Vault
from kubeadm_registry.transport.host import Host, has_address, side_by_side


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
    turn: AbstractContextManager[object] = field(default_factory=nullcontext, compare=False, repr=False)
    """Held while something restarts that the pods of a host depend on, where many hosts are worked on side by side."""

    @property
    def spec(self) -> Spec:
        """The specification."""
        return self.config.spec

    @property
    def secrets(self) -> Secrets:
        """The secrets. Raises NotYetKnown before they are made, unless previewing."""
        return self.vault.preview() if self.previewing else self.vault.secrets

    @property
    def leader(self) -> Host:
        """The first host: where things are done that are done once for all."""
        return self.hosts[0]

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
            where = "the bundle" if self.bundle is not None else "no bundle was given, and the nodes"
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
        return replace(self, hosts=tuple(host.as_read_only() for host in self.hosts), previewing=True)


def everyone(cluster: Cluster) -> Sequence[Host]:
    """All hosts."""
    return cluster.hosts


def leader(cluster: Cluster) -> Sequence[Host]:
    """The first host only."""
    return (cluster.leader,)


def holder_last(cluster: Cluster) -> Sequence[Host]:
    """All hosts, the one that has the VIP after the others: it then moves only once where each host gives it up."""
    return sorted(cluster.hosts, key=lambda host: has_address(host, cluster.spec.vip.address))


def read_vault(config: RegistryCluster, hosts: Sequence[Host], data: Sequence[str]) -> Vault:
    """Ask every host, side by side, for the secrets it has, and for files in the directories *data*.

    Raises Error (SecretsConflict, SecretsDamaged).
    """
    directory = config.spec.data_directory

    def ask(host: Host) -> tuple[dict[str, bytes], bool]:
        files = secrets_file.contents(host, directory)
        return files, not files and secrets_file.has_data(host, data)

    found = dict(zip((host.name for host in hosts), side_by_side(ask, hosts), strict=True))
    return Vault.read(
        config.metadata.name,
        [node.name for node in config.spec.nodes],
        {name: files for name, (files, _) in found.items()},
        [name for name, (_, has_data) in found.items() if has_data],
    )
