"""Reads everything that the registry holds: each tag, each manifest it leads to, and what refers to these.

Registries do not list manifests without a tag. One that lost its tag is found again because the ledger knew it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from kubeadm_registry.errors import BundleError, RegistryError
from kubeadm_registry.images.names import name_of
from kubeadm_registry.images.pool import SMALL_FOR_LARGE, WORKERS, Connect, WorkerPool
from kubeadm_registry.images.tombstone import TOMBSTONE_DIGEST
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Api, retry
from kubeadm_registry.retention import Manifest, Reason
from kubeadm_registry.retention.holdings import Held, Holdings

#: Seconds that one question may be asked again while the registry has no answer.
PATIENCE = 30.0
_AGAIN = "check that the registry is healthy (kubeadm-registry status), then try again"
_DELETE = "delete it with `kubeadm-registry images delete`; a rule does not leave it out"

Place = tuple[str, str]
"""A repository, and a tag or digest in it."""
Answer = TypeVar("Answer")


def read(
    connect: Connect, known: Mapping[str, Collection[str]], *, workers: int = WORKERS * SMALL_FOR_LARGE,
    patience: float = PATIENCE,
) -> Holdings:  # fmt: skip
    """Everything in the registry to which *connect* leads; of the digests *known* by repository, those still there.

    Raises RegistryError if the repositories cannot be listed. One that cannot be read whole is a problem of what is
    returned.
    """
    with WorkerPool(connect, workers) as pool:
        return _Reader(pool, patience).read(known)


@dataclass(slots=True)
class _Repository:
    """What was found in a repository so far; *asked* are digests that were looked for, *new* the manifests that were
    not followed yet; *buried* are tags of a tombstone; *flaw*: why not all of it can be known."""

    tags: dict[str, str] = field(default_factory=dict)
    buried: list[str] = field(default_factory=list)
    manifests: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    new: set[str] = field(default_factory=set)
    flaw: Reason | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """A manifest that was read, its *digest*, and the sizes of its *blobs*."""

    digest: str
    manifest: Manifest
    blobs: Mapping[str, int] = field(default_factory=dict)


class _Reader:
    def __init__(self, pool: WorkerPool, patience: float) -> None:
        self._pool = pool
        self._patience = patience
        self._repositories: dict[str, _Repository] = {}
        self._manifests: dict[str, Manifest] = {}
        self._blobs: dict[str, int] = {}

    def read(self, known: Mapping[str, Collection[str]]) -> Holdings:
        """See the function."""
        [(_, names)] = self._pool.each(lambda registry, _: retry(registry.repositories, self._patience), [None])
        self._repositories = {name: _Repository() for name in sorted(set(names))}
        listed = self._ask(lambda registry, place: registry.tags(place[0]), [(name, "") for name in self._repositories])
        self._take((name, tag) for (name, _), tags in listed for tag in tags)
        wanted = {(name, one) for name in self._repositories.keys() & known.keys() for one in known[name]}
        while new := self._new(wanted):
            self._take(new)
            wanted = set()
        unread = {name for name, one in self._repositories.items() if one.flaw}
        return Holdings(
            {
                name: Held(one.tags, frozenset(one.manifests), tuple(sorted(one.buried)))
                for name, one in self._repositories.items()
                if name not in unread
            },
            self._manifests,
            self._blobs,
            frozenset(unread),
            tuple(flaw for _, one in sorted(self._repositories.items()) if (flaw := one.flaw) is not None),
        )

    def _new(self, wanted: Iterable[Place]) -> list[Place]:
        """Those of *wanted*, all by digest, that were not looked for yet; and what the manifests so far lead to."""
        places = []
        for name, digest in (*wanted, *self._led_to()):
            repository = self._repositories[name]
            if digest not in repository.manifests and digest not in repository.asked:
                repository.asked.add(digest)
                places.append((name, digest))
        return sorted(places)

    def _take(self, places: Iterable[Place]) -> None:
        """Read the manifests at *places*; what is not there, or not any more, is none."""
        for (name, reference), found in self._ask(_manifest, list(places)):
            if found is None:
                continue
            repository = self._repositories[name]
            if found.digest == TOMBSTONE_DIGEST:
                repository.buried += [reference] if reference != found.digest else []
                continue
            if found.digest not in repository.manifests:
                repository.manifests.add(found.digest)
                repository.new.add(found.digest)
            if reference != found.digest:
                repository.tags[reference] = found.digest
            self._manifests[found.digest] = found.manifest
            self._blobs.update(found.blobs)

    def _led_to(self) -> Iterator[Place]:
        """What the new manifests of each repository lead to there: parts, subjects and referrers."""
        places = []
        for name, repository in self._repositories.items():
            for digest in sorted(repository.new):
                manifest = self._manifests[digest]
                yield from ((name, child) for child in manifest.children)
                if manifest.subject:
                    yield name, manifest.subject
                places.append((name, digest))
            repository.new.clear()
        if places and self._lists_referrers(places[0]):
            for (name, _), digests in self._ask(_referrers, places):
                yield from ((name, digest) for digest in digests)

    def _lists_referrers(self, place: Place) -> bool:
        """Whether the registry lists what refers to a manifest; else it has tags for that, which are read as tags."""
        [(_, answer)] = self._pool.each(
            lambda registry, _: retry(lambda: registry.lists_referrers(*place), self._patience), [None]
        )
        return answer

    def _ask(
        self, question: Callable[[Api, Place], Answer], places: Collection[Place]
    ) -> Iterator[tuple[Place, Answer]]:
        """The answer for each of *places*; where there is none, the repository cannot be read whole."""

        def one(registry: Api, place: Place) -> Answer | RegistryError:
            try:
                return retry(lambda: question(registry, place), self._patience)
            except RegistryError as error:
                return error

        for place, answer in self._pool.each(one, places):
            if isinstance(answer, RegistryError):
                repository = self._repositories[place[0]]
                hint = _DELETE if answer.code == "ImageInvalid" else _AGAIN
                repository.flaw = repository.flaw or Reason("InventoryIncomplete", answer.message, hint)
            else:
                yield place, answer


def _manifest(registry: Api, place: Place) -> _Found | None:
    """The manifest at *place*; None if there is none. Raises RegistryError, also for one that cannot be read."""
    repository, reference = place
    answer = registry.manifest_of_type(repository, reference)
    if answer is None:
        return None
    content, kind = answer
    digest, what = oci.digest_of(content), name_of(repository, reference)
    try:
        document = json.loads(content)
        told = document.get("mediaType") or kind
    except (ValueError, RecursionError, AttributeError) as error:
        raise RegistryError(f"{what}: the manifest is not a JSON object", code="ImageInvalid") from error
    try:
        if told in oci.INDEXES:
            index = oci.parse(oci.Index, content, what)
            subject = index.subject.digest if index.subject else ""
            children = tuple(one.digest for one in index.manifests)
            return _Found(digest, Manifest(told, len(content), children=children, subject=subject))
        if told in oci.MANIFESTS:
            parsed = oci.parse(oci.Manifest, content, what)
            subject = parsed.subject.digest if parsed.subject else ""
            layers = tuple(one.digest for one in parsed.layers)
            sizes = {one.digest: one.size for one in (parsed.config, *parsed.layers)}
            return _Found(digest, Manifest(told, len(content), parsed.config.digest, layers, (), subject), sizes)
    except BundleError as error:
        raise RegistryError(error.message, code="ImageInvalid") from error
    return _Found(digest, Manifest(str(told)[:200], len(content)))  # the plan names it, and does not guess


def _referrers(registry: Api, place: Place) -> list[str]:
    return [digest for one in registry.referrers(*place) if isinstance(digest := one.get("digest"), str)]
