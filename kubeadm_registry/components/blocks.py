"""Which of Garage's blocks an object consists of, and which of them a node has on its disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

from kubeadm_registry import paths
from kubeadm_registry.agent import blocks as asker
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import garage_api, s3
from kubeadm_registry.errors import NotYetKnown
from kubeadm_registry.transport import host_python
from kubeadm_registry.transport.host import Host, side_by_side

#: Seconds that a node has for all of its answer.
PATIENCE = 1800.0
#: Objects or blocks in one question, whose text is then some megabytes.
AT_ONCE = 50_000
Item = TypeVar("Item")
Blocks = Mapping[str, int]
"""Bytes by hash."""


def directory(cluster: Cluster) -> str:
    """Where each node has its blocks."""
    return f"{cluster.spec.data_directory}/{garage_api.NAME}/data"


def blocks(cluster: Cluster, host: Host, keys: Sequence[str], *, token: str) -> list[Blocks | None]:
    """The blocks of each of the objects *keys* in the frontend's bucket, as *host* knows them; None: not there.

    *token* is the file with the token of Garage's admin API. One question to the storage for each object. Raises Error
    (StorageUnreadable).
    """
    request = {"host": paths.LOOPBACK, "port": paths.ADMIN_PORT, "token": token, "bucket": s3.bucket(cluster.spec)}
    told = [json.loads(line) for piece in _pieces(keys) for line in _ask(host, {**request, "keys": piece})]
    return [None if one is None else {str(block): int(size) for block, size in one} for one in told]


def lost(cluster: Cluster) -> dict[str, int]:
    """How many blocks each node has failed to get that are on no node's disk: none will ever get them.

    A node whose storage does not answer has none. Raises Error (StorageUnreadable) unless all tell what they have.
    """
    if cluster.absent:
        return {host.name: 0 for host in cluster.hosts}
    failed = dict(zip(cluster.hosts, side_by_side(partial(_failed, cluster), cluster.hosts), strict=True))
    wanted = dict.fromkeys(block for blocks in failed.values() for block in blocks)
    if not wanted:
        return {host.name: 0 for host in failed}
    found = side_by_side(lambda host: lacking(host, directory(cluster), wanted), cluster.everyone)
    nowhere = frozenset.intersection(*found)
    return {host.name: len(nowhere & blocks) for host, blocks in failed.items()}


def _failed(cluster: Cluster, host: Host) -> frozenset[str]:
    try:
        told = garage_api.Api(cluster, host).ask("ListBlockErrors", {"node": "self", "body": None})
    except NotYetKnown:
        return frozenset()
    return frozenset(str(one["blockHash"]) for listed in told["success"].values() for one in listed)


def lacking(host: Host, data: str, wanted: Mapping[str, int | None]) -> frozenset[str]:
    """Those of the blocks *wanted*, with their sizes if these are known, that *host* does not have whole below *data*.

    One look into the file system for each; no block is read. Raises Error (StorageUnreadable).
    """
    pieces = _pieces(list(wanted.items()))
    return frozenset(block for piece in pieces for block in _ask(host, {"data": data, "blocks": dict(piece)}))


def _pieces(every: Sequence[Item]) -> Iterator[list[Item]]:
    """What is asked about at once."""
    return (list(every[at : at + AT_ONCE]) for at in range(0, len(every), AT_ONCE))


def _ask(host: Host, request: Mapping[str, object]) -> list[str]:
    result = host.query(*host_python.command(asker), stdin=json.dumps(request).encode(), timeout=PATIENCE)
    return s3.answer(result, host, code="StorageUnreadable", hint="see `kubeadm-registry status`")
