"""``certs check | renew``: the certificates of the nodes and the CA, as they are, and new ones."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
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
from kubeadm_registry.cli.mirrors import NODES_HELP, run_on_clients
from kubeadm_registry.cli.phases import phase_table
from kubeadm_registry.cli.tables import columns, wide_screen
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import certificates, helper
from kubeadm_registry.config import RegistryCluster, client_list
from kubeadm_registry.config.client_list import ClientNode
from kubeadm_registry.custom_resources import installing
from kubeadm_registry.engine.report import Action, Reporter, echo
from kubeadm_registry.errors import ConfigError, Error
from kubeadm_registry.phases.certificates import renew as renew_leaves
from kubeadm_registry.phases.certificates import replace_authority
from kubeadm_registry.phases.workflows import CERTS_RENEW, MIRRORS
from kubeadm_registry.printable import counted
from kubeadm_registry.upkeep.api import Api

EXIT_REJECTED = 1
_WORDS = {"ca": "CA", "file": "node", "haproxy": "served by HAProxy", "agent": "served by the agent"}


@click.group("certs", short_help="Check or renew the certificates and the CA")
def group() -> None:
    """Check or renew the certificates of the nodes, or replace the cluster CA."""


@command("check", parent=group, short_help="Show every certificate with the days left")
@file_option
def check(context: Context, path: Path | None) -> None:
    """Show every certificate on every node with the days left: the CA, the node's as on disk, and those that HAProxy
    and the agent present.

    \b
    Exit codes:
      0  all are valid and in use
      1  one is rejected by clients or nodes: expired, or of another CA
      4  no node is reachable, or too few
      5  one expires soon or is not in use yet, or a node cannot be asked
    """
    cluster_file = config.load(path)
    with session.cluster(cluster_file, terminal.prompts(), context.reporter().note, may_miss=True) as cluster:
        session.installed_secrets(cluster.vault)
        now = datetime.now(UTC)
        seen = certificates.check(cluster, now)
        absent = dict(cluster.absent)
    if context.output == "json":
        echo(json.dumps({"certificates": [one.to_dict(now) for one in seen], "unreachable": absent}))
    else:
        _show(seen, absent, now)
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


@command("renew", parent=group, short_help="Renew certificates or replace the CA", help_after=phase_table(CERTS_RENEW))
@file_option
@click.option("--node", "names", metavar="NAME", multiple=True, help="Renew this node's only. May be repeated.")
@click.option("--ca", "authority", is_flag=True, help="Replace the cluster CA, and every certificate.")
@click.option(
    "--nodes", type=click.Path(path_type=Path), metavar="FILE", help=f"With --ca: the client nodes. {NODES_HELP}"
)
@click.option("--no-clients", is_flag=True, help="With --ca: there are no client nodes.")
@click.option("--trust-only", is_flag=True, help="With --ca: stop when both CAs are trusted on all nodes.")
@click.option(
    "--kubeconfig", metavar="FILE", type=click.Path(path_type=Path), envvar="KUBECONFIG",
    help="With --ca, where the operator is installed: log in to the cluster by this file.  [env: KUBECONFIG]",
)  # fmt: skip
@dry_run_option
@diff_option
def renew(
    context: Context, path: Path | None, names: tuple[str, ...], authority: bool, nodes: Path | None,
    no_clients: bool, trust_only: bool, kubeconfig: Path | None, dry_run: bool,
) -> None:  # fmt: skip
    """Issue a new certificate for each node, one node at a time, and load it while connections go on.

    With --ca the CA is replaced: a new one is stored beside the present one, all nodes and the listed client nodes
    trust both, each node gets a certificate of the new one, and the former one is removed. If a listed node does not
    take the new CA, the command stops and names it; the former CA stays trusted. With --trust-only it stops before the
    first certificate of the new CA is served, so that you can pass the output of `kubeadm-registry ca` to all others.

    All registry nodes must be reachable. An interrupted run is resumed by the next one, and renews nothing twice.
    """
    reporter = context.reporter()
    cluster_file = config.load(path)
    _refuse(authority, names, nodes, no_clients=no_clients, trust_only=trust_only)
    for name in names:
        if name not in {node.name for node in cluster_file.spec.nodes}:
            raise ConfigError(f"--node {name}: there is no such node in the cluster file", code="UsageInvalid")
    listed: tuple[ClientNode, ...] = ()
    if nodes is not None:
        listed = client_list.load(nodes)
        client_list.refuse_registry(listed, cluster_file.spec, str(nodes))
    with terminal.cluster(cluster_file, reporter, bundle=None) as cluster:
        session.installed_secrets(cluster.vault)
        if authority:
            others = _Others(cluster_file, listed, _operator(cluster, kubeconfig), reporter, dry_run=dry_run)
            actions = replace_authority(cluster, reporter, others, trust_only=trust_only, dry_run=dry_run)
        else:
            actions = renew_leaves(cluster, reporter, names or [host.name for host in cluster.hosts], dry_run=dry_run)
    reporter.result(_summary(actions, dry_run=dry_run), changed=len(actions), dryRun=dry_run)


def _summary(actions: list[Action], *, dry_run: bool) -> str:
    if not actions:
        return "nothing to do"
    hosts = len({action.host for action in actions})
    return f"{'would make ' * dry_run}{counted(len(actions), 'change')} on {counted(hosts, 'node')}"


def _refuse(authority: bool, names: tuple[str, ...], nodes: Path | None, *, no_clients: bool, trust_only: bool) -> None:
    """Raise ConfigError for options that do not go together."""
    if authority and names:
        raise ConfigError("--node cannot be combined with --ca: the CA is that of all nodes", code="UsageInvalid")
    if not authority and (nodes is not None or no_clients or trust_only):
        raise ConfigError("--nodes, --no-clients and --trust-only need --ca", code="UsageInvalid")
    if authority and (nodes is not None) is no_clients:
        raise ConfigError(
            "--ca needs either --nodes FILE or --no-clients", code="UsageInvalid",
            hint="list every client node, for one that does not trust the new CA cannot pull afterwards",
        )  # fmt: skip


def _operator(cluster: Cluster, kubeconfig: Path | None) -> Api | None:
    """The API server whose operator must trust the CA; None if it is not installed. Raises ConfigError."""
    # The library that talks to it takes long to import.
    from kubeadm_registry.cli.operator import api_of  # noqa: PLC0415

    if all(host.read(helper.KEYS) is None for host in cluster.hosts):
        return None
    if kubeconfig is None:
        raise ConfigError(
            "the operator is installed and must trust the new CA as well", code="UsageInvalid",
            hint="pass --kubeconfig FILE, or remove it with `kubeadm-registry operator uninstall`",
        )  # fmt: skip
    return api_of(kubeconfig)


class _Others:
    """Has the client nodes and the operator trust what the secrets of a cluster say."""

    def __init__(
        self, cluster_file: RegistryCluster, listed: tuple[ClientNode, ...], operator: Api | None, reporter: Reporter,
        *, dry_run: bool,
    ) -> None:  # fmt: skip
        self._file, self._listed, self._operator = cluster_file, listed, operator
        self._reporter, self._dry_run = reporter, dry_run

    def __call__(self, cluster: Cluster) -> None:
        """Bring them there. Raises Error (TrustPending), which names those that are not."""
        if self._operator is not None and not self._dry_run:
            installing.refresh(self._operator, cluster.secrets, self._reporter.note)
        if not self._listed:
            return
        outcomes = run_on_clients(
            MIRRORS, self._file, cluster.vault, self._listed, self._reporter, dry_run=self._dry_run
        )
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        for outcome in failed:
            self._reporter.note(f"failed: {outcome.reason}", host=outcome.client.name, level="warning")
        if failed:
            names = ", ".join(outcome.client.name for outcome in failed)
            raise Error(
                f"the CA cannot be replaced further: {names} did not take what is to be trusted", code="TrustPending",
                hint="fix these nodes, or remove those that are gone from the list, then run the command again",
            )  # fmt: skip
