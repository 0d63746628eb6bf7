"""CNCF Distribution: plain, and may be written anywhere, for its tags are objects of their own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING

from kubeadm_registry import paths
from kubeadm_registry.addresses import endpoint
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import s3
from kubeadm_registry.components.units import Port, Service, serve
from kubeadm_registry.engine.changes import Directory, File, Steps
from kubeadm_registry.engine.render import render
from kubeadm_registry.errors import Error
from kubeadm_registry.transport.host import Host

if TYPE_CHECKING:
    from kubeadm_registry.components.services import Backend

NAME = "distribution"
UNIT = paths.unit(NAME)
USER = paths.user(NAME)
CONFIG = f"{paths.ETC}/distribution/config.yml"
SINGLE_WRITER = False
FREES_BLOBS = False
SERVICE = Service(
    NAME,
    units=(UNIT,),
    user=USER,
    program=NAME,
    restarted_by=(CONFIG,),
    ports=(Port(paths.FRONTEND_PORT, local=True),),
    calls=(paths.S3_PORT,),
)


#: Runs a collection as the frontend's user with its own configuration, and says what matters of its output: a line for
#: each manifest would be too much. systemd ends it after ``$3`` seconds, also when nobody waits any more. ``$1`` unit,
#: ``$2`` user, ``$4`` slice, ``$5`` program, ``$6`` its configuration.
_COLLECT = """
unit=$1 user=$2 seconds=$3 slice=$4 program=$5 config=$6
{
  systemd-run --quiet --pipe --wait --collect --unit="$unit" --slice="$slice" --uid="$user" \\
    --property=RuntimeMaxSec="$seconds" --property=UnsetEnvironment=AWS_CA_BUNDLE --setenv=OTEL_TRACES_EXPORTER=none \\
    -- "$program" garbage-collect --dry-run "$config" 2>&1
  echo "status $?"
} | grep -E '^(status |blob eligible for deletion: )|: marking (manifest |blob sha(384|512):)|ailed'
"""
COLLECTION = f"{paths.PREFIX}-collection.service"
"""As which unit blobs are deleted on a node, one at a time."""
_MARKED = re.compile(r"(\S+): marking manifest (sha256:[0-9a-f]{64}) ?")
_ELIGIBLE = re.compile(r"blob eligible for deletion: (sha256:[0-9a-f]{64})")
#: Distribution keeps a blob by its sha256, and takes one for unused that a manifest names otherwise.
_OTHERWISE = re.compile(r"(\S+): marking blob (sha(?:384|512):[0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class Marked:
    """The digests of blobs that no manifest needs, of all *manifests* that were read: repository and digest."""

    unneeded: frozenset[str]
    manifests: frozenset[tuple[str, str]]


def mark(cluster: Cluster, host: Host, *, seconds: float) -> Marked:
    """What ``registry garbage-collect`` finds at *host*.

    It leaves out the rest of a repository, without a word, where a manifest goes while it reads there. Manifests
    without a tag stay with what they need (no ``--delete-untagged``): they may be used by digest, retention decides
    about them, and 2.8 would take the images of an index for untagged ones. Raises Error (CollectionFailed) if it takes
    more than *seconds*, or a manifest names a blob by another digest than its sha256.
    """
    unit = f"{paths.PREFIX}-marking-{token_hex(4)}.service"  # others may mark at the same time
    argv = (unit, USER, f"{seconds:.0f}", paths.SLICE, cluster.program(NAME).executable, CONFIG)
    result = host.query("sh", "-c", _COLLECT, "collect", *argv, timeout=seconds + 60)
    *lines, last = result.text.splitlines() or [""]
    if last != "status 0":
        known = (_ELIGIBLE, _MARKED)
        said = [line for line in lines if not any(one.fullmatch(line) for one in known)][-1:]
        said = said or [last or "it said nothing"]
        raise Error(
            f"registry garbage-collect did not complete within {seconds:.0f} s: {said[0][:300]}", host=host.name,
            code="CollectionFailed", hint=f"see `journalctl -u {unit}` on that node, then run it again",
        )  # fmt: skip
    if otherwise := next((found for line in lines if (found := _OTHERWISE.fullmatch(line))), None):
        raise Error(
            f"an image in {otherwise[1]} needs a blob by {otherwise[2][:19]}..., which registry garbage-collect "
            "considers unused: nothing was deleted",
            host=host.name, code="CollectionFailed", hint="push that image with sha256 digests, and delete this one",
        )  # fmt: skip
    return Marked(
        frozenset(found[1] for line in lines if (found := _ELIGIBLE.fullmatch(line))),
        frozenset((found[1], found[2]) for line in lines if (found := _MARKED.fullmatch(line))),
    )


def agent_frontend() -> dict[str, object]:
    """Nothing: it may write at any time."""
    return {}


def key(_: str, digest: str) -> str:
    """Where Distribution keeps the blob *digest* in its bucket, which all repositories share."""
    hexadecimal = digest.removeprefix("sha256:")
    return f"docker/registry/v2/blobs/sha256/{hexadecimal[:2]}/{hexadecimal}/data"


def records(_: str) -> tuple[str, ...]:
    """None: each tag is an object of its own, and so small that the storage keeps it in its tables."""
    return ()


def install(cluster: Cluster, host: Host, storage: Backend) -> Steps:
    """Install Distribution on loopback, without a login of its own, and start it."""
    config = File(
        CONFIG,
        render(
            "distribution/config.yml.j2",
            listen=endpoint(paths.LOOPBACK, paths.FRONTEND_PORT),
            secrets=cluster.secrets,
            s3=s3.url(),
            region=storage.REGION,
            bucket=s3.bucket(cluster.spec),
        ),
        owner=f"root:{USER}",
        mode=0o640,
        secret_keys=("secret", "secretkey"),
    )
    yield Directory(f"{paths.ETC}/distribution", mode=0o750, owner=f"root:{USER}")
    yield config
    yield from serve(
        SERVICE,
        (config,),
        gate=storage.gate(cluster),
        user=USER,
        storage=storage.SERVICE.unit,
        program=cluster.program(NAME).executable,
        config=CONFIG,
    )
