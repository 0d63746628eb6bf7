"""Who must know of another CA or password beside the registry nodes: client nodes, and the operator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from kubeadm_registry.cli.mirrors import NODES_HELP, run_on_clients
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import helper
from kubeadm_registry.config import RegistryCluster, Spec, client_list
from kubeadm_registry.config.client_list import ClientNode
from kubeadm_registry.custom_resources import installing
from kubeadm_registry.engine.report import Reporter
from kubeadm_registry.errors import ConfigError, Error
from kubeadm_registry.phases.workflows import MIRRORS
from kubeadm_registry.upkeep import nodes
from kubeadm_registry.upkeep.api import Api
from kubeadm_registry.upkeep.kubeconfig import by_kubeconfig

nodes_option = click.option(
    "--nodes", type=click.Path(path_type=Path), metavar="FILE", help=f"The client nodes. {NODES_HELP}"
)
no_clients_option = click.option("--no-clients", is_flag=True, help="There are no client nodes.")
kubeconfig_option = click.option(
    "--kubeconfig", metavar="FILE", type=click.Path(path_type=Path), envvar="KUBECONFIG",
    help="Kubeconfig of the cluster in which the operator is installed.  [env: KUBECONFIG]",
)  # fmt: skip


def clients(nodes: Path | None, spec: Spec, *, no_clients: bool, what: str) -> tuple[ClientNode, ...]:
    """The client nodes of the file *nodes*; *what* cannot do without, or without being told that there are none.

    Raises ConfigError.
    """
    if (nodes is not None) is no_clients:
        raise ConfigError(
            f"{what} needs either --nodes FILE or --no-clients", code="UsageInvalid",
            hint="list every client node: one that is not listed cannot pull afterwards",
        )  # fmt: skip
    if nodes is None:
        return ()
    listed = client_list.load(nodes)
    client_list.refuse_registry(listed, spec, str(nodes))
    # This run has locked them, and would wait for itself.
    client_list.refuse_servers(listed, spec, str(nodes), ": this command configures registry nodes itself")
    return listed


def operator_of(cluster: Cluster, kubeconfig: Path | None) -> Api | None:
    """The API server of the operator that the nodes answer to; None if there is none. Raises ConfigError."""
    if all(host.read(helper.KEYS) is None for host in cluster.hosts):
        return None
    if kubeconfig is None:
        raise ConfigError(
            "the operator is installed and must be updated as well", code="UsageInvalid",
            hint="pass --kubeconfig FILE, or remove it with `kubeadm-registry operator uninstall`",
        )  # fmt: skip
    return by_kubeconfig(kubeconfig)


def refuse_unlisted(operator: Api | None, listed: Sequence[ClientNode], spec: Spec) -> None:
    """Raise ConfigError (ClientsUnlisted) if *listed* lack a Node that the operator configures as a client node.

    Raises ConnectionFailed as well.
    """
    if operator is None:
        return
    known = {word for client in listed for word in (client.name, client.address)}
    missing = {
        node["metadata"]["name"]: f"{node['metadata']['name']} {next(iter(nodes.addresses(node)), 'ADDRESS')}"
        for node in nodes.clients(partial(installing.read, operator), spec)
        if known.isdisjoint((node["metadata"]["name"], *nodes.addresses(node)))
    }
    if missing:
        raise ConfigError(
            f"these Nodes have the label {nodes.CLIENT} and are not in the list of client nodes: {', '.join(missing)}",
            code="ClientsUnlisted",
            hint=f"add to the file that --nodes names: {'; '.join(missing.values())}",
        )


class Others:
    """Has the client nodes and the operator trust, and log in with, what the secrets of a cluster say."""

    def __init__(
        self, cluster_file: RegistryCluster, listed: tuple[ClientNode, ...], operator: Api | None, reporter: Reporter,
        *, what: str, dry_run: bool,
    ) -> None:  # fmt: skip
        self._what = what
        self._file, self._listed, self._operator = cluster_file, listed, operator
        self._reporter, self._dry_run = reporter, dry_run

    def __call__(self, cluster: Cluster) -> None:
        """Bring them there. Raises Error (TrustPending), which names those that are not."""
        if self._operator is not None and not self._dry_run:
            installing.refresh(self._operator, cluster.secrets, self._reporter.note)
        if not self._listed:
            return
        outcomes = run_on_clients(
            MIRRORS, self._file, cluster.vault, self._listed, self._reporter, dry_run=self._dry_run
        )
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        for outcome in failed:
            self._reporter.note(f"failed: {outcome.reason}", host=outcome.client.name, level="warning")
        if failed:
            names = ", ".join(outcome.client.name for outcome in failed)
            raise Error(
                f"{self._what} cannot be replaced further: {names} could not be configured", code="TrustPending",
                hint="fix these nodes, or remove those that are gone from the list, then run the command again",
            )  # fmt: skip
