"""Pods and nodes as a cluster has them, written through its API: python -m tests.bench.pods PORT FIRST COUNT

Two managers write them, controller and kubelet, so that half of each is managedFields, as in life: 11 kB of JSON a pod.
"""

from __future__ import annotations

import http.client
import json
import ssl
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

NAMESPACES, NODES, IMAGES = 50, 5_000, 2_000
#: Connections of a process.
_WIDE = 12
_NOW = "2026-01-01T00:00:00Z"
_HOSTS = ("registry.k8s.io", "docker.io", "quay.io", "ghcr.io", "10.0.0.10:5000/docker.io")


def image(number: int) -> str:
    """One of so many."""
    at = number % IMAGES
    return f"{_HOSTS[at % 5]}/team-{at % 97}/application-{at}:v1.{at % 40}"


def image_id(number: int) -> str:
    """What a status says of it."""
    return f"{image(number).rpartition(':')[0]}@sha256:{number % IMAGES * 2654435761:064x}"


def pod(number: int) -> dict[str, Any]:
    """A pod of three containers."""
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"a{number // 10}", "controller": True,
             "uid": f"{number // 10:08d}-0000-0000-0000-000000000001", "blockOwnerDeletion": True}  # fmt: skip
    return {
        "metadata": {
            "name": f"a{number // 10}-{number:08}",
            "labels": {"app": f"a{number // 10}", "pod-template-hash": f"{number // 10:010x}"},
            "ownerReferences": [owner],
        },
        "spec": {
            "nodeName": f"node-{number % NODES}",
            "containers": [container(number, "main"), container(number + 7, "sidecar")],
            "initContainers": [{"name": "init", "image": image(number + 13)}],
            "tolerations": [
                {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute",
                 "tolerationSeconds": 300}
                for key in ("not-ready", "unreachable")
            ],
            "volumes": [{"name": "configuration", "configMap": {"name": "app"}}, {"name": "scratch", "emptyDir": {}}],
        },
    }  # fmt: skip


def container(number: int, name: str) -> dict[str, Any]:
    """One with what is usual."""
    return {
        "name": name,
        "image": image(number),
        "env": [{"name": f"SETTING_{key}", "value": f"value-{number}-{key}"} for key in range(8)],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10},
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}},
        "volumeMounts": [
            {"name": "configuration", "mountPath": "/etc/app"},
            {"name": "scratch", "mountPath": "/tmp"},
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True},
    }


def status(number: int) -> dict[str, Any]:
    """Of a pod that runs."""
    running, done = {"running": {"startedAt": _NOW}}, {"terminated": {"exitCode": 0, "reason": "Completed"}}

    def one(of: int, name: str, state: Mapping[str, Any]) -> dict[str, Any]:
        return {"name": name, "image": image(of), "imageID": image_id(of), "ready": True, "restartCount": 0,
                "started": True, "containerID": f"containerd://{of:064x}", "state": state, "lastState": {}}  # fmt: skip

    conditions = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    return {"status": {
        "phase": "Running", "hostIP": "10.0.0.1", "startTime": _NOW, "qosClass": "Burstable",
        "conditions": [{"type": each, "status": "True", "lastTransitionTime": _NOW} for each in conditions],
        "containerStatuses": [one(number, "main", running), one(number + 7, "sidecar", running)],
        "initContainerStatuses": [one(number + 13, "init", done)],
    }}  # fmt: skip


def node(number: int) -> dict[str, Any]:
    """A node as its kubelet registers it, with the 50 images that it tells of (nodeStatusMaxImages)."""
    told = [image(number + at * 3) for at in range(50)]
    return {
        "metadata": {
            "name": f"node-{number}",
            "labels": {"kubernetes.io/hostname": f"node-{number}", "kubernetes.io/os": "linux"},
        },
        "spec": {"podCIDR": f"10.{number // 256}.{number % 256}.0/24"},
        "status": {
            "addresses": [{"type": "Hostname", "address": f"node-{number}"}],
            "capacity": {"cpu": "64", "memory": "263856Mi", "pods": "110"},
            "conditions": [
                {"type": each, "status": "False", "reason": f"KubeletHasNo{each}", "message": f"no {each}",
                 "lastHeartbeatTime": _NOW, "lastTransitionTime": _NOW}
                for each in ("MemoryPressure", "DiskPressure", "PIDPressure")
            ],
            "images": [{"names": [name, f"{name.rpartition(':')[0]}@sha256:{at:064x}"], "sizeBytes": 50_000_000 + at}
                       for at, name in enumerate(told)],
        },
    }  # fmt: skip


class Writer:
    """A connection to the API server of a test on loopback."""

    def __init__(self, port: int) -> None:
        context = ssl._create_unverified_context()  # noqa: S323
        self._line = http.client.HTTPSConnection("127.0.0.1", port, context=context)

    def send(self, method: str, path: str, manager: str, value: object, kind: str = "application/json") -> None:
        """Write one object; one that is there already is fine."""
        headers = {"Authorization": "Bearer admin-token", "Content-Type": kind}
        self._line.request(method, f"{path}?fieldManager={manager}", json.dumps(value), headers)
        answer = self._line.getresponse()
        said = answer.read()
        assert answer.status in (http.client.OK, http.client.CREATED, http.client.CONFLICT), said[:500]


def write(port: int, numbers: range) -> None:
    """The pods of these numbers, and the nodes as far as there are so many, by one connection."""
    writer = Writer(port)
    for number in numbers:
        if number < NODES:
            writer.send("POST", "/api/v1/nodes", "kubelet", node(number))
        path = f"/api/v1/namespaces/ns-{number % NAMESPACES}/pods"
        made = pod(number)
        writer.send("POST", path, "kube-controller-manager", made)
        writer.send("PATCH", f"{path}/{made['metadata']['name']}/status", "kubelet", status(number),
                    "application/strategic-merge-patch+json")  # fmt: skip


def main() -> None:
    """Write the namespaces, so many pods, and a node with each as long as there are nodes."""
    port, begin, count = map(int, sys.argv[1:])
    writer = Writer(port)
    for number in range(NAMESPACES):
        writer.send("POST", "/api/v1/namespaces", "kubectl", {"metadata": {"name": f"ns-{number}"}})
    with ThreadPoolExecutor(_WIDE) as pool:
        for done in [pool.submit(write, port, range(begin + at, begin + count, _WIDE)) for at in range(_WIDE)]:
            done.result()


if __name__ == "__main__":
    main()
