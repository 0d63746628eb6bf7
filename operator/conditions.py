"""Conditions by Kubernetes' API conventions, and what of them is worth an Event."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kubeadm_registry.errors import Error

#: Where True is what somebody has to do something about.
BAD = frozenset({"Degraded", "StorageFilling", "SplitVIP", "ImagesMissing", "NothingDeletable"})
#: The API server takes no longer message (metav1.Condition).
_LONGEST = 32768
Condition = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A condition without its time: *status* None is "Unknown"."""

    kind: str
    status: bool | None
    reason: str
    message: str

    @property
    def good(self) -> bool:
        """Whether nothing needs to be done."""
        return self.status is not None and self.status != (self.kind in BAD)


def merged(
    old: Sequence[Condition] | None, found: Iterable[Verdict], now: float, generation: int
) -> list[dict[str, Any]]:
    """*found* as conditions at *now*, each since when it is so by *old*. What was not looked at stays as in *old*."""
    before = {one["type"]: dict(one) for one in old or ()}
    moment = rfc3339(now)
    conditions = {}
    for one in found:
        status = "Unknown" if one.status is None else str(one.status)
        was = before.get(one.kind)
        conditions[one.kind] = {
            "type": one.kind,
            "status": status,
            "reason": one.reason,
            "message": one.message[:_LONGEST],
            # Not later than now, by a clock that was wrong: a node would not count as gone until that time comes.
            "lastTransitionTime": min(was["lastTransitionTime"], moment) if was and was["status"] == status else moment,
            "observedGeneration": generation,
        }
    return list({**before, **conditions}.values())


def changes(old: Sequence[Condition] | None, found: Iterable[Verdict]) -> Iterator[Verdict]:
    """Those of *found* that differ from *old* in status or reason. Of what is new, only what is bad."""
    before = {one["type"]: (one["status"], one["reason"]) for one in old or ()}
    for one in found:
        status = "Unknown" if one.status is None else str(one.status)
        if before.get(one.kind) != (status, one.reason) and (one.kind in before or one.status == (one.kind in BAD)):
            yield one


def told(error: Error) -> str:
    """*error* with what to do about it, for a message."""
    return f"{error}; {error.hint}" if error.hint else str(error)


def failure(kind: str, status: bool | None, error: Exception) -> Verdict:
    """The condition *kind* of what *error* has ended."""
    if isinstance(error, Error):
        return Verdict(kind, status, error.code, told(error))
    return Verdict(kind, status, "OperatorFailed", f"the operator failed with {type(error).__name__}; see its log")


def seconds_of(moment: str) -> float:
    """The inverse of ``rfc3339``."""
    return datetime.fromisoformat(moment).timestamp()


def rfc3339(seconds: float) -> str:
    """*seconds* since 1970 as the API server writes times."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_time() -> str:
    """Now, in the form of metav1.MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
