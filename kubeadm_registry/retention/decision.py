"""What stays and what goes in one repository.

An image is a manifest with all its tags: they stay or go together, since Distribution 2.8 cannot delete one tag alone.
With what stays, everything stays that it needs, or that refers to it; the rest goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kubeadm_registry.config.durations import seconds
from kubeadm_registry.retention.inventory import Inventory, Repository, is_own
from kubeadm_registry.retention.links import Links
from kubeadm_registry.retention.policy import PolicySpec, Rule
from kubeadm_registry.retention.protected import Protected, subject_of_tag
from kubeadm_registry.retention.rules import Image, kept
from kubeadm_registry.retention.uses import Use


@dataclass(frozen=True, slots=True)
class Because:
    """Why something stays or goes: a *cause* of ``record.Kept`` or ``record.Deletion``, the *rule*, and words."""

    cause: str
    rule: str
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision for the repository *name*.

    *images* are all tagged images, *loose* what has no tag and is not part of an image; *going* goes, everything else
    stays. *reasons* has why, for what goes and for all images and loose manifests. *tags* are those that go with each
    digest, *part_of* the manifests here that need it.
    """

    name: str
    images: Mapping[str, Image]
    loose: Mapping[str, Image]
    going: tuple[str, ...]
    reasons: Mapping[str, Because]
    tags: Mapping[str, tuple[str, ...]]
    part_of: Mapping[str, tuple[str, ...]]


def decide(name: str, inventory: Inventory, protected: Protected, spec: PolicySpec, now: int) -> Decision:
    """Decide for the repository *name* of a complete *inventory*, at *now* in seconds since 1970."""
    repository = inventory.repositories[name]
    here = _Contents.of(repository, inventory)
    rule = spec.rule_of(name)
    images = [here.images[digest] for digest in sorted(here.images)]
    by_rule = kept(rule.keep, images, now, inventory.pulls_since) if rule else {}
    young = now - seconds(spec.grace)
    reasons: dict[str, Because] = {}
    for digest in sorted(repository.manifests):
        because = _needed(name, digest, here.tags.get(digest, ()), protected)
        if because is None and here.newest[digest] > young:
            because = Because("TooNew", "", f"first seen within {spec.grace} (spec.grace)")
        if because is None and digest in here.trash:
            because = Because("Trash", "", "in the trash")
        if because is None and digest in here.images:
            because = _by_rule(name, rule, by_rule.get(digest))
        if because is None and (digest in here.images or digest in here.loose):
            because = _elsewhere(digest, here.tags.get(digest, ()), repository, inventory)
        if because is None and digest in here.loose:
            because = _loose(here.loose[digest], repository, spec, now)
        if because is not None:
            reasons[digest] = because
    # What refers to an image goes to the trash before it, and a run that was broken off may have come no further.
    trash = {digest for digest, because in reasons.items() if because.cause == "Trash"}
    for digest, start in here.links.kept_with(reasons, alone=trash):
        label = f"{name}:{here.images[start].tags[0]}" if start in here.images else f"{name}@{start}"
        reasons[digest] = Because("Related", reasons[start].rule, f"belongs to {label}")
    going = tuple(sorted(repository.manifests.keys() - reasons.keys()))
    for digest in going:
        reasons[digest] = _deleted(digest, here, rule)
    return Decision(
        name, here.images, here.loose, going, reasons,
        {digest: tuple(here.tags.get(digest, ())) for digest in going},
        {digest: tuple(here.links.wholes.get(digest, ())) for digest in going},
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Contents:
    """What is in one repository.

    *images* are tagged, *loose* is what no tag leads to, *trash* has a tag there. *tags* are all that are not in the
    trash, of each digest; *newest* is when it or one of these was first seen last.
    """

    images: Mapping[str, Image]
    loose: Mapping[str, Image]
    trash: set[str]
    tags: Mapping[str, list[str]]
    newest: Mapping[str, int]
    links: Links

    @classmethod
    def of(cls, repository: Repository, inventory: Inventory) -> _Contents:
        links = Links.of(repository, inventory.manifests)
        named: dict[str, list[str]] = {}
        tags: dict[str, list[str]] = {}
        newest = {digest: seen.first_seen for digest, seen in repository.manifests.items()}
        for tag, meaning in repository.live():
            tags.setdefault(meaning.digest, []).append(tag)
            newest[meaning.digest] = max(newest[meaning.digest], meaning.first_seen)
            # A tag made of a digest follows that digest, and is no name of an image.
            if not subject_of_tag(tag):
                named.setdefault(meaning.digest, []).append(tag)
        trash = {repository.tags[tag].digest for tag in repository.trash if tag in repository.tags}
        led_to = links.led_to(repository)

        def image(digest: str, names: Iterable[str]) -> Image:
            return Image(digest, tuple(names), newest[digest], _last_pulled(digest, repository, inventory))

        images = {digest: image(digest, names) for digest, names in named.items()}
        loose = {digest: image(digest, tags.get(digest, ())) for digest in repository.manifests.keys() - led_to}
        return cls(images, loose, trash, tags, newest, links)


def _last_pulled(digest: str, repository: Repository, inventory: Inventory) -> int | None:
    """When *digest* was pulled last, or what it is an index of: that may be asked for by its own digest alone."""
    found: list[int] = []
    seen: set[str] = set()
    waiting = [digest]
    while waiting:
        one = waiting.pop()
        if one in repository.manifests and one not in seen:
            seen.add(one)
            waiting += inventory.manifests[one].children
            found += [moment] if (moment := repository.manifests[one].last_pulled) is not None else []
    return max(found, default=None)


def _needed(name: str, digest: str, tags: Iterable[str], protected: Protected) -> Because | None:
    """Why the image *digest* stays whatever the policy says."""
    if is_own(name):
        return Because("Own", "", "belongs to kubeadm-registry")
    use = protected.digests.get(digest)
    if use is None:
        use = next((found for tag in tags if (found := protected.tags.get((name, tag))) is not None), None)
    return None if use is None else Because("InUse", "", _in_use(use))


def _in_use(use: Use) -> str:
    return f"used by {use.who()} as {use}"


def _by_rule(name: str, rule: Rule | None, part: str | None) -> Because | None:
    if rule is None:
        return Because("NoRule", "", f"no rule is for {name}")
    return None if part is None else Because("Rule", rule.name, part)


def _elsewhere(digest: str, tags: Iterable[str], repository: Repository, inventory: Inventory) -> Because | None:
    """That *digest* refers to an image in another repository, as signatures do that cosign keeps apart from images."""
    for subject in (inventory.manifests[digest].subject, *map(subject_of_tag, sorted(tags))):
        if subject in inventory.manifests and subject not in repository.manifests:
            return Because("Related", "", f"refers to {subject} in another repository")
    return None


def _loose(image: Image, repository: Repository, spec: PolicySpec, now: int) -> Because | None:
    """Why a manifest that is not part of a tagged image stays."""
    after = spec.untagged.after
    if after is None:
        return Because("Untagged", "", "spec.untagged.after is not set")
    seen = repository.manifests[image.digest]
    last = max(image.first_seen, seen.untagged_since or 0, image.last_pulled or 0)
    return Because("Untagged", "", f"untagged for less than {after}") if last > now - seconds(after) else None


def _deleted(digest: str, here: _Contents, rule: Rule | None) -> Because:
    if digest in here.images:
        return Because("NotKept", rule.name if rule else "", "kept by no part of the rule and used by nothing")
    if digest in here.loose:
        own = " of its own, but for an image that is gone," if here.tags.get(digest) else ""
        return Because("Untagged", "", f"without a tag{own} for longer than spec.untagged.after")
    return Because("PartOfDeleted", "", f"belongs to {here.links.wholes[digest][0]}, which is deleted")
