"""``credentials | ca``: what clients of the registry need to log in and to trust it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kubeadm_registry import config
from kubeadm_registry.access import session
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import Context, command, file_option
from kubeadm_registry.engine.report import put


@command("credentials", short_help="Print registry credentials for push or pull")
@file_option
@click.option(
    "--role",
    type=click.Choice(["push", "pull"]),
    default="push",
    show_default=True,
    help="Role of the credentials.",
)
def credentials(context: Context, path: Path | None, role: str) -> None:
    """Print the user name and password of a role, for `podman login` or `skopeo login`."""
    secrets = session.secrets(config.load(path), terminal.prompts(), context.reporter().note)
    password = secrets.password(role)
    if context.output == "json":
        put(json.dumps({"username": role, "password": password}) + "\n")
    else:
        put(f"username: {role}\npassword: {password}\n")


@command("ca", short_help="Print the registry's CA certificate (PEM)")
@file_option
def ca(context: Context, path: Path | None) -> None:
    """Print the cluster CA certificate in PEM format. Clients must trust it."""
    certificate = session.secrets(config.load(path), terminal.prompts(), context.reporter().note).ca_certificate
    put(json.dumps({"ca": certificate}) + "\n" if context.output == "json" else certificate)
