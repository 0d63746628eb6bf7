"""From a look at the registry, and what clusters said, to a plan; the ledger goes from one look to the next."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from kubeadm_registry.config.durations import seconds
from kubeadm_registry.errors import Error
from kubeadm_registry.images import brought
from kubeadm_registry.images.pool import Connect
from kubeadm_registry.registry import Api, retry
from kubeadm_registry.retention import Inventory, Plan, Protected, Reason, Refused, RegistryPolicy, Use, plan, protect
from kubeadm_registry.retention.holdings import Holdings
from kubeadm_registry.retention.ledger import Ledger
from kubeadm_registry.retention.order import Order, order
from kubeadm_registry.retention.plan import shrunk, shrunk_clusters, unheard
from kubeadm_registry.retention.protected import CLOCK_TOLERANCE, clock_doubtful, digests_named
from kubeadm_registry.retention.pulls import Pulls
from kubeadm_registry.retention.standing import Standing
from kubeadm_registry.retention.trash import Trash
from kubeadm_registry.retention.uses import PAUSE
from kubeadm_registry.upkeep import reading, store
from kubeadm_registry.upkeep.clusters import ClusterReport, Marker, kubeadm_sets, pause_images
from kubeadm_registry.upkeep.lists import number
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
        # Pins and lists of names are not compared: the ledger has none of the last time.
        protected = replace(protected, current=self.after.workloads({}).current)
        return plan(inventory, protected, policy, self.now, previous=self.before.previous, accepted=accepted)

    def order(self, made: Plan, policy: RegistryPolicy, *, approved: bool) -> Order:
        """What the executor is to do for the plan *made*, which may be a part of what ``plan`` returned."""
        buried = {name: held.buried for name, held in self.holdings.repositories.items() if held.buried}
        inventory, protected = self._inputs(policy)
        return order(
            made, self.trash, inventory, protected, policy.spec, now=self.now, approved=approved, buried=buried
        )

    @property
    def replaced(self) -> int:
        """How many records of retention others have replaced, which the executor deletes when it runs."""
        held = self.holdings.repositories.get(store.REPOSITORY)
        return 0 if held is None else len(held.manifests - set(held.tags.values()))

    def has(self, marker: Marker) -> bool:
        """Whether the ledger has the newest *marker* of a cluster."""
        return any(one.marker == marker.newest for one in self.after.clusters.values())

    def _inputs(self, policy: RegistryPolicy) -> tuple[Inventory, Protected]:
        inventory = self.after.inventory(self.holdings)
        workloads = self.after.workloads(self.sets, self.problems, self.uses)
        return inventory, protect(inventory, workloads, policy, self.now)


def look(
    connect: Connect, key: str, policy: RegistryPolicy, now: int, *,
    reports: Mapping[str, ClusterReport] = MappingProxyType({}), sets: Mapping[str, tuple[str, ...]],
    uses: tuple[Use, ...] = (), accepted: Collection[str] = (), pulls: Callable[[], Pulls | None] = lambda: None,
    pause: str | None = None,
) -> Look:  # fmt: skip
    """Read the registry to which *connect* leads, and the ledger that is kept there under *key*.

    *reports* is what clusters say, by what people call them, and goes into the ledger unless it has problems; *uses* is
    what is in use besides, *sets* are those beside that of bundles. The ledger after the look is written: it is what
    makes ages known. Unless it is *accepted* that far fewer images are in use, by all clusters or by one, the next look
    is compared with as many as this one. *pulls* returns what the nodes recorded, None: not known; it is called if that
    matters. *pause* is the pause image that the cluster file names, None: it names none. Raises RegistryError,
    NewerFormat, Error (LedgerDamaged; ClockDoubtful: *now* is before the look that wrote the ledger).
    """
    with connect() as registry:
        before = retry(lambda: store.read(registry, key), PATIENCE)
        _require_later(before, now)
        trash = retry(lambda: store.read_trash(registry, key), PATIENCE)
        standing = retry(lambda: store.read_standing(registry, key), PATIENCE)
        sets = {**sets, PAUSE: pause_images(pause), **_brought(registry, "bundle" in policy.spec.sets)}
    uses = (*uses, *standing.uses(now))
    said = (*uses, *(use for report in reports.values() for use in report.uses))
    holdings = reading.read(connect, _to_look_for(before, said, sets))
    with connect() as registry:
        # An image may have gone to the trash or come back meanwhile: either way its tag there is no name of it.
        later = retry(lambda: store.read_trash(registry, key), PATIENCE)
    recorded = pulls() if policy.asks_for_pulls or trash.images else None
    grace = seconds(policy.spec.workload_grace)
    after = before.after(holdings, now, trash.tags(later)).pulled(recorded)
    after = after.asked_for(list(trash), recorded, now, grace=grace).planned(grace, now)
    older: list[Reason] = []
    for name, report in reports.items():
        went_back = [one for one in _older(name, report, before) if one.approval not in accepted]
        older += went_back
        if not report.problems and not went_back:
            revision = number(report.revision)
            marker = report.marker.newest if report.marker is not None else 0
            after = after.reported(
                report.uid, name, report.uses, now,
                kept=after.grace[0], revision=revision, marker=marker, version=report.version,
            )  # fmt: skip
    missed = [one for one in shrunk(after.workloads({}).current, before.previous) if one.approval not in accepted]
    after = replace(after, in_use=before.previous if missed else None)
    with connect() as registry:
        # Others may have looked meanwhile, and heard of other clusters; and images may have come back or gone for good.
        newer = _until(retry(lambda: store.read(registry, key), PATIENCE), after.written)
        after = after.with_newer_reports(newer, before).merged(newer, before)
        fewer = {uid: one for uid, one in shrunk_clusters(before, after).items() if one.approval not in accepted}
        after = after.compared(before, fewer)
        retry(lambda: store.write(registry, key, after), PATIENCE)
    told = [one for report in reports.values() for one in report.problems]
    problems = (*told, *older, *fewer.values(), *unheard(after, {one.uid for one in reports.values()}, now))
    return Look(now, before, after, holdings, _of_all(after, sets), uses, problems, trash, standing)


def _to_look_for(
    before: Ledger, uses: Iterable[Use], sets: Mapping[str, tuple[str, ...]]
) -> Mapping[str, Collection[str]]:
    """The manifests to look for in each repository: those that were known, and those that something in use names.

    A tag may have moved on before a look had found it: then only who uses the image knows of it, and what it needs may
    be a part of other images as well.
    """
    named = (Use(name) for names in sets.values() for name in names)
    found = digests_named((*before.workloads({}).uses, *uses, *named))
    for name, digests in before.digests().items():
        found.setdefault(name, set()).update(digests)
    return found


def _require_later(before: Ledger, now: int) -> None:
    """A wrong time is not written: it would make images older than they are, once the clock is right again."""
    if before.written > now + CLOCK_TOLERANCE:
        reason = clock_doubtful("the ledger was written", before.written, now)
        raise Error(reason.message, code=reason.code, hint=reason.hint)


def _until(ledger: Ledger, now: int) -> Ledger:
    """*ledger* in which nothing in use was seen after *now*: others have looked since then, and no clock is wrong."""
    if ledger.written <= now:
        return ledger

    def seen(use: Use) -> Use:
        return use if use.last_seen is None else replace(use, last_seen=min(use.last_seen, now))

    clusters = {uid: replace(one, uses=tuple(map(seen, one.uses))) for uid, one in ledger.clusters.items()}
    return replace(ledger, clusters=clusters, asked={key: seen(use) for key, use in ledger.asked.items()})


def _older(name: str, report: ClusterReport, before: Ledger) -> Iterator[Reason]:
    """That the cluster says what it knew earlier: it has forgotten workloads that may still run."""
    known = before.clusters.get(report.uid)
    newest, now = known.revision if known is not None else 0, number(report.revision)
    if 0 < now < newest:
        yield Reason(
            "ClusterOlder",
            f"{name} is at revision {now}, and was at {newest} before: its etcd was restored from a backup, and may "
            "not know of all workloads",
            f"check that everything is there that should run, then pass --accept ClusterOlder={newest}",
            approval=f"ClusterOlder={newest}",
        )
    elif known is not None and known.marker and report.marker is not None and not report.marker.fits(known.marker):
        yield Reason(
            "ClusterOlder",
            f"{name} does not remember what it was told with the last plan: its etcd was restored from a backup, and "
            "may not know of all workloads, or the object of the plan was created again",
            f"check that everything is there that should run, then pass --accept ClusterOlder={known.marker}",
            approval=f"ClusterOlder={known.marker}",
        )


def _of_all(after: Ledger, sets: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
    """*sets* with what kubeadm needs in every cluster of the ledger, also in one that did not report just now; without
    that set if no version is known, or the images of one are not."""
    others = kubeadm_sets(one.version for one in after.clusters.values())
    known = {name: one for name, one in sets.items() if name != "kubeadm"}
    both = [found["kubeadm"] for found in (sets, others) if "kubeadm" in found]
    images = tuple(sorted({image for one in both for image in one}))
    return {**known, "kubeadm": images} if len(both) == 2 and images else known


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
