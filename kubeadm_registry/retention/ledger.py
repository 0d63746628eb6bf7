"""The ledger: what must be remembered from one look at the registry and the clusters to the next.

A registry does not say since when a tag has its meaning, and a cluster that is silent does not say what it runs.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self, TypeVar

from kubeadm_registry.agent.pulls import DAY
from kubeadm_registry.formats import Damaged, Format, Found, kept, split
from kubeadm_registry.retention.fields import number, optional, text
from kubeadm_registry.retention.holdings import Held, Holdings
from kubeadm_registry.retention.inventory import EMPTY, Inventory, Manifest, Repository, Seen, Tag, is_own
from kubeadm_registry.retention.links import Links
from kubeadm_registry.retention.pulls import Pulls, asked_for
from kubeadm_registry.retention.reasons import Reason
from kubeadm_registry.retention.trash import Trashed
from kubeadm_registry.retention.uses import Use, Workloads

FORMAT = Format("the retention ledger")
Age = TypeVar("Age", Tag, Seen)
#: Seconds after which an image that came back because it was asked for is used, if it has not gone again.
_USED = 30 * DAY
#: Seconds for which the age of what is gone is remembered: it may only be out of reach, since zot makes a 404 of a
#: storage error, for as long as nodes are down.
_MISSED = 3 * DAY


@dataclass(frozen=True, slots=True)
class ClusterUses:
    """What one Kubernetes cluster, called *name*, said when it *reported* last (seconds since 1970).

    *uses* are those of then, and those that were gone by then, with when they were last seen. *current* is with how
    many different images in use the next look is compared: those of then, or of before while it is not accepted that
    far fewer are. *revision* is the resourceVersion of its lists, which grows with every change of etcd; 0: not known.
    *marker* is a number that it was told to remember; 0: none. *version* is that of Kubernetes (``v1.36.3``); empty:
    not known.
    """

    name: str
    reported: int
    current: int
    uses: tuple[Use, ...]
    revision: int = 0
    marker: int = 0
    version: str = ""
    more: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def in_use(self) -> int:
        """How many different images were in use then."""
        return Workloads(self.uses).current

    def with_uses_of(self, older: ClusterUses) -> Self:
        """The same with what was in use for *older* and is gone by now."""
        here = {(use.reference, use.image_id) for use in self.uses}
        gone = (use for use in older.uses if (use.reference, use.image_id) not in here)
        last = (replace(use, last_seen=older.reported if use.last_seen is None else use.last_seen) for use in gone)
        return replace(self, uses=(*self.uses, *last))


@dataclass(frozen=True, slots=True)
class Missed:
    """What was known of a tag or manifest that looks do not find *since* then (seconds since 1970)."""

    since: int
    what: Tag | Seen


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is known of each repository, and of each cluster by the UID of its namespace ``kube-system``.

    *written* is when the last look ended, in seconds since 1970. *pulls_since* is from when on pulls are recorded.
    *in_use* is with how many images in use the next look is compared; None: with those that are here. *asked* are the
    images that were asked for while they were in the trash, by repository and digest, each with the use that this is.
    *missed* is what was there until lately, by repository and tag or digest. *grace* is for how long (seconds) uses
    that are gone are remembered, the longest time of any policy, and when a look was by that last.
    """

    written: int = 0
    repositories: Mapping[str, Repository] = field(default_factory=dict)
    clusters: Mapping[str, ClusterUses] = field(default_factory=dict)
    pulls_since: int | None = None
    in_use: int | None = None
    asked: Mapping[tuple[str, str], Use] = field(default_factory=dict)
    missed: Mapping[tuple[str, str], Missed] = field(default_factory=dict)
    grace: tuple[int, int] = (0, 0)
    found: Found | None = field(default=None, compare=False)

    def after(self, holdings: Holdings, now: int, trash: Mapping[str, frozenset[str]] = MappingProxyType({})) -> Self:
        """The ledger after a look at the registry at *now*: what is new was first seen now, what is gone is missed.

        What comes back within three days, or by the next look, is as old as it was. What could not be read is not gone:
        a repository with problems stays as it was known. *trash* are the trash tags of each repository.
        """
        known = self._known()
        repositories = {
            name: _seen(known.get(name, EMPTY), held, holdings.manifests, now, trash.get(name, frozenset()))
            for name, held in holdings.repositories.items()
        }
        unread = {name: self.repositories[name] for name in holdings.unread if name in self.repositories}
        after = {**unread, **repositories}
        gone = {
            (name, one): Missed(now, what)
            for name, before in self.repositories.items()
            for one, what in _entries(before)
            if not is_own(name) and not _has(after, name, one)
        }
        earlier = {key: one for key, one in self.missed.items() if not _has(after, *key) and now - one.since <= _MISSED}
        return replace(self, written=max(self.written, now), repositories=after, missed=gone | earlier)

    def digests(self) -> Mapping[str, Collection[str]]:
        """The manifests to look for in each repository: what was there, or was until lately."""
        return {name: one.manifests.keys() for name, one in self._known().items()}

    def _known(self) -> Mapping[str, Repository]:
        """Each repository with what is missed there."""
        missed: dict[str, dict[str, Any]] = {}
        for (name, one), was in self.missed.items():
            missed.setdefault(name, {})[one] = was.what
        known = dict(self.repositories)
        for name, found in missed.items():
            here = known.get(name, EMPTY)
            tags = {tag: what for tag, what in found.items() if ":" not in tag}
            manifests = {digest: what for digest, what in found.items() if ":" in digest}
            known[name] = replace(here, tags={**tags, **here.tags}, manifests={**manifests, **here.manifests})
        return known

    def pulled(self, pulls: Pulls | None) -> Self:
        """The ledger with what the nodes recorded; None: not all of them can say, so pulls are not known.

        A pull of a tag counts for what the tag means. It counts as well for what lost its last tag since that day:
        that may be what the tag meant then.
        """
        if pulls is None:
            return replace(self, pulls_since=None)
        found = dict[str, list[tuple[str, int]]]()
        for (repository, reference), moment in pulls.last.items():
            found.setdefault(repository, []).append((reference, moment))
        repositories = {
            name: replace(one, manifests=_pulled(one, found[name])) if name in found else one
            for name, one in self.repositories.items()
        }
        return replace(self, repositories=repositories, pulls_since=pulls.since)

    def asked_for(self, trash: Collection[Trashed], pulls: Pulls | None, now: int, *, grace: int = 0) -> Self:
        """The ledger with those images in the *trash* that somebody asked for since they got there.

        That is in vain, by a tag that they had, or by their digest, from the day after on: no more is recorded. It
        counts from *now* on, for *grace* seconds. After that the image is not used, goes back to the trash, and leaves
        it for good, for it does not count a second time: who asks for everything, again and again, keeps nothing for
        ever. Only an image that was out of the trash for much longer must have been used, and may be asked for again.
        """
        waits = {one.key for one in trash}
        since = now - max(_USED, 2 * grace)
        asked = {
            (name, digest): use
            for (name, digest), use in self.asked.items()
            if _has(self.repositories, name, digest) or (name, digest) in self.missed
            if (name, digest) in waits or (use.last_seen or 0) >= since
        }
        for one in trash:
            if pulls is not None and one.key not in asked and (use := asked_for(one, pulls)) is not None:
                asked[one.key] = replace(use, last_seen=now)
        return replace(self, asked=asked)

    def planned(self, grace: int, now: int) -> Self:
        """The ledger of a look at *now* by a policy with this *grace* (seconds). A longer one of another policy stands
        until no look has been by it for as long: what was in use goes by that plan too, and this one deletes nothing.
        """
        longest, last = self.grace
        return self if grace < longest and now - last <= longest else replace(self, grace=(grace, now))

    def reported(
        self, uid: str, name: str, uses: tuple[Use, ...], now: int, *,
        kept: int, revision: int = 0, marker: int = 0, version: str = "",
    ) -> Self:  # fmt: skip
        """The ledger after the cluster *uid*, called *name*, said at *now* that it has *uses*, as of *revision*.

        It was told to remember *marker*; 0: nothing else than before. Uses that are gone stay for *kept* seconds, from
        the first report without them: until then they may have been there, however long the cluster was silent.
        """
        before = self.clusters.get(uid)
        here = {(use.reference, use.image_id) for use in uses}
        gone = []
        for use in before.uses if before else ():
            if (use.reference, use.image_id) not in here:
                last = now if use.last_seen is None else use.last_seen
                if last >= now - kept:
                    gone.append(replace(use, last_seen=last))
        marker, more = (marker or before.marker, before.more) if before else (marker, {})
        report = ClusterUses(name, now, len(here), (*sorted(uses), *sorted(gone)), revision, marker, version, more)
        return replace(self, clusters={**self.clusters, uid: report})

    def with_newer_reports(self, other: Ledger, before: Ledger) -> Self:
        """The ledger with what clusters said to *other* later than to this one, and the markers that *other* has and
        *before*, from which this one comes, did not have. Of one that said something to both, each use counts. One that
        said nothing here and was forgotten there is forgotten."""
        here = {uid for uid, one in self.clusters.items() if one != before.clusters.get(uid)}
        clusters = {uid: one for uid, one in self.clusters.items() if uid in here or uid in other.clusters}
        for uid, one in other.clusters.items():
            mine, was = self.clusters.get(uid, one), before.clusters.get(uid)
            marker = one.marker if one.marker != (was.marker if was else 0) else mine.marker
            newer, older = (one, mine) if one.reported > mine.reported else (mine, one)
            clusters[uid] = replace(newer if was in (mine, one) else newer.with_uses_of(older), marker=marker)
        grace = self.grace if other.grace == before.grace else max(self.grace, other.grace)
        return replace(self, clusters=clusters, grace=grace)

    def merged(self, other: Ledger, before: Ledger) -> Self:
        """The ledger with what *other* knows besides, which was written since *before* was read: by another look, by
        the executor, or by who forgot it.

        What was in *before* is as old as *other* has it, and new if *other* does not know it any more: it went for
        good. What both found is as old as who saw it first has it. What only *other* found is missed.
        """
        if other == before:
            return self
        was, theirs = before.ages(), other.ages()
        repositories = {
            name: replace(
                one,
                tags={tag: _aged((name, tag), what, was, theirs, self.written) for tag, what in one.tags.items()},
                manifests={
                    digest: _aged((name, digest), what, was, theirs, self.written)
                    for digest, what in one.manifests.items()
                },
            )
            for name, one in self.repositories.items()
        }
        missed = {
            key: Missed(self.missed[key].since if key in self.missed else self.written, what)
            for key, what in theirs.items()
            if key in self.missed or (key not in was and not _has(repositories, *key))
        }
        asked = {key: use for key, use in other.asked.items() if key not in before.asked}
        return replace(self, repositories=repositories, missed=missed, asked=asked | dict(self.asked))

    def ages(self) -> Mapping[tuple[str, str], Tag | Seen]:
        """What is known of each tag and manifest, by repository and tag or digest; also of what is missed."""
        return {(name, key): what for name, one in self._known().items() for key, what in _entries(one)}

    def compared(self, before: Ledger, fewer: Collection[str]) -> Self:
        """The ledger by which the clusters *fewer* are compared with the same number again as *before*, by which others
        are with what they use now."""
        clusters = {
            uid: replace(one, current=before.clusters[uid].current if uid in fewer else one.in_use)
            for uid, one in self.clusters.items()
        }
        return replace(self, clusters=clusters)

    def dated(self, repository: str, tags: Mapping[str, Tag]) -> Self:
        """The ledger in which *tags* of *repository* are as old as they are here: they have come back.

        One that means another image by now has not: it is as old as it was.
        """
        before = self.repositories.get(repository, EMPTY)
        back = {tag: one for tag, one in tags.items() if before.tags.get(tag, one).digest == one.digest}
        after = replace(before, tags={**before.tags, **back})
        return replace(self, repositories={**self.repositories, repository: after})

    def without(self, purged: Collection[Trashed]) -> Self:
        """The ledger without the manifests of the images *purged*: who pushes one again pushes something new."""
        gone: dict[str, set[str]] = {}
        for image in purged:
            gone.setdefault(image.repository, set()).update((image.digest, *image.parts))
        repositories = dict(self.repositories)
        for name in gone.keys() & repositories.keys():
            before = repositories[name].manifests
            left = {digest: seen for digest, seen in before.items() if digest not in gone[name]}
            repositories[name] = replace(repositories[name], manifests=left)
        missed = {(name, one): was for (name, one), was in self.missed.items() if one not in gone.get(name, ())}
        return replace(self, repositories=repositories, missed=missed)

    def forgotten(self, uid: str) -> Self:
        """The ledger without the cluster *uid*, whose images are not missed."""
        return replace(self, clusters={one: report for one, report in self.clusters.items() if one != uid}, in_use=None)

    @property
    def previous(self) -> int | None:
        """With how many images in use the next look is compared; None before the first report."""
        if not self.clusters:
            return None
        return self.workloads({}).current if self.in_use is None else self.in_use

    def inventory(self, holdings: Holdings) -> Inventory:
        """What a plan is made from: *holdings*, after which this ledger was written, with what is known of them."""
        return Inventory(
            {name: self.repositories[name] for name in holdings.repositories},
            holdings.manifests,
            holdings.blobs,
            self.pulls_since,
            holdings.problems,
        )

    def workloads(
        self, sets: Mapping[str, tuple[str, ...]], problems: tuple[Reason, ...] = (), more: tuple[Use, ...] = ()
    ) -> Workloads:
        """The uses of all clusters that ever reported, for a silent one stays protected; what was asked for in the
        trash; *more* uses, and *sets*."""
        uses = tuple(use for _, one in sorted(self.clusters.items()) for use in one.uses)
        return Workloads((*uses, *(use for _, use in sorted(self.asked.items())), *more), sets, problems)

    # ---- the record ------------------------------------------------------------------------------------------------

    def to_json(self) -> bytes:
        """The record. What was read and is not known here is written back. Raises NewerFormat."""
        values: dict[str, Any] = {
            "written": self.written,
            "pullsSince": self.pulls_since,
            "inUse": self.in_use,
            "repositories": {name: _repository(one) for name, one in sorted(self.repositories.items())},
            "clusters": {
                uid: {"name": one.name, "reported": one.reported, "current": one.current,
                      **({"revision": one.revision} if one.revision else {}),
                      **({"marker": one.marker} if one.marker else {}),
                      **({"version": one.version} if one.version else {}),
                      "uses": [_use(use) for use in one.uses], **one.more}
                for uid, one in sorted(self.clusters.items())
            },
        }  # fmt: skip
        # Once there were any, that there are none is written as well: what is not written here would be kept as read.
        had = self.found.values if self.found is not None else {}
        if self.asked or "asked" in had:
            values["asked"] = [[*key, _use(use)] for key, use in sorted(self.asked.items())]
        if self.missed or "missed" in had:
            values["missed"] = [[*key, one.since, _entry(one.what)] for key, one in sorted(self.missed.items())]
        if any(self.grace):
            values["grace"] = list(self.grace)
        return json.dumps(FORMAT.seal(kept(values, self.found), self.found), separators=(",", ":")).encode()

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The ledger in a record. Raises Damaged, NewerFormat."""
        found = FORMAT.parse(content)
        values = found.values
        try:
            grace, last = values.get("grace", (0, 0))
            return cls(
                number(values["written"]),
                {name: _read_repository(one) for name, one in values["repositories"].items()},
                {uid: _read_cluster(one) for uid, one in values["clusters"].items()},
                None if values.get("pullsSince") is None else number(values["pullsSince"]),
                None if values.get("inUse") is None else number(values["inUse"]),
                {(text(name), text(digest)): _read_use(use) for name, digest, use in values.get("asked", ())},
                {
                    (text(name), text(one)): Missed(number(since), _read_seen(what) if ":" in one else _read_tag(what))
                    for name, one, since, what in values.get("missed", ())
                },
                (number(grace), number(last)),
                found,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Damaged(f"a key is missing or has a wrong value: {error!r}") from error


def _entries(repository: Repository) -> Iterator[tuple[str, Tag | Seen]]:
    """What is known of each manifest, and of each tag that is not in the trash."""
    yield from repository.manifests.items()
    yield from repository.live()


def _aged(
    key: tuple[str, str], mine: Age, was: Mapping[tuple[str, str], Tag | Seen],
    theirs: Mapping[tuple[str, str], Tag | Seen], now: int,
) -> Age:  # fmt: skip
    """*mine*, what a look knows of *key* that began with what *was* known, by what others have written since."""
    before, other = was.get(key), theirs.get(key)
    known = before is not None and _same(before, mine)
    if other is None:
        return replace(mine, first_seen=now) if known else mine
    if not _same(other, mine):
        return mine
    first = min(other.first_seen, now if known else mine.first_seen)
    if isinstance(mine, Seen) and isinstance(other, Seen):
        pulled = max((one.last_pulled for one in (mine, other) if one.last_pulled is not None), default=None)
        return replace(mine, first_seen=first, last_pulled=pulled)
    return replace(mine, first_seen=first)


def _same(one: Tag | Seen, two: Tag | Seen) -> bool:
    """Whether two that were known of a tag mean the same image; of a manifest they do."""
    return not (isinstance(one, Tag) and isinstance(two, Tag)) or one.digest == two.digest


def _has(repositories: Mapping[str, Repository], name: str, one: str) -> bool:
    """Whether the tag or digest *one* is in the repository *name*."""
    found = repositories.get(name, EMPTY)
    return one in (found.manifests if ":" in one else found.tags)


def _seen(
    before: Repository, held: Held, manifests: Mapping[str, Manifest], now: int, trash: frozenset[str]
) -> Repository:
    """What is known of a repository in which *held* was found *now*, and of which *before* was known."""
    tags = {
        tag: was if (was := before.tags.get(tag)) is not None and was.digest == digest else Tag(digest, now)
        for tag, digest in held.tags.items()
    }
    seen = {digest: before.manifests.get(digest, Seen(now)) for digest in held.manifests}
    found = Repository(tags, seen, trash & tags.keys())
    tagged = Links.of(found, manifests).led_to(found)
    for digest, known in seen.items():
        since = None if digest in tagged else (now if known.untagged_since is None else known.untagged_since)
        seen[digest] = replace(known, untagged_since=since)
    return found


def _pulled(repository: Repository, pulls: Iterable[tuple[str, int]]) -> dict[str, Seen]:
    """The manifests of *repository* after *pulls*: references, and the last second of the day."""
    last: dict[str, int] = {}
    by_tag: set[int] = set()
    for reference, moment in pulls:
        tag = repository.tags.get(reference)
        digest = reference if tag is None else tag.digest
        last[digest] = max(last.get(digest, 0), moment)
        if ":" not in reference:
            by_tag.add(moment)
    days = sorted(by_tag)
    manifests = dict(repository.manifests)
    for digest, seen in repository.manifests.items():
        moment = last.get(digest, 0)
        if seen.untagged_since and (earlier := bisect_left(days, seen.untagged_since + DAY)):
            moment = max(moment, days[earlier - 1])
        if moment:
            manifests[digest] = replace(seen, last_pulled=max(seen.last_pulled or 0, moment))
    return manifests


def _repository(one: Repository) -> dict[str, Any]:
    return {
        "tags": {tag: _entry(what) for tag, what in sorted(one.tags.items())},
        "manifests": {digest: _entry(seen) for digest, seen in sorted(one.manifests.items())},
        "trash": sorted(one.trash),
    }


def _entry(what: Tag | Seen) -> list[str | int | None]:
    if isinstance(what, Tag):
        return [what.digest, what.first_seen]
    return [what.first_seen, what.last_pulled, what.untagged_since]


def _read_repository(one: Mapping[str, Any]) -> Repository:
    tags = {tag: _read_tag(what) for tag, what in one["tags"].items()}
    manifests = {digest: _read_seen(seen) for digest, seen in one["manifests"].items()}
    return Repository(tags, manifests, frozenset(map(text, one.get("trash", []))))


def _read_tag(values: Any) -> Tag:
    digest, first = values
    return Tag(text(digest), number(first))


def _read_seen(values: Any) -> Seen:
    first, pulled, untagged = values
    return Seen(number(first), optional(pulled), optional(untagged))


_USE = {"reference": "reference", "imageID": "image_id", "users": "users", "count": "count", "lastSeen": "last_seen"}


def _use(use: Use) -> dict[str, Any]:
    values = {key: getattr(use, name) for key, name in _USE.items()}
    return {**values, "users": list(use.users)}


def _read_use(use: Mapping[str, Any]) -> Use:
    return Use(
        text(use["reference"]),
        text(use.get("imageID", "")),
        tuple(map(text, use.get("users", ()))),
        number(use.get("count", 1)),
        optional(use.get("lastSeen")),
    )


def _read_cluster(one: Mapping[str, Any]) -> ClusterUses:
    known, more = split(one, ("name", "reported", "current", "uses", "revision", "marker", "version"))
    uses = tuple(map(_read_use, known["uses"]))
    name, reported, current = text(known["name"]), number(known["reported"]), number(known["current"])
    revision, marker = number(known.get("revision", 0)), number(known.get("marker", 0))
    return ClusterUses(name, reported, current, uses, revision, marker, text(known.get("version", "")), more)
