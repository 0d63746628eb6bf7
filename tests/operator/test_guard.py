"""The admission guard: each way around it, with what comes of it. docs/operator.md has the same table.

What goes through is tested as well: the page must not say that it is stopped.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import pytest

from kubeadm_registry.custom_resources.admission import ALLOW, guard
from kubeadm_registry.custom_resources.definitions import DEFINITIONS
from kubeadm_registry.custom_resources.names import ANOTHER_OBJECT
from tests.lab.command import run, wait_until
from tests.lab.programs import program
from tests.operator.apiserver import Answer, ApiServer, running
from tests.operator.battery import CLUSTER, changed, put
from tests.operator.conftest import ROOT, heard_of, remove

NAME = CLUSTER["metadata"]["name"]
RESOURCE = f"registrycluster/{NAME}"
CRD = f"crd/{DEFINITIONS[0].name}"
SECOND = changed(CLUSTER, put("metadata.name", "second"))
API = "/apis/kubeadm-registry.dev/v1alpha1/registryclusters"
SCHEMA = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties"


def refused(answer: Answer, policy: str) -> bool:
    """Whether the policy has refused it."""
    return not answer.taken and f"ValidatingAdmissionPolicy 'kubeadm-registry-{policy}'" in answer.text


def is_there(server: ApiServer) -> bool:
    """Whether the object is there, and not on its way out."""
    found = server.get("registryclusters")["items"]
    return [one["metadata"]["name"] for one in found if "deletionTimestamp" not in one["metadata"]] == [NAME]


def patched(server: ApiServer, target: str, *operations: Mapping[str, object], user: str = "admin") -> Answer:
    """A JSON patch."""
    return server.ask("patch", target, "--type=json", f"-p={json.dumps(operations)}", user=user)


# ---- what is stopped ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ("delete", RESOURCE),
        ("delete", RESOURCE, "--dry-run=server"),
        ("delete", RESOURCE, "--force", "--grace-period=0"),
        ("delete", RESOURCE, "--cascade=orphan"),
        ("delete", "registryclusters", "--all"),
        ("delete", "--raw", API),
        ("delete", "--raw", f"{API}/{NAME}"),
        ("delete", CRD),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("user", ["admin", "operator"])
def test_a_deletion_is_refused(adopted: ApiServer, argv: Sequence[str], user: str) -> None:
    answer = adopted.ask(*argv, user=user)
    assert refused(answer, "definitions" if CRD in argv else "data"), answer.text
    assert is_there(adopted)


def test_a_replacement_by_force_is_refused(adopted: ApiServer) -> None:
    """kubectl replace --force deletes and creates, which no rule about changes would see."""
    other = changed(CLUSTER, put("spec.dataDirectory", "/srv/x"))
    assert refused(adopted.send("replace", json.dumps(other), "--force"), "data")
    assert is_there(adopted)


def test_what_a_person_reads_who_deletes_it(adopted: ApiServer) -> None:
    assert adopted.ask("delete", RESOURCE).text == (
        'Error from server (Forbidden): registryclusters.kubeadm-registry.dev "registry" is forbidden: '
        "ValidatingAdmissionPolicy 'kubeadm-registry-data' with binding 'kubeadm-registry-data' denied request: "
        "RegistryCluster registry describes a registry that nodes pull from, and without it nothing protects their "
        "images; nothing was deleted; if that is what you want, run: kubectl annotate registrycluster registry "
        "kubeadm-registry.dev/allow-data-loss=registry, and then the same command again"
    )


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("spec.vip.address", "10.0.0.99", "every node pulls from the virtual IP 10.0.0.10"),
        ("spec.frontend", {"type": "distribution"}, "the images of zot are not carried over to distribution"),
    ],
)
def test_what_cuts_clients_off_needs_the_annotation(adopted: ApiServer, path: str, value: object, words: str) -> None:
    other = changed(CLUSTER, put(path, value))
    answer = adopted.send("apply", json.dumps(other))
    assert refused(answer, "data")
    assert words in answer.text
    both = changed(other, put("metadata.annotations", {ALLOW: NAME}))
    assert refused(adopted.send("apply", json.dumps(both)), "data"), "the annotation comes with the change itself"
    assert adopted.ask("annotate", RESOURCE, f"{ALLOW}={NAME}").taken
    assert adopted.send("apply", json.dumps(other)).taken


def test_an_annotation_of_another_object_allows_nothing(adopted: ApiServer) -> None:
    for value in ("", "true", "second"):
        assert adopted.ask("annotate", "--overwrite", RESOURCE, f"{ALLOW}={value}").taken
        assert refused(adopted.ask("delete", RESOURCE), "data")


@pytest.mark.parametrize("verb", [("create",), ("apply",), ("apply", "--server-side")])
def test_a_second_object_is_refused(adopted: ApiServer, verb: Sequence[str]) -> None:
    answer = adopted.send(verb[0], json.dumps(SECOND), *verb[1:])
    assert refused(answer, "one-cluster")
    assert "there is one RegistryCluster, registry: change it, or delete it first" in answer.text
    generated = {**CLUSTER, "metadata": {"generateName": "registry-"}}
    assert refused(adopted.send("create", json.dumps(generated)), "one-cluster")


def test_two_objects_in_one_file(empty: ApiServer) -> None:
    """Both may be taken, since the policy hears of the first one by a watch; from then on it refuses every other."""
    both = {"apiVersion": "v1", "kind": "List", "items": [CLUSTER, SECOND]}
    answer = empty.send("create", json.dumps(both))
    assert answer.taken or refused(answer, "one-cluster"), answer.text
    assert {one["metadata"]["name"] for one in empty.get("registryclusters")["items"]} - {"second"} == {NAME}
    heard_of(empty)


def test_any_name_will_do_for_the_first(empty: ApiServer) -> None:
    assert empty.send("apply", json.dumps(SECOND)).taken
    heard_of(empty)
    assert refused(empty.send("apply", json.dumps(CLUSTER)), "one-cluster")
    assert empty.send("apply", json.dumps(SECOND)).taken


def test_only_the_operator_writes_the_status(adopted: ApiServer) -> None:
    status = {"vip": {"address": "10.0.0.10", "holder": "cp-1"}}
    argv = ("patch", RESOURCE, "--subresource=status", "--type=merge", f"-p={json.dumps({'status': status})}")
    assert refused(adopted.ask(*argv), "status")
    assert adopted.ask(*argv, user="operator").taken
    gone = ("patch", RESOURCE, "--subresource=status", "--type=json", '-p=[{"op": "remove", "path": "/status"}]')
    assert refused(adopted.ask(*gone), "status")
    assert adopted.get(RESOURCE)["status"] == status


def test_the_status_changes_nothing_else(adopted: ApiServer) -> None:
    """What stands beside it in such a request is passed over: not even the annotation comes this way."""
    more = {"metadata": {"annotations": {ALLOW: NAME}, "finalizers": ["a.b/c"]}, "spec": {"vip": {"name": "x"}}}
    argv = ("patch", RESOURCE, "--subresource=status", "--type=merge", f"-p={json.dumps(more)}")
    assert adopted.ask(*argv, user="operator").taken
    found = adopted.get(RESOURCE)
    assert ALLOW not in found["metadata"]["annotations"]
    assert "finalizers" not in found["metadata"]
    assert found["spec"]["vip"] == CLUSTER["spec"]["vip"]


def not_adopted(server: ApiServer, reason: str) -> None:
    """Have the operator say for this *reason* that it does not look after the object."""
    condition = {
        "type": "Adopted", "status": "False", "reason": reason, "message": "",
        "lastTransitionTime": "2030-01-01T00:00:00Z",
    }  # fmt: skip
    body = json.dumps({"status": {"conditions": [condition]}})
    argv = ("patch", RESOURCE, "--subresource=status", "--type=merge", f"-p={body}")
    assert server.ask(*argv, user="operator").taken


def test_an_object_may_go_if_the_operator_looks_after_another(adopted: ApiServer) -> None:
    not_adopted(adopted, ANOTHER_OBJECT)
    assert adopted.ask("delete", RESOURCE).taken


def test_an_object_that_the_operator_cannot_read_may_not_go(adopted: ApiServer) -> None:
    not_adopted(adopted, "Invalid")
    assert refused(adopted.ask("delete", RESOURCE), "data")
    assert is_there(adopted)


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "replace", "path": "/spec/versions/0/served", "value": False},
        {"op": "remove", "path": f"{SCHEMA}/nodes/x-kubernetes-validations"},
        {"op": "remove", "path": f"{SCHEMA}/nodes/items/properties/address/x-kubernetes-validations"},
        {"op": "remove", "path": f"{SCHEMA}/backend/properties/type/x-kubernetes-validations"},
        {"op": "remove", "path": f"{SCHEMA}/dataDirectory"},
        {"op": "remove", "path": f"{SCHEMA}/nodes/items/properties/ssh/properties/port"},
    ],
    ids=lambda operation: operation["path"].rsplit("/spec/")[-1],
)
def test_a_definition_keeps_what_it_has(adopted: ApiServer, operation: dict[str, object]) -> None:
    assert refused(patched(adopted, CRD, operation), "definitions")


def test_a_definition_may_get_more(adopted: ApiServer) -> None:
    """As a newer release brings it: a field, a rule, a column."""
    rule = {"rule": "self != oldSelf || true", "message": "more"}
    answer = patched(
        adopted, CRD,
        {"op": "add", "path": f"{SCHEMA}/more", "value": {"type": "boolean"}},
        {"op": "add", "path": f"{SCHEMA}/dataDirectory/x-kubernetes-validations/-", "value": rule},
        {"op": "remove", "path": "/spec/versions/0/additionalPrinterColumns/1"},
    )  # fmt: skip
    assert answer.taken, answer.text
    assert refused(adopted.ask("apply", "-f", ROOT / "manifests" / "crds.yaml"), "definitions"), "the older release"
    assert adopted.ask("annotate", CRD, f"{ALLOW}={DEFINITIONS[0].name}").taken
    assert adopted.ask("delete", CRD, "--dry-run=server").taken
    assert adopted.ask("apply", "-f", ROOT / "manifests" / "crds.yaml").taken
    assert adopted.ask("annotate", CRD, f"{ALLOW}-").taken


# ---- what goes through ----------------------------------------------------------------------------------------------


def test_the_annotation_is_the_way(adopted: ApiServer) -> None:
    assert adopted.ask("annotate", RESOURCE, f"{ALLOW}={NAME}").taken
    assert adopted.ask("delete", RESOURCE).taken
    assert not is_there(adopted)


def test_whoever_may_impersonate_the_operator_writes_the_status(adopted: ApiServer) -> None:
    argv = ("patch", RESOURCE, "--subresource=status", "--type=merge", '-p={"status": {"vip": {"holder": "cp-2"}}}')
    assert adopted.ask(*argv, "--as=system:serviceaccount:kubeadm-registry:operator", "--as-group=system:masters").taken


def test_a_rule_may_be_hollowed_out(adopted: ApiServer) -> None:
    """The guard counts the rules about changes; what they say it cannot judge."""
    place = f"{SCHEMA}/dataDirectory/x-kubernetes-validations"
    rules = adopted.get(CRD)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    number = next(i for i, one in enumerate(rules["dataDirectory"]["x-kubernetes-validations"]) if "old" in one["rule"])
    hollow = {"op": "replace", "path": f"{place}/{number}/rule", "value": "self == oldSelf || true"}
    assert patched(adopted, CRD, hollow).taken
    assert adopted.ask("apply", "-f", ROOT / "manifests" / "crds.yaml").taken


@pytest.mark.parametrize("kind", ["validatingadmissionpolicybinding", "validatingadmissionpolicy"])
def test_the_guard_itself_is_not_guarded(adopted: ApiServer, kind: str) -> None:
    """These kinds are exempt from admission; a moment after one is gone, so is what it stopped."""
    assert adopted.ask("delete", kind, "kubeadm-registry-data").taken
    try:
        dry = ("delete", RESOURCE, "--dry-run=server")
        wait_until("the guard to be gone", lambda: adopted.ask(*dry).taken, seconds=60)
    finally:
        assert adopted.send("apply", json.dumps({"apiVersion": "v1", "kind": "List", "items": guard()})).taken
    wait_until("the guard to be back", lambda: not adopted.ask(*dry).taken, seconds=60)


def test_etcd_knows_no_admission(adopted: ApiServer) -> None:
    key = f"/registry/kubeadm-registry.dev/registryclusters/{NAME}"
    assert run(program("etcdctl"), f"--endpoints={adopted.etcd}", "del", key).stdout.strip() == "1"
    wait_until("the API server to see it", lambda: not is_there(adopted), seconds=30)


@pytest.mark.usefixtures("programs")
def test_an_api_server_may_be_told_to_ask_no_policy() -> None:
    with running("--disable-admission-plugins=ValidatingAdmissionPolicy") as server:
        for name in ("crds.yaml", "admission.yaml"):
            assert server.ask("apply", "-f", ROOT / "manifests" / name).taken
        wait_until("RegistryCluster to be served", lambda: server.send("apply", [CLUSTER]).taken, seconds=60)
        assert server.ask("delete", RESOURCE).taken
    assert not server.directory.exists()
    address = urlsplit(server.url)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((str(address.hostname), address.port or 0))


def test_the_object_goes_by_the_way_that_is_left(adopted: ApiServer) -> None:
    """Nothing holds it: no finalizer, so it goes whether an operator runs or not."""
    assert "finalizers" not in adopted.get(RESOURCE)["metadata"]
    remove(adopted)
    assert not is_there(adopted)
