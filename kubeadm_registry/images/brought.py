"""Which images bundles brought: for each series of bundles the registry keeps the list of the one seeded last.

The list is the only layer of a small artifact beside the record of ``seeded``. Whoever deletes images by a rule keeps
what is in it. An older release that seeds the next bundle of a series does not write it: the list is of another bundle
then than the record, and counts as unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kubeadm_registry.bundle.lineage import Lineage
from kubeadm_registry.errors import BundleError, Error, RegistryError
from kubeadm_registry.formats import Damaged, Format
from kubeadm_registry.images import artifacts, seeded
from kubeadm_registry.images.absence import expect_canary, out_of_reach
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Api

ARTIFACT = "application/vnd.kubeadm-registry.bundle.images.v1"
LIST = f"{ARTIFACT}+json"
FORMAT = Format("the list of images that a bundle brought")
_TAG = "images-"
_AGAIN = "seed the newest bundle of its series again"


@dataclass(frozen=True, slots=True)
class Brought:
    """What the bundle with the index *index* brought: digests by full name."""

    index: str
    images: Mapping[str, str]

    @property
    def references(self) -> tuple[str, ...]:
        """Each image by its name and its digest, sorted."""
        return tuple(name if "@" in name else f"{name}@{digest}" for name, digest in sorted(self.images.items()))

    def to_json(self) -> bytes:
        """The list as a record."""
        return FORMAT.render({"index": self.index, "images": dict(sorted(self.images.items()))})

    @classmethod
    def parse(cls, content: bytes) -> Brought:
        """The list in a record. Raises Damaged, NewerFormat."""
        values = FORMAT.parse(content).values
        index, images = values.get("index"), values.get("images")
        if not isinstance(index, str) or not isinstance(images, dict):
            raise Damaged("it has no index, or no images")
        if not all(isinstance(one, str) for one in images.values()):
            raise Damaged("the digest of an image is not a string")
        return cls(index, images)


def read(registry: Api, line: str) -> Brought | None:
    """The list of a series, which is known by the hex digits *line*; None if there is none.

    Raises RegistryError, also if it may only be out of reach, NewerFormat, Error (SeedRecordDamaged).
    """
    tag = f"{_TAG}{line}"
    try:
        found = artifacts.read(registry, seeded.REPOSITORY, tag)
        if found is None and tag in registry.tags(seeded.REPOSITORY):
            raise _out_of_reach(tag)
        return None if found is None else Brought.parse(found[1])
    except artifacts.LayerMissing as error:
        raise _out_of_reach(tag) from error
    except (ValueError, BundleError) as error:
        raise Error(
            f"{seeded.REPOSITORY}:{tag} in the registry: {error}", code="SeedRecordDamaged", hint=_AGAIN
        ) from error


def write(registry: Api, line: Lineage, images: Mapping[str, str]) -> None:
    """Note what the bundle of *line* brought. Raises RegistryError."""
    artifacts.write(
        registry, seeded.REPOSITORY, f"{_TAG}{_hex(line)}", Brought(line.index, images).to_json(),
        kind=ARTIFACT, media_type=LIST, annotations={seeded.INDEX: line.index},
    )  # fmt: skip


def is_noted(registry: Api, line: Lineage) -> bool:
    """Whether the list of this very bundle is there, by one question. Raises RegistryError."""
    content = registry.manifest(seeded.REPOSITORY, f"{_TAG}{_hex(line)}")
    try:
        manifest = oci.parse(oci.Manifest, content or b"{}", "the list of images")
    except BundleError:
        return False
    return (manifest.annotations or {}).get(seeded.INDEX) == line.index


def everything(registry: Api) -> Iterator[Brought]:
    """The lists of all series. Raises RegistryError, also if there may be others that are only out of reach (zot makes
    a 404 of a storage error), NewerFormat, and Error (SeedRecordDamaged, ImagesUnknown)."""
    tags = registry.tags(seeded.REPOSITORY)
    if not tags:
        expect_canary(registry)
    for tag in tags:
        if not tag.startswith(seeded.LINE_TAG):
            continue
        line = tag.removeprefix(seeded.LINE_TAG)
        content = registry.manifest(seeded.REPOSITORY, tag)
        if content is None:
            if tag not in registry.tags(seeded.REPOSITORY):
                continue  # it was deleted meanwhile
            raise _out_of_reach(tag)
        record = seeded.Record.parse(content, f"{seeded.REPOSITORY}:{tag} in the registry")
        found = read(registry, line)
        if found is None or found.index != record.index:
            raise Error(
                f"it is not known which images the bundle with index {record.index} brought: it was seeded by an older "
                "kubeadm-registry",
                code="ImagesUnknown", hint=_AGAIN,
            )  # fmt: skip
        yield found


def _out_of_reach(tag: str) -> RegistryError:
    return out_of_reach(f"{seeded.REPOSITORY}:{tag}", _AGAIN, unknown="what that bundle brought")


def _hex(line: Lineage) -> str:
    return seeded.tag(line).removeprefix(seeded.LINE_TAG)
