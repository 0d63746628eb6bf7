"""The ledger: what must be remembered from one look at the registry and the clusters to the next.

A registry does not say since when a tag has its meaning, and a cluster that is silent does not say what it runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self

from kubeadm_registry.agent.pulls import DAY
from kubeadm_registry.formats import Damaged, Format, Found, kept, split
from kubeadm_registry.retention.fields import number, optional, text
from kubeadm_registry.retention.holdings import Held, Holdings
from kubeadm_registry.retention.inventory import Inventory, Repository, Seen, Tag
from kubeadm_registry.retention.pulls import Pulls
from kubeadm_registry.retention.reasons import Reason
from kubeadm_registry.retention.uses import Use, Workloads

FORMAT = Format("the retention ledger")


@dataclass(frozen=True, slots=True)
class ClusterUses:
    """What one Kubernetes cluster, called *name*, said when it *reported* last (seconds since 1970).

    *uses* are those of then, and those that were gone by then, with when they were last seen; *current* is how many
    different images were in use. *revision* is the resourceVersion of its lists, which grows with every change of
    etcd; 0: not known.
    """

    name: str
    reported: int
    current: int
    uses: tuple[Use, ...]
    revision: int = 0
    more: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is known of each repository, and of each cluster by the UID of its namespace ``kube-system``.

    *written* is when the last look ended, in seconds since 1970. *pulls_since* is from when on pulls are recorded.
    *in_use* is with how many images in use the next look is compared; None: with those that are here.
    """

    written: int = 0
    repositories: Mapping[str, Repository] = field(default_factory=dict)
    clusters: Mapping[str, ClusterUses] = field(default_factory=dict)
    pulls_since: int | None = None
    in_use: int | None = None
    found: Found | None = field(default=None, compare=False)

    def after(self, holdings: Holdings, now: int, trash: Mapping[str, frozenset[str]] = MappingProxyType({})) -> Self:
        """The ledger after a look at the registry at *now*: what is new was first seen now, what is gone is forgotten.

        What could not be read is not gone: a repository with problems stays as it was known. *trash* are the trash tags
        of each repository.
        """
        repositories = {
            name: self._seen(name, held, now, trash.get(name, frozenset()))
            for name, held in holdings.repositories.items()
        }
        unread = {name: self.repositories[name] for name in holdings.unread if name in self.repositories}
        return replace(self, written=max(self.written, now), repositories={**unread, **repositories})

    def _seen(self, name: str, held: Held, now: int, trash: frozenset[str]) -> Repository:
        before = self.repositories.get(name, Repository({}, {}))
        tags = {
            tag: was if (was := before.tags.get(tag)) is not None and was.digest == digest else Tag(digest, now)
            for tag, digest in held.tags.items()
        }
        tagged = set(held.tags.values())
        manifests = {}
        for digest in held.manifests:
            known = before.manifests.get(digest, Seen(now))
            since = None if digest in tagged else (now if known.untagged_since is None else known.untagged_since)
            manifests[digest] = replace(known, untagged_since=since)
        return Repository(tags, manifests, trash & tags.keys())

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

    def reported(self, uid: str, name: str, uses: tuple[Use, ...], now: int, *, kept: int, revision: int = 0) -> Self:
        """The ledger after the cluster *uid*, called *name*, said at *now* that it has *uses*, as of *revision*.

        Uses that are gone stay for *kept* seconds, from the first report without them: until then they may have been
        there, however long the cluster was silent.
        """
        before = self.clusters.get(uid)
        here = {(use.reference, use.image_id) for use in uses}
        gone = []
        for use in before.uses if before else ():
            if (use.reference, use.image_id) not in here:
                last = now if use.last_seen is None else use.last_seen
                if last >= now - kept:
                    gone.append(replace(use, last_seen=last))
        more = before.more if before else {}
        report = ClusterUses(name, now, len(here), (*sorted(uses), *sorted(gone)), revision, more)
        return replace(self, clusters={**self.clusters, uid: report})

    def with_newer_reports(self, other: Ledger) -> Self:
        """The ledger with what clusters said to *other* later than to this one."""
        newer = {
            uid: one
            for uid, one in other.clusters.items()
            if uid not in self.clusters or one.reported > self.clusters[uid].reported
        }
        return replace(self, clusters={**self.clusters, **newer})

    def dated(self, repository: str, tags: Mapping[str, Tag]) -> Self:
        """The ledger in which *tags* of *repository* are as old as they are here: they have come back."""
        before = self.repositories.get(repository, Repository({}, {}))
        after = replace(before, tags={**before.tags, **tags})
        return replace(self, repositories={**self.repositories, repository: after})

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
        """The uses of all clusters that ever reported, for a silent one stays protected; *more* uses, and *sets*."""
        uses = tuple(use for _, one in sorted(self.clusters.items()) for use in one.uses)
        return Workloads((*uses, *more), sets, problems)

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
                      "uses": [_use(use) for use in one.uses], **one.more}
                for uid, one in sorted(self.clusters.items())
            },
        }  # fmt: skip
        return json.dumps(FORMAT.seal(kept(values, self.found), self.found), separators=(",", ":")).encode()

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The ledger in a record. Raises Damaged, NewerFormat."""
        found = FORMAT.parse(content)
        values = found.values
        try:
            return cls(
                number(values["written"]),
                {name: _read_repository(one) for name, one in values["repositories"].items()},
                {uid: _read_cluster(one) for uid, one in values["clusters"].items()},
                None if values.get("pullsSince") is None else number(values["pullsSince"]),
                None if values.get("inUse") is None else number(values["inUse"]),
                found,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Damaged(f"a key is missing or has a wrong value: {error!r}") from error


def _pulled(repository: Repository, pulls: Iterable[tuple[str, int]]) -> dict[str, Seen]:
    """The manifests of *repository* after *pulls*: references, and the last second of the day."""
    manifests = dict(repository.manifests)
    for reference, moment in pulls:
        tag = repository.tags.get(reference)
        digests = {reference} if tag is None else {tag.digest}
        if ":" not in reference:
            begin = moment - DAY
            digests |= {one for one, seen in manifests.items() if seen.untagged_since and seen.untagged_since > begin}
        for digest in digests & manifests.keys():
            seen = manifests[digest]
            manifests[digest] = replace(seen, last_pulled=max(seen.last_pulled or 0, moment))
    return manifests


def _repository(one: Repository) -> dict[str, Any]:
    return {
        "tags": {tag: [what.digest, what.first_seen] for tag, what in sorted(one.tags.items())},
        "manifests": {
            digest: [seen.first_seen, seen.last_pulled, seen.untagged_since]
            for digest, seen in sorted(one.manifests.items())
        },
        "trash": sorted(one.trash),
    }


def _read_repository(one: Mapping[str, Any]) -> Repository:
    tags = {tag: Tag(text(digest), number(first)) for tag, (digest, first) in one["tags"].items()}
    manifests = {
        digest: Seen(number(first), optional(pulled), optional(untagged))
        for digest, (first, pulled, untagged) in one["manifests"].items()
    }
    return Repository(tags, manifests, frozenset(map(text, one.get("trash", []))))


_USE = {"reference": "reference", "imageID": "image_id", "users": "users", "count": "count", "lastSeen": "last_seen"}


def _use(use: Use) -> dict[str, Any]:
    values = {key: getattr(use, name) for key, name in _USE.items()}
    return {**values, "users": list(use.users)}


def _read_cluster(one: Mapping[str, Any]) -> ClusterUses:
    known, more = split(one, ("name", "reported", "current", "uses", "revision"))
    uses = tuple(
        Use(
            text(use["reference"]),
            text(use.get("imageID", "")),
            tuple(map(text, use.get("users", ()))),
            number(use.get("count", 1)),
            optional(use.get("lastSeen")),
        )
        for use in known["uses"]
    )
    name, reported, current = text(known["name"]), number(known["reported"]), number(known["current"])
    return ClusterUses(name, reported, current, uses, number(known.get("revision", 0)), more)


def silent(ledger: Ledger, reporting: set[str]) -> Iterator[ClusterUses]:
    """The clusters that are known and not among those *reporting*, by name: what they use stays protected."""
    yield from sorted((one for uid, one in ledger.clusters.items() if uid not in reporting), key=lambda one: one.name)
