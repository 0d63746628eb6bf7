"""``certs check | renew``: the certificates of the nodes and the CA, as they are, and new ones."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from kubeadm_registry import config, rotation
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
from kubeadm_registry.cli.others import (
    Others,
    clients,
    kubeconfig_option,
    no_clients_option,
    nodes_option,
    operator_of,
    refuse_unlisted,
)
from kubeadm_registry.cli.phases import phase_table
from kubeadm_registry.cli.tables import columns, wide_screen
from kubeadm_registry.cli.workflows import summary
from kubeadm_registry.components import certificates
from kubeadm_registry.config.client_list import ClientNode
from kubeadm_registry.engine.report import echo
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.phases.certificates import renew as renew_leaves
from kubeadm_registry.phases.certificates import replace_authority
from kubeadm_registry.phases.workflows import CERTS_RENEW
from kubeadm_registry.printable import counted

EXIT_REJECTED = 1
_WORDS = {"ca": "CA", "file": "node", "haproxy": "served by HAProxy", "agent": "served by the agent"}


@click.group("certs", short_help="Check or renew the certificates and the CA")
def group() -> None:
    """Check or renew the certificates of the nodes, or replace the cluster CA."""


@command("check", parent=group, short_help="Show every certificate with the days left")
@file_option
def check(context: Context, path: Path | None) -> None:
    """Show every certificate on every node with the days left: the CA, the node's on disk, and those that HAProxy and
    the agent present.

    \b
    Exit codes:
      0  all are valid and in use
      1  one is rejected by clients or nodes: expired, or of another CA
      4  no node is reachable, or too few
      5  one expires soon or is not in use yet, or a node cannot be queried
    """
    cluster_file = config.load(path)
    with session.cluster(cluster_file, terminal.prompts(), context.reporter().note, may_miss=True) as cluster:
        session.installed_secrets(cluster.vault)
        now = datetime.now(UTC)
        seen = certificates.check(cluster, now)
        absent, stage = dict(cluster.absent), rotation.stage(cluster.secrets)
    if context.output == "json":
        found = [one.to_dict(now) for one in seen]
        echo(json.dumps({"certificates": found, "unreachable": absent, "replacement": stage}))
    else:
        _show(seen, absent, now)
        if stage:
            echo(f"\nthe CA is being replaced (stage {stage}); `kubeadm-registry certs renew --ca` continues")
    problems = [problem for one in seen for problem in one.problems]
    if any(problem.rejected for problem in problems):
        sys.exit(EXIT_REJECTED)
    if problems or absent:
        sys.exit(EXIT_DEGRADED)


def _show(seen: list[certificates.Seen], absent: dict[str, str], now: datetime) -> None:
    table = columns("NODE", "CERTIFICATE", "WHERE", "DAYS", "EXPIRES", "PROBLEM")
    for one in seen:
        ends = "-" if one.certificate is None else f"{one.certificate.not_valid_after_utc:%Y-%m-%d}"
        days = "-" if one.certificate is None else str(one.days(now))
        problems = "; ".join(problem.text for problem in one.problems)
        table.add_row(one.node, _WORDS[one.what], one.where, days, ends, problems)
    for name, why in absent.items():
        table.add_row(name, "-", "-", "-", "-", why)
    wide_screen().print(table)
    wrong = sum(len(one.problems) for one in seen) + len(absent)
    if wrong:
        echo(f"\n{counted(wrong, 'problem')}")


@command(
    "renew",
    parent=group,
    short_help="Renew certificates or replace the CA",
    help_after=phase_table(CERTS_RENEW, head="Phases without --ca"),
)
@file_option
@click.option("--node", "names", metavar="NAME", multiple=True, help="Renew this node's only. May be repeated.")
@click.option("--ca", "authority", is_flag=True, help="Replace the cluster CA, and every certificate.")
@nodes_option
@no_clients_option
@click.option("--trust-only", is_flag=True, help="With --ca: stop when both CAs are trusted on all nodes.")
@kubeconfig_option
@dry_run_option
@diff_option
def renew(
    context: Context, path: Path | None, names: tuple[str, ...], authority: bool, nodes: Path | None,
    no_clients: bool, trust_only: bool, kubeconfig: Path | None, dry_run: bool,
) -> None:  # fmt: skip
    """Issue a new certificate for each node, one node at a time, and load it without closing connections.

    With --ca the CA is replaced: a new one is stored beside the present one, all nodes and the listed client nodes
    trust both, each node gets a certificate of the new one, and the former one is removed. If a listed node does not
    take the new CA, the command stops and names it; the former CA stays trusted. With --trust-only it stops before the
    first certificate of the new CA is served, so that you can pass the output of `kubeadm-registry ca` to all others.

    All registry nodes must be reachable. An interrupted run is resumed by the next one, and renews nothing twice.
    """
    reporter = context.reporter()
    cluster_file = config.load(path)
    _refuse(authority, names, nodes, no_clients=no_clients, trust_only=trust_only)
    known = [node.name for node in cluster_file.spec.nodes]
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no node {name}", hint=f"choose from: {', '.join(known)}", code="NodeUnknown")
    listed: tuple[ClientNode, ...] = ()
    if authority:
        listed = clients(nodes, cluster_file.spec, no_clients=no_clients, what="--ca")
    # With the programs that run: a bundle that lies here is for `upgrade`.
    with session.cluster(cluster_file, terminal.prompts(), reporter.note) as cluster:
        session.installed_secrets(cluster.vault)
        if authority:
            operator = operator_of(cluster, kubeconfig)
            refuse_unlisted(operator, listed, cluster_file.spec)
            others = Others(cluster_file, listed, operator, reporter, what="the CA", dry_run=dry_run)
            actions = replace_authority(cluster, reporter, others, trust_only=trust_only, dry_run=dry_run)
        else:
            actions = renew_leaves(cluster, reporter, names or [host.name for host in cluster.hosts], dry_run=dry_run)
    reporter.result(summary(actions, dry_run=dry_run), changed=len(actions), dryRun=dry_run)


def _refuse(authority: bool, names: tuple[str, ...], nodes: Path | None, *, no_clients: bool, trust_only: bool) -> None:
    """Raise ConfigError for options that do not go together."""
    if authority and names:
        raise ConfigError("--node cannot be combined with --ca: the CA is that of all nodes", code="UsageInvalid")
    if not authority and (nodes is not None or no_clients or trust_only):
        raise ConfigError("--nodes, --no-clients and --trust-only need --ca", code="UsageInvalid")
