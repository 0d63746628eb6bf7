"""From a plan to the order for the executor: what may be carried out now, with the approvals that there are."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from kubeadm_registry.registry import Api, retry
from kubeadm_registry.retention import Plan, RegistryPolicy
from kubeadm_registry.retention.order import Order
from kubeadm_registry.upkeep import store
from kubeadm_registry.upkeep.planning import Look
from kubeadm_registry.upkeep.store import PATIENCE


@dataclass(frozen=True, slots=True)
class Prepared:
    """The *order*, and whether the plan *waits* for an approval, so that none of its deletions is in the order."""

    order: Order
    waits: bool = False


def prepare(registry: Api, key: str, look: Look, plan: Plan, rules: RegistryPolicy) -> Prepared:
    """What to carry out for *plan*, which was just made from *look* by *rules*. Raises RegistryError, Error.

    An approved plan is compared with the one that is made now: only what both delete goes.
    """
    automatic = not plan.deletions or (rules.spec.approval == "Automatic" and not plan.needs_approval)
    earlier = retry(lambda: store.read_plan(registry, key, plan.policy, approved=True), PATIENCE)
    if earlier is not None and look.standing.approves(earlier) and (not automatic or earlier.digest == plan.digest):
        order = look.order(earlier.both(plan), rules, approved=True)
        return Prepared(replace(order, approval=earlier.digest))
    if automatic:
        return Prepared(look.order(plan, rules, approved=False))
    return Prepared(look.order(replace(plan, deletions=()), rules, approved=False), waits=True)


def keep(registry: Api, key: str, plan: Plan, *, approved: bool = False) -> None:
    """Keep *plan* as the newest of its policy, so that it can be read and approved. Raises RegistryError."""
    record, content = store.plan_record(plan.policy, approved=approved), json.dumps(plan.to_dict()).encode()
    retry(lambda: record.write(registry, key, content), PATIENCE)


def approve(registry: Api, key: str, plan: Plan, now: int) -> None:
    """Approve *plan* at *now*, in place of what was approved for its policy before. Raises RegistryError, Error.

    The plan is kept as it was read: by the time of the run there may be a newer one.
    """
    keep(registry, key, plan, approved=True)
    store.restate(registry, key, lambda standing: standing.with_approval(plan.digest, now))
