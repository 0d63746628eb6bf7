"""``operator install | uninstall | manifests | status``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click

from kubeadm_registry import config, pki
from kubeadm_registry.access import session
from kubeadm_registry.bundle import TOOL
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import EXIT_DEGRADED, Context, command, diff_option, dry_run_option, file_option
from kubeadm_registry.cli.workflows import summary
from kubeadm_registry.cluster import Cluster, agreed
from kubeadm_registry.components import helper, replacing
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.custom_resources import installing
from kubeadm_registry.custom_resources.manifests import manifests as texts
from kubeadm_registry.engine.report import Action, Reporter, echo, put
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.oci import references
from kubeadm_registry.phases.helper import allow
from kubeadm_registry.phases.workflows import OPERATOR_FORBID, RETENTION_TIMER_DISABLE
from kubeadm_registry.printable import counted
from kubeadm_registry.upkeep.kubeconfig import by_kubeconfig


@click.group("operator", short_help="Install the operator in a Kubernetes cluster")
def group() -> None:
    """Install, inspect or remove the operator in a Kubernetes cluster.

    The operator watches the registry, plans retention, and has it carried out. The registry does not depend on it.
    """


kubeconfig_option = click.option(
    "--kubeconfig", metavar="FILE", type=click.Path(path_type=Path), required=True, envvar="KUBECONFIG",
    help="Kubeconfig of the cluster, with the rights of an administrator.  [env: KUBECONFIG]",
)  # fmt: skip


def _image(_: click.Context, __: click.Parameter, value: str) -> str:
    """The name of an image, or nothing. Raises click.BadParameter for what Kubernetes would refuse in a pod."""
    if value and references.in_pod(value) is None:
        raise click.BadParameter(f"{value} is not a valid image name")
    return value


image_option = click.option(
    "--image", metavar="NAME", default="", callback=_image,
    help="Use this image.  [default: the one loaded from the bundle]",
)  # fmt: skip


@command("install", parent=group, short_help="Install or upgrade the operator")
@file_option
@kubeconfig_option
@image_option
@click.option("--plan-only", is_flag=True, help="Do not give the operator an SSH key: it plans but does not delete.")
@click.option(
    "--replace-nodes",
    "replaces",
    is_flag=True,
    help="Allow the operator to replace nodes: gives the nodes an SSH key for root access to each other.",
)
@click.option(
    "--new-keys", is_flag=True, help="Replace its SSH key, and that of the nodes; the old ones are refused immediately."
)
@click.option("--timeout", type=click.IntRange(1), default=180, show_default=True, help="Seconds to wait for a leader.")
@dry_run_option
@diff_option
def install(
    context: Context, path: Path | None, kubeconfig: Path, image: str, plan_only: bool, replaces: bool, new_keys: bool,
    timeout: int, dry_run: bool,
) -> None:  # fmt: skip
    """Install or upgrade the operator with its custom resources, guard, rights and Secret, and wait until it leads.

    The Secret has the credentials with which the operator reads the registry and keeps the retention ledger in it; they
    come from the nodes. It also has an SSH key of its own, with which it asks a helper on each node for retention,
    freed space, new certificates, records of pulls and, with --replace-nodes, the replacement of a node and the mirrors
    of new workers. The key gives no shell. Running it again changes only what differs. The retention timer is disabled,
    because it does not know workloads.

    With --replace-nodes, whoever has this key can make a machine a node, which then has all secrets of the registry.
    Without it, what an earlier run installed for it is removed.

    Exits with code 5 if a node is unreachable; run it again when the node is back.
    """
    if plan_only and replaces:
        raise ConfigError("--plan-only and --replace-nodes are mutually exclusive", hint="pass one of them",
                          code="UsageInvalid")  # fmt: skip
    reporter = context.reporter()
    api, cluster_file = by_kubeconfig(kubeconfig), config.load(path)
    installing.refuse_older(api)
    with session.cluster(cluster_file, terminal.prompts(), reporter.note, may_miss=True) as cluster:
        for name, why in cluster.absent.items():
            reporter.note(f"{why}; run this again when it is back", host=name, level="warning")
        absent = cluster.absent
        secrets, key, private = session.installed_secrets(cluster.vault), None, ""
        before = installing.helper_key(api)
        _warn_of_another(cluster, before, reporter)
        if not plan_only and TOOL not in cluster.programs:
            reporter.note(
                f"the nodes have no program {TOOL}, so the operator only plans; run `kubeadm-registry init` with a "
                "bundle that holds it, then this again", level="warning",
            )  # fmt: skip
        elif not plan_only:
            key = installing.HelperKey.of("" if new_keys else before.private, _known_hosts(cluster, before.hosts))
            private = pki.ssh_key("" if new_keys else replacing.key_of(cluster))[0] if replaces else ""
        helpers = OPERATOR_FORBID if key is None else allow(key.public, private)
        done = run((*helpers, *RETENTION_TIMER_DISABLE), cluster, reporter, dry_run=dry_run)
        if any(action.phase == "timer" for action in done) and not dry_run:
            reporter.note("the timer of retention is disabled, since it does not know what pods use; for the operator "
                          "to apply its policy, run kubectl apply -f policy.yaml")  # fmt: skip
        if private and not dry_run:
            line = replacing.line(cluster, pki.ssh_key(private)[1])
            reporter.note(f"put this line into authorized_keys of each machine that may become a node: {line}")
    told = _Told(reporter)
    leader = installing.install(
        api, cluster_file, secrets, told, image=image, seconds=timeout, helper=key, replaces=bool(private),
        dry_run=dry_run,
    )  # fmt: skip
    if dry_run:
        told.result(done, absent)
    else:
        text = f"the operator is installed, {leader} leads; adopt the registry with kubectl apply -f cluster.yaml"
        reporter.result(text, owed=_owed(absent))
    if absent:
        sys.exit(EXIT_DEGRADED)


def _warn_of_another(cluster: Cluster, ours: installing.HelperKey, reporter: Reporter) -> None:
    """Say that the nodes have the key of another operator than that of this cluster, which loses its way to them."""
    there = agreed(cluster, helper.KEYS)
    if there is not None and ours.public.encode() not in there:
        reporter.note(
            "the nodes have the key of another operator, of another cluster or an earlier one of this cluster; it can "
            "no longer send them requests after this. Several operators need the same key (docs/operator.md, "
            "\"The plan\")", level="warning",
        )  # fmt: skip


class _Told:
    """Says what becomes of the objects in the cluster, and counts them."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter, self._count = reporter, 0

    def __call__(self, text: str) -> None:
        self._count += 1
        self._reporter.note(text)

    def result(self, done: list[Action], absent: Mapping[str, str]) -> None:
        """Report what a dry run has found: this, and what would be *done* on nodes but those that are *absent*."""
        text = f"{summary(done, dry_run=True)}; {counted(self._count, 'object')} of Kubernetes would change"
        self._reporter.result(text, changed=len(done) + self._count, dryRun=True, owed=_owed(absent))


def _owed(absent: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The nodes that are *absent*, and why, for machines: what the others got is owed to them."""
    return {name: {"reason": why} for name, why in absent.items()}


def _known_hosts(cluster: Cluster, before: str) -> str:
    """The nodes' host keys as known_hosts has them; of a node that is away, what was known of it *before*."""
    spec = cluster.config.spec

    def place(node: Node) -> tuple[str, int]:
        return node.address, spec.ssh_port(node)

    asked = [helper.known_host(host, *place(cluster.node(host))) for host in cluster.hosts]
    away = {helper.known_name(*place(spec.node(name))) for name in cluster.absent}
    return "".join([*asked, *(line for line in before.splitlines(keepends=True) if line.split(" ")[0] in away)])


@command("uninstall", parent=group, short_help="Remove the operator")
@file_option
@kubeconfig_option
@click.option("--yes", is_flag=True, help="Do not prompt for confirmation.")
@dry_run_option
@diff_option
def uninstall(context: Context, path: Path | None, kubeconfig: Path, yes: bool, dry_run: bool) -> None:
    """Remove the operator, and its SSH key and helper from the nodes of the cluster file.

    Its custom resources and their guard stay: they describe the registry and protect it. The registry is not touched,
    and every pull keeps working.

    Exits with code 5 if a node is unreachable: the key stays there until the command is run again.
    """
    if not (yes or dry_run) and sys.stdin.isatty():
        click.confirm("Remove the operator from the cluster?", abort=True, err=True)
    reporter = context.reporter()
    told, done, absent = _Told(reporter), list[Action](), dict[str, str]()
    installing.uninstall(by_kubeconfig(kubeconfig), _smallest(), told, dry_run=dry_run)
    if path is None and not config.DEFAULT_FILE.exists():
        reporter.note(
            "without the cluster file its key stays on the nodes; remove it with `operator uninstall --file FILE`",
            level="warning",
        )
    else:
        with session.cluster(config.load(path), terminal.prompts(), reporter.note, may_miss=True) as cluster:
            for name, why in cluster.absent.items():
                reporter.note(f"{why}; its key stays there: run this again", host=name, level="warning")
            done, absent = run(OPERATOR_FORBID, cluster, reporter, dry_run=dry_run), dict(cluster.absent)
    if dry_run:
        told.result(done, absent)
    else:
        text = "the operator is removed; the custom resources and their guard remain (see docs/operator.md)"
        reporter.result(text, owed=_owed(absent))
    if absent:
        sys.exit(EXIT_DEGRADED)


@command("manifests", parent=group, short_help="Print what install applies, as YAML")
@file_option
@image_option
def manifests(context: Context, path: Path | None, image: str) -> None:
    """Print what `operator install` applies as YAML, without the Secret: custom resources, guard and operator.

    The virtual IP in the name of the image is that of the cluster file, or an example if there is none.
    """
    cluster = config.load(path) if path is not None or config.DEFAULT_FILE.exists() else _smallest()
    found = texts(cluster, image=image)
    if context.output == "json":
        echo(json.dumps(found))
    else:
        put("---\n".join(found.values()))


@command("status", parent=group, short_help="Show whether the operator leads, and what it reports")
@kubeconfig_option
def status(context: Context, kubeconfig: Path) -> None:
    """Show whether the operator is installed, which replica leads, and the conditions that it reports.

    Exits with code 5 if no replica leads.
    """
    found = installing.status(by_kubeconfig(kubeconfig))
    if not found.installed:
        raise ConfigError(
            "the operator is not installed in this cluster", hint="run `kubeadm-registry operator install`",
            code="OperatorMissing",
        )  # fmt: skip
    if context.output == "json":
        echo(json.dumps(asdict(found)))
    else:
        echo(f"image       {found.image}")
        echo(f"replicas    {found.ready} of {found.wanted} ready")
        echo(f"leader      {found.leads or 'none'}")
        echo(f"registry    {found.cluster or 'none: apply the cluster file'}")
        for one in found.conditions:
            echo(f"{one['type']:<20} {one['status']:<8} {one['reason']}: {one['message']}")
    if not found.leads:
        sys.exit(EXIT_DEGRADED)


def _smallest() -> RegistryCluster:
    return config.parse(config.SMALLEST, "the quick start")
