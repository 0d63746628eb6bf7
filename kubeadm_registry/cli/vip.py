"""``vip move``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kubeadm_registry import config
from kubeadm_registry.access import session
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import (
    EXIT_DEGRADED,
    Context,
    command,
    diff_option,
    dry_run_option,
    file_option,
)
from kubeadm_registry.cluster import require_members
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.phases import moves, vip_move
from kubeadm_registry.printable import counted
from kubeadm_registry.transport.ssh import UNREACHABLE

#: As many clients are named in JSON, of those that the old holder still serves.
_NAMED = 20


@click.group("vip", short_help="Move the virtual IP to another node")
def group() -> None:
    """Move the virtual IP to another node, for planned work on its holder."""


@command("move", parent=group, short_help="Move the virtual IP without cutting off a client")
@click.argument("node", required=False)
@file_option
@click.option("--degraded", is_flag=True, help="Move it even if no node may be lost.")
@click.option(
    "--wait", type=click.IntRange(0, 1800), default=60, show_default=True, metavar="SECONDS",
    help="How long to wait for the last connection to the old holder.",
)  # fmt: skip
@dry_run_option
@diff_option
def move(
    context: Context, node: str | None, path: Path | None, degraded: bool, wait: int, dry_run: bool
) -> None:  # fmt: skip
    """Move the virtual IP to NODE, or to the first other healthy node, without cutting off a client.

    Use it before you stop or unplug a node. New connections reach the new holder. The old one keeps serving its
    existing connections for up to 30 minutes. With zot the single active writer moves as well: new pushes wait until
    it has moved. The virtual IP then stays there.

    \b
    Exit codes:
      0  moved, or it was there; the old holder has no client connections left
      1  not moved: the node is not healthy, or no node may be lost now
      4  a node is unreachable
      5  moved; the old holder still serves connections
    """
    reporter = context.reporter()
    cluster_file = config.load(path)
    vip_move.require_name([one.name for one in cluster_file.spec.nodes], node)
    with session.cluster(cluster_file, terminal.prompts(), reporter.note, may_miss=True) as cluster:
        session.installed_secrets(cluster.vault)
        # One that is not asked may win the address, and passes nobody's connections on.
        require_members(cluster)
        for name, why in cluster.absent.items() if not degraded else ():
            raise ConnectionFailed(
                f"{why}; no other node may be lost now", host=name, code=UNREACHABLE,
                hint="try again when it is back, or pass --degraded to move the virtual IP anyway",
            )  # fmt: skip
        planned = vip_move.plan(cluster, node, degraded=degraded, note=reporter.note)
        done = moves.move(planned, reporter, dry_run=dry_run, wait=wait)
    facts = {
        "changed": done.changed, "dryRun": dry_run, "from": planned.old, "to": planned.target,
        "gapSeconds": None if done.gap is None else round(done.gap, 3),
        "writesClosedSeconds": round(done.writes_closed, 1), "connectionsLeft": len(done.left),
        "clientsLeft": list(done.left[:_NAMED]),
    }  # fmt: skip
    reporter.result(_told(planned, done, dry_run=dry_run), **facts)
    if done.left:
        sys.exit(EXIT_DEGRADED)


def _told(planned: vip_move.Move, done: moves.Moved, *, dry_run: bool) -> str:
    """What came of it, in a sentence."""
    old, target = planned.old, planned.target
    if not planned.needed:
        return f"nothing to do: {target} holds the virtual IP"
    if dry_run:
        return f"would move the virtual IP from {old} to {target}"
    gap = "" if done.gap is None else f", without an answer for {done.gap:.2f} s"
    named = f"{', '.join(done.left[:3])}{', ...' if len(done.left) > 3 else ''}"
    left = (
        f"{old} still serves {counted(len(done.left), 'connection')} ({named}), for 30 minutes at most"
        if done.left else f"{old} has no client connections left"
    )  # fmt: skip
    return f"moved the virtual IP from {old} to {target}{gap}; {left}"
