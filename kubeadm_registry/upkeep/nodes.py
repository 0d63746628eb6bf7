"""The Nodes of Kubernetes, as far as the registry goes by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from kubeadm_registry.config import Spec

#: A Node with it is configured to pull from the registry (``operator/clients.py``).
CLIENT = "kubeadm-registry.dev/client"
#: Nodes in one answer of the API server.
_PAGE = 500


def addresses(node: dict[str, Any]) -> tuple[str, ...]:
    """The addresses of a Node inside the cluster (InternalIP), in its order."""
    found = node.get("status", {}).get("addresses", ())
    return tuple(one["address"] for one in found if one["type"] == "InternalIP")


def clients(get: Callable[[str], dict[str, Any] | None], spec: Spec) -> Iterator[dict[str, Any]]:
    """Nodes with the label that are no nodes of the registry. *get* reads a path of the API. Raises what it does."""
    members = {node.name for node in spec.nodes}
    taken = {address for node in spec.nodes for address in node.addresses}
    after = ""
    while True:
        page = get(f"/api/v1/nodes?labelSelector={CLIENT}&limit={_PAGE}{after}") or {}
        for node in page.get("items", ()):
            if node["metadata"]["name"] not in members and taken.isdisjoint(addresses(node)):
                yield node
        if not (token := page.get("metadata", {}).get("continue")):
            return
        after = f"&continue={quote(token)}"
