"""From a plan to the order for the executor: what may be carried out now, with the approvals that there are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kubeadm_registry.errors import ConfigError, Error
from kubeadm_registry.registry import Api, retry
from kubeadm_registry.retention import Plan, RegistryPolicy
from kubeadm_registry.retention.order import Order
from kubeadm_registry.upkeep import store
from kubeadm_registry.upkeep.planning import Look
from kubeadm_registry.upkeep.store import PATIENCE

#: Hexadecimal digits that name a plan well enough.
ENOUGH = 12


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
    record = store.plan_record(plan.policy, approved=approved)
    retry(lambda: record.write(registry, key, plan.pieces()), PATIENCE)


def publish(registry: Api, key: str, plan: Plan) -> str:
    """Keep the operator's *plan* as its newest, in the place of the one before; the digest of the artifact.

    It goes by the login that pushes. Raises RegistryError, Error (RecordTooLarge).
    """
    return retry(lambda: store.OPERATOR_PLAN.write(registry, key, plan.pieces()), PATIENCE)


def find(registry: Api, key: str, digest: str) -> Plan:
    """The newest plan that is kept and has this *digest*, of which ENOUGH digits will do.

    Raises ConfigError (PlanUnknown), RegistryError, Error (PlanDamaged).
    """
    plans = retry(lambda: store.read_plans(registry, key), PATIENCE)
    try:
        shown = retry(lambda: store.read_operator_plan(registry, key), PATIENCE)
    except Error as error:
        # Whoever may push can damage this one; that hides none of the others.
        if error.code != store.OPERATOR_PLAN.code or not any(_begins(one.digest, digest) for one in plans):
            raise
    else:
        plans += [] if shown is None else [shown]
    found = [one for one in plans if named(one.digest, digest)]
    if len({one.digest for one in found}) != 1:
        known = ", ".join(sorted({f"{one.digest[:19]} of policy {one.policy}" for one in plans}))
        raise ConfigError(
            f"no plan {digest} is known", code="PlanUnknown",
            hint=f"the newest plans are {known}" if known else "make one with `retention plan`",
        )  # fmt: skip
    return max(found, key=lambda one: one.made)


def named(digest: str, by: str) -> bool:
    """Whether *by*, ENOUGH digits or more, with the algorithm or without it, names *digest*."""
    return len(by.removeprefix("sha256:")) >= ENOUGH and _begins(digest, by)


def _begins(digest: str, by: str) -> bool:
    return digest.removeprefix("sha256:").startswith(by.removeprefix("sha256:").lower())


def approve(registry: Api, key: str, plan: Plan, now: int) -> None:
    """Approve *plan* at *now*, in place of what was approved for its policy before. Raises RegistryError, Error.

    The plan is kept as it was read: by the time of the run there may be a newer one.
    """
    keep(registry, key, plan, approved=True)
    store.restate(registry, key, lambda standing: standing.with_approval(plan.digest, now))
