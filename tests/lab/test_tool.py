"""The tool out of a bundle, on a host that has no Python: it unpacks itself, and works on the servers from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubeadm_registry.bundle.make import choose, create
from kubeadm_registry.bundle.tool import NAME
from tests.lab.carried import carried
from tests.lab.registry import Registry

pytest_plugins = ["tests.lab.registry"]

HOST = "h3"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the tool alone."""
    path = tmp_path_factory.mktemp("tool") / "bundle.tar"
    create(path, choose([NAME]))
    return path


def test_it_unpacks_itself_and_works_on_the_servers(registry: Registry, bundle: Path) -> None:
    host = registry.lab.hosts[HOST]
    assert host.sh("which", "python3", check=False).returncode != 0, "a host with Python proves nothing"
    registry.wait_copied()  # the tests before may have made faults, and `status` is 0 only when nothing is left of them
    with carried(registry, host, bundle) as tool:
        tool.run("bundle", "verify", "bundle.tar")
        told = tool.run("status", "-o", "json").stdout
        assert json.loads(told)["vip"]["holder"] in registry.servers
