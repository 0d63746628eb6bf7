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


@command("credentials")
@file_option
@click.option(
    "--role", type=click.Choice(["push", "pull"]), default="push", show_default=True, help="Whose login to show."
)
def credentials(context: Context, path: Path | None, role: str) -> None:
    """Show user and password of a role: what `podman login` and `skopeo login` need."""
    secrets = session.secrets(config.load(path), terminal.prompts(), context.reporter().note)
    password = secrets.password(role)
    if context.output == "json":
        put(json.dumps({"username": role, "password": password}) + "\n")
    else:
        put(f"username: {role}\npassword: {password}\n")


@command("ca")
@file_option
def ca(context: Context, path: Path | None) -> None:
    """Show the certificate of the cluster's authority, PEM: what clients must trust."""
    certificate = session.secrets(config.load(path), terminal.prompts(), context.reporter().note).ca_certificate
    put(json.dumps({"ca": certificate}) + "\n" if context.output == "json" else certificate)
