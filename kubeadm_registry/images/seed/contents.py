"""What a bundle's images consist of, and where each belongs in the registry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kubeadm_registry.bundle import Bundle
from kubeadm_registry.images.names import ALSO
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.oci.references import parse, repository_prefix


@dataclass(frozen=True, slots=True)
class Item:
    """An image of the bundle (*name*) and its place in the registry; manifests come after those that they need."""

    name: str
    repository: str
    reference: str
    root: oci.Descriptor
    manifests: tuple[oci.Descriptor, ...]
    blobs: tuple[oci.Descriptor, ...]


def plan(bundle: Bundle, below: str = "") -> tuple[Item, ...]:
    """The images of *bundle* with all that they consist of, at each of their places. Raises BundleError.

    *below* is a path in the registry, with a slash at its end, in which all of them are to be.
    """
    second = {place: root for name, root in bundle.images.items() for place in _second_places(name)}
    wanted = {**second, **bundle.images}
    return tuple(_item(bundle, name, root, below) for name, root in sorted(wanted.items()))


def _second_places(name: str) -> Iterator[str]:
    for path, other in ALSO.items():
        if name.startswith((f"{path}:", f"{path}@")):
            yield other + name[len(path) :]


def _item(bundle: Bundle, name: str, root: oci.Descriptor, below: str) -> Item:
    reference = parse(name)
    assert reference is not None  # noqa: S101  a bundle has no other names
    needed = list(bundle.layout.reachable(root))
    for one in needed:
        bundle.layout.expect(one)  # nothing is pushed of a bundle that lacks something
    manifests = tuple(one for one in needed if one.media_type in oci.TREES)
    blobs = tuple(one for one in needed if one not in manifests)
    repository = f"{below}{repository_prefix(reference.host)}/{reference.path}"
    return Item(name, repository, reference.tag or reference.digest, root, manifests, blobs)
