"""The rights of the operator, each with its reason: what it needs and nothing else (tests/operator/test_install.py).

docs/operator.md shows this table. There is no right to delete, to read Secrets, or to create a Lease: that one is part
of the manifests, because the right to create cannot be narrowed by name. Only an operator that was installed to replace
nodes may change a spec.
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


_WATCH = ("list", "watch")
GRANTS = (
    Grant(GROUP, "registryclusters", _WATCH, "what the registry should be"),
    Grant(GROUP, "registrypolicies", ("get", *_WATCH), "which images to keep"),
    Grant(GROUP, "registryretentionplans", ("get", *_WATCH, "create"), "the plan, and what people say of it"),
    Grant(GROUP, "registryclusters/status", ("update",), "conditions"),
    Grant(GROUP, "registrypolicies/status", ("update",), "conditions"),
    Grant(GROUP, "registryretentionplans/status", ("update",), "the plan itself"),
    Grant("events.k8s.io", "events", ("create", "get", "patch"), "Events about objects of no namespace",
          namespace="default"),
    Grant("coordination.k8s.io", "leases", ("get", "update"), "who leads", LEASE, NAMESPACE),
    Grant("", "nodes", ("get", "list"), "whether a silent node is Ready, what may take its place, and new workers"),
    *(Grant(one.group, one.resource, (one.verb,), one.why, one.name) for one in RIGHTS),
)  # fmt: skip
REPLACING = (Grant(GROUP, "registryclusters", ("patch",), "to put a new node in the place of one that is gone"),)
"""Only of an operator that was installed to replace nodes."""


def roles() -> Iterator[dict[str, Any]]:
    """A ClusterRole, and a Role for each namespace, each with its binding to the operator's service account."""
    for namespace in dict.fromkeys(one.namespace for one in GRANTS):
        yield from _role(NAME, namespace, [one for one in GRANTS if one.namespace == namespace])


def replacing() -> Iterator[dict[str, Any]]:
    """The ClusterRole of ``REPLACING``, and its binding."""
    yield from _role(f"{NAME}-replacing", "", REPLACING)


def _role(name: str, namespace: str, grants: Sequence[Grant]) -> Iterator[dict[str, Any]]:
    kind = "Role" if namespace else "ClusterRole"
    where = {"namespace": namespace} if namespace else {}
    yield {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name, **where},
        "rules": [one.rule() for one in grants],
    }
    yield {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": f"{kind}Binding",
        "metadata": {"name": name, **where},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": SERVICE_ACCOUNT, "namespace": NAMESPACE}],
    }
