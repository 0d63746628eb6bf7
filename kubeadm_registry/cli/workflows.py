"""``init | preflight | verify | reset``: the workflows, on all servers of a cluster file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import click

from kubeadm_registry import config
from kubeadm_registry.access import session
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import (
    EXIT_DEGRADED,
    Context,
    bundle_option,
    command,
    diff_option,
    dry_run_option,
    file_option,
    ignore_option,
    key_option,
    names,
    phase_table,
    skip_option,
)
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.workflow import Workflow, preflight, require_checks, run, select
from kubeadm_registry.phases.workflows import INIT, PREFLIGHT_ONLY, RESET, VERIFY_ONLY


def _run(
    context: Context, workflow: Workflow, path: Path | None, bundle: Path | None, *, key: Path | None = None,
    dry_run: bool = False,
    only: tuple[str, ...] = (), skip: tuple[str, ...] = (), ignore: tuple[str, ...] = (), need_programs: bool = True,
    may_miss: bool = False,
) -> None:  # fmt: skip
    reporter = context.reporter()
    cluster_file = config.load(path)
    # What the command line says is judged before any server is contacted.
    select(workflow, only, skip)
    require_checks(workflow, ignore)
    with terminal.cluster(cluster_file, reporter, bundle=bundle, key=key, may_miss=may_miss) as cluster:
        for name, why in cluster.absent.items():
            reporter.note(f"{why}; going on with the others, which cannot lose another server now", host=name)
        if need_programs:
            require_programs(cluster)
        actions = run(workflow, cluster, reporter, only=only, skip=skip, ignore=ignore, dry_run=dry_run)
    changed = len(actions)
    hosts = len({action.host for action in actions})
    if not changed:
        summary = "nothing to do"
    else:
        verb = "would change" if dry_run else "changed"
        summary = (
            f"{changed} {'thing' if changed == 1 else 'things'} {verb} on {hosts} {'host' if hosts == 1 else 'hosts'}"
        )
    phases = list(dict.fromkeys(action.phase for action in actions))
    for name in cluster.absent:
        what = f"{', '.join(phases)}, and what else" if phases else "what"
        reporter.note(f"owed: {what} changed since it was last reached; run init again when it is back", host=name)
    owed = {name: {"reason": why, "phases": phases} for name, why in cluster.absent.items()}
    reporter.result(summary, changed=changed, dryRun=dry_run, owed=owed)
    if cluster.absent:
        sys.exit(EXIT_DEGRADED)


def require_programs(cluster: Cluster) -> None:
    """Every program that the file needs is in the bundle or on the hosts. Raises Error (ProgramMissing)."""
    for name in session.wanted(cluster.config):
        if name != "python":
            cluster.program(name)


@command("init", help_after=phase_table(INIT), cls=click.Group, invoke_without_command=True)
@file_option
@bundle_option
@key_option
@dry_run_option
@diff_option
@ignore_option
@skip_option
def init(
    context: Context, path: Path | None, bundle: Path | None, key: Path | None, dry_run: bool, ignore: str, skip: str
) -> None:
    """Make the registry on the servers of the cluster file, or bring it to what the file says.

    Run it again at any time: what is right already is left alone, an interrupted run is made up, and a second run
    says "nothing to do".

    When a server of a registry that exists cannot be reached, the others are brought to what the file says, and the
    exit code is 5: run it again when the server is back. More than half of the servers must answer.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    _run(context, INIT, path, bundle, key=key, dry_run=dry_run, skip=names(skip), ignore=names(ignore), may_miss=True)


@command("phase", parent=cast(click.Group, init), help_after=phase_table(INIT))
@click.argument("phase", metavar="NAME[/SUB]")
@file_option
@bundle_option
@key_option
@dry_run_option
@diff_option
@ignore_option
@skip_option
def init_phase(
    context: Context, phase: str, path: Path | None, bundle: Path | None, key: Path | None, dry_run: bool,
    ignore: str, skip: str,
) -> None:  # fmt: skip
    """Run one phase of init, with the phases below it."""
    _run(
        context, INIT, path, bundle, key=key,
        dry_run=dry_run, only=(phase,), skip=names(skip), ignore=names(ignore), may_miss=True,
    )  # fmt: skip


@command("preflight")
@file_option
@bundle_option
@key_option
@ignore_option
def preflight_command(context: Context, path: Path | None, bundle: Path | None, key: Path | None, ignore: str) -> None:
    """Check that nothing stands in the way of init, on every server. Exit code 3 if something does."""
    reporter = context.reporter()
    cluster_file = config.load(path)
    require_checks(INIT, names(ignore))
    with terminal.cluster(cluster_file, reporter, bundle=bundle, key=key) as cluster:
        require_programs(cluster)
        problems = preflight(select(INIT), cluster, reporter, ignore=names(ignore))
        run(PREFLIGHT_ONLY, cluster, reporter)
        count = len(cluster.hosts)
    suffix = f", {len(problems)} problems ignored" if problems else ""
    reporter.result(
        f"{count} {'host is' if count == 1 else 'hosts are'} ready for init{suffix}", problems=len(problems)
    )


@command("verify")
@file_option
def verify(context: Context, path: Path | None) -> None:
    """Prove that the registry works: push a small image, pull it by digest through every server and the VIP."""
    _run(context, VERIFY_ONLY, path, None)


@command("reset", help_after=phase_table(RESET))
@file_option
@click.option("--purge-data", is_flag=True, help="Delete the images and all secrets as well.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
@diff_option
@ignore_option
def reset(context: Context, path: Path | None, purge_data: bool, yes: bool, dry_run: bool, ignore: str) -> None:
    """Take everything of ours off the servers again; containerd's files come back as they were.

    Image data stays in spec.dataDirectory, and a later init finds it again, unless --purge-data is given.
    """
    cluster_file = config.load(path)
    if not (yes or dry_run or not sys.stdin.isatty()):
        where = ", ".join(node.name for node in cluster_file.spec.nodes)
        what = "the registry AND ALL ITS IMAGES" if purge_data else "the registry (its images stay)"
        click.confirm(f"Remove {what} from {where}?", abort=True)
    skip = () if purge_data else ("data",)
    _run(context, RESET, path, None, dry_run=dry_run, skip=skip, ignore=names(ignore), need_programs=False)
