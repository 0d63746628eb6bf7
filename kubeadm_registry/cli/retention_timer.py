"""``retention timer enable | disable | status``: retention once a day, before there is an operator."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kubeadm_registry import config
from kubeadm_registry.access import session
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import Context, command, diff_option, dry_run_option, file_option
from kubeadm_registry.cli.tables import columns, wide_screen
from kubeadm_registry.cli.workflows import run_on_nodes
from kubeadm_registry.components import retention
from kubeadm_registry.config import document
from kubeadm_registry.engine.report import echo
from kubeadm_registry.errors import ConfigError, ConfigProblem
from kubeadm_registry.phases.retention import enable_timer
from kubeadm_registry.phases.workflows import RETENTION_TIMER_DISABLE
from kubeadm_registry.retention import policy
from kubeadm_registry.transport.host import side_by_side


@click.group("timer", short_help="Apply a policy daily, without an operator")
def group() -> None:
    """Apply a policy once a day on the nodes, where there is neither a Kubernetes cluster nor an operator."""


@command("enable", parent=group, short_help="Store a policy and enable the timer")
@file_option
@click.option(
    "--policy", "policy_file", type=click.Path(path_type=Path), required=True, help="Policy file, a RegistryPolicy."
)
@dry_run_option
@diff_option
def enable(context: Context, path: Path | None, policy_file: Path, dry_run: bool) -> None:
    """Store a policy on every node and enable the timer that applies it once a day.

    Only the node that holds the lease applies it. The timer does not read workloads, so it is refused if a kubelet is
    configured on a registry node, and does nothing once one is, or once a cluster or an operator is known to use the
    registry (WorkloadsUnknown). Run the command again to change the policy.

    The timer frees no space, which requires all nodes: schedule `images collect` daily as well, on a machine with SSH
    access to them.
    """
    text = document.text_of(policy_file, "policy file", "--policy")  # once: it may be a pipe
    rules = policy.parse(text, str(policy_file))
    if "kubeadm" in rules.spec.sets:
        raise ConfigError(
            f"{policy_file}: it is not valid for the timer",
            problems=[ConfigProblem("spec.sets", "the timer does not know the images of the set kubeadm")],
            hint="write `sets: [bundle]`, or `sets: []` if no bundle was seeded",
        )
    if rules.spec.approval == "Required":
        why = "each plan waits for `kubeadm-registry retention approve`, since spec.approval is not Automatic"
        context.reporter().note(why, level="warning")
    if rules.asks_for_pulls:
        why = "the timer knows the pulls of its own node only, so pulledWithin keeps everything"
        context.reporter().note(why, level="warning")
    context.reporter().note("the timer frees no space: have `kubeadm-registry images collect` run daily, from here")
    run_on_nodes(context, enable_timer(text.encode()), path, dry_run=dry_run, need_programs=False)


@command("disable", parent=group, short_help="Disable the timer and remove the policy")
@file_option
@dry_run_option
@diff_option
def disable(context: Context, path: Path | None, dry_run: bool) -> None:
    """Disable the timer on every node and remove its policy. A run in progress is completed."""
    run_on_nodes(context, RETENTION_TIMER_DISABLE, path, dry_run=dry_run, need_programs=False)


@command("status", parent=group, short_help="Show the timer of each node")
@file_option
def status(context: Context, path: Path | None) -> None:
    """Show for each node whether the timer is enabled, when it runs next, and how its last run ended."""
    cluster_file = config.load(path)
    with session.cluster(cluster_file, terminal.prompts(), context.reporter().note, may_miss=True) as cluster:
        found = side_by_side(retention.timer_state, cluster.hosts)
        states = {host.name: one for host, one in zip(cluster.hosts, found, strict=True)}
    if context.output == "json":
        nodes = [{"name": name, **one.to_dict()} for name, one in states.items()]
        echo(json.dumps({"nodes": nodes}))
        return
    table = columns("NODE", "TIMER", "POLICY", "NEXT", "LAST", "RESULT")
    for name, one in states.items():
        timer = "enabled" if one.enabled else "disabled"
        table.add_row(name, timer, one.policy[:12] or "-", one.next or "-", one.last or "-", one.result or "-")
    wide_screen().print(table)
