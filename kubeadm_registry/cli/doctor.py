"""``doctor``: what is wrong now, what shows it, and which command fixes it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from rich.markup import escape

from kubeadm_registry import config
from kubeadm_registry.access import session
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import EXIT_DEGRADED, Context, command, file_option
from kubeadm_registry.doctor import Diagnosis, Finding, diagnose, examine
from kubeadm_registry.engine.report import echo
from kubeadm_registry.engine.screen import screen
from kubeadm_registry.printable import counted

EXITS = {"healthy": 0, "degraded": EXIT_DEGRADED, "down": 1, "unknown": 4}
_STATES = {
    "healthy": "the registry is healthy",
    "degraded": "the registry serves, but is degraded",
    "down": "the registry does not serve",
    "unknown": "no node is reachable",
}
_STYLES = {"error": "red", "warning": "yellow"}


@command("doctor", short_help="Diagnose problems and print commands that fix them")
@file_option
def doctor(context: Context, path: Path | None) -> None:
    """Diagnose problems: print each with its evidence and a command that fixes it.

    Checks all nodes in parallel: what `status`, `preflight` and `init --dry-run` would find, and units, journals,
    disks, certificates, firewalls, ARP and VRRP. Changes nothing. Works while nodes are down and before the first
    `init`. docs/doctor.md lists all codes.

    \b
    Exit codes:
      0  no problem found
      1  the registry does not serve, or is not installed
      4  no node is reachable
      5  the registry serves, but a problem was found
    """
    cluster_file = config.load(path)
    reached, unreachable = session.attempt_all(cluster_file, terminal.prompts())
    try:
        found = diagnose(examine(cluster_file, reached, unreachable))
    finally:
        for host in reached:
            host.transport.close()
    if path is not None:
        named = [replace(one, fix=[each.with_file(path) for each in one.fix]) for one in found.findings]
        found = replace(found, findings=named)
    if context.output == "json":
        echo(json.dumps(found.to_dict()))
    else:
        show(found)
    sys.exit(EXITS[found.state])


def show(found: Diagnosis) -> None:
    """Print the findings as text."""
    console = screen()
    if not console.is_terminal:
        console.width = 200
    for finding in found.findings:
        for line in lines(finding):
            console.print(line, soft_wrap=True)
        console.print()
    console.print(summary(found))


def lines(finding: Finding) -> list[str]:
    """A finding as lines with rich's markup."""
    severity = finding.kind.severity
    where = f"{finding.node}: " if finding.node else ""
    style = _STYLES[severity]
    return [
        f"[{style}]{severity}[/{style}] {escape(f'[{finding.kind.code}]')} {escape(where + finding.message)}",
        f"  meaning:   {escape(finding.kind.meaning)}",
        *(f"  {'evidence:' if not place else '':<10} {escape(line)}" for place, line in enumerate(finding.evidence)),
        *(f"  {'fix:' if not place else '':<10} {escape(str(line))}" for place, line in enumerate(finding.fix)),
    ]


def summary(found: Diagnosis) -> str:
    """The last line."""
    if not found.findings and found.state == "healthy":
        return "no problem found"
    errors = sum(one.kind.severity == "error" for one in found.findings)
    parts = [counted(errors, "error")] * (errors > 0)
    warnings = len(found.findings) - errors
    parts += [counted(warnings, "warning")] * (warnings > 0)
    return f"{', '.join(parts)}; {_STATES[found.state]}"
