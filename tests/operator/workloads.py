"""Objects of every kind that uses images, with what a reader must find in each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kubeadm_registry.upkeep.clusters import ClusterReport
from tests.operator.apiserver import ApiServer

Found = tuple[str, str]
"""Reference and imageID."""


@dataclass(frozen=True, slots=True)
class Case:
    """An *object*, what its *status* then says, and the images *found* in it. *ephemeral* containers come later."""

    about: str
    object: Mapping[str, Any]
    found: tuple[Found, ...]
    status: Mapping[str, Any] = field(default_factory=dict)
    ephemeral: tuple[Mapping[str, Any], ...] = ()

    @property
    def user(self) -> str:
        """As a use names it."""
        metadata = self.object["metadata"]
        name = f"{metadata['namespace']}/{metadata['name']}" if "namespace" in metadata else metadata["name"]
        return f"{self.object['kind']} {name}"

    def triples(self) -> Iterator[tuple[str, str, str]]:
        """Each image with the user."""
        return ((reference, image_id, self.user) for reference, image_id in self.found)


def sha(n: int) -> str:
    """A digest."""
    return f"sha256:{n:064x}"


def named(version: str, kind: str, name: str, namespace: str = "shop", **rest: Any) -> dict[str, Any]:
    """An object."""
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}


def spec(*images: str, **rest: Any) -> dict[str, Any]:
    """Of a pod."""
    return {"containers": [{"name": f"c{n}", "image": image} for n, image in enumerate(images)], **rest}


def template(*images: str, **rest: Any) -> dict[str, Any]:
    """Of a pod."""
    return {"metadata": {"labels": {"app": "a"}}, "spec": spec(*images, **rest)}


SELECTOR = {"selector": {"matchLabels": {"app": "a"}}}
RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def state(name: str, image: str, image_id: str) -> dict[str, Any]:
    """The status of a container."""
    return {"name": name, "image": image, "imageID": image_id, "ready": True, "restartCount": 0, "state": RUNNING}


def pod(name: str, *images: str, **rest: Any) -> dict[str, Any]:
    """A pod."""
    return named("v1", "Pod", name, spec=spec(*images, **rest))


JOB = {"template": template("docker.io/job:1", restartPolicy="Never"), "suspend": True}

CASES = (
    Case("a pod that was never started", pod("pending", "nginx"), (("nginx", ""),)),
    Case("tag and digest", pod("digest", f"quay.io/a/b:1@{sha(1)}"), ((f"quay.io/a/b:1@{sha(1)}", ""),)),
    Case(
        "the status is paired by the container's name",
        pod("running", "team/app:1", "team/side:1"),
        (("team/app:1", f"10.0.0.10:5000/docker.io/team/app@{sha(2)}"), ("team/side:1", sha(3))),
        {
            "phase": "Running",
            "containerStatuses": [
                state("c1", "docker.io/team/other:9", sha(3)),
                state("c0", "docker.io/team/app:0", f"10.0.0.10:5000/docker.io/team/app@{sha(2)}"),
            ],
        },
    ),
    Case(
        "a pod that failed",
        pod("failed", "team/job:1"),
        (("team/job:1", f"team/job@{sha(4)}"),),
        {"phase": "Failed", "containerStatuses": [state("c0", "team/job:1", f"team/job@{sha(4)}")]},
    ),
    Case("a pod that is done", pod("done", "team/job:2"), (("team/job:2", ""),), {"phase": "Succeeded"}),
    Case(
        "init containers, also such as stay (sidecars)",
        pod(
            "init",
            "main:1",
            initContainers=[
                {"name": "i", "image": "init:1"},
                {"name": "s", "image": "sidecar:1", "restartPolicy": "Always"},
            ],
        ),
        (("main:1", ""), ("init:1", f"init@{sha(5)}"), ("sidecar:1", "")),
        {"initContainerStatuses": [state("i", "init:1", f"init@{sha(5)}")]},
    ),
    Case(
        "ephemeral containers",
        pod("debugged", "main:2"),
        (("main:2", ""), ("debug:1", f"debug@{sha(6)}")),
        {"ephemeralContainerStatuses": [state("e", "debug:1", f"debug@{sha(6)}")]},
        ({"name": "e", "image": "debug:1"},),
    ),
    Case(
        "image volumes",
        pod(
            "volume",
            "main:3",
            volumes=[{"name": "model", "image": {"reference": "registry.k8s.io/models/m:1", "pullPolicy": "Never"}}],
        ),
        (("main:3", ""), ("registry.k8s.io/models/m:1", "")),
    ),
    Case(
        "a status of a container that the spec does not have",
        pod("odd", "main:4"),
        (("main:4", ""), ("gone:1", f"gone@{sha(7)}"), (sha(8), sha(8))),
        {"containerStatuses": [state("x", "gone:1", f"gone@{sha(7)}"), state("y", "", sha(8))]},
    ),
    Case(
        "a static pod's mirror",
        {
            **pod("etcd-cp-1", "registry.k8s.io/etcd:3.6.8-0", nodeName="cp-1"),
            "metadata": {
                "name": "etcd-cp-1",
                "namespace": "kube-system",
                "annotations": {"kubernetes.io/config.mirror": "x", "kubernetes.io/config.source": "file"},
            },
        },
        (("registry.k8s.io/etcd:3.6.8-0", ""),),
    ),
    Case(
        "a Deployment without pods",
        named(
            "apps/v1",
            "Deployment",
            "d",
            spec={
                "replicas": 0,
                "template": template(
                    "docker.io/deployment:1", initContainers=[{"name": "i", "image": "deployment-init:1"}]
                ),
                **SELECTOR,
            },
        ),
        (("docker.io/deployment:1", ""), ("deployment-init:1", "")),
    ),
    Case(
        "an old ReplicaSet, for rollbacks",
        named(
            "apps/v1",
            "ReplicaSet",
            "r",
            spec={"replicas": 0, "template": template("docker.io/replicaset:1"), **SELECTOR},
        ),
        (("docker.io/replicaset:1", ""),),
    ),
    Case(
        "a template with an image volume",
        named(
            "apps/v1",
            "StatefulSet",
            "s",
            spec={
                "serviceName": "s",
                "template": template("statefulset:1", volumes=[{"name": "v", "image": {"reference": "volume:1"}}]),
                **SELECTOR,
            },
        ),
        (("statefulset:1", ""), ("volume:1", "")),
    ),
    Case(
        "a DaemonSet",
        named("apps/v1", "DaemonSet", "ds", spec={"template": template("daemonset:1"), **SELECTOR}),
        (("daemonset:1", ""),),
    ),
    Case(
        "the revision of a DaemonSet, as its controller writes it",
        named(
            "apps/v1",
            "ControllerRevision",
            "ds-1",
            revision=1,
            data={
                "spec": {
                    "template": {
                        "$patch": "replace",
                        **template(
                            "daemonset:0",
                            initContainers=[{"name": "i", "image": "daemonset-init:0"}],
                            volumes=[{"name": "v", "image": {"reference": "volume:0"}}],
                        ),
                    }
                }
            },
        ),
        (("daemonset:0", ""), ("daemonset-init:0", ""), ("volume:0", "")),
    ),
    Case(
        "a revision of another shape",
        named(
            "apps/v1",
            "ControllerRevision",
            "other",
            revision=1,
            data={
                "pods": [
                    {
                        "containers": [{"image": "third-party:1"}, {"image": {"repository": "x"}}, "text"],
                        "volumes": None,
                    }
                ],
                "containers": 1,
            },
        ),
        (("third-party:1", ""),),
    ),
    Case(
        "a revision without data of use",
        named("apps/v1", "ControllerRevision", "text", revision=1, data={"spec": "x"}),
        (),
    ),
    Case(
        "a ReplicationController",
        named(
            "v1",
            "ReplicationController",
            "rc",
            spec={"replicas": 0, "selector": {"app": "a"}, "template": template("replicationcontroller:1")},
        ),
        (("replicationcontroller:1", ""),),
    ),
    Case("a Job that is suspended", named("batch/v1", "Job", "j", spec=JOB), (("docker.io/job:1", ""),)),
    Case(
        "a CronJob",
        named(
            "batch/v1",
            "CronJob",
            "cj",
            spec={
                "schedule": "0 0 * * *",
                "jobTemplate": {"spec": {"template": template("cronjob:1", restartPolicy="Never")}},
            },
        ),
        (("cronjob:1", ""),),
    ),
    Case(
        "a PodTemplate", named("v1", "PodTemplate", "pt", template=template("podtemplate:1")), (("podtemplate:1", ""),)
    ),
    Case(
        "a node's cache, which is no use",
        named("v1", "Node", "worker-1", ""),
        (),
        {"images": [{"names": [f"cached@{sha(9)}", "cached:1"], "sizeBytes": 1}]},
    ),
)

WORKFLOWS = "example.dev/v1alpha1/workflows"
CUSTOM = Case(
    "a custom resource",
    named(
        "example.dev/v1alpha1",
        "Workflow",
        "w",
        spec={
            "templates": [{"container": {"image": "step:1"}}, {"container": {"image": "step:2"}}, {"script": {}}],
            "tools": ["tool:1"],
        },
    ),
    (("step:1", ""), ("step:2", ""), ("tool:1", "")),
)
PATHS = ((WORKFLOWS, ".spec.templates[*].container.image"), (WORKFLOWS, "{.spec.tools}"))
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "workflows.example.dev"},
    "spec": {
        "group": "example.dev",
        "scope": "Namespaced",
        "names": {"kind": "Workflow", "plural": "workflows"},
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


def fill(server: ApiServer) -> None:
    """Make all of it in *server*, which is empty."""
    answer = server.send(
        "create", [named("v1", "Namespace", "shop", ""), DEFINITION, *(dict(case.object) for case in CASES)]
    )
    assert answer.taken, answer.text
    assert server.ask("wait", "--for=condition=Established", "crd/workflows.example.dev").taken
    answer = server.send("create", [CUSTOM.object])
    assert answer.taken, answer.text
    for case in CASES:
        metadata = case.object["metadata"]
        target = (
            f"{case.object['kind'].lower()}/{metadata['name']}",
            f"--namespace={metadata.get('namespace', 'default')}",
        )
        if case.ephemeral:
            path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/ephemeralcontainers"
            changed = server.get(*target)
            changed["spec"]["ephemeralContainers"] = [*case.ephemeral]
            answer = server.ask("replace", f"--raw={path}", "-f", "-", stdin=json.dumps(changed))
            assert answer.taken, answer.text
        if case.status:
            answer = server.ask(
                "patch", *target, "--subresource=status", "--type=merge", f"-p={json.dumps({'status': case.status})}"
            )
            assert answer.taken, f"{case.about}: {answer.text}"


def triples(report: ClusterReport) -> set[tuple[str, str, str]]:
    """Reference, imageID and user of everything in *report*, none of which more than three share."""
    assert all(use.count == len(use.users) for use in report.uses)
    return {(use.reference, use.image_id, user) for use in report.uses for user in use.users}


def expected(*cases: Case) -> set[tuple[str, str, str]]:
    """The same of *cases*."""
    return {triple for case in cases for triple in case.triples()}
