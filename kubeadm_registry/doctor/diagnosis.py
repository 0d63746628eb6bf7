"""All rules over a snapshot, and what follows from what: a pure function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from kubeadm_registry.doctor.finding import EVERYTHING, Finding, Kind
from kubeadm_registry.doctor.rules import files, nodes, storage, symptoms, units, vip
from kubeadm_registry.doctor.snapshot import Snapshot

Rule = Callable[[Snapshot], Iterator[Finding]]
State = Literal["healthy", "degraded", "down", "unknown"]

RULES: Sequence[Rule] = (
    files.installed,
    files.runnable,
    nodes.answering,
    units.running,
    nodes.ports_free,
    storage.there,
    storage.room,
    storage.present,
    storage.open_for_pushes,
    storage.routed,
    files.secret,
    files.certified,
    files.unchanged,
    vip.held_once,
    vip.nobody_else,
    vip.guarded,
    nodes.hearing,
    nodes.ports_open,
    nodes.clocks,
    units.at_boot,
    units.as_written,
    units.memory,
    units.retained,
    units.logged,
    files.runs,
    nodes.checks,
    symptoms.agents,
    symptoms.canary,
)
"""Each looks for one kind of trouble. What ``status`` reports beside them is asked last, by itself."""

KINDS: Sequence[Kind] = (*units.KINDS, *storage.KINDS, *files.KINDS, *nodes.KINDS, *vip.KINDS, *symptoms.KINDS)
"""Every kind of finding; of the checks of preflight without a rule, whose names are codes too, one stands for all."""


#: Errors with which a node serves as before: no symptom follows from them.
_APART = (units.CONTAINERD_DOWN, files.MIRRORS_CHANGED, files.SECRETS_MISSING, files.SECRETS_EXPOSED)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong, the gravest first, and how the registry is."""

    state: State
    findings: Sequence[Finding]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return {"state": self.state, "findings": [one.to_dict() for one in self.findings]}


def diagnose(snapshot: Snapshot) -> Diagnosis:
    """What is wrong in *snapshot*.

    A finding that follows from another on the same node is left out. What only says that something does not work is
    left out where an error on its node says why, and is a warning where one elsewhere may be the cause. An error of
    ``status`` is there if no rule found anything: no trouble that it reports goes without a finding.
    """
    found = [finding for rule in RULES for finding in rule(snapshot)]
    kept = list(_without_consequences(found))
    told = [one for one in kept if one.kind.severity == "error" and one.kind not in _APART]
    if not kept or not (snapshot.serving or told):
        kept += symptoms.healthy(snapshot)
    order = ["", *(node.name for node in snapshot.nodes)]
    kept.sort(
        key=lambda one: (one.kind.severity != "error", one.symptom, order.index(one.node) if one.node in order else 0)
    )
    return Diagnosis(_state(snapshot, kept), kept)


def _without_consequences(found: Sequence[Finding]) -> Iterator[Finding]:
    causes = [one for one in found if not one.symptom and one.kind.severity == "error" and one.kind not in _APART]
    for one in found:
        if any(_follows(one, other) for other in found if other is not one):
            continue
        if not one.symptom or not causes:
            yield one
        elif not one.node or all(cause.node != one.node for cause in causes):
            follows = f"{one.message}; it may follow from the errors above"
            yield replace(one, kind=replace(one.kind, severity="warning"), message=follows)


def _follows(one: Finding, other: Finding) -> bool:
    """Whether *one* follows from *other*; that a node does not answer follows from nothing that others say."""
    if (
        one.kind in (nodes.NODE_DOWN, nodes.SSH_FAILS, nodes.SSH_REFUSED)
        or other.symptom
        or (other.node and other.node != one.node)
    ):
        return False
    return EVERYTHING in other.explains or bool({one.subject, one.kind.code} & other.explains)


def _state(snapshot: Snapshot, found: Sequence[Finding]) -> State:
    if not any(True for _ in snapshot.answering):
        return "unknown"
    if not snapshot.serving:
        return "down"
    return "degraded" if found else "healthy"
