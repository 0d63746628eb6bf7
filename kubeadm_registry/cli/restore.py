"""``restore``: a registry that was lost, from a backup and bundles."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from kubeadm_registry import config
from kubeadm_registry.access import session
from kubeadm_registry.access.desk import desk
from kubeadm_registry.access.loading import load
from kubeadm_registry.access.reach import answers, connection
from kubeadm_registry.backup import Contents, restoring
from kubeadm_registry.bundle import Bundle
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
from kubeadm_registry.images import seed as seeding
from kubeadm_registry.phases.workflows import RESTORE
from kubeadm_registry.printable import counted


@dataclass(frozen=True, slots=True)
class Given:
    """A bundle on the command line: its *path*, the *programs* and *items* in it, and its *number* in its line."""

    path: Path
    programs: frozenset[str]
    items: tuple[seeding.Item, ...]
    number: int


@command("restore", short_help="Set up a lost registry from a backup")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-f", "--file", "path", type=click.Path(path_type=Path),
    help="Cluster file; its nodes and addresses count.  [default: ./cluster.yaml if it exists, else that in the "
    "backup]",
)  # fmt: skip
@click.option(
    "--bundle", "bundles", type=click.Path(path_type=Path), multiple=True,
    help="Bundle with the programs, or with images to load. May be repeated.  [default: ./kubeadm-registry-bundle.tar]",
)  # fmt: skip
@key_option
@identity_option
@passphrase_option
@ca_option
@click.option("--backup-key", type=click.Path(path_type=Path), metavar="FILE", help="Require that this SSH key signed "
              "the backup: a public key or an allowed-signers file.")  # fmt: skip
@dry_run_option
@diff_option
@ignore_option
def restore(
    context: Context, file: Path, path: Path | None, bundles: tuple[Path, ...], key: Path | None,
    identities: tuple[Path, ...], passphrase_file: Path | None, ca: Path | None, backup_key: Path | None,
    dry_run: bool, ignore: str,
) -> None:  # fmt: skip
    """Set up a registry of which all nodes were lost on bare nodes, from the backup FILE and bundles.

    The nodes get the secrets in the backup, `init` runs with the bundle, and the images of all bundles are loaded. CA,
    credentials and virtual IP are those of before, so clients need no change. Nodes with secrets or data of another
    registry are refused. Names and addresses of nodes may be others than before.

    An interrupted run is completed by the next one.

    \b
    Exit codes:
      0  every image in the backup's list is in the registry again
      1  failed
      5  the registry runs, and the images that are named could not be restored from these bundles
    """
    reporter = context.reporter()
    require_checks(RESTORE, names(ignore))
    backup = checked(file, ca, backup_key, context)
    contents = backup.opened(key_for(backup, passphrase_file, identities))
    cluster_file = _cluster_file(path, contents, file)
    restoring.require_same(cluster_file, contents, str(file))
    given = _given(bundles, key, reporter)
    unavailable = restoring.unavailable(contents.images or (), [item for one in given for item in one.items])
    if contents.images is None:
        reporter.note("the backup has no list of images: it was made with --no-images", level="warning")
    for text in restoring.differences(cluster_file, contents):
        reporter.note(text, level="warning")
    with _cluster(cluster_file, contents, _with_programs(cluster_file, given), key, reporter) as cluster:
        require_programs(cluster)
        changed = len(run(RESTORE, cluster, reporter, ignore=names(ignore), dry_run=dry_run))
        missing, pinned = unavailable, True
        if not dry_run:
            missing = _load(cluster, given, key, contents, unavailable, reporter)
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


def _given(paths: Sequence[Path], key: Path | None, reporter: Reporter) -> list[Given]:
    """The bundles in *paths*, each series from its first one on. Raises ConfigError, BundleError."""
    found = []
    for path in paths or (terminal.DEFAULT_BUNDLE,):
        with session.open_bundle(path, terminal.bundle_key(key), reporter.note) as bundle:
            found.append(Given(path, frozenset(bundle.programs), seeding.plan(bundle), bundle.layout.lineage.sequence))
    return sorted(found, key=lambda one: one.number)


def _with_programs(cluster_file: RegistryCluster, given: Sequence[Given]) -> Path:
    """The bundle with the programs for the nodes: the one that has the most of them, the tool included."""
    wanted = set(session.wanted(cluster_file))
    return max(given, key=lambda one: len(wanted & one.programs)).path


@contextmanager
def _cluster(
    cluster_file: RegistryCluster, contents: Contents, bundle: Path, key: Path | None, reporter: Reporter
) -> Iterator[Cluster]:
    """The nodes, for which the secrets in the backup count as well. Raises Error (SecretsConflict)."""
    secrets = restoring.secrets_for(cluster_file, contents)
    try:
        with terminal.cluster(cluster_file, reporter, bundle=bundle, key=key, backup=secrets) as cluster:
            yield cluster
    except Error as error:
        if error.code == "SecretsConflict":
            error.hint = (
                "name bare nodes, or the nodes of this very registry; another one leaves with `reset --purge-data`"
            )
        raise


def _load(
    cluster: Cluster, given: Sequence[Given], key: Path | None, contents: Contents,
    unavailable: Sequence[restoring.Missing], reporter: Reporter,
) -> list[restoring.Missing]:  # fmt: skip
    """Load the images of all bundles; what is not in the registry then. Raises Error (RestoreIncomplete)."""
    vip = cluster.spec.vip.address
    direct = answers(vip)
    for one in given:
        if one.items:
            with session.open_bundle(one.path, terminal.bundle_key(key), reporter.note) as bundle:
                _load_one(cluster, bundle, one, direct=direct, reporter=reporter)
    reasons = {one.image: one.why for one in unavailable}
    connect = connection(cluster, cluster.hosts[0], vip, direct=direct)
    return restoring.missing(connect, contents.images or (), reasons)


def _load_one(cluster: Cluster, bundle: Bundle, one: Given, *, direct: bool, reporter: Reporter) -> None:
    try:
        loaded = load(
            cluster, bundle, one.items, journal_of(cluster.secrets), direct=direct, progress=reporter.progress
        )
    except Error as error:
        if error.code != "BundleReplayed":
            raise
        # An earlier run of this command came as far as the next bundle of the series.
        reporter.note(f"{one.path}: not loaded again, since a later bundle of its series was loaded")
        return
    if loaded.flaws:
        lines = [f"{counted(len(loaded.flaws), 'image')} of {one.path} cannot be read:"]
        raise Error(
            "\n".join([*lines, *(f"  {flaw}" for flaw in loaded.flaws)]), code="SeedIncomplete",
            hint="run restore again",
        )  # fmt: skip
    for name, why in loaded.unproven.items():
        reporter.note(f"{why}; storage resynchronizes it automatically when it is back", host=name, level="warning")


def _pin(cluster: Cluster, contents: Contents, reporter: Reporter) -> bool:
    """Pin the images again that were pinned. False: that cannot be done now, and why is told."""
    if not contents.pins:
        return True
    try:
        with desk(cluster)() as registry:
            restoring.pin(registry, cluster.secrets.retention_key, contents.pins)
    except Error as error:
        reporter.note(
            f"the {counted(len(contents.pins), 'pin')} of retention could not be restored: {error.message}; run "
            "restore again",
            level="warning",
        )
        return False
    return True
