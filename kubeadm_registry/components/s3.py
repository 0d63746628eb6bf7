"""Where frontend and storage meet: every storage serves S3 at one loopback address, every frontend has its bucket."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from kubeadm_registry import addresses, paths
from kubeadm_registry.agent import bucket as lister
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.config import Spec
from kubeadm_registry.errors import CommandFailed, Error
from kubeadm_registry.result import Result
from kubeadm_registry.transport import host_python
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


def _request(cluster: Cluster, region: str, **wanted: object) -> bytes:
    request = {
        "host": paths.S3_ADDRESS, "port": paths.S3_PORT, "region": region, "bucket": bucket(cluster.spec),
        "key": cluster.secrets.s3_key_id, "secret": cluster.secrets.s3_secret_key, **wanted,
    }  # fmt: skip
    return json.dumps(request).encode()


def answer(result: Result, host: Host, *, code: str, hint: str) -> list[str]:
    """The lines of the answer. Raises Error (*code*) if the program on *host* did not come to its end."""
    *lines, end = result.text.splitlines() or [""]
    if not result.ok or end != "end":
        words = result.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["the answer is not complete"]
        raise Error(words[0][:300], host=host.name, code=code, hint=hint)
    return lines


def objects(
    cluster: Cluster, host: Host, region: str, keys: str, *, newer: float | None = None, always: str | None = None
) -> Iterator[Stored]:
    """The objects whose key matches the pattern *keys*, as *host* lists them.

    Those are left out that are not *newer* than so many seconds, unless their key matches *always* as well.

    Nothing is written. Raises Error (StorageUnreadable).
    """
    request = _request(cluster, region, keys=keys, newer=newer, always=always)
    result = host.query(*host_python.command(lister), stdin=request, timeout=1800)
    lines = answer(result, host, code="StorageUnreadable", hint="see `kubeadm-registry status`")
    for line in lines:
        if found := re.fullmatch(r"(-?\d+) (\d+) (.+)", line):
            yield Stored(found[3], int(found[2]), float(found[1]))


#: Ends the unit ``$1`` that may still run, then runs ``$3...`` as it, for ``$2`` seconds at most, also when nobody
#: waits any more. systemd takes ``$$`` for a dollar sign.
_AS_UNIT = """
unit=$1 seconds=$2; shift 2
systemctl stop -- "$unit" 2>/dev/null
exec systemd-run --quiet --pipe --wait --collect --unit="$unit" --description='deletion of blobs' \\
  --property=RuntimeMaxSec="$seconds" -- "$@"
"""


#: Seconds for an fsync of etcd's that are still good, of 99 in 100 (etcd's FAQ recommends 0.01), with some room.
FSYNC = 0.025


def delete(
    cluster: Cluster, host: Host, region: str, keys: Collection[str], *, seconds: float, unit: str
) -> frozenset[str]:
    """Delete the objects *keys* at *host*, as its transient *unit*, and begin no deletion after *seconds*.

    None begins either while an etcd of *host* needs more than FSYNC seconds for an fsync. Returns the keys that are
    gone: what was not reached in time is left out. Raises Error (CollectionFailed).
    """
    request = _request(cluster, region, delete=sorted(keys), seconds=seconds, fsync=FSYNC)
    program = [word.replace("$", "$$") for word in host_python.command(lister)]
    argv = ("sh", "-c", _AS_UNIT, "delete", unit, f"{seconds + 5:.0f}", *program)
    try:
        result = host.run(*argv, stdin=request, timeout=seconds + 30)
    except CommandFailed as error:
        result = error.result
    hint = f"see `journalctl -u {unit}` on that node, then run it again"
    return frozenset(answer(result, host, code="CollectionFailed", hint=hint))


def etcd_latency(host: Host) -> float | None:
    """In how many seconds 99 of 100 fsyncs of the etcd on *host* end, in the next second; None: there is none."""
    request = json.dumps({"latency": 1.0}).encode()
    lines = answer(
        host.query(*host_python.command(lister), stdin=request, timeout=31), host,
        code="StorageUnreadable", hint="see `kubeadm-registry status`",
    )  # fmt: skip
    return min(float(lines[0]), 3600.0) if lines else None
