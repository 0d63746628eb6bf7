"""The operator in a cluster: everything that it is installed with but its definitions, guard and Secret.

Two replicas, of which one acts. They fit the restricted Pod Security standard
(https://kubernetes.io/docs/concepts/security/pod-security-standards/).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Any

from kubeadm_registry import __version__, paths
from kubeadm_registry.addresses import endpoint, is_ipv6
from kubeadm_registry.bundle.tool import OPERATOR_REPOSITORY, operator_tag
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.custom_resources.names import (
    NAME,
    NAMESPACE,
    PORT,
    SECRET,
    SECRET_DIRECTORY,
    SERVICE_ACCOUNT,
)
from kubeadm_registry.custom_resources.roles import LEASE, roles

#: In a Pod: who is in no passwd (``bundle/make/operator_image.py``).
_USER = 65532
_LABELS = {"app.kubernetes.io/name": NAME}
_PREFIX = "KUBEADM_REGISTRY_OPERATOR_"
#: The C library would keep eight pools of memory for each processor, for threads that come and go.
ALLOCATOR = {"MALLOC_ARENA_MAX": "2"}


def image(config: RegistryCluster) -> str:
    """The operator's image of this release, as nodes pull it through the virtual IP of the registry in *config*."""
    vip = config.spec.vip
    # In the name of an image there is no place for the brackets of an IPv6 address.
    named = vip.name if is_ipv6(vip.address) and vip.name else vip.address
    return f"{endpoint(named, paths.REGISTRY_PORT)}/{OPERATOR_REPOSITORY}:{operator_tag(__version__)}"


def installation(
    config: RegistryCluster, *, pulled_as: str = "", api_ports: Iterable[int] = ()
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The objects, in the order in which they are applied; *pulled_as* is another image than that of ``image``.

    The API server may have one of *api_ports*, besides those that are usual.
    """
    restricted = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    yield {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": restricted},
    }
    yield _of("v1", "ServiceAccount", SERVICE_ACCOUNT, automountServiceAccountToken=False)
    yield from roles()
    # The operator may not create it: that right cannot be narrowed by name.
    yield _of("coordination.k8s.io/v1", "Lease", LEASE)
    yield _of("apps/v1", "Deployment", NAME, spec=_deployment(pulled_as or image(config)))
    yield _of("policy/v1", "PodDisruptionBudget", NAME,
              spec={"maxUnavailable": 1, "selector": {"matchLabels": _LABELS}})  # fmt: skip
    ssh_ports = sorted({config.spec.ssh_port(node) for node in config.spec.nodes})
    api_ports = sorted({443, 6443, *api_ports})
    yield _of("networking.k8s.io/v1", "NetworkPolicy", NAME, spec={
        "podSelector": {"matchLabels": _LABELS},
        "policyTypes": ["Ingress", "Egress"],
        # Metrics, and the probes of the kubelet.
        "ingress": [{"ports": [{"protocol": "TCP", "port": PORT}]}],
        # The API server has any port behind its Service; the registry, its agents and the nodes' sshd have these.
        "egress": [{"ports": [{"protocol": "TCP", "port": port}
                              for port in (*api_ports, paths.REGISTRY_PORT, paths.AGENT_PORT, *ssh_ports)]}],
    })  # fmt: skip
    yield _of("v1", "Service", f"{NAME}-metrics", spec={
        "selector": _LABELS, "ports": [{"name": "metrics", "protocol": "TCP", "port": PORT, "targetPort": PORT}],
    })  # fmt: skip


def _of(version: str, kind: str, name: str, **rest: Any) -> dict[str, Any]:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": _LABELS},
        **rest,
    }


def _deployment(name: str) -> dict[str, Any]:
    return {
        "replicas": 2,
        "selector": {"matchLabels": _LABELS},
        # The new one is there before the old one ends: where both run, the lease decides.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 1}},
        "template": {"metadata": {"labels": _LABELS}, "spec": _pod(name)},
    }


def _pod(name: str) -> dict[str, Any]:
    return {
        "serviceAccountName": SERVICE_ACCOUNT,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "priorityClassName": "system-cluster-critical",
        "terminationGracePeriodSeconds": 30,
        # A registry is often there before any worker is.
        "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "podAffinityTerm": {
                "topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": _LABELS},
            }},
        ]}},
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [{
            "name": "operator",
            "image": name,
            "imagePullPolicy": "IfNotPresent",
            "env": [
                {"name": f"{_PREFIX}NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": f"{_PREFIX}NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
                *({"name": name, "value": value} for name, value in ALLOCATOR.items()),
            ],
            "ports": [{"name": "metrics", "containerPort": PORT, "protocol": "TCP"}],
            "livenessProbe": {
                "httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 10, "timeoutSeconds": 5,
                "failureThreshold": 6,
            },
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": PORT}, "periodSeconds": 5, "timeoutSeconds": 5},
            "resources": {
                "requests": {"cpu": "20m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "1Gi"},
            },
            "securityContext": {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True,
            },
            "volumeMounts": [
                {"name": "registry", "mountPath": SECRET_DIRECTORY, "readOnly": True},
                {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  in the container
            ],
        }],
        "volumes": [
            # Without it the operator runs, and says what it lacks.
            {"name": "registry", "secret": {"secretName": SECRET, "defaultMode": 0o440, "optional": True}},
            {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
        ],
    }  # fmt: skip


def secret(values: dict[str, str]) -> dict[str, Any]:
    """The Secret by which the operator reaches the registry."""
    # Not stringData: by server-side apply a key that is left out there would stay.
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {**_of("v1", "Secret", SECRET), "type": "Opaque", "data": data}
