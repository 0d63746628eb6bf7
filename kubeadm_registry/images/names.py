"""Names of images as people write them, and the repositories of the registry that they stand for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kubeadm_registry import paths
from kubeadm_registry.addresses import endpoint
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.oci import canary
from kubeadm_registry.oci.references import repository_prefix

if TYPE_CHECKING:
    from kubeadm_registry.config import Spec

#: The repositories of this project: the canary image that the agents read, and the records of bundles and retention.
OURS = canary.REPOSITORY.partition("/")[0] + "/"
#: The tag under which registries without a list of referrers keep one: distribution-spec, "Referrers Tag Schema".
REFERRERS_TAG = re.compile(r"sha256-[0-9a-f]{64}")
#: A second place of an image: with an ``imageRepository`` of its own, ``VIP:5000/registry.k8s.io`` say, kubeadm asks
#: for CoreDNS without the part that the name has upstream (GetDNSImage in kubernetes/cmd/kubeadm/app/images/images.go).
ALSO = {"registry.k8s.io/coredns/coredns": "registry.k8s.io/coredns"}

_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
#: distribution-spec, "Pulling manifests"; the first part may be a host with its port.
_NAME = re.compile(
    rf"(?P<path>(?:{_PART}(?::[0-9]{{1,5}})?/)?{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True, slots=True)
class Place:
    """A repository of the registry, and a tag or digest in it; empty: all of it."""

    repository: str
    reference: str = ""

    def __str__(self) -> str:
        return name_of(self.repository, self.reference)


def place(name: str) -> Place:
    """Where the image *name* lies: ``registry.k8s.io/pause:3.10`` or the name of a repository. Raises ConfigError.

    A digest says more than a tag, so with both the tag does not count.
    """
    found = _NAME.fullmatch(name) if len(name) <= 512 else None
    if found is None:
        raise ConfigError(
            f"{name[:200]!r} is not a valid image name", code="ImageNameInvalid",
            hint="use a full name as printed by `images list`, such as registry.k8s.io/pause:3.10",
        )  # fmt: skip
    first, slash, rest = found["path"].partition("/")
    return Place(f"{repository_prefix(first)}{slash}{rest}", found["digest"] or found["tag"] or "")


def tag_in(name: str) -> str:
    """The tag in *name*, which is one of an image, also before a digest; empty if it has none."""
    return name.partition("@")[0].rpartition("/")[2].partition(":")[2]


def hosts(spec: Spec) -> tuple[str, ...]:
    """What pods and clients call the registry in names of images: the virtual IP and its name, each with the port."""
    vip = spec.vip
    named = (f"{vip.name}:{paths.REGISTRY_PORT}",) if vip.name else ()
    return (*(endpoint(address, paths.REGISTRY_PORT) for address in vip.addresses), *named)


def place_in(spec: Spec, name: str) -> Place:
    """Where the image *name* lies, as a manifest or a list has it: it may begin with what the registry is called.

    Raises ConfigError.
    """
    for host in hosts(spec):
        name = name.removeprefix(f"{host}/")
    return place(name)


def upstream(repository: str) -> str:
    """*repository* as its upstream calls it, with a port's colon; empty if it holds no images of an upstream."""
    first, slash, rest = repository.partition("/")
    host, mark, port = first.rpartition("_")
    if not (mark and port.isdigit()):
        host, port = first, ""
    if not slash or not ("." in host or host == "localhost"):
        return ""
    return f"{host}{':' if port else ''}{port}/{rest}"


def name_of(repository: str, reference: str) -> str:
    """The name of an image: its upstream's where there is one."""
    separator = "@" if ":" in reference else ":" if reference else ""
    return f"{upstream(repository) or repository}{separator}{reference}"
