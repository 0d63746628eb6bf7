"""What uses images: references as users wrote them, each with those who have it."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kubeadm_registry.printable import shown
from kubeadm_registry.retention.reasons import Reason

#: How many of those that share a reference are named.
NAMED = 3
#: The set of pause images, which counts whatever a policy says: containerd starts every pod with one, and no object of
#: a cluster names it.
PAUSE = "pause"


@dataclass(frozen=True, slots=True, order=True)
class Use:
    """An image in use: *reference* as the user wrote it, and *image_id* as a container's status has it, or empty.

    *users* are the first few that have it, such as "Pod default/web", sorted; *count* is how many do. *last_seen*: when
    the last of them was seen, in seconds since 1970; None: they are there now.
    """

    reference: str
    image_id: str = ""
    users: tuple[str, ...] = ()
    count: int = 1
    last_seen: int | None = field(default=None, compare=False)

    def who(self) -> str:
        """Those who have it, in one phrase."""
        named = ", ".join(self.users) or "an unnamed workload"
        more = self.count - len(self.users)
        return f"{named} and {more} more" if self.users and more > 0 else named

    def __str__(self) -> str:
        more = self.image_id not in ("", self.reference)
        return shown(self.reference, 200) + (f" (imageID {shown(self.image_id, 200)})" if more else "")


@dataclass(frozen=True, slots=True)
class Workloads:
    """Everything that uses images.

    *uses* may hold those that are gone as well, with when they were last seen. *sets* are named sets of references,
    such as ``kubeadm``. *problems* say which lists could not be read: then nothing is known to be unused.
    """

    uses: tuple[Use, ...] = ()
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problems: tuple[Reason, ...] = ()

    @property
    def current(self) -> int:
        """How many different images are in use now, for comparison with the next time."""
        return len({(use.reference, use.image_id) for use in self.uses if use.last_seen is None})


def grouped(found: Iterable[tuple[str, str, str]]) -> tuple[Use, ...]:
    """Uses from (reference, imageID, user) triples; those that share the first two are one. Sorted."""
    counts: dict[tuple[str, str], int] = {}
    users: dict[tuple[str, str], list[str]] = {}
    for reference, image_id, user in found:
        key = reference, image_id
        if key not in counts:
            counts[key], users[key] = 1, [user]
            continue
        counts[key] += 1
        named = users[key]
        if len(named) < NAMED or user < named[-1]:
            users[key] = heapq.nsmallest(NAMED, {*named, user})
    return tuple(
        Use(reference, image_id, tuple(users[reference, image_id]), counts[reference, image_id])
        for reference, image_id in sorted(counts)
    )


def failed_list(kind: str, why: str) -> Reason:
    """The reason for a list of *kind* ("Pods") that failed: *why* in one clause."""
    return Reason(
        "UsesIncomplete",
        f"cannot list {kind}: {why}",
        "fix the cause; no plan is made while a list of workloads is incomplete",
    )
