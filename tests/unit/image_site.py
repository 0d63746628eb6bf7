"""A registry with a few images that answers for three nodes, whichever command asks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeadm_registry import config, pki, secrets
from kubeadm_registry.access import reach, session
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.transport.host import Transport
from tests.unit.fake_cluster import FakeCluster, fixed_secrets
from tests.unit.fake_images import Repositories, ScopedHandler
from tests.unit.fake_pushes import FakePushes
from tests.unit.fake_registry import serving
from tests.unit.fakes import FakeTransport

PAUSE = "registry.k8s.io/pause"
NAMES = ("cp-1", "cp-2", "cp-3")


@pytest.fixture
def fake(three: FakeCluster, pair: pki.Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repositories]:
    """Three servers that were installed; one registry answers through each of them and through the virtual IP."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reach, "answers", lambda _address: False)
    (tmp_path / "cluster.yaml").write_text(config.SMALLEST)

    def connect(_: RegistryCluster, node: Node, prompts: session.Prompts) -> Transport:
        server = three.servers[node.name]
        server.put(secrets.PATH, fixed_secrets(NAMES).to_json(), 0o600)
        server.closed = False
        return server

    monkeypatch.setattr(session, "reach", connect)
    registry = Repositories()
    registry.index(PAUSE, "3.10", amd64=registry.image(PAUSE), arm64=registry.image(PAUSE, layer=b"arm"))
    registry.image("app", "v1", layer=b"app")
    registry.image("kubeadm-registry/canary", "v1")
    FakePushes(three.servers)
    with serving(registry, pair, ScopedHandler):
        monkeypatch.setattr(FakeTransport, "dial", lambda _self, _address, _port: ("127.0.0.1", registry.port))
        yield registry
