"""From a look at the registry, and what clusters said, to a plan; the ledger goes from one look to the next."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from kubeadm_registry.errors import Error
from kubeadm_registry.images import brought
from kubeadm_registry.images.pool import Connect
from kubeadm_registry.registry import Api, retry
from kubeadm_registry.retention import Inventory, Plan, Protected, Reason, Refused, RegistryPolicy, Use, plan, protect
from kubeadm_registry.retention.holdings import Holdings
from kubeadm_registry.retention.ledger import Ledger
from kubeadm_registry.retention.order import Order, order
from kubeadm_registry.retention.plan import shrunk
from kubeadm_registry.retention.policy import seconds
from kubeadm_registry.retention.pulls import Pulls
from kubeadm_registry.retention.standing import Standing
from kubeadm_registry.retention.trash import Trash
from kubeadm_registry.upkeep import reading, store
from kubeadm_registry.upkeep.clusters import ClusterReport
from kubeadm_registry.upkeep.store import PATIENCE


@dataclass(frozen=True, slots=True)
class Look:
    """What was found at *now* (seconds since 1970): the ledger *before* it and *after* it, and the *holdings*.

    *sets* are named sets of images, *uses* those that no cluster reports; *problems* say why some of what is in use is
    not known. *trash* is what waits to be deleted for good, *standing* what people have said.
    """

    now: int
    before: Ledger
    after: Ledger
    holdings: Holdings
    sets: Mapping[str, tuple[str, ...]]
    uses: tuple[Use, ...]
    problems: tuple[Reason, ...]
    trash: Trash
    standing: Standing

    def plan(self, policy: RegistryPolicy, *, accepted: Collection[str] = ()) -> Plan | Refused:
        """What to delete by *policy*; see ``retention.plan``."""
        inventory, protected = self._inputs(policy)
        return plan(inventory, protected, policy, self.now, previous=self.before.previous, accepted=accepted)

    def order(self, made: Plan, policy: RegistryPolicy, *, approved: bool) -> Order:
        """What the executor is to do for the plan *made*, which may be a part of what ``plan`` returned."""
        buried = {name: held.buried for name, held in self.holdings.repositories.items() if held.buried}
        inventory, protected = self._inputs(policy)
        return order(
            made, self.trash, inventory, protected, policy.spec, now=self.now, approved=approved, buried=buried
        )

    def _inputs(self, policy: RegistryPolicy) -> tuple[Inventory, Protected]:
        inventory = self.after.inventory(self.holdings)
        workloads = self.after.workloads(self.sets, self.problems, self.uses)
        return inventory, protect(inventory, workloads, policy, self.now)


def look(
    connect: Connect, key: str, policy: RegistryPolicy, now: int, *,
    reports: Mapping[str, ClusterReport] = MappingProxyType({}), sets: Mapping[str, tuple[str, ...]],
    uses: tuple[Use, ...] = (), accepted: Collection[str] = (), pulls: Pulls | None = None,
) -> Look:  # fmt: skip
    """Read the registry to which *connect* leads, and the ledger that is kept there under *key*.

    *reports* is what clusters say, by what people call them, and goes into the ledger unless it has problems; *uses* is
    what is in use besides, *sets* are those beside that of bundles. The ledger after the look is written: it is what
    makes ages known. Unless it is *accepted* that far fewer images are in use, the next look is compared with as many
    as this one. *pulls* is what all nodes recorded, None: not known. Raises RegistryError, NewerFormat, Error
    (LedgerDamaged).
    """
    with connect() as registry:
        before = retry(lambda: store.read(registry, key), PATIENCE)
        trash = retry(lambda: store.read_trash(registry, key), PATIENCE)
        standing = retry(lambda: store.read_standing(registry, key), PATIENCE)
        sets = {**sets, **_brought(registry, "bundle" in policy.spec.sets)}
    known = {name: one.manifests.keys() for name, one in before.repositories.items()}
    holdings = reading.read(connect, known)
    after = before.after(holdings, now, trash.tags()).pulled(pulls)
    older: list[Reason] = []
    for name, report in reports.items():
        went_back = [one for one in _older(name, report, before) if one.approval not in accepted]
        older += went_back
        if not report.problems and not went_back:
            kept, revision = seconds(policy.spec.workload_grace), _number(report.revision)
            after = after.reported(report.uid, name, report.uses, now, kept=kept, revision=revision)
    missed = [one for one in shrunk(after.workloads({}).current, before.previous) if one.approval not in accepted]
    after = replace(after, in_use=before.previous if missed else None)
    with connect() as registry:
        # Others may have looked meanwhile, and heard of other clusters.
        after = after.with_newer_reports(retry(lambda: store.read(registry, key), PATIENCE))
        retry(lambda: store.write(registry, key, after), PATIENCE)
    problems = (*(one for report in reports.values() for one in report.problems), *older)
    uses = (*uses, *standing.uses(now))
    return Look(now, before, after, holdings, sets, uses, problems, trash, standing)


def _number(revision: str) -> int:
    """A resourceVersion as a number (Kubernetes API concepts, "Resource versions": etcd's are); 0 if it is none."""
    return int(revision) if revision.isascii() and revision.isdigit() else 0


def _older(name: str, report: ClusterReport, before: Ledger) -> Iterator[Reason]:
    """That the cluster says what it knew earlier: it has forgotten workloads that may still run."""
    known = before.clusters.get(report.uid)
    newest, now = known.revision if known is not None else 0, _number(report.revision)
    if 0 < now < newest:
        yield Reason(
            "ClusterOlder",
            f"{name} is at revision {now}, and was at {newest} before: its etcd was restored from a backup, and may "
            "not know of all workloads",
            f"check that everything is there that should run, then pass --accept ClusterOlder={newest}",
            approval=f"ClusterOlder={newest}",
        )


def _brought(registry: Api, wanted: bool) -> dict[str, tuple[str, ...]]:
    """The set ``bundle``, if it is *wanted* and known."""
    if not wanted:
        return {}
    try:
        found = retry(lambda: list(brought.everything(registry)), PATIENCE)
    except Error as error:
        if error.code in ("ImagesUnknown", "SeedRecordDamaged"):
            return {}
        raise
    return {"bundle": tuple(name for one in found for name in one.references)}
