"""The rights that reading a cluster needs: these and no others, as a test against a real API server shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Right:
    """To do *verb* with *resource* of the API *group* (empty: the core), only with *name* if given; and *why*."""

    group: str
    resource: str
    why: str
    verb: str = "list"
    name: str = ""

    def rule(self) -> dict[str, Any]:
        """As a rule of a ClusterRole (rbac.authorization.k8s.io/v1)."""
        names = {"resourceNames": [self.name]} if self.name else {}
        return {"apiGroups": [self.group], "resources": [self.resource], **names, "verbs": [self.verb]}


#: ``/version`` needs none: system:public-info-viewer lets everybody read it. ``list pods`` shows all of a pod, with its
#: environment variables; Kubernetes has no narrower right.
RIGHTS = (
    Right("", "namespaces", "its UID tells clusters apart", "get", "kube-system"),
    Right("", "pods", "images of containers and image volumes, and the digests that run"),
    Right("", "replicationcontrollers", "templates"),
    Right("", "podtemplates", "templates"),
    Right("apps", "deployments", "templates, also of Deployments without pods"),
    Right("apps", "replicasets", "what a Deployment can be rolled back to"),
    Right("apps", "statefulsets", "templates"),
    Right("apps", "daemonsets", "templates"),
    Right("apps", "controllerrevisions", "what a StatefulSet or DaemonSet can be rolled back to"),
    Right("batch", "jobs", "templates of Jobs that are suspended or wait for a retry"),
    Right("batch", "cronjobs", "templates of Jobs to come"),
)
#: With ``node_images`` only.
NODE_RIGHT = Right("", "nodes", "images in the caches of nodes")


def rights(*, paths: Iterable[tuple[str, str]] = (), node_images: bool = False) -> Iterator[Right]:
    """The rights that ``clusters.read`` needs with these options."""
    yield from RIGHTS
    if node_images:
        yield NODE_RIGHT
    for resource in dict.fromkeys(name for name, _ in paths):
        group, _, plural = resource.split("/")
        yield Right(group, plural, "images in custom resources, as configured")


def cluster_role(name: str, given: Sequence[Right]) -> dict[str, Any]:
    """The ClusterRole *name* with the rights *given*."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": [right.rule() for right in given],
    }
