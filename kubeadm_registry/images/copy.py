"""Copying an image within the registry: blobs are mounted where the registry can, else read and sent again."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from kubeadm_registry.errors import RegistryError
from kubeadm_registry.images import graph, referrers
from kubeadm_registry.images.names import Place
from kubeadm_registry.images.pool import PATIENCE, Connect, each
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import PIECE, Api, Upload, cosign_tags, retry


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy came to: the image's *digest*, how many manifests were pushed, and how many bytes of blobs sent."""

    digest: str
    manifests: int
    sent: int


def copy(connect: Connect, source: Place, target: Place, *, referrers: bool) -> Copied:
    """Copy the image at *source*, whole, to *target*; *referrers*: with all that refers to it.

    Raises RegistryError, ImageMissing if any of it is not there, and SignaturesDiffer if a tag of cosign would lose
    something.
    """
    with ExitStack() as stack:
        registry = stack.enter_context(connect())
        found = retry(lambda: graph.read(registry, source), PATIENCE)
        if found is None:
            raise _missing(f"{source} is not in the registry")
        trees = [found]
        if referrers:
            referring = retry(lambda: list(_referring(registry, found, {found.root.digest})), PATIENCE)
            trees += [one for one in referring if _adds(registry, one, target.repository)]
        trees = [retry(partial(one.without_absent_layers, registry), PATIENCE) for one in trees]
        for one in trees:
            for manifest in one.manifests:
                if one.lacks(manifest):
                    raise _missing(f"{one.place} needs {manifest.digest}, which is not in the registry")
        sent = 0
        if source.repository != target.repository:
            blobs = {blob.digest: blob for one in trees for blob in one.blobs}
            send = partial(_send, source=source.repository, target=target.repository)
            sent = sum(count for _, count in each(connect, send, list(blobs.values())))
        goals = [target, *(Place(target.repository, one.place.reference) for one in trees[1:])]
        pushed = sum(_push(registry, one, goal) for one, goal in zip(trees, goals, strict=True))
    return Copied(found.root.digest, pushed, sent)


def _referring(registry: Api, image: graph.Graph, seen: set[str]) -> Iterator[graph.Graph]:
    """All that refers to *image*, or to what refers to it: by digest, or by the tag that cosign makes."""
    repository = image.place.repository
    for manifest in image.manifests:
        listed = [str(entry.get("digest")) for entry in registry.referrers(repository, manifest.digest)]
        for reference in (*listed, *cosign_tags(manifest.digest)):
            if reference in seen:
                continue
            seen.add(reference)
            found = graph.read(registry, Place(repository, reference))
            if found is not None:
                yield found
                yield from _referring(registry, found, seen)


def _adds(registry: Api, image: graph.Graph, repository: str) -> bool:
    """Whether *repository* lacks any of *image*, which refers to another one.

    cosign adds each signature to those under a tag, and whoever signed there may not have signed here. Raises
    RegistryError (SignaturesDiffer) if both have some that the other has not.
    """
    where = Place(repository, image.place.reference)
    if not where.reference.endswith((".sig", ".att")):
        return True
    there = retry(lambda: graph.read(registry, where), PATIENCE)
    if there is None or there.root.digest == image.root.digest:
        return True
    new, old = image.signatures, there.signatures
    if old - new and new - old:
        raise RegistryError(
            f"{where} has signatures that {image.place} does not have, and would lose them", code="SignaturesDiffer",
            hint=f"copy without --referrers and sign {repository} again, or delete {where} first",
        )  # fmt: skip
    return bool(new - old)


def _send(registry: Api, blob: oci.Descriptor, *, source: str, target: str) -> int:
    """Bring *blob* from one repository to another; how many bytes were sent."""
    if retry(lambda: registry.has_blob(target, blob.digest), PATIENCE):
        return 0

    def piece(offset: int) -> io.BytesIO:
        content = registry.piece(source, blob.digest, offset, PIECE)
        if content is None:
            raise _missing(f"blob {blob.digest} of {source} is not in the registry")
        return io.BytesIO(content)

    upload = Upload(registry, target, blob.digest, blob.size, patience=PATIENCE)
    upload.run(piece, mount_from=source)
    return upload.sent


def _push(registry: Api, image: graph.Graph, target: Place) -> int:
    """Push the manifests of *image*: the root as *target* says, the others by digest. How many there were."""
    for manifest in image.manifests:
        content = retry(partial(registry.manifest, image.place.repository, manifest.digest), PATIENCE)
        if content is None:
            raise _missing(f"manifest {manifest.digest} of {image.place} is not in the registry")
        reference = target.reference if manifest.digest == image.root.digest else manifest.digest
        retry(partial(referrers.push, registry, target.repository, reference, manifest, content), PATIENCE)
    return len(image.manifests)


def _missing(message: str) -> RegistryError:
    hint = "list the images with `images list`, verify them with `images check`"
    return RegistryError(message, code="ImageMissing", hint=hint)
