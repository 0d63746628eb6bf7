"""``doctor`` from the command line: output and exit codes."""

from __future__ import annotations

import json

import pytest

from kubeadm_registry.access import session
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.doctor import facts
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.transport.host import Transport
from kubeadm_registry.transport.ssh import UNREACHABLE
from tests.unit.fake_cluster import FakeCluster
from tests.unit.test_cli import Terminal, run, servers

__all__ = ["run", "servers"]


@pytest.fixture
def bare(servers: FakeCluster) -> FakeCluster:
    """Nodes on which nothing is installed, and which answer what doctor asks."""
    for server in servers.servers.values():
        server.answer("sh", "-c", facts._ASK, "doctor", with_="=== clock\n1\n")
    return servers


def cut(monkeypatch: pytest.MonkeyPatch, servers: FakeCluster, *names: str) -> None:
    def reach(_: RegistryCluster, node: Node, prompts: session.Prompts) -> Transport:
        if node.name in names:
            raise ConnectionFailed("no route to host", host=node.name, code=UNREACHABLE, hint="check it")
        servers.servers[node.name].closed = False
        return servers.servers[node.name]

    monkeypatch.setattr(session, "reach", reach)


def test_before_the_first_init(run: Terminal, bare: FakeCluster) -> None:
    result = run("doctor")
    assert result.exit_code == 1
    assert result.stdout.startswith("error [NotInstalled] the registry is not installed on any node\n")
    assert "  fix:       workstation$ kubeadm-registry preflight\n" in result.stdout
    assert result.stdout.endswith("1 error; the registry does not serve\n")
    assert bare.acts() == []


def test_json_is_one_object(run: Terminal, bare: FakeCluster) -> None:
    result = run("doctor", "-o", "json")
    found = json.loads(result.stdout)
    assert (found["state"], [one["code"] for one in found["findings"]]) == ("down", ["NotInstalled"])


def test_no_node_answers(run: Terminal, bare: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, bare, "cp-1", "cp-2", "cp-3")
    result = run("doctor", "-o", "json")
    assert result.exit_code == 4
    assert {one["code"] for one in json.loads(result.stdout)["findings"]} == {"NodeDown", "NoQuorum"}
