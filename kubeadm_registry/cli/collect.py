"""``images collect``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from kubeadm_registry.access import space
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import Context, command, dry_run_option, file_option
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.services import backend, frontend
from kubeadm_registry.engine.report import Reporter
from kubeadm_registry.engine.workflow import run, take_locks
from kubeadm_registry.errors import ConnectionFailed, Error
from kubeadm_registry.images import blobs, named
from kubeadm_registry.images import wanted as wishes
from kubeadm_registry.images.named import Named
from kubeadm_registry.images.pool import Connect
from kubeadm_registry.phases import collect as collecting
from kubeadm_registry.phases import workflows
from kubeadm_registry.phases.collect import Collection
from kubeadm_registry.printable import counted
from kubeadm_registry.transport.host import side_by_side
from kubeadm_registry.transport.ssh import UNREACHABLE

#: Seconds after which an upload is over that did not end: no client takes it up again.
UNFINISHED = 7 * 86400

grace_option = click.option(
    "--grace", default="24h", show_default=True, metavar="TIME",
    help="Keep blobs that a push uploaded, mounted or looked for within this time, such as 24h or 30m.",
)  # fmt: skip


@command("collect", short_help="Free the space of deleted images")
@file_option
@grace_option
@dry_run_option
def collect(context: Context, path: Path | None, grace: str, dry_run: bool) -> None:
    """Free the space of deleted images: the blobs that no manifest needs.

    Pulls go on. Pushes wait meanwhile: with Distribution until all is deleted and each node has restarted its registry,
    with zot for two seconds at a time. Every node must be reachable, and the storage fully replicated. If the run dies,
    pushes open by themselves within minutes; run it again then.
    """
    reporter = context.reporter()
    seconds = wishes.seconds(grace, option="--grace")
    with terminal.registry(path, reporter) as (cluster, connect, _):
        for name, why in cluster.absent.items():
            raise ConnectionFailed(
                f"{why}; every node must refuse pushes meanwhile", host=name, code=UNREACHABLE,
                hint="run it again when all nodes are reachable",
            )  # fmt: skip
        collecting.require_whole(cluster)
        if not dry_run:
            take_locks(cluster.hosts)
        before = backend(cluster.spec).stored(cluster, cluster.leader)
        if not dry_run and (count := backend(cluster.spec).abandon(cluster, cluster.leader, UNFINISHED)):
            reporter.note(f"dropped {counted(count, 'upload')} that began more than a week ago")
        if frontend(cluster.spec).FREES_BLOBS:
            _free_unnamed(cluster, connect, seconds, reporter, before=before, dry_run=dry_run)
            return
        one = Collection(cluster, connect, seconds)
        _tell(one.look(), cluster, one.grace, reporter)
        if one.found or one.pending:
            _carry_out(one, reporter, dry_run=dry_run)
        after = before if dry_run else backend(cluster.spec).stored(cluster, cluster.leader)
    freed = sum(one.sizes.get(digest, 0) for digest in (one.found if dry_run else one.deleted))
    count = len(one.found if dry_run else one.deleted)
    closed = max(0.0, one.opened - one.closed) if one.closed else 0.0
    reporter.result(
        f"{'would free at most' if dry_run else 'freed'} {freed / 1e6:.1f} MB in {counted(count, 'blob')}"
        + ("" if dry_run else f"; {after / 1e6:.1f} MB stored, pushes were closed for {closed:.1f} s"),
        dryRun=dry_run, blobs=count, freed=freed, before=before, after=after, kept=one.kept,
        closedSeconds=round(closed, 1),
    )  # fmt: skip


def _free_unnamed(
    cluster: Cluster, connect: Connect, grace: float, reporter: Reporter, *, before: int, dry_run: bool
) -> None:
    """Free what pushes that did not complete, and manifests that were deleted, have left behind."""
    _tell(side_by_side(lambda host: named.ask(host, grace), cluster.hosts), cluster, grace, reporter)
    found = space.unnamed(cluster, connect, grace)
    if dry_run:
        freed = blobs.Freed(blobs=len(found), bytes=sum(found.values()))
    else:
        freed = free(cluster, connect, found, grace)
    after = before if dry_run else backend(cluster.spec).stored(cluster, cluster.leader)
    reporter.result(
        f"{'would free at most' if dry_run else 'freed'} {freed.bytes / 1e6:.1f} MB in {counted(freed.blobs, 'blob')}"
        + ("" if dry_run else f"; {after / 1e6:.1f} MB stored"),
        dryRun=dry_run, blobs=freed.blobs, freed=freed.bytes, before=before, after=after, kept=freed.relied,
        closedSeconds=0.0,
    )  # fmt: skip


def free(cluster: Cluster, connect: Connect, found: Mapping[blobs.Blob, int], grace: float) -> blobs.Freed:
    """Delete those of *found* that no manifest needs and on which no push relied within *grace* seconds."""
    quiet = space.Quiet(cluster, grace)
    return blobs.free(connect, found, relied=quiet.relied, hold=quiet.hold)


def _carry_out(one: Collection, reporter: Reporter, *, dry_run: bool) -> None:
    """Run all phases; if one fails, the last of them, which open pushes."""
    cluster = one.cluster
    try:
        run(workflows.collect(one), cluster, reporter, dry_run=dry_run)
    except BaseException:
        if not dry_run and one.closed:
            reporter.note("opening pushes again", level="warning")
            try:
                run(workflows.reopen(one), cluster, reporter)
            except Error as error:
                reporter.note(
                    f"{error}; pushes open by themselves within {one.seconds / 60:.0f} minutes", level="warning"
                )
        raise


def _tell(logs: Sequence[Named], cluster: Cluster, grace: float, reporter: Reporter) -> None:
    now = datetime.now(UTC)
    for host, one in zip(cluster.hosts, logs, strict=True):
        if one.suppressed:
            reporter.note(
                "journald has dropped lines of its log: a push that found a blob there may have to be repeated",
                host=host.name, level="warning",
            )  # fmt: skip
        if one.begins is None or (now - one.begins).total_seconds() < grace:
            begins = "is empty" if one.begins is None else f"begins at {one.begins.isoformat()}"
            reporter.note(
                f"its log {begins}: a push that found a blob there before that, and is not done yet, may have to be "
                "repeated",
                host=host.name, level="warning",
            )  # fmt: skip
