"""``credentials | ca``: what clients of the registry need to log in and to trust it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kubeadm_registry import config, pki
from kubeadm_registry.access import session
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import Context, command, file_option
from kubeadm_registry.engine.report import put

METRICS = "metrics"


@command("credentials", short_help="Print credentials for push, pull or metrics")
@file_option
@click.option(
    "--role",
    type=click.Choice(["push", "pull", METRICS]),
    default="push",
    show_default=True,
    help="Role of the credentials.",
)
def credentials(context: Context, path: Path | None, role: str) -> None:
    """Print the user name and password of a role, for `podman login` or `skopeo login`.

    For the role metrics, issue a client certificate that can read the agents' metrics and nothing else, and print it
    with its private key (PEM). Nothing of it is stored.
    """
    secrets = session.secrets(config.load(path), terminal.prompts(), context.reporter().note)
    if role == METRICS:
        pair = pki.issue(pki.Pair(secrets.ca_certificate, secrets.ca_key), METRICS, [], unit=pki.METRICS_UNIT)
        text = json.dumps({"certificate": pair.certificate, "key": pair.key}) + "\n"
        put(text if context.output == "json" else pair.certificate + pair.key)
        return
    password = secrets.password(role)
    if context.output == "json":
        put(json.dumps({"username": role, "password": password}) + "\n")
    else:
        put(f"username: {role}\npassword: {password}\n")


@command("ca", short_help="Print the registry's CA certificate (PEM)")
@file_option
def ca(context: Context, path: Path | None) -> None:
    """Print the cluster CA certificate in PEM format. Clients must trust it.

    While the CA is being replaced (`certs renew --ca`) there are two, and clients must trust both.
    """
    certificate = session.secrets(config.load(path), terminal.prompts(), context.reporter().note).trust
    put(json.dumps({"ca": certificate}) + "\n" if context.output == "json" else certificate)
