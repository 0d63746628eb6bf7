"""``mirrors apply | remove``: nodes that pull from the registry without being servers of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from kubeadm_registry import config, workers
from kubeadm_registry.access import session
from kubeadm_registry.access.session import Prompts
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import (
    EXIT_DEGRADED,
    Context,
    command,
    diff_option,
    dry_run_option,
    file_option,
    phase_table,
)
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.config import RegistryCluster, worker_list
from kubeadm_registry.config.worker_list import Worker
from kubeadm_registry.engine.report import Reporter
from kubeadm_registry.engine.workflow import Workflow
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.phases.workflows import MIRRORS, MIRRORS_REMOVE
from kubeadm_registry.secrets import Vault
from kubeadm_registry.transport.host import Transport
from kubeadm_registry.workers import Outcome

nodes_option = click.option(
    "--nodes", "nodes", type=click.Path(path_type=Path), required=True, metavar="FILE",
    help="The nodes, one a line: NAME ADDRESS [user=... port=...], or ADDRESS alone; # begins a comment.",
)  # fmt: skip


@click.group("mirrors")
def group() -> None:
    """Point containerd on nodes that are no servers of the registry at it, and take that back."""


@command("apply", parent=group, help_after=phase_table(MIRRORS))
@file_option
@nodes_option
@dry_run_option
@diff_option
def apply(context: Context, path: Path | None, nodes: Path, dry_run: bool) -> None:
    """Let the containerd of each node in a list pull through the virtual IP.

    Nodes are worked on side by side, and reached as spec.ssh and your ssh_config say. One that fails is named with the
    reason, all others are done, and the exit code is 5: run it again when it is mended, which touches only what is not
    right yet. containerd is restarted only where it must be, on a few nodes at a time.
    """
    reporter = context.reporter()
    cluster_file, listed = config.load(path), worker_list.load(nodes)
    worker_list.refuse_registry(listed, cluster_file.spec, str(nodes))
    vault = session.vault(cluster_file, terminal.prompts(), reporter.note)
    session.installed_secrets(vault)
    outcomes = _run(MIRRORS, cluster_file, vault, listed, reporter, dry_run=dry_run)
    _tell("would pull from the registry" if dry_run else "pull from the registry", outcomes, reporter, dry_run=dry_run)


@command("remove", parent=group, help_after=phase_table(MIRRORS_REMOVE))
@file_option
@nodes_option
@dry_run_option
@diff_option
def remove(context: Context, path: Path | None, nodes: Path, dry_run: bool) -> None:
    """Take everything of ours off the nodes of a list; containerd's files come back as they were.

    The servers of the registry need not answer. One that is in the list is refused: that is what reset is for.
    """
    reporter = context.reporter()
    cluster_file, listed = config.load(path), worker_list.load(nodes)
    worker_list.refuse_registry(listed, cluster_file.spec, str(nodes))
    servers = {name for node in cluster_file.spec.nodes for name in (node.name, *node.addresses)}
    if wrong := [worker.name for worker in listed if servers & {worker.name, worker.address}]:
        raise ConfigError(
            f"{', '.join(wrong)} in {nodes}: a server of the registry needs what would be removed", code="NodesInvalid",
            hint="take it out of the list; `kubeadm-registry reset` gives a server its files back",
        )  # fmt: skip
    vault = Vault(cluster_file.metadata.name, [node.name for node in cluster_file.spec.nodes], {})
    outcomes = _run(MIRRORS_REMOVE, cluster_file, vault, listed, reporter, dry_run=dry_run)
    _tell("would be as they were" if dry_run else "are as they were", outcomes, reporter, dry_run=dry_run)


def _run(
    workflow: Workflow,
    cluster_file: RegistryCluster,
    vault: Vault,
    listed: Sequence[Worker],
    reporter: Reporter,
    *,
    dry_run: bool,
) -> list[Outcome]:
    """What came of each worker. Where sudo wants a password, it is asked for, once for all."""
    for phase in workflow:
        reporter.phase(phase.name, f"{phase.summary} on {_nodes(len(listed))}")
    cluster = Cluster(cluster_file, (), vault, {})

    def run(some: Sequence[Worker], reach: Callable[[Worker], Transport]) -> dict[Worker, Outcome]:
        done = workers.run_each(workflow, cluster, some, reach, reporter, dry_run=dry_run)
        return {outcome.worker: outcome for outcome in done}

    def reaching(prompts: Prompts) -> Callable[[Worker], Transport]:
        return partial(session.reach, cluster_file, prompts=prompts)

    prompts = terminal.prompts()
    outcomes = run(listed, reaching(prompts))
    wanting = [worker for worker, outcome in outcomes.items() if outcome.error and outcome.error.code == "SudoNeeded"]
    if wanting and (password := prompts.ask_sudo_password()) is not None:
        outcomes |= run(wanting, reaching(replace(prompts, sudo_password=password)))
    return [outcomes[worker] for worker in listed]


def _tell(what: str, outcomes: Sequence[Outcome], reporter: Reporter, *, dry_run: bool) -> None:
    """Say what is owed to whom, and end with the exit code. Raises the first error when nothing could be done."""
    owed: dict[str, Any] = {}
    first = None
    for outcome in outcomes:
        if (error := outcome.error) is None:
            continue
        first = first or error
        owed[outcome.worker.name] = {"code": error.code, "reason": outcome.reason, "hint": error.hint}
        reporter.note(f"not done: {outcome.reason}{f' ({error.hint})' if error.hint else ''}", host=outcome.worker.name)
    done = len(outcomes) - len(owed)
    if first is not None and not done:
        first.host = first.host or next(iter(owed))
        raise first
    changed = [outcome for outcome in outcomes if outcome.actions]
    verb = "would be changed" if dry_run else "changed"
    summary = f"{done} of {_nodes(len(outcomes))} {what}"
    summary += f", {len(changed)} {verb}" if changed else ", nothing to do"
    if owed:
        summary += "; not done: " + ", ".join(f"{name} ({why['code']})" for name, why in owed.items())
    actions = sum(len(outcome.actions) for outcome in changed)
    reporter.result(summary, nodes=len(outcomes), done=done, changed=actions, dryRun=dry_run, owed=owed)
    if owed:
        sys.exit(EXIT_DEGRADED)


def _nodes(count: int) -> str:
    return f"{count} {'node' if count == 1 else 'nodes'}"
