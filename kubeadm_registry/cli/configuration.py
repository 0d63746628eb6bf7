"""``config print-defaults | validate | kubeadm``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kubeadm_registry import config
from kubeadm_registry.addresses import is_ipv6
from kubeadm_registry.cli.command import Context, command, file_option
from kubeadm_registry.config.kubeadm import cautions, kubeadm_config
from kubeadm_registry.engine.report import put
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.printable import counted


@click.group("config", short_help="Generate and validate configuration files")
def group() -> None:
    """Generate and validate configuration files. No node is contacted."""


@command("print-defaults", parent=group, short_help="Print a cluster file with all defaults")
def print_defaults(context: Context) -> None:
    """Print a cluster file with every default."""
    defaults = config.parse(config.SMALLEST, "defaults")
    if context.output == "json":
        put(json.dumps(defaults.model_dump(by_alias=True, exclude_none=True, mode="json")) + "\n")
    else:
        put(config.dump(defaults))


@command("validate", parent=group, short_help="Validate a cluster file")
@file_option
def validate(context: Context, path: Path | None) -> None:
    """Validate a cluster file and list its problems with the path to each value. Exits with code 2 if there are any."""
    cluster = config.load(path)
    count = len(cluster.spec.nodes)
    note = "" if cluster.spec.highly_available else "; a single node is not highly available"
    reporter = context.reporter()
    vip = cluster.spec.vip
    if vip.name is None and all(is_ipv6(address) for address in vip.addresses):
        reporter.note(
            "the virtual IP is IPv6 only and spec.vip.name is not set; some clients, such as skopeo 1.9 of Debian 12, "
            "accept no IPv6 address as the name of a registry",
            level="warning",
        )
    reporter.result(
        f"{path or config.DEFAULT_FILE} is valid: {counted(count, 'node')}, {cluster.spec.frontend.type}{note}"
    )


@command("kubeadm", parent=group, short_help="Generate a kubeadm configuration file")
@file_option
@click.option("--node", metavar="NAME", help="Node that the file is for.  [default: the first]")
def kubeadm_command(context: Context, path: Path | None, node: str | None) -> None:
    """Generate the kubeadm configuration of a node: `kubeadm init --config FILE` then pulls from this registry."""
    cluster = config.load(path)
    known = [member.name for member in cluster.spec.nodes]
    if node is not None and node not in known:
        raise ConfigError(f"there is no node {node}", hint=f"choose one of: {', '.join(known)}", code="NodeUnknown")
    for caution in cautions(cluster.spec):
        click.echo(f"warning: {caution}", err=True)
    text = kubeadm_config(
        cluster.spec, node, control_plane_endpoint=cluster.spec.kubernetes.control_plane_endpoint or ""
    )
    put(json.dumps({"node": node or known[0], "config": text}) + "\n" if context.output == "json" else text)
