"""The order: what the executor is to do now, as a value that it can carry out without knowing workloads or policies.

It follows from a plan, from what is in the trash and from what is in use. Nothing leaves the registry by a plan alone:
an image goes to the trash first, and from there for good once its window is over and nothing uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Self

from kubeadm_registry.config.durations import seconds
from kubeadm_registry.formats import Damaged, Format
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.retention.fields import items, number, text, texts
from kubeadm_registry.retention.inventory import Inventory, Repository
from kubeadm_registry.retention.links import Links, behind, image_tags
from kubeadm_registry.retention.policy import PolicySpec
from kubeadm_registry.retention.protected import Protected, subject_of_tag
from kubeadm_registry.retention.record import Deletion, Plan
from kubeadm_registry.retention.trash import Trash, Trashed, trash_tag

FORMAT = Format("the retention order")
#: Seconds after which an order is too old to be carried out: what is in use may have changed.
LASTS = 600
#: Images that go to the trash by one order, and as many for good: more than it lasts for with zot, and the helper on a
#: node takes no order of any length.
MOST = 10_000
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_PART_OF_DELETED = "PartOfDeleted"


@dataclass(frozen=True, slots=True)
class Restore:
    """Give *image* its tags back, because of *why*."""

    image: Trashed
    why: str


@dataclass(frozen=True, slots=True)
class Caller:
    """An operator: the UID of the *lease* by which one of its replicas acts, and how often that changed hands."""

    lease: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Order:
    """What to do with which images, as of *made* (seconds since 1970).

    *approval* is the digest of the approved plan that is spent with it, *caller* the operator that gives it. *delete*
    goes to the trash, *restore* comes back from it, *purge* goes for good; *forget* are entries of the trash
    whose image is gone, *sweep* tags by repository that a broken run has left. *approved*: somebody has approved the
    plan. *grace*, *window* (seconds), *share* (percent) and *sets* are those of the policy, which the executor checks
    itself.
    """

    made: int
    policy: str = ""
    plan: str = ""
    approved: bool = False
    grace: int = 0
    window: int = 0
    share: int = 100
    sets: tuple[str, ...] = ()
    delete: tuple[Trashed, ...] = ()
    restore: tuple[Restore, ...] = ()
    purge: tuple[Trashed, ...] = ()
    forget: tuple[Trashed, ...] = ()
    sweep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    approval: str = ""
    caller: Caller | None = None
    left: int = 0
    """How many images are for the next order, because this one has MOST."""

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.delete or self.restore or self.purge or self.forget or self.sweep)

    @property
    def deletes(self) -> bool:
        """Whether an image goes by it, to the trash or for good."""
        return bool(self.delete or self.purge)

    @property
    def digest(self) -> str:
        """By which the executor is told of it."""
        return oci.digest_of(self.to_json())

    def to_json(self) -> bytes:
        """The record; the same order is always the same text."""
        values = {
            "made": datetime.fromtimestamp(self.made, UTC).strftime(_TIME),
            "policy": self.policy,
            "plan": self.plan,
            "approved": self.approved,
            "grace": self.grace,
            "window": self.window,
            "share": self.share,
            "sets": list(self.sets),
            "delete": [one.to_dict() for one in self.delete],
            "restore": [{"image": one.image.to_dict(), "why": one.why} for one in self.restore],
            "purge": [one.to_dict() for one in self.purge],
            "forget": [one.to_dict() for one in self.forget],
            "sweep": {name: list(tags) for name, tags in sorted(self.sweep.items())},
        }
        if self.approval:
            values["approval"] = self.approval
        if self.caller is not None:
            values["caller"] = {"lease": self.caller.lease, "epoch": self.caller.epoch}
        if self.left:
            values["left"] = self.left
        return FORMAT.render(values)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The order in a record. Raises Damaged, NewerFormat."""
        values = FORMAT.parse(content).values
        try:
            made = datetime.strptime(text(values["made"]), _TIME).replace(tzinfo=UTC)
            if type(values["approved"]) is not bool:
                raise TypeError("approved is neither true nor false")
            return cls(
                int(made.timestamp()),
                text(values["policy"]),
                text(values["plan"]),
                values["approved"],
                number(values["grace"]),
                number(values["window"]),
                number(values["share"]),
                texts(values["sets"]),
                _images(values["delete"]),
                tuple(Restore(Trashed.parse(one["image"]), text(one["why"])) for one in items(values["restore"])),
                _images(values["purge"]),
                _images(values["forget"]),
                {text(name): texts(tags) for name, tags in values["sweep"].items()},
                text(values.get("approval", "")),
                _caller(values.get("caller")),
                number(values.get("left", 0)),
            )
        except Damaged:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Damaged(f"a key is missing or has a wrong value: {error!r}") from error


def _caller(value: Any) -> Caller | None:
    return None if value is None else Caller(text(value["lease"]), number(value["epoch"]))


def _images(value: object) -> tuple[Trashed, ...]:
    return tuple(Trashed.parse(one) for one in items(value))


def order(
    plan: Plan, trash: Trash, inventory: Inventory, protected: Protected, spec: PolicySpec, *,
    now: int, approved: bool, buried: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> Order:  # fmt: skip
    """What to do for *plan*, with what is in the *trash*, at *now* (seconds since 1970).

    *inventory* and *protected* are those that the plan was made from, and *spec* is its policy's; *buried* are tags of
    tombstones, by repository.
    """
    window = seconds(spec.trash.window)
    # What a broken run has left of an image goes with the rest of it.
    parts = {(one.repository, part) for one in trash for part in one.parts}
    delete = _parts_first((one for one in _going(plan, inventory, now) if one.key not in parts), inventory)
    going = {one.key for one in delete}
    named = _named(trash, inventory)
    restore: list[Restore] = []
    over: list[Trashed] = []
    forget: list[Trashed] = []
    again: list[Trashed] = []
    for one in trash:
        if one.key in going:
            continue  # a broken run had noted it and got no further: now it goes
        held = inventory.repositories.get(one.repository)
        if held is None or not held.manifests.keys() & {one.digest, *one.parts}:
            forget.append(one)
        elif why := _wanted(one, inventory, protected, named.get(one.key, ())):
            restore.append(Restore(one, why))
        elif not one.complete and one.digest in held.manifests:
            if one.tag in held.tags:
                again.append(one)
            else:  # it has lost no tag yet, and this plan may keep it, or lack an approval
                restore.append(Restore(one, "a run that was broken off had not begun with it"))
        elif now - one.deleted >= window:
            over.append(one)
    purge: list[Trashed] = []
    unneeded = _unneeded(over, inventory, protected)
    for one in over:
        if one.key in unneeded:
            purge.append(replace(one, parts=tuple(part for part in one.parts if (one.repository, part) in unneeded)))
        elif one.digest in inventory.repositories[one.repository].manifests:
            restore.append(Restore(one, "part of an image that stays"))
        # Else a broken run has deleted it, and it cannot come back; its parts wait for as long as it is asked for.
    going_now, going_for_good = (*delete, *again), _needing_first(purge, inventory)
    return Order(
        now, plan.policy, plan.digest, approved, seconds(spec.grace), window, spec.maximum_share, tuple(spec.sets),
        going_now[:MOST], tuple(restore), going_for_good[:MOST], tuple(forget), buried,
        left=len(going_now[MOST:]) + len(going_for_good[MOST:]),
    )  # fmt: skip


def undo(images: Iterable[Trashed], now: int, why: str) -> Order:
    """The order that gives *images* their tags back, because of *why*."""
    return Order(now, restore=tuple(Restore(one, why) for one in images))


def _named(trash: Trash, inventory: Inventory) -> Mapping[tuple[str, str], list[str]]:
    """The tags, sorted, that images have now in the repositories of *trash*, but for its own."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in {one.repository for one in trash.images.values()} & inventory.repositories.keys():
        for tag, meaning in inventory.repositories[name].live():
            found.setdefault((name, meaning.digest), []).append(tag)
    return found


def _wanted(image: Trashed, inventory: Inventory, protected: Protected, names: Iterable[str]) -> str:
    """Why *image*, which has these *names* now, comes back from the trash; empty if it does not."""
    held = inventory.repositories[image.repository]
    if image.digest not in held.manifests:
        return ""
    use = protected.digests.get(image.digest)
    for tag in image.tags if use is None else ():
        # One that means another image now is no name of this one.
        free = tag not in held.tags or tag in held.trash
        if free and (use := protected.tags.get((image.repository, tag))) is not None:
            break
    if use is not None:
        return f"used by {use.who()} as {use}"
    # Those that it had and still has are what a broken run was to take away.
    had = () if image.complete else image.tags.keys()
    named = [tag for tag in names if tag not in had]
    return f"tagged {', '.join(named)} again" if named else ""


def _unneeded(images: Iterable[Trashed], inventory: Inventory, protected: Protected) -> set[tuple[str, str]]:
    """Those of *images* and their parts that nothing needs but these themselves."""
    found: set[tuple[str, str]] = set()
    for one in images:
        found |= {(one.repository, digest) for digest in (one.digest, *one.parts)}
    found = {key for key in found if key[1] not in protected.digests}
    for name in {one.repository for one in images}:
        held = inventory.repositories[name]
        tagged = {meaning.digest for meaning in image_tags(held)}
        with_it = _with_it(held, inventory)
        stay = [digest for digest in held.manifests if (name, digest) not in found or digest in tagged]
        while stay:
            digest = stay.pop()
            found.discard((name, digest))
            stay += [one for one in with_it.get(digest, ()) if (name, one) in found]
    return found


def _with_it(held: Repository, inventory: Inventory) -> Mapping[str, list[str]]:
    """For each manifest of a repository what stays with it: its parts, its subject, and what refers to it."""
    found: dict[str, list[str]] = {}
    for digest in held.manifests:
        manifest = inventory.manifests[digest]
        found.setdefault(digest, []).extend(manifest.children)
        if manifest.subject:
            found[digest].append(manifest.subject)
            found.setdefault(manifest.subject, []).append(digest)
    for tag, meaning in held.live():
        if subject := subject_of_tag(tag):
            found.setdefault(subject, []).append(meaning.digest)
    return found


def _by_repository(images: Iterable[Trashed]) -> Mapping[str, Mapping[str, Trashed]]:
    """*images* by their digests, of each repository."""
    found: dict[str, dict[str, Trashed]] = {}
    for one in images:
        found.setdefault(one.repository, {})[one.digest] = one
    return found


def _parts_first(images: Iterable[Trashed], inventory: Inventory) -> tuple[Trashed, ...]:
    """*images* by repository, each after its parts, for in the trash it keeps what a killed run has not moved yet."""
    return tuple(
        ones[digest]
        for name, ones in _by_repository(images).items()
        for digest in Links.of(inventory.repositories[name], inventory.manifests).parts_first(ones)
    )


def _needing_first(images: Iterable[Trashed], inventory: Inventory) -> tuple[Trashed, ...]:
    """*images* by repository, each before those of which it needs something: zot deletes no part of an index, and what
    something in the trash needs stays when the rest of its image goes."""

    def ordered(ones: Mapping[str, Trashed]) -> Iterator[Trashed]:
        owner = {digest: one.digest for one in ones.values() for digest in (*one.parts, one.digest)}

        def needs(digest: str) -> Iterator[str]:
            for part in (digest, *ones[digest].parts):
                if (manifest := inventory.manifests.get(part)) is not None:
                    yield from (owner[one] for one in (*manifest.children, manifest.subject) if one in owner)

        return (ones[digest] for digest in reversed(behind(ones, needs)))

    return tuple(one for ones in _by_repository(images).values() for one in ordered(ones))


def _going(plan: Plan, inventory: Inventory, now: int) -> Iterator[Trashed]:
    """The images that *plan* deletes, each with its tags and parts."""
    images: dict[tuple[str, str], list[Deletion]] = {}
    for one in plan.deletions:
        images.setdefault((one.repository, one.digest), []).append(one)
    parts = {key for key, (first, *_) in images.items() if first.cause == _PART_OF_DELETED}
    below: dict[tuple[str, str], list[str]] = {}
    for repository, digest in sorted(parts):
        for whole in images[repository, digest][0].part_of:
            below.setdefault((repository, whole), []).append(digest)
    for key, found in images.items():
        if key not in parts:
            first, known = found[0], inventory.repositories[key[0]].tags
            # Its tag in the trash is one of its tags where that record was begun anew, and is the one that it keeps.
            tags = {one.tag for one in found} - {"", trash_tag(first.digest)}
            yield Trashed(
                first.repository, first.digest, {tag: known[tag].first_seen for tag in tags},
                _below(key, below), now, plan.digest, first.rule, first.why, first.size,
            )  # fmt: skip


def _below(key: tuple[str, str], below: Mapping[tuple[str, str], list[str]]) -> tuple[str, ...]:
    """The parts of *key* and the parts of these, each after all wholes that it belongs to: zot deletes no other way."""
    repository, digest = key
    done = behind([digest], lambda one: below.get((repository, one), ()))
    return tuple(done[-2::-1])
