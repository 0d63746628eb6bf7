"""What must stay whatever a policy says: everything that something in use could need, by digest and by tag.

Source: ``imageID`` is what containerd's CRI plugin makes of it (internal/cri/server/container_status.go): the first
name of whatever has the same configuration on that node. So its digest counts and its repository does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from kubeadm_registry.config.durations import seconds
from kubeadm_registry.images.names import REFERRERS_TAG
from kubeadm_registry.retention.inventory import Inventory, is_own
from kubeadm_registry.retention.names import Wanted, digest_in, wanted
from kubeadm_registry.retention.policy import RegistryPolicy, SetName
from kubeadm_registry.retention.reasons import Reason
from kubeadm_registry.retention.uses import PAUSE, Use, Workloads

#: Seconds by which clocks of nodes and of this machine may differ.
CLOCK_TOLERANCE = 60
#: What to do about a set that is not known. Whoever takes kubeadm out has the images of the next version deleted.
_MISSING: Mapping[SetName, str] = {
    "bundle": "seed the newest bundle of each line again, or remove bundle from spec.sets",
    "kubeadm": "set spec.kubernetes.version in the cluster file if no cluster says its version; if one has a version "
    "that this release of kubeadm-registry does not know, install a newer release; if no Kubernetes uses the registry, "
    "remove kubeadm from spec.sets",
}


@dataclass(frozen=True, slots=True)
class Protected:
    """What must stay, each with a use that needs it: *digests* in every repository, *tags* by (repository, tag).

    *digests* is closed: with an index are its children, with a child all indexes that list it, with a manifest what
    refers to it, and with that its subject. *current* is how many different images are in use now. With *problems* it
    is not known what must stay.
    """

    digests: Mapping[str, Use] = field(default_factory=dict)
    tags: Mapping[tuple[str, str], Use] = field(default_factory=dict)
    current: int = 0
    problems: tuple[Reason, ...] = ()


def protect(inventory: Inventory, workloads: Workloads, policy: RegistryPolicy, now: int) -> Protected:
    """What of *inventory* must stay at *now* (seconds since 1970) for *workloads* and the sets that *policy* names.

    Uses that are gone count for ``spec.workloadGrace``. Pause images and the repositories of kubeadm-registry itself
    always stay.
    """
    spec = policy.spec
    problems = list(workloads.problems)
    for name in spec.sets:
        if name not in workloads.sets:
            problems.append(Reason("SetMissing", f"the images of the set {name} are not known", _MISSING[name]))
    since = now - seconds(spec.workload_grace)
    uses = [use for use in workloads.uses if use.last_seen is None or use.last_seen >= since]
    sets = {each: [Use(name, users=(f"set {each}",)) for name in workloads.sets.get(each, ())]
            for each in (*spec.sets, PAUSE)}  # fmt: skip
    uses += (use for each in sets.values() for use in each)
    latest = max((use.last_seen for use in uses if use.last_seen is not None), default=0)
    if latest > now + CLOCK_TOLERANCE:
        problems.append(clock_doubtful("a workload was seen", latest, now))
    named = _Named(inventory)
    for use in sorted(uses, key=lambda use: (use.last_seen is not None, use)):
        if (problem := named.add(use)) is not None:
            problems.append(problem)
    for use in (*sets.get("kubeadm", ()), *sets[PAUSE]):
        named.add_anywhere(use)
    named.add_own()
    digests = _closed(inventory, named.digests)
    return Protected(digests, named.tags, workloads.current, tuple(sorted(problems)))


def clock_doubtful(what: str, when: int, now: int) -> Reason:
    """The reason for a clock that is before *when*, the time at which *what* happened."""
    return Reason(
        "ClockDoubtful",
        f"the clock is wrong now or was wrong before: {what} {when - now} seconds from now",
        "set the clocks; if they are right and the ledger has times in the future, `retention forget --ledger` begins "
        "a new one",
    )


def digests_named(uses: Iterable[Use]) -> dict[str, set[str]]:
    """The digests in the names of *uses*, and of what runs by these, by each repository that they may be in: perhaps no
    look has found them."""
    found: dict[str, set[str]] = {}
    for use in uses:
        asked = wanted(use.reference)
        if asked is not None and (digests := {asked.digest, digest_in(use.image_id)} - {""}):
            for repository in asked.repositories:
                found.setdefault(repository, set()).update(digests)
    return found


class _Named:
    """The digests and tags that uses name themselves, before anything follows from them."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._by_config: dict[str, list[str]] = {}
        for digest, manifest in inventory.manifests.items():
            if manifest.config:
                self._by_config.setdefault(manifest.config, []).append(digest)
        self._by_last: dict[str, list[str]] = {}
        for name in inventory.repositories:
            self._by_last.setdefault(_last(name), []).append(name)
        self.digests: dict[str, Use] = {}
        self.tags: dict[tuple[str, str], Use] = {}
        self._whole: set[str] = set()
        """The repositories of which all tags are noted."""

    def add(self, use: Use) -> Reason | None:
        """Note what *use* names; the reason why no plan can be made if it cannot be read."""
        if (digest := digest_in(use.reference)) and "@" not in use.reference:
            # The digest of a configuration, or of a manifest, and no name of which all tags could stay.
            return None if self._add_digest(digest, use) else _not_understood(use)
        asked = wanted(use.reference)
        if asked is not None:
            self._add_reference(asked, use)
        if use.image_id and not self._add_digest(digest_in(use.image_id), use):
            # What runs is not known: it may be any image that had this name.
            for repository in asked.repositories if asked else ():
                self._add_all_tags(repository, use)
        # Only containers of an object that is gone may still run, and their imageID is that of what they run
        # (``upkeep.object_images``).
        gone = use.last_seen is not None and use.image_id.removeprefix("oci://") in ("", use.reference)
        return None if asked is not None or gone else _not_understood(use)

    def add_anywhere(self, use: Use) -> None:
        """Note the image *use* below any other name as well: kubeadm asks where ``imageRepository`` says, and where
        containerd has its pause image from stands in its configuration only."""
        asked = wanted(use.reference)
        if asked is not None and asked.tag:
            for last in {_last(name) for name in asked.repositories}:
                for repository in self._by_last.get(last, ()):
                    self._add_tag(repository, asked.tag, use)

    def add_own(self) -> None:
        """The images of kubeadm-registry itself, except those of others that wait there to be deleted."""
        for name in sorted(self._inventory.repositories):
            if is_own(name):
                self._add_all_tags(name, Use(name, users=("kubeadm-registry",)))

    def _add_reference(self, asked: Wanted, use: Use) -> None:
        if asked.digest:
            self.digests.setdefault(asked.digest, use)
        if asked.tag:
            for repository in asked.repositories:
                self._add_tag(repository, asked.tag, use)

    def _add_digest(self, digest: str, use: Use) -> bool:
        """Whether *digest* is that of a manifest or of a configuration in the registry."""
        found = [*([digest] if digest in self._inventory.manifests else ()), *self._by_config.get(digest, ())]
        for one in found if digest else ():
            self.digests.setdefault(one, use)
        return bool(digest and found)

    def _add_all_tags(self, repository: str, use: Use) -> None:
        held = self._inventory.repositories.get(repository)
        if held is not None and repository not in self._whole:
            self._whole.add(repository)
            for tag, _ in held.live():
                self._add_tag(repository, tag, use)

    def _add_tag(self, repository: str, tag: str, use: Use) -> None:
        # The name is kept even where it means nothing yet: by the time of a deletion it may.
        self.tags.setdefault((repository, tag), use)
        held = self._inventory.repositories.get(repository)
        if held is not None and tag in held.tags:
            self.digests.setdefault(held.tags[tag].digest, use)


def _last(repository: str) -> str:
    return repository.rpartition("/")[2]


def _not_understood(use: Use) -> Reason:
    return Reason(
        "ImageNotUnderstood",
        f"{use.who()} uses {use}, which cannot be read as an image name",
        "correct the image name, or delete what uses it",
    )


def _closed(inventory: Inventory, named: Mapping[str, Use]) -> dict[str, Use]:
    """*named* with all that follows, each with the use that led to it first."""
    links = _links(inventory)
    found: dict[str, Use] = {}
    for start, use in named.items():
        waiting = [start]
        while waiting:
            digest = waiting.pop()
            if digest not in found:
                found[digest] = use
                waiting += links.get(digest, ())
    return found


def _links(inventory: Inventory) -> Mapping[str, Iterable[str]]:
    """For each digest those that stay with it."""
    links: dict[str, list[str]] = {}
    for digest, manifest in inventory.manifests.items():
        for other in (*manifest.children, *([manifest.subject] if manifest.subject else ())):
            links.setdefault(digest, []).append(other)
            links.setdefault(other, []).append(digest)
    for subject, digest in _referrer_tags(inventory):
        # One way only: an empty list of referrers is the same manifest for all subjects.
        links.setdefault(subject, []).append(digest)
    return links


def _referrer_tags(inventory: Inventory) -> Iterator[tuple[str, str]]:
    """Each subject with the manifest under a tag that is made of its digest."""
    for repository in inventory.repositories.values():
        for name, tag in repository.tags.items():
            if subject := subject_of_tag(name):
                yield subject, tag.digest


def subject_of_tag(tag: str) -> str:
    """The digest that the *tag* of a list of referrers is made of; empty for any other tag.

    Also for what cosign makes of it: ``sha256-....sig``, ``.att`` and ``.sbom``.
    """
    if not tag.startswith("sha256-") or (found := REFERRERS_TAG.match(tag)) is None:
        return ""
    rest = tag[found.end() :]
    return found[0].replace("-", ":", 1) if not rest or rest.startswith(".") else ""
