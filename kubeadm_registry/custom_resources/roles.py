"""The rights of the operator, each with its reason: what it needs and nothing else (tests/operator/test_rights.py).

docs/operator.md shows this table. There is no right to delete, to read Secrets, to change a spec, or to create a Lease:
that one is part of the manifests, because the right to create cannot be narrowed by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kubeadm_registry.custom_resources.definitions import GROUP
from kubeadm_registry.custom_resources.names import NAME, NAMESPACE, SERVICE_ACCOUNT
from kubeadm_registry.upkeep.rights import RIGHTS

LEASE = "operator"


@dataclass(frozen=True, slots=True)
class Grant:
    """To do *verbs* with *resource* of the API *group* (empty: the core), in *namespace* or everywhere; and *why*.

    Only with *name* if given.
    """

    group: str
    resource: str
    verbs: tuple[str, ...]
    why: str
    name: str = ""
    namespace: str = ""

    def rule(self) -> dict[str, Any]:
        """As a rule of a Role or ClusterRole."""
        names = {"resourceNames": [self.name]} if self.name else {}
        return {"apiGroups": [self.group], "resources": [self.resource], **names, "verbs": list(self.verbs)}


_WATCH = ("get", "list", "watch")
GRANTS = (
    Grant(GROUP, "registryclusters", _WATCH, "what the registry should be"),
    Grant(GROUP, "registrypolicies", _WATCH, "which images to keep"),
    Grant(GROUP, "registryretentionplans", (*_WATCH, "create"), "the plan, and what people say of it"),
    Grant(GROUP, "registryclusters/status", ("update",), "conditions"),
    Grant(GROUP, "registrypolicies/status", ("update",), "conditions"),
    Grant(GROUP, "registryretentionplans/status", ("update",), "the plan itself"),
    Grant("events.k8s.io", "events", ("create", "get", "patch"), "Events about objects of no namespace",
          namespace="default"),
    Grant("coordination.k8s.io", "leases", ("get", "update"), "who leads", LEASE, NAMESPACE),
    *(Grant(one.group, one.resource, (one.verb,), one.why, one.name) for one in RIGHTS),
)  # fmt: skip


def roles() -> Iterator[dict[str, Any]]:
    """A ClusterRole, and a Role for each namespace, each with its binding to the operator's service account."""
    for namespace in dict.fromkeys(one.namespace for one in GRANTS):
        yield from _role(namespace, [one for one in GRANTS if one.namespace == namespace])


def _role(namespace: str, grants: Sequence[Grant]) -> Iterator[dict[str, Any]]:
    kind = "Role" if namespace else "ClusterRole"
    where = {"namespace": namespace} if namespace else {}
    yield {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": NAME, **where},
        "rules": [one.rule() for one in grants],
    }
    yield {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": f"{kind}Binding",
        "metadata": {"name": NAME, **where},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": NAME},
        "subjects": [{"kind": "ServiceAccount", "name": SERVICE_ACCOUNT, "namespace": NAMESPACE}],
    }
