"""Every way in which a cluster uses an image, each with an image of its own, and what proves that it still can."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from kubeadm_registry import paths
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import push_blob, retry
from tests.kubernetes import images
from tests.kubernetes.cluster import Kubernetes, pull, write
from tests.lab import images as lab_images
from tests.lab.host import Host

AREA = "tests/uses"
#: A repository that the nodes take from the registry by its upstream's name.
MIRRORED = f"{images.UPSTREAM}/{AREA}/mirrored"
STATIC_POD = "/etc/kubernetes/manifests/uses-static.yaml"
ROLLED_BACK = ("deployment", "statefulset", "daemonset")
_RESOURCE = "machines.tests.example"
_DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": _RESOURCE},
    "spec": {
        "group": "tests.example",
        "scope": "Namespaced",
        "names": {"kind": "Machine", "plural": "machines", "singular": "machine"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": {"type": "object", "properties": {"image": {"type": "string"}}}},
                    }
                },
            }
        ],
    },
}
#: Deletes every image that nothing uses.
KEEPS_NOTHING = """\
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryPolicy
metadata: {name: retention}
spec:
  grace: 1m
  workloadGrace: 1m
  sets: []
  rules:
    - {name: all, repositories: ["**"], keep: {tags: ["none-has-this"]}}
"""
OPERATED = "by-the-operator/app"
#: Of what the operator is tried with, the newest image stays.
KEEPS_THE_NEWEST = f"""\
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryPolicy
metadata: {{name: retention}}
spec:
  grace: 1m
  workloadGrace: 1m
  sets: []
  rules:
    - {{name: newest, repositories: ["{OPERATED}"], keep: {{newest: 1}}}}
"""
#: Like the first, but for what a bundle brought and kubeadm asks for, and for good after a minute.
POLICY = KEEPS_NOTHING.replace(
    "  sets: []\n",
    """\
  trash: {window: 1m}
  untagged: {after: 1m}
  sets: [bundle, kubeadm]
  imagePaths:
    - {apiVersion: tests.example/v1, resource: machines, path: .spec.image}
""",
)


@dataclass
class Workloads:
    """What was made in the cluster. *used*: the names of images by their use; *unused*: those that nothing uses."""

    kubernetes: Kubernetes
    used: dict[str, str] = field(default_factory=dict)
    unused: dict[str, lab_images.Image] = field(default_factory=dict)

    def make(self) -> None:
        """All of them; waits until what runs is ready, in its second revision where there is one."""
        first, second, third = self.kubernetes.servers.values()
        for kind in ROLLED_BACK:
            self._apply(_controller(kind, self._image(f"{kind}-1"), first))
        for kind in ROLLED_BACK:
            self._wait_rolled_out(kind)
            self._apply(_controller(kind, self._image(f"{kind}-2"), first))
        self._apply(_pod("digest", self._by_digest("digest"), second))
        self._apply(_pod("mirrored", self._mirrored(), second))
        self._apply(_pod("index", self._index(), second))
        self._apply(_pod("init", self._image("main"), second, first=self._image("init")))
        self._apply(_pod("volume", self._image("beside-volume"), second, volume=self._image("volume")))
        self._apply(_cron_job(self._image("cron")))
        self._apply(_DEFINITION)
        write(third, STATIC_POD, json.dumps(_pod("static", self._image("static"))))
        self.kubernetes.kubectl("wait", "--for=condition=Established", f"crd/{_RESOURCE}")
        machine = {"apiVersion": "tests.example/v1", "kind": "Machine", "metadata": {"name": "uses-resource"}}
        self._apply({**machine, "spec": {"image": self._image("resource")}})
        for number in range(3):
            mark = f"unused-{number}"
            self.unused[mark] = images.guest(f"{AREA}-{mark}")
            self._push(self.unused[mark], AREA, mark)
        for kind in ROLLED_BACK:
            self._wait_rolled_out(kind)
        for name in ("uses-digest", "uses-mirrored", "uses-index", f"uses-static-{third.name}"):
            self.kubernetes.wait_running(name, seconds=120)

    def roll_back(self) -> None:
        """Go back to the first revision of all three kinds, whose images no host has any more."""
        for kind in ROLLED_BACK:
            self.kubernetes.kubectl("rollout", "undo", f"{kind}/uses")
        for kind in ROLLED_BACK:
            self._wait_rolled_out(kind)

    def pull_all(self, host: Host) -> dict[str, str]:
        """Pull each image that is used on *host*, which has none of them; what was said of those that failed."""
        failed = {}
        for use, name in self.used.items():
            host.sh("crictl", "rmi", name, check=False)
            if error := pull(host, name, check=False)[1]:
                failed[use] = error
        return failed

    def remove(self) -> None:
        """Take all of it away again."""
        for host in self.kubernetes.servers.values():
            host.sh("rm", "-f", STATIC_POD)
        kinds = "deployment,statefulset,daemonset,cronjob,pod"
        self.kubernetes.kubectl("delete", kinds, "--selector=app=uses", "--now", "--ignore-not-found", timeout=240)
        self.kubernetes.kubectl("delete", "crd", _RESOURCE, "--ignore-not-found")

    def _apply(self, manifest: dict[str, Any]) -> None:
        self.kubernetes.kubectl("apply", "--filename=-", stdin=json.dumps(manifest))

    def _wait_rolled_out(self, kind: str) -> None:
        self.kubernetes.kubectl("rollout", "status", f"{kind}/uses", "--timeout=170s", timeout=180)

    def _push(self, image: lab_images.Image, repository: str, tag: str) -> None:
        retry(lambda: lab_images.push(self.kubernetes.registry, image, repository, tag), 60)

    def _name(self, repository: str, reference: str) -> str:
        return f"{self.kubernetes.registry.vip}:{paths.REGISTRY_PORT}/{repository}{reference}"

    def _image(self, use: str) -> str:
        self._push(images.guest(f"{AREA}-{use}"), AREA, use)
        self.used[use] = self._name(AREA, f":{use}")
        return self.used[use]

    def _by_digest(self, use: str) -> str:
        image = images.guest(f"{AREA}-{use}")
        self._push(image, AREA, use)
        self.used[use] = self._name(AREA, f"@{image.digest}")
        return self.used[use]

    def _mirrored(self) -> str:
        self._push(images.guest(f"{AREA}-mirrored"), MIRRORED, "v1")
        self.used["mirrored"] = f"{MIRRORED}:v1"
        return self.used["mirrored"]

    def _index(self) -> str:
        """An index of this machine's image and one of a platform that no host has."""
        repository, registry = f"{AREA}/index", self.kubernetes.registry
        ours, other = images.guest(f"{AREA}-index"), lab_images.image((50_000,), seed=time.time_ns())
        entries = [
            {
                "mediaType": lab_images.MANIFEST,
                "digest": image.digest,
                "size": len(image.manifest),
                "platform": {"os": "linux", "architecture": architecture},
            }
            for image, architecture in ((ours, "amd64"), (other, "s390x"))
        ]
        content = oci.canonical({"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": entries})
        with registry.lab.network(), lab_images.client(registry, role="push", timeout=180) as at:
            for image in (ours, other):
                for blob in image.blobs:
                    push_blob(at, repository, lab_images.digest_of(blob), blob)
                at.push_manifest(repository, image.digest, image.manifest, lab_images.MANIFEST)
            at.push_manifest(repository, "v1", content, oci.INDEX)
        self.used["index"] = self._name(repository, ":v1")
        self.used["part of the index"] = self._name(repository, f"@{ours.digest}")
        self.used["part for another platform"] = self._name(repository, f"@{other.digest}")
        return self.used["index"]


def _container(name: str, image: str) -> dict[str, Any]:
    return {"name": name, "image": image, "resources": {"requests": {"cpu": "10m"}}}


def _template(image: str, host: Host) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"app": "uses"}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": host.name},
            "terminationGracePeriodSeconds": 1,
            "containers": [_container("guest", image)],
        },
    }


def _controller(kind: str, image: str, host: Host) -> dict[str, Any]:
    kinds = {"deployment": "Deployment", "statefulset": "StatefulSet", "daemonset": "DaemonSet"}
    labels = {"app": "uses", "kind": kind}
    template = _template(image, host)
    template["metadata"]["labels"] = labels
    return {
        "apiVersion": "apps/v1",
        "kind": kinds[kind],
        "metadata": {"name": "uses", "labels": {"app": "uses"}},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": template,
            **({} if kind == "daemonset" else {"replicas": 1}),
            **({"serviceName": "uses"} if kind == "statefulset" else {}),
        },
    }


def _pod(use: str, image: str, host: Host | None = None, *, first: str = "", volume: str = "") -> dict[str, Any]:
    container = _container("guest", image)
    spec: dict[str, Any] = {"terminationGracePeriodSeconds": 1, "containers": [container]}
    if host is not None:
        spec["nodeSelector"] = {"kubernetes.io/hostname": host.name}
    if first:
        spec["initContainers"] = [_container("first", first)]
    if volume:
        spec["volumes"] = [{"name": "image", "image": {"reference": volume}}]
        container["volumeMounts"] = [{"name": "image", "mountPath": "/image", "readOnly": True}]
    metadata = {"name": f"uses-{use}", "labels": {"app": "uses"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _cron_job(image: str) -> dict[str, Any]:
    pod = {"restartPolicy": "Never", "containers": [_container("guest", image)]}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "uses", "labels": {"app": "uses"}},
        "spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": {"spec": pod}}}},
    }
