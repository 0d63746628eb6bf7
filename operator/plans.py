"""A retention plan as an object: what the policy would delete now, and whether that is approved. Deletes nothing."""

from __future__ import annotations

import http
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from secrets import randbelow
from typing import Any

from kubeadm_registry import config
from kubeadm_registry.custom_resources.definitions import GROUP, VERSION
from kubeadm_registry.custom_resources.plans import LARGEST
from kubeadm_registry.errors import Error, RegistryError
from kubeadm_registry.images.pool import Connect
from kubeadm_registry.operator.conditions import Verdict, merged, rfc3339, told
from kubeadm_registry.operator.way import Way
from kubeadm_registry.printable import counted, shown
from kubeadm_registry.retention import Plan, Reason, Refused, RegistryPolicy
from kubeadm_registry.retention.trash import Trash
from kubeadm_registry.upkeep import running
from kubeadm_registry.upkeep.clusters import Marker
from kubeadm_registry.upkeep.planning import Look

#: The annotation of a plan by which it is approved: the plan's digest, and the ``approval`` of reasons, with commas
#: between them.
APPROVE = f"{GROUP}/approve"
KIND = "RegistryRetentionPlan"
#: What of the annotation the status can hold (custom_resources/plans.py).
_APPROVAL = re.compile(r"sha256:[0-9a-f]{64}|[A-Za-z]{1,64}=[0-9]{1,64}")
_MOST_REASONS = 32
_PUBLISHED = "Published"
#: The condition Published, and the artifact, where there is no plan.
NOT_PUBLISHED = Verdict(_PUBLISHED, None, "NoPlan", "there is no plan")
_LONGEST = 4096
#: Of a name as well: distribution-spec has no limit for that of a repository, and zot takes what clients do not.
_LONGEST_REPOSITORY, _LONGEST_TAG = 255, 128
#: How many entries that are not valid are named.
_NAMED = 5


def new(policy: str) -> dict[str, Any]:
    """The object for the plans of the policy of that name."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {"name": policy},
        "spec": {"policy": policy},
    }


def approvals(plan: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What the annotation of the object *plan* approves. What is not valid there approves nothing."""
    return tuple(one for one in _annotated(plan) if _APPROVAL.fullmatch(one))[:_MOST_REASONS]


def valid(plan: Mapping[str, Any]) -> list[Verdict]:
    """The condition ApprovalValid of the object *plan*: whether all of its annotation is. None while that was always
    so."""
    kind, taken = "ApprovalValid", frozenset(approvals(plan))
    if wrong := [one for one in _annotated(plan) if one not in taken]:
        more = f", and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        hint = "write the whole of status.digest, or the approval that a reason names"
        text = f"the annotation {APPROVE} has {', '.join(map(shown, wrong[:_NAMED]))}{more}; {hint}"
        return [Verdict(kind, False, "NotValid", text)]
    if any(one["type"] == kind for one in plan.get("status", {}).get("conditions", ())):
        return [Verdict(kind, True, "Valid", "all that the annotation approves is valid")]
    return []


def _annotated(plan: Mapping[str, Any] | None) -> list[str]:
    said = ((plan or {}).get("metadata", {}).get("annotations") or {}).get(APPROVE, "")
    return [one.strip() for one in str(said).split(",") if one.strip()]


def unused(plan: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What the annotation of the object *plan* approves and no run has used: an approval is for one run."""
    spent = used(plan).get("usedApprovals", ())
    return tuple(one for one in approvals(plan) if one not in spent)


def used(plan: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """The part of the status of *plan* that says what of its annotation was used; what is not written there any more
    may be written again."""
    known = (plan or {}).get("status", {}).get("usedApprovals", ())
    still = [one for one in known if one in approvals(plan)]
    return {"usedApprovals": still} if still else {}


def spent(status: Mapping[str, Any], used: Iterable[str], left: Collection[str] = ()) -> dict[str, Any]:
    """The *status* when a run has *used* these, and *left* some of what those approve."""
    found = [one for one in dict.fromkeys([*status.get("usedApprovals", ()), *used]) if one not in left]
    return {**without(status), **({"usedApprovals": found[-_MOST_REASONS:]} if found else {})}


def without(status: Mapping[str, Any]) -> dict[str, Any]:
    """The *status* without what was used."""
    return {key: value for key, value in status.items() if key != "usedApprovals"}


def marker(plan: Mapping[str, Any]) -> Marker:
    """What the cluster remembers by the object *plan*."""
    found = plan.get("status", {}).get("marker", {})
    return Marker(found.get("newest", 0), found.get("confirmed", 0))


def remembered(marker: Marker) -> dict[str, dict[str, int]]:
    """The part of the status that remembers *marker*."""
    return {"marker": {"newest": marker.newest, "confirmed": marker.confirmed}}


def next_marker(before: Marker) -> Marker:
    """What to remember before the cluster is read; *before* itself if the ledger may not have heard of it yet."""
    return before if before.newest != before.confirmed else Marker(randbelow(10**12) + 1, before.confirmed)


def publish(connect: Connect, key: str, made: Plan) -> tuple[Verdict, str]:
    """Keep the whole of *made* in the registry; the condition Published, and the artifact's digest, or nothing."""
    try:
        with connect() as registry:
            artifact = running.publish(registry, key, made)
    except Error as error:
        older = isinstance(error, RegistryError) and error.status == http.HTTPStatus.FORBIDDEN
        hint = "; the nodes have an earlier release: run `kubeadm-registry upgrade`" if older else ""
        return Verdict(_PUBLISHED, False, error.code, f"{told(error)}{hint}"), ""
    text = f"`kubeadm-registry retention plan --digest {made.digest[7:19]}` shows the whole plan"
    return Verdict(_PUBLISHED, True, "Published", text), artifact


def status(
    made: Plan | Refused, policy: RegistryPolicy, generation: int, plan: Mapping[str, Any], *,
    approved: Iterable[str], now: float, published: tuple[Verdict, str] = (NOT_PUBLISHED, ""),
) -> dict[str, Any]:  # fmt: skip
    """The status of the object *plan* at *now*; *generation* is that of *policy*, *published* what ``publish`` said."""
    verdict = healthy(made)
    said = Verdict("Made", verdict.status, verdict.reason, verdict.message)
    found: dict[str, Any] = {
        "policyGeneration": generation,
        "conditions": merged(plan.get("status", {}).get("conditions"), [said, published[0], *valid(plan)], now, 1),
    }
    if isinstance(made, Refused):
        return found
    largest = sorted(made.deletions, key=lambda one: (-one.freed, one.key))[:LARGEST]
    found |= {
        "digest": made.digest,
        "made": rfc3339(made.made),
        **({"artifact": published[1]} if published[1] else {}),
        "deletions": len(made.deletions),
        "kept": made.images[1],
        "freedBytes": made.freed,
        "freed": size(made.freed),
        "largest": [
            _filled({
                "repository": one.repository[:_LONGEST_REPOSITORY], "tag": one.tag[:_LONGEST_TAG],
                "digest": one.digest, "rule": one.rule, "why": one.why[:_LONGEST],
                "ageSeconds": max(0, one.age), "sizeBytes": one.size, "freedBytes": one.freed,
            })
            for one in largest
        ],
        "needsApproval": [
            _filled({"code": one.code, "message": one.message[:_LONGEST], "hint": one.hint[:_LONGEST]})
            for one in made.needs_approval[:_MOST_REASONS]
        ],
    }  # fmt: skip
    return {**found, "approval": approval(found, policy.spec.approval, approved)}


def approval(plan: Mapping[str, Any], asked: str, approved: Iterable[str]) -> dict[str, str]:
    """Whether the plan with the status *plan* may run, by the policy (*asked*: Required or Automatic) and approvals."""
    digests = [one for one in approved if one.startswith("sha256:")]
    if plan["digest"] in digests:
        return {"state": "Approved", "digest": plan["digest"]}
    if asked == "Automatic" and not plan["needsApproval"]:
        return {"state": "NotRequired"}
    return {"state": "Outdated", "digest": digests[-1]} if digests else {"state": "Required"}


def healthy(made: Plan | Refused) -> Verdict:
    """The condition RetentionHealthy."""
    if isinstance(made, Refused):
        first, *others = made.reasons
        more = "".join(f"; {one}" for one in others)
        # The hint of a reason that may be accepted names an option of the command.
        option, annotation = f"pass --accept {first.approval}", f"annotate the plan: {APPROVE}={first.approval}"
        hint = first.hint.replace(option, annotation) if first.approval else first.hint
        return Verdict("RetentionHealthy", False, first.code, f"{first.message}{more}; {hint}"[:_LONGEST])
    gone, kept = made.images
    text = f"the plan deletes {gone} of {counted(gone + kept, 'image')} and frees {size(made.freed)}"
    return Verdict("RetentionHealthy", True, "Planned", text)


def fitting(
    made: Plan | Refused, look: Look | None, rules: RegistryPolicy, unmatched: Sequence[str], policy: Mapping[str, Any]
) -> list[Verdict]:
    """The conditions of the object *policy*, which says *rules*, that it fits what *look* has found: ImagePathsMatch,
    of whose paths *unmatched* found nothing, RulesMatch and PullsKnown. None while that was never otherwise, and where
    there is no plan: perhaps not all was read."""
    if isinstance(made, Refused) or look is None:
        return []
    idle = rules.spec.idle(look.holdings.repositories)
    unknown = rules.asks_for_pulls and look.after.pulls_since is None
    paths = f"spec.imagePaths finds no image, although there are such objects: {_some(unmatched, ', ')}"
    paths += "; correct the path, or images that only they name may be deleted"
    pulls = "pulls are not known for all nodes, so pulledWithin keeps all; `kubeadm-registry retention plan` says why"
    found = (
        ("ImagePathsMatch", unmatched, "NothingFound", paths,
         "Match", "each path finds images, or there are no such objects"),
        ("RulesMatch", idle, "NothingFound", _some(idle, "; "), "Match", "each rule decides for a repository"),
        ("PullsKnown", unknown, "NotOfAllNodes", pulls, "Known", "all nodes report what was pulled"),
    )  # fmt: skip
    ever = {one["type"] for one in policy.get("status", {}).get("conditions", ())}
    return [
        Verdict(kind, not wrong, *((reason, text) if wrong else (right, good)))
        for kind, wrong, reason, text, right, good in found
        if wrong or kind in ever
    ]


def _some(named: Sequence[str], between: str) -> str:
    return between.join(named[:_NAMED]) + (f", and {len(named) - _NAMED} more" if len(named) > _NAMED else "")


def deletable(made: Plan, trash: Trash) -> int:
    """How many images go by the plan *made* or are in the *trash*."""
    return len({(one.repository, one.digest) for one in made.deletions} | trash.images.keys())


def stuck(deletable: int | None, filling: bool | None) -> Verdict:
    """The condition that a disk is *filling* while *deletable* is 0; None: there is no plan."""
    kind = "NothingDeletable"
    if deletable is None:
        return Verdict(kind, None, "NoPlan", "there is no plan")
    if filling is None:
        return Verdict(kind, None, "DiskUnknown", "it is not known how full the disks are")
    if not filling:
        return Verdict(kind, False, "EnoughSpace", "no disk is filling")
    if deletable:
        return Verdict(kind, False, "Deletable", f"{counted(deletable, 'image')} are in the plan or in the trash")
    text = "a disk is filling, and the policy keeps every image: keep fewer, or enlarge the disks"
    return Verdict(kind, True, "PolicyKeepsAll", text)


def no_plan(code: str, message: str, hint: str) -> Refused:
    """There is no plan for another reason than those of retention."""
    return Refused((Reason(code, message, hint),))


def size(count: float) -> str:
    """*count* bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit in ("bytes", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without empty texts: the API server has fields that are unset."""
    return {key: value for key, value in values.items() if value != ""}


@dataclass(frozen=True, slots=True)
class Made:
    """A *plan*, or why there is none; its digest if `retention approve` has *approved* it; what it was made from, and
    where; which paths of the policy found nothing (*unmatched*)."""

    plan: Plan | Refused
    approved: tuple[str, ...] = ()
    look: Look | None = None
    cluster: config.RegistryCluster | None = None
    way: Way | None = None
    unmatched: tuple[str, ...] = ()
