"""What belongs together in one repository, and what its tags lead to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from kubeadm_registry.retention.inventory import Manifest, Repository, Tag
from kubeadm_registry.retention.protected import subject_of_tag


def behind(starts: Iterable[str], of: Callable[[str], Iterable[str]]) -> list[str]:
    """*starts* and all that *of* leads to from them, each after what *of* names for it, unless that is a circle."""
    done: list[str] = []
    seen: set[str] = set()
    for start in starts:
        waiting = [] if start in seen else [(start, iter(of(start)))]
        seen.add(start)
        while waiting:
            one, others = waiting[-1]
            other = next((other for other in others if other not in seen), None)
            if other is None:
                done.append(one)
                waiting.pop()
            else:
                seen.add(other)
                waiting.append((other, iter(of(other))))
    return done


def image_tags(repository: Repository) -> Iterator[Tag]:
    """The tags of *repository* that name an image, as it stands. One made of a digest follows that digest instead."""
    return (meaning for tag, meaning in repository.live() if not subject_of_tag(tag))


@dataclass(frozen=True, slots=True)
class Links:
    """What is a part of what in one repository: the children of an index, and what refers to a subject."""

    parts: Mapping[str, list[str]]
    wholes: Mapping[str, list[str]]
    subjects: Mapping[str, str]

    @classmethod
    def of(cls, repository: Repository, manifests: Mapping[str, Manifest]) -> Self:
        """Those of *repository*, whose *manifests* are here by digest."""
        found: list[tuple[str, str]] = []
        subjects: dict[str, str] = {}
        held = repository.manifests
        for digest in held:
            manifest = manifests[digest]
            if manifest.children:
                found += [(digest, child) for child in manifest.children if child in held]
            if manifest.subject in held:
                subjects[digest] = manifest.subject
                found.append((manifest.subject, digest))
        for tag, meaning in repository.live():
            if (subject := subject_of_tag(tag)) in held:
                found.append((subject, meaning.digest))
        parts: dict[str, list[str]] = {}
        wholes: dict[str, list[str]] = {}
        for whole, part in sorted(set(found)):  # so that both lists are sorted
            if whole != part:
                parts.setdefault(whole, []).append(part)
                wholes.setdefault(part, []).append(whole)
        return cls(parts, wholes, subjects)

    def led_to(self, repository: Repository) -> set[str]:
        """What the tags of *repository* lead to, those in the trash as well. What is not there has no tag."""
        named = {meaning.digest for meaning in image_tags(repository)}
        return self.reached(named | {repository.tags[tag].digest for tag in repository.trash & repository.tags.keys()})

    def reached(self, starts: Iterable[str]) -> set[str]:
        """*starts* with all their parts, and the parts of these."""
        found: set[str] = set()
        waiting = list(starts)
        while waiting:
            digest = waiting.pop()
            if digest not in found:
                found.add(digest)
                waiting += self.parts.get(digest, ())
        return found

    def parts_first(self, digests: Collection[str]) -> list[str]:
        """*digests*, each after those of its parts that are among them."""
        return [digest for digest in behind(digests, lambda one: self.parts.get(one, ())) if digest in digests]

    def kept_with(self, starts: Iterable[str], *, alone: Collection[str] = ()) -> list[tuple[str, str]]:
        """What must stay with *starts* and is not among them, each with the start that it stays with.

        That is their parts, and the subject of what refers to one, which would have no meaning without it; but no
        subject of those that stand *alone*.
        """
        found = dict.fromkeys(starts, "")
        more: list[tuple[str, str]] = []
        for start in sorted(found):
            waiting = [start]
            while waiting:
                digest = waiting.pop()
                subject = None if digest in alone else self.subjects.get(digest)
                for other in (*self.parts.get(digest, ()), *([subject] if subject else ())):
                    if other not in found:
                        found[other] = start
                        more.append((other, start))
                        waiting.append(other)
        return more
