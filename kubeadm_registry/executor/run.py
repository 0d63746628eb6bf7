"""One run of the executor: an order is checked, carried out image by image, and entered in the history.

The trash is recorded before the first tag moves, and again at the end. A run that is broken off anywhere leaves images
that the next order completes or gives back: an image whose tags are all there and that is in the record as well has
come back by itself, and one that is in the record and not in the registry is forgotten.

A run ends when its order is too old, and leaves the rest to the next one, which knows what is in use by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from kubeadm_registry.agent.pulls import DAY
from kubeadm_registry.errors import Error, RegistryError
from kubeadm_registry.executor import images
from kubeadm_registry.executor.checks import Checked, check, in_use
from kubeadm_registry.executor.images import PATIENCE, Skipped
from kubeadm_registry.executor.watch import Watch
from kubeadm_registry.images import brought
from kubeadm_registry.registry import Api, retry
from kubeadm_registry.retention import Reason
from kubeadm_registry.retention.history import Run
from kubeadm_registry.retention.inventory import EMPTY, Tag
from kubeadm_registry.retention.ledger import Ledger
from kubeadm_registry.retention.order import Order
from kubeadm_registry.retention.standing import Spent, Standing
from kubeadm_registry.retention.trash import Trash, Trashed
from kubeadm_registry.upkeep import store

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Executor:
    """Carries out orders at *registry*, whose requests carry the term of the lease, by records under *key*.

    *holds* raises Error when the lease is not this node's any more; it is asked before each image. *doubts* returns why
    the registry may not be whole, and nothing may be deleted. *tell* hears a line for each image.
    """

    registry: Api
    key: str
    node: str
    holds: Callable[[], None]
    tell: Callable[[str], None] = lambda _: None
    clock: Callable[[], float] = time.time
    doubts: Callable[[], Sequence[Reason]] = tuple

    def carry_out(self, order: Order) -> Run:
        """Do what *order* says, and return what was done.

        Raises Error (OrderRefused) if nothing may be done, and whatever breaks the run off; the history has both.
        """
        began = int(self.clock())
        report = _Report(order.digest, order, self.node, began, self.tell, left=order.left)
        try:
            self._run(order, began, report)
        except Error as error:
            self._enter(report.ended(int(self.clock()), str(error)), quietly=True)
            raise
        run = report.ended(int(self.clock()))
        self._enter(run)
        return run

    def _run(self, order: Order, now: int, report: _Report) -> None:
        self.holds()
        ledger = self._read(store.read)
        trash = self._read(store.read_trash)
        said = self._read(store.read_said)
        spent = self._read(store.read_spent)
        standing = said.after(spent)
        sets = self._brought() if "bundle" in order.sets and (order.delete or order.purge) else {}
        after = spent.asked(order.window, now) if order.deletes else spent
        doubted = self.doubts() if order.deletes or order.forget else ()
        checked = check(order, ledger, trash, sets, standing, now=now, window=after.window, doubted=doubted)
        if checked.refused:
            raise Error(
                f"the order is refused: {'; '.join(str(reason) for reason in checked.refused)}",
                code="OrderRefused", hint=checked.refused[0].hint,
            )  # fmt: skip
        if checked.held:
            # What is used again comes back, whoever asks for it and whatever else is wrong. What seems to be gone may
            # only be out of reach.
            back = replace(order, delete=(), purge=(), forget=())
            self._images(back, checked, ledger, trash, report, self._watch(order, standing, spent))
            raise Error(
                f"nothing is deleted: {'; '.join(str(reason) for reason in checked.held)}",
                code="OrderRefused", hint=checked.held[0].hint,
            )  # fmt: skip
        for repository, tags in order.sweep.items():
            self.holds()
            images.sweep(self.registry, repository, tags)
        caller = order.caller if order.deletes else None
        if caller is not None and standing.callers.get(caller.lease) != caller.epoch:
            after = after.called(caller)
        if order.approval:
            # Before anything goes by it: a run that dies may have done all of it. As it was given before the run began:
            # one that somebody gives meanwhile is for the next run.
            after = after.spending(order.approval, said)
        if after != spent:
            store.spend(self.registry, self.key, lambda _: after)
        try:
            self._images(order, checked, ledger, trash, report, self._watch(order, standing, spent))
        except Error as error:
            if error.code == "OrderRefused":
                self._give_back(order)
            raise
        if report.left:
            self._give_back(order)
        self._tidy(ledger)

    def _give_back(self, order: Order) -> None:
        """Let the approval of *order* stand: it is for all that was approved, and some of that is left."""
        if order.approval:
            with suppress(Error):  # then somebody approves again
                store.spend(self.registry, self.key, lambda one: one.giving_back(order.approval))

    def _watch(self, order: Order, standing: Standing, spent: Spent) -> Watch:
        """*spent* is what was spent before this run: its own approval stands while it goes on."""
        heard = partial(self._read, store.read_said)
        return Watch(order, self.clock, self.doubts, lambda: heard().after(spent), standing, self.clock())

    def _tidy(self, ledger: Ledger) -> None:
        """Delete what earlier records of retention have left: each that is written replaces one, and is like none."""
        known = ledger.repositories.get(store.REPOSITORY)
        if known is None:
            return
        tags = retry(lambda: self.registry.tags(store.REPOSITORY), PATIENCE)
        now = {retry(partial(self.registry.digest, store.REPOSITORY, tag), PATIENCE) for tag in tags}
        if not now or None in now:
            return  # zot makes a 404 of a storage error: any of them may be in use
        for digest in known.manifests.keys() - now:
            self.holds()
            retry(partial(self.registry.delete_manifest, store.REPOSITORY, digest), PATIENCE)

    def _images(
        self, order: Order, checked: Checked, ledger: Ledger, trash: Trash, report: _Report, watch: Watch
    ) -> None:
        """All images of *order*, for as long as *watch* lets them go. The record of the trash is right whatever ends
        this."""
        delete, purge = (
            [one for one in ordered if not report.stays(one, checked.skipped.get(one.key, ""))]
            for ordered in (order.delete, order.purge)
        )
        purge = [_as_recorded(one, trash) for one in purge]
        before = trash.images.keys()
        if delete:
            trash = trash.with_all(replace(one, deleted=int(self.clock())) for one in delete)
            self._write(trash)
        fates = _Fates({one.key: one for one in delete if one.key not in before})
        try:
            for one in sorted(order.restore, key=lambda one: _last(one.image), reverse=True):
                if self._each(one.image, report, partial(images.restore, self.registry), "restored", one.why):
                    fates.back.append(one.image)
            self._forget(order.forget, report, watch, fates)
            self._delete(delete, trash, ledger, report, watch, fates)
            self._purge(purge, ledger, report, watch, fates)
        finally:
            if fates.back or fates.gone:
                self._record(fates.back, fates.gone)
            if fates:
                done = [replace(one, complete=True) for one in fates.done]
                self._write(trash.with_all(done).without([*fates.gone, *fates.back, *fates.untouched.values()]))

    def _forget(self, forget: Sequence[Trashed], report: _Report, watch: Watch, fates: _Fates) -> None:
        why = "it is not in the registry any more"
        for image in forget:
            if report.stays(image, watch.keeps(image)):
                continue
            if self._each(image, report, partial(images.forget, self.registry), "forgot", why):
                fates.gone.append(image)

    def _delete(
        self, delete: Sequence[Trashed], trash: Trash, ledger: Ledger, report: _Report, watch: Watch, fates: _Fates
    ) -> None:
        for image in _due(delete, report, watch):
            new = fates.untouched.pop(image.key, None)
            tags = ledger.repositories.get(image.repository, EMPTY).tags
            known = {tag for tag, one in tags.items() if one.first_seen <= watch.order.made}
            outcome = self._each(
                image, report, partial(images.delete, self.registry, known=known), "deleted", image.why
            )
            if outcome:
                fates.done.append(trash.images[image.key])
            elif outcome is False and new is not None:  # else it may have lost some of its tags, now or earlier
                fates.untouched[image.key] = new

    def _purge(self, purge: Sequence[Trashed], ledger: Ledger, report: _Report, watch: Watch, fates: _Fates) -> None:
        if not purge:
            return
        going = {digest for one in purge for digest in (one.digest, *one.parts)}
        # Of several clusters one may have said since the order was made that it uses an image.
        used = in_use(self._read(store.read))
        for image in _due(purge, report, watch):
            if report.stays(image, used(image)):
                continue
            # What another one needs that goes as well, may yet be needed: that one may come back meanwhile.
            held = _known(ledger, watch.order, image.repository) - going
            if self._each(image, report, partial(images.purge, self.registry, known=held), "purged", ""):
                fates.gone.append(image)

    def _record(self, back: Collection[Trashed], gone: Collection[Trashed]) -> None:
        """Enter in the ledger since when the tags of the images that are *back* were known before, and nothing of what
        is *gone*: by this run, or by one that was killed before it could enter that."""
        ledger = self._read(store.read).without(gone)
        for one in back:
            ledger = ledger.dated(one.repository, {tag: Tag(one.digest, seen) for tag, seen in one.tags.items()})
        retry(lambda: store.write(self.registry, self.key, ledger), PATIENCE)

    def _each(
        self, image: Trashed, report: _Report, work: Callable[[Trashed], object], done: str, why: str
    ) -> bool | None:
        """Whether *work* was done with *image*; None: it may be half done. Raises what ends the run."""
        self.holds()
        try:
            work(image)
        except Skipped as skipped:
            report.skip(image, str(skipped))
            return False
        except RegistryError as error:
            if images.is_over(error) or error.temporary or not error.status:
                raise
            report.skip(image, error.message)
            return None
        report.did(image, done, why)
        return True

    # ---- records ---------------------------------------------------------------------------------------------------

    def _read(self, read: Callable[[Api, str], Value]) -> Value:
        return retry(lambda: read(self.registry, self.key), PATIENCE)

    def _write(self, trash: Trash) -> None:
        retry(lambda: store.TRASH.write(self.registry, self.key, trash.to_json()), PATIENCE)

    def _enter(self, run: Run, *, quietly: bool = False) -> None:
        try:
            history = self._read(store.read_history).with_run(run)
            retry(lambda: store.HISTORY.write(self.registry, self.key, history.to_json()), PATIENCE)
        except Error:
            if not quietly:  # what broke the run off says more than what it broke besides
                raise

    def _brought(self) -> Mapping[str, str]:
        """The digests that bundles brought. Raises RegistryError, Error (ImagesUnknown, SeedRecordDamaged)."""
        lists = retry(lambda: list(brought.everything(self.registry)), PATIENCE)
        return {digest: name for one in lists for name, digest in one.images.items()}


@dataclass(slots=True)
class _Fates:
    """What became of the images of a run, for the record of the trash: *untouched* are those that are in it since this
    run began, and are still as they were."""

    untouched: dict[tuple[str, str], Trashed]
    gone: list[Trashed] = field(default_factory=list)
    done: list[Trashed] = field(default_factory=list)
    back: list[Trashed] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.untouched or self.gone or self.done or self.back)


def _due(images: Sequence[Trashed], report: _Report, watch: Watch) -> Iterator[Trashed]:
    """Those of *images* that may go, each asked for when it is its turn; *report* has why others stay, or are left."""
    for number, image in enumerate(images):
        if watch.is_over():
            report.left += len(images) - number
            return
        if not report.stays(image, watch.keeps(image)):
            yield image


def _known(ledger: Ledger, order: Order, repository: str) -> set[str]:
    """The manifests of *repository* that were certainly there when *order* was made, so that it heeds what they need.

    None of a *ledger* that another look has written since: there, what has come back is as old as it was. A look that
    began earlier may have seen more, and called that as old as itself, so the manifests of the last day do not count.
    """
    if ledger.written != order.made:
        return set()
    manifests = ledger.repositories.get(repository, EMPTY).manifests
    return {digest for digest, seen in manifests.items() if seen.first_seen <= order.made - DAY}


def _last(image: Trashed) -> tuple[int, int]:
    """By what it is known which of several images had a tag last: when it lost its tags, and since when it had them.

    One that came back and went again has them for as long as ever.
    """
    return image.deleted, max(image.tags.values(), default=0)


def _as_recorded(one: Trashed, trash: Trash) -> Trashed:
    """*one* with those of its parts only with which it went to the trash."""
    recorded = trash.images[one.key].parts
    return replace(one, parts=tuple(part for part in one.parts if part in recorded))


@dataclass(slots=True)
class _Report:
    """What a run has done so far."""

    digest: str
    order: Order
    node: str
    began: int
    tell: Callable[[str], None]
    counts: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    left: int = 0
    """How many images are for the next run: the order had no room for them, or was too old."""

    def stays(self, image: Trashed, why: str) -> bool:
        """Whether *image* stays as it is, because of *why*; it does not if that is empty."""
        if why:
            self.skip(image, why)
        return bool(why)

    def skip(self, image: Trashed, why: str) -> None:
        """Nothing was done with *image*."""
        self._note("skipped", f"skipped {image}: {why}")

    def did(self, image: Trashed, what: str, why: str) -> None:
        """*what* was done with *image*."""
        self._note(what, f"{what} {image}{f': {why}' if why else ''}")

    def _note(self, what: str, line: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        self.lines.append(line)
        self.tell(line)

    def ended(self, now: int, error: str = "") -> Run:
        """The entry for the history."""
        return Run(
            self.digest, self.order.plan, self.order.policy, self.node, self.began, now,
            self.counts.get("deleted", 0), self.counts.get("restored", 0), self.counts.get("purged", 0),
            self.counts.get("skipped", 0), error, tuple(self.lines), self.left,
        )  # fmt: skip
