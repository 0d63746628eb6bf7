"""``upgrade``: another version of the programs, the agent and the configuration, one node at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import click

from kubeadm_registry import config
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import (
    Context,
    bundle_option,
    command,
    diff_option,
    dry_run_option,
    file_option,
    ignore_option,
    key_option,
    names,
)
from kubeadm_registry.cli.tables import columns, wide_screen
from kubeadm_registry.cli.workflows import require_programs, summary, tell_settings
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.compatibility import is_older
from kubeadm_registry.engine.phase import require_checks
from kubeadm_registry.engine.report import Reporter
from kubeadm_registry.errors import Error, PhaseFailed
from kubeadm_registry.phases import upgrade as phases
from kubeadm_registry.phases import upgrading, workflows
from kubeadm_registry.phases.upgrade_plan import Overview, overview, way_back
from kubeadm_registry.printable import counted

EXIT_REFUSED = 3


@contextmanager
def _cluster(reporter: Reporter, path: Path | None, bundle: Path | None, key: Path | None) -> Iterator[Cluster]:
    """All nodes of an installed registry, with the programs that they get. Raises Error (NotInstalled)."""
    cluster_file = config.load(path)
    with terminal.cluster(cluster_file, reporter, bundle=bundle, key=key) as cluster:
        if not cluster.vault.made:
            raise Error("the nodes have no secrets yet", hint="run init first", code="NotInstalled")
        require_programs(cluster)
        yield cluster


@command("upgrade", short_help="Upgrade the nodes one at a time", cls=click.Group, invoke_without_command=True)
@file_option
@bundle_option
@key_option
@dry_run_option
@diff_option
@ignore_option
def upgrade(
    context: Context, path: Path | None, bundle: Path | None, key: Path | None, dry_run: bool, ignore: str
) -> None:
    """Install the programs of a bundle, and this release's agent and configuration, on one node after another.

    Each node must be healthy again before the next one is changed. A node that is not healthy comes first, the VIP
    holder last: the virtual IP moves at most once (twice if its holder is not healthy), and only if it would move
    anyway. An interrupted run is resumed by the next one. A changed cluster file is rolled out in the same way.

    All nodes must be reachable, and all but one healthy. Versions that cannot run side by side, and another virtual IP
    or frontend, are refused with exit code 3 before anything is changed. --dry-run also shows what `upgrade plan`
    shows. If the earlier release cannot take over again afterwards, a warning says so before the first change.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    reporter = context.reporter()
    require_checks((*workflows.upgrade(()), *workflows.NODE), names(ignore))
    with _cluster(reporter, path, bundle, key) as cluster:
        found = overview(cluster, workflows.NODE) if dry_run else None
        stays = way_back(cluster) if found is None else found.way_back
        if found is None:
            for text in stays:
                reporter.note(f"no downgrade: {text}", level="warning")
        elif context.output == "text":
            _show(found)
        tell_settings(cluster, reporter, level="info")
        hosts = phases.order(cluster)
        moves = {move for step in phases.plan(cluster, hosts).steps for move in step.moves}
        if back := sorted(str(move) for move in moves if is_older(move.after, move.before)):
            text = f"the nodes go back to earlier versions: {', '.join(back)}; to keep the newer ones pass their bundle"
            reporter.note(f"{text} with --bundle", level="warning")
        try:
            actions = upgrading.carry_out(cluster, hosts, reporter, ignore=names(ignore), dry_run=dry_run)
        except PhaseFailed as error:
            phases.add_resumption(error, hosts, may_go_back=not stays)
            raise
    facts = {} if found is None else _facts(found)
    reporter.result(summary(actions, dry_run=dry_run), changed=len(actions), dryRun=dry_run, **facts)


@command("plan", short_help="Show versions, order and restarts", parent=cast(click.Group, upgrade))
@file_option
@bundle_option
@key_option
def plan(context: Context, path: Path | None, bundle: Path | None, key: Path | None) -> None:
    """Show what an upgrade would do, and change nothing.

    Shows installed and wanted versions, the order of the nodes, what restarts, and whether a downgrade is possible
    afterwards. Exits with code 3 if the versions, the cluster file or records of a newer release do not allow an
    upgrade. The checks that `upgrade` runs besides are run by `upgrade --dry-run`.
    """
    reporter = context.reporter()
    with _cluster(reporter, path, bundle, key) as cluster:
        found = overview(cluster, workflows.NODE)
    if context.output == "text":
        _show(found)
    reporter.result(_summary(found), **_facts(found))
    if found.plan.refusals:
        sys.exit(EXIT_REFUSED)


def _summary(found: Overview) -> str:
    if found.plan.refusals:
        return "the upgrade would be refused; nothing would be changed"
    changing = [turn.node for turn in found.turns if turn.verbs]
    return f"{counted(len(changing), 'node')} would be upgraded" if changing else "no service would restart"


def _facts(found: Overview) -> dict[str, Any]:
    return {
        "current": found.current,
        "wanted": found.wanted,
        "refusals": found.plan.refusals,
        "order": [
            {"node": turn.node, "units": dict(turn.verbs), "holdsVip": turn.holds_vip, "movesVip": turn.moves_vip}
            for turn in found.turns
        ],
        "release": found.before,
        "noWayBack": found.way_back,
    }


def _show(found: Overview) -> None:
    """Print the *found* versions, turns and the way back as text."""
    screen = wide_screen()
    nodes = list(found.current)
    table = columns("PROGRAM", *(node.upper() for node in nodes), "WANTED")
    for program, wanted in sorted(found.wanted.items()):
        table.add_row(program, *(found.current[node].get(program, "-") for node in nodes), wanted)
    screen.print(table)
    screen.print()
    for text in found.plan.refusals:
        screen.print(f"refused: {text}")
    if found.plan.refusals:
        return
    for number, turn in enumerate(found.turns, 1):
        units = ", ".join(f"{unit} {verb}s" for unit, verb in turn.verbs) or "no service restarts"
        moved = "; the virtual IP moves to another node before" if turn.moves_vip else ""
        screen.print(f"{number}. {turn.node}{' (VIP holder)' if turn.holds_vip else ''}: {units}{moved}")
    screen.print()
    for text in found.way_back:
        screen.print(f"no downgrade: {text}")
    if not found.way_back:
        screen.print(f"going back to {found.before or 'the earlier release'} is possible: see docs/upgrade.md")
