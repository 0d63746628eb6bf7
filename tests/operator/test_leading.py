"""Two replicas as processes against a real API server: one acts, and one that was paused acts never again."""

from __future__ import annotations

import re
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kubeadm_registry.custom_resources.definitions import DEFINITIONS
from kubeadm_registry.operator.running import EXIT_LOST
from tests.lab.command import wait_until
from tests.operator.apiserver import ApiServer, running
from tests.operator.battery import CLUSTER, changed, put
from tests.operator.conftest import ROOT
from tests.operator.replicas import DURATION, OBJECTS, Replica, agent, audited, holder, lease, replica, requests

#: Seconds until what should happen within a lease's duration or two has happened, on a machine with other work.
SOON = 60.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("leading")


@pytest.fixture(scope="module")
def api(programs: None, folder: Path) -> Iterator[ApiServer]:
    """An API server that logs who does what, with a RegistryCluster."""
    with running(*audited(folder)) as server:
        assert server.ask("apply", "-f", ROOT / "manifests" / "crds.yaml").taken
        for each in DEFINITIONS:
            assert server.ask("wait", "--for=condition=Established", f"crd/{each.name}").taken
        wait_until(
            "RegistryCluster to be served", lambda: server.send("apply", [CLUSTER, *OBJECTS]).taken, seconds=SOON
        )
        yield server


def leads(server: ApiServer, one: Replica) -> None:
    """Wait until *one* has the lease and works."""
    wait_until(f"{one.name} to lead", lambda: holder(server) == one.name, seconds=SOON)
    generation = server.get("regc", "registry")["metadata"]["generation"] + 1
    other = changed(CLUSTER, put("spec.vip.name", f"g{generation}.example"))
    assert server.send("apply", [other]).taken

    def seen() -> bool:
        return bool(server.get("regc", "registry").get("status", {}).get("observedGeneration") == generation)

    wait_until(f"{one.name} to look at what was applied", seen, seconds=SOON)


def test_a_replica_that_was_paused_does_nothing_more(api: ApiServer, folder: Path) -> None:
    """Twice, each at another moment of its work. The log of the API server is what counts."""
    with ExitStack() as stack:
        leader = stack.enter_context(replica(api, folder, "paused-0"))
        leads(api, leader)
        for number in range(1, 3):
            successor = stack.enter_context(replica(api, folder, f"paused-{number}"))
            wait_until("both to answer", lambda one=successor: answers(one), seconds=SOON)  # type: ignore[misc]
            assert (figure(leader, "leader"), figure(successor, "leader")) == (1, 0)
            leader.signal(signal.SIGSTOP)
            leads(api, successor)
            awake = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            leader.signal(signal.SIGCONT)
            wait_until("the paused one to end", lambda one=leader: not one.is_running, seconds=SOON)  # type: ignore[misc]
            assert leader.process.returncode == EXIT_LOST, leader.log
            assert "lost the lease" in leader.log
            wrote = [one for one in requests(folder) if one.agent == agent(leader.name) and one.wrote]
            assert any("/status" in one.uri for one in wrote), "the log knows what it did while it led"
            assert [one for one in wrote if one.when > awake] == []
            assert holder(api) == successor.name
            leader = successor


def test_a_replica_that_was_killed_has_a_successor(api: ApiServer, folder: Path) -> None:
    with replica(api, folder, "killed") as first, replica(api, folder, "heir") as second:
        wait_until("one to lead", lambda: holder(api) in (first.name, second.name), seconds=SOON)
        one, other = (first, second) if holder(api) == first.name else (second, first)
        leads(api, one)
        one.process.kill()
        one.process.wait()
        renewed = lease(api)["renewTime"]
        wait_until("the other to lead", lambda: holder(api) == other.name, seconds=SOON)
        over = datetime.fromisoformat(renewed) + timedelta(seconds=DURATION)
        assert datetime.fromisoformat(lease(api)["acquireTime"]) >= over, "not before the lease is over"
        leads(api, other)


def test_one_that_is_asked_to_end_lets_the_next_begin(api: ApiServer, folder: Path) -> None:
    with replica(api, folder, "asked") as one:
        leads(api, one)
        one.signal(signal.SIGTERM)
        assert one.process.wait(SOON) == 0, one.log
        assert holder(api) == ""
        assert "Traceback" not in one.log
        wrote = [each for each in requests(folder) if each.agent == agent(one.name) and each.wrote]
        assert "/leases/" in wrote[-1].uri, "it wrote nothing after it had released the lease"


def test_nothing_holds_what_it_looked_after(api: ApiServer, folder: Path) -> None:
    """The object goes at once while no operator runs: no finalizer, and no annotation of kopf's."""
    with replica(api, folder, "gone") as one:
        leads(api, one)
    metadata = api.get("regc", "registry")["metadata"]
    assert "finalizers" not in metadata
    assert not [key for key in metadata.get("annotations", {}) if "kopf" in key]
    assert api.ask("delete", "regc", "registry", "--timeout=30s").taken
    assert api.send("apply", [CLUSTER]).taken


def test_what_it_serves(api: ApiServer, folder: Path) -> None:
    with replica(api, folder, "pages") as one:
        leads(api, one)
        for path in ("healthz", "readyz"):
            assert page(one, path) == "ok\n"
        told = 'kubeadm_registry_operator_round_ended_seconds{round="health"} '
        wait_until("the end of a round to be told", lambda: told in page(one, "metrics"), seconds=SOON)
        assert 'kubeadm_registry_operator_condition{type="Adopted",status="True"} 1' in page(one, "metrics")


def page(one: Replica, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{one.port}/{path}", timeout=5) as answer:
        return str(answer.read().decode())


def answers(one: Replica) -> bool:
    """Whether it serves its pages."""
    try:
        return page(one, "healthz") == "ok\n"
    except OSError:
        return False


def figure(one: Replica, name: str) -> float:
    [found] = re.findall(rf"^kubeadm_registry_operator_{name} (\S+)$", page(one, "metrics"), re.MULTILINE)
    return float(found)
