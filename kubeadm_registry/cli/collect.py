"""``images collect``."""

from __future__ import annotations

from pathlib import Path

import click

from kubeadm_registry.access.collecting import as_root
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import Context, command, dry_delete_option, file_option
from kubeadm_registry.engine.workflow import take_locks
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.images import wanted as wishes
from kubeadm_registry.phases import space
from kubeadm_registry.printable import counted
from kubeadm_registry.transport.ssh import UNREACHABLE

grace_option = click.option(
    "--grace", default="24h", show_default=True, metavar="TIME",
    help="Keep blobs that a push uploaded, mounted or looked for within this time, such as 24h or 30m.",
)  # fmt: skip


@command("collect", short_help="Free the space of deleted images")
@file_option
@grace_option
@dry_delete_option
def collect(context: Context, path: Path | None, grace: str, dry_run: bool) -> None:
    """Free the space of deleted images: the blobs that no manifest needs.

    Pulls continue. Pushes wait: with Distribution until all is deleted and each node has restarted its registry, with
    zot for two seconds at a time. Every node must be reachable, and the storage fully replicated. If the run is killed,
    pushes reopen automatically within minutes; run it again then.
    """
    reporter = context.reporter()
    seconds = wishes.seconds(grace, option="--grace")
    with terminal.registry(path, reporter) as (cluster, connect, _):
        for name, why in cluster.absent.items():
            raise ConnectionFailed(
                f"{why}; every node must refuse pushes meanwhile", host=name, code=UNREACHABLE,
                hint="run it again when all nodes are reachable",
            )  # fmt: skip
        if not dry_run:
            take_locks(cluster.hosts)
        found = space.free(cluster, as_root(cluster, connect), connect, seconds, reporter, dry_run=dry_run)
    would = f"would free at most {found.bytes / 1e6:.1f} MB in {counted(found.blobs, 'blob')}"
    reporter.result(
        would if dry_run else found.summary(),
        dryRun=dry_run, blobs=found.blobs, freed=found.bytes, before=found.before, after=found.after, kept=found.kept,
        closedSeconds=round(found.closed, 1),
    )  # fmt: skip
