"""A program in a bundle: an OCI artifact whose one layer is the program's directory tree."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubeadm_registry.bundle import archive
from kubeadm_registry.bundle.failures import newer
from kubeadm_registry.errors import damaged
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.paths import PROGRAMS

ARTIFACT = "application/vnd.kubeadm-registry.program.v1"
_NEWER_ARTIFACT = re.compile(r"application/vnd\.kubeadm-registry\.program\.v[0-9]{1,9}")
#: The reference name of a program in the index begins with this.
REFERENCE = "program/"
#: What the kernel calls each architecture (``uname -m``).
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
ARCHITECTURES = tuple(MACHINES)

_TITLE = "org.opencontainers.image.title"
_VERSION = "org.opencontainers.image.version"
_OURS = "dev.kubeadm-registry.program."

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_PLAIN = re.compile(r"[\x20-\x7e]{1,200}")
_NUMBERS = re.compile(r"(?:\d+[:_])?v?(\d+(?:\.\d+)*)")


def numbers(version: str) -> tuple[int, ...]:
    """The numbers with which *version* begins (``1:2.3.0+ds1`` gives 2, 3, 0); none if it begins with none."""
    found = _NUMBERS.match(version)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,200}")


@dataclass(frozen=True, slots=True)
class Package:
    """A distribution package that a program was made from; *sha256* is that of the package file, 64 digits."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where a program comes from and what vouches for it.

    *kind* is ``file``, ``upstream-release`` or ``distribution-package``; *origin* a file's name, an address or a
    distribution's release; *checked* says what its content was compared with.
    """

    kind: str
    origin: str
    checked: str
    packages: tuple[Package, ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """A program as a bundle holds it.

    The layer is a tar.gz of files and directories, to be unpacked in *prefix*, an absolute path that no other build
    of the program shares; *entry_point* is the path of the executable in it. *digest* and *size* (bytes) are the
    layer's, *unpacked* (bytes) that of its files, *manifest* the digest of the artifact.
    """

    name: str
    version: str
    architecture: str
    prefix: str
    entry_point: str
    source: Source
    digest: str
    size: int
    unpacked: int
    manifest: str = ""

    @property
    def executable(self) -> str:
        """The absolute path of the executable on a host."""
        return f"{self.prefix}/{self.entry_point}"

    @property
    def reference(self) -> str:
        """The name in the bundle's index: ``program/NAME:VERSION``."""
        return f"{REFERENCE}{self.name}:{slug(self.version)}"

    @property
    def layer(self) -> oci.Descriptor:
        """The descriptor of the layer."""
        return oci.Descriptor(media_type=oci.LAYER, digest=self.digest, size=self.size)


def architecture_of(machine: str) -> str | None:
    """Return the architecture that the kernel calls *machine*; None for one that bundles are not made for."""
    return next((name for name, word in MACHINES.items() if word == machine), None)


def slug(text: str) -> str:
    """Return *text* with everything replaced that is not allowed in a path or a tag (``1:2.3`` becomes ``1_2.3``)."""
    return re.sub(r"[^A-Za-z0-9.+_-]", "_", text).lstrip("._+-") or "_"


def prefix_of(name: str, version: str, architecture: str, key: str) -> str:
    """Return the directory for one build of a program.

    *key* is a digest of what the build was made from. Two builds of one version, as after a security update of a
    library beside it, get two directories: the new tree never overwrites one that runs.
    """
    return f"{PROGRAMS}/{name}/{slug(version)}-{architecture}-{key.removeprefix('sha256:')[:8]}"


def to_manifest(program: Program) -> oci.Manifest:
    """Return the OCI artifact that describes *program*."""
    source = program.source
    packages = [{"name": p.name, "version": p.version, "sha256": p.sha256} for p in source.packages]
    annotations = {
        _TITLE: program.name,
        _VERSION: program.version,
        _OURS + "architecture": program.architecture,
        _OURS + "prefix": program.prefix,
        _OURS + "entry-point": program.entry_point,
        _OURS + "unpacked-size": str(program.unpacked),
        _OURS + "source": source.kind,
        _OURS + "origin": source.origin,
        _OURS + "checked": source.checked,
    }
    if packages:
        annotations[_OURS + "packages"] = oci.canonical(packages).decode()
    return oci.Manifest(
        artifact_type=ARTIFACT,
        config=oci.Descriptor(media_type=oci.EMPTY, digest=oci.digest_of(b"{}"), size=2, data="e30="),
        layers=(program.layer,),
        annotations=annotations,
    )


def from_manifest(manifest: oci.Manifest, digest: str) -> Program:
    """Return the program that the artifact *manifest* with its *digest* describes; raises BundleError if it is unfit.

    What is read here decides which path of a host root writes to and what runs there, so every value is checked. What
    is only shown to people may be missing.
    """
    if manifest.artifact_type != ARTIFACT and _NEWER_ARTIFACT.fullmatch(manifest.artifact_type or ""):
        raise newer(f"program {digest} was created by a newer release: it is {manifest.artifact_type}")
    if manifest.artifact_type != ARTIFACT or len(manifest.layers) != 1:
        raise damaged(f"{digest} is not a program: it is {manifest.artifact_type} with {len(manifest.layers)} layers")
    fields = _Fields(digest, manifest.annotations or {})
    name = fields.match(_TITLE, _NAME)
    layer = manifest.layers[0]
    entry_point = archive.safe_name(fields.match(_OURS + "entry-point", _PLAIN))
    if not entry_point.startswith("bin/"):
        raise fields.wrong(_OURS + "entry-point")
    prefix = fields.match(_OURS + "prefix", _PLAIN)
    if not (prefix.startswith(f"{PROGRAMS}/{name}/") and _SLUG.fullmatch(prefix[len(f"{PROGRAMS}/{name}/") :])):
        raise fields.wrong(_OURS + "prefix")
    architecture = fields.match(_OURS + "architecture", _NAME)
    if architecture not in ARCHITECTURES:
        raise fields.wrong(_OURS + "architecture")
    return Program(
        name=name,
        version=fields.match(_VERSION, _PLAIN),
        architecture=architecture,
        prefix=prefix,
        entry_point=entry_point,
        source=Source(
            kind=fields.match(_OURS + "source", _NAME, "unknown"),
            origin=fields.match(_OURS + "origin", _PLAIN, "unknown"),
            checked=fields.match(_OURS + "checked", _PLAIN, "unknown"),
            packages=fields.packages(),
        ),
        digest=layer.digest,
        size=layer.size,
        unpacked=int(fields.match(_OURS + "unpacked-size", re.compile(r"[0-9]{1,15}"))),
        manifest=digest,
    )


@dataclass(frozen=True, slots=True)
class _Fields:
    """The annotations of one program, taken out one by one."""

    digest: str
    values: Mapping[str, str]

    def wrong(self, key: str) -> Exception:
        return damaged(f"program {self.digest}: annotation {key} is {self.values.get(key, '')[:200]!r}")

    def match(self, key: str, pattern: re.Pattern[str], default: str = "") -> str:
        value = self.values.get(key, default)
        if not pattern.fullmatch(value):
            raise self.wrong(key)
        return value

    def packages(self) -> tuple[Package, ...]:
        try:
            rows: Any = json.loads(self.values.get(_OURS + "packages", "[]"))
            return tuple(Package(str(row["name"]), str(row["version"]), str(row["sha256"])) for row in rows)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self.wrong(_OURS + "packages") from error
