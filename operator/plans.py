"""A retention plan as an object: what the policy would delete now, and whether that is approved. Deletes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kubeadm_registry.custom_resources.definitions import GROUP, VERSION
from kubeadm_registry.custom_resources.plans import LARGEST
from kubeadm_registry.operator.conditions import Condition, Verdict, merged, rfc3339
from kubeadm_registry.printable import counted
from kubeadm_registry.retention import Plan, Reason, Refused, RegistryPolicy

#: The annotation of a plan by which it is approved: the plan's digest, and the ``approval`` of reasons, with commas
#: between them.
APPROVE = f"{GROUP}/approve"
KIND = "RegistryRetentionPlan"
_MOST_REASONS = 32
_LONGEST = 4096


def new(policy: str) -> dict[str, Any]:
    """The object for the plans of the policy of that name."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {"name": policy},
        "spec": {"policy": policy},
    }


def approvals(plan: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What the annotation of the object *plan* approves."""
    said = ((plan or {}).get("metadata", {}).get("annotations") or {}).get(APPROVE, "")
    return tuple(one.strip() for one in str(said).split(",") if one.strip())


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


def spent(status: Mapping[str, Any], used: Iterable[str]) -> dict[str, list[str]]:
    """The same part of a *status* after a run that *used* these."""
    found = list(dict.fromkeys([*status.get("usedApprovals", ()), *used]))
    return {"usedApprovals": found[-_MOST_REASONS:]} if found else {}


def status(
    made: Plan | Refused, policy: RegistryPolicy, generation: int, *,
    old: Iterable[Condition] | None, approved: Iterable[str], now: float,
) -> dict[str, Any]:  # fmt: skip
    """The status of the plan's object at *now*; *generation* is that of *policy*, *old* are the conditions before."""
    verdict = healthy(made)
    said = Verdict("Made", verdict.status, verdict.reason, verdict.message)
    found: dict[str, Any] = {
        "policyGeneration": generation,
        "conditions": merged([*(old or ())], [said], now, 1),
    }
    if isinstance(made, Refused):
        return found
    largest = sorted(made.deletions, key=lambda one: (-one.freed, one.key))[:LARGEST]
    found |= {
        "digest": made.digest,
        "made": rfc3339(made.made),
        "deletions": len(made.deletions),
        "kept": len(made.kept),
        "freedBytes": made.freed,
        "freed": size(made.freed),
        "largest": [
            _filled({
                "repository": one.repository, "tag": one.tag, "digest": one.digest, "rule": one.rule,
                "why": one.why[:_LONGEST], "ageSeconds": max(0, one.age), "sizeBytes": one.size,
                "freedBytes": one.freed,
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
        # The hint of such a reason names an option of the command.
        hint = (
            f"to plan in spite of it, annotate the plan: {APPROVE}={first.approval}" if first.approval else first.hint
        )
        return Verdict("RetentionHealthy", False, first.code, f"{first.message}{more}; {hint}"[:_LONGEST])
    gone = len({(one.repository, one.digest) for one in made.deletions})
    text = f"the plan deletes {gone} of {counted(gone + len(made.kept), 'image')} and frees {size(made.freed)}"
    return Verdict("RetentionHealthy", True, "Planned", text)


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
