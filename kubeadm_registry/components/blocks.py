"""Which of Garage's blocks an object consists of, and which of them a node has on its disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from kubeadm_registry import paths
from kubeadm_registry.agent import blocks as asker
from kubeadm_registry.certificates import RUN
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import s3
from kubeadm_registry.transport.host import Host

#: Seconds that a node has for all of its answer.
PATIENCE = 1800.0
Blocks = Mapping[str, int]
"""Bytes by hash."""


def blocks(cluster: Cluster, host: Host, keys: Sequence[str], *, token: str) -> list[Blocks | None]:
    """The blocks of each of the objects *keys* in the frontend's bucket, as *host* knows them; None: not there.

    *token* is the file with the token of Garage's admin API. One question to the storage for each object. Raises Error
    (StorageUnreadable).
    """
    request = {"host": paths.LOOPBACK, "port": paths.ADMIN_PORT, "token": token, "bucket": s3.bucket(cluster.spec)}
    told = [json.loads(line) for line in _ask(host, {**request, "keys": list(keys)})]
    return [None if one is None else {str(block): int(size) for block, size in one} for one in told]


def lacking(host: Host, data: str, wanted: Blocks) -> frozenset[str]:
    """Those of the blocks *wanted* that *host* does not have whole below its directory *data*.

    One look into the file system for each; no block is read. Raises Error (StorageUnreadable).
    """
    return frozenset(_ask(host, {"data": data, "blocks": dict(wanted)}))


def _ask(host: Host, request: Mapping[str, object]) -> list[str]:
    source = Path(asker.__file__).read_text(encoding="utf-8")
    argv = ("sh", "-c", RUN, "blocks", paths.PROGRAMS, source)
    result = host.query(*argv, stdin=json.dumps(request).encode(), timeout=PATIENCE)
    return s3.answer(result, host, code="StorageUnreadable", hint="see `kubeadm-registry status`")
