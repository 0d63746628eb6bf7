"""Reading what a cluster uses, without a cluster: paths, pages, images of an object, kubeadm's set, patience."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import pytest
import urllib3

from kubeadm_registry.containerd.settings import DEFAULT_PAUSE_IMAGES, PAUSE_IMAGES
from kubeadm_registry.errors import ConfigError, ConnectionFailed
from kubeadm_registry.retention import jsonpath
from kubeadm_registry.retention.reasons import Reason
from kubeadm_registry.retention.uses import Use
from kubeadm_registry.upkeep import kubeconfig, object_images, structs
from kubeadm_registry.upkeep.api import Answer, Api
from kubeadm_registry.upkeep.clusters import RESOURCES, kubeadm_set, pause_images, read, united
from kubeadm_registry.upkeep.rights import RIGHTS

# ---- JSONPath -------------------------------------------------------------------------------------------------------

OBJECT = {
    "spec": {
        "image": "a:1",
        "none": None,
        "images": ["b:1", "", "b:2"],
        "steps": [{"image": "c:1"}, {"other": 1}, {"image": None}, {"image": "c:2"}],
        "by": {"x": {"image": "d:1"}, "y": {"image": "d:2"}},
        "a.key/x": "e:1",
        "number": 1,
        "yes": True,
    }
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".spec.image", ["a:1"]),
        ("$.spec.image", ["a:1"]),
        ("{.spec.image}", ["a:1"]),
        (" { $.spec.image } ", ["a:1"]),
        (".spec['image']", ["a:1"]),
        (".spec.images", ["b:1", "b:2"]),
        (".spec.images[*]", ["b:1", "b:2"]),
        (".spec.images[2]", ["b:2"]),
        (".spec.images[9]", []),
        (".spec.steps[*].image", ["c:1", "c:2"]),
        (".spec.steps[0].image", ["c:1"]),
        (".spec.by.*.image", ["d:1", "d:2"]),
        (".spec.by[*].image", ["d:1", "d:2"]),
        (".spec['a.key/x']", ["e:1"]),
        (".spec.a\\.key/x", ["e:1"]),
        (".spec.none.image", []),
        (".absent[*].image", []),
        ("[*].absent[0]", []),
    ],
)
def test_where_a_path_leads(path: str, found: list[str]) -> None:
    assert list(jsonpath.parse(path).texts(OBJECT)) == found


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (".spec", ".spec is an object, expected a string"),
        (".spec.number", ".spec.number is a number, expected a string"),
        (".spec.yes", ".spec.yes is a boolean, expected a string"),
        (".spec.steps", ".spec.steps is an object, expected a string"),
        (".spec.image.name", ".spec.image is a string, expected an object"),
        (".spec.image[*]", ".spec.image is a string, expected a list"),
        (".spec.by[0]", ".spec.by is an object, expected a list"),
        (".spec.steps[*].image.x", ".spec.steps[0].image is a string, expected an object"),
        (".spec.images.image", ".spec.images is a list, expected an object"),
    ],
)
def test_an_object_of_another_shape_is_not_passed_over(path: str, why: str) -> None:
    with pytest.raises(jsonpath.NotThere) as caught:
        list(jsonpath.parse(path).texts(OBJECT))
    assert str(caught.value) == why


@pytest.mark.parametrize(
    "path", ["", "{}", "$", "spec", "..image", ".spec..image", ".a[?(@.b)]", ".a[1:2]", ".a[-1]", ".a[", ".a.", ".a b"]
)
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        jsonpath.parse(path)
    assert caught.value.code == "JsonPathInvalid"
    assert "is not a valid JSONPath: " in str(caught.value)


# ---- the images of an object ----------------------------------------------------------------------------------------

#: What no API server of today stores, or none without an alpha feature; the rest is in tests/operator.
PODS: Sequence[tuple[Mapping[str, Any], list[tuple[str, str]]]] = [
    ({}, []),
    ({"containers": None, "initContainers": None, "volumes": None}, []),
    ({"containers": [{"name": "a", "image": None}, {"name": "b", "image": ""}, {"name": "c"}]}, []),
    ({"volumes": [{"name": "v", "image": {}}, {"name": "w", "emptyDir": {}}]}, []),
]
MOUNTED = {
    "spec": {
        "containers": [{"name": "a", "image": "a:1"}],
        "volumes": [{"name": "v", "image": {"reference": "v:1"}}, {"name": "w", "image": {"reference": "w:1"}}],
    },
    "status": {
        "containerStatuses": [{
            "name": "a", "image": "other:1", "imageID": "a@sha256:1", "volumeMounts": [
                {"name": "v", "mountPath": "/v", "volumeStatus": {"image": {"imageRef": "v@sha256:2"}}},
                {"name": "w", "mountPath": "/w"}, {"name": "x", "mountPath": "/x", "volumeStatus": {"image": None}},
            ],
        }],
        "initContainerStatuses": None,
    },
}  # fmt: skip


@pytest.mark.parametrize(("spec", "found"), PODS)
def test_what_is_null_or_absent_names_nothing(spec: Mapping[str, Any], found: list[tuple[str, str]]) -> None:
    pod = msgspec.convert({"metadata": {"name": "p"}, "spec": spec, "status": None}, structs.Pod)
    assert list(object_images.of_pod(pod)) == found


def test_the_digest_of_an_image_volume_is_paired_by_the_volumes_name() -> None:
    pod = msgspec.convert({"metadata": {"name": "p"}, **MOUNTED}, structs.Pod)
    assert list(object_images.of_pod(pod)) == [("a:1", "a@sha256:1"), ("v:1", "v@sha256:2"), ("w:1", "")]


IMAGE, SHORT = "quay.io/jetstack/cert-manager-acmesolver:v1.18.2", "longhornio/longhorn-engine:v1.10.0"


@pytest.mark.parametrize(
    ("container", "found"),
    [
        ({"args": ["--v=2", f"--acme-http01-solver-image={IMAGE}"]}, [IMAGE]),
        ({"command": ["longhorn-manager", "--engine-image", SHORT], "args": None}, [SHORT]),
        ({"env": [{"name": "RELATED_IMAGE_SOLVER", "value": IMAGE}, {"name": "OPERATOR_IMAGE", "value": SHORT}]},
         [IMAGE, SHORT]),
        ({"env": [{"name": "SOLVER", "value": IMAGE}, {"name": "SHORT", "value": SHORT}]}, [IMAGE]),
        ({"args": ["--helper-image=busybox:1.37", "-entrypoint-image", f"ghcr.io/a/b@sha256:{'a' * 64}"]},
         ["busybox:1.37", f"ghcr.io/a/b@sha256:{'a' * 64}"]),
        ({"env": [{"name": "IMAGE_PULL_POLICY", "value": "IfNotPresent"}, {"name": "IMAGE_DIR", "value": "/images:ro"},
                  {"name": "IMAGE_SERVER", "value": "https://images.example:8080/a:b"}, {"name": "IMAGE_OF"},
                  {"name": "IMAGE_KEY", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}],
          "args": ["--listen=0.0.0.0:8080", "--url=http://a.example/b:c", "redis.example:6379/0", "--image-size", "a"]},
         []),
    ],
    ids=["an option", "an argument", "variables", "a variable with another name", "short names", "no images"],
)  # fmt: skip
def test_images_that_a_controller_is_told_to_make_pods_of(container: Mapping[str, Any], found: list[str]) -> None:
    """As cert-manager, Longhorn, Tekton, and operators with ``RELATED_IMAGE_...``: no object names them in between."""
    spec = {"template": {"spec": {"initContainers": [{"name": "i", "image": "i:1"}], "containers": [container]}}}
    metadata = {"name": "d", "namespace": "n"}
    for kind, one in (("deployments", {"spec": spec}), ("controllerrevisions", {"data": {"spec": spec}})):
        report = read(Table({f"/apis/apps/v1/{kind}": [{"metadata": metadata, **one}]}))
        assert report.problems == ()
        assert sorted(use.reference for use in report.uses) == sorted([*found, "i:1"])


def test_a_revision_of_others_may_have_anything_where_arguments_are() -> None:
    containers = [{"image": "a:1", "args": 1}, {"image": 2, "args": [IMAGE]}, {"image": "b:1", "env": {"x": IMAGE}}, 3]
    revision = {"metadata": {"name": "r"}, "data": {"containers": containers}}
    report = read(Table({"/apis/apps/v1/controllerrevisions": [revision]}))
    assert report.problems == ()
    assert [use.reference for use in report.uses] == ["a:1", "b:1"]


def test_uses_of_several_lists_are_one() -> None:
    one = (Use("a", "", ("Deployment x/b", "Deployment x/c", "Deployment x/d"), 7), Use("b"))
    other = (Use("a", "", ("Pod x/a",)), Use("a", "sha256:1", ("CronJob x/a",)))
    assert united([*one, *other]) == (
        Use("a", "", ("Deployment x/b", "Deployment x/c", "Deployment x/d"), 8),
        Use("a", "sha256:1", ("CronJob x/a",)),
        Use("b"),
    )


# ---- rights ---------------------------------------------------------------------------------------------------------


def test_there_is_a_right_for_each_list() -> None:
    assert {(right.group, right.resource) for right in RIGHTS if right.verb == "list"} == {
        (resource.group, resource.plural) for resource in RESOURCES
    }


def test_the_document_lists_the_rights(root: Path) -> None:
    text = (root / "docs/operator.md").read_text()
    rows = re.findall(r"^\| `(get|list)` \| `(.+?)`(?:, only `(.+)`)? \| (.+) \|$", text, re.MULTILINE)
    assert sorted(rows) == sorted(
        (right.verb, f"{right.resource}.{right.group}".rstrip("."), right.name, right.why) for right in RIGHTS
    )


def test_the_kubernetes_client_is_imported_for_a_login_only() -> None:
    """It costs as much as all other imports."""
    script = (
        "import sys\nfrom kubeadm_registry.upkeep import clusters, kubeconfig, rights\n"
        "sys.exit('kubernetes' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_owners_are_read_before_what_they_make() -> None:
    order = [resource.kind for resource in RESOURCES]
    for owner, owned in (("CronJob", "Job"), ("Deployment", "ReplicaSet"), ("DaemonSet", "ControllerRevision"),
                         ("StatefulSet", "ControllerRevision"), ("PodTemplate", "Pod")):  # fmt: skip
        assert order.index(owner) < order.index(owned)
    assert order[-1] == "Pod"


# ---- containerd -----------------------------------------------------------------------------------------------------


def test_the_configured_pause_image_comes_with_the_defaults_of_containerd() -> None:
    assert set(pause_images(None)) == DEFAULT_PAUSE_IMAGES
    assert set(pause_images("10.0.0.10:5000/infra/pause:1")) == {*DEFAULT_PAUSE_IMAGES, "10.0.0.10:5000/infra/pause:1"}


# ---- kubeadm --------------------------------------------------------------------------------------------------------


def test_the_set_of_kubeadm_has_the_minor_versions_around() -> None:
    found = kubeadm_set("v1.36.3")
    assert isinstance(found, tuple)
    assert found == tuple(sorted(found))
    assert set(found) >= PAUSE_IMAGES
    for version in ("v1.35.0", "v1.35.4", "v1.36.0", "v1.36.3", "v1.37.2"):
        assert f"registry.k8s.io/kube-apiserver:{version}" in found
    assert not any("v1.34" in image for image in found)
    assert {"registry.k8s.io/etcd:3.6.6-0", "registry.k8s.io/etcd:3.7.0-0"} <= set(found)


@pytest.mark.parametrize("version", ["1.36.3", "v1.36.3+k3s1", "v1.36.3-eks-1234", "v1.36.3-rc.0.1+abc"])
def test_what_a_vendor_adds_to_the_version_does_not_count(version: str) -> None:
    assert kubeadm_set(version) == kubeadm_set("v1.36.3")


@pytest.mark.parametrize(("version", "next_one"), [("v1.37.2", "v1.38.0"), ("v1.31.0", "v1.32.0")])
def test_a_neighbour_that_is_not_known_has_no_images(version: str, next_one: str) -> None:
    found = kubeadm_set(version)
    assert not isinstance(found, Reason)
    assert (f"registry.k8s.io/kube-proxy:{next_one}" in found) == (next_one == "v1.32.0")
    assert not any("v1.30" in image for image in found)


@pytest.mark.parametrize("version", ["v1.36.99", "v1.99.0", "", "unknown"])
def test_a_version_that_is_not_known_is_a_reason(version: str) -> None:
    found = kubeadm_set(version)
    assert isinstance(found, Reason)
    assert found.code == "SetMissing"
    assert found.message.startswith("the images of the set kubeadm are not known: ")
    assert found.hint


# ---- an API server that is a table ----------------------------------------------------------------------------------


class Table(Api):
    """Answers from *answers*, by path; an empty list where there is none."""

    def __init__(self, answers: Mapping[str, Answer | list[Mapping[str, Any]]]) -> None:
        super().__init__("https://table", urllib3.PoolManager())
        self.answers = dict(answers)
        self.asked: list[str] = []

    def get(self, path: str, query: Mapping[str, str] | None = None, *, by: float) -> Answer:
        """One page of *limit* objects."""
        self.asked.append(path)
        if path.endswith("kube-system"):
            return self._json({"metadata": {"uid": "u"}})
        if path == "/version":
            return self._json({"gitVersion": "v1.36.3"})
        if isinstance(found := self.answers.get(path, []), Answer):
            return found
        query = query or {}
        begin, limit = int(query.get("continue", "0")), int(query["limit"])
        rest = len(found) - begin - limit
        more = {"continue": str(begin + limit), "remainingItemCount": rest} if rest > 0 else {}
        resource = next((each for each in RESOURCES if each.path == path), None)
        return self._json({
            "kind": f"{resource.kind if resource else 'Thing'}List", "items": found[begin : begin + limit],
            "apiVersion": resource.version if resource else "a.dev/v1", "metadata": {"resourceVersion": "7", **more},
        })  # fmt: skip

    @staticmethod
    def _json(value: object) -> Answer:
        return Answer(200, json.dumps(value).encode())


def pods(count: int) -> list[Mapping[str, Any]]:
    return [
        {"metadata": {"name": f"p{n:04}", "namespace": "n"}, "spec": {"containers": [{"name": "c", "image": "a:1"}]}}
        for n in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 499, 500, 501, 1000, 1203])
def test_pages_make_one_list(count: int) -> None:
    report = read(Table({"/api/v1/pods": pods(count)}))
    assert report.problems == ()
    assert [(use.count, len(use.users)) for use in report.uses] == ([(count, min(3, count))] if count else [])


class Altered(Table):
    """The same with *change* made to each later page of pods, the first *times*."""

    def __init__(self, change: Callable[[Any], object] | Answer, times: int = 99) -> None:
        super().__init__({"/api/v1/pods": pods(1203)})
        self.change = change
        self.left = times

    def get(self, path: str, query: Mapping[str, str] | None = None, *, by: float) -> Answer:
        """One page, altered."""
        answer = super().get(path, query, by=by)
        if path != "/api/v1/pods" or "continue" not in (query or {}) or not self.left:
            return answer
        self.left -= 1
        if isinstance(self.change, Answer):
            return self.change
        page = json.loads(answer.body)
        self.change(page)
        return self._json(page)


EXPIRED = Answer(
    410, b'{"kind":"Status","metadata":{"continue":"500"},"message":"too old","reason":"Expired","code":410}'
)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda page: page["metadata"].update(resourceVersion="8"),
            "a page is 'PodList' at revision '8', and the first",
        ),
        (lambda page: page["metadata"].update(resourceVersion=""), "which is not a list at a revision"),
        (lambda page: page["items"].pop(), "objects, and 1203 were announced"),
        (lambda page: page["items"].append(page["items"][0]), "objects, and 1203 were announced"),
        (lambda page: page["metadata"].pop("continue", 0), "it has 1000 objects, and 1203 were announced"),
        (lambda page: page["metadata"].clear(), "which is not a list at a revision"),
        (lambda page: page.update(items=None), "Expected `array`, got `null`"),
        (lambda page: page.update(apiVersion="v2"), "the response is 'PodList' of 'v2'"),
        (lambda page: page.update(kind="Status"), "the response is 'Status' of 'v1'"),
        (EXPIRED, "it expired 3 times: 410 Gone: too old"),
    ],
)
def test_a_list_that_is_not_whole_names_nothing(change: Callable[[Any], object] | Answer, why: str) -> None:
    report = read(Altered(change))
    [problem] = report.problems
    assert problem.message.startswith("cannot list Pods: ")
    assert why in problem.message
    assert report.uses == ()


def test_a_list_that_expires_twice_is_whole_the_third_time() -> None:
    table = Altered(EXPIRED, times=2)
    report = read(table)
    assert report.problems == ()
    assert [use.count for use in report.uses] == [1203], "what was read before does not count twice"
    assert table.asked.count("/api/v1/pods") == 2 + 2 + 3


def test_a_server_that_does_not_count_is_believed_by_revision_and_token() -> None:
    assert read(Altered(lambda page: page["metadata"].pop("remainingItemCount", 0))).problems == ()


def test_every_list_that_fails_is_a_problem_of_its_own() -> None:
    forbidden = Answer(403, b'{"kind":"Status","message":"jobs is forbidden: no \\u001b[31m"}')
    table = Table(
        {"/apis/batch/v1/jobs": forbidden, "/api/v1/pods": Answer(404, b"404"), "/api/v1/podtemplates": pods(1)}
    )
    table.answers["/apis/apps/v1/deployments"] = [{"metadata": {"name": "d"}, "spec": {"template": {"spec": []}}}]
    report = read(table)
    assert {problem.code for problem in report.problems} == {"UsesIncomplete"}
    assert [problem.message for problem in report.problems] == [
        "cannot list Jobs: 403 Forbidden: jobs is forbidden: no \\x1b[31m",
        "cannot list Deployments: the response is not a list of them: Expected `object | null`, got `array` - at "
        "`$.items[0].spec.template.spec`",
        "cannot list PodTemplates: the response is not a list of them: Object missing required field `template` - at "
        "`$.items[0]`",
        "cannot list Pods: the cluster does not have v1/pods",
    ]
    assert (report.uid, report.version, report.uses) == ("u", "v1.36.3", ())


def test_a_custom_resource_without_a_name_is_not_understood() -> None:
    report = read(
        Table({"/apis/a.dev/v1/things": [{"spec": {"image": "a"}}]}), paths=[("a.dev/v1/things", ".spec.image")]
    )
    assert [problem.message for problem in report.problems] == [
        "cannot list things.a.dev: Thing is not understood: Expected `object`, got `null`"
    ]


def test_a_custom_resource_without_namespace() -> None:
    things = [{"metadata": {"name": "t"}, "spec": {"image": "a:1"}}]
    table = Table({"/apis/a.dev/v1/things": things})
    assert read(table, paths=[("a.dev/v1/things", ".spec.image")]).uses == (Use("a:1", "", ("Thing t",)),)
    assert table.asked[2] == "/apis/a.dev/v1/things", "owners come first"


@pytest.mark.parametrize(
    ("url", "name", "image_id"),
    [
        ("oci://10.0.0.10:5000/charts/app:1.2.3", "10.0.0.10:5000/charts/app:1.2.3", ""),
        (f"oci://ghcr.io/a/charts/app@sha256:{'0' * 64}", f"ghcr.io/a/charts/app@sha256:{'0' * 64}", ""),
        ("oci://10.0.0.10:5000/charts/app", "10.0.0.10:5000/charts/app", "oci://10.0.0.10:5000/charts/app"),
        ("oci://charts/app/", "charts/app/", "oci://charts/app/"),
        ("10.0.0.10:5000/charts/app", "10.0.0.10:5000/charts/app", "10.0.0.10:5000/charts/app"),
        ("team/app", "team/app", "team/app"),
        ("team/app:1", "team/app:1", ""),
    ],
)
def test_a_custom_resource_may_name_an_artifact_by_its_url(url: str, name: str, image_id: str) -> None:
    thing = {"kind": "OCIRepository", "metadata": {"name": "app"}, "spec": {"url": url}}
    table = Table({"/apis/a.dev/v1/things": [thing]})
    [use] = read(table, paths=[("a.dev/v1/things", ".spec.url")]).uses
    assert (use.reference, use.image_id) == (name, image_id)


@pytest.mark.parametrize(
    "name", ["", "pods", "v1/pods", "a/v1/things", "a.dev/things", "a.dev/v1/things/x", "a.dev/v1/../x"]
)
def test_what_is_no_custom_resource(name: str) -> None:
    table = Table({})
    with pytest.raises(ConfigError) as caught:
        read(table, paths=[(name, ".spec.image")])
    assert caught.value.code == "ImagePathInvalid"
    assert not table.asked


@pytest.mark.parametrize(
    ("answer", "code", "why"),
    [
        (
            Answer(403, b'{"message": "namespaces is forbidden"}'),
            "ClusterForbidden",
            "403 Forbidden: namespaces is for",
        ),
        (Answer(404, b""), "ClusterUnreachable", "404 Not Found"),
        (Answer(200, b"<html>"), "ClusterUnreachable", "JSON is malformed"),
        (Answer(200, b"{}"), "ClusterUnreachable", "missing required field `metadata`"),
        (Answer(999, b"{}"), "ClusterUnreachable", "999"),
    ],
)
def test_what_does_not_say_which_cluster_it_is(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, code: str, why: str
) -> None:
    table = Table({})
    monkeypatch.setattr(table, "get", lambda path, query=None, *, by: answer)
    with pytest.raises(ConnectionFailed) as caught:
        read(table)
    assert caught.value.code == code
    assert "https://table does not identify its cluster: GET /api/v1/namespaces/kube-system: " in str(caught.value)
    assert why in str(caught.value)


# ---- patience -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("retry_after", "least"), [("", 0.0), ("1", 1.0), ("soon", 0.0)])
def test_a_busy_server_is_asked_again(retry_after: str, least: float) -> None:
    answers = [429, 503, 200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers[0] if len(answers) == 1 else answers.pop(0))
            if retry_after and len(answers) == 2:
                self.send_header("Retry-After", retry_after)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        api = Api(f"http://127.0.0.1:{server.server_address[1]}", urllib3.PoolManager(), patience=5)
        begin = time.monotonic()
        assert api.get("/x", by=begin + 10).status == 200
        assert time.monotonic() - begin >= least
        api.close()
        server.shutdown()


def test_a_server_that_is_not_there_is_named_with_the_time_waited() -> None:
    api = Api("https://127.0.0.1:1", urllib3.PoolManager(), patience=0.5)
    with pytest.raises(ConnectionFailed) as caught:
        api.get("/x", by=time.monotonic() + 10)
    assert (caught.value.code, caught.value.exit_code) == ("ClusterUnreachable", 4)
    said = str(caught.value)
    assert re.fullmatch(r"no answer from https://127\.0\.0\.1:1 to GET /x within \d s: connection refused", said)
    assert caught.value.hint


def test_after_the_deadline_nothing_is_asked() -> None:
    with pytest.raises(ConnectionFailed, match="the time for the whole reading is over"):
        Api("https://127.0.0.1:1", urllib3.PoolManager()).get("/x", by=time.monotonic())


# ---- kubeconfig -----------------------------------------------------------------------------------------------------

SERVER = "https://10.0.0.1:6443"
CLUSTER = {"name": "c", "cluster": {"server": SERVER}}
CONTEXT = {"name": "x", "context": {"cluster": "c", "user": "u"}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it does not contain a mapping"),
        ("- a", "it does not contain a mapping"),
        ("a: [", "it is not valid YAML: line 1, column 5: expected the node content"),
        ("a: \0", "it is not valid YAML: line 1, column 4: the character U+0000 is not allowed"),
        ("a:\n\tb: 1\n", "it is not valid YAML: line 2, column 1: a tab cannot be used here; use spaces"),
        ("[" * 3000, "it is nested too deeply"),
        ('a: "\\UFFFFFFFF"', ""),
        ("{}", "it names no clusters"),
        (json.dumps({"clusters": [CLUSTER]}), "it has no current-context"),
        (json.dumps({"clusters": [CLUSTER], "current-context": "y"}), "with name y"),
        (json.dumps({"clusters": [CLUSTER], "contexts": 1, "current-context": "y"}), ""),
        (json.dumps({"clusters": [{"name": "d"}], "contexts": [CONTEXT], "current-context": "x"}), "with name c"),
        (json.dumps({"clusters": [{"name": "c", "cluster": {}}], "contexts": [CONTEXT], "current-context": "x"}),
         "server is"),
        (json.dumps({"clusters": [{"name": "c", "cluster": {"server": "10.0.0.1:6443"}}], "contexts": [CONTEXT],
                     "current-context": "x"}), "server is '10.0.0.1:6443', expected a URL"),
        (json.dumps({"clusters": [{"name": "c", "cluster": {"server": SERVER, "certificate-authority": "no"}}],
                     "contexts": [CONTEXT], "current-context": "x"}), "File does not exist"),
        (json.dumps({"clusters": [{"name": "c", "cluster": {"server": SERVER, "certificate-authority-data": "eA=="}}],
                     "contexts": [CONTEXT], "current-context": "x"}), ""),
    ],
)  # fmt: skip
def test_what_is_no_kubeconfig(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(ConfigError) as caught:
        kubeconfig.by_kubeconfig(tmp_path / "file")
    assert caught.value.code == "KubeconfigInvalid"
    assert str(caught.value).startswith(f"{tmp_path / 'file'} is not a valid kubeconfig: ")
    assert why in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        kubeconfig.by_kubeconfig(tmp_path / "file")
    assert caught.value.code == "KubeconfigUnreadable"
    assert str(caught.value) == f"cannot read the kubeconfig {tmp_path / 'file'}: no such file or directory"


@pytest.mark.parametrize("left_out", ["", "10.0.0.0/8"])
def test_the_current_context_and_its_proxy_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    """Whatever NO_PROXY says, as with kubectl: that is for the proxies that the environment names."""
    monkeypatch.setenv("NO_PROXY", left_out)
    proxied = {"name": "d", "cluster": {"server": "https://10.0.0.2:6443/k8s/", "proxy-url": "http://proxy:3128"}}
    other = {"name": "y", "context": {"cluster": "d", "user": "u"}}
    document = {"clusters": [CLUSTER, proxied], "contexts": [CONTEXT, other]}
    (tmp_path / "file").write_text(json.dumps({**document, "current-context": "x"}))
    assert kubeconfig.by_kubeconfig(tmp_path / "file").server == "https://10.0.0.1:6443"
    (tmp_path / "file").write_text(json.dumps({**document, "current-context": "y"}))
    api = kubeconfig.by_kubeconfig(tmp_path / "file")
    assert api.server == "https://10.0.0.2:6443/k8s"
    assert isinstance(api._pool, urllib3.ProxyManager)


def with_user(path: Path, user: Mapping[str, Any]) -> Path:
    document = {"clusters": [CLUSTER], "contexts": [CONTEXT], "current-context": "x"}
    path.write_text(json.dumps({**document, "users": [{"name": "u", "user": user}]}))
    return path


def test_the_newline_at_the_end_of_a_file_is_no_part_of_the_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    file = with_user(tmp_path / "file", {"tokenFile": "token"})
    assert kubeconfig.by_kubeconfig(file)._authorization() == "Bearer abc"


@pytest.mark.parametrize("token", ["a\nb", "\u20ac"])
def test_a_token_that_no_request_can_carry(tmp_path: Path, token: str) -> None:
    with pytest.raises(ConfigError, match="the token is not one line of ASCII characters") as caught:
        kubeconfig.by_kubeconfig(with_user(tmp_path / "file", {"token": token}))
    assert caught.value.code == "KubeconfigInvalid"


def test_a_process_outside_of_any_cluster(tmp_path: Path) -> None:
    for environment in ({}, {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}):
        with pytest.raises(ConfigError) as caught:
            kubeconfig.in_cluster(directory=tmp_path, environment=environment)
        assert caught.value.code == "NotInCluster"
