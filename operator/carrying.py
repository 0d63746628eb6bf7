"""From a plan to what the executor does on the nodes, where the operator has a key for their helpers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from kubeadm_registry.access import executor
from kubeadm_registry.access.executor import Node
from kubeadm_registry.errors import CommandTimeout, Error
from kubeadm_registry.operator.conditions import Verdict
from kubeadm_registry.registry import Api
from kubeadm_registry.retention import Plan, RegistryPolicy
from kubeadm_registry.retention.order import Caller, Order
from kubeadm_registry.upkeep import running
from kubeadm_registry.upkeep.planning import Look
from kubeadm_registry.upkeep.running import Prepared

KIND = "CarriedOut"
#: Seconds that a run is waited for; it goes on after that, and the next round finds it running.
LONGEST = 3600.0
_NO_KEY = Verdict(
    KIND, None, "NoHelper", "the operator has no key for the nodes: run `kubeadm-registry retention run`, or install "
    "the operator without --plan-only"
)  # fmt: skip


def prepare(
    registry: Api, key: str, look: Look, plan: Plan, rules: RegistryPolicy, *,
    approved: Collection[str], shown: Mapping[str, Plan],
) -> Prepared:  # fmt: skip
    """What to carry out for *plan*, which was just made from *look*. Raises RegistryError, Error.

    *approved* are digests that people have written to the plan's object, *shown* the plans that it has shown, by
    digest. Of an earlier one goes only what the present one deletes as well, and only if nothing else lets it run.
    """
    if plan.digest in approved:
        return Prepared(look.order(plan, rules, approved=True))
    prepared = running.prepare(registry, key, look, plan, rules)
    for earlier in (shown[digest] for digest in approved if digest in shown):
        if prepared.waits and (both := earlier.both(plan)).deletions:
            return Prepared(look.order(both, rules, approved=True))
    return prepared


def carry_out(prepared: Prepared, nodes: Sequence[Node] | None, caller: Caller) -> Verdict:
    """Have what was *prepared* done on that of the *nodes* which holds the lease, and say what came of it."""
    if nodes is None:
        return _NO_KEY
    if prepared.order:
        return _carried_out(replace(prepared.order, caller=caller), nodes, waits=prepared.waits)
    if prepared.waits:
        return Verdict(KIND, None, "ApprovalRequired", "the plan is not approved, so nothing is deleted")
    return Verdict(KIND, True, "NothingToDo", "there is nothing to delete or to restore")


def _carried_out(order: Order, nodes: Sequence[Node], *, waits: bool) -> Verdict:
    try:
        outcome = executor.run(nodes, order.to_json(), deadline=LONGEST)
        done = outcome.run().summary()
    except Error as error:
        text = f"{error}; {error.hint}" if error.hint else str(error)
        if error.code == "ExecutorBusy" or isinstance(error, CommandTimeout):
            return Verdict(KIND, None, "StillRuns", text)
        return Verdict(KIND, False, error.code, text)
    more = "; its deletions wait for an approval" if waits else ""
    return Verdict(KIND, True, "Done", f"{outcome.node}: {done}{more}")
