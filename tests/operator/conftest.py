"""One API server for all tests, with the manifests of the repository applied as the documents say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeadm_registry.custom_resources.admission import ALLOW
from kubeadm_registry.custom_resources.definitions import DEFINITIONS
from tests.lab.command import run, wait_until
from tests.lab.programs import cached
from tests.operator.apiserver import ApiServer, running
from tests.operator.battery import CLUSTER, changed, put
from tests.operator.workloads import fill

ROOT = Path(__file__).parents[2]
PROGRAMS = ("etcd", "etcdctl", "kube-apiserver", "kubectl")
#: Seconds until a new definition is served, or a policy is in force. A second each without other work.
_SOON = 60.0


@pytest.fixture(scope="session")
def programs() -> None:
    """Skip where the programs are not there; in CI that is a failure."""
    missing = [name for name in PROGRAMS if not cached(name)]
    if missing:
        why = f"not built yet: {', '.join(missing)}; make test-operator builds them, some ten minutes"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)


@pytest.fixture(scope="session")
def bare(programs: None) -> Iterator[ApiServer]:
    """An API server without anything of this project."""
    with running() as server:
        yield server


@pytest.fixture(scope="session")
def server(bare: ApiServer) -> ApiServer:
    """The same with the manifests, the guard in force."""
    for name in ("crds.yaml", "admission.yaml"):
        answer = bare.ask("apply", "-f", ROOT / "manifests" / name)
        assert answer.taken, answer.text
        assert "arning" not in answer.text
    for each in DEFINITIONS:
        assert bare.ask("wait", "--for=condition=Established", f"crd/{each.name}").taken
    for each in DEFINITIONS:
        wait_until(f"{each.kind} to be served", lambda name=each.plural: bare.ask("get", name).taken, seconds=_SOON)  # type: ignore[misc]
    probe = {**CLUSTER, "metadata": {"name": "probe"}}
    assert bare.send("create", [probe]).taken

    def guarded() -> bool:
        return "ValidatingAdmissionPolicy" in bare.ask("delete", "--dry-run=server", "registrycluster/probe").text

    wait_until("the guard to be in force", guarded, seconds=_SOON)
    remove(bare)
    return bare


def remove(server: ApiServer) -> None:
    """Take every RegistryCluster away, by the way that the guard leaves."""
    for name in (item["metadata"]["name"] for item in server.get("registryclusters")["items"]):
        assert server.ask("annotate", "--overwrite", "registrycluster", name, f"{ALLOW}={name}").taken
        assert server.ask("delete", "registrycluster", name).taken
    wait_until("the deletion to be seen", lambda: _another_is_taken(server), seconds=_SOON)


def heard_of(server: ApiServer) -> None:
    """Wait until the policy about a second object has heard of the first."""
    wait_until("the object to be seen", lambda: not _another_is_taken(server), seconds=_SOON)


def _another_is_taken(server: ApiServer) -> bool:
    """Whether an object of another name would be taken now. The policy hears of what is there by a watch, so later."""
    another = changed(CLUSTER, put("metadata.name", "another"))
    return server.send("create", json.dumps(another), "--dry-run=server").taken


@pytest.fixture
def empty(server: ApiServer) -> Iterator[ApiServer]:
    """The server without a RegistryCluster, before and after."""
    assert server.get("registryclusters")["items"] == []
    yield server
    remove(server)


@pytest.fixture
def adopted(empty: ApiServer) -> ApiServer:
    """The server with CLUSTER applied."""
    answer = empty.send("apply", [CLUSTER])
    assert answer.taken, answer.text
    heard_of(empty)
    return empty


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA for clients, and an administrator's certificate as kubeadm makes it (admin.conf)."""
    directory = tmp_path_factory.mktemp("clients")
    new = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1")
    run(*new, "-subj", "/CN=clients", "-keyout", directory / "ca.key", "-out", directory / "ca.crt")
    run(*new, "-subj", "/O=system:masters/CN=kubernetes-admin", "-CA", directory / "ca.crt", "-CAkey",
        directory / "ca.key", "-keyout", directory / "admin.key", "-out", directory / "admin.crt",
        "-addext", "extendedKeyUsage=clientAuth", "-addext", "basicConstraints=critical,CA:FALSE")  # fmt: skip
    return directory


@pytest.fixture(scope="session")
def cluster(programs: None, certificates: Path) -> Iterator[ApiServer]:
    """An API server of its own with workloads of every kind."""
    with running(f"--client-ca-file={certificates / 'ca.crt'}") as server:
        fill(server)
        yield server
