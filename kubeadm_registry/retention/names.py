"""From a reference, as users write it in a pod, to the repositories of the registry that it may stand for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from kubeadm_registry.images.names import ALSO
from kubeadm_registry.oci.references import full, parse, repository_prefix

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]{64}")
#: dockershim wrote these, and cri-dockerd still does.
_SCHEMES = ("docker-pullable://", "docker://")
#: What makes the first part of a name a host: https://github.com/distribution/reference, splitDockerDomain.
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\](?::[0-9]+)?|[^/]*[.:][^/]*|localhost)/")
_DOCKER_HUB = "docker.io/"
_OFFICIAL = "docker.io/library/"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a reference asks for: *tag* or *digest* (one may be empty) in any of *repositories*."""

    repositories: tuple[str, ...]
    tag: str
    digest: str


def wanted(reference: str) -> Wanted | None:
    """What *reference* asks for; None if it cannot be read.

    A host is that of an upstream (``registry.k8s.io/pause`` is in the repository of that name), or any name of this
    registry (``VIP:5000/registry.k8s.io/pause``, ``VIP:5000/team/app``): which of its names a DNS server leads here is
    not known, so it is always read as both. A name without a host is Docker Hub's. Any name may be that very
    repository, as pins and the trash name it. The more repositories a reference stands for, the more is kept.
    """
    asked = list(_read(reference))
    if (host := _HOST.match(reference)) is not None:
        asked += _read_path(reference[host.end() :])
    if not asked:
        return None
    repositories = {also for one in asked for name in one.repositories for also in _also(name)}
    return Wanted(tuple(sorted(repositories)), asked[0].tag, asked[0].digest)


def digest_in(image_id: str) -> str:
    """The digest in an *image_id*: of a manifest (``repo@sha256:...``) or of a configuration; empty if it has none.

    CRI-O writes the digest of a configuration without its algorithm.
    """
    for scheme in _SCHEMES:
        image_id = image_id.removeprefix(scheme)
    if _HEX.fullmatch(image_id):
        return f"sha256:{image_id}"
    last = image_id.rpartition("@")[2]
    return last if _DIGEST.fullmatch(last) else ""


def _read(text: str) -> Iterator[Wanted]:
    """*text* as any client reads it, and as the path of a repository: ``host_5000`` is none that a client takes."""
    if (found := parse(full(text) or "")) is not None:
        hosts = sorted({found.host, found.host.lower()})
        yield Wanted(tuple(f"{repository_prefix(host)}/{found.path}" for host in hosts), found.tag, found.digest)
    yield from _as_path(text)


def _read_path(text: str) -> Iterator[Wanted]:
    """*text* as it comes after a name of this registry: the path of a repository, or a whole name of an upstream's."""
    yield from _read(text) if _HOST.match(text) else _as_path(text)


def _as_path(text: str) -> Iterator[Wanted]:
    """*text* as the path of a repository."""
    # Any host makes the rest a path.
    if (found := parse(full(f"registry.invalid/{text}") or "")) is not None:
        yield Wanted((found.path,), found.tag, found.digest)


def _also(name: str) -> Iterator[str]:
    """All names of the repository *name*."""
    yield name
    if name.startswith(_OFFICIAL):
        yield _DOCKER_HUB + name.removeprefix(_OFFICIAL)
        # A list of names says app:v1 of our own repository, as `images list` does, and is read as names of Docker Hub.
        yield name.removeprefix(_OFFICIAL)
    # seed puts CoreDNS where kubeadm looks for it with an imageRepository as well, so the two are one image.
    for one, other in ALSO.items():
        if name == one:
            yield other
        elif name == other:
            yield one
