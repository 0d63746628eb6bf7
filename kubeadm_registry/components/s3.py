"""Where frontend and storage meet: every storage serves S3 at one loopback address, every frontend has its bucket."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kubeadm_registry import addresses, paths
from kubeadm_registry.agent import bucket as lister
from kubeadm_registry.certificates import RUN
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.config import Spec
from kubeadm_registry.errors import Error
from kubeadm_registry.transport.host import Host


def bucket(spec: Spec) -> str:
    """The bucket of the frontend: each kind has its own, for neither can read what the other writes."""
    return f"registry-{spec.frontend.type}"


def url() -> str:
    """Where the frontend finds the storage."""
    return addresses.url(paths.S3_ADDRESS, paths.S3_PORT, scheme="http")


@dataclass(frozen=True, slots=True)
class Stored:
    """An object of the bucket: its key, its bytes, and since how many seconds it is there."""

    key: str
    size: int
    age: float


@cache
def _source() -> str:
    return Path(lister.__file__).read_text(encoding="utf-8")


def objects(cluster: Cluster, host: Host, region: str, keys: str, *, newer: float | None = None) -> Iterator[Stored]:
    """The objects whose key matches the pattern *keys*, *newer* than so many seconds, as *host* lists them.

    Nothing is written. Raises Error (StorageUnreadable).
    """
    request = {
        "host": paths.S3_ADDRESS, "port": paths.S3_PORT, "region": region, "bucket": bucket(cluster.spec),
        "key": cluster.secrets.s3_key_id, "secret": cluster.secrets.s3_secret_key, "keys": keys, "newer": newer,
    }  # fmt: skip
    argv = ("sh", "-c", RUN, "bucket", paths.PROGRAMS, _source())
    result = host.query(*argv, stdin=json.dumps(request).encode(), timeout=1800)
    *lines, end = result.text.splitlines() or [""]
    if not result.ok or end != "end":
        words = result.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["the list is not complete"]
        raise Error(words[0][:300], host=host.name, code="StorageUnreadable", hint="see `kubeadm-registry status`")
    for line in lines:
        if found := re.fullmatch(r"(-?\d+) (\d+) (.+)", line):
            yield Stored(found[3], int(found[2]), float(found[1]))
