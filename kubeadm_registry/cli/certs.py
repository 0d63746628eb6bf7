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
from kubeadm_registry.cli.command import EXIT_DEGRADED, Context, command, file_option
from kubeadm_registry.cli.tables import columns, wide_screen
from kubeadm_registry.components import certificates
from kubeadm_registry.engine.report import echo
from kubeadm_registry.printable import counted

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
