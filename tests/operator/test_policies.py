"""RegistryPolicy and RegistryRetentionPlan on a real API server: what a file may say, an object may, and no more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from kubeadm_registry.custom_resources.definitions import GROUP, VERSION
from kubeadm_registry.custom_resources.names import OPERATOR
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.retention import policy
from tests.lab.command import wait_until
from tests.operator.apiserver import ApiServer
from tests.operator.battery import Case, Object, both, changed, drop, put
from tests.operator.conftest import ROOT
from tests.operator.test_battery import wrong
from tests.operator.test_guard import refused
from tests.operator.test_resources import rows

API = f"/apis/{GROUP}/{VERSION}/registrypolicies"
FULL: Object = yaml.safe_load("""\
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryPolicy
metadata: {name: retention}
spec:
  rules:
    - name: ci
      repositories: ["team/*"]
      keep: {newest: 10, tags: ["v*"], semver: {newest: 3}}
  imagePaths:
    - {apiVersion: argoproj.io/v1alpha1, resource: workflows, path: ".spec.templates[*].container.image"}
""")
R, K, P = "spec.rules.0", "spec.rules.0.keep", "spec.imagePaths.0"
ONE = {"name": "a", "repositories": ["*"], "keep": {"all": True}}


def repository(text: str, says: str = "") -> Case:
    return Case(f"repository {text!r}", not says, put(f"{R}.repositories.0", text), says)


def tag(text: str, says: str = "") -> Case:
    return Case(f"tag {text!r}", not says, put(f"{K}.tags.0", text), says)


def path(text: str, taken: bool = True) -> Case:
    return Case(f"path {text!r}", taken, put(f"{P}.path", text), "" if taken else "must be a JSONPath without filters")


PATTERN, WHOLE, CLOSE = "must be a pattern of repositories", "must have ** as a whole", "must close each ["
CASES = [
    Case("all of it", True, lambda _: None),
    Case("no spec", True, drop("spec")),
    Case("the default", True, put("spec", {})),
    Case("a rule that keeps nothing", False, put(K, {}), "must say what to keep"),
    Case("a rule that keeps all: false", False, put(K, {"all": False}), "must say what to keep"),
    Case("a rule that keeps no tags", False, put(K, {"tags": []}), "must say what to keep"),
    Case("a rule without keep", False, drop(K), "keep: Required value"),
    Case("a rule without repositories", False, put(f"{R}.repositories", []), "should have at least 1 items"),
    Case("a rule without a name", False, drop(f"{R}.name"), "name: Required value"),
    Case("a name in capitals", False, put(f"{R}.name", "CI"), "must be a DNS label"),
    Case("two rules", True, put("spec.rules.1", ONE)),
    Case("one name twice", False, both(put("spec.rules.1", {**ONE, "name": "ci"})), "Duplicate value"),
    Case("newest 0", False, put(f"{K}.newest", 0), "should be greater than or equal to 1"),
    Case("newest as text", False, put(f"{K}.newest", "3"), "must be of type integer"),
    Case("within", True, put(f"{K}.within", "90d")),
    Case("weeks", False, put(f"{K}.within", "3w"), "must be a duration"),
    Case("pulledWithin 0", False, put(f"{K}.pulledWithin", "0d"), "must be a duration"),
    Case("an unknown key", False, put(f"{K}.newst", 3), 'unknown field "spec.rules[0].keep.newst"'),
    Case("of each patch", True, put(f"{K}.semver.ofEach", "patch")),
    Case("of each build", False, put(f"{K}.semver.ofEach", "build"), "Unsupported value"),
    Case("a set", True, put("spec.sets", ["kubeadm"])),
    Case("another set", False, put("spec.sets", ["bundles"]), "Unsupported value"),
    Case("a share of 0", False, put("spec.maximumShare", 0), "should be greater than or equal to 1"),
    Case("a share of 101", False, put("spec.maximumShare", 101), "should be less than or equal to 100"),
    Case("approval", True, put("spec.approval", "Automatic")),
    Case("no approval", False, put("spec.approval", "None"), "Unsupported value"),
    Case("trash", True, put("spec.trash", {"window": "30m"})),
    Case("untagged", True, put("spec.untagged", {"after": "7d"})),
    *(repository(one) for one in ("a", "**", "team/**", "**/a", "a/**/b/**", "host:5000/x", "*:5000/*", "a?c", "[a-c]x",
                                  "[!0-9]/b", "a*b*c", "x_y/z-1.2", "registry.k8s.io/**")),
    *(repository(one, PATTERN) for one in ("", "Team", "a:v1", "a/b:v1", "host:5000", "a//b", "/a", "a/", "a b")),
    *(repository(one, WHOLE) for one in ("a**", "**a", "a/b**", "***")),
    repository("**/a/**/b/**", "must have ** at most 2 times"),
    *(repository(one, CLOSE) for one in ("a[", "a]", "[]", "a[!]", "a[b/c]")),
    *(tag(one) for one in ("*", "v*", "v?.*", "release-[0-9]*", "V1", "_x")),
    *(tag(one, "must be a pattern of tags") for one in ("", "a/b", "v**", "a b")),
    *(tag(one, CLOSE) for one in ("v[", "v]", "[]")),
    *(path(one) for one in (".a", "$.a", ".a[*].b", "['a.b'].c", ".a[0]", ".*", "[*].x", ".a\\.b", ".a-b/c")),
    *(path(one, False) for one in ("", ".", "a", ".a[?(@.b)]", "..a", ".a[", "{.a}", ".a b", ".a[-1]", "$")),
    Case("a core resource", False, put(f"{P}.apiVersion", "v1"), "must be the API group and version"),
    Case("a version of nothing", False, put(f"{P}.apiVersion", "argoproj.io/1"), "must be the API group and version"),
    Case("a kind", False, put(f"{P}.resource", "Workflow"), "must be the plural"),
    Case("a subresource", False, put(f"{P}.resource", "workflows/status"), "must be the plural"),
    Case("no path", False, drop(f"{P}.path"), "path: Required value"),
]  # fmt: skip
#: Taken by the API server and refused by the file. The operator reads objects as strictly as files, and says so.
DIFFERENT = [
    Case("a range that goes backwards", True, put(f"{K}.tags.0", "v[9-0]")),
    Case("a section without a value", True, put("spec.trash", None)),
    Case("a whole number with a point", True, put(f"{K}.newest", 3.0)),
]
PLAN: Object = {
    "apiVersion": f"{GROUP}/{VERSION}",
    "kind": "RegistryRetentionPlan",
    "metadata": {"name": "retention"},
    "spec": {"policy": "retention"},
}
SAMPLE = ROOT / "tests/golden/formats/registry-retention-plan.json"


def taken_by_file(found: Object) -> bool:
    try:
        policy.parse(json.dumps(found), "policy.yaml")
    except ConfigError:
        return False
    return True


@pytest.fixture
def clear(server: ApiServer) -> Iterator[ApiServer]:
    """The server without policies and plans, before and after."""
    yield server
    for kind in ("registrypolicies", "registryretentionplans"):
        assert server.ask("delete", kind, "--all").taken


def test_a_file_and_an_object_are_refused_alike(clear: ApiServer) -> None:
    objects = [changed(FULL, case.change) for case in CASES]
    assert [case.title for one, case in zip(objects, CASES, strict=True) if taken_by_file(one) != case.taken] == []
    assert wrong(CASES, list(clear.dry_run(API, objects))) == []


def test_what_only_the_file_refuses(clear: ApiServer) -> None:
    objects = [changed(FULL, case.change) for case in DIFFERENT]
    assert wrong(DIFFERENT, list(clear.dry_run(API, objects))) == []
    assert not any(map(taken_by_file, objects))


def test_an_object_comes_back_as_what_the_file_says(clear: ApiServer) -> None:
    """Its defaults included."""
    for case in (one for one in CASES if one.taken):
        given = changed(FULL, case.change)
        done = clear.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(given))
        assert done.returncode == 0, done.stderr
        assert policy.from_object(json.loads(done.stdout)) == policy.parse(json.dumps(given), "x"), case.title
        if case.title.startswith("repository"):
            break


def test_the_largest_policy_is_within_the_limits(clear: ApiServer) -> None:
    """64 rules of 64 patterns each, as long as etcd's limit for an object (1.5 MB) allows."""
    rules = [
        {
            "name": f"r{n}",
            "repositories": [f"team-{n}/{'x' * 100}-{i}/*" for i in range(64)],
            "keep": {"tags": [f"v{i}-{'y' * 50}*" for i in range(64)]},
        }
        for n in range(64)
    ]
    answer = clear.send("create", json.dumps(changed(FULL, put("spec.rules", rules))))
    assert answer.taken, answer.text
    assert clear.send("replace", json.dumps(changed(FULL, put("spec.rules", rules[::-1])))).taken


def test_the_examples_are_taken(clear: ApiServer) -> None:
    examples = sorted((ROOT / "manifests/examples/policies").glob("*.yaml"))
    assert len(examples) == 10
    for one in examples:
        answer = clear.ask("create", "--dry-run=server", "-f", one)
        assert answer.taken, answer.text


def test_a_second_policy_is_refused(clear: ApiServer) -> None:
    assert clear.send("apply", [FULL]).taken
    second = [changed(FULL, put("metadata.name", "second"))]
    # The guard hears of the first one by a watch.
    wait_until("the first to be seen", lambda: not clear.send("create", second, "--dry-run=server").taken, seconds=60)
    answer = clear.send("create", second)
    assert refused(answer, "one-policy")
    assert "there is one RegistryPolicy, retention: change it, or delete it first" in answer.text
    assert clear.send("apply", [FULL]).taken
    assert clear.get("regp/retention")["metadata"]["generation"] == 1
    assert clear.ask("delete", "registrypolicy", "retention").taken, "without one nothing is deleted"


def write(server: ApiServer, resource: str, status: Any, user: str = "operator") -> Any:
    body = json.dumps({"status": status})
    return server.ask("patch", resource, "--subresource=status", "--type=merge", f"-p={body}", user=user)


def test_a_plan_as_the_operator_writes_it(clear: ApiServer) -> None:
    """The sample is what is stored in etcd; a later release must show it."""
    status = json.loads(SAMPLE.read_text())["status"]
    assert clear.send("create", [PLAN], user="operator").taken
    assert refused(write(clear, "regplan/retention", status, user="admin"), "status")
    assert write(clear, "regplan/retention", status).taken
    found = clear.get("regplan/retention")
    assert found["status"] == status
    assert {key: found[key] for key in ("apiVersion", "kind", "spec")} == {
        key: json.loads(SAMPLE.read_text())[key] for key in ("apiVersion", "kind", "spec")
    }
    heads, cells = rows(clear, "regplan")
    assert heads == ["NAME", "DELETIONS", "FREES", "APPROVAL", "MADE"]
    assert cells[:4] == ["retention", "2", "50.0 MB", "Required"]


def test_a_plan_belongs_to_one_policy(clear: ApiServer) -> None:
    assert clear.send("create", [PLAN]).taken
    answer = clear.send("replace", json.dumps(changed(PLAN, put("spec.policy", "other"))))
    assert "cannot be changed; the operator writes this object" in answer.text


def test_a_policy_shows_how_it_fares(clear: ApiServer) -> None:
    assert clear.send("create", [FULL]).taken
    moment = "2030-01-01T00:00:00Z"
    why = {"type": "RetentionHealthy", "status": "False", "reason": "UsesIncomplete", "lastTransitionTime": moment,
           "message": "cannot list Pods: 403 Forbidden"}  # fmt: skip
    assert write(clear, "regp/retention", {"conditions": [why]}).taken
    heads, cells = rows(clear, "registrypolicies", "-o", "wide")
    assert heads == ["NAME", "HEALTHY", "APPROVAL", "AGE", "PLAN", "REASON"]
    assert (cells[:3], cells[-1]) == (["retention", "False", "Required"], "cannot list Pods: 403 Forbidden")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("regp.spec.rules.keep", ["pulledWithin <string>", "Keep the newest versions"]),
        ("regp.spec.imagePaths", ["path <string> -required-", "Plural of the resource"]),
        ("regplan.status", ["freedBytes <integer>", "by which the plan is approved"]),
    ],
)
def test_kubectl_explain_is_useful(server: ApiServer, place: str, words: list[str]) -> None:
    text = server.ask("explain", place).text
    assert [each for each in words if each not in text] == []


def test_the_operator_is_who_writes() -> None:
    assert OPERATOR == "system:serviceaccount:kubeadm-registry:operator"
