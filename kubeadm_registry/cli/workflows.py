"""``init | preflight | verify | reset``: run a workflow on all nodes of a cluster file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
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
    skip_option,
)
from kubeadm_registry.cli.phases import phase_table
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import cluster_file
from kubeadm_registry.engine.phase import Workflow, require_checks, select
from kubeadm_registry.engine.report import Action, Reporter
from kubeadm_registry.engine.workflow import preflight, run
from kubeadm_registry.phases.runbook import RUNBOOK
from kubeadm_registry.phases.workflows import INIT, PREFLIGHT_ONLY, RESET, VERIFY_ONLY
from kubeadm_registry.printable import Level, counted


def run_on_nodes(
    context: Context, workflow: Workflow, path: Path | None, bundle: Path | None = None, *, key: Path | None = None,
    dry_run: bool = False,
    only: tuple[str, ...] = (), skip: tuple[str, ...] = (), ignore: tuple[str, ...] = (), need_programs: bool = True,
    may_miss: bool = False,
) -> None:  # fmt: skip
    """Run *workflow* on all nodes of the cluster file *path*, and report what came of it.

    *need_programs*: those of *bundle*, of the one that lies here, or of the nodes; else no bundle is looked at.
    """
    cluster_file, reporter = config.load(path), context.reporter()
    if need_programs:
        opened = terminal.cluster(cluster_file, reporter, bundle=bundle, key=key, may_miss=may_miss)
    else:
        opened = session.cluster(cluster_file, terminal.prompts(), reporter.note, may_miss=may_miss)
    carry_out(
        context, workflow, opened, dry_run=dry_run, only=only, skip=skip, ignore=ignore, need_programs=need_programs
    )


def carry_out(
    context: Context, workflow: Workflow, opened: AbstractContextManager[Cluster], *, dry_run: bool = False,
    only: tuple[str, ...] = (), skip: tuple[str, ...] = (), ignore: tuple[str, ...] = (), need_programs: bool = True,
    by: Callable[..., list[Action]] | None = None,
) -> None:  # fmt: skip
    """Run *workflow* on the cluster that *opened* gives, and report what came of it. *by*: what calls the engine."""
    reporter = context.reporter()
    # What the command line says is judged before any server is contacted.
    select(workflow, only, skip)
    require_checks(workflow, ignore)
    with opened as cluster:
        for name, why in cluster.absent.items():
            reporter.note(
                f"{why}; continuing without it. The registry cannot lose another node until it is back",
                host=name,
                level="warning",
            )
        if need_programs:
            require_programs(cluster)
        if RUNBOOK in workflow and not only:
            tell_settings(cluster, reporter, level="info" if workflow == INIT else "warning")
        actions = (by or run)(workflow, cluster, reporter, only=only, skip=skip, ignore=ignore, dry_run=dry_run)
    phases = list(dict.fromkeys(action.phase for action in actions))
    for name in cluster.absent:
        what = f"{', '.join(phases)} and anything else" if phases else "anything"
        reporter.note(
            f"pending: {what} changed since this node was last reachable; run init again when it is back",
            host=name,
            level="warning",
        )
    owed = {name: {"reason": why, "phases": phases} for name, why in cluster.absent.items()}
    reporter.result(summary(actions, dry_run=dry_run), changed=len(actions), dryRun=dry_run, owed=owed)
    if cluster.absent:
        sys.exit(EXIT_DEGRADED)


def tell_settings(cluster: Cluster, reporter: Reporter, *, level: Level) -> None:
    """Say which settings this run changes: with *level* warning where that is not what it is for."""
    if changed := cluster_file.changes(cluster):
        text = f"the cluster file differs from the one applied last in {', '.join(changed)}"
        reporter.note(f"{text}; each node has that one as {cluster_file.PATH}", level=level)


def summary(actions: list[Action], *, dry_run: bool) -> str:
    """What the last line says of a run that changed *actions*."""
    if not actions:
        return "nothing to do"
    hosts = len({action.host for action in actions})
    return f"{'would make ' * dry_run}{counted(len(actions), 'change')} on {counted(hosts, 'node')}"


def require_programs(cluster: Cluster) -> None:
    """Check that the bundle or the nodes have every program that the file needs. Raises Error (ProgramMissing)."""
    for name in session.wanted(cluster.config):
        if name not in session.OPTIONAL:
            cluster.program(name)


def init_options(function: Callable[..., None]) -> Callable[..., None]:
    """The options of ``init``, which also stand after the name of one phase."""
    options = (file_option, bundle_option, key_option, dry_run_option, diff_option, ignore_option, skip_option)
    for option in reversed(options):
        function = option(function)
    return function


@command(
    "init",
    short_help="Install or update the registry",
    help_after=phase_table(INIT),
    cls=click.Group,
    invoke_without_command=True,
)
@init_options
def init(
    context: Context, path: Path | None, bundle: Path | None, key: Path | None, dry_run: bool, ignore: str, skip: str
) -> None:
    """Install the registry on the nodes in the cluster file, or reconcile it with the file.

    init is idempotent. It changes only what differs, resumes an interrupted run, and otherwise reports
    "nothing to do".

    If a node of an existing registry is unreachable, init updates the other nodes and exits with code 5. Run it again
    when the node is back. More than half of the nodes must be reachable.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    run_on_nodes(
        context, INIT, path, bundle, key=key, dry_run=dry_run, skip=names(skip), ignore=names(ignore), may_miss=True
    )


@command("phase", short_help="Run a single init phase", parent=cast(click.Group, init), help_after=phase_table(INIT))
@click.argument("phase", metavar="NAME[/SUB]")
@init_options
def init_phase(
    context: Context, phase: str, path: Path | None, bundle: Path | None, key: Path | None, dry_run: bool,
    ignore: str, skip: str,
) -> None:  # fmt: skip
    """Run a single phase of init, including its subphases."""
    run_on_nodes(
        context, INIT, path, bundle, key=key,
        dry_run=dry_run, only=(phase,), skip=names(skip), ignore=names(ignore), may_miss=True,
    )  # fmt: skip


@command("preflight", short_help="Check the nodes and stage the programs")
@file_option
@bundle_option
@key_option
@ignore_option
@click.option("--checks-only", is_flag=True, help="Change nothing on the nodes: run the checks and upload no programs.")
def preflight_command(
    context: Context, path: Path | None, bundle: Path | None, key: Path | None, ignore: str, checks_only: bool
) -> None:
    """Run the pre-flight checks on every node, then stage the programs in /opt/kubeadm-registry and start each once.

    Exits with code 3 if a check fails; nothing is uploaded then.
    """
    reporter = context.reporter()
    cluster_file = config.load(path)
    require_checks(INIT, names(ignore))
    with terminal.cluster(cluster_file, reporter, bundle=bundle, key=key) as cluster:
        if not checks_only:
            require_programs(cluster)
        problems = preflight(select(INIT), cluster, reporter, ignore=names(ignore))
        if not checks_only:
            run(PREFLIGHT_ONLY, cluster, reporter)
        count = len(cluster.hosts)
    suffix = f" ({counted(len(problems), 'warning')})" if problems else ""
    if checks_only:
        done = f"{'no check failed' if problems else 'all checks passed'} on {counted(count, 'node')}"
    else:
        ready = f"all {count} nodes are" if count > 1 else "the node is"
        done = f"{ready} ready for init"
    reporter.result(f"{done}{suffix}", problems=len(problems))


@command("verify", short_help="Push a test image, pull it from every node")
@file_option
def verify(context: Context, path: Path | None) -> None:
    """Push a test image and pull it by digest through every node and the virtual IP."""
    run_on_nodes(context, VERIFY_ONLY, path, need_programs=False)


@command("reset", short_help="Uninstall the registry, restore containerd", help_after=phase_table(RESET))
@file_option
@click.option("--purge-data", is_flag=True, help="Also delete all images and secrets. Cannot be undone.")
@click.option("--yes", is_flag=True, help="Do not prompt for confirmation.")
@dry_run_option
@diff_option
@ignore_option
def reset(context: Context, path: Path | None, purge_data: bool, yes: bool, dry_run: bool, ignore: str) -> None:
    """Remove everything that kubeadm-registry installed on the nodes and restore containerd's original configuration.

    Image data stays in spec.dataDirectory, where a later init finds it again, unless --purge-data is given. On a
    terminal it asks first; in a script it does not.
    """
    cluster_file = config.load(path)
    if not (yes or dry_run or not sys.stdin.isatty()):
        where = ", ".join(node.name for node in cluster_file.spec.nodes)
        what = "the registry AND ALL ITS IMAGES" if purge_data else "the registry (keeping its images)"
        click.confirm(f"Remove {what} from {where}?", abort=True, err=True)
    skip = () if purge_data else ("data",)
    run_on_nodes(context, RESET, path, dry_run=dry_run, skip=skip, ignore=names(ignore), need_programs=False)
