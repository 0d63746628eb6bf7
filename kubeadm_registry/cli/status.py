"""``status``: the health of each node and of the registry, and whether it tolerates the loss of a node."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from kubeadm_registry import config
from kubeadm_registry import status as cluster_status
from kubeadm_registry.access import session
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import EXIT_DEGRADED, Context, command, file_option
from kubeadm_registry.engine.report import echo, screen

EXIT_NOT_AVAILABLE = 1
EXIT_UNREACHABLE = 4
_ANY_WIDTH = 1000  # columns, to see how wide a table wants to be
_MARKS = {"True": "[green]yes[/green]", "False": "[red]no[/red]", "Unknown": "[yellow]unknown[/yellow]"}
_QUESTIONS = {
    "Available": "Serving at the virtual IP",
    "CanLoseANode": "Tolerates node loss",
    "StorageWhole": "Storage fully replicated",
    "CertificatesValid": "Certificates valid",
    "ClocksAgree": "Clocks synchronized",
    "LoopbackGuarded": "Firewall rules loaded",
}
#: What the agent's conditions mean, in a few words; docs/agent.md has more. One of a newer agent has none here.
MEANINGS = {
    "HiddenHolder": "another node, which this one cannot hear, holds the virtual IP",
    "NotYetGood": "not healthy yet since its agent started",
    "FrontendDown": "the registry service is down or hangs",
    "FrontendSlow": "the registry service responds slowly",
    "StorageDown": "the storage is down or hangs",
    "StorageSlow": "the storage responds slowly",
    "StoragePartial": "the storage misses a node",
    "StorageCopying": "the storage is still copying data to this node",
    "ProxyDown": "HAProxy is down",
    "ProxyPartial": "a HAProxy process, or the public port, does not respond",
    "NoCanary": "no canary image yet",
    "CanaryMissing": "the canary image is missing on all nodes",
    "CanaryBroken": "the canary image is wrong or missing on this node",
    "ChainSlow": "the canary image is read slowly, or not at all",
    "NoMajority": "not more than half of the nodes are heard",
    "Unguarded": "the firewall rules of loopback are missing",
    "WriterClosing": "the writer is stopping",
    "ClockOff": "the clock is off by more than 0.5 s",
    "NoTimer": "the kernel's timer for the lease does not respond",
    "MembersDiffer": "a node that is heard has another list of members",
    "Removed": "it has left the registry, which goes on without it",
}


@command("status", short_help="Show node, virtual IP and storage health")
@file_option
def status(context: Context, path: Path | None) -> None:
    """Show each node with its services, the VIP holder, and whether the registry tolerates the loss of a node.

    Storage health is what the node agents report, because Garage reports an unresponsive node as healthy for over a
    minute.

    \b
    Exit codes:
      0  healthy
      1  the registry is not serving
      4  no node is reachable
      5  serving, but degraded
    """
    cluster_file = config.load(path)
    reached, unreachable = session.attempt_all(cluster_file, terminal.prompts())
    try:
        found = cluster_status.judge(cluster_file, cluster_status.gather(cluster_file, reached, unreachable))
    finally:
        for host in reached:
            host.transport.close()
    if context.output == "json":
        echo(json.dumps(found))
    else:
        show(found)
    sys.exit(exit_code(found))


def exit_code(found: dict[str, Any]) -> int:
    """Return the exit code of the program."""
    if not any(node["reachable"] for node in found["nodes"]):
        return EXIT_UNREACHABLE
    if cluster_status.condition(found, "Available") != "True":
        return EXIT_NOT_AVAILABLE
    # Clients refuse an expired certificate, a node whose clock is off does not write, and without the firewall rules
    # local users can push, whatever else is healthy.
    kinds = ("CanLoseANode", "CertificatesValid", "ClocksAgree", "LoopbackGuarded")
    well = all(cluster_status.condition(found, kind) == "True" for kind in kinds)
    return 0 if well else EXIT_DEGRADED


def _table(found: dict[str, Any], *, wide: bool) -> Table:
    """The nodes: *wide* with a column for each service, else with one that names those that are not active."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    services = list(dict.fromkeys(name for node in found["nodes"] for name in node["services"]))
    titles = [name.upper() for name in services] if wide else ["SERVICES"]
    for title in ("NODE", "FIT", "VIP", *titles, "CERTIFICATE"):
        table.add_column(title, no_wrap=title != "SERVICES")
    for node in found["nodes"]:
        if not node["reachable"]:
            table.add_row(node["name"], "[red]unreachable[/red]")
            continue
        states = {name: node["services"].get(name, "-") for name in services}
        holds_vip = found["vip"]["holder"] == node["name"]
        if wide:
            vip = found["vip"]["address"] if holds_vip else ""
            shown = [state if state == "active" else f"[red]{state}[/red]" for state in states.values()]
        else:
            vip = "yes" if holds_vip else ""
            wrong = ", ".join(f"{name} {state}" for name, state in states.items() if state != "active")
            shown = [f"[red]{wrong}[/red]" if wrong else "all active"]
        table.add_row(
            node["name"],
            "[green]yes[/green]" if node["fit"] else "[red]no[/red]",
            vip,
            *shown,
            f"{node['certificateDays']} days" if "certificateDays" in node else "-",
        )
    return table


def show(found: dict[str, Any]) -> None:
    """Print the status as text."""
    console = screen()
    if not console.is_terminal:
        console.width = 200
    table = _table(found, wide=True)
    if console.measure(table, options=console.options.update_width(_ANY_WIDTH)).maximum > console.width:
        table = _table(found, wide=False)
    console.print(table)
    console.print()
    for condition in found["conditions"]:
        question = _QUESTIONS.get(condition["type"], condition["type"])
        console.print(f"{question + ':':<27}{_MARKS[condition['status']]}  {escape(condition['message'])}")
    for node in found["nodes"]:
        if node.get("message"):
            console.print(f"[red]{node['name']}[/red]: {escape(node['message'])}")
        if node.get("conditions"):
            console.print(f"{node['name']}: {escape('; '.join(map(_meaning, node['conditions'])))}")


def _meaning(condition: str) -> str:
    return f"{MEANINGS[condition]} ({condition})" if condition in MEANINGS else condition
