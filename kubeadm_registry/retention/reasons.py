"""Why there is no plan, or why a plan needs an approval; with codes that scripts and conditions may match."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Reason:
    """One reason: a stable *code*, what is so (*message*), and what to do (*hint*, an imperative).

    *approval* is what an approval must name to overrule this reason; empty: nothing overrules it.

    =====================  ============================================================================
    InventoryIncomplete    a part of the registry could not be read
    ManifestMissing        a tag or repository names a manifest that the inventory does not have
    ManifestNotUnderstood  a manifest has a media type whose references are unknown
    UsesIncomplete         a list of workloads could not be read completely
    SetMissing             a set of images that the policy protects is not known
    ImageNotUnderstood     something uses an image by a name that cannot be read
    UsesShrank             far fewer images are in use than last time
    ClusterOlder           a cluster went back to an earlier state (needs an approval)
    ClusterSilent          a cluster that reported before has not for long (needs an approval)
    ClockDoubtful          the time is before something that the ledger has seen, or not that of the nodes
    ShareOfRepository      the plan takes a large share of one repository (needs an approval)
    ShareOfAll             the plan takes a large share of the registry (needs an approval)
    =====================  ============================================================================
    """

    code: str
    message: str
    hint: str = ""
    approval: str = ""

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


def approval_of(code: str, *what: object) -> str:
    """The ``approval`` of the reason *code* for *what* and for nothing else.

    With a number made of it: an annotation, and the status of a plan, have no place for names.
    """
    digest = hashlib.sha256("\n".join(map(str, what)).encode()).digest()
    return f"{code}={int.from_bytes(digest[:5])}"
