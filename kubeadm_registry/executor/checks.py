"""What the executor checks before it begins, by what it can know itself: whoever made the order may be wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kubeadm_registry.agent.document import State
from kubeadm_registry.printable import counted
from kubeadm_registry.retention import Reason, Use
from kubeadm_registry.retention.inventory import EMPTY, Repository, is_own
from kubeadm_registry.retention.ledger import Ledger
from kubeadm_registry.retention.links import image_tags
from kubeadm_registry.retention.names import digest_in, wanted
from kubeadm_registry.retention.order import LASTS, Order
from kubeadm_registry.retention.protected import CLOCK_TOLERANCE
from kubeadm_registry.retention.shares import Count, too_large
from kubeadm_registry.retention.standing import Standing
from kubeadm_registry.retention.trash import Trash, Trashed

_APPROVE = "read the plan, then approve it with `retention approve`"
#: What an agent reports of its node while the storage may lack something, or its times mean nothing; ``docs/agent.md``.
_STORAGE = {"StorageDown": "does not respond", "StoragePartial": "does not reach all others"}
_CLOCK = "ClockOff"


def doubts(state: State | None) -> Iterator[Reason]:
    """Why nothing may be deleted now, by what the agent of this node says of the registry; None: it says nothing."""
    hint = "wait until `kubeadm-registry status` exits with 0, then run it again"
    if state is None:
        yield Reason("RegistryNotWhole", "the agent of this node does not report", hint)
        return
    quorum, conditions = state["quorum"], state["conditions"]
    if quorum["heard"] < quorum["nodes"]:
        away = f"{quorum['nodes'] - quorum['heard']} of {quorum['nodes']} nodes are not heard"
        yield Reason("RegistryNotWhole", f"{away}, so it is not known how they are", hint)
    for name in sorted(_STORAGE.keys() & set(conditions)):
        yield Reason("RegistryNotWhole", f"the storage of this node {_STORAGE[name]}", hint)
    if _CLOCK in conditions:
        yield Reason("ClockDoubtful", "the clock of this node differs from those of the others", "set the clocks")


@dataclass(frozen=True, slots=True)
class Checked:
    """What of an order may be done: *refused* says why nothing may be, *held* why nothing may be deleted or
    forgotten and only what comes back may be done, *skipped* why single images may not."""

    refused: tuple[Reason, ...]
    held: tuple[Reason, ...]
    skipped: Mapping[tuple[str, str], str]


def check(
    order: Order, ledger: Ledger, trash: Trash, brought: Mapping[str, str], standing: Standing, *, now: int,
    window: int = 0, doubted: Sequence[Reason] = (),
) -> Checked:  # fmt: skip
    """Check *order* at *now* (seconds since 1970), when the registry is *doubted* for these reasons.

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
    held = (*doubted, *_holds(order, ledger, standing)) if order.deletes or order.forget else ()
    return Checked(tuple(_refusals(order, now)), held, skipped)


def _refusals(order: Order, now: int) -> Iterator[Reason]:
    if now - order.made > LASTS:
        yield Reason(
            "OrderTooOld", f"the order is {now - order.made} seconds old, and what is in use may have changed since",
            "create it again with `retention run`",
        )  # fmt: skip
    if order.made - now > CLOCK_TOLERANCE:
        yield Reason(
            "ClockDoubtful", f"the order was made {order.made - now} seconds from now", "set the clocks of the nodes"
        )


def paused(standing: Standing) -> Iterator[Reason]:
    """That people have paused retention, if they have."""
    if standing.paused is not None:
        yield Reason("RetentionPaused", f"retention is paused: {standing.why}", "run `retention resume` to continue")


def withdrawn(order: Order, standing: Standing) -> Iterator[Reason]:
    """That the approval by which *order* deletes does not stand any more, if it does not.

    One that was written to the plan's object in a cluster is not recorded here.
    """
    if order.delete and order.approval and order.approval not in standing.approved:
        text = f"the approval of plan {order.approval[:19]} was withdrawn or is used up"
        yield Reason("ApprovalMissing", text, _APPROVE)


def pinned(image: Trashed, standing: Standing, now: int) -> str:
    """Which pin keeps *image* at *now*, by a tag that it has or had, or by a digest; empty if none does.

    The order may be older than the pin.
    """
    for pin in standing.pins:
        asked = wanted(pin.name) if pin.holds(now) else None
        if asked is not None and (
            asked.digest in (image.digest, *image.parts)
            or (image.repository in asked.repositories and asked.tag in image.tags)
        ):
            return f"it is pinned as {pin.name}: {pin.reason}"
    return ""


def in_use(ledger: Ledger) -> Callable[[Trashed], str]:
    """Why an image in the trash does not go for good, by what clusters use now by *ledger*; empty if it may.

    It may be a later one than that of the order, with what another cluster has said since.
    """
    digests: dict[str, Use] = {}
    tags: dict[tuple[str, str], Use] = {}
    for use in ledger.workloads({}).uses:
        if use.last_seen is not None:
            continue
        asked = wanted(use.reference)
        for digest in (digest_in(use.reference), digest_in(use.image_id)):
            digests.setdefault(digest, use)
        if asked is not None and asked.tag:
            for repository in asked.repositories:
                tags.setdefault((repository, asked.tag), use)
    digests.pop("", None)

    def keeps(image: Trashed) -> str:
        held = ledger.repositories.get(image.repository, EMPTY)
        named = [digests.get(digest) for digest in (image.digest, *image.parts)]
        # A tag that means another image now is no name of this one.
        free = (tag for tag in image.tags if tag not in held.tags or held.tags[tag].digest == image.digest)
        named += [tags.get((image.repository, tag)) for tag in free]
        use = next((one for one in named if one is not None), None)
        return "" if use is None else f"it is used by {use.who()} as {use}"

    return keeps


def _holds(order: Order, ledger: Ledger, standing: Standing) -> Iterator[Reason]:
    yield from paused(standing)
    yield from withdrawn(order, standing)
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
            "CallerUnknown", "an operator with another lease gave the orders before: it was reinstalled, the "
            "Kubernetes cluster was recreated, or another one uses this registry", _APPROVE,
        )  # fmt: skip
    elif newest is not None and caller.epoch < newest:
        yield Reason(
            "CallerOutdated", f"the operator's lease has changed hands {counted(caller.epoch, 'time')}, and had "
            f"{counted(newest, 'time')} before: another replica acts, or etcd was restored from a backup", _APPROVE,
        )  # fmt: skip


def _shares(order: Order, ledger: Ledger) -> Iterator[Reason]:
    """Why the order deletes so much that it needs an approval, reckoned as for a plan."""
    going: dict[str, set[str]] = {}
    for one in order.delete:
        if one.tag not in ledger.repositories.get(one.repository, EMPTY).trash:  # else an earlier run has begun it
            going.setdefault(one.repository, set()).add(one.digest)
    names = sorted(ledger.repositories.keys() | going.keys())
    counts = {name: _count(ledger.repositories.get(name, EMPTY), going.get(name, set())) for name in names}
    for reason in too_large(counts, order.share):
        yield Reason("ApprovalMissing", f"the order {reason.message}, and it is not approved", _APPROVE)


def _count(repository: Repository, going: Collection[str]) -> Count:
    """How much of *repository* goes with the digests *going*: as many tags as each of them has, or else itself."""
    tags = Counter(meaning.digest for meaning in image_tags(repository))
    loose = sum(one.untagged_since is not None for one in repository.manifests.values())
    images_going = sum(bool(tags[digest]) for digest in going)
    return Count(
        sum(tags[digest] for digest in going), tags.total(), len(going) - images_going, loose, images_going, len(tags)
    )


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
