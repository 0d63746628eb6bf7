"""``join | leave | replace``: change which nodes the registry consists of."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kubeadm_registry import config
from kubeadm_registry.access import membership
from kubeadm_registry.access.membership import Request
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import (
    Context,
    bundle_option,
    command,
    diff_option,
    dry_run_option,
    file_option,
    ignore_option,
    key_option,
    names,
)
from kubeadm_registry.cli.mirrors import configure
from kubeadm_registry.cli.phases import phase_table
from kubeadm_registry.cli.workflows import carry_out
from kubeadm_registry.config import client_list
from kubeadm_registry.engine.phase import require_checks
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.phases import changing
from kubeadm_registry.phases.workflows import CHANGE_MEMBERS

_purge = click.option("--purge-data", is_flag=True, help="Also delete the images and secrets on the node that leaves.")
#: Phases on nodes that leave; when a node joins there is none.
_OF_LEAVING = ("move/vip-leaves", "move/frontend", "uninstall", "forget")
_yes = click.option("--yes", is_flag=True, help="Do not prompt for confirmation.")


def _run(
    context: Context, request: Request, path: Path | None, bundle: Path | None, key: Path | None, *, dry_run: bool,
    ignore: str, purge: bool = False, ask: str = "",
) -> None:  # fmt: skip
    words = click.get_current_context().params
    if "" in (words.get("node"), words.get("old"), words.get("new")):  # `replace OLD ""` must not mean `leave OLD`
        raise ConfigError("the node name is empty", hint="check the variable that it comes from", code="NodeUnknown")
    cluster_file = config.load(path)
    membership.wanted(cluster_file, request)
    require_checks(CHANGE_MEMBERS, names(ignore))
    if ask and not dry_run and sys.stdin.isatty():
        click.confirm(ask, abort=True, err=True)
    given, signed_by = terminal.bundle_of(bundle, key)
    opened = membership.changing(
        cluster_file, request, terminal.prompts(), context.reporter().note, bundle=given, key=signed_by
    )
    skip = () if purge else ("uninstall/data",)
    carry_out(context, CHANGE_MEMBERS, opened, dry_run=dry_run, skip=skip, ignore=names(ignore), by=changing.carry_out)


@command("join", short_help="Add a node to the registry", help_after=phase_table(CHANGE_MEMBERS, skip=_OF_LEAVING))
@click.argument("node", metavar="NODE")
@click.option(
    "--worker",
    is_flag=True,
    help="NODE only pulls: configure its containerd, as `mirrors apply` does. NODE is one line of its list of nodes.",
)
@file_option
@bundle_option
@key_option
@dry_run_option
@diff_option
@ignore_option
def join(
    context: Context, node: str, worker: bool, path: Path | None, bundle: Path | None, key: Path | None, dry_run: bool,
    ignore: str,
) -> None:  # fmt: skip
    """Install the registry on NODE and make it a member. The cluster file must list it already.

    A registry has 3, 4 or 5 nodes; each image stays on three of them. The storage copies NODE's share to it before
    NODE serves requests. Pulls and pushes continue. Run it again to complete an interrupted run.
    """
    if worker:
        if bundle or ignore:
            raise ConfigError("--worker installs nothing of a bundle, and has no checks to ignore", code="UsageInvalid",
                              hint="leave out --bundle and --ignore-preflight-errors")  # fmt: skip
        configure(context, path, client_list.parse(node, "NODE"), "NODE", dry_run=dry_run)
        return
    _run(context, Request(joins=node), path, bundle, key, dry_run=dry_run, ignore=ignore)


@command("leave", short_help="Remove a node from the registry", help_after=phase_table(CHANGE_MEMBERS))
@click.argument("node", metavar="NODE")
@file_option
@bundle_option
@key_option
@_purge
@_yes
@dry_run_option
@diff_option
@ignore_option
def leave(
    context: Context, node: str, path: Path | None, bundle: Path | None, key: Path | None, purge_data: bool, yes: bool,
    dry_run: bool, ignore: str,
) -> None:  # fmt: skip
    """Remove NODE from the registry: the others take over what it stores, then it is uninstalled as by reset.

    NODE may be listed in the cluster file or not; remove it from the file afterwards. A node that cannot be reached,
    and that no other node hears, is treated as lost: it is removed, and does no harm if it returns. At least three
    nodes must be left.
    """
    ask = "" if yes else f"Remove {node} from the registry?"
    _run(
        context, Request(leaves=node), path, bundle, key, dry_run=dry_run, ignore=ignore, purge=purge_data, ask=ask
    )  # fmt: skip


@command("replace", short_help="Replace a node, which may be down, by another", help_after=phase_table(CHANGE_MEMBERS))
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@file_option
@bundle_option
@key_option
@_purge
@_yes
@dry_run_option
@diff_option
@ignore_option
def replace(
    context: Context, old: str, new: str, path: Path | None, bundle: Path | None, key: Path | None, purge_data: bool,
    yes: bool, dry_run: bool, ignore: str,
) -> None:  # fmt: skip
    """Replace OLD by NEW. The cluster file must list NEW; it may still list OLD, unless that makes six nodes.

    OLD may be down, that is, unreachable by SSH and by the other nodes. If it is up, the storage copies from it as
    well, and it is uninstalled as by reset. If it returns later with everything started, the other nodes exclude it,
    and its own status says why.

    To change the address of a node, pass its name twice: replace cp-2 cp-2. A node that keeps name and address, with
    a new disk or on new hardware, needs only init.
    """
    ask = "" if yes else f"Replace {old} by {new}?"
    request = Request(joins=new, leaves=old)
    _run(context, request, path, bundle, key, dry_run=dry_run, ignore=ignore, purge=purge_data, ask=ask)
