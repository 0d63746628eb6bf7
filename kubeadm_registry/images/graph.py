"""An image as the registry has it: the manifest asked for, and all that it leads to."""

from __future__ import annotations

import http
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from kubeadm_registry.errors import BundleError, RegistryError
from kubeadm_registry.images.names import Place
from kubeadm_registry.images.referrers import Signatures, signatures
from kubeadm_registry.images.seed import Item
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Api, retry

#: An index may hold an index; real ones hardly do.
_DEPTH = 4
#: Images that may turn out to be lost before the others are asked for once only.
_LOST = 3
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Graph:
    """The manifest at a *place*, and for each manifest that is there, by digest, what it needs: *needs*."""

    place: Place
    root: oci.Descriptor
    needs: Mapping[str, tuple[oci.Descriptor, ...]]

    @property
    def manifests(self) -> tuple[oci.Descriptor, ...]:
        """All manifests, there or not, each after those that it needs; the root is the last."""
        return tuple(one for one in self._walk(self.root) if _is_manifest(one))

    @property
    def blobs(self) -> tuple[oci.Descriptor, ...]:
        """All blobs."""
        return tuple(one for one in self._walk(self.root) if not _is_manifest(one))

    @property
    def signatures(self) -> Signatures:
        """Those that cosign keeps there."""
        return signatures(self.place.reference, lambda: self.needs[self.root.digest])

    def lacks(self, manifest: oci.Descriptor) -> bool:
        """Whether *manifest* is not there."""
        return manifest.digest not in self.needs

    def size(self, manifest: oci.Descriptor) -> int:
        """Bytes of *manifest* with all that it needs and that is there, each once."""
        found = {one.digest: one.size for one in self._walk(manifest) if not (_is_manifest(one) and self.lacks(one))}
        return sum(found.values())

    def without_absent_layers(self, registry: Api) -> Graph:
        """The same without layers that registries need not have, of those that *registry* has not.

        Raises RegistryError.
        """
        elsewhere = {
            one.digest
            for one in self.blobs
            if oci.NOT_DISTRIBUTED.search(one.media_type) and not registry.has_blob(self.place.repository, one.digest)
        }
        if not elsewhere:
            return self
        needs = {by: tuple(one for one in found if one.digest not in elsewhere) for by, found in self.needs.items()}
        return replace(self, needs=needs)

    def item(self) -> Item:
        """The same as seeding knows it."""
        place = self.place
        return Item(
            str(place), place.repository, place.reference, self.root, self.manifests, self.blobs, self.signatures
        )  # fmt: skip

    def _walk(self, start: oci.Descriptor, seen: set[str] | None = None) -> Iterator[oci.Descriptor]:
        seen = set() if seen is None else seen
        if start.digest in seen:
            return
        seen.add(start.digest)
        for one in self.needs.get(start.digest, ()):
            yield from self._walk(one, seen)
        yield start


class Reader:
    """Reads images one by one, so that one that the storage has lost says nothing of the others.

    A registry answers 5xx for it, as for one that is not itself just now: the first few are asked for again for
    *patience* seconds, the others once.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._lost = 0

    def read(self, registry: Api, where: Place) -> Graph | str | None:
        """The image at *where*; why it cannot be read, or None if it is not there. Raises RegistryError if there is no
        answer at all."""
        return self._tried(lambda: read(registry, where))

    def descriptor(self, registry: Api, where: Place) -> oci.Descriptor | str | None:
        """The same of its manifest alone, whose digest the registry tells; its size and type are not known."""

        def ask() -> oci.Descriptor | None:
            digest = registry.digest(where.repository, where.reference)
            return None if digest is None else oci.Descriptor(media_type="", digest=digest, size=0)

        return self._tried(ask)

    def _tried(self, work: Callable[[], Found | None]) -> Found | str | None:
        try:
            return retry(work, self._patience if self._lost < _LOST else 0)
        except RegistryError as error:
            if error.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
                self._lost += 1
            elif error.code != "ImageInvalid":
                raise
            return error.message


def read(registry: Api, where: Place) -> Graph | None:
    """The image at *where*; None if it is not there. Raises RegistryError, also for what is no image (ImageInvalid)."""
    content = registry.manifest(where.repository, where.reference)
    if content is None:
        return None
    root = oci.Descriptor(media_type=_media_type(content, where), digest=oci.digest_of(content), size=len(content))
    needs: dict[str, tuple[oci.Descriptor, ...]] = {}

    def follow(manifest: oci.Descriptor, content: bytes, depth: int) -> None:
        what = f"{where}: {manifest.digest}"
        if depth > _DEPTH:
            raise _invalid(f"{what}: indexes are nested more than {_DEPTH} deep")
        try:
            if manifest.media_type in oci.INDEXES:
                needs[manifest.digest] = oci.parse(oci.Index, content, what).manifests
            else:
                parsed = oci.parse(oci.Manifest, content, what)
                needs[manifest.digest] = (parsed.config, *parsed.layers)
        except BundleError as error:
            raise _invalid(error.message) from error
        for child in needs[manifest.digest]:
            if _is_manifest(child) and child.digest not in needs:
                inner = registry.manifest(where.repository, child.digest)
                if inner is not None:
                    follow(child, inner, depth + 1)

    follow(root, content, 1)
    return Graph(where, root, needs)


def _media_type(content: bytes, where: Place) -> str:
    try:
        document = json.loads(content)
        told = document.get("mediaType") or (oci.INDEX if "manifests" in document else oci.MANIFEST)
    except (ValueError, AttributeError, TypeError) as error:
        raise _invalid(f"{where}: the manifest is not a JSON object") from error
    except RecursionError as error:
        raise _invalid(f"{where}: the manifest is nested too deep") from error
    if not isinstance(told, str) or told not in oci.TREES:
        raise _invalid(f"{where} is {str(told)[:200]}, not an image in OCI or Docker schema 2 format")
    return told


def _is_manifest(descriptor: oci.Descriptor) -> bool:
    return descriptor.media_type in oci.TREES


def _invalid(message: str) -> RegistryError:
    return RegistryError(message, code="ImageInvalid")
