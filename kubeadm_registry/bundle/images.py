"""Images on their way into a bundle: where they come from, by which names, and for which platforms."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from kubeadm_registry.bundle.failures import refused
from kubeadm_registry.bundle.layout import Layout
from kubeadm_registry.bundle.programs import REFERENCE
from kubeadm_registry.errors import BundleError, ConfigError
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.oci.references import full as full_name
from kubeadm_registry.oci.references import parse

#: The variants that architectures without one mean. Source: normalizeArch in containerd/platforms, database.go.
_VARIANTS = {"amd64": "v1", "arm": "v7", "arm64": "v8"}
#: Layers that are not compressed: the digest of one is what the configuration calls it.
_PLAIN = ("application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar")
#: BuildKit's mark of a manifest that tells about another one in the same index, which it names.
_ABOUT = "vnd.docker.reference.digest"


class _RootFs(BaseModel):
    diff_ids: tuple[str, ...] | None = None


class _Config(BaseModel):
    rootfs: _RootFs = _RootFs()


def image_name(annotations: Mapping[str, str] | None) -> str:
    """Return the full name that a descriptor in an index carries, or nothing."""
    annotations = annotations or {}
    return annotations.get(oci.CONTAINERD_NAME) or annotations.get(oci.REFERENCE_NAME, "")


def is_program(entry: oci.Descriptor) -> bool:
    """Whether an entry in an index is a program; every other one is an image, and must have an image's name."""
    annotations = entry.annotations or {}
    return oci.CONTAINERD_NAME not in annotations and annotations.get(oci.REFERENCE_NAME, "").startswith(REFERENCE)


def images_in(layout: Layout, name: str = "") -> Iterator[tuple[str, oci.Descriptor]]:
    """Give the full name and the descriptor of each image in *layout*.

    *name* replaces the name of the only image; without tag and digest it goes before the tags that the images have,
    and before the digests of what refers to an image. Raises BundleError for an image without a full name, and if there
    is no image.
    """
    found = _roots(layout, [entry for entry in layout.index.manifests if not is_program(entry)])
    if not found:
        raise refused(f"{layout.where} contains no images", hint="check the path given with --images-from")
    told, tagged = _name_of(name)
    if tagged:
        if len({entry.digest for entry in found}) != 1:
            raise refused(
                f"{layout.where} has {len(found)} images, so {name} is ambiguous",
                hint="omit the name, or use a name without a tag, which is prepended to the tags of the images",
            )
        found = found[:1]
    for entry in found:
        full = told if tagged else image_name(entry.annotations)
        if told and not tagged:
            full = f"{told}@{entry.digest}" if not full and _refers(layout, entry) else f"{told}:{_tag(entry)}"
        reference = parse(full)
        if reference is None:
            raise refused(
                f"{layout.where}: {full or entry.digest} is not the full name of an image",
                hint="write the name before the path, NAME:TAG=PATH for one image or NAME=PATH for all tagged "
                "images; or save the image by its full name, such as registry.k8s.io/pause:3.10",
            )
        full = full_name(full) or full  # docker.io/nginx is where no client asks for nginx
        require_lowercase(full)
        if reference.digest not in ("", entry.digest):
            raise refused(f"{layout.where}: the entry {full} has another digest, {entry.digest}",
                          hint="use its tag or its own digest")  # fmt: skip
        if entry.media_type not in oci.TREES:
            raise refused(f"{layout.where}: {full} is {entry.media_type}, not an image", hint="save it in OCI format")
        yield full, entry.model_copy(update={"annotations": {oci.REFERENCE_NAME: full}})


def _roots(layout: Layout, entries: Sequence[oci.Descriptor]) -> list[oci.Descriptor]:
    """*entries* without those that have no name and belong to the index of another one: ORAS lists every manifest."""
    if all(image_name(entry.annotations) for entry in entries) or len(entries) == 1:
        return list(entries)
    parts = {part.digest for one in entries if one.media_type in oci.INDEXES for part in layout.children(one)}
    return [entry for entry in entries if image_name(entry.annotations) or entry.digest not in parts]


def _refers(layout: Layout, entry: oci.Descriptor) -> bool:
    """Whether *entry* refers to another manifest, as signatures do."""
    return entry.media_type in oci.MANIFESTS and layout.manifest(entry).subject is not None


def _tag(entry: oci.Descriptor) -> str:
    """The tag of *entry*: containerd writes the full name beside it."""
    return (entry.annotations or {}).get(oci.REFERENCE_NAME) or image_name(entry.annotations)


def _name_of(name: str) -> tuple[str, bool]:
    """The full name that *name* stands for, and whether it has a tag or a digest; empty if it is empty."""
    if not name:
        return "", False
    whole = full_name(name)
    if whole is None:
        raise refused(f"{name} is not a valid image name", hint="use a full name, such as registry.k8s.io/pause:3.10")
    tagged = "@" in name or ":" in name.rpartition("/")[2]
    return (whole if tagged else whole.removesuffix(":latest")), tagged


def platforms(texts: Sequence[str]) -> tuple[oci.Platform, ...]:
    """The platforms that people write as ``linux/amd64`` or ``linux/arm/v7``. Raises ConfigError."""
    found = []
    for text in texts:
        os, _, rest = text.partition("/")
        architecture, slash, variant = rest.partition("/")
        if not os or not architecture or (slash and not variant):
            raise ConfigError(
                f"--platform {text}: not a valid platform", hint="write it as linux/amd64", code="UsageInvalid"
            )
        found.append(oci.Platform(os=os, architecture=architecture, variant=variant or None))
    return tuple(found)


def prune(
    content: bytes, wanted: Sequence[oci.Platform], what: str, has: Callable[[str], bool] = lambda _digest: True
) -> bytes:
    """The index *content* with the manifests for the platforms *wanted* alone, and what is attached to these.

    What is attached stays if the source *has* it: an engine that pulled one platform may lack it. The index is given
    back byte for byte when nothing is to go. Raises BundleError if nothing would stay, or only what names no platform
    where others do; *what* is its name.
    """
    index = oci.parse(oci.Index, content, what)
    told = [(entry.digest, _named(entry.platform)) for entry in index.manifests]
    require(what, [platform for _, platform in told if platform and platform.os != "unknown"], wanted)
    kept = {digest for digest, platform in told if platform is None or _fits(platform, wanted)}
    kept -= {entry.digest for entry in index.manifests if _ABOUT in (entry.annotations or {})}
    if not kept:
        raise _not_for(what, wanted, [platform for _, platform in told if platform])
    attached = {entry.digest for entry in index.manifests if (entry.annotations or {}).get(_ABOUT) in kept}
    kept |= set(filter(has, attached))
    if len(kept) == len({entry.digest for entry in index.manifests}):
        return content
    raw: dict[str, Any] = json.loads(content)
    raw["manifests"] = [entry for entry in raw["manifests"] if entry["digest"] in kept]
    return oci.canonical(raw)


def require_lowercase(name: str) -> None:
    """Raise BundleError if the host of the image *name* has uppercase letters.

    It becomes a part of a repository, whose name has none: distribution-spec, "Pulling manifests". Distribution accepts
    one all the same, zot answers 404, and `images check` takes the name for none.
    """
    host, _, _ = name.partition("/")
    if host != host.lower():
        raise refused(f"{name}: the host has uppercase letters, which are not allowed in a repository name",
                      hint=f"use {host.lower()}, also where the image is used")  # fmt: skip


def require(name: str, there: Sequence[oci.Platform], wanted: Sequence[oci.Platform]) -> None:
    """Raise BundleError if the image *name*, which is *there* for these platforms, is for none of those *wanted*."""
    if there and not any(_fits(platform, wanted) for platform in there):
        raise _not_for(name, wanted, there)


def lacking(there: Sequence[oci.Platform], wanted: Sequence[oci.Platform]) -> list[oci.Platform]:
    """Those *wanted* that an image is not for which is *there* for these platforms; one for none is for all."""
    return [one for one in wanted if there and not any(_fits(platform, (one,)) for platform in there)]


def platforms_of(layout: Layout, root: oci.Descriptor, held: Collection[str]) -> list[oci.Platform]:
    """What the image *root* runs on: by its index, or by its configuration; nothing if neither says or it is no image.

    A configuration that is *held* elsewhere, so that *layout* need not have it, says nothing, and neither does one that
    is too large to be read here. Raises BundleError.
    """
    if root.media_type in oci.INDEXES:
        found = [_named(entry.platform) for entry in layout.children(root)]
        return [platform for platform in found if platform and platform.os != "unknown"]
    config = layout.manifest(root).config
    if config.media_type not in oci.CONFIGS or config.digest in held or config.size > oci.MAX_MANIFEST:
        return []
    try:
        told = _named(oci.Platform.model_validate_json(layout.read(config)))
    except ValidationError:
        return []
    return [told] if told else []


def require_layers(layout: Layout, image: oci.Descriptor, name: str, held: Collection[str]) -> None:
    """Raise BundleError if the manifest *image*, a part of *name*, has other layers than its configuration says.

    containerd unpacks no such image. `docker save` of Docker 25.0.0 wrote layers in any order, and that of its release
    candidates none (https://github.com/moby/moby/issues/47150, /47065). A configuration that is *held* elsewhere says
    nothing.
    """
    manifest = layout.manifest(image)
    config, layers = manifest.config, manifest.layers
    if config.media_type not in oci.CONFIGS or config.digest in held or config.size > oci.MAX_MANIFEST:
        return
    try:
        said = _Config.model_validate_json(layout.read(config)).rootfs.diff_ids
    except ValidationError:
        return
    if not said:  # as artifacts that call themselves images have it
        return
    moved = (one for one, diff in zip(layers, said, strict=False) if one.media_type in _PLAIN and one.digest != diff)
    if len(said) != len(layers) or any(moved):
        raise refused(
            f"{layout.where}: {name} does not have the layers that its configuration lists, in this order "
            f"({len(layers)} and {len(said)})",
            hint="save it with another tool or release; `docker save` of Docker 25.0.0 confuses the layers",
        )


def _named(platform: oci.Platform | None) -> oci.Platform | None:
    """*platform*, unless it names none: `crane append` and others that start from nothing leave both fields empty."""
    return platform if platform and platform.os and platform.architecture else None


def _not_for(what: str, wanted: Sequence[oci.Platform], there: Iterable[oci.Platform]) -> BundleError:
    offered = ",".join(sorted(set(map(str, there))))
    return refused(
        f"{what} is not available for {', '.join(map(str, wanted))}",
        hint=f"pass --platform with one or more of {offered}" if offered else "its index is empty: push it again",
    )


def _fits(platform: oci.Platform, wanted: Sequence[oci.Platform]) -> bool:
    return any(
        (platform.os, platform.architecture) == (one.os, one.architecture)
        and (one.variant is None or _variant(platform) == _variant(one))
        for one in wanted
    )


def _variant(platform: oci.Platform) -> str | None:
    return platform.variant or _VARIANTS.get(platform.architecture)
