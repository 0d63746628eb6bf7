"""A node configures a client node's containerd for the operator: real scripts on it, in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.access import session
from kubeadm_registry.access.collecting import POINT, STEPS, Place
from kubeadm_registry.components import helper, replacing
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.errors import Error
from kubeadm_registry.helper import clients, jobs, space
from kubeadm_registry.helper.clients import Client
from kubeadm_registry.transport.ssh_config import SshTarget
from tests.unit.containerd_host import Rooted
from tests.unit.fake_cluster import FakeCluster, host_key

ASKED = {"name": "w-1.example.com", "address": "10.0.1.1", "hostKey": host_key("w-1")}


@pytest.fixture
def place(three: FakeCluster) -> Place:
    host = three.cluster.leader
    three.servers[host.name].put(replacing.KEY, b"key")
    three.servers[host.name].put(f"{helper.STEPS}/README", b"")
    return Place(three.cluster, host, connect=None)  # type: ignore[arg-type]


@pytest.fixture
def worker(tmp_path: Path) -> Rooted:
    made = Rooted(tmp_path / "w-1")
    made.put("/etc/containerd/config.toml", "version = 2\n")
    return made


def point(place: Place, worker: Rooted, **changed: object) -> dict[str, Any]:
    return clients.point(place, {**ASKED, **changed}, lambda *_: worker)


def test_its_containerd_pulls_by_the_virtual_ip_and_once_is_enough(place: Place, worker: Rooted) -> None:
    first = point(place, worker)
    hosts = [path for path in worker.tree() if path.endswith("/registry.k8s.io/hosts.toml")]
    assert len(hosts) == 1
    assert first["changes"] > 1
    assert point(place, worker) == {"changes": 0, "notes": []}


def test_what_would_keep_it_from_pulling_is_told(place: Place, worker: Rooted) -> None:
    (worker.stub / "blocked").write_text("10.0.0.10\n")
    [note] = point(place, worker)["notes"]
    assert note.startswith("cannot connect to 10.0.0.10 on TCP port 5000")


def test_a_check_that_fails_changes_nothing_and_says_why(place: Place, worker: Rooted) -> None:
    worker.put("/etc/containerd/config.toml", "version = [\n")
    before = worker.tree()
    with pytest.raises(Error, match=r"config\.toml") as caught:
        point(place, worker)
    assert (caught.value.code, caught.value.host) == ("PreflightFailed", ASKED["name"])
    assert worker.tree() == before


def test_without_the_nodes_key_nobody_is_reached(three: FakeCluster, place: Place, worker: Rooted) -> None:
    del three.servers[place.host.name].tree[replacing.KEY]
    with pytest.raises(Error) as caught:
        point(place, worker)
    assert (caught.value.code, worker.tree().get("/etc/containerd/certs.d")) == ("ClientsForbidden", None)


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "../x"), ("name", None), ("address", "not an address"), ("hostKey", ""), ("hostKey", "no key"), ("x", 1)],
)
def test_a_question_that_is_not_valid_reaches_nobody(place: Place, worker: Rooted, key: str, value: object) -> None:
    with pytest.raises(Error) as caught:
        clients.point(place, {**ASKED, key: value}, lambda *_: pytest.fail("it was reached"))
    assert caught.value.code == "QuestionInvalid"
    assert key in caught.value.message


def test_it_is_reached_by_the_nodes_key_and_known_by_its_own(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """And by nothing that root has on this machine. It lets the nodes in by their addresses."""
    targets: list[SshTarget] = []
    monkeypatch.setattr(clients, "connect", targets.append)
    monkeypatch.setattr(session, "is_here", lambda address: address == "10.0.0.12")
    config: RegistryCluster = place.cluster.config
    clients.reach(config, Client.model_validate(ASKED))
    [target] = targets
    assert (target.user, target.identity_file, target.config_file) == ("root", Path(replacing.KEY), Path("/dev/null"))
    assert (target.host_key, target.source) == (ASKED["hostKey"], "10.0.0.12")
    ssh = config.spec.ssh.model_copy(update={"user": "admin", "port": 2222})
    clients.reach(config.with_spec(ssh=ssh), Client.model_validate(ASKED))
    assert (targets[1].user, targets[1].port) == ("admin", 2222)


def test_the_helper_takes_it_as_a_step(place: Place, worker: Rooted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "point", lambda at, values: {"changes": len(values), "notes": [at.host.name]})
    assert {*STEPS, POINT} == jobs.NAMES
    request = helper.REQUEST.render({"ticket": "t", "values": ASKED})
    place.host.write(helper.request_path(POINT), request, mode=0o600)
    space.work(POINT, place.host, lambda _: place)
    found = helper.RESULT.parse(place.host.read(helper.result_path(POINT)) or b"").values
    assert found["result"] == {"changes": 3, "notes": [place.host.name]}


def test_steps_that_free_space_start_without_what_that_takes() -> None:
    """Each is a process of its own, and pushes wait for it."""
    program = "import sys, kubeadm_registry.helper.space; print([one for one in sys.modules if '.phases' in one])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
