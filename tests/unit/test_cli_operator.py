"""``operator ...`` as people type it; the cluster itself is in tests/operator."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml
from click.testing import CliRunner

from kubeadm_registry import __version__, config, pki
from kubeadm_registry.access import session
from kubeadm_registry.cli import operator
from kubeadm_registry.cli.main import cli
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.custom_resources import installing, roles
from kubeadm_registry.custom_resources.deployment import image, installation
from kubeadm_registry.custom_resources.installing import Found, HelperKey, credentials, path_of
from kubeadm_registry.custom_resources.manifests import manifests
from kubeadm_registry.custom_resources.roles import GRANTS, REPLACING
from kubeadm_registry.errors import CommandTimeout
from kubeadm_registry.operator import health
from kubeadm_registry.upkeep.api import Answer, Api
from kubeadm_registry.upkeep.rights import RIGHTS
from tests.unit.fake_cluster import FakeCluster, fixed_secrets
from tests.unit.test_members import THREE, file
from tests.unit.test_replacing import begun

KUBECONFIG = """\
clusters: [{name: a, cluster: {server: 'https://a.example:6443'}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
users: [{name: a, user: {token: t}}]
current-context: a
"""


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ("operator", *words), prog_name="kubeadm-registry")
    return done.exit_code, done.output


def test_manifests_are_those_of_the_repository(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = run("manifests")
    assert code == 0
    files = [root / "manifests" / name for name in ("crds.yaml", "admission.yaml", "operator.yaml")]
    assert text == "---\n".join(file.read_text() for file in files)
    assert text == "---\n".join(manifests().values())


def test_manifests_are_those_of_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(config.SMALLEST.replace("10.0.0.10", "10.9.9.9"))
    text = run("manifests", "-f", str(tmp_path / "cluster.yaml"))[1]
    assert f"image: 10.9.9.9:5000/kubeadm-registry/operator:{__version__}" in text
    assert "image: a.example/x:1" in run("manifests", "--image", "a.example/x:1")[1]
    assert set(json.loads(run("manifests", "-o", "json")[1])) == {"crds.yaml", "admission.yaml", "operator.yaml"}


def test_an_image_may_be_in_a_registry_with_an_ipv6_address() -> None:
    assert "image: '[fd00::10]:5000/x:1'" in run("manifests", "--image", "[fd00::10]:5000/x:1")[1]


@pytest.mark.parametrize("name", ["a b", "A/b:1", "https://a.example/x:1"])
def test_an_image_that_no_pod_can_have_is_refused(name: str) -> None:
    code, text = run("manifests", "--image", name)
    assert (code, f"{name} is not a valid image name" in text) == (2, True)


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1"])
def test_a_time_to_wait_that_has_no_end_is_refused(seconds: str) -> None:
    code, text = run("install", "--kubeconfig", "x", "--timeout", seconds)
    assert (code, "Invalid value for '--timeout'" in text) == (2, True)


def test_an_address_with_colons_is_no_part_of_an_images_name() -> None:
    text = config.SMALLEST
    for old, new in (("10.0.0.1", "fd00::1"), ("vip: {address", "vip: {name: registry.example, address")):
        text = text.replace(old, new)
    assert image(config.parse(text, "x")).startswith("registry.example:5000/kubeadm-registry/operator:")


def test_its_packets_reach_an_api_server_at_another_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A NetworkPolicy sees the port behind the Service: kubeadm's localAPIEndpoint.bindPort."""
    asked = []

    def get(self: Api, path: str, query: object = None, *, by: float) -> Answer:
        asked.append(path)
        items = [{"addressType": "IPv4", "ports": [{"name": "https", "port": 7443}]}, {"addressType": "IPv6"}]
        return Answer(200, json.dumps({"items": items}).encode())

    monkeypatch.setattr(Api, "get", get)
    ports = installing.api_ports(Api("https://a.example:6443", urllib3.PoolManager()))
    assert asked == [
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name%3Dkubernetes"
    ]
    objects = installation(config.parse(config.SMALLEST, "x"), api_ports=ports)
    [one] = [one for one in objects if one["kind"] == "NetworkPolicy"]
    [rule] = one["spec"]["egress"]
    assert [port["port"] for port in rule["ports"]] == [443, 6443, 7443, 5000, 5445, 22]


def test_every_object_has_a_place() -> None:
    objects = [one for text in manifests().values() for one in yaml.safe_load_all(text)]
    assert len(objects) > 20
    paths = [path_of(one) for one in objects]
    assert len(set(paths)) == len(paths)
    assert "/apis/apps/v1/namespaces/kubeadm-registry/deployments/kubeadm-registry-operator" in paths
    assert not [one for one in objects if one["kind"] == "Secret"], "it is nobody's to read"


def test_the_certificate_for_metrics_is_kept_while_it_is_good() -> None:
    secrets = fixed_secrets(("cp-1", "cp-2", "cp-3"))
    first = credentials(secrets, {}, None)
    assert first["username"] == "push"
    assert credentials(secrets, first, None)["metrics.pem"] == first["metrics.pem"]
    other = pki.issue(pki.make_ca("other"), "operator", [], unit=pki.METRICS_UNIT)
    for bad in ("", "x", other.certificate + other.key):
        assert credentials(secrets, {"metrics.pem": bad}, None)["metrics.pem"] not in ("", bad)


def test_what_a_newer_release_has_added_to_the_secret_stays_and_what_is_taken_away_does_not() -> None:
    secrets, helper = fixed_secrets(("cp-1", "cp-2", "cp-3")), HelperKey.of("")
    with_key = credentials(secrets, {"of-a-newer-release": "x"}, helper)
    assert with_key["of-a-newer-release"] == "x"
    assert set(installing._KEYS) == with_key.keys() - {"of-a-newer-release"}
    without = credentials(secrets, {**with_key, "username": "other"}, None)
    assert with_key.keys() - without.keys() == {"helper-key", "helper-hosts"}
    assert (without["of-a-newer-release"], without["username"]) == ("x", "push")


class Objects(Api):
    """An API server that keeps what is applied, and has a replica lead at once."""

    def __init__(self) -> None:
        self.there: dict[str, dict[str, Any]] = {}
        self.version = 0

    def get(self, path: str, query: Mapping[str, str] | None = None, *, by: float) -> Answer:
        if "/leases/" in path and path in self.there:
            self.there[path]["spec"] = {"holderIdentity": "pod-a"}
            self._change(path)
        if "endpointslices" in path:
            return Answer(200, b'{"items": []}')
        found = self.there.get(path)
        return Answer(404, b"{}") if found is None else Answer(200, json.dumps(found).encode())

    def send(self, method: str, path: str, body: bytes, *, kind: str = "application/json", seconds: float) -> Answer:
        path, _, query = path.partition("?")
        if method == "DELETE":
            return Answer(404 if self.there.pop(path, None) is None else 200, b"{}")
        one = json.loads(body)
        before = self.there.get(path)
        made = {**(before or {}), **one, "status": {"conditions": [{"type": "Established", "status": "True"}]}}
        made["metadata"] = {**one["metadata"], "resourceVersion": "0", "managedFields": [query]}
        if "dryRun=All" in query:
            return Answer(200, json.dumps(made).encode())
        if before is None or installing._content(before) != installing._content(made):
            self.there[path] = made
            self._change(path)
        return Answer(200, json.dumps(self.there[path]).encode())

    def kept(self) -> str:
        """All objects but the lease, which the replica renews."""
        return json.dumps({path: one for path, one in self.there.items() if "/leases/" not in path})

    def _change(self, path: str) -> None:
        self.version += 1
        self.there[path]["metadata"]["resourceVersion"] = str(self.version)


@pytest.fixture
def objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Objects, FakeCluster]:
    """A cluster without an operator, and a registry whose nodes have no helper."""
    api, fake = Objects(), begun().copy()

    @contextmanager
    def cluster(*_: object, **__: object) -> Iterator[Cluster]:
        yield fake.cluster

    (tmp_path / "cluster.yaml").write_text(file(THREE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "cluster", cluster)
    monkeypatch.setattr(operator, "by_kubeconfig", lambda _: api)
    return api, fake


def last(*words: str) -> tuple[dict[str, Any], list[str]]:
    """The result of a command, and what it noted."""
    code, text = run(*words, "--kubeconfig", "admin.conf", "-o", "json")
    assert code == 0, text
    *events, result = [json.loads(line) for line in text.splitlines()]
    return result, [event["message"] for event in events if event["event"] == "note"]


@pytest.mark.parametrize(
    ("status", "installed"),
    [
        ({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2}, True),
        ({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2}, False),
        ({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2}, False),
        ({"observedGeneration": 2, "replicas": 2}, False),
        ({}, True),
    ],
    ids=["rolled out", "the new image cannot be pulled", "not begun", "no new pod yet", "no controller"],
)
def test_an_operator_of_before_that_leads_is_not_taken_for_the_new_one(
    monkeypatch: pytest.MonkeyPatch, status: dict[str, int], installed: bool
) -> None:
    get = Objects.get

    def with_status(self: Objects, path: str, query: Mapping[str, str] | None = None, *, by: float) -> Answer:
        if path.endswith("/deployments/kubeadm-registry-operator") and path in self.there:
            self.there[path] = {**self.there[path], "status": status}
            self.there[path]["metadata"]["generation"] = 2
        return get(self, path, query, by=by)

    monkeypatch.setattr(Objects, "get", with_status)
    secrets, cluster = fixed_secrets(tuple(THREE)), config.parse(file(THREE), "x")

    def install() -> str:
        return installing.install(Objects(), cluster, secrets, lambda _: None, image="", seconds=0.1)

    if installed:
        assert install() == "pod-a"
        return
    with pytest.raises(CommandTimeout, match="to take the place of those before"):
        install()


@pytest.mark.parametrize("more", [(), ("--replace-nodes",)], ids=["", "replaces"])
def test_a_dry_run_says_what_would_change_and_changes_nothing(
    objects: tuple[Objects, FakeCluster], more: tuple[str, ...]
) -> None:
    api, fake = objects
    before = fake.snapshot()
    planned, said = last("install", *more, "--dry-run")
    assert (planned["dryRun"], api.there, fake.snapshot()) == (True, {}, before)
    assert "Namespace kubeadm-registry would be created" in said
    assert not [text for text in said if "authorized_keys" in text], "nobody gets a key that is not there"
    last("install", *more)
    made, nodes = api.kept(), fake.snapshot()
    assert nodes != before
    again, said = last("install", *more, "--dry-run")
    assert (again["changed"], [text for text in said if "would" in text]) == (0, [])
    rotated, said = last("install", *more, "--new-keys", "--dry-run")
    assert rotated["changed"] > 0
    assert [text for text in said if "would" in text] == ["Secret registry would be changed"]
    gone, said = last("uninstall", "--dry-run")
    assert gone["changed"] > len(nodes)
    assert "Namespace kubeadm-registry would be deleted" in said
    assert (api.kept(), fake.snapshot()) == (made, nodes)


@pytest.mark.parametrize("command", ["install", "uninstall"])
@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)], ids=["", "dry run"])
def test_a_node_that_is_away_keeps_what_it_has_and_the_exit_code_says_so(
    objects: tuple[Objects, FakeCluster], command: str, dry_run: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above all the operator's key, which a script takes for gone when `uninstall` ends with 0."""
    _, fake = objects
    last("install")

    @contextmanager
    def cluster(*_: object, **__: object) -> Iterator[Cluster]:
        every = fake.cluster
        hosts = tuple(host for host in every.hosts if host.name != "cp-3")
        yield replace(every, hosts=hosts, absent={"cp-3": "no route to host"})

    monkeypatch.setattr(session, "cluster", cluster)
    code, text = run(command, *dry_run, "--kubeconfig", "admin.conf", "-o", "json")
    result = json.loads(text.splitlines()[-1])
    assert (code, result["owed"]) == (5, {"cp-3": {"reason": "no route to host"}})
    assert "no route to host; " in text


@pytest.mark.parametrize("more", [(), ("--plan-only",), ("--dry-run",)], ids=["", "plans only", "dry run"])
def test_the_operator_of_another_cluster_loses_its_way_with_a_warning_or_shares_its_key(
    objects: tuple[Objects, FakeCluster], more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    api, fake = objects
    last("install")
    said = last("install")[1] + last("install", "--new-keys")[1]
    assert not [text for text in said if "another operator" in text]
    [path] = [path for path in api.there if "/secrets/" in path]
    data, nodes = api.there[path]["data"], fake.snapshot()
    second = Objects()
    monkeypatch.setattr(operator, "by_kubeconfig", lambda _: second)
    second.there[path] = {"metadata": {"resourceVersion": "1"}, "data": {"helper-key": data["helper-key"]}}
    said = last("install")[1]
    assert not [text for text in said if "another operator" in text]
    assert fake.snapshot() == nodes
    monkeypatch.setattr(operator, "by_kubeconfig", lambda _: Objects())
    said = last("install", *more)[1]
    assert len([text for text in said if "another operator" in text]) == 1
    assert (fake.snapshot() == nodes) is ("--dry-run" in more)


def test_definitions_of_a_newer_release_are_not_replaced(objects: tuple[Objects, FakeCluster]) -> None:
    """The API server would drop the new field of each object when somebody writes it."""
    api, fake = objects
    last("install")
    [path] = [path for path in api.there if path.endswith("/registrypolicies.kubeadm-registry.dev")]
    [version] = api.there[path]["spec"]["versions"]
    rules = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["rules"]
    rules["items"]["properties"]["later"] = {"type": "string"}
    made, nodes = api.kept(), fake.snapshot()
    code, text = run("install", "--new-keys", "--kubeconfig", "admin.conf", "-o", "json")
    error = json.loads(text.splitlines()[-1])
    assert (code, error["code"]) == (1, "NewerFormat")
    assert "with 1 field that this one does not know (v1alpha1.spec.rules.later)" in error["message"]
    assert (api.kept(), fake.snapshot()) == (made, nodes)


@pytest.mark.parametrize(("leads", "code"), [("pod-a", 0), ("", 5)])
def test_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leads: str, code: int) -> None:
    (tmp_path / "admin.conf").write_text(KUBECONFIG)
    condition = {"type": "Available", "status": "True", "reason": "Serving", "message": "it does"}
    found = Found(True, "a/b:1", 2, 2, leads, "registry", (condition,))
    monkeypatch.setattr(installing, "status", lambda _api: found)
    said = run("status", "--kubeconfig", str(tmp_path / "admin.conf"))
    assert said[0] == code
    assert f"leader      {leads or 'none'}" in said[1]
    assert "Available            True     Serving: it does" in said[1]
    told = json.loads(run("status", "--kubeconfig", str(tmp_path / "admin.conf"), "-o", "json")[1])
    assert told["leads"] == leads


def test_status_where_nothing_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "admin.conf").write_text(KUBECONFIG)
    monkeypatch.setattr(installing, "status", lambda _api: Found(installed=False))
    code, text = run("status", "--kubeconfig", str(tmp_path / "admin.conf"))
    assert code == 2
    assert "OperatorMissing" in text


def test_who_only_plans_replaces_no_nodes(tmp_path: Path) -> None:
    (tmp_path / "admin.conf").write_text(KUBECONFIG)
    code, text = run("install", "--kubeconfig", str(tmp_path / "admin.conf"), "--plan-only", "--replace-nodes")
    assert code == 2
    assert "are mutually exclusive" in text


def test_only_who_replaces_nodes_may_change_a_spec() -> None:
    objects = list(yaml.safe_load_all(manifests()["operator.yaml"]))
    assert not {one["metadata"]["name"] for one in roles.replacing()} & {one["metadata"]["name"] for one in objects}
    [role, binding] = roles.replacing()
    assert role["rules"] == [
        {"apiGroups": ["kubeadm-registry.dev"], "resources": ["registryclusters"], "verbs": ["patch"]}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    prefix = "/apis/rbac.authorization.k8s.io/v1/clusterrole"
    names = role["metadata"]["name"], binding["metadata"]["name"]
    assert (path_of(role), path_of(binding)) == (f"{prefix}s/{names[0]}", f"{prefix}bindings/{names[1]}")


def test_the_document_lists_the_rights(root: Path) -> None:
    text = (root / "docs/operator.md").read_text()
    rows = re.findall(r"^\| `([a-z/.0-9-]+)` \| ([a-z, ]+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    told = {(name, verbs) for name, verbs, _, _ in rows}
    assert told == {
        (f"{one.resource}.{one.group}".rstrip("."), ", ".join(one.verbs))
        for one in (*GRANTS, *REPLACING)
        if one.resource not in {right.resource for right in RIGHTS}
    }


def test_the_document_explains_every_condition(root: Path) -> None:
    text = (root / "docs/operator.md").read_text()
    besides = {
        "Adopted",
        "ImagesMissing",
        "RetentionHealthy",
        "SpaceFreed",
        "NodesInPlace",
        "NothingDeletable",
        "ClientNodes",
    }
    kinds = {one.kind for one in health.unknown("x", "y")} | besides
    assert set(re.findall(r"^\| `([A-Z][A-Za-z]+)` \| `(?:True|False)` \|", text, re.MULTILINE)) == kinds
