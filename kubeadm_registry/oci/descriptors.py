"""The parts of the OCI image specification that a bundle is made of: descriptors, manifests and the layout's index.

Source: https://github.com/opencontainers/image-spec (v1.1), the files descriptor.md, manifest.md, image-index.md and
image-layout.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, BinaryIO, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from kubeadm_registry.errors import damaged

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
EMPTY = "application/vnd.oci.empty.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
#: What says which platform an image is for. Other artifacts have other configurations.
CONFIGS = frozenset({CONFIG, "application/vnd.docker.container.image.v1+json"})
INDEXES = frozenset({INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({MANIFEST, DOCKER_MANIFEST})
#: What refers to other blobs.
TREES = INDEXES | MANIFESTS

#: Types of layers that registries need not have: image-spec, layer.md, "Non-Distributable Layers", and Docker's own.
NOT_DISTRIBUTED = re.compile(r"\.(?:nondistributable|foreign)\.")

REFERENCE_NAME = "org.opencontainers.image.ref.name"
#: containerd writes the image's full name here, and only its tag into the reference name.
CONTAINERD_NAME = "io.containerd.image.name"

LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'

#: The longest manifest that is read. The distribution specification asks registries for 4 MiB.
MAX_MANIFEST = 4 * 1024 * 1024
#: The longest index of a layout that is read: some twenty thousand images, and 130 MB when all of it is descriptors.
MAX_INDEX = 8 * 1024 * 1024

#: How deep indexes may lie in each other: an image has one, and artifacts of some tools two.
MAX_DEPTH = 8

CHUNK = 1024 * 1024

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
Digest = Annotated[str, StringConstraints(pattern=rf"^{DIGEST.pattern}$")]
Size = Annotated[int, Field(ge=0, le=2**50, strict=True)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)

    def to_json(self) -> bytes:
        """Return the one JSON text of this value: known keys, sorted, without blanks."""
        return canonical(self.model_dump(by_alias=True, exclude_none=True, exclude_defaults=False))


class Platform(_Model):
    """What an image or a program runs on, in Go's words: ``linux`` and ``amd64`` or ``arm64``."""

    os: str
    architecture: str
    variant: str | None = None

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


class Descriptor(_Model):
    """Names a blob by its *digest*, and says how long it is (*size*, bytes) and what it holds (*media_type*)."""

    media_type: str
    digest: Digest
    size: Size
    artifact_type: str | None = None
    annotations: Mapping[str, str] | None = None
    platform: Platform | None = None
    data: str | None = None

    @model_validator(mode="after")
    def _data_is_the_content(self) -> Self:
        """Whoever reads *data* instead of the blob must get the same (descriptor.md, "Embedded Content")."""
        if self.data is not None:
            content = base64.b64decode(self.data, validate=True)
            if digest_of(content) != self.digest or len(content) != self.size:
                raise ValueError("its data is not what its digest and size say")
        return self


#: Go writes an empty list as null, and reads null as an empty list.
Descriptors = Annotated[tuple[Descriptor, ...], BeforeValidator(lambda listed: () if listed is None else listed)]


class Manifest(_Model):
    """An image or an artifact: its configuration and its layers.

    What has the lists of an index as well means one thing to some readers and another to others: it is refused
    (CVE-2021-41190).
    """

    schema_version: Literal[2] = 2
    media_type: str = MANIFEST
    artifact_type: str | None = None
    config: Descriptor
    layers: Descriptors = ()
    subject: Descriptor | None = None
    annotations: Mapping[str, str] | None = None
    manifests: None = None


class Index(_Model):
    """A list of manifests: the versions of one image, or everything that a layout holds. Not a manifest as well."""

    schema_version: Literal[2] = 2
    media_type: str = INDEX
    manifests: Descriptors = ()
    subject: Descriptor | None = None
    annotations: Mapping[str, str] | None = None
    config: None = None
    layers: None = None


Parsed = TypeVar("Parsed", Manifest, Index)


def parse(model: type[Parsed], content: bytes, what: str) -> Parsed:
    """Read JSON *content* as *model*; raises BundleError that names *what* and the first thing wrong in it."""
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise damaged(f"{what}: {first_flaw(error)}") from error


def children(media_type: str, content: bytes, what: str) -> tuple[Descriptor, ...]:
    """What the manifest or index *content*, of the type *media_type*, refers to.

    Raises BundleError that names *what*, also for one that says that it is of another type, an index of anything but
    manifests, and a manifest that has manifests for layers.
    """
    if media_type in INDEXES:
        index = parse(Index, content, what)
        found, said = index.manifests, index.media_type
    else:
        manifest = parse(Manifest, content, what)
        found, said = (manifest.config, *manifest.layers), manifest.media_type
    if said != media_type:
        raise damaged(f"{what} is referred to as {media_type}, but declares {said[:100]}")
    for child in found:
        if (child.media_type in TREES) != (media_type in INDEXES):
            raise damaged(f"{what} refers to {child.digest} as {child.media_type[:100]}, which is not allowed there")
    return found


def first_flaw(error: ValidationError) -> str:
    """The first thing that *error* finds wrong in a document, after its place."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    # What the specification allows besides, sha512, the proxies here do not take.
    said = "must be a sha256 digest" if first["type"] == "string_pattern_mismatch" else first["msg"]
    return f"{where}: {said}" if where else said


def canonical(value: object) -> bytes:
    """Return the one JSON text of *value*: sorted keys, no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(content: bytes) -> str:
    """Return the digest of *content*, as ``sha256:`` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def digest_of_file(file: BinaryIO) -> str:
    """Return the digest of what is left to read of *file*."""
    hashed = hashlib.sha256()
    while chunk := file.read(CHUNK):
        hashed.update(chunk)
    return "sha256:" + hashed.hexdigest()


def blob_name(digest: str) -> str:
    """Return the path in a layout of the blob *digest*."""
    return "blobs/" + digest.replace(":", "/", 1)
