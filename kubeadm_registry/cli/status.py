"""``status``: the health of each node and of the registry, and whether it tolerates the loss of a node."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from kubeadm_registry import config
from kubeadm_registry import status as cluster_status
from kubeadm_registry.access import presence, session
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import EXIT_DEGRADED, Context, command, file_option, key_option
from kubeadm_registry.cli.tables import columns, size
from kubeadm_registry.components.services import backend, frontend
from kubeadm_registry.engine.report import echo
from kubeadm_registry.engine.screen import screen
from kubeadm_registry.errors import BundleError, ConfigError, Error
from kubeadm_registry.images import check as checking
from kubeadm_registry.images import inventory, seed
from kubeadm_registry.printable import counted, printable

EXIT_NOT_AVAILABLE = 1
EXIT_UNREACHABLE = 4
INTERVAL = 2  # seconds from one round to the next
SHORTEST, LONGEST = 0.5, 3600
PATIENCE = 3.0  # seconds that a round waits for a node
SHOWN = 5  # failovers
_pause = threading.Event
_ANY_WIDTH = 1000  # columns, to see how wide a table wants to be
_MARKS = {"True": "[green]yes[/green]", "False": "[red]no[/red]", "Unknown": "[yellow]unknown[/yellow]"}
_QUESTIONS = {
    "Available": "Serving at the virtual IP",
    "CanLoseANode": "Tolerates node loss",
    "StorageWhole": "Storage fully replicated",
    "BlocksPresent": "No blocks lost",
    "CertificatesValid": "Certificates valid",
    "ClocksAgree": "Clocks synchronized",
    "LoopbackGuarded": "Firewall rules loaded",
    "ImagesComplete": "Images complete",
}
#: What the agent's conditions mean, in a few words; docs/agent.md has more. One of a newer agent has none here.
MEANINGS = {
    "HiddenHolder": "another node, which this one cannot hear, holds the virtual IP",
    "AdvertsLost": "the holder's VRRP advertisements do not arrive here",
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
    "CanaryBroken": "the canary image is damaged or missing on this node",
    "ChainSlow": "the canary image is read slowly, or not at all",
    "NoMajority": "not more than half of the nodes are heard",
    "Unguarded": "the firewall rules of loopback are missing",
    "WriterClosing": "the writer is stopping",
    "ClockOff": "the clock is off by more than 0.5 s",
    "NoTimer": "the kernel's timer for the lease does not respond",
    "MembersDiffer": "a node that is heard has another list of members",
    "Removed": "it has left the registry, which continues without it",
}


@command("status", short_help="Show node, virtual IP and storage health")
@file_option
@click.option(
    "--watch",
    "interval",
    is_flag=False,
    flag_value=str(INTERVAL),
    metavar="[SECONDS]",
    help=f"Repeat every SECONDS (default {INTERVAL}) until Ctrl-C; with -o json one line for each round.",
)
@click.option(
    "--images",
    is_flag=True,
    help="Also show on which nodes each image is complete. Queries the storage once per blob and checks that each "
    "block file exists; does not read blocks.",
)
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="With --images: the images in a bundle, not all in the registry."
)
@key_option
def status(
    context: Context, path: Path | None, interval: str | None, images: bool, bundle: Path | None, key: Path | None
) -> None:
    """Show each node with its services, the VIP holder, and whether the registry tolerates the loss of a node.

    Storage health is what the node agents report, because Garage reports an unresponsive node as healthy for over a
    minute. With --watch the exit code is that of the last round.

    \b
    Exit codes:
      0  healthy
      1  down: the registry is not serving
      4  no node is reachable
      5  degraded: serving, but no node may be lost, or something needs attention
    """
    cluster_file = config.load(path)
    if interval is not None:
        if images:
            raise ConfigError("--watch and --images are mutually exclusive", code="UsageInvalid",
                              hint="run status --images without --watch: it is too expensive to repeat")  # fmt: skip
        sys.exit(_watch(cluster_file, context, _seconds(interval)))
    if bundle is not None and not images:
        raise ConfigError("--bundle needs --images", hint="add --images", code="UsageInvalid")
    reached, unreachable = session.attempt_all(cluster_file, terminal.prompts())
    try:
        found = cluster_status.judge(cluster_file, cluster_status.gather(cluster_file, reached, unreachable))
    finally:
        for host in reached:
            host.transport.close()
    if images:
        try:
            _look_for_images(found, cluster_file, context, bundle, key)
        except (ConfigError, BundleError):
            raise
        except Error as error:  # what was found before is shown all the same
            unknown = {"type": "ImagesComplete", "status": "Unknown", "reason": error.code, "message": error.message}
            found["conditions"].append(unknown)
    _put(found, context)
    sys.exit(exit_code(found))


def _put(found: dict[str, Any], context: Context) -> None:
    if context.output == "json":
        echo(json.dumps(found))
    else:
        show(found)


def _seconds(text: str) -> float:
    """The value of --watch. Raises ConfigError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not SHORTEST <= seconds <= LONGEST:
        raise ConfigError(f"--watch {printable(text)}: not a number of seconds", code="UsageInvalid",
                          hint=f"pass a number from {SHORTEST} to {LONGEST}, such as --watch 5")  # fmt: skip
    return seconds


def _watch(cluster_file: config.RegistryCluster, context: Context, interval: float) -> int:
    """Show the status every *interval* seconds until Ctrl-C; the exit code of the last round."""
    prompts = terminal.prompts()
    reached, _ = session.attempt_all(cluster_file, prompts)
    follower = cluster_status.follow(cluster_file, reached, prompts)
    code = EXIT_UNREACHABLE
    try:
        while True:
            until = time.monotonic() + interval
            seen = cluster_status.followed(cluster_file, follower, max(interval, PATIENCE))
            found = cluster_status.judge(cluster_file, seen)
            code = exit_code(found)
            if context.output == "text" and sys.stdout.isatty():
                screen().clear()
            _put(found, context)
            sys.stdout.flush()
            _pause().wait(max(0.0, until - time.monotonic()))
    except KeyboardInterrupt:
        return code
    finally:
        follower.close()


def _look_for_images(
    found: dict[str, Any], cluster_file: config.RegistryCluster, context: Context, bundle: Path | None, key: Path | None
) -> None:
    """Add where the images are to the status: as ``images``, and as a condition."""
    with terminal.registry(cluster_file, context.reporter(), bundle, key) as (cluster, connect, _):
        if cluster.bundle:
            items, unread = list(seed.plan(cluster.bundle)), dict[str, str]()
        else:
            places, unlisted = inventory.all_places(connect, frontend(cluster.spec).records)
            items, unread = checking.find(connect, places)
            unread |= {str(one): why for one, why in unlisted.items()}
        there, silent = presence.look(cluster, items)
        wanted = backend(cluster.spec).copies(len(cluster.spec.nodes))
    if context.output == "text":  # for programs there is one object
        for name, why in unread.items():
            context.reporter().note(f"{name}: {why}", level="warning")
    found["images"] = [one.to_dict() for one in there]
    found["unreadable"] = [{"name": name, "reason": why} for name, why in unread.items()]
    found["conditions"].append(presence.verdict(there, silent, wanted, unread))


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
    # Those that are there only if somebody asks, or knows.
    told = [
        one["status"] == "True" for one in found["conditions"] if one["type"] in ("ImagesComplete", "BlocksPresent")
    ]
    return 0 if well and all(told) else EXIT_DEGRADED


def _table(found: dict[str, Any], *, wide: bool) -> Table:
    """The nodes: *wide* with a column for each service, else with one that names those that are not active."""
    table = columns()
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
    if (figures := _figures(found)) is not None:
        console.print(figures)
        console.print()
    for condition in found["conditions"]:
        question = _QUESTIONS.get(condition["type"], condition["type"])
        console.print(f"{question + ':':<27}{_MARKS[condition['status']]}  {escape(condition['message'])}")
    for node in found["nodes"]:
        if node.get("message"):
            console.print(f"[red]{node['name']}[/red]: {escape(node['message'])}")
        if node.get("conditions"):
            console.print(f"{node['name']}: {escape('; '.join(map(_meaning, node['conditions'])))}")

    if found.get("failovers"):
        console.print()
        console.print(_failovers(found["failovers"][:SHOWN]))
    if "images" in found:
        console.print()
        console.print(_images(found))


def _figures(found: dict[str, Any]) -> Table | None:
    """What the agents measure and count; None where none does."""
    nodes = [node for node in found["nodes"] if node.keys() & {"disk", "toHeal", "clockOff"}]
    if not nodes:
        return None
    table = columns("NODE", "DISK FREE", "FULL", "TO HEAL", "CLOCK", "AGENT")
    for node in nodes:
        disk = node.get("disk", {})
        free = f"{size(disk['free'])} of {size(disk['size'])}" if disk else "-"
        off = f"{node['clockOff'] * 1000:.0f} ms off" if "clockOff" in node else "-"
        version = node.get("agentVersion", "-")
        table.add_row(node["name"], free, _full(disk), _to_heal(node.get("toHeal")), off, escape(str(version)))
    return table


def _full(disk: dict[str, Any]) -> str:
    """When a disk will be full."""
    if "full" not in disk:
        return "not known yet" if disk else "-"
    return f"about {disk['full'][:10]}" if disk["full"] else "not in sight"


def _to_heal(left: dict[str, Any] | None) -> str:
    """What the storage has yet to copy to a node."""
    if left is None:
        return "-"
    parts = [f"{counted(left['blocks'], 'block')}, up to {size(left['bytes'])}"] if left["blocks"] else []
    if left["tables"]:
        parts.append(f"{counted(left['tables'], 'part')} of tables")
    if left.get("lost"):
        parts.append(f"{counted(left['lost'], 'block')} lost")
    if left.get("errors", 0) > left.get("lost", 0):
        parts.append(f"{counted(left['errors'], 'block')} failed")
    return "; ".join(parts) or "nothing"


def _failovers(moves: Sequence[dict[str, Any]]) -> Table:
    names = {"vip": "virtual IP", "lease": "lease"}
    table = columns("FAILOVER", "OF", "FROM", "TO", "WITHOUT", "CAUSE")
    for move in moves:
        gap = "-" if move["seconds"] is None else f"{move['seconds']:.1f} s"
        when = move["time"].replace("T", " ").removesuffix("Z") + ("" if move["exact"] else " or before")
        what = names.get(move["what"], escape(str(move["what"])))
        table.add_row(when, what, escape(move["from"] or "-"), move["to"], gap, escape(move["cause"]))
    return table


def _images(found: dict[str, Any]) -> Table:
    nodes = [node["name"] for node in found["nodes"]]
    table = columns("IMAGE", "SIZE", "COPIES", *nodes)
    for image in found["images"]:
        cells = ["yes" if node in image["complete"] else _lacks(image, node) for node in nodes]
        copies = "[red]lost[/red]" if image["lost"] else str(image["copies"])
        table.add_row(escape(image["name"]), size(image["size"]), copies, *cells)
    return table


def _lacks(image: dict[str, Any], node: str) -> str:
    return f"lacks {size(image['missing'][node])}" if node in image["missing"] else "-"


def _meaning(condition: str) -> str:
    return f"{MEANINGS[condition]} ({condition})" if condition in MEANINGS else condition
