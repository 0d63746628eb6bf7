"""The admission guard: what an API server refuses although the object itself is valid.

Rules in the schemas hold for every writer and cannot be unbound, but they see one object and know no exception. What
has an exception, or is about deletion, who writes, or another object, is here (Kubernetes' documentation, "Validating
Admission Policy"). docs/operator.md says what this stops and what it cannot stop.

The exception is the annotation ALLOW with the object's own name, read from the object as it was: it takes two commands,
and one that came along with a copy allows nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kubeadm_registry.config.rules import VALIDATIONS, same_ip
from kubeadm_registry.custom_resources.definitions import DEFINITIONS, GROUP, VERSION
from kubeadm_registry.custom_resources.names import ANOTHER_OBJECT, OPERATOR
from kubeadm_registry.custom_resources.schema import Schema

ALLOW = f"{GROUP}/allow-data-loss"
_PREFIX = "kubeadm-registry"
_GROUP_OF_POLICIES = "admissionregistration.k8s.io/v1"
_ALLOWED = {
    "name": "allowed",
    "expression": f"oldObject.metadata.?annotations[?'{ALLOW}'].orValue('') == oldObject.metadata.name",
}
_ANNOTATE = f" {ALLOW}=' + oldObject.metadata.name"


def _policy(name: str, match: Mapping[str, Any], spec: Mapping[str, Any], **binding: Any) -> Iterator[dict[str, Any]]:
    """A policy that fails closed, and the binding that puts it into force everywhere."""
    yield {
        "apiVersion": _GROUP_OF_POLICIES,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": f"{_PREFIX}-{name}"},
        "spec": {"failurePolicy": "Fail", "matchConstraints": {"resourceRules": [match]}, **spec},
    }
    yield {
        "apiVersion": _GROUP_OF_POLICIES,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": f"{_PREFIX}-{name}"},
        "spec": {"policyName": f"{_PREFIX}-{name}", "validationActions": ["Deny"], **binding},
    }


def _match(operations: Sequence[str], *resources: str, group: str = GROUP) -> dict[str, Any]:
    # The scope is the default, without which kubectl apply finds a difference each time.
    return {
        "apiGroups": [group], "apiVersions": ["*"], "operations": list(operations), "resources": list(resources),
        "scope": "*",
    }  # fmt: skip


def _refusal(expression: str, message: str) -> dict[str, str]:
    """Refused unless *expression*, with *message*, which is CEL as well."""
    return {"expression": expression, "messageExpression": message, "reason": "Forbidden"}


def _only_one(name: str, kind: str, plural: str) -> Iterator[dict[str, Any]]:
    """A second object of *kind* is refused, whatever the name of the first, by the policy *name*.

    A policy cannot list objects, but it is asked once for each object of its paramKind that the binding selects.
    """
    yield from _policy(
        name,
        _match(["CREATE"], plural),
        {
            "paramKind": {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind},
            "validations": [
                _refusal(
                    "object.metadata.name == params.metadata.name",
                    f"'there is one {kind}, ' + params.metadata.name + ': change it, or delete it first'",
                )
            ],
        },
        paramRef={"selector": {}, "parameterNotFoundAction": "Allow"},
    )


def _data() -> Iterator[dict[str, Any]]:
    """What takes the registry away from its clients, and the deletion of the object, by which every rule is got around.

    The operator's word that it looks after another object makes this one free to go. That ``Adopted`` is False is not
    enough: the operator says so of the only object as well while it cannot read it, as after a downgrade.
    """
    annotate = f"kubectl annotate registrycluster ' + oldObject.metadata.name + '{_ANNOTATE}"
    then = f"; if that is what you want, run: {annotate} + ', and then the same command again'"
    unchanged = "request.operation == 'DELETE' || variables.allowed || "
    vip = same_ip("object.spec.vip.address", "oldObject.spec.vip.address")
    yield from _policy(
        "data",
        _match(["UPDATE", "DELETE"], "registryclusters"),
        {
            "variables": [
                _ALLOWED,
                {
                    "name": "unused",
                    "expression": "oldObject.?status.?conditions.orValue([])"
                    f".exists(c, c.type == 'Adopted' && c.status == 'False' && c.reason == '{ANOTHER_OBJECT}')",
                },
            ],
            "validations": [
                _refusal(
                    "request.operation != 'DELETE' || variables.allowed || variables.unused",
                    "'RegistryCluster ' + oldObject.metadata.name + ' describes a registry that nodes pull from, and "
                    f"without it nothing protects their images; nothing was deleted{then}",
                ),
                _refusal(
                    f"{unchanged}{vip}",
                    "'every node pulls from the virtual IP ' + oldObject.spec.vip.address + ', and client nodes lose "
                    f"the registry with it until `mirrors apply` has run{then}",
                ),
                _refusal(
                    f"{unchanged}object.spec.frontend.type == oldObject.spec.frontend.type",
                    "'the images of ' + oldObject.spec.frontend.type + ' are not carried over to ' + "
                    f"object.spec.frontend.type + ', and no image can be pulled until `seed` has run{then}",
                ),
            ],
            "auditAnnotations": [{"key": "data-loss-allowed", "valueExpression": "variables.allowed ? 'yes' : ''"}],
        },
    )


def _status() -> Iterator[dict[str, Any]]:
    """Only the operator says how things are: on its word objects may be deleted, and people rely on what they see."""
    yield from _policy(
        "status",
        _match(["UPDATE"], "*/status"),
        {
            "validations": [
                _refusal(
                    f"request.userInfo.username == '{OPERATOR}'",
                    "'only the operator writes the status; kubeadm-registry status finds the same at any time'",
                )
            ]
        },
    )


def _definitions() -> Iterator[dict[str, Any]]:
    """The definitions stay, with what they serve: deleting one deletes its objects, and no policy is asked."""
    schemas = [each.schema()["properties"]["spec"] for each in DEFINITIONS]
    places = dict.fromkeys(place for schema in schemas for place in _places(schema, "spec", ".?properties.?spec"))
    yield from _policy(
        "definitions",
        _match(["UPDATE", "DELETE"], "customresourcedefinitions", group="apiextensions.k8s.io"),
        {
            "matchConditions": [{"name": "of-kubeadm-registry", "expression": f"oldObject.spec.group == '{GROUP}'"}],
            "variables": [
                _ALLOWED,
                {"name": "passed", "expression": "request.operation == 'DELETE' || variables.allowed"},
                {"name": "before", "expression": _served("oldObject")},
                {"name": "after", "expression": _served("object")},
            ],
            "validations": [
                _refusal(
                    "request.operation != 'DELETE' || variables.allowed",
                    "'deleting ' + oldObject.metadata.name + ' deletes all objects of it; nothing was deleted; if that "
                    f"is what you want, run: kubectl annotate crd ' + oldObject.metadata.name + '{_ANNOTATE} + "
                    "', and then the same command again'",
                ),
                _refusal(
                    "variables.passed || oldObject.spec.versions.filter(v, v.served)"
                    ".all(v, object.spec.versions.exists(n, n.name == v.name && n.served))",
                    "oldObject.metadata.name + ' would no longer serve a version, whose objects nobody could reach'",
                ),
                *(check for place in places for check in _kept(*place)),
            ],
        },
    )


def _served(which: str) -> str:
    """CEL for the schema that the definition *which* serves; empty if it does not."""
    return (
        f"{which}.spec.versions.filter(v, v.name == '{VERSION}' && v.served)[?0].?schema.?openAPIV3Schema.orValue({{}})"
    )


def _places(schema: Schema, name: str, path: str) -> Iterator[tuple[str, str, bool, bool]]:
    """*name* and *path* (CEL) of the places at and below them, with whether one has fields and rules about changes."""
    yield name, path, "properties" in schema, any("oldSelf" in rule["rule"] for rule in schema.get(VALIDATIONS, ()))
    for field, part in schema.get("properties", {}).items():
        yield from _places(part, f"{name}.{field}", f"{path}.?properties.?{field}")
    if "items" in schema:
        yield from _places(schema["items"], f"{name}[]", f"{path}.?items")


def _kept(name: str, path: str, fields: bool, changes: bool) -> Iterator[dict[str, str]]:
    """What an update of a definition keeps at a place: it may get more."""
    older = f"would be gone from {name}: the definition of an older release cannot take the place of a newer one"
    if fields:
        inside = f"{path}.?properties.orValue({{}})"
        yield _refusal(
            f"variables.passed || variables.before{inside}.all(field, field in variables.after{inside})",
            f"'a field {older}'",
        )
    if changes:
        count = f"{path}[?'{VALIDATIONS}'].orValue([]).filter(r, r.rule.contains('oldSelf')).size()"
        yield _refusal(
            f"variables.passed || variables.after{count} >= variables.before{count}",
            f"'a rule about changes {older}'",
        )


def guard() -> list[dict[str, Any]]:
    """The policies of the guard, each before its binding: one that was refused binds nothing."""
    return [
        *_only_one("one-cluster", "RegistryCluster", "registryclusters"),
        *_only_one("one-policy", "RegistryPolicy", "registrypolicies"),
        *_data(),
        *_status(),
        *_definitions(),
    ]
