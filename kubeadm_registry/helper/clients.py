"""Have a client node pull from the registry, as `mirrors apply` does it, from a node and by the key that nodes have.

The operator asks for it (``operator/clients.py``). The client lets the nodes in by the line in its authorized_keys that
`operator install --replace-nodes` prints, and is known by its SSH host key alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kubeadm_registry.access import client_nodes, session
from kubeadm_registry.access.collecting import Place, Values, invalid
from kubeadm_registry.components import replacing
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.config.client_list import ClientNode
from kubeadm_registry.config.model import Model
from kubeadm_registry.config.values import Address, DnsName, HostKey
from kubeadm_registry.engine.report import Silent
from kubeadm_registry.errors import Error, PreflightFailed
from kubeadm_registry.phases.workflows import MIRRORS
from kubeadm_registry.printable import Level
from kubeadm_registry.transport.host import Transport
from kubeadm_registry.transport.ssh import ROOT, connect


class Client(Model):
    """A Node of Kubernetes that pulls from the registry and is none of its nodes."""

    name: DnsName
    address: Address
    host_key: HostKey


def reach(config: RegistryCluster, client: Client) -> Transport:
    """Come to *client* from this node, by the nodes' key and no setting of this machine. Raises ConnectionFailed."""
    target = session.target(config, ClientNode(client.name, client.address), session.Prompts())
    return connect(
        replace(
            target, user=target.user or ROOT, identity_file=Path(replacing.KEY), host_key=client.host_key,
            source=session.own_address(config, client.address), config_file=Path(os.devnull),
        )
    )  # fmt: skip


def point(
    place: Place, values: Values, reach_: Callable[[RegistryCluster, Client], Transport] = reach
) -> dict[str, Any]:
    """Configure containerd on the client node that *values* name: how many changes that took, and what was noted.

    Raises Error: QuestionInvalid, ClientsForbidden, PreflightFailed, ConnectionFailed.
    """
    try:
        client = Client.model_validate(dict(values))
    except ValidationError as error:
        raise invalid(str(error.errors()[0]["loc"][0])) from error
    if not place.host.query("test", "-e", replacing.KEY).ok:
        raise Error(
            "the nodes have no SSH key for other machines", host=place.host.name, code="ClientsForbidden",
            hint="run `kubeadm-registry operator install --replace-nodes`, or `mirrors apply` for that node",
        )  # fmt: skip
    notes, listed = _Notes(), [ClientNode(client.name, client.address)]
    [done] = client_nodes.run_each(
        MIRRORS, place.cluster, listed, lambda _: reach_(place.cluster.config, client), notes
    )
    if (failed := done.error) is not None:
        hint = "see docs/containerd.md" if isinstance(failed, PreflightFailed) else failed.hint
        raise Error(done.reason, host=client.name, code=failed.code, hint=hint) from failed
    return {"changes": len(done.actions), "notes": notes.said}


class _Notes(Silent):
    """Keeps what is worth knowing."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str, *, host: str = "", level: Level = "info") -> None:
        """See Reporter."""
        self.said.append(text)
