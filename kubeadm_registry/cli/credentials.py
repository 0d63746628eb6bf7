"""``credentials [rotate] | ca``: what clients of the registry need to log in and to trust it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import click

from kubeadm_registry import config, pki, rotation
from kubeadm_registry.access import session
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import Context, command, diff_option, dry_run_option, file_option
from kubeadm_registry.cli.others import (
    Others,
    clients,
    kubeconfig_option,
    no_clients_option,
    nodes_option,
    operator_of,
    refuse_unlisted,
)
from kubeadm_registry.cli.phases import phase_table
from kubeadm_registry.cli.workflows import summary
from kubeadm_registry.config.client_list import ClientNode
from kubeadm_registry.engine.report import Action, put
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.phases import credentials as logins
from kubeadm_registry.phases.workflows import CREDENTIALS_ROTATE
from kubeadm_registry.secrets import LOGINS

METRICS = "metrics"
#: What cannot be rotated, and why.
REFUSED = {
    METRICS: "it is not stored; issue another certificate, or replace the CA with `certs renew --ca`",
}


@command(
    "credentials",
    short_help="Print or rotate credentials",
    cls=click.Group,
    invoke_without_command=True,
)
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
    with its private key (PEM). Neither is stored.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
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


@command(
    "rotate",
    parent=cast(click.Group, credentials),
    short_help="Replace passwords, with an overlap",
    help_after=phase_table(CREDENTIALS_ROTATE, head="Phases for push, pull and retention"),
)
@file_option
@click.option(
    "--role",
    "roles",
    type=click.Choice([*LOGINS, *logins.KEYS, *REFUSED]),
    multiple=True,
    required=True,
    help="Role of the password or key. May be repeated.",
)
@click.option("--finish", is_flag=True, help="Refuse the former passwords of these roles.")
@nodes_option
@no_clients_option
@kubeconfig_option
@dry_run_option
@diff_option
def rotate(
    context: Context, path: Path | None, roles: tuple[str, ...], finish: bool, nodes: Path | None, no_clients: bool,
    kubeconfig: Path | None, dry_run: bool,
) -> None:  # fmt: skip
    """Replace the password of push, pull or retention. The former one remains accepted until --finish.

    The storage's S3 key (s3), its admin token (admin) and the agents' key (heartbeat) are known to the nodes alone: one
    run replaces them, in stages. For admin the storage restarts on one node after another.

    The registry nodes use the new password immediately, and so do the listed client nodes (role pull, where
    spec.proxy.anonymousPull is false) and the operator (role push, with --kubeconfig). Give it to everything else, then
    run the command with --finish. Until then no third password is made: an interrupted run is completed by the next.
    """
    reporter = context.reporter()
    cluster_file = config.load(path)
    roles = tuple(dict.fromkeys(roles))
    for role in roles:
        if role in REFUSED:
            raise ConfigError(f"--role {role}: {REFUSED[role]}", code="RotationRefused", hint="choose another role")
    keys: list[rotation.Kind] = [kind for kind in logins.KEYS if kind in roles]
    if keys and finish:
        raise ConfigError(f"--finish: there is nothing to finish for {', '.join(keys)}", code="UsageInvalid")
    if keys and len(roles) > 1:
        raise ConfigError(f"--role {keys[0]} cannot be combined with another role", code="UsageInvalid")
    roles = tuple(role for role in roles if role in LOGINS)
    listed: tuple[ClientNode, ...] = ()
    pulls = "pull" in roles and not cluster_file.spec.proxy.anonymous_pull
    if pulls:
        listed = clients(nodes, cluster_file.spec, no_clients=no_clients, what="--role pull")
    # With the programs that run: a bundle that lies here is for `upgrade`.
    with session.cluster(cluster_file, terminal.prompts(), reporter.note) as cluster:
        session.installed_secrets(cluster.vault)
        operator = operator_of(cluster, kubeconfig) if pulls or "push" in roles else None
        if pulls:
            refuse_unlisted(operator, listed, cluster_file.spec)
        actions: list[Action] = []
        if roles:
            if not finish and (two := [role for role in roles if role in rotation.overlapping(cluster.secrets)]):
                reporter.note(f"two passwords of {', '.join(two)} are accepted already; --finish ends that")
            others = Others(cluster_file, listed, operator, reporter, what="the password", dry_run=dry_run)
            work = logins.finish if finish else logins.rotate
            actions += work(cluster, reporter, others, roles, dry_run=dry_run)
        for kind in keys:
            actions += logins.replace_key(kind, cluster, reporter, dry_run=dry_run)
    reporter.result(summary(actions, dry_run=dry_run), changed=len(actions), dryRun=dry_run)


@command("ca", short_help="Print the registry's CA certificate (PEM)")
@file_option
def ca(context: Context, path: Path | None) -> None:
    """Print the cluster CA certificate in PEM format. Clients must trust it.

    While the CA is being replaced (`certs renew --ca`) there are two, and clients must trust both.
    """
    certificate = session.secrets(config.load(path), terminal.prompts(), context.reporter().note).trust
    put(json.dumps({"ca": certificate}) + "\n" if context.output == "json" else certificate)
