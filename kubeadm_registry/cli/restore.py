"""``restore``: a registry that was lost, from a backup and bundles."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from kubeadm_registry import config
from kubeadm_registry.access import loading, session
from kubeadm_registry.access.loading import Given
from kubeadm_registry.access.reach import to_vip
from kubeadm_registry.access.retention_records import record_writer
from kubeadm_registry.backup import Contents, restoring
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.backup import ca_option, checked, identity_option, key_for, passphrase_option
from kubeadm_registry.cli.command import (
    EXIT_DEGRADED,
    Context,
    command,
    diff_option,
    dry_run_option,
    ignore_option,
    key_option,
    names,
)
from kubeadm_registry.cli.seed import journal_of
from kubeadm_registry.cli.workflows import require_programs
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.config import DEFAULT_FILE, RegistryCluster
from kubeadm_registry.engine.phase import require_checks
from kubeadm_registry.engine.report import Reporter
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error
from kubeadm_registry.images.seed import Item
from kubeadm_registry.phases.workflows import RESTORE
from kubeadm_registry.printable import counted


@command("restore", short_help="Rebuild a lost registry from a backup")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-f", "--file", "path", type=click.Path(path_type=Path),
    help="Cluster file; its nodes and addresses override those in the backup.  [default: ./cluster.yaml if it exists, "
    "else that in the backup]",
)  # fmt: skip
@click.option(
    "--bundle", "bundles", type=click.Path(path_type=Path), multiple=True,
    help="Bundle with the programs, or with images to load. May be repeated.  [default: ./kubeadm-registry-bundle.tar]",
)  # fmt: skip
@key_option
@identity_option
@passphrase_option
@ca_option
@click.option("--backup-key", type=click.Path(path_type=Path), metavar="FILE", help="Require a signature of "
              "the backup by this SSH key: a public key or an allowed-signers file.")  # fmt: skip
@dry_run_option
@diff_option
@ignore_option
def restore(
    context: Context, file: Path, path: Path | None, bundles: tuple[Path, ...], key: Path | None,
    identities: tuple[Path, ...], passphrase_file: Path | None, ca: Path | None, backup_key: Path | None,
    dry_run: bool, ignore: str,
) -> None:  # fmt: skip
    """Rebuild a lost registry on bare nodes from the backup FILE and bundles.

    The nodes get the secrets in the backup, `init` runs with the bundle, and the images of all bundles are loaded. CA,
    credentials and virtual IP stay the same, so clients need no change. Nodes with secrets or data of another
    registry are refused. Names and addresses of nodes may differ from before.

    An interrupted run is completed by the next one.

    \b
    Exit codes:
      0  every image in the backup's list is in the registry again
      1  failed
      5  the registry runs, but the listed images could not be restored
    """
    reporter = context.reporter()
    require_checks(RESTORE, names(ignore))
    backup = checked(file, ca, backup_key, context)
    contents = backup.opened(key_for(backup, passphrase_file, identities))
    cluster_file = _cluster_file(path, contents, file)
    restoring.require_same(cluster_file, contents, str(file))
    signed_by = terminal.bundle_key(key)
    given = loading.given(bundles or (terminal.DEFAULT_BUNDLE,), signed_by, reporter.note)
    unavailable = restoring.unavailable(contents.images or (), [item for one in given for item in one.items])
    if contents.images is None:
        reporter.note("the backup has no list of images: it was made with --no-images", level="warning")
    for text in restoring.differences(cluster_file, contents):
        reporter.note(text, level="warning")
    with _cluster(cluster_file, contents, loading.with_programs(cluster_file, given), signed_by, reporter) as cluster:
        require_programs(cluster)
        changed = len(run(RESTORE, cluster, reporter, ignore=names(ignore), dry_run=dry_run))
        missing, pinned = unavailable, True
        if not dry_run:
            missing = _load(cluster, given, signed_by, contents, unavailable, reporter)
            pinned = _pin(cluster, contents, reporter)
    for one in missing:
        reporter.note(f"{one.name}: {one.why}", level="warning")
    total = len(contents.images or ())
    back = f"{total - len(missing)} of {counted(total, 'image')} in the backup"
    reporter.result(
        f"would make {counted(changed, 'change')} and restore {back}" if dry_run else f"restored {back}",
        changed=changed, dryRun=dry_run, images=total,
        missing=[{"name": one.name, "reason": one.why} for one in missing],
    )  # fmt: skip
    if missing or not pinned:
        sys.exit(EXIT_DEGRADED)


def _cluster_file(path: Path | None, contents: Contents, file: Path) -> RegistryCluster:
    if path is None and not DEFAULT_FILE.exists():
        return config.parse(contents.cluster_file, f"cluster.yaml in {file}")
    return config.load(path)


@contextmanager
def _cluster(
    cluster_file: RegistryCluster, contents: Contents, bundle: Path | None, key: Path | None, reporter: Reporter
) -> Iterator[Cluster]:
    """The nodes, for which secrets and members in the backup count as well. Raises Error (SecretsConflict)."""
    secrets = restoring.secrets_for(cluster_file, contents)
    opened = session.cluster(cluster_file, terminal.prompts(), reporter.note, bundle=bundle, key=key, backup=secrets)
    try:
        with opened as cluster:
            yield replace(cluster, recorded=restoring.members_for(cluster, contents, int(time.time()) // 60))
    except Error as error:
        if error.code == "SecretsConflict":
            error.hint = (
                "name bare nodes, or the nodes of this very registry; where a registry lives on, run "
                "`init`, which needs no backup"
            )
        raise


def _load(
    cluster: Cluster, given: Sequence[Given], key: Path | None, contents: Contents,
    unavailable: Sequence[restoring.Missing], reporter: Reporter,
) -> list[restoring.Missing]:  # fmt: skip
    """Load the images of all bundles; what is not in the registry then. Raises Error (RestoreIncomplete)."""
    connect, direct = to_vip(cluster)
    load = partial(
        loading.load_given, cluster, key=key, journal=journal_of(cluster.secrets),
        note=reporter.note, direct=direct, progress=reporter.progress, again="restore",
    )  # fmt: skip
    load(given)
    images, reasons = contents.images or (), {one.image: one.why for one in unavailable}
    lacking = restoring.missing(connect, images, reasons)
    # Where several bundles have a tag the last one has won, and the backup may have the image of another one.
    wanted = {(one.image.repository, one.image.tag, one.image.digest) for one in lacking}
    again = [replace(one, items=tuple(item for item in one.items if _key(item) in wanted)) for one in given]
    if not any(one.items for one in again):
        return lacking
    load(again, record=False)
    return restoring.missing(connect, images, reasons)


def _key(item: Item) -> tuple[str, str, str]:
    return item.repository, item.reference, item.root.digest


def _pin(cluster: Cluster, contents: Contents, reporter: Reporter) -> bool:
    """Pin the images again that were pinned. False: that cannot be done now, and why is told."""
    if not contents.pins:
        return True
    try:
        with record_writer(cluster)() as registry:
            restoring.pin(registry, cluster.secrets.retention_key, contents.pins)
    except Error as error:
        reporter.note(
            f"the {counted(len(contents.pins), 'pin')} of retention could not be restored: {error.message}; run "
            "restore again",
            level="warning",
        )
        return False
    return True
