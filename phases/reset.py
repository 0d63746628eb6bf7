"""Uninstall: remove what init installed, restore containerd's files, keep the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kubeadm_registry import containerd, members, paths, secrets
from kubeadm_registry.agent.promised import NEW
from kubeadm_registry.cluster import Cluster, leader, retiring
from kubeadm_registry.components import agent, data, helper, network, retention
from kubeadm_registry.components.services import every_service
from kubeadm_registry.engine.changes import Absent, Directory, NoService, Steps
from kubeadm_registry.engine.phase import Check, Phase
from kubeadm_registry.engine.users import NoUser
from kubeadm_registry.transport.host import Host


def give_back(cluster: Cluster, host: Host) -> Steps:
    """Restore containerd's original configuration."""
    return containerd.restore_steps(host, turn=cluster.turn)


def restorable(_: Cluster, host: Host) -> Iterator[str]:
    """The backup of containerd's original configuration exists and is unmodified."""
    return containerd.restore_problems(host)


def services(cluster: Cluster, host: Host) -> Steps:
    """Stop every service, the outermost first, so that the VIP moves away before the registry stops."""
    yield from helper.remove(cluster, host)
    yield from retention.remove()
    for service in reversed(every_service()):
        for unit in service.units:
            yield NoService(unit)
    for table in paths.TABLES:
        yield network.NoFirewallRules(table)
    yield NoService(paths.SLICE)


@dataclass(frozen=True, slots=True)
class SecretsKept:
    """The secrets are in the data directory, whose data cannot be read without them, and nowhere else."""

    cluster: Cluster
    title = "move the secrets to the data directory"

    def diff(self, host: Host) -> str | None:
        """Whether they are still in the usual path."""
        there = host.query("test", "-e", secrets.PATH).ok
        return f"{secrets.PATH}: moved to {self._kept}" if there else None

    def apply(self, host: Host) -> None:
        """Move the secrets to the data directory."""
        place = Directory(self.cluster.spec.data_directory, as_is=True)
        if place.diff(host) is not None:
            place.apply(host)
        content = host.read(secrets.PATH) or b""
        host.write(self._kept, content, mode=0o600)
        host.run("rm", "-f", "--", secrets.PATH)

    @property
    def _kept(self) -> str:
        return secrets.kept_path(self.cluster.spec.data_directory)


@dataclass(frozen=True, slots=True)
class MembersKept:
    """The list of members is with the data: the keys in the secrets are also of nodes that have left."""

    cluster: Cluster
    title = "keep the list of members with the data"

    def diff(self, host: Host) -> str | None:
        """Whether it is only in its usual path."""
        content = host.read(members.PATH)
        if content is None or content == host.read(self._kept):
            return None
        return f"{self._kept}: as {members.PATH}"

    def apply(self, host: Host) -> None:
        """Copy it; the other one goes with its directory."""
        host.write(self._kept, host.read(members.PATH) or b"", mode=0o644)

    @property
    def _kept(self) -> str:
        return members.kept_path(self.cluster.spec.data_directory)


def keep(cluster: Cluster, host: Host) -> Steps:
    """Move the secrets to the data directory, and the list of members with them."""
    yield SecretsKept(cluster)
    yield MembersKept(cluster)


def files(cluster: Cluster, host: Host) -> Steps:
    """Remove configuration, programs, run-time state and users."""
    # A frontend has its images in the storage; what it works with is no data, and would be left to a user who is gone.
    for path in data.owned_scratch(cluster, host):
        yield Absent(path)
    # What the agent has promised ends with the cluster.
    for path in (agent.hardstate(cluster), f"{agent.hardstate(cluster)}{NEW}", *agent.notes(cluster)):
        yield Absent(path)
    yield Absent(agent.data(cluster), only_if_empty=True)
    for path in paths.REMOVED:
        yield Absent(path)
    for service in reversed(every_service()):
        if service.user:
            yield NoUser(service.user)


def purge(cluster: Cluster, host: Host) -> Steps:
    """Delete the images and the secrets, and nothing else in that directory."""
    directory = cluster.spec.data_directory
    if data.owns_storage(cluster, host):
        yield Absent(data.storage(cluster))
    yield Absent(secrets.kept_path(directory))
    yield Absent(members.kept_path(directory))
    yield Absent(directory, only_if_empty=True)


def of_these_members(cluster: Cluster, _: Host) -> Iterator[str]:
    """The file is not one of before a node left: it would uninstall the members with it."""
    known = cluster.recorded
    if known is None:
        return
    listed = {node.name for node in cluster.spec.nodes}
    left = (listed & set(known.former)) - set(known.nodes)
    if left and listed & set(known.nodes):
        names = ", ".join(sorted(left))
        yield (
            f"{names} has left the registry, and others in the file are its members; "
            f"run `leave {min(left)}` with the current file"
        )


def left_out(cluster: Cluster, host: Host) -> Iterator[str]:
    """What is not removed: files that are not ours, and members that the file lacks, as one of before a `join` does."""
    yield from data.foreign_scratch(cluster, host)
    known = cluster.recorded
    if known is None or cluster.change is not None or host != cluster.leader:
        return
    if names := ", ".join(sorted(known.nodes.keys() - {node.name for node in cluster.spec.nodes})):
        yield (
            f"not in the cluster file, so not uninstalled: {names}; unless lost or uninstalled before, run `reset` "
            "again with a file that lists all members"
        )


def at_hand(cluster: Cluster, host: Host) -> Iterator[str]:
    """The file systems in /etc/fstab at or above the data directory are mounted."""
    # The secrets go there; without them the images on that disk cannot be read. A node that leaves has none to keep.
    if host not in retiring(cluster):
        yield from data.mounted(cluster, host)


IMAGES_STAY = Check("ImagesStay", data.astray, mandatory=True)
MEMBERS_LISTED = Check("MembersListed", of_these_members, on=leader, mandatory=True)
CONTAINERD = Phase(
    "containerd",
    "Restore containerd's original configuration",
    give_back,
    checks=(MEMBERS_LISTED, IMAGES_STAY, Check("ContainerdBackup", restorable)),
    one_at_a_time=True,
)
SERVICES = Phase("services", "Stop the services and remove their units", services)
KEEP = Phase("secrets", "Move the secrets to the data directory", keep, checks=(Check("DataMounted", at_hand),))
FILES = Phase("files", "Remove configuration, programs and users", files, notices=left_out)
DATA = Phase("data", "Delete images and secrets (only with --purge-data)", purge, notices=data.foreign_storage)
RESET_PHASES = (CONTAINERD, SERVICES, KEEP, FILES, DATA)
