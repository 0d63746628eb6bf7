"""Custom resources: what the converter refuses, and that the manifests of the repository are what the code says."""

from __future__ import annotations

import re
import runpy
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import AnyUrl, BaseModel, Field, IPvAnyAddress

from kubeadm_registry import config
from kubeadm_registry.config.rules import OnServer, Rule
from kubeadm_registry.custom_resources import DEFINITIONS, manifests
from kubeadm_registry.custom_resources.admission import guard
from kubeadm_registry.custom_resources.names import ANOTHER_OBJECT
from kubeadm_registry.custom_resources.schema import NotStructural, structural
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.operator import health

Short = Annotated[str, Field(max_length=9)]
Key = Annotated[str, Field(pattern="^[a-z]+$", max_length=9)]


class Inner(BaseModel):
    needed: Short
    more: int = 1


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Tree(BaseModel):
    branches: tuple[Tree, ...] = Field((), max_length=2)


class Open(BaseModel, extra="allow"):
    known: int = 1


def model(annotation: Any, default: Any = ...) -> type[BaseModel]:
    """A model whose field ``spec.x`` is this."""
    from pydantic import create_model

    spec: Any = create_model("Spec", x=(annotation, default))
    return create_model("Thing", spec=(spec, ...))


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "a union": (Inner | Cat, ..., "is a union, of which every field would have to stand outside"),
    "a tagged union": (Annotated[Cat | Dog, Field(discriminator="kind")], ..., "has no one type"),
    "a choice of different types": (Literal[1, "a"], ..., "has no one type"),
    "null as a choice": (Literal["a", None], ..., "has no one type"),
    "a number or a text with constraints": (Annotated[int, Field(gt=1)] | Short, ..., "cannot have constraints"),
    "a tuple": (tuple[int, Short], ..., "prefixItems has no structural form"),
    "a mapping with keys of a pattern": (Annotated[dict[Key, int], Field(max_length=9)], ..., "patternProperties has"),
    "a mapping without a bound": (dict[str, int], ..., "has no maxProperties"),
    "a text without a bound": (str, ..., "has no maxLength"),
    "an item without a bound": (Annotated[list[str], Field(max_length=9)], ..., "x[]: has no maxLength"),
    "a list without a bound": (list[int], ..., "has no maxItems"),
    "a set of objects": (
        Annotated[tuple[Inner, ...], Field(max_length=9), OnServer(uniqueItems=True)], ..., "is a set of objects",
    ),
    "a list map without its key": (
        Annotated[
            tuple[Cat, ...],
            Field(max_length=9),
            OnServer(**{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
        ],
        ...,
        "its key name is neither required nor has it a default",
    ),
    "a duration": (timedelta, ..., "the format duration is not checked by an API server; use a pattern"),
    "an address of pydantic's": (IPvAnyAddress, ..., "the format ipvanyaddress is not checked"),
    "a URL": (AnyUrl, ..., "the format uri is not checked"),
    "a pattern with a look-ahead": (
        Annotated[str, OnServer(pattern="^(?=a)b", maxLength=9)], ..., "the pattern ^(?=a)b is not one of RE2",
    ),
    "a pattern with Python's end": (Annotated[str, OnServer(pattern="a\\Z", maxLength=9)], ..., "is not one of RE2"),
    "examples": (Annotated[int, Field(examples=[1])], ..., "examples has no structural form"),
    "what is deprecated": (Annotated[int, Field(deprecated=True)], ..., "deprecated has no structural form"),
    "an object that contains itself": (Tree, ..., "contains itself (Tree)"),
}  # fmt: skip


@pytest.mark.parametrize(("annotation", "default", "words"), REFUSED.values(), ids=REFUSED)
def test_what_a_schema_cannot_say_is_refused_by_path(annotation: Any, default: Any, words: str) -> None:
    with pytest.raises(NotStructural) as caught:
        structural(model(annotation, default))
    assert re.match(r"spec\.x(\.\w+)?(\[\])*: ", str(caught.value)), caught.value
    assert words in str(caught.value)


def part(annotation: Any, default: Any = ...) -> dict[str, Any]:
    found: dict[str, Any] = structural(model(annotation, default))["properties"]["spec"]["properties"]["x"]
    return found


@pytest.mark.parametrize(
    ("annotation", "default", "expected"),
    [
        (Literal["a"], "a", {"type": "string", "default": "a", "enum": ["a"]}),
        (int | None, None, {"type": "integer"}),
        (Annotated[int, Field(gt=0)], 1, {"type": "integer", "default": 1, "exclusiveMinimum": True, "minimum": 0}),
        (int | str, 1, {"default": 1, "x-kubernetes-int-or-string": True}),
        (Any, None, {"x-kubernetes-preserve-unknown-fields": True}),
        (
            Open,
            Open(),
            {
                "type": "object",
                "default": {},
                "x-kubernetes-preserve-unknown-fields": True,
                "properties": {"known": {"type": "integer", "default": 1}},
            },
        ),
        (frozenset[Literal["a", "b"]], frozenset(), None),
    ],
)
def test_what_becomes_another_word(annotation: Any, default: Any, expected: dict[str, Any] | None) -> None:
    if expected is None:
        annotation = Annotated[annotation, Field(max_length=9)]
        expected = {
            "type": "array", "default": [], "maxItems": 9, "x-kubernetes-list-type": "set",
            "items": {"type": "string", "enum": ["a", "b"]},
        }  # fmt: skip
    assert part(annotation, default) == expected


def test_defaults_inside_are_not_said_twice() -> None:
    assert part(Inner, Inner(needed="a"))["default"] == {"needed": "a"}
    assert part(Inner, Inner(needed="a", more=2))["default"] == {"needed": "a", "more": 2}
    assert part(config.Ssh, config.Ssh()).get("default") is None, "nothing in it has a default"


def test_rules_of_a_type_and_of_a_field_both_count() -> None:
    once = Annotated[int, OnServer(Rule("self > 1", "one"))]
    both = Annotated[once, OnServer(Rule("self > 2", "two"))]
    assert part(both)["x-kubernetes-validations"] == [
        {"rule": "self > 1", "message": "one"}, {"rule": "self > 2", "message": "two"},
    ]  # fmt: skip


def test_the_manifests_are_those_of_the_code(root: Path) -> None:
    files = {path.name: path.read_text() for path in (root / "manifests").glob("*.yaml")}
    assert files == manifests(), "run `make manifests` and commit the result"


def test_the_command_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["custom_resources", str(tmp_path / "new")])
    runpy.run_module("kubeadm_registry.custom_resources", run_name="__main__")
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == manifests()


def test_each_policy_comes_before_its_binding() -> None:
    """kubectl goes on after a refused object: a binding without its policy would look well and refuse nothing."""
    kinds = [one["kind"] for one in yaml.safe_load_all(manifests()["admission.yaml"])]
    assert kinds == ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"] * 5


def test_only_an_object_beside_the_one_in_use_may_go_without_the_annotation() -> None:
    """The operator also says of the only object that it is not adopted, while it cannot read it."""
    variables = [variable for one in guard() for variable in one["spec"].get("variables", ())]
    [unused] = [one["expression"] for one in variables if one["name"] == "unused"]
    assert unused == (
        "oldObject.?status.?conditions.orValue([])"
        f".exists(c, c.type == 'Adopted' && c.status == 'False' && c.reason == '{ANOTHER_OBJECT}')"
    )


def test_columns_show_conditions_that_the_operator_writes() -> None:
    [definition] = [each for each in DEFINITIONS if each.kind == "RegistryCluster"]
    asked = {found for column in definition.columns for found in re.findall(r'type=="([A-Za-z]+)"', column.path)}
    assert asked <= {verdict.kind for verdict in health.unknown("NotLookedYet", "")}


def test_a_definition_has_a_name_of_each_kind() -> None:
    [cluster] = [each for each in DEFINITIONS if each.kind == "RegistryCluster"]
    spec = cluster.as_object()["spec"]
    assert (spec["scope"], spec["names"]["categories"], spec["names"]["shortNames"]) == (
        "Cluster", ["kubeadm-registry"], ["regc"],
    )  # fmt: skip


# ---- reading objects ------------------------------------------------------------------------------------------------


def found(**spec: Any) -> dict[str, Any]:
    whole = yaml.safe_load(config.SMALLEST)
    whole["spec"] |= spec
    more = {"uid": "u", "resourceVersion": "7", "deletionTimestamp": "t", "managedFields": [], "somethingNew": 1}
    return {**whole, "metadata": {**whole["metadata"], **more}, "status": {"conditions": []}, "more": 1}


def test_of_an_object_only_its_spec_and_its_name_count() -> None:
    assert config.from_object(found()) == config.parse(config.SMALLEST, "x")


def test_a_file_of_the_workstation_is_not_looked_for_elsewhere() -> None:
    """The operator's user has no home, nor has its pod those of others."""
    ssh = {"identityFile": "~nosuchuser/key"}
    with pytest.raises(ConfigError, match="does not exist on this host"):
        config.parse(yaml.safe_dump(found(ssh=ssh) | {"metadata": {}, "more": None}).replace("more: null\n", ""), "x")
    assert config.from_object(found(ssh=ssh)).spec.ssh.identity_file == "~nosuchuser/key"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spec": {"nodes": []}}, "spec.nodes: must have at least 1"),
        ({"spec": {**found()["spec"], "fromTomorrow": 1}}, "spec.fromTomorrow: unknown key"),
        ({"metadata": {"name": "A"}}, "metadata.name: must be a DNS label"),
        ({"metadata": {}}, "metadata.name: has no value"),
        ({"metadata": None}, "metadata.name: has no value"),
        ({"kind": "Pod"}, "kind: must be 'RegistryCluster'"),
    ],
)
def test_an_object_that_is_not_valid_is_refused_by_path(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=r"RegistryCluster \w+ is not valid") as caught:
        config.from_object({**found(), **change})
    assert words in str(caught.value)
