"""The rights that reading a cluster needs: these and no others, as a test against a real API server shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Right:
    """To do *verb* with *resource* of the API *group* (empty: the core), only with *name* if given; and *why*."""

    group: str
    resource: str
    why: str
    verb: str = "list"
    name: str = ""


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
