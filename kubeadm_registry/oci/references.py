"""Names of images, as people and files write them, and as every client reads them.

Source: https://github.com/distribution/reference, whose short forms mean ``docker.io``, ``library/`` and ``latest``;
containerd reads them the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

_TAG = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
#: HOST/PATH:TAG or HOST/PATH@DIGEST, where HOST has a dot or a port, or is localhost: ``parse`` looks at that, and that
#: there is a tag or a digest. RE2, by which API servers match, reads it as well.
FULL = (
    r"(?P<host>[A-Za-z0-9]+(?:[.-]+[A-Za-z0-9]+)*(?::[0-9]{1,5})?)"
    rf"/(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
    rf"(?::(?P<tag>{_TAG}))?(?:@(?P<digest>sha256:[0-9a-f]{{64}}))?"
)
_FULL = re.compile(FULL)
LONGEST = 512
#: What tags in the trash of retention begin with: the proxy refuses them to everybody but the executor.
TRASH = "trash-"
#: An IPv6 address in the place of a host, as this registry may have it. ``parse`` knows no such names, for what is kept
#: has none; pods have them.
_IPV6_HOST = re.compile(r"\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?/")


@dataclass(frozen=True, slots=True)
class Reference:
    """An image's full name in its parts; *tag* or *digest* may be empty, not both."""

    host: str
    path: str
    tag: str
    digest: str

    @property
    def wanted(self) -> str:
        """What a registry is asked for: the digest if there is one, for it says more than the tag."""
        return self.digest or self.tag


def parse(name: str) -> Reference | None:
    """The parts of a full name: one with a registry's host, a path, and a tag or a digest. None for any other text."""
    found = _FULL.fullmatch(name) if len(name) <= LONGEST else None
    if found is None or not (found["tag"] or found["digest"]):
        return None
    if found["host"] != "localhost" and not set(".:") & set(found["host"]):
        return None
    return Reference(found["host"], found["path"], found["tag"] or "", found["digest"] or "")


def full(name: str) -> str | None:
    """The full name that *name* stands for, as ``docker.io/library/nginx:latest`` for ``nginx``; None if it is none."""
    first, slash, rest = name.partition("/")
    if not slash or not (set(".:") & set(first) or first == "localhost"):
        first, rest = "docker.io", name
    if first == "index.docker.io":
        first = "docker.io"
    if first == "docker.io" and "/" not in rest.partition("@")[0]:
        rest = f"library/{rest}"
    if "@" not in rest and ":" not in rest.rpartition("/")[2]:
        rest = f"{rest}:latest"
    whole = f"{first}/{rest}"
    return whole if parse(whole) else None


def parse_in_pod(name: str) -> Reference | None:
    """The same as ``parse`` of a full *name* as pods have it, whose host may also be an IPv6 address."""
    found, one = _IPV6_HOST.match(name), parse(_with_a_name(name))
    return one if found is None or one is None else replace(one, host=found[0].removesuffix("/"))


def in_pod(name: str) -> str | None:
    """The same as ``full`` of a *name* as pods and manifests have it, whose host may also be an IPv6 address."""
    whole, found = full(_with_a_name(name)), _IPV6_HOST.match(name)
    return whole if found is None or whole is None else f"{found[0]}{whole.partition('/')[2]}"


def _with_a_name(name: str) -> str:
    """*name*, the host a name if it is an IPv6 address."""
    found = _IPV6_HOST.match(name)
    return name if found is None else f"registry.invalid/{name[found.end() :]}"


def told(words: Sequence[str], environment: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The images in the *words* of a container's command and arguments and in its *environment*, names with values.

    A controller makes pods of them later. As whole values only: ``--acme-http01-solver-image=NAME``,
    ``--engine-image NAME``, ``RELATED_IMAGE_X=NAME``. One without a registry's host counts if what it is the value of
    says ``image``: anything may look like one.
    """
    for label, word in (*zip(["", *words], words, strict=False), *environment):
        option, _, value = word.partition("=")
        for what, name in ((label, word), (option, value)):
            if parse_in_pod(name) or ("image" in what.lower() and {":", "@"} & {*name} and in_pod(name)):
                yield name


#: The host in names of this project's own images, which no registry has; in ours they lie below OWN.
OWN_HOST = "kubeadm-registry.dev"
OWN = "kubeadm-registry"


def repository_prefix(upstream: str) -> str:
    """Where images of *upstream* lie in our registry; a colon is not allowed in the name of a repository."""
    return OWN if upstream == OWN_HOST else upstream.replace(":", "_")
