"""The records of retention, each with where it is kept in the registry and what it is read as."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kubeadm_registry.formats import Damaged
from kubeadm_registry.registry import Api, retry
from kubeadm_registry.retention.history import History
from kubeadm_registry.retention.ledger import Ledger
from kubeadm_registry.retention.record import Plan
from kubeadm_registry.retention.standing import Spent, Standing
from kubeadm_registry.retention.trash import Trash
from kubeadm_registry.upkeep.signed import REPOSITORY, Record

__all__ = ["HISTORY", "LEDGER", "OPERATOR_PLAN", "REPOSITORY", "SPENT", "STANDING", "TRASH"]

Value = TypeVar("Value")
Empty = TypeVar("Empty")
#: Seconds that the registry may have no answer.
PATIENCE = 30.0
_WHO = "only a node writes it: find out who pushed to this repository"
LEDGER = Record(
    "ledger", "the retention ledger", "LedgerDamaged",
    f"{_WHO}. `retention forget --ledger` begins a new one, for which everything is first seen at that moment",
    bound=False,
)  # fmt: skip
TRASH = Record(
    "trash", "the record of the trash", "TrashDamaged",
    f"{_WHO}. `retention forget --trash` begins a new one; the images keep their trash tags",
)  # fmt: skip
STANDING = Record(
    "standing", "the record of pins and approvals", "StandingDamaged",
    f"{_WHO}. `retention forget --standing` begins a new one, without pins and approvals",
)  # fmt: skip
SPENT = Record(
    "spent", "the record of what the executor has spent", "SpentDamaged",
    f"{_WHO}. `retention forget --standing` begins a new one, as for pins and approvals",
)  # fmt: skip
#: Its login is that for pushes, so one more tag may be written by that, whatever the policy is called.
OPERATOR_PLAN = Record(
    "operator-plan", "the operator's retention plan", "PlanDamaged",
    "whoever may push can replace it: find out who did; the operator's next plan writes it again",
)  # fmt: skip
HISTORY = Record(
    "history", "the history of retention", "HistoryDamaged", f"{_WHO}. `retention forget --history` begins a new one"
)  # fmt: skip


def read(registry: Api, key: str) -> Ledger:
    """The ledger that was written under *key*; an empty one before the first.

    Raises RegistryError, NewerFormat, and Error (LedgerDamaged), as the functions for the other records do.
    """
    return _read(LEDGER, registry, key, Ledger.parse, Ledger)


def write(registry: Api, key: str, ledger: Ledger) -> None:
    """Write *ledger* under *key* in place of what is there. Raises RegistryError, NewerFormat."""
    LEDGER.write(registry, key, ledger.to_json())


def read_trash(registry: Api, key: str) -> Trash:
    """What is in the trash."""
    return _read(TRASH, registry, key, Trash.parse, Trash)


def read_standing(registry: Api, key: str) -> Standing:
    """Pins, the approvals that are not spent, and whether retention is paused."""
    return read_said(registry, key).after(read_spent(registry, key))


def read_said(registry: Api, key: str) -> Standing:
    """What people have said, whatever became of it."""
    return _read(STANDING, registry, key, Standing.parse, Standing)


def read_spent(registry: Api, key: str) -> Spent:
    """What the executor has made of it."""
    return _read(SPENT, registry, key, Spent.parse, Spent)


def restate(registry: Api, key: str, change: Callable[[Standing], Standing]) -> None:
    """Make of pins, approvals and the pause what *change* makes of them; asked again while the registry is away."""
    after = change(retry(lambda: read_said(registry, key), PATIENCE))
    retry(lambda: STANDING.write(registry, key, after.to_json()), PATIENCE)


def spend(registry: Api, key: str, change: Callable[[Spent], Spent]) -> None:
    """The same for what the executor has spent, which nobody else writes."""
    after = change(retry(lambda: read_spent(registry, key), PATIENCE))
    retry(lambda: SPENT.write(registry, key, after.to_json()), PATIENCE)


def read_history(registry: Api, key: str) -> History:
    """What was done."""
    return _read(HISTORY, registry, key, History.parse, History)


def _read(
    record: Record, registry: Api, key: str, parse: Callable[[bytes], Value], empty: Callable[[], Empty]
) -> Value | Empty:
    content = record.read(registry, key)
    if content is None:
        return empty()
    try:
        return parse(content)
    except Damaged as error:
        raise record.damaged(error) from error


def plan_record(policy: str, *, approved: bool = False) -> Record:
    """The record of the newest plan of *policy*, the whole of it; or of the one that was *approved* last."""
    kind = "approved" if approved else "plan"
    return Record(f"{kind}-{policy}", "the retention plan", "PlanDamaged", f"{_WHO}; then run `retention plan` again")


def read_plan(registry: Api, key: str, policy: str, *, approved: bool = False) -> Plan | None:
    """The newest plan of *policy*, or the one that was *approved* last; None if there is none."""
    return _read_plan(plan_record(policy, approved=approved), registry, key)


def read_plans(registry: Api, key: str) -> list[Plan]:
    """The newest plan of each policy, by `retention plan` or the timer."""
    names = [tag.removeprefix("plan-") for tag in registry.tags(REPOSITORY) if tag.startswith("plan-")]
    return [plan for name in names if (plan := read_plan(registry, key, name)) is not None]


def read_operator_plan(registry: Api, key: str) -> Plan | None:
    """The newest plan of the operator; None if there is none."""
    return _read_plan(OPERATOR_PLAN, registry, key)


def _read_plan(record: Record, registry: Api, key: str) -> Plan | None:
    return _read(record, registry, key, Plan.parse, lambda: None)
