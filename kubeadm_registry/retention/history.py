"""What retention has done: one entry for each run of the executor, the newest last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from kubeadm_registry.formats import Damaged, Format, Found, kept, split
from kubeadm_registry.retention.fields import items, number, text

FORMAT = Format("the history of retention")
#: Entries that are kept.
MOST = 200
#: Images that an entry names one by one.
_NAMED = 100


@dataclass(frozen=True, slots=True)
class Run:
    """A run by *node* of the order with that digest, from *began* to *ended* (seconds since 1970).

    How many images it *deleted* (to the trash), *restored*, *purged* (for good) and *skipped*, and
    *said*: a line for each of the first of these, and the error with which it ended, if it did. *left* are images for
    which the time of its order was too short.
    """

    order: str
    plan: str
    policy: str
    node: str
    began: int
    ended: int
    deleted: int = 0
    restored: int = 0
    purged: int = 0
    skipped: int = 0
    error: str = ""
    said: tuple[str, ...] = ()
    left: int = 0
    more: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def summary(self) -> str:
        """What was done, in one line."""
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        left = f", {self.left} left for the next run" if self.left else ""
        gone = f"{self.purged} deleted permanently"
        return f"{self.deleted} to the trash, {self.restored} restored, {gone}{skipped}{left}"

    def to_dict(self) -> dict[str, Any]:
        """As an object of a record."""
        values = {key: value for key, value in asdict(self).items() if key != "more" and (key != "left" or value)}
        return {**values, "said": list(self.said[:_NAMED]), **self.more}

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """The run that the object *values* describes. Raises TypeError, KeyError."""
        known, more = split(values, _TEXTS | _NUMBERS | {"said", "left"})
        texts = {name: text(known[name]) for name in _TEXTS}
        numbers = {name: number(known[name]) for name in _NUMBERS}
        said = tuple(map(text, items(known.get("said", []))))
        return cls(
            texts["order"], texts["plan"], texts["policy"], texts["node"], **numbers, error=texts["error"], said=said,
            left=number(known.get("left", 0)), more=more,
        )  # fmt: skip


_TEXTS = frozenset({"order", "plan", "policy", "node", "error"})
_NUMBERS = frozenset({"began", "ended", "deleted", "restored", "purged", "skipped"})


@dataclass(frozen=True, slots=True)
class History:
    """The *runs*, the newest last."""

    runs: tuple[Run, ...] = ()
    found: Found | None = field(default=None, compare=False)

    def with_run(self, run: Run) -> Self:
        """With *run* at the end, without the oldest if there are too many."""
        return replace(self, runs=(*self.runs, run)[-MOST:])

    def to_json(self) -> bytes:
        """The record. Raises NewerFormat."""
        values = {"runs": [one.to_dict() for one in self.runs]}
        return FORMAT.render(kept(values, self.found), self.found)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The history in a record. Raises Damaged, NewerFormat."""
        found = FORMAT.parse(content)
        try:
            return cls(tuple(Run.parse(one) for one in items(found.values["runs"])), found)
        except (KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"a key is missing or has a wrong value: {error!r}") from error
