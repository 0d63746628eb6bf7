"""What a cluster uses, from a real API server: every place where an image may be named, and the rights it takes."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from kubeadm_registry.errors import Error
from kubeadm_registry.upkeep import kubeconfig
from kubeadm_registry.upkeep.api import Api
from kubeadm_registry.upkeep.clusters import read
from kubeadm_registry.upkeep.rights import RIGHTS as ALWAYS
from kubeadm_registry.upkeep.rights import Right
from tests.lab.command import wait_until
from tests.lab.programs import KUBERNETES
from tests.operator.apiserver import ApiServer
from tests.operator.workloads import CASES, CUSTOM, PATHS, WORKFLOWS, Case, expected, named, triples

#: Seconds until a right is in force.
_SOON = 30.0


@pytest.fixture
def api(cluster: ApiServer) -> Iterator[Api]:
    """A client of it, as administrator."""
    found = kubeconfig.by_kubeconfig(cluster.kubeconfig())
    yield found
    found.close()


# ---- what is found --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [0, 1, 2, 1000])
def test_every_image_is_found_with_its_user_and_nothing_else(api: Api, page: int) -> None:
    report = read(api, page=page)
    assert report.problems == ()
    assert triples(report) == expected(*CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.about)
def test_where_an_image_may_stand(api: Api, case: Case) -> None:
    assert {triple for triple in triples(read(api)) if triple[2] == case.user} == expected(case)


def test_custom_resources_are_read_where_paths_lead(api: Api) -> None:
    report = read(api, paths=PATHS)
    assert (report.problems, report.unmatched) == ((), ())
    assert triples(report) == expected(*CASES, CUSTOM)


def test_a_path_that_leads_nowhere_is_told(api: Api) -> None:
    report = read(api, paths=[*PATHS, (WORKFLOWS, ".spec.tempaltes[*].image")])
    assert report.unmatched == (f"{WORKFLOWS} .spec.tempaltes[*].image",)
    assert report.problems == ()


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (".spec.templates", "Workflow shop/w is not understood: .spec.templates is an object, expected a string"),
        (".spec.templates.image", "Workflow shop/w is not understood: .spec.templates is a list, expected an object"),
    ],
)
def test_a_path_to_something_else_is_a_problem(api: Api, path: str, why: str) -> None:
    [problem] = read(api, paths=[(WORKFLOWS, path)]).problems
    assert problem.message == f"cannot list workflows.example.dev: {why}"


def test_a_kind_that_the_cluster_does_not_have_is_a_problem(api: Api) -> None:
    report = read(api, paths=[("argoproj.io/v1alpha1/workflows", ".spec.image")])
    [problem] = report.problems
    assert problem.message == (
        "cannot list workflows.argoproj.io: the cluster does not have argoproj.io/v1alpha1/workflows"
    )
    assert triples(report) == expected(*CASES), "what could be read is there all the same"


def test_the_cluster_is_known_by_its_uid_and_version(cluster: ApiServer, api: Api) -> None:
    report = read(api)
    assert report.uid == cluster.get("namespace", "kube-system")["metadata"]["uid"]
    assert report.version == KUBERNETES
    assert report.revision.isdigit()


# ---- the rights -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(cluster: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Api:
    """A client by a service account, as in a pod, which has no right yet."""
    assert cluster.ask("create", "serviceaccount", "reader", "--namespace=shop").taken
    binding = named("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "reader", "", roleRef={
        "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader",
    }, subjects=[{"kind": "ServiceAccount", "name": "reader", "namespace": "shop"}])  # fmt: skip
    assert cluster.send("create", [binding]).taken
    directory = tmp_path_factory.mktemp("serviceaccount")
    (directory / "token").write_text(cluster.kubectl("create", "token", "reader", "--namespace=shop").stdout)
    (directory / "ca.crt").write_bytes(cluster.certificate.read_bytes())
    url = urlsplit(cluster.url)
    environment = {"KUBERNETES_SERVICE_HOST": str(url.hostname), "KUBERNETES_SERVICE_PORT": str(url.port)}
    return kubeconfig.in_cluster(directory=directory, environment=environment)


RIGHTS = (*ALWAYS, Right("example.dev", "workflows", "custom resources, as configured"))


def outcome(reader: Api) -> str:
    """The problems in one line; empty when all could be read."""
    try:
        return " ".join(problem.message for problem in read(reader, paths=PATHS).problems)
    except Error as error:
        return f"{error.code}: {error}"


def grant(cluster: ApiServer, *given: Right) -> None:
    rules = [
        {"apiGroups": [one.group], "resources": [one.resource], "verbs": [one.verb],
         **({"resourceNames": [one.name]} if one.name else {})}
        for one in given
    ]  # fmt: skip
    role = named("rbac.authorization.k8s.io/v1", "ClusterRole", "reader", "", rules=rules)
    answer = cluster.send("apply", [role])
    assert answer.taken, answer.text


def test_the_rights_are_enough(cluster: ApiServer, reader: Api) -> None:
    grant(cluster, *RIGHTS)
    wait_until("the rights", lambda: outcome(reader) == "", seconds=_SOON)
    assert triples(read(reader, paths=PATHS)) == expected(*CASES, CUSTOM)


@pytest.mark.parametrize("missing", RIGHTS, ids=lambda right: right.resource)
def test_no_right_is_unneeded(cluster: ApiServer, reader: Api, missing: Right) -> None:
    grant(cluster, *(right for right in RIGHTS if right != missing))
    said = f'cannot {missing.verb} resource "{missing.resource}" in API group "{missing.group}"'
    wait_until(f"{missing} to be missed", lambda: said in outcome(reader), seconds=_SOON)
    assert ("ClusterForbidden" in outcome(reader)) == bool(missing.name)
    assert outcome(reader).count("cannot list") <= 2, "the other lists can be read"


def test_nothing_but_lists_is_allowed() -> None:
    assert {(right.verb, right.name) for right in RIGHTS} == {("list", ""), ("get", "kube-system")}
