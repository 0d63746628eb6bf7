"""Manifests that refer to another one, its *subject*: signatures, lists of contents, proofs of how it was made.

A registry that has the referrers API notes them itself, and says so when one is pushed. For one that does not, as
Distribution, the client keeps the list under a tag that is made of the subject's digest.

Source: distribution-spec, "Pushing Manifests with Subject" and "Referrers Tag Schema".
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any

from kubeadm_registry.errors import RegistryError
from kubeadm_registry.images.names import REFERRERS_TAG
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Api, referrers_tag

_DIGEST = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[A-Za-z0-9=_-]+")
Signatures = frozenset[tuple[object, ...]]
#: The specification leaves it to clients that no two write one list at a time. Between processes nothing does.
_alone = threading.Lock()


def subject_of(content: bytes) -> str:
    """The digest of what the manifest *content* refers to; empty if it refers to nothing."""
    try:
        document = json.loads(content)
        digest = document["subject"]["digest"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""
    return digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else ""


def signatures(reference: str, parts: Callable[[], Iterable[oci.Descriptor]]) -> Signatures:
    """What tells the signatures apart that cosign keeps as the *parts* of one manifest under a tag: two keys may sign
    the same content, a layer, and each signature is an annotation. None if *reference* is no such tag.

    Source: sigstore/cosign, specs/SIGNATURE_SPEC.md, "Properties".
    """
    if not (REFERRERS_TAG.match(reference) and reference.endswith((".sig", ".att"))):
        return frozenset()
    return frozenset(
        (one.digest, *sorted((one.annotations or {}).items())) for one in parts() if one.media_type not in oci.CONFIGS
    )


def push(registry: Api, repository: str, reference: str, manifest: oci.Descriptor, content: bytes) -> None:
    """Push *manifest*, whose JSON is *content*, by *reference*; if it has a subject, see that it is found there.

    A tag comes last: where it is, all is done. Raises RegistryError.
    """
    subject = subject_of(content)
    if subject and not registry.push_manifest(repository, manifest.digest, content, manifest.media_type):
        with _alone:
            _note(registry, repository, subject, entry(manifest, json.loads(content)))
    if not subject or reference != manifest.digest:
        registry.push_manifest(repository, reference, content, manifest.media_type)


def is_noted(registry: Api, repository: str, manifest: oci.Descriptor, content: bytes) -> bool:
    """Whether the registry lists *manifest*, whose JSON is *content*, with its subject, if it has one.

    Raises RegistryError.
    """
    subject = subject_of(content)
    return not subject or manifest.digest in _digests(registry.referrers(repository, subject))


def forget(registry: Api, repository: str, digest: str, content: bytes) -> None:
    """Take the manifest *digest*, whose JSON is *content* and which is to be deleted, from the list of its subject.

    Source: distribution-spec, "Deleting Manifests". Raises RegistryError.
    """
    subject = subject_of(content)
    if not subject:
        return
    with _alone:
        index = _list(registry, repository, subject)
        if digest in _digests(index["manifests"]):
            index["manifests"] = [one for one in index["manifests"] if one.get("digest") != digest]
            _push_list(registry, repository, subject, index)


def _note(registry: Api, repository: str, subject: str, entry: dict[str, Any]) -> None:
    """Add *entry* to the list of what refers to *subject*. Raises RegistryError."""
    index = _list(registry, repository, subject)
    if entry["digest"] not in _digests(index["manifests"]):
        index["manifests"].append(entry)
        _push_list(registry, repository, subject, index)


def _list(registry: Api, repository: str, subject: str) -> dict[str, Any]:
    """The index under the tag for what refers to *subject*; an empty one if there is none. Raises RegistryError."""
    tag = referrers_tag(subject)
    content = registry.referrers_list(repository, subject)
    try:
        index: Any = {"schemaVersion": 2, "mediaType": oci.INDEX} if content is None else json.loads(content)
        held = index.setdefault("manifests", [])
        is_index = index.get("mediaType", oci.INDEX) == oci.INDEX and not index.keys() & {"config", "layers"}
        if not (is_index and isinstance(held, list) and all(isinstance(one, dict) for one in held)):
            raise ValueError("not an index")
        oci.canonical(index)  # JSON may have half a character, which cannot be written again
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise RegistryError(
            f"{repository}:{tag} in the registry is not an index of what refers to {subject}",
            code="ReferrersTagInvalid", hint=f"delete that tag (`images delete {repository}:{tag}`), and try again",
        ) from error  # fmt: skip
    return dict(index)


def _push_list(registry: Api, repository: str, subject: str, index: dict[str, Any]) -> None:
    # Registries refuse an index of what they do not have, and what was deleted refers to nothing.
    there = [one for one in index["manifests"] if _is_there(registry, repository, one)]
    content = oci.canonical({**index, "manifests": there})
    registry.push_manifest(repository, referrers_tag(subject), content, oci.INDEX)


def _is_there(registry: Api, repository: str, entry: dict[str, Any]) -> bool:
    digest = entry.get("digest")
    if not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        return False
    return registry.digest(repository, digest) is not None


def _digests(entries: list[dict[str, Any]]) -> set[object]:
    return {one.get("digest") for one in entries}


def entry(manifest: oci.Descriptor, document: dict[str, Any]) -> dict[str, Any]:
    """What a list of referrers says of *manifest*, whose content is *document*."""
    config = document.get("config")
    kind = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
    return {
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": manifest.size,
        **({"artifactType": kind} if kind else {}),
        **({"annotations": document["annotations"]} if document.get("annotations") else {}),
    }
