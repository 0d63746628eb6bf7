"""What people have said about retention, and what holds until they say otherwise: pins, approvals, a pause."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from kubeadm_registry.formats import Damaged, Format, Found, kept, split
from kubeadm_registry.retention.fields import items, number, optional, text
from kubeadm_registry.retention.order import Caller
from kubeadm_registry.retention.record import Plan
from kubeadm_registry.retention.uses import Use

FORMAT = Format("the record of pins and approvals")
SPENT = Format("the record of what the executor has spent")
#: Seconds until a window of the trash that is shorter than before counts: somebody may notice until then.
NOTICED = 86400


@dataclass(frozen=True, slots=True)
class Pin:
    """The image *name* stays, for *reason*, *until* then (seconds since 1970); None: until the pin is removed."""

    name: str
    reason: str
    since: int
    until: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def holds(self, now: int) -> bool:
        """Whether it still keeps the image."""
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True)
class Standing:
    """*pins*; the digests of the plans that are *approved*, each with since when; since when retention is *paused*
    (None: it is not), and *why*; the operators that gave orders, by lease, each with its newest epoch (*callers*).

    It is what people say, and only commands write it; what the executor does with it stands in ``Spent``."""

    pins: tuple[Pin, ...] = ()
    approved: Mapping[str, int] = field(default_factory=dict)
    paused: int | None = None
    why: str = ""
    callers: Mapping[str, int] = field(default_factory=dict)
    found: Found | None = field(default=None, compare=False)

    def uses(self, now: int) -> tuple[Use, ...]:
        """The images that pins keep at *now*, as uses."""
        return tuple(Use(one.name, users=(f"pin: {one.reason}",)) for one in self.pins if one.holds(now))

    def pause(self, now: int, why: str) -> Self:
        """Paused since *now*, unless it is already."""
        return self if self.paused is not None else replace(self, paused=now, why=why)

    def pinned(self, pin: Pin) -> Self:
        """With *pin*, in place of one for the same name."""
        return replace(self, pins=(*(one for one in self.pins if one.name != pin.name), pin))

    def unpinned(self, name: str) -> Self:
        """Without the pin for *name*."""
        return replace(self, pins=tuple(one for one in self.pins if one.name != name))

    def approves(self, plan: Plan) -> bool:
        """Whether *plan* is approved."""
        return plan.digest in self.approved

    def with_approval(self, digest: str, now: int) -> Self:
        """With the plan *digest* approved at *now*."""
        return replace(self, approved={**self.approved, digest: now})

    def without_approval(self, digest: str) -> Self:
        """With the plan *digest* not approved."""
        return replace(self, approved={one: when for one, when in self.approved.items() if one != digest})

    def after(self, spent: Spent) -> Self:
        """With what the executor knows besides: without the approvals that were *spent*, and with its callers."""
        approved = {one: when for one, when in self.approved.items() if spent.approvals.get(one, -1) < when}
        callers = dict(spent.callers)
        for lease, epoch in self.callers.items():
            callers[lease] = max(epoch, callers.get(lease, epoch))
        return replace(self, approved=approved, callers=callers)

    def to_json(self) -> bytes:
        """The record. Raises NewerFormat."""
        values: dict[str, Any] = {
            "pins": [
                {"name": one.name, "reason": one.reason, "since": one.since, "until": one.until, **one.more}
                for one in self.pins
            ],
            "approved": dict(self.approved),
            "paused": self.paused,
            "why": self.why,
        }
        if self.callers:
            values["callers"] = dict(self.callers)
        return FORMAT.render(kept(values, self.found), self.found)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """What was said, from a record. Raises Damaged, NewerFormat."""
        found = FORMAT.parse(content)
        values = found.values
        try:
            return cls(
                tuple(_pin(one) for one in items(values["pins"])),
                {text(digest): number(when) for digest, when in values["approved"].items()},
                optional(values["paused"]),
                text(values["why"]),
                {text(lease): number(epoch) for lease, epoch in values.get("callers", {}).items()},
                found,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Damaged(f"a key is missing or has a wrong value: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Spent:
    """What the executor alone writes, so that it never writes over what people say in the same moment: the *approvals*
    that it has spent, each with when it was given; the operators whose orders it took, by lease, each with its newest
    epoch (*callers*); the *window* of the trash (seconds) by which it deleted last, and since when (seconds since 1970)
    orders ask for a *shorter* one, 0: they do not; and how short a window they were *asking* for at most."""

    approvals: Mapping[str, int] = field(default_factory=dict)
    callers: Mapping[str, int] = field(default_factory=dict)
    window: int = 0
    shorter: int = 0
    asking: int = 0
    found: Found | None = field(default=None, compare=False)

    def called(self, caller: Caller) -> Self:
        """With an order that was taken of *caller*."""
        return replace(self, callers={**self.callers, caller.lease: caller.epoch})

    def asked(self, window: int, now: int) -> Self:
        """With an order at *now* that has this *window*: a longer one counts at once, a shorter one a day after the
        first order that had it. So whoever may give orders cannot have images go for good that were deleted today."""
        if window >= self.window:
            return replace(self, window=window, shorter=0, asking=0)
        if not self.shorter or window < self.asking:
            return replace(self, shorter=now, asking=window)
        if now - self.shorter >= NOTICED:
            return replace(self, window=window, shorter=0, asking=0)
        return self

    def spending(self, digest: str, standing: Standing) -> Self:
        """With the approval of the plan *digest* in *standing*, which is what people have said, spent; without those
        that are not there any more."""
        still = {one: when for one, when in self.approvals.items() if one in standing.approved}
        given = standing.approved.get(digest)
        return replace(self, approvals=still if given is None else {**still, digest: given})

    def giving_back(self, digest: str) -> Self:
        """With the approval of the plan *digest* not spent."""
        return replace(self, approvals={one: when for one, when in self.approvals.items() if one != digest})

    def to_json(self) -> bytes:
        """The record. Raises NewerFormat."""
        values = {
            "approvals": dict(self.approvals), "callers": dict(self.callers), "window": self.window,
            "shorter": self.shorter, "asking": self.asking,
        }  # fmt: skip
        return SPENT.render(kept(values, self.found), self.found)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """What was spent, from a record. Raises Damaged, NewerFormat."""
        found = SPENT.parse(content)
        try:
            window, shorter, asking = (number(found.values[key]) for key in ("window", "shorter", "asking"))
            approvals, callers = (
                {text(one): number(value) for one, value in found.values[key].items()}
                for key in ("approvals", "callers")
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"a key is missing or has a wrong value: {error!r}") from error
        return cls(approvals, callers, window, shorter, asking, found)


def _pin(values: Mapping[str, Any]) -> Pin:
    known, more = split(values, ("name", "reason", "since", "until"))
    return Pin(text(known["name"]), text(known["reason"]), number(known["since"]), optional(known["until"]), more)
