"""The programs of the bundle on a host: each in a folder of its own, by digest, uploaded once."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubeadm_registry.bundle import Bundle, Program
from kubeadm_registry.bundle.programs import Package, Source
from kubeadm_registry.changes import File, Steps
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.errors import Error
from kubeadm_registry.host import Host
from kubeadm_registry.paths import OPT, PROGRAMS

#: Which programs a host has, so that later runs need no bundle.
RECORD = f"{OPT}/programs.json"

#: Whether the file ``$2`` has the SHA-256 ``$1``.
_UPLOADED = 'echo "$1  $2" | sha256sum -c --quiet 2>&1'

#: ``$1`` archive, ``$2`` its SHA-256, ``$3`` target folder. Unpacks beside the target and renames: whole or not there.
_UNPACK = """
set -e
archive=$1 digest=$2 target=$3
echo "$digest  $archive" | sha256sum --check --quiet
umask 022
mkdir -p -- "$(dirname -- "$target")"
new=$(mktemp -d -- "$(dirname -- "$target")/.new.XXXXXXXXXX")
trap 'rm -rf -- "$new"' EXIT
tar -xzf "$archive" -C "$new" --no-same-owner
echo "$digest" > "$new/.digest"
chmod 755 "$new"
[ ! -e "$target" ] || mv -T -- "$target" "$new.old"
mv -T -- "$new" "$target"
rm -rf -- "$new.old" "$archive"
sync -f -- "$target"
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """A program of the bundle in its folder, with exactly the bundle's bytes."""

    program: Program
    bundle: Bundle | None

    @property
    def title(self) -> str:
        """What apply does."""
        return f"install {self.program.name} {self.program.version}"

    def diff(self, host: Host) -> str | None:
        """That it is not there, or that another build is."""
        digest = host.read(f"{self.program.prefix}/.digest")
        if digest is not None and digest.decode().strip() == self.program.digest.removeprefix("sha256:"):
            return None
        verb = "new" if digest is None else "replaced"
        return f"{self.program.prefix}: {verb}, {self.program.unpacked / 1e6:.1f} MB, {self.program.digest}"

    def apply(self, host: Host) -> None:
        """Upload the layer, unless an earlier run did, and unpack it."""
        digest = self.program.digest.removeprefix("sha256:")
        archive = f"{PROGRAMS}/.{digest}.tar.gz"
        if not host.query("sh", "-c", _UPLOADED, "uploaded", digest, archive).ok:
            if self.bundle is None:
                raise Error(f"{self.program.name} is not on this host", hint="give the bundle with --bundle FILE",
                            host=host.name, code="BundleMissing")  # fmt: skip
            with tempfile.TemporaryDirectory(prefix="kubeadm-registry-") as directory:
                local = Path(directory) / "layer.tar.gz"
                self.bundle.extract(self.program, local)
                host.upload(local, archive)
        host.run("sh", "-c", _UNPACK, "unpack", archive, digest, self.program.prefix, timeout=300)


def install(cluster: Cluster, host: Host) -> Steps:
    """Every program of the cluster in its place, then the record of them."""
    for program in cluster.programs.values():
        yield Installed(program, cluster.bundle)
    yield File(RECORD, record(cluster.programs))


def record(programs: Mapping[str, Program]) -> bytes:
    """The content of the record."""
    document = {name: dataclasses.asdict(program) for name, program in sorted(programs.items())}
    return (json.dumps(document, indent=1) + "\n").encode()


def read_record(content: bytes) -> dict[str, Program]:
    """The programs of a record. Raises Error if it is damaged."""
    try:
        return {name: _program(values) for name, values in json.loads(content).items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Error(f"{RECORD} is damaged: {error}", hint="give the bundle with --bundle FILE") from error


def _program(values: dict[str, Any]) -> Program:
    source = values["source"]
    packages = tuple(Package(**package) for package in source["packages"])
    return Program(**{**values, "source": Source(**{**source, "packages": packages})})
