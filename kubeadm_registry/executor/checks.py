"""What the executor checks before it begins, by what it can know itself: whoever made the order may be wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kubeadm_registry.printable import counted
from kubeadm_registry.retention import Reason
from kubeadm_registry.retention.inventory import is_own
from kubeadm_registry.retention.ledger import Ledger
from kubeadm_registry.retention.order import LASTS, Order
from kubeadm_registry.retention.protected import CLOCK_TOLERANCE
from kubeadm_registry.retention.standing import Standing
from kubeadm_registry.retention.trash import Trash, Trashed

#: Orders of so few images need no approval for their share, as in a plan.
_FEW = 5
_APPROVE = "read the plan, then approve it with `retention approve`"


@dataclass(frozen=True, slots=True)
class Checked:
    """What of an order may be done: *refused* says why nothing may be, *held* why nothing may be deleted and only what
    comes back may be done, *skipped* why single images may not."""

    refused: tuple[Reason, ...]
    held: tuple[Reason, ...]
    skipped: Mapping[tuple[str, str], str]


def check(
    order: Order, ledger: Ledger, trash: Trash, brought: Mapping[str, str], standing: Standing, *, now: int,
    window: int = 0,
) -> Checked:  # fmt: skip
    """Check *order* at *now* (seconds since 1970).

    *brought* are the digests that bundles brought, each with the name of an image; *window* are the seconds for which
    an image stays in the trash whatever the order says.
    """
    skipped: dict[tuple[str, str], str] = {}
    for one in order.delete:
        if why := _ours(one) or _too_young(one, order, ledger) or _brought(one, order, brought):
            skipped[one.key] = why
    for one in order.purge:
        if why := _ours(one) or _too_early(one, max(order.window, window), trash, now) or _brought(one, order, brought):
            skipped[one.key] = why
    held = tuple(_holds(order, ledger, standing)) if order.deletes else ()
    return Checked(tuple(_refusals(order, now)), held, skipped)


def _refusals(order: Order, now: int) -> Iterator[Reason]:
    if now - order.made > LASTS:
        yield Reason(
            "OrderTooOld", f"the order is {now - order.made} seconds old, and what is in use may have changed since",
            "make it anew with `retention run`",
        )  # fmt: skip
    if order.made - now > CLOCK_TOLERANCE:
        yield Reason(
            "ClockDoubtful", f"the order was made {order.made - now} seconds from now", "set the clocks of the nodes"
        )


def _holds(order: Order, ledger: Ledger, standing: Standing) -> Iterator[Reason]:
    if standing.paused is not None:
        yield Reason("RetentionPaused", f"retention is paused: {standing.why}", "run `retention resume` to go on")
    if not order.approved:
        yield from _strangers(order, standing)
        yield from _shares(order, ledger)


def _strangers(order: Order, standing: Standing) -> Iterator[Reason]:
    """Why the order of an operator needs an approval: it may know less of what is in use than one before it."""
    caller, known = order.caller, standing.callers
    if caller is None:
        return
    newest = known.get(caller.lease)
    if newest is None and known:
        yield Reason(
            "CallerUnknown", "an operator with another lease gave the orders before: it was installed anew, the "
            "Kubernetes cluster was made anew, or another one uses this registry", _APPROVE,
        )  # fmt: skip
    elif newest is not None and caller.epoch < newest:
        yield Reason(
            "CallerOutdated", f"the operator's lease has changed hands {counted(caller.epoch, 'time')}, and had "
            f"{counted(newest, 'time')} before: another replica acts, or etcd was restored from a backup", _APPROVE,
        )  # fmt: skip


def _shares(order: Order, ledger: Ledger) -> Iterator[Reason]:
    """Why the order deletes so much that it needs an approval."""
    going: dict[str, int] = {}
    for one in order.delete:
        going[one.repository] = going.get(one.repository, 0) + max(1, len(one.tags))
    held = {name: len(one.tags.keys() - one.trash) for name, one in ledger.repositories.items()}
    all_going, all_held = sum(going.values()), sum(held.values())
    for name, count, there in (
        *((name, count, held.get(name, 0)) for name, count in sorted(going.items())),
        ("the registry", all_going, all_held),
    ):
        if count > _FEW and count * 100 > order.share * there:
            yield Reason(
                "ApprovalMissing", f"the order deletes {count} of {counted(there, 'tag')} of {name}, which is more "
                f"than {order.share} %, and nobody has approved it",
                _APPROVE,
            )  # fmt: skip


def _ours(one: Trashed) -> str:
    return "it belongs to kubeadm-registry itself" if is_own(one.repository) else ""


def _too_young(one: Trashed, order: Order, ledger: Ledger) -> str:
    repository = ledger.repositories.get(one.repository)
    seen = repository.manifests.get(one.digest) if repository is not None else None
    if repository is None or seen is None:
        return "it is not in the ledger, so its age is not known"
    first = [seen.first_seen, *(repository.tags[tag].first_seen for tag in one.tags if tag in repository.tags)]
    return "it was first seen too short a while ago" if max(first) > order.made - order.grace else ""


def _too_early(one: Trashed, window: int, trash: Trash, now: int) -> str:
    known = trash.images.get(one.key)
    if known is None:
        return "it is not in the trash"
    return "its time in the trash is not over" if now - known.deleted < window else ""


def _brought(one: Trashed, order: Order, brought: Mapping[str, str]) -> str:
    if "bundle" not in order.sets:
        return ""
    found = next((brought[digest] for digest in (one.digest, *one.parts) if digest in brought), "")
    return f"a bundle brought it as {found}" if found else ""
