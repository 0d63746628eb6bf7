"""The images that kubeadm asks for, made of programs that are built here, and those of the tests' own pods."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.lab import images as lab_images
from tests.lab.command import LabError, cache, locked, run, say
from tests.lab.images import Image, packed, write_layout
from tests.lab.programs import KUBERNETES, PROGRAMS, program

UPSTREAM = "registry.k8s.io"
#: What the containerd of the hosts' Debian starts a pod's sandbox with, unless its configuration says otherwise.
SANDBOX = f"{UPSTREAM}/pause:3.8"


def wanted() -> list[str]:
    """The images that kubeadm asks for, in its own words."""
    return run(program("kubeadm"), "config", "images", "list", "--kubernetes-version", KUBERNETES).stdout.split()


def contents(name: str) -> dict[str, Path]:
    """The programs of kubeadm's image *name* by their places, the first being the one to start.

    Raises LabError for an image that is not known here, or of which kubeadm wants another version.
    """
    path, _, tag = name.removeprefix(f"{UPSTREAM}/").partition(":")
    version = tag
    match path:
        case "etcd":
            files = {f"/usr/local/bin/{each}": program(each) for each in ("etcd", "etcdctl")}
            version = f"v{tag.partition('-')[0]}"  # of etcd's image 3.6.8-0
        case "coredns/coredns":
            files = {"/coredns": program("coredns")}
        case "pause":
            return {"/pause": program("pause")}
        case "kube-proxy":
            # Its rules are set by nft, here that of this machine with the libraries that it needs.
            nft = shutil.which("nft", path="/usr/sbin:/sbin")
            assert nft is not None, "the lab itself needs it"
            files = {"/usr/local/bin/kube-proxy": program("kube-proxy"), "/usr/sbin/nft": Path(nft)}
        case "kube-apiserver" | "kube-controller-manager" | "kube-scheduler":
            files = {f"/usr/local/bin/{path}": program(path)}
        case _:
            raise LabError(f"kubeadm wants {name}, and nobody here knows how to make it")
    built = next(each.version for each in PROGRAMS.values() if next(iter(files.values())).name in each.programs)
    if built != version:
        raise LabError(f"kubeadm wants {name}, but tests/lab/programs.py builds {built}")
    return files


def layout() -> Path:
    """An OCI image layout with all that kubeadm asks for and SANDBOX; made once, and again when a program changes."""
    images = {name: contents(name) for name in wanted()}
    images[SANDBOX] = contents(SANDBOX)
    target = cache() / "images" / f"kubernetes-{_key(images)}"
    with locked(cache() / "images" / "lock"):
        if not target.exists():
            for old in target.parent.glob("*kubernetes-*"):
                shutil.rmtree(old)
            say(f"packing {len(images)} images, a few seconds, once")
            new = target.with_name(f".new-{target.name}")
            write_layout(new, {name: packed(files) for name, files in images.items()})
            new.rename(target)
    return target


def _key(images: Mapping[str, Mapping[str, Path]]) -> str:
    """What makes one set of images differ from another; a path of a program built here names its version."""
    key = hashlib.sha256()
    for source in (lab_images.__file__, __file__):
        key.update(Path(source).read_bytes())
    for name, files in images.items():
        key.update(name.encode())
        for place, path in files.items():
            key.update(f"{place}={path}={path.stat().st_mtime_ns}".encode())
    return key.hexdigest()[:16]


def guest(mark: str) -> Image:
    """An image of the tests' own program, no part of which another *mark* has."""
    return packed({"/guest": program("guest")}, texts={"/mark": mark})
