"""``mirrors apply | remove | print``: client nodes, which pull from the registry and are not part of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from kubeadm_registry import config
from kubeadm_registry.access import client_nodes, session
from kubeadm_registry.access.client_nodes import Outcome
from kubeadm_registry.access.session import Prompts
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import (
    EXIT_DEGRADED,
    Context,
    command,
    diff_option,
    dry_run_option,
    file_option,
)
from kubeadm_registry.cli.phases import phase_table
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.config import RegistryCluster, Spec, client_list
from kubeadm_registry.config.client_list import ClientNode
from kubeadm_registry.containerd import snippets
from kubeadm_registry.engine.phase import Workflow
from kubeadm_registry.engine.report import Reporter, put
from kubeadm_registry.errors import ConnectionFailed, Error
from kubeadm_registry.phases.containerd import settings
from kubeadm_registry.phases.workflows import MIRRORS, MIRRORS_REMOVE
from kubeadm_registry.printable import counted
from kubeadm_registry.secrets import Vault
from kubeadm_registry.transport.host import Transport

NODES_HELP = "List of nodes, one per line: NAME ADDRESS [user=... port=...], or ADDRESS alone; # starts a comment."
nodes_option = click.option(
    "--nodes", "nodes", type=click.Path(path_type=Path), required=True, metavar="FILE", help=NODES_HELP
)


@click.group("mirrors", short_help="Configure containerd mirrors on client nodes")
def group() -> None:
    """Configure containerd on nodes that are not part of the registry to pull from it, or undo that."""


@command("apply", parent=group, short_help="Configure containerd on the listed nodes", help_after=phase_table(MIRRORS))
@file_option
@nodes_option
@dry_run_option
@diff_option
def apply(context: Context, path: Path | None, nodes: Path, dry_run: bool) -> None:
    """Configure containerd on the listed nodes to pull through the virtual IP.

    Nodes are configured in parallel and reached as spec.ssh and your ssh_config specify. If a node fails, its reason is
    printed, all other nodes are completed, and the exit code is 5; fix the cause and run the command again. Nodes that
    are already configured are left alone. containerd is restarted only where required, on a few nodes at a time.
    """
    configure(context, path, client_list.load(nodes), str(nodes), dry_run=dry_run)


def configure(context: Context, path: Path | None, listed: Sequence[ClientNode], where: str, *, dry_run: bool) -> None:
    """Configure containerd on the nodes that are *listed* in *where*, and report what came of it."""
    reporter, cluster_file = context.reporter(), config.load(path)
    client_list.refuse_registry(listed, cluster_file.spec, where)
    with session.reading(cluster_file, terminal.prompts(), reporter.note) as read:
        vault = read()
        session.installed_secrets(vault)
        outcomes = run_on_clients(MIRRORS, cluster_file, vault, listed, reporter, dry_run=dry_run)
        if not dry_run:
            _require_current(read, vault, cluster_file.spec, reporter)
    _tell(
        "{} would pull from the registry" if dry_run else "{} pull from the registry",
        outcomes,
        reporter,
        dry_run=dry_run,
    )


def _require_current(read: Callable[[], Vault], vault: Vault, spec: Spec, reporter: Reporter) -> None:
    """Raise Error (SecretsChanged) if client nodes may have got from *vault* what has been replaced meanwhile.

    They have no lock in common with `certs renew --ca` and `credentials rotate`, which may have been there before.
    """
    what = "another run has replaced the CA or the pull password in the meantime"
    try:
        now = settings(spec, session.installed_secrets(read()))
    except ConnectionFailed as error:
        reporter.note(f"it is not known whether {what}: {error.message}; run the command again", level="warning")
        return
    if now != settings(spec, vault.secrets):
        raise Error(f"{what}, and the nodes got the former one", code="SecretsChanged", hint="run the command again")


@command(
    "remove", parent=group, short_help="Restore containerd on the listed nodes", help_after=phase_table(MIRRORS_REMOVE)
)
@file_option
@nodes_option
@dry_run_option
@diff_option
def remove(context: Context, path: Path | None, nodes: Path, dry_run: bool) -> None:
    """Undo `mirrors apply` on the listed nodes and restore containerd's original configuration.

    The registry need not be reachable. Registry nodes in the list are refused; use reset for them.
    """
    reporter = context.reporter()
    cluster_file, listed = config.load(path), client_list.load(nodes)
    client_list.refuse_registry(listed, cluster_file.spec, str(nodes))
    hint = ", and use `kubeadm-registry reset` for registry nodes"
    client_list.refuse_servers(listed, cluster_file.spec, str(nodes), hint)
    vault = Vault(cluster_file.metadata.name, [node.name for node in cluster_file.spec.nodes], {})
    outcomes = run_on_clients(MIRRORS_REMOVE, cluster_file, vault, listed, reporter, dry_run=dry_run)
    _tell(
        "containerd would be restored on {}" if dry_run else "containerd restored on {}",
        outcomes,
        reporter,
        dry_run=dry_run,
    )


def run_on_clients(
    workflow: Workflow,
    cluster_file: RegistryCluster,
    vault: Vault,
    listed: Sequence[ClientNode],
    reporter: Reporter,
    *,
    dry_run: bool,
) -> list[Outcome]:
    """What came of each client. Where sudo wants a password, it is asked for, once for all."""
    for phase in workflow:
        reporter.phase(phase.name, f"{phase.summary} on {counted(len(listed), 'node')}")
    cluster = Cluster(cluster_file, (), vault, {})

    def run(some: Sequence[ClientNode], reach: Callable[[ClientNode], Transport]) -> dict[ClientNode, Outcome]:
        done = client_nodes.run_each(workflow, cluster, some, reach, reporter, dry_run=dry_run)
        return {outcome.client: outcome for outcome in done}

    def reaching(prompts: Prompts) -> Callable[[ClientNode], Transport]:
        return partial(session.reach, cluster_file, prompts=prompts)

    prompts = terminal.prompts()
    outcomes = run(listed, reaching(prompts))
    wanting = [client for client, outcome in outcomes.items() if outcome.error and outcome.error.code == "SudoNeeded"]
    if wanting and (password := prompts.ask_sudo_password()) is not None:
        outcomes |= run(wanting, reaching(replace(prompts, sudo_password=password)))
    return [outcomes[client] for client in listed]


def _tell(what: str, outcomes: Sequence[Outcome], reporter: Reporter, *, dry_run: bool) -> None:
    """Report how many nodes *what* is true of (``{}`` in it) and which failed, and exit.

    Raises the first error if all nodes failed.
    """
    owed: dict[str, Any] = {}
    first = None
    for outcome in outcomes:
        if (error := outcome.error) is None:
            continue
        first = first or error
        owed[outcome.client.name] = {"code": error.code, "reason": outcome.reason, "hint": error.hint}
        hint = f" ({error.hint})" if error.hint else ""
        reporter.note(f"failed: {outcome.reason}{hint}", host=outcome.client.name, level="warning")
    done = len(outcomes) - len(owed)
    if first is not None and not done:
        first.host = first.host or next(iter(owed))
        raise first
    changed = [outcome for outcome in outcomes if outcome.actions]
    verb = "would be changed" if dry_run else "changed"
    summary = what.format(f"{done} of {counted(len(outcomes), 'node')}")
    summary += f", {len(changed)} {verb}" if changed else ", nothing to do"
    if owed:
        summary += "; failed: " + ", ".join(f"{name} ({why['code']})" for name, why in owed.items())
    actions = sum(len(outcome.actions) for outcome in changed)
    reporter.result(summary, nodes=len(outcomes), done=done, changed=actions, dryRun=dry_run, owed=owed)
    if owed:
        sys.exit(EXIT_DEGRADED)


@command("print", parent=group, short_help="Print the configuration for other runtimes")
@file_option
@click.option(
    "--for",
    "wanted",
    type=click.Choice(tuple(snippets.FORMATS)),
    required=True,
    help="Runtime to print the configuration for.",
)
def print_(context: Context, path: Path | None, wanted: str) -> None:
    """Print the configuration with which k3s, RKE2, Talos or CRI-O pulls from the registry.

    Changes no node. Where pulls require credentials, the output contains them.
    """
    cluster_file = config.load(path)
    spec = cluster_file.spec
    secrets = session.secrets(cluster_file, terminal.prompts(), context.reporter().note)
    password = "" if spec.proxy.anonymous_pull else secrets.pull_password
    text = snippets.FORMATS[wanted](settings(spec, secrets), password)
    put(json.dumps({"text": text}) + "\n" if context.output == "json" else text)
