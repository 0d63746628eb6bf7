"""``recover``: half of the nodes or more are lost; from those that are left, and bundles, to a whole registry."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import click

from kubeadm_registry import config
from kubeadm_registry.access import lacking, loading
from kubeadm_registry.access.lacking import Examined
from kubeadm_registry.access.loading import Given
from kubeadm_registry.access.reach import to_vip
from kubeadm_registry.access.recovery import given_up, recovering, require_still_dead
from kubeadm_registry.access.retention_records import record_writer
from kubeadm_registry.bundle.lists import names_in
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import (
    EXIT_DEGRADED,
    Context,
    command,
    diff_option,
    dry_run_option,
    file_option,
    ignore_option,
    key_option,
    names,
)
from kubeadm_registry.cli.phases import phase_table
from kubeadm_registry.cli.retention_records import server_time
from kubeadm_registry.cli.seed import journal_of
from kubeadm_registry.cli.workflows import require_programs, summary, tell_settings
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.phase import require_checks
from kubeadm_registry.engine.report import Reporter
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import ConfigError, Error
from kubeadm_registry.images.names import Place, place_in
from kubeadm_registry.phases.renewal import Renewal
from kubeadm_registry.phases.workflows import INIT, RECOVER, renew_blobs
from kubeadm_registry.printable import counted
from kubeadm_registry.registry import retry
from kubeadm_registry.upkeep import store
from kubeadm_registry.upkeep.signed import REPOSITORY


@command("recover", short_help="Rebuild a registry that lost its majority", help_after=phase_table(RECOVER))
@file_option
@click.option(
    "--bundle", "bundles", type=click.Path(path_type=Path), multiple=True,
    help="Bundle with the programs, or with images to load again. May be repeated.  "
    "[default: ./kubeadm-registry-bundle.tar if it exists]",
)  # fmt: skip
@key_option
@click.option(
    "--images-from", "lists", metavar="FILE", multiple=True, type=click.Path(path_type=Path),
    help="Images that must be present: a list with one name per line, or Kubernetes manifests. May be repeated.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Discard data that only the lost nodes held, without a prompt.")
@dry_run_option
@diff_option
@ignore_option
def recover(
    context: Context, path: Path | None, bundles: tuple[Path, ...], key: Path | None, lists: tuple[Path, ...],
    yes: bool, dry_run: bool, ignore: str,
) -> None:  # fmt: skip
    """Rebuild a registry that lost half or more of its nodes for good, such as two of three.

    List the remaining nodes and bare replacement nodes in the cluster file; replacements may reuse the lost nodes'
    names and addresses. Data that only the lost nodes held is discarded. Every image is then checked: missing parts
    are loaded again from bundles, and what cannot be restored is listed. Retention is paused until `retention resume`.

    Refused while a lost node responds by SSH or on the registry's network. Run it again to complete an interrupted
    run.

    \b
    Exit codes:
      0  every known image is complete
      1  failed
      5  the registry runs, but the listed images could not be restored
    """
    reporter = context.reporter()
    cluster_file = config.load(path)
    require_checks(RECOVER, names(ignore))
    wanted = [place_in(cluster_file.spec, name) for file in lists for name in names_in(file)]
    files = bundles or ((terminal.DEFAULT_BUNDLE,) if terminal.DEFAULT_BUNDLE.exists() else ())
    signed_by = terminal.bundle_key(key) if files else None
    given = loading.given(files, signed_by, reporter.note)
    programs = loading.with_programs(cluster_file, given) if given else None
    prompts = terminal.prompts()
    opened = recovering(cluster_file, prompts, reporter.note, bundle=programs, key=signed_by)
    with opened as cluster:
        require_programs(cluster)
        tell_settings(cluster, reporter, level="warning")
        if _confirm(given_up(cluster), reporter, asks=not (yes or dry_run)):
            require_still_dead(cluster, prompts)
        workflow = INIT if cluster.change is None else RECOVER
        actions = run(workflow, cluster, reporter, ignore=names(ignore), dry_run=dry_run)
        if dry_run:
            reporter.result(summary(actions, dry_run=True), changed=len(actions), dryRun=True)
            return
        examined, back = _examine(cluster, given, signed_by, wanted, reporter)
        _pause_retention(cluster, examined, reporter)
    _tell(examined, back, len(actions), reporter)


def _confirm(words: str, reporter: Reporter, *, asks: bool) -> bool:
    """Tell what is given up. Return whether somebody was asked, and agreed."""
    if not words:
        return False
    reporter.note(words, level="warning")
    if asks and not sys.stdin.isatty():
        raise ConfigError("recover discards data, which cannot be undone", code="ConfirmationNeeded",
                          hint="make sure that the lost nodes are off for good, then pass --yes")  # fmt: skip
    if asks:
        click.confirm("Continue?", abort=True, err=True)
    return asks


def _examine(
    cluster: Cluster, given: Sequence[Given], key: Path | None, wanted: Iterable[Place], reporter: Reporter
) -> tuple[Examined, list[Place]]:
    """Look for all images, and load what is lacking and a bundle has; what is lacking then, and what was loaded.

    What cannot be read is deleted first: the registry takes it for present, and would not take it again. With a list of
    tags go the names of images that no bundle has, which nothing finds any more.
    """
    connect, direct = to_vip(cluster)
    wanted = [*wanted, *(Place(item.repository, item.reference) for one in given for item in one.items)]
    examined = lacking.examine(cluster, connect, wanted)
    bundles = lacking.brought_back(examined, given)
    for one in sorted(examined.nameless, key=str):  # a run that breaks off below names it no more, nor does the next
        reporter.note(f"{one}: {examined.lacking[one]}", level="warning")
    if examined.broken or examined.lacking:
        # A run that broke off after the deletion has left frontends that remember what is gone.
        run(renew_blobs(Renewal(examined.broken)), cluster, reporter)
    if not any(one.items for one in bundles):
        return examined, []
    bundles = lacking.loadable(connect, examined, bundles)
    back = {Place(item.repository, item.reference): item for one in bundles for item in one.items}
    loading.load_given(
        cluster, bundles, key, journal_of(cluster.secrets), reporter.note, direct=direct, progress=reporter.progress,
        again="recover", record=False, anew={item.name for item in back.values()},
    )  # fmt: skip
    after = lacking.examine(cluster, connect, wanted)
    told = {one: why for one, why in examined.lacking.items() if one in after.lacking or one in examined.nameless}
    return replace(after, lacking={**after.lacking, **told}, nameless=examined.nameless), list(back)


def _pause_retention(cluster: Cluster, examined: Examined, reporter: Reporter) -> None:
    """Have nothing deleted until somebody has looked at retention's records: they are as old as what was left.

    Whoever pinned an image last, and a cluster that reported last, may be unknown now; so may that an approval was used
    up, which stands in a record of its own: none holds any more.
    """
    why = "recover: check pins and clusters, then run `kubeadm-registry retention resume`"
    try:
        with record_writer(cluster)() as registry:
            lost = Place(REPOSITORY) in examined.nameless
            if not lost and not retry(lambda: registry.tags(REPOSITORY), store.PATIENCE):
                return  # it has never run
            now = server_time(cluster)
            key = cluster.secrets.retention_key
            store.restate(registry, key, lambda one: replace(one.pause(now, why), approved={}))
    except Error as error:
        reporter.note(f"retention cannot be paused: {error.message}", level="warning")
        return
    reporter.note(
        "retention is paused, because its records may be out of date, and no plan is approved any longer: check "
        "pins, then run `retention resume`"
    )


def _tell(examined: Examined, back: Sequence[Place], changed: int, reporter: Reporter) -> None:
    missing = sorted((str(one), why) for one, why in examined.lacking.items())
    loaded = sorted(str(one) for one in back if one in examined.whole)
    for name in loaded:
        reporter.note(f"{name}: loaded again")
    told = {str(one) for one in examined.nameless}  # before these were deleted
    for name, why in missing:
        if name not in told:
            reporter.note(f"{name}: {why}", level="warning")
    reporter.note(
        "images that no remaining node ever stored are not listed; compare with a `backup` or pass "
        "--images-from, and repeat recent pushes"
    )
    total = examined.count
    reporter.result(
        f"{len(examined.whole)} of {counted(total, 'image')} can be pulled, {len(loaded)} of them loaded again",
        changed=changed, dryRun=False, images=total, loaded=loaded,
        missing=[{"name": name, "reason": why} for name, why in missing],
    )  # fmt: skip
    if missing:
        sys.exit(EXIT_DEGRADED)
