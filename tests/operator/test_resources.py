"""The custom resources as a person meets them with kubectl, and as the operator reads them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field

from kubeadm_registry import config, status
from kubeadm_registry.config.model import Model
from kubeadm_registry.config.rules import OnServer, Rule
from kubeadm_registry.custom_resources.definitions import DEFINITIONS
from kubeadm_registry.custom_resources.schema import structural
from kubeadm_registry.status import NodeStatus
from tests.operator.apiserver import ApiServer
from tests.operator.battery import CLUSTER, CREATE, changed, put
from tests.operator.conftest import ROOT

NAME = CLUSTER["metadata"]["name"]
RESOURCE = f"registrycluster/{NAME}"


def example() -> str:
    """The cluster file of the quick start."""
    [found] = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return str(found)


def test_the_file_of_the_quick_start_is_applied_again_and_again(empty: ApiServer) -> None:
    assert empty.send("apply", example()).text == "registrycluster.kubeadm-registry.dev/registry created"
    first = empty.get(RESOURCE)["metadata"]
    for more in ((), ("--server-side", "--force-conflicts")):
        assert empty.send("apply", example(), *more).taken
    again = empty.get(RESOURCE)["metadata"]
    assert again["uid"] == first["uid"]
    assert again["generation"] == first["generation"] == 1
    assert empty.send("diff", example()).taken, "no difference"


def test_the_manifests_are_applied_again_and_nothing_changes(server: ApiServer) -> None:
    """Those that the operator comes with are tried in test_install.py, with a namespace of their own."""
    for name in ("crds.yaml", "admission.yaml"):
        done = server.kubectl("apply", "-f", ROOT / "manifests" / name)
        assert not done.stderr
        assert {line.split()[-1] for line in done.stdout.splitlines()} == {"unchanged"}, done.stdout


@pytest.mark.parametrize("number", range(len(DEFINITIONS)))
def test_the_definition_is_stored_as_it_was_sent(server: ApiServer, number: int) -> None:
    """What the API server does not know it drops, in silence where the client asks for nothing."""
    sent = yaml.safe_load_all((ROOT / "manifests" / "crds.yaml").read_text())
    stored = server.get(f"crd/{DEFINITIONS[number].name}")["spec"]["versions"]
    assert stored == list(sent)[number]["spec"]["versions"]


# ---- defaults -------------------------------------------------------------------------------------------------------


def test_an_object_comes_back_as_what_the_file_says(empty: ApiServer) -> None:
    """By a dry run each, which defaults and prunes as a creation does."""
    cases = [(base, case) for base, case in CREATE if case.taken]
    assert len(cases) > 50
    for base, case in cases:
        given = changed(base, case.change)
        done = empty.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(given))
        assert done.returncode == 0, f"{case.title}: {done.stderr}"
        assert config.from_object(json.loads(done.stdout)) == config.parse(json.dumps(given), "x"), case.title


def test_every_default_is_written_out_by_the_server(adopted: ApiServer) -> None:
    """As ``config print-defaults`` writes it, but for sections in which nothing has a default."""

    def without_empty(value: Any) -> Any:
        if isinstance(value, list):
            return [without_empty(item) for item in value]
        if isinstance(value, dict):
            return {key: without_empty(item) for key, item in value.items() if item != {}}
        return value

    whole = yaml.safe_load(config.dump(config.parse(config.SMALLEST, "x")))
    assert adopted.get(RESOURCE)["spec"] == without_empty(whole["spec"])


def test_the_operator_reads_what_others_have_written_to(adopted: ApiServer) -> None:
    assert adopted.ask("label", RESOURCE, "a=b").taken
    assert adopted.ask("annotate", RESOURCE, "a=b").taken
    write_status(adopted, {"vip": {"holder": "cp-1"}})
    found = adopted.get(RESOURCE, "--show-managed-fields")
    assert {"status", "metadata"} < found.keys()
    assert "managedFields" in found["metadata"]
    assert config.from_object(found) == config.parse(config.SMALLEST, "x")


# ---- status ---------------------------------------------------------------------------------------------------------


def write_status(server: ApiServer, found: dict[str, Any]) -> None:
    """As the operator does."""
    body = json.dumps({"status": found})
    answer = server.ask("patch", RESOURCE, "--subresource=status", "--type=merge", f"-p={body}", user="operator")
    assert answer.taken, answer.text


def judged() -> dict[str, Any]:
    """What ``kubeadm-registry status -o json`` prints while one node is down, with the times that an operator adds."""
    cluster = config.parse(config.SMALLEST, "x")
    now = datetime(2030, 1, 1, tzinfo=UTC)
    agent: Any = {"fit": True, "level": 0, "quorum": {"storage": 2}, "conditions": ["Alone"], "clock_off": 0.01}
    well = {"services": {"garage": "active", "zot": "active"}, "agent": agent, "guarded": True}
    seen = [
        NodeStatus("cp-1", vip=("10.0.0.10",), certificate_ends=now, authority_ends=now, **well),
        NodeStatus("cp-2", **{**well, "services": {"garage": "active", "zot": "failed"}}),
        NodeStatus("cp-3", reachable=False, trouble="no route to host"),
    ]
    found = status.judge(cluster, seen, now.timestamp())
    for condition in found["conditions"]:
        condition["lastTransitionTime"] = "2030-01-01T00:00:00Z"
    return {**found, "observedGeneration": 1}


#: What ``status`` says of the moment besides, and no object keeps.
OF_THE_MOMENT = {"failovers", "time"}, {"toHeal", "disk", "clockOff", "authorityDays", "agentVersion"}


def test_what_status_prints_is_kept_but_for_what_is_of_the_moment(adopted: ApiServer) -> None:
    found = judged()
    assert {"message", "level", "conditions", "certificateExpires"} <= {key for node in found["nodes"] for key in node}
    write_status(adopted, found)
    whole, of_nodes = OF_THE_MOMENT
    kept = {key: value for key, value in found.items() if key not in whole}
    kept["nodes"] = [{key: value for key, value in node.items() if key not in of_nodes} for node in found["nodes"]]
    assert adopted.get(RESOURCE)["status"] == kept


def test_a_status_without_a_holder(adopted: ApiServer) -> None:
    found = judged()
    found["vip"]["holder"] = None
    write_status(adopted, found)
    assert adopted.get(RESOURCE)["status"]["vip"] == {"address": "10.0.0.10"}


@pytest.mark.parametrize("wrong", [{"status": "Maybe"}, {"reason": ""}, {"lastTransitionTime": "now"}])
def test_a_condition_is_one_of_kubernetes(adopted: ApiServer, wrong: dict[str, str]) -> None:
    good = judged()["conditions"][0]
    body = json.dumps({"status": {"conditions": [{**good, **wrong}]}})
    answer = adopted.ask("patch", RESOURCE, "--subresource=status", "--type=merge", f"-p={body}", user="operator")
    assert not answer.taken
    assert "status.conditions[0]." in answer.text


# ---- what kubectl shows ---------------------------------------------------------------------------------------------


def rows(server: ApiServer, *argv: str) -> list[list[str]]:
    """Heads and cells of ``kubectl get``."""
    lines = server.kubectl("get", *argv).stdout.splitlines()
    return [re.split(r"\s{2,}", line.strip()) for line in lines]


def test_kubectl_get_says_whether_i_am_safe(adopted: ApiServer) -> None:
    found = judged()
    of_storage = next(one for one in found["conditions"] if one["type"] == "StorageWhole")
    found["conditions"].append({**of_storage, "type": "RedundancyComplete"})  # as the operator calls it
    write_status(adopted, found)
    for name in ("regc", "registryclusters", "registrycluster", "kubeadm-registry"):
        heads, cells = rows(adopted, name)
        assert heads == ["NAME", "AVAILABLE", "CAN LOSE A NODE", "VIP HOLDER", "AGE"]
        # The category is of several kinds, so kubectl names the kind.
        full = f"registrycluster.kubeadm-registry.dev/{NAME}" if name == "kubeadm-registry" else NAME
        assert cells[:4] == [full, "True", "False", "cp-1"]
    heads, cells = rows(adopted, "regc", "-o", "wide")
    assert heads[5:] == ["VIP", "FRONTEND", "STORAGE", "CERTIFICATES", "REASON"]
    assert cells[5:] == ["10.0.0.10", "zot", "False", "True", "zot on cp-2 is failed"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("registrycluster", ["described by the same file", "spec <Object> -required-", "What the operator found"]),
        ("regc.spec", ["nodes <[]Object> -required-", "Where the nodes keep layers and metadata"]),
        ("regc.spec.nodes", ["address <string> -required-", "the Kubernetes node name is the natural choice"]),
        ("regc.spec.frontend.type", ["ENUM: zot distribution", "Distribution may be written on every node"]),
        ("regc.spec.vip.virtualRouterID", ["unique in the subnet"]),
        ("regc.status.conditions", ["lastTransitionTime <string> -required-", "Why, in a sentence for people"]),
    ],
)
def test_kubectl_explain_is_useful(server: ApiServer, path: str, words: list[str]) -> None:
    text = server.ask("explain", path).text
    assert [each for each in words if each not in text] == []


def test_every_field_is_explained() -> None:
    def unexplained(schema: dict[str, Any], path: str) -> list[str]:
        found = [] if schema.get("description") or path.endswith("[]") else [path]
        for name, part in schema.get("properties", {}).items():
            found += unexplained(part, f"{path}.{name}")
        for name in ("items", "additionalProperties"):
            if name in schema:
                found += unexplained(schema[name], f"{path}[]")
        return found

    schemas = {(each, part): each.schema()["properties"][part] for each in DEFINITIONS for part in ("spec", "status")}
    assert [path for (_, part), schema in schemas.items() for path in unexplained(schema, part)] == []


# ---- the converter --------------------------------------------------------------------------------------------------


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Inner(Model):
    """An inner part."""

    count: int | None = Field(None, ge=1, lt=100)
    within: str = Field("90d", pattern=r"^([0-9]+[dhm])+$", max_length=32)


class Everything(Model):
    """Whatever a structural schema can say of a pydantic model."""

    color: Color = Color.RED
    maybe: Color | None = None
    choice: Literal["all", "none"] = "all"
    inner: Inner = Inner()
    needed: Inner
    several: tuple[Annotated[Inner, Field(description="x")], ...] = Field((), max_length=4)
    names: tuple[Annotated[str, Field(min_length=1, max_length=9)], ...] = Field(("a", "b"), max_length=4)
    unique: frozenset[Annotated[str, Field(max_length=9)]] = Field(frozenset(), max_length=4)
    ratio: float = Field(0.5, gt=0, lt=1)
    keyed: dict[str, int] = Field({}, max_length=4)
    either: int | str = 1
    anything: Any = None
    moment: Annotated[str, OnServer(format="date-time")] | None = None
    even: Annotated[int, OnServer(Rule("self % 2 == 0", "must be even"))] = Field(2, multiple_of=2, le=10)


def test_whatever_the_converter_writes_an_api_server_takes(server: ApiServer) -> None:
    """Its defaults included, which the server checks against the schema."""
    schema = structural(Everything)
    definition = DEFINITIONS[0].as_object()
    definition["metadata"]["name"] = "things.example.org"
    definition["spec"] |= {"group": "example.org", "names": {"kind": "Thing", "plural": "things"}}
    version = definition["spec"]["versions"][0]
    version["schema"] = {"openAPIV3Schema": {"type": "object", "properties": {"spec": schema}}}
    del version["additionalPrinterColumns"]
    done = server.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(definition))
    assert done.returncode == 0, done.stderr
    stored = json.loads(done.stdout)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert stored == schema


def test_put_leaves_the_base_alone() -> None:
    assert changed(CLUSTER, put("spec.vip.name", "x")) != CLUSTER
    assert "name" not in CLUSTER["spec"]["vip"]
