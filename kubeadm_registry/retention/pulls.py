"""When images were last pulled, as the nodes recorded it. What is not known to all of them is not known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from kubeadm_registry.agent.pulls import DAY, POSITION, RECORD, STALE
from kubeadm_registry.formats import Damaged
from kubeadm_registry.retention.fields import number, text

Place = tuple[str, str]
"""A repository, and a tag or digest in it."""


@dataclass(frozen=True, slots=True)
class Pulls:
    """The *last* second of the day of the last pull of each place; *since*: all pulls from then on are known.

    Both in seconds since 1970.
    """

    since: int
    last: Mapping[Place, int]

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
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Damaged(f"a key is missing or has a wrong value: {error!r}") from error
        if abs(now - read) > STALE:
            raise Damaged(f"the journal was read last {round(now - read)} seconds ago")
        return cls(since, last)

    def to_dict(self) -> dict[str, Any]:
        """For the helper's answer."""
        return {"since": self.since, "last": [[*place, moment] for place, moment in sorted(self.last.items())]}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """The same from a helper's answer. Raises Damaged."""
        try:
            last = {(text(one), text(two)): number(moment) for one, two, moment in values["last"]}
            return cls(number(values["since"]), last)
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"a key is missing or has a wrong value: {error!r}") from error


def merged(nodes: Iterable[Pulls | None]) -> Pulls | None:
    """What is known by the records of all *nodes*; None if one of them has none, or there is no node."""
    since, last = [], dict[Place, int]()
    for one in nodes:
        if one is None:
            return None
        since.append(one.since)
        for place, moment in one.last.items():
            last[place] = max(last.get(place, 0), moment)
    return Pulls(max(since), last) if since else None
