"""Bundles compared: a delta holds only what the bundle before it has not, and ``diff`` tells people what that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubeadm_registry.bundle.bundle import Bundle
from kubeadm_registry.bundle.lineage import Lineage
from kubeadm_registry.oci import descriptors as oci


@dataclass(frozen=True, slots=True)
class Base:
    """The bundle that a delta is made since: its place in its line, and which image or program has which blob."""

    lineage: Lineage
    has: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Base:
        """Read the manifests of the bundle at *path*, itself a delta or not. Raises BundleError."""
        with Bundle.open(path) as bundle:
            has = {}
            for program in bundle.programs.values():
                bundle.layout.expect(program.layer)
                has[program.digest] = program.reference
            for name, descriptor in blobs(bundle):
                bundle.layout.expect(descriptor)
                has[descriptor.digest] = name
            return cls(bundle.layout.lineage, has)

    def leave_out(self, contents: MutableMapping[str, Any]) -> dict[str, str]:
        """Take what the base has out of *contents*, by digest; returns the annotations of the delta's index.

        Manifests stay, small as they are: so a delta can be checked, looked into and compared by itself.
        """
        left_out = [(digest, self.has[digest]) for digest in contents if digest in self.has]
        for digest, _ in left_out:
            del contents[digest]
        return self.lineage.next(left_out)


def blobs(bundle: Bundle) -> Iterator[tuple[str, oci.Descriptor]]:
    """Every blob of *bundle*'s images that is no manifest, with the image that needs it."""
    for name, root in sorted(bundle.images.items()):
        for descriptor in bundle.layout.reachable(root):
            if descriptor.media_type not in oci.TREES:
                yield name, descriptor


def diff(old: Path, new: Path) -> dict[str, Any]:
    """What *new* has that *old* has not, as plain data for JSON; sizes in bytes. Reads no blob but manifests.

    ``added``, ``removed`` and ``changed`` are images and programs by name; ``adds`` is how many bytes of blobs an item
    has that *old* has nowhere, and at the top that of all, each once. Raises BundleError.
    """
    with Bundle.open(old) as before, Bundle.open(new) as after:
        there, here = _items(before), _items(after)
        known = {digest for item in there.values() for digest in item.sizes}
        sizes = {digest: size for item in here.values() for digest, size in item.sizes.items()}
        return {
            "added": [here[key].told(known) for key in sorted(here.keys() - there.keys())],
            "removed": [there[key].told(known) for key in sorted(there.keys() - here.keys())],
            "changed": [
                {**here[key].told(known), "was": there[key].digest, "wasVersion": there[key].version}
                for key in sorted(here.keys() & there.keys())
                if here[key].digest != there[key].digest
            ],
            "adds": sum(size for digest, size in sizes.items() if digest not in known),
        }


@dataclass(frozen=True, slots=True)
class _Item:
    """An image or a program: its digest, and its blobs with their sizes."""

    kind: str
    name: str
    version: str
    digest: str
    sizes: Mapping[str, int]

    def told(self, known: set[str]) -> dict[str, Any]:
        adds = sum(size for digest, size in self.sizes.items() if digest not in known)
        size = sum(self.sizes.values())
        return {
            "kind": self.kind, "name": self.name, "version": self.version, "digest": self.digest, "size": size,
            "adds": adds,
        }  # fmt: skip


def _items(bundle: Bundle) -> dict[tuple[str, str], _Item]:
    items = {}
    for name, root in bundle.images.items():
        sizes = {blob.digest: blob.size for blob in bundle.layout.reachable(root)}
        items["image", name] = _Item("image", name, "", root.digest, sizes)
    for name, program in bundle.programs.items():
        items["program", name] = _Item("program", name, program.version, program.digest, {program.digest: program.size})
    return items
