"""The tool out of a bundle, on a host that has no Python: it unpacks itself, and works on the servers from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubeadm_registry.bundle.make import choose, create
from kubeadm_registry.bundle.tool import NAME
from tests.lab.registry import Registry

pytest_plugins = ["tests.lab.registry"]

HOST = "h3"
FOLDER = "/root/carried"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the tool alone."""
    path = tmp_path_factory.mktemp("tool") / "bundle.tar"
    create(path, choose([NAME]))
    return path


def test_it_unpacks_itself_and_works_on_the_servers(registry: Registry, bundle: Path) -> None:
    host, place = registry.lab.hosts[HOST], registry.lab.place
    assert host.sh("which", "python3", check=False).returncode != 0, "a host with Python proves nothing"
    ssh = {"ssh.identityFile": "key", "ssh.knownHostsFile": "known_hosts"}
    file = registry.write_file(ssh, name="carried.yaml")
    registry.wait_copied()  # the tests before may have made faults, and `status` is 0 only when nothing is left of them
    carried = {"bundle.tar": bundle, "key": place.key, "known_hosts": place.known_hosts, "cluster.yaml": file}
    try:
        host.sh("mkdir", "-m", "700", FOLDER)
        for name, source in carried.items():
            host.put(source, f"{FOLDER}/{name}")
        unpack = "tar -xOf bundle.tar unpack.sh | sh -s bundle.tar tool; chmod 600 key"
        host.sh("sh", "-ec", f"cd {FOLDER}; {unpack}; tool/bin/kubeadm-registry bundle verify bundle.tar")
        told = host.sh("sh", "-ec", f"cd {FOLDER}; tool/bin/kubeadm-registry status -o json").stdout
        assert json.loads(told)["vip"]["holder"] in registry.servers
    finally:
        host.sh("rm", "-rf", FOLDER)
