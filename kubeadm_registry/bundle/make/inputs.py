"""What people name for a bundle's images, told apart: layouts, archives, lists and manifests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kubeadm_registry.bundle.failures import refused
from kubeadm_registry.bundle.images import require_lowercase
from kubeadm_registry.bundle.lists import names_in, told_in
from kubeadm_registry.bundle.make import docker_archive
from kubeadm_registry.bundle.make.images import FromLayout, ImageSource
from kubeadm_registry.bundle.make.remote import FromRegistries
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.oci.references import full, parse

#: Where a tar archive has its magic, and what it is.
_TAR = (257, b"ustar")


def named(text: str) -> tuple[str, Path]:
    """Name and path of ``NAME=PATH``; without a name, also for a path that has an equals sign and is there.

    Raises BundleError without a path: a variable that is not set must not mean the working directory.
    """
    name, equals, path = text.partition("=")
    if not (path if equals else text):
        raise refused(f"--images-from {text!r} names no path", hint="pass a file or a directory")
    return (name, Path(path)) if equals and not Path(text).exists() else ("", Path(text))


def images_from(names: Iterable[str], paths: Iterable[Path | str], *, referrers: bool = False) -> list[ImageSource]:
    """The sources of images: what *paths* hold, and the registries for *names* and for those listed in *paths*.

    With *referrers* what refers to images in registries comes along. A path may be ``NAME=PATH``, where the images have
    no full names of their own (see ``images_in``). Raises BundleError for what is none.
    """
    wanted: set[str] = set()
    for name in names:
        whole = full(name)
        if whole is None:
            raise refused(
                f"--image {name}: not a valid image name", hint="use a full name, such as registry.k8s.io/pause:3.10"
            )
        wanted.add(whole)
    sources: list[ImageSource] = []
    for given, path in (named(str(path)) for path in paths):
        if not path.exists():
            raise refused(f"no such file or directory: {path}", hint="check the path given with --images-from")
        if path.is_dir() and (path / oci.LAYOUT_FILE).is_file():
            sources.append(FromLayout(path, given))
        elif path.is_file() and _is_archive(path):
            is_docker = docker_archive.is_one(path)
            sources.append(docker_archive.FromDockerArchive(path, given) if is_docker else FromLayout(path, given))
        elif given:
            raise refused(
                f"{path} is neither an OCI image layout nor an archive of images, so {given} does not apply to it",
                hint="omit the name",
            )
        else:
            wanted.update(names_in(path))
    for whole in sorted(wanted):
        if parse(whole) is None:
            raise refused(f"{whole}: cannot add images from a registry whose name is an IPv6 address",
                          hint="use the name that the image has upstream")  # fmt: skip
        require_lowercase(whole)
    if wanted:
        sources.append(FromRegistries(tuple(sorted(wanted)), referrers))
    return sources


def told_of(paths: Iterable[Path | str]) -> list[str]:
    """The images that containers in the manifests among *paths* are told of, see ``told_in``; sorted.

    They do not come by themselves: not every word that looks like an image is one. Raises BundleError.
    """
    places = [path for _, path in (named(str(path)) for path in paths)]
    return sorted({name for path in places if not (path / oci.LAYOUT_FILE).is_file() for name in told_in(path)})


def _is_archive(path: Path) -> bool:
    offset, magic = _TAR
    with path.open("rb") as file:
        start = file.read(offset + len(magic))
    if start.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")):
        raise refused(f"{path} is compressed", hint="unpack it first: gunzip, unzstd, bunzip2 or unxz")
    return start[offset:] == magic
