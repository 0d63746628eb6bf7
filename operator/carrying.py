"""From a plan to what the executor does on the nodes, where the operator has a key for their helpers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from kubeadm_registry.access import executor
from kubeadm_registry.access.executor import Node
from kubeadm_registry.errors import CommandTimeout, Error
from kubeadm_registry.operator.conditions import Verdict
from kubeadm_registry.registry import Api
from kubeadm_registry.retention import Plan, RegistryPolicy
from kubeadm_registry.retention.history import Run
from kubeadm_registry.retention.order import Caller
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
    approved: Iterable[str], shown: Mapping[str, Plan],
) -> Prepared:  # fmt: skip
    """What to carry out for *plan*, which was just made from *look*. Raises RegistryError, Error.

    *approved* are digests that people have written to the plan's object, *shown* the plans that it has shown, by
    digest. Of an earlier one goes only what the present one deletes as well.
    """
    for digest in approved:
        earlier = plan if digest == plan.digest else shown.get(digest)
        if earlier is not None:
            return Prepared(look.order(earlier.both(plan), rules, approved=True))
    return running.prepare(registry, key, look, plan, rules)


def carry_out(prepared: Prepared, nodes: Sequence[Node] | None, caller: Caller) -> Verdict:
    """Have what was *prepared* done on that of the *nodes* which holds the lease, and say what came of it."""
    if nodes is None:
        return _NO_KEY
    if not prepared.order:
        if prepared.waits:
            return Verdict(KIND, None, "ApprovalRequired", "the plan is not approved, so nothing is deleted")
        return Verdict(KIND, True, "NothingToDo", "there is nothing to delete or to restore")
    order = replace(prepared.order, caller=caller)
    try:
        outcome = executor.run(nodes, order.to_json(), deadline=LONGEST)
        if "run" not in outcome.result:
            raise Error(
                str(outcome.result.get("error", "the executor did not say why it failed")), host=outcome.node,
                code=str(outcome.result.get("code", "ExecutorFailed")), hint=str(outcome.result.get("hint", "")),
            )  # fmt: skip
    except CommandTimeout as error:
        return Verdict(KIND, None, "StillRuns", str(error))
    except Error as error:
        return Verdict(KIND, False, error.code, f"{error}; {error.hint}" if error.hint else str(error))
    waits = "; its deletions wait for an approval" if prepared.waits else ""
    return Verdict(KIND, True, "Done", f"{outcome.node}: {Run.parse(outcome.result['run']).summary()}{waits}")
