"""When images were last pulled, and what was asked for in vain, as the nodes recorded it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from kubeadm_registry.agent.pulls import DAY, POSITION, RECORD, STALE
from kubeadm_registry.formats import Damaged
from kubeadm_registry.retention.fields import number, text
from kubeadm_registry.retention.names import wanted
from kubeadm_registry.retention.trash import Trashed
from kubeadm_registry.retention.uses import Use

Place = tuple[str, str]
"""A repository, and a tag or digest in it."""


@dataclass(frozen=True, slots=True)
class Miss:
    """When a tag was asked for last that was not there, in seconds since 1970, and by which client."""

    moment: int
    client: str


@dataclass(frozen=True, slots=True)
class Pulls:
    """The *last* second of the day of the last pull of each place; *since*: all pulls from then on are known, None:
    there may be others. Both in seconds since 1970. *missed* are tags that were asked for in vain: what is known of
    them is never all.
    """

    since: int | None
    last: Mapping[Place, int]
    missed: Mapping[Place, Miss] = field(default_factory=dict)

    @classmethod
    def parse(cls, record: bytes | str, position: bytes | str, now: float) -> Self:
        """What a node recorded, by its clock *now*. Raises Damaged, also if it has not read the journal lately."""
        values, where = RECORD.parse(record).values, POSITION.parse(position).values
        try:
            read = number(where["read"])
            last = {
                (text(repository), text(reference)): (number(day) + 1) * DAY - 1
                for repository, one in values["pulls"].items()
                for reference, day in one.items()
            }
            since = number(values["since"])
            missed = dict[Place, Miss]()
            for client, names in values.get("missed", {}).items():
                for name, moment in names.items():
                    repository, _, tag = name.partition(":")
                    _add(missed, (repository, tag), Miss(number(moment), text(client)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Damaged(f"a key is missing or has a wrong value: {error!r}") from error
        if abs(now - read) > STALE:
            raise Damaged(f"the journal was read last {round(now - read)} seconds ago")
        return cls(since, last, missed)

    def to_dict(self) -> dict[str, Any]:
        """For the helper's answer."""
        return {
            "since": self.since,
            "last": [[*place, moment] for place, moment in sorted(self.last.items())],
            "missed": [[*place, one.moment, one.client] for place, one in sorted(self.missed.items())],
        }

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """The same from a helper's answer. Raises Damaged."""
        try:
            last = {(text(one), text(two)): number(moment) for one, two, moment in values["last"]}
            missed = {
                (text(one), text(two)): Miss(number(moment), text(client))
                for one, two, moment, client in values.get("missed", ())
            }
            return cls(number(values["since"]), last, missed)
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"a key is missing or has a wrong value: {error!r}") from error


def merged(nodes: Iterable[Pulls | None]) -> Pulls:
    """What is known by the records of all *nodes*; there may be other pulls if one of them has none."""
    asked = list(nodes)
    there = [one for one in asked if one is not None]
    last, missed = dict[Place, int](), dict[Place, Miss]()
    for one in there:
        for place, moment in one.last.items():
            last[place] = max(last.get(place, 0), moment)
        for place, miss in one.missed.items():
            _add(missed, place, miss)
    starts = [one.since for one in there if one.since is not None]
    return Pulls(max(starts) if starts and len(starts) == len(asked) else None, last, missed)


def asked_for(image: Trashed, pulls: Pulls) -> Use | None:
    """The use that it is of *image*, which is in the trash, that somebody asked for it since; None if nobody did."""
    found: list[tuple[int, str, str]] = []
    for tag in image.tags:
        miss = pulls.missed.get((image.repository, tag))
        if miss is not None and miss.moment > image.deleted:
            found.append((miss.moment, f"{image.repository}:{tag}", f"a pull by {miss.client}"))
    day = pulls.last.get((image.repository, image.digest), 0) + 1 - DAY
    if day > image.deleted:
        found.append((day, f"{image.repository}@{image.digest}", "a pull by its digest"))
    # A name that no pod could have is not in use, and would be a reason for no plan.
    found = [one for one in found if wanted(one[1]) is not None]
    if not found:
        return None
    _, reference, user = max(found)
    return Use(reference, users=(user,))


def _add(missed: dict[Place, Miss], place: Place, miss: Miss) -> None:
    if place not in missed or missed[place].moment < miss.moment:
        missed[place] = miss
