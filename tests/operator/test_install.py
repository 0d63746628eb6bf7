"""The operator as it is installed: what it may do, by its own service account, and whether it is taken out again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeadm_registry import config
from kubeadm_registry.custom_resources import installing
from kubeadm_registry.custom_resources.definitions import DEFINITIONS
from kubeadm_registry.custom_resources.names import NAME, NAMESPACE, OPERATOR, SERVICE_ACCOUNT
from kubeadm_registry.custom_resources.roles import GRANTS
from kubeadm_registry.errors import CommandTimeout, ConnectionFailed
from kubeadm_registry.upkeep.api import Api
from kubeadm_registry.upkeep.kubeconfig import by_kubeconfig
from tests.lab.command import wait_until
from tests.lab.programs import cached
from tests.operator.apiserver import ApiServer, running
from tests.operator.battery import CLUSTER
from tests.operator.conftest import ROOT
from tests.operator.replicas import replica
from tests.operator.site import site
from tests.operator.test_leading import SOON
from tests.operator.test_rounds import GOOD, POLICY, Operator, healthy, plan
from tests.unit.fake_cluster import fixed_secrets

SPEC = config.parse(config.SMALLEST, "x")
SECRETS = fixed_secrets(("cp-1", "cp-2", "cp-3"))


def install(api: Api, seconds: float) -> tuple[str, list[str]]:
    """The leader's name, and what was said."""
    said: list[str] = []
    return installing.install(api, SPEC, SECRETS, said.append, image="", seconds=seconds), said


@pytest.fixture(scope="module")
def server(programs: None) -> Iterator[ApiServer]:
    with running() as found:
        yield found


@pytest.fixture(scope="module")
def api(server: ApiServer) -> Api:
    return by_kubeconfig(server.kubeconfig())


@pytest.fixture(scope="module")
def account(server: ApiServer, api: Api) -> Path:
    """A kubeconfig of the operator's service account, with everything installed; no pod runs here, so none leads."""
    with pytest.raises(CommandTimeout, match="for a replica of the operator to lead"):
        install(api, 30)
    token = server.kubectl("create", "token", SERVICE_ACCOUNT, f"--namespace={NAMESPACE}").stdout.strip()
    document = yaml.safe_load(server.kubeconfig().read_text())
    document["users"][0]["user"] = {"token": token}
    path = server.directory / "service-account.kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


def can(server: ApiServer, verb: str, resource: str, *more: str) -> bool:
    """Whether the service account may, by the API server's own word."""
    return server.ask("auth", "can-i", verb, resource, f"--as={OPERATOR}", *more).taken


@pytest.mark.parametrize("grant", GRANTS, ids=lambda one: f"{one.resource}.{one.group}")
def test_it_may_what_the_table_says(server: ApiServer, account: Path, grant: Any) -> None:
    resource = f"{grant.resource.partition('/')[0]}.{grant.group}".rstrip(".")
    target = f"{resource}/{grant.name}" if grant.name else resource
    more = [f"--subresource={grant.resource.partition('/')[2]}"] if "/" in grant.resource else []
    where = [f"--namespace={grant.namespace}"] if grant.namespace else ["--all-namespaces"] if not grant.name else []
    for verb in grant.verbs:
        assert can(server, verb, target, *more, *where), verb


@pytest.mark.parametrize(
    "words",
    [
        "get secrets --all-namespaces", f"get secrets --namespace={NAMESPACE}", "list secrets --all-namespaces",
        "get pods --all-namespaces", "watch pods --all-namespaces", "create pods --all-namespaces",
        "delete pods --all-namespaces", "update registryclusters", "patch registryclusters", "delete registryclusters",
        "create registryclusters", "get registryclusters", "update registrypolicies", "delete registryretentionplans",
        "update registryretentionplans", "update customresourcedefinitions", "delete validatingadmissionpolicies",
        f"create leases --namespace={NAMESPACE}", f"delete leases/operator --namespace={NAMESPACE}",
        f"get leases/other --namespace={NAMESPACE}", "get leases/operator --namespace=default",
        "create events.events.k8s.io --namespace=kube-system", "list events.events.k8s.io --namespace=default",
        "get namespaces/default", "list namespaces", "patch nodes", "list configmaps --all-namespaces",
        "create tokenreviews", "impersonate users", "create rolebindings --all-namespaces",
    ],
)  # fmt: skip
def test_it_may_not(server: ApiServer, account: Path, words: str) -> None:
    assert not can(server, *words.split())


def test_its_rights_are_enough_for_all_that_it_does(server: ApiServer, account: Path, tmp_path: Path) -> None:
    if not cached("registry"):
        pytest.skip("not built yet: registry; make test-operator builds it")
    assert server.send("apply", [CLUSTER, POLICY]).taken
    with site(tmp_path) as there:
        there.push("team/app", "v1")
        operator = Operator(server, there, account)
        operator.look()
        operator.rounds.images()
        assert plan(operator)["status"]["deletions"] == 0
        assert plan(operator, days=40)["status"]["deletions"] == 1
        assert healthy(operator) == ("True", "Planned")
        there.kill("cp-3")
        assert operator.look()["Degraded"] == "True"
        assert ("Unreachable", "cp-3: connection refused") in operator.events()
        operator.rounds.approvals()
        assert GOOD.keys() <= operator.conditions().keys()
        operator.leadership.release()


def test_install_waits_until_a_replica_leads_and_says_nothing_the_second_time(
    server: ApiServer, api: Api, account: Path, tmp_path: Path
) -> None:
    """The replica is a process here, with the rights of the service account; in a cluster it is a pod."""
    with replica(server, tmp_path, "pod", kubeconfig=account):
        leader, said = install(by_kubeconfig(server.kubeconfig()), SOON)
    assert (leader, said) == ("pod", []), "it was installed before"


def test_status_says_who_leads(server: ApiServer, api: Api, account: Path, tmp_path: Path) -> None:
    assert installing.status(api, seconds=1).leads == ""
    with replica(server, tmp_path, "shown", kubeconfig=account):
        wait_until("it to lead", lambda: installing.status(api).leads == "shown", seconds=SOON)
    found = installing.status(api, seconds=1)
    assert found.image.startswith("10.0.0.10:5000/kubeadm-registry/operator:")
    assert (found.ready, found.wanted) == (0, 2)


def test_pods_are_of_the_restricted_standard(server: ApiServer, account: Path) -> None:
    """As the namespace asks for it; a violation is refused, and warned of."""
    template = server.get("deployment", NAME, f"--namespace={NAMESPACE}")["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": NAMESPACE}, **template}
    pod["metadata"] = {**template["metadata"], "name": "x", "namespace": NAMESPACE}
    answer = server.send("create", [pod], "--dry-run=server")
    assert answer.taken, answer.text
    assert "arning" not in answer.text
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    assert "violates PodSecurity" in server.send("create", [pod], "--dry-run=server").text


def test_the_secret_keeps_its_certificate(server: ApiServer, api: Api, account: Path) -> None:
    def metrics() -> str:
        found = server.get("secret", "registry", f"--namespace={NAMESPACE}")["data"]
        assert set(found) == {"ca.crt", "username", "password", "retention-key", "metrics.pem"}
        return str(found["metrics.pem"])

    before = metrics()
    with pytest.raises(CommandTimeout):
        install(api, 2)
    assert metrics() == before


def test_the_manifests_are_what_is_applied(server: ApiServer, account: Path) -> None:
    for file in ("crds.yaml", "admission.yaml", "operator.yaml"):
        done = server.kubectl("apply", "--server-side", "--field-manager=kubeadm-registry", "-f",
                              ROOT / "manifests" / file)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert server.kubectl("diff", "--server-side", "--field-manager=kubeadm-registry", "-f",
                              ROOT / "manifests" / file).stdout == ""  # fmt: skip


def test_a_dry_run_says_what_would_change_and_changes_nothing(server: ApiServer, api: Api, account: Path) -> None:
    def told(image: str) -> list[str]:
        said: list[str] = []
        installing.install(api, SPEC, SECRETS, said.append, image=image, seconds=1, dry_run=True)
        return said

    with pytest.raises(CommandTimeout):
        install(api, 1)  # the manifests of the repository name another port of the API server
    assert told("") == []
    assert told("example.org/another:1") == [f"Deployment {NAME} would be changed"]
    assert told("") == [], "it was not changed"
    said: list[str] = []
    installing.uninstall(api, SPEC, said.append, dry_run=True)
    assert f"Deployment {NAME} would be deleted" in said
    assert server.ask("get", "deployment", NAME, f"--namespace={NAMESPACE}").taken


def test_who_may_not_install_is_told_so(server: ApiServer, account: Path) -> None:
    with pytest.raises(ConnectionFailed) as caught:
        install(by_kubeconfig(account), 5)
    assert caught.value.code == "ClusterRefused"
    assert "administrator" in caught.value.hint


def test_uninstall_leaves_what_describes_and_guards_the_registry(server: ApiServer, api: Api, account: Path) -> None:
    said: list[str] = []
    installing.uninstall(api, SPEC, said.append)
    assert f"Deployment {NAME} deleted" in said
    assert said[-1] == f"Namespace {NAMESPACE} deleted"
    for kind, name in (("clusterrole", NAME), ("clusterrolebinding", NAME), ("role", f"{NAME} -n=default")):
        assert not server.ask("get", kind, *name.split()).taken
    for each in DEFINITIONS:
        assert server.ask("get", f"crd/{each.name}").taken
    assert server.get("regc", "registry")["metadata"]["name"] == "registry"
    assert not server.ask("delete", "regc", "registry").taken, "the guard is in force"
    again: list[str] = []
    installing.uninstall(api, SPEC, again.append)
    assert [one for one in again if not re.match("Namespace|ServiceAccount", one)] == []
