"""The plan: what to delete. A pure function; it fails closed, and whatever is uncertain keeps everything."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime

from kubeadm_registry.agent.pulls import DAY
from kubeadm_registry.printable import counted
from kubeadm_registry.retention.decision import Decision, decide
from kubeadm_registry.retention.inventory import Inventory
from kubeadm_registry.retention.ledger import ClusterUses, Ledger
from kubeadm_registry.retention.policy import RegistryPolicy
from kubeadm_registry.retention.protected import CLOCK_TOLERANCE, Protected, clock_doubtful
from kubeadm_registry.retention.reasons import Reason, approval_of
from kubeadm_registry.retention.record import Deletion, Kept, Plan, Refused
from kubeadm_registry.retention.shares import Count, too_large
from kubeadm_registry.retention.space import Space

#: So many fewer images in use than last time, and at least by half, are more than workloads come and go.
_SHRUNK = 20
#: Seconds after its last report from which on it is not known what a cluster uses.
SILENT = DAY


def plan(
    inventory: Inventory,
    protected: Protected,
    policy: RegistryPolicy,
    now: int,
    *,
    previous: int | None = None,
    accepted: Collection[str] = (),
) -> Plan | Refused:
    """What to delete from *inventory* by *policy* at *now* (seconds since 1970), or why there is no plan.

    *protected* is what ``protect`` returned for the same inventory; none of its digests is ever deleted, in any
    repository and whatever its tags. *previous* is how many images were in use the last time (``Protected.current``).
    *accepted* are the ``approval`` of reasons that were accepted. The result depends on nothing else, and on no order.
    """
    reasons = [
        *inventory.reasons(),
        *protected.problems,
        *_clock(inventory, now),
        *shrunk(protected.current, previous),
    ]
    standing = [reason for reason in reasons if not reason.approval or reason.approval not in accepted]
    if standing:
        return Refused(tuple(sorted(set(standing))))
    decisions = [decide(name, inventory, protected, policy.spec, now) for name in sorted(inventory.repositories)]
    space = Space(inventory, decisions)
    return Plan(
        policy.metadata.name,
        now,
        tuple(sorted(_deletions(decisions, space, now), key=lambda one: one.key)),
        tuple(sorted(_kept(decisions, space, now), key=lambda one: (one.repository, one.tags, one.digest))),
        tuple(too_large({one.name: _count(one) for one in decisions}, policy.spec.maximum_share)),
    )


def _clock(inventory: Inventory, now: int) -> Iterator[Reason]:
    newest = inventory.newest()
    if newest > now + CLOCK_TOLERANCE:
        yield clock_doubtful("an image was first seen", newest, now)


def shrunk(current: int, previous: int | None) -> Iterator[Reason]:
    """That only *current* images are in use, and *previous* were the last time."""
    if previous is not None and previous - current > _SHRUNK and current * 2 < previous:
        yield Reason(
            "UsesShrank",
            f"{counted(current, 'image')} in use, and {previous} the last time: a cluster or namespace may be missing",
            f"check that every cluster is listed; if those workloads are gone, pass --accept UsesShrank={current}",
            approval=f"UsesShrank={current}",
        )


def shrunk_clusters(before: Ledger, after: Ledger) -> dict[str, Reason]:
    """Why there is no plan, for each cluster that has far fewer images in use *after* a look than *before* it, by UID.

    All clusters together may have nearly as many as ever. Of one that is alone this is the reason of all.
    """
    found = dict[str, Reason]()
    for uid in before.clusters.keys() & after.clusters.keys():
        current = after.clusters[uid].in_use
        for one in shrunk(current, before.clusters[uid].current):
            if len(after.clusters) == 1:
                found[uid] = one
                continue
            approval = approval_of(one.code, uid, current)
            found[uid] = Reason(
                one.code,
                f"the cluster {_called(after, uid)}: {one.message}",
                f"check that all is there that should run; if those workloads are gone, pass --accept {approval}",
                approval=approval,
            )
    return found


def silent(ledger: Ledger, reporting: Collection[str]) -> Iterator[ClusterUses]:
    """The clusters that are known and not among those *reporting*, by name: what they use stays protected."""
    yield from sorted((one for uid, one in ledger.clusters.items() if uid not in reporting), key=lambda one: one.name)


def _called(ledger: Ledger, uid: str) -> str:
    """The name of the cluster *uid*, with that if another one has the name: it was made anew at the same address."""
    name = ledger.clusters[uid].name
    return f"{name} ({uid})" if [one.name for one in ledger.clusters.values()].count(name) > 1 else name


def unheard(ledger: Ledger, reporting: Collection[str], now: int) -> Iterator[Reason]:
    """Why there is no plan, for each cluster, by UID not among those *reporting*, whose last report is too old *now*.

    What they used then stays, but not what they began to use since. An approval is for this cluster and this report,
    until it is a day older.
    """
    for uid, one in ledger.clusters.items():
        if uid not in reporting and now - one.reported > SILENT:
            days, last = (now - one.reported) // DAY, datetime.fromtimestamp(one.reported, UTC)
            called = _called(ledger, uid)
            name = one.name if called == one.name else uid
            approval = approval_of("ClusterSilent", uid, one.reported, days)
            yield Reason(
                "ClusterSilent",
                f"the cluster {called} reported last at {last:%Y-%m-%d %H:%M} UTC, {counted(days, 'day')} ago: what it "
                "began to use since then is not known",
                "have it report, with --kubeconfig or by its operator; if it is gone, run `kubeadm-registry retention "
                f"forget {shlex.quote(name)}`; to plan despite it, pass --accept {approval}",
                approval=approval,
            )


def _deletions(decisions: Sequence[Decision], space: Space, now: int) -> Iterator[Deletion]:
    for decision in decisions:
        for digest in decision.going:
            because = decision.reasons[digest]
            image = decision.images.get(digest) or decision.loose.get(digest)
            first_seen = image.first_seen if image else space.first_seen(decision.name, digest)
            freed = space.freed(decision.name, digest)
            for tag in decision.tags[digest] or ("",):
                yield Deletion(
                    decision.name, tag, digest, because.cause, because.rule, because.why, now - first_seen,
                    space.size(digest), freed, decision.part_of[digest],
                )  # fmt: skip
                freed = 0  # all tags of an image go together


def _kept(decisions: Sequence[Decision], space: Space, now: int) -> Iterator[Kept]:
    for decision in decisions:
        going = set(decision.going)
        for image in (*decision.images.values(), *decision.loose.values()):
            if image.digest not in going:
                because = decision.reasons[image.digest]
                yield Kept(
                    decision.name, image.digest, image.tags, because.cause, because.rule, because.why,
                    now - image.first_seen, space.size(image.digest),
                )  # fmt: skip


def _count(decision: Decision) -> Count:
    going = set(decision.going)
    return Count(
        sum(len(image.tags) for image in decision.images.values() if image.digest in going),
        sum(len(image.tags) for image in decision.images.values()),
        len(going & decision.loose.keys()),
        len(decision.loose),
        len(going & decision.images.keys()),
        len(decision.images),
    )
