"""``retention approve | reject | run | undo | trash | history | pause | resume``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from kubeadm_registry.access import executor
from kubeadm_registry.access.retention_records import record_writer
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import Context, command, dry_delete_option, file_option
from kubeadm_registry.cli.retention import Asked, group, look_options, show
from kubeadm_registry.cli.retention_records import opened
from kubeadm_registry.cli.tables import ago, columns, moment, show_rows
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.report import Reporter, echo
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.images.names import Place, place_in
from kubeadm_registry.images.pool import Connect
from kubeadm_registry.printable import counted
from kubeadm_registry.registry import retry
from kubeadm_registry.retention import Plan
from kubeadm_registry.retention.order import Order, undo
from kubeadm_registry.retention.trash import Trashed
from kubeadm_registry.upkeep import running, store
from kubeadm_registry.upkeep.store import PATIENCE

#: Seconds that a run is waited for; it goes on after that.
LONGEST = 6 * 3600.0


# ---- plans -------------------------------------------------------------------------------------------------------


@command("approve", parent=group, short_help="Approve a plan, so that it may run")
@file_option
@click.option("--yes", is_flag=True, help="Do not prompt for confirmation.")
@click.argument("digest")
def approve(context: Context, path: Path | None, yes: bool, digest: str) -> None:
    """Approve the plan DIGEST, as `retention plan` printed it, or the operator's; twelve digits of it are enough.

    An approval is for exactly these deletions. When it runs, the plan is made again, and only what is in both
    is deleted.
    """
    reporter = context.reporter()
    with opened(path, reporter) as at:
        plan = running.find(at.registry, at.key, digest)
        if not yes and sys.stdin.isatty():
            show(plan, most=20, err=True)
            click.confirm(f"Approve the deletion of {_images(plan)}?", abort=True, err=True)
        at.alone()
        running.approve(at.registry, at.key, plan, at.now)
    reporter.result(f"approved plan {plan.digest[:19]}: {_images(plan)}; `retention run` carries it out")


@command("reject", parent=group, short_help="Withdraw the approval of a plan")
@file_option
@click.argument("digest")
def reject(context: Context, path: Path | None, digest: str) -> None:
    """Withdraw the approval of the plan DIGEST; it will not run."""
    reporter = context.reporter()
    with opened(path, reporter) as at:
        standing = at.standing()
        found = [one for one in standing.approved if running.named(one, digest)]
        if len(found) != 1:
            known = ", ".join(one[:19] for one in standing.approved)
            raise ConfigError(
                f"no plan {digest} is approved", hint=f"approved are {known}" if known else "no plan is approved",
                code="PlanUnknown",
            )  # fmt: skip
        at.restate(lambda one: one.without_approval(found[0]))
    reporter.result(f"plan {found[0][:19]} is no longer approved")


def _images(plan: Plan) -> str:
    return counted(len({(one.repository, one.digest) for one in plan.deletions}), "image")


@command("run", parent=group, short_help="Carry out the policy: trash, restore, delete")
@file_option
@look_options
@dry_delete_option
def run(context: Context, path: Path | None, dry_run: bool, **options: Any) -> None:
    """Make the plan again and carry it out: move images to the trash, and delete them permanently after the window.

    An image in the trash that is in use again is restored. `images collect` frees the space of deleted images. A
    plan that needs an approval (spec.approval, or one that is unusually large) deletes only what an approved plan
    deletes as well. A run deletes for ten minutes; if that is too short, another plan is made and carried out.
    """
    reporter = context.reporter()
    asked = Asked.of(**options)
    with terminal.registry(path, reporter) as (cluster, connect, _):
        while _run(cluster, connect, asked, context, dry_run=dry_run):
            asked = Asked.of(**options)  # what the files say by now


def _run(cluster: Cluster, connect: Connect, asked: Asked, context: Context, *, dry_run: bool) -> int:
    """Make the plan and carry it out; how many images are left because there was no time for them. Raises Error."""
    reporter = context.reporter()
    look, plan = asked.plan(cluster, connect, reporter)
    with record_writer(cluster)() as registry:
        prepared = running.prepare(registry, cluster.secrets.retention_key, look, plan, asked.rules)
    if prepared.waits:
        reporter.note(
            f"plan {plan.digest[:19]} deletes {_images(plan)} and is not approved, so it is not carried out; "
            "`retention plan` shows it, `retention approve` approves it",
            level="warning",
        )
    if not prepared.order or dry_run:
        _tell(prepared.order, context)
        return 0
    return _hand_over(cluster, prepared.order, reporter)


def _hand_over(cluster: Cluster, order: Order, reporter: Reporter) -> int:
    """Have *order* carried out at the node that holds the lease, and tell what came of it; how many images are left.

    Raises Error.
    """
    outcome = executor.run(executor.on_hosts(cluster), order.to_json(), deadline=LONGEST, progress=reporter.note)
    run = outcome.run()
    if run.purged:
        reporter.note("`images collect` frees the space of permanently deleted images")
    if run.left:
        reporter.note(f"{run.summary()}; making another plan")
    else:
        reporter.result(run.summary())
    return run.left


def _tell(order: Order, context: Context) -> None:
    """Say what *order* would do."""
    if not order:
        context.reporter().result("nothing to do")
        return
    if context.output == "json":
        echo(json.dumps(json.loads(order.to_json())))
        return
    for verb, images in (
        ("delete", order.delete), ("restore", [one.image for one in order.restore]),
        ("delete permanently", order.purge),
    ):  # fmt: skip
        for one in images:
            echo(f"would {verb} {one}")
    context.reporter().result("dry run: nothing was changed")


# ---- the trash ---------------------------------------------------------------------------------------------------


@command("trash", parent=group, short_help="List deleted images that can be restored")
@file_option
def trash(context: Context, path: Path | None) -> None:
    """List the images in the trash: what each was called, why it was deleted, and since when it is there."""
    with opened(path, context.reporter()) as at:
        found, now = at.trash(), at.now
    if context.output == "json":
        echo(json.dumps({"images": [one.to_dict() for one in found]}))
        return
    table = columns("IMAGE", "DIGEST", "DELETED", "SIZE", "WHY")
    for one in found:
        tags = ", ".join(sorted(one.tags)) or "(no tag)"
        table.add_row(
            f"{one.repository}:{tags}", one.digest[7:19], ago(now - one.deleted), f"{one.size / 1e6:.1f} MB", one.why
        )
    show_rows(table, found, "the trash is empty", context)


@command("undo", parent=group, short_help="Restore images from the trash")
@file_option
@click.option("--plan", metavar="DIGEST", help="Restore everything that this plan deleted.")
@click.option("--all", "everything", is_flag=True, help="Restore everything in the trash.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def undo_command(
    context: Context, path: Path | None, plan: str | None, everything: bool, names: tuple[str, ...]
) -> None:
    """Restore images from the trash: those called NAME (repository, with a tag or digest), of a plan, or all.

    Each image gets its tags back, except for tags that have been given to another image since.
    """
    if sum((bool(names), plan is not None, everything)) != 1:
        raise ConfigError("pass either names, --plan or --all", code="UsageInvalid")
    reporter = context.reporter()
    with opened(path, reporter) as at:
        found = _chosen(at.trash(), [place_in(at.cluster.spec, name) for name in names], plan)
        if not found:
            raise ConfigError(
                "nothing in the trash matches", code="TrashUnknown", hint="list it with `retention trash`"
            )
        _hand_over(at.cluster, undo(found, at.now, "asked for by `retention undo`"), reporter)


def _chosen(images: Sequence[Trashed], places: Sequence[Place], plan: str | None) -> list[Trashed]:
    """Those of *images* that are at *places*, or that *plan* deleted; all without either. Raises ConfigError."""
    if plan is not None:
        return [one for one in images if running.named(one.plan, plan)]
    found: list[Trashed] = []
    for where in places:
        matching = [
            one for one in images
            if one.repository == where.repository and where.reference in ("", one.digest, *one.tags)
        ]  # fmt: skip
        if not matching:
            raise ConfigError(
                f"{where} is not in the trash", code="TrashUnknown", hint="list it with `retention trash`"
            )  # fmt: skip
        found += matching
    return list({one.key: one for one in found}.values()) if places else list(images)


@command("history", parent=group, short_help="Show what retention has done")
@file_option
def history(context: Context, path: Path | None) -> None:
    """Show what retention has done: one line for each run, the newest last."""
    with opened(path, context.reporter()) as at:
        runs = retry(lambda: store.read_history(at.registry, at.key), PATIENCE).runs
    if context.output == "json":
        echo(json.dumps({"runs": [one.to_dict() for one in runs]}))
        return
    table = columns("TIME", "NODE", "DELETED", "RESTORED", "PURGED", "OUTCOME")
    for one in runs:
        table.add_row(
            moment(one.began), one.node, str(one.deleted), str(one.restored), str(one.purged),
            one.error or (f"{one.skipped} skipped" if one.skipped else "done"),
        )  # fmt: skip
    show_rows(table, runs, "retention has not run yet", context)


# ---- what people say ---------------------------------------------------------------------------------------------


@command("pause", parent=group, short_help="Delete nothing until retention is resumed")
@file_option
@click.option("--reason", required=True, help="Why; shown to everyone who runs retention.")
def pause(context: Context, path: Path | None, reason: str) -> None:
    """Delete nothing, neither to the trash nor from it, until `retention resume`. Images can still be restored."""
    with opened(path, context.reporter()) as at:
        at.restate(lambda one: replace(one, paused=at.now, why=reason))
    context.reporter().result("retention is paused")


@command("resume", parent=group, short_help="Resume retention after a pause")
@file_option
def resume(context: Context, path: Path | None) -> None:
    """Resume retention after a pause."""
    with opened(path, context.reporter()) as at:
        at.restate(lambda one: replace(one, paused=None, why=""))
    context.reporter().result("retention is not paused")
