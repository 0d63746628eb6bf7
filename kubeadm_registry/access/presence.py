"""On which nodes each image is complete: by the blocks on their disks, of which nothing is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.services import backend, frontend
from kubeadm_registry.errors import Error
from kubeadm_registry.images.seed import Item
from kubeadm_registry.printable import counted
from kubeadm_registry.transport.host import Host, side_by_side

Blocks = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Presence:
    """Where the blocks of the image *name* are, of *size* bytes.

    *missing*: the bytes of it that each node that could be asked does not have. *copies*: on how many nodes its
    rarest block is. *lost*: the storage does not know something of it at all.
    """

    name: str
    size: int
    missing: Mapping[str, int]
    copies: int
    lost: bool = False

    @property
    def complete(self) -> tuple[str, ...]:
        """The nodes that have all of it."""
        return () if self.lost else tuple(name for name, size in self.missing.items() if not size)

    def to_dict(self) -> dict[str, Any]:
        """For machines; sizes in bytes."""
        return {
            "name": self.name,
            "size": self.size,
            "complete": list(self.complete),
            "missing": {name: size for name, size in self.missing.items() if size},
            "copies": self.copies,
            "lost": self.lost,
        }


def look(cluster: Cluster, items: Sequence[Item]) -> tuple[list[Presence], dict[str, str]]:
    """The presence of each of *items* on each node; and the nodes that cannot be asked, with the reason.

    Costs one question to the storage for each different blob and manifest, which it answers from its tables, and one
    look into the file system of each node for each different block: no content is read. Raises Error
    (StorageUnreadable) if no node can tell what the objects consist of.
    """
    keys = {item.name: keys_of(cluster, item) for item in items}
    known, lacks, silent = _ask(cluster, {key for found in keys.values() for key in found})
    return [_presence(item.name, {key: known[key] for key in keys[item.name]}, lacks) for item in items], silent


def broken(cluster: Cluster, keys: Iterable[str]) -> frozenset[str]:
    """Those of the objects *keys* of which the storage knows, and has lost a part. Raises Error (StorageUnreadable)."""
    known, lacks, silent = _ask(cluster, keys)
    expect_all(silent)
    nowhere = frozenset.intersection(*lacks.values())
    return frozenset(key for key, blocks in known.items() if blocks and not nowhere.isdisjoint(blocks))


def keys_of(cluster: Cluster, item: Item) -> tuple[str, ...]:
    """The objects that the manifests and blobs of *item* are in the storage."""
    digests = dict.fromkeys(one.digest for one in (*item.manifests, *item.blobs))
    return tuple(frontend(cluster.spec).key(item.repository, digest) for digest in digests)


def expect_all(silent: Mapping[str, str]) -> None:
    """What no node has is lost only if none is *silent*. Raises Error (StorageUnreadable)."""
    if silent:
        told = "; ".join(f"{name}: {why}" for name, why in silent.items())
        raise Error(f"cannot check which blocks some nodes have: {told}", code="StorageUnreadable",
                    hint="see `kubeadm-registry status`, then run the command again")  # fmt: skip


def _ask(
    cluster: Cluster, keys: Iterable[str]
) -> tuple[dict[str, Blocks | None], dict[str, frozenset[str]], dict[str, str]]:
    """What each of the objects *keys* consists of, which of that each node lacks, and which nodes cannot be asked."""
    every = sorted(set(keys))
    known = dict(zip(every, _first(cluster, every), strict=True))
    wanted = {block: size for found in known.values() for block, size in (found or {}).items()}
    silent = dict(cluster.absent)
    lacks: dict[str, frozenset[str]] = {}

    def ask(host: Host) -> frozenset[str] | str:
        try:
            return backend(cluster.spec).lacking(cluster, host, wanted)
        except Error as error:
            return error.message

    for host, answer in zip(cluster.hosts, side_by_side(ask, cluster.hosts), strict=True):
        if isinstance(answer, str):
            silent[host.name] = answer
        else:
            lacks[host.name] = answer
    return known, lacks, silent


def _first(cluster: Cluster, keys: Sequence[str]) -> list[Blocks | None]:
    """What the objects *keys* consist of, as the first node knows it that answers."""
    failure: Error | None = None
    for host in cluster.hosts:
        try:
            return list(backend(cluster.spec).blocks(cluster, host, keys))
        except Error as error:
            failure = failure or error
    raise failure or Error("no node can be asked", code="StorageUnreadable", hint="see `kubeadm-registry status`")


def _presence(name: str, objects: Mapping[str, Blocks | None], lacks: Mapping[str, frozenset[str]]) -> Presence:
    blocks = {block: size for one in objects.values() for block, size in (one or {}).items()}
    missing = {node: sum(blocks[block] for block in blocks.keys() & gone) for node, gone in lacks.items()}
    copies = {block: sum(block not in gone for gone in lacks.values()) for block in blocks}
    return Presence(
        name,
        sum(blocks.values()),
        missing,
        min(copies.values(), default=len(lacks)),
        lost=None in objects.values(),
    )


def verdict(
    found: Sequence[Presence], silent: Mapping[str, str], wanted: int, unread: Collection[str] = ()
) -> dict[str, str]:
    """The condition ``ImagesComplete``: whether each image has *wanted* copies, also those *unread*, of which nobody
    knows what they consist of. By Kubernetes' API conventions."""

    def condition(status: str, reason: str, message: str) -> dict[str, str]:
        return {"type": "ImagesComplete", "status": status, "reason": reason, "message": message}

    count = counted(len(found), "image")
    if lost := [one.name for one in found if one.lost]:
        return condition("False", "ImagesLost", f"the storage lacks parts of {_named(lost)}; load them with seed")
    if unread:
        return condition("False", "ImagesUnreadable", f"the registry cannot read {_named(sorted(unread))}")
    if rare := [one.name for one in found if one.copies < wanted]:
        if silent:
            return condition("Unknown", "NodesSilent", f"{', '.join(silent)} cannot be asked about {count}")
        return condition("False", "CopiesMissing", f"fewer than {wanted} nodes have all of {_named(rare)}")
    return condition("True", "Complete", f"{count}, each block on {counted(wanted, 'node')}")


def _named(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {counted(more, 'other image')}" if more > 0 else "")
