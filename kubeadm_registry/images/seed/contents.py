"""What a bundle's images consist of, and where each belongs in the registry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kubeadm_registry.bundle import Bundle
from kubeadm_registry.images.names import ALSO
from kubeadm_registry.images.referrers import Signatures, signatures
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.oci.references import parse, repository_prefix


@dataclass(frozen=True, slots=True)
class Item:
    """An image of the bundle (*name*) and its place in the registry; manifests come after those that they need.

    *signatures* are those that cosign keeps there.
    """

    name: str
    repository: str
    reference: str
    root: oci.Descriptor
    manifests: tuple[oci.Descriptor, ...]
    blobs: tuple[oci.Descriptor, ...]
    signatures: Signatures


def plan(bundle: Bundle, below: str = "") -> tuple[Item, ...]:
    """The images of *bundle* with all that they consist of, at each of their places. Raises BundleError.

    *below* is a path in the registry, with a slash at its end, in which all of them are to be. A tag is one image's:
    where a name with tag and digest is another one than the tag alone, or than that tag with another digest, it goes by
    its digest, by which clients ask for it.
    """
    second = {place: root for name, root in bundle.images.items() for place in _second_places(name)}
    wanted = {**second, **bundle.images}
    tagged: dict[str, set[str]] = {}
    for name, root in wanted.items():
        tagged.setdefault(_tagged(name), set()).add(root.digest)
    return tuple(
        _item(bundle, name, root, below, by_digest=len(tagged[_tagged(name)]) > 1)
        for name, root in sorted(wanted.items())
    )


def _tagged(name: str) -> str:
    """*name* without its digest."""
    return name.partition("@")[0]


def _second_places(name: str) -> Iterator[str]:
    for path, other in ALSO.items():
        if name.startswith((f"{path}:", f"{path}@")):
            yield other + name[len(path) :]


def _item(bundle: Bundle, name: str, root: oci.Descriptor, below: str, *, by_digest: bool) -> Item:
    reference = parse(name)
    assert reference is not None  # noqa: S101  a bundle has no other names
    needed = list(bundle.layout.reachable(root))
    for one in needed:
        bundle.layout.expect(one)  # nothing is pushed of a bundle that lacks something
    manifests = tuple(one for one in needed if one.media_type in oci.TREES)
    blobs = tuple(one for one in needed if one.media_type not in oci.TREES)
    repository = f"{below}{repository_prefix(reference.host)}/{reference.path}"
    tag, digest = reference.tag, reference.digest
    place = (digest or tag) if by_digest else (tag or digest)
    signed = signatures(place, lambda: bundle.layout.children(root))
    return Item(name, repository, place, root, manifests, blobs, signed)
