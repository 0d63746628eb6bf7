"""From a backup to a registry: what may differ from the one that was lost, and which images are there again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from kubeadm_registry import config as cluster_file
from kubeadm_registry import pki, secrets
from kubeadm_registry.backup.contents import Contents, Image, Pin
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.services import formed
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.config.immutable import NAME
from kubeadm_registry.errors import ConfigError, ConfigProblem
from kubeadm_registry.images import graph, inventory
from kubeadm_registry.images.names import Place, name_of
from kubeadm_registry.images.pool import Connect, each
from kubeadm_registry.images.seed import Item
from kubeadm_registry.members import Members
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Api, retry
from kubeadm_registry.retention import standing
from kubeadm_registry.upkeep import store

#: More than members ever change between a backup and the loss of the registry, where no clock tells.
LATER = 1000


@dataclass(frozen=True, slots=True)
class Missing:
    """An *image* of the backup that is not in the registry, and why."""

    image: Image
    why: str

    @property
    def name(self) -> str:
        """Its name, with tag and digest."""
        return f"{name_of(self.image.repository, self.image.tag)}@{self.image.digest}"


def require_same(config: RegistryCluster, contents: Contents, where: str) -> None:
    """Refuse a file that the registry cannot be restored by; *where* is the backup. Raises ConfigError.

    The storage is a new one, so the number, names and addresses of the nodes may be others than they were. The name of
    the cluster is in the CA, which stays, and later runs compare the two.
    """
    name = pki.cluster_of(contents.ca.certificate)
    if name != config.metadata.name:
        text = f"is {config.metadata.name}, and the CA in {where} is that of {name}"
        raise ConfigError(
            "this cluster file is not that of the registry that was backed up",
            problems=[ConfigProblem(NAME.path, text)], code="BackupOfAnother",
            hint="use the name in the backup, or another backup",
        )  # fmt: skip


def differences(config: RegistryCluster, contents: Contents) -> Iterator[str]:
    """What differs from the registry that was backed up and concerns the clients."""
    old: RegistryCluster | None = None
    with suppress(ConfigError):
        old = cluster_file.parse(contents.cluster_file, "cluster.yaml in the backup", elsewhere=True)
    if old is None:
        return
    before, now = old.spec.vip, config.spec.vip
    if before.addresses != now.addresses:
        yield (
            f"the virtual IP was {', '.join(before.addresses)} and is {', '.join(now.addresses)} "
            "now: run `kubeadm-registry mirrors apply` for the client nodes, which ask the old one"
        )
    if before.name is not None and before.name != now.name:
        yield (
            f"spec.vip.name was {before.name} and is {now.name or 'not set'} now: clients that use the old name will "
            "not accept the certificates"
        )


def secrets_for(config: RegistryCluster, contents: Contents) -> bytes:
    """The secrets file for the nodes of *config*: without the storage keys of nodes that it does not have."""
    names = {node.name for node in config.spec.nodes}
    found = contents.secrets
    keys = {name: key for name, key in found.values.get("node_keys", {}).items() if name in names}
    return secrets.render(replace(found, values={**found.values, "node_keys": keys}))


def members_for(cluster: Cluster, contents: Contents, minutes: int) -> Members | None:
    """The list of members for the nodes of *cluster*: one that is later than any after that in the backup.

    *minutes* since 1970 are its generation, so that it is also later than those after an earlier restore from that
    backup.

    Machines of before may be switched on again, and know the secrets. So whoever had left stays kept out, and so does
    each address that is not used again; and a higher generation than theirs tells them that they are no members, also
    if members changed after the backup.
    """
    there, before = cluster.recorded, contents.listed
    if there is not None and there.generation >= before.generation:
        return there  # of this very registry, or of a run that was interrupted
    nodes = {node.name: node.address for node in cluster.spec.nodes}
    directory = cluster.spec.data_directory
    if nodes != before.nodes and any(formed(host, directory) for host in cluster.hosts):
        return before  # the data stays, and with it the members: SameCluster compares them with the file
    return replace(before.without(nodes), generation=max(before.generation + LATER, minutes))


def unavailable(images: Iterable[Image], items: Iterable[Item]) -> list[Missing]:
    """Those of *images* that are not among the *items* of bundles."""
    there: dict[tuple[str, str], set[str]] = {}
    for item in items:
        there.setdefault((item.repository, item.reference), set()).add(item.root.digest)
    found = []
    for image in images:
        digests = there.get((image.repository, image.tag), set())
        if image.digest not in digests:
            found.append(Missing(image, _why(digests)))
    return found


def _why(digests: Iterable[str]) -> str:
    others = sorted(digests)
    return f"the bundles have {', '.join(others)} under this tag" if others else "in none of the bundles"


def missing(connect: Connect, images: Sequence[Image], reasons: Mapping[Image, str]) -> list[Missing]:
    """Those of *images* that the registry does not have, each with its reason if there is one. Raises RegistryError."""

    reader = graph.Reader(inventory.PATIENCE)

    def ask(registry: Api, image: Image) -> oci.Descriptor | str | None:
        return reader.descriptor(registry, Place(image.repository, image.tag))

    found = []
    for image, there in each(connect, ask, images):
        if isinstance(there, oci.Descriptor):
            why = f"the tag is {there.digest} now" if there.digest != image.digest else ""
        else:
            why = there or "not in the registry"
        if why:
            found.append(Missing(image, reasons.get(image, why)))
    return found


def pin(registry: Api, key: str, pins: Sequence[Pin]) -> None:
    """Pin what *pins* name, unless it is pinned already. Raises RegistryError, Error (StandingDamaged), NewerFormat."""
    there = {one.name for one in retry(lambda: store.read_standing(registry, key), store.PATIENCE).pins}
    wanted = [standing.Pin(one.name, one.reason, one.since, one.until) for one in pins if one.name not in there]

    def add(before: standing.Standing) -> standing.Standing:
        for one in wanted:
            before = before.pinned(one)
        return before

    if wanted:
        store.restate(registry, key, add)
