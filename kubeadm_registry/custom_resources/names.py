"""Names that manifests, the operator and the commands agree on."""

from __future__ import annotations

#: The namespace of the operator, and its service account in there.
NAMESPACE = "kubeadm-registry"
SERVICE_ACCOUNT = "operator"
#: The user as whom the operator logs in.
OPERATOR = f"system:serviceaccount:{NAMESPACE}:{SERVICE_ACCOUNT}"
#: The Secret by which it reaches the registry, and where its pods have it.
SECRET = "registry"  # noqa: S105  a name
SECRET_DIRECTORY = "/etc/kubeadm-registry/registry"  # noqa: S105  a path
#: Cluster-scoped objects of the operator, and its Deployment.
NAME = "kubeadm-registry-operator"
#: Why the operator does not look after an object: it looks after another one. The guard lets such an object go.
ANOTHER_OBJECT = "AnotherObject"
#: The port of metrics and probes.
PORT = 8080
