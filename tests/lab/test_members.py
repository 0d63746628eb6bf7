"""Nodes come to a registry and leave it, one of them dead, while clients pull and push."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeadm_registry import members, paths
from kubeadm_registry.oci import canary
from tests.lab import images
from tests.lab.clients import Pushing, pushing
from tests.lab.command import wait_until
from tests.lab.fresh import fresh_lab
from tests.lab.host import Host
from tests.lab.reading import Object, Reading, reading
from tests.lab.registry import Registry, bundle, skip_without
from tests.lab.settings import Place, Settings

#: Run by `make day-two`.
pytestmark = pytest.mark.long
KNOWN = Object(canary.REPOSITORY, canary.MANIFEST.digest, canary.LAYER.digest)
REPOSITORY = "team/app"
PATIENCE = 20.0
"""Seconds after which a request of containerd has failed: it tries again, and waits as long for an answer."""


class Changing(Registry):
    """A registry whose members change."""

    names: tuple[str, ...] = ("h1", "h2", "h3")

    @property
    def servers(self) -> dict[str, Host]:
        return {name: self.lab.hosts[name] for name in self.names}

    def become(self, *names: str) -> None:
        """From now on the cluster file lists these hosts."""
        self.names = names
        self.write_file()

    def flaws(self) -> list[str]:
        """Storages also know nodes that have left, or are connected to more than three."""
        found = [flaw for flaw in super().flaws() if ": storage {" not in flaw]
        for host in self.servers.values():
            health = self.garage(host)
            if health.get("storageNodesUp") != len(self.names) or health["partitionsAllOk"] != health["partitions"]:
                found.append(f"{host.name}: storage {health or 'does not answer'}")
        return found

    def listed(self, host: Host) -> members.Members:
        """The list of members that *host* has."""
        return members.parse(host.sh("cat", members.PATH).stdout.encode())


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changing]:
    skip_without("distribution")
    bundle("distribution")
    with fresh_lab(Place.default().beside("members"), Settings(hosts=6)) as lab:
        registry = Changing(lab, "distribution", tmp_path_factory.mktemp("members"))
        registry.install()
        registry.wait_whole()
        with lab.network():
            for number in range(8):
                images.push(registry, images.image((3_000_000, 1_500_000), seed=number), REPOSITORY, f"v{number}")
        yield registry


def changed(registry: Changing, directory: Path, *arguments: str) -> tuple[Reading, Pushing]:
    """Run a change under the eyes of a reader and of somebody who pushes; nobody may notice."""
    reads_all_the_time = reading(registry, KNOWN, period=0.1, deadline=PATIENCE)
    with reads_all_the_time as reads, pushing(registry, directory, every=1.0) as pushes:
        said = registry.cli(*arguments, "--bundle", registry.bundle, timeout=500).stdout
    sys.stdout.write(f"\n{said}\n  {' '.join(arguments)}: reads: {reads}\n  pushes: {pushes}\n")
    return reads, pushes


def quiet(reads: Reading, pushes: Pushing) -> None:
    """Nobody noticed: a read that is cut off is the only one, as containerd tries it again at once."""
    assert not pushes.failed
    assert len(reads.failed) <= 1, reads
    assert all("Reset" in request.error for request in reads.failed), reads


def check_all(registry: Changing) -> None:
    """Every image is complete, at the VIP and at each member."""
    registry.wait_copied()
    for address in ("", *(host.address for host in registry.servers.values())):
        for number in range(8):
            lost = images.missing(
                registry, images.image((3_000_000, 1_500_000), seed=number), REPOSITORY, address=address
            )
            assert not lost, f"{address}: {lost}"


def test_a_node_joins(registry: Changing, tmp_path: Path) -> None:
    registry.become("h1", "h2", "h3", "h5")
    reads, pushes = changed(registry, tmp_path, "join", "h5")
    quiet(reads, pushes)
    check_all(registry)
    for host in registry.servers.values():
        found = registry.listed(host)
        assert (found.generation, set(found.nodes), found.before) == (2, {"h1", "h2", "h3", "h5"}, ())
        assert registry.state(host)["conditions"] == []
    assert "nothing to do" in registry.cli("join", "h5", "--bundle", registry.bundle).stdout
    assert "nothing to do" in registry.cli("init", "--bundle", registry.bundle).stdout
    assert registry.cli("status").returncode == 0


def test_a_dead_node_is_replaced_and_comes_back(registry: Changing, tmp_path: Path) -> None:
    old = registry.lab.hosts["h2"]
    old.power_cut()
    registry.become("h1", "h3", "h5", "h6")
    reads, pushes = changed(registry, tmp_path, "replace", "h2", "h6", "--yes")
    quiet(reads, pushes)
    check_all(registry)
    assert registry.cli("status").returncode == 0
    with reading(registry, KNOWN, period=0.1, deadline=PATIENCE) as reads:
        old.power_on()
        wait_until("the agent of h2 to learn that it has left", lambda: removed(registry, old), seconds=60)
        wait_until("h2 not to hold the VIP", lambda: not holds_vip(registry, old), seconds=10)
    assert not reads.failed
    assert old.sh("cat", f"{paths.RUN}/agent/fit", check=False).stdout.strip() != "1"
    for name in registry.names:
        health = registry.garage(registry.servers[name])
        assert health["storageNodes"] == 4


def removed(registry: Changing, host: Host) -> bool:
    state = json.loads(host.sh("cat", f"{paths.RUN}/agent/state.json", check=False).stdout or "{}")
    return "Removed" in state.get("conditions", ())


def holds_vip(registry: Changing, host: Host) -> bool:
    return bool(host.sh("ip", "-o", "address", "show", "to", registry.vip).stdout)


def test_a_node_leaves(registry: Changing, tmp_path: Path) -> None:
    registry.become("h1", "h3", "h6")
    reads, pushes = changed(registry, tmp_path, "leave", "h5", "--yes")
    quiet(reads, pushes)
    check_all(registry)
    left = registry.lab.hosts["h5"]
    assert left.sh("test", "-e", paths.ETC, check=False).returncode == 1
    assert registry.cli("status").returncode == 0
    # Each of them may be lost.
    for host in registry.servers.values():
        host.power_cut()
        for number in range(8):
            what = images.image((3_000_000, 1_500_000), seed=number)
            assert not images.missing(registry, what, REPOSITORY, timeout=30), f"without {host.name}"
        host.power_on()
        registry.wait_copied()
