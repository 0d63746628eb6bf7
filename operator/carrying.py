"""From a plan to what the executor does on the nodes, where the operator has a key for their helpers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from kubeadm_registry.access import executor
from kubeadm_registry.access.executor import Node
from kubeadm_registry.errors import CommandTimeout, Error
from kubeadm_registry.operator.conditions import Verdict, told
from kubeadm_registry.registry import Api
from kubeadm_registry.retention import Plan, RegistryPolicy
from kubeadm_registry.retention.order import Caller, Order
from kubeadm_registry.retention.record import Key
from kubeadm_registry.upkeep import running
from kubeadm_registry.upkeep.planning import Look
from kubeadm_registry.upkeep.running import Prepared

KIND = "CarriedOut"
#: Why it is so: all of the plan was carried out, or as much as there was time for, and another plan is made at once.
DONE, UNFINISHED = "Done", "Unfinished"
#: Why an approval stands after a run that began by it: some of what was approved is left, or nothing was begun.
LEFT = frozenset({UNFINISHED, "OrderRefused", "NoExecutor", "ToolMissing"})
#: Seconds that a run is waited for; it goes on after that, and the next round finds it running.
LONGEST = 3600.0
#: Records that were replaced, so that they are deleted once a day: each plan replaces the ledger and the plan before.
MANY_RECORDS = 48
_NO_KEY = Verdict(
    KIND, None, "NoHelper", "the operator has no key for the nodes: run `kubeadm-registry retention run`, or install "
    "the operator without --plan-only"
)  # fmt: skip


def prepare(
    registry: Api, key: str, look: Look, plan: Plan, rules: RegistryPolicy, *,
    approved: Collection[str], shown: Mapping[str, Collection[Key]],
) -> Prepared:  # fmt: skip
    """What to carry out for *plan*, which was just made from *look*. Raises RegistryError, Error.

    *approved* are digests that people have written to the plan's object, *shown* what the plans delete that it has
    shown, by digest. Of an earlier one goes only what the present one deletes as well, and only if nothing else lets it
    run.
    """
    if plan.digest in approved:
        return Prepared(look.order(plan, rules, approved=True))
    prepared = running.prepare(registry, key, look, plan, rules)
    for earlier in (shown[digest] for digest in approved if digest in shown):
        if prepared.waits and (both := plan.within(earlier)).deletions:
            return Prepared(look.order(both, rules, approved=True))
    return prepared


def carry_out(
    prepared: Prepared, nodes: Sequence[Node] | None, caller: Caller, tell: Callable[[Verdict], None] = lambda _: None,
    *, replaced: int = 0, begins: Callable[[], None] = lambda: None,
) -> Verdict:  # fmt: skip
    """Have what was *prepared* done on that of the *nodes* which holds the lease, and say what came of it.

    *tell* hears which images came back, if any did: that is an Event of its own. *begins* is called just before the
    order is given; it is not if that raises Error. *replaced* is how many earlier records of retention there are: when
    they are many, the executor runs to delete them, also if there is nothing else to do.
    """
    if nodes is None:
        return _NO_KEY
    order = replace(prepared.order, caller=caller)
    if order:
        return _carried_out(order, nodes, tell, begins, waits=prepared.waits)
    if replaced >= MANY_RECORDS:
        with suppress(Error):  # it is tried again with the next plan
            executor.run(nodes, order.to_json(), deadline=LONGEST)
    if prepared.waits:
        return Verdict(KIND, None, "ApprovalRequired", "the plan is not approved, so nothing is deleted")
    return Verdict(KIND, True, "NothingToDo", "there is nothing to delete or to restore")


def _carried_out(
    order: Order, nodes: Sequence[Node], tell: Callable[[Verdict], None], begins: Callable[[], None], *, waits: bool
) -> Verdict:
    try:
        outcome = executor.run(nodes, order.to_json(), deadline=LONGEST, begins=begins)
        run = outcome.run()
    except Error as error:
        text = told(error)
        if error.code == "ExecutorBusy" or isinstance(error, CommandTimeout):
            return Verdict(KIND, None, "StillRuns", text)
        return Verdict(KIND, False, error.code, text)
    if back := [line for line in run.said if line.startswith("restored ")]:
        # By its order, so that each has an Event, and not the first one a series.
        tell(Verdict(f"Restored-{order.digest[7:19]}", True, "Restored", "; ".join(back)))
    more = "; its deletions wait for an approval" if waits else ""
    return Verdict(KIND, True, UNFINISHED if run.left else DONE, f"{outcome.node}: {run.summary()}{more}")
