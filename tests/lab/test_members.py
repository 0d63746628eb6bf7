"""Nodes come to a registry and leave it, one of them dead, while clients pull and push."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from kubeadm_registry import paths
from tests.lab import images
from tests.lab.changing import (
    KNOWN,
    PATIENCE,
    REPOSITORY,
    Changing,
    all_images,
    around_failures,
    changing,
    check_all,
    holds_vip,
    push_all,
    removed,
)
from tests.lab.clients import Pushing, pushing
from tests.lab.command import wait_until
from tests.lab.host import Host
from tests.lab.reading import Reading, reading
from tests.lab.rooms import DATA
from tests.lab.settings import FRONTENDS

#: Run by `make day-two`.
pytestmark = pytest.mark.long


@pytest.fixture(scope="module", params=FRONTENDS)
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changing]:
    with changing("members", request.param, tmp_path_factory.mktemp("members")) as registry:
        push_all(registry)
        yield registry


def changed(registry: Changing, directory: Path, *arguments: str) -> tuple[Reading, Pushing]:
    """Run a change under the eyes of a reader and of somebody who pushes; nobody may notice."""
    begin = time.time()
    reads_all_the_time = reading(registry, KNOWN, period=0.1, deadline=PATIENCE)
    with reads_all_the_time as reads, pushing(registry, directory, every=1.0) as pushes:
        said = registry.cli(*arguments, "--bundle", registry.bundle, timeout=500).stdout
    sys.stdout.write(f"\n{said}\n  {' '.join(arguments)}: reads: {reads}\n  pushes: {pushes}\n")
    for failover in registry.json("status", check=False)[-1]["failovers"]:
        if (ago := datetime.fromisoformat(failover["time"]).timestamp() - begin) > 0:
            told = "{what} from {from} to {to}: {cause}".format(**failover)
            sys.stdout.write(f"  after {ago:.0f} s: {told}\n")
    for read in reads.failed:
        sys.stdout.write(f"  after {read.begin - begin:.1f} s, {read.seconds:.1f} s: {read.error}\n")
    for push in pushes.failed:
        sys.stdout.write(f"  after {push.begin - begin:.1f} s, {push.seconds:.1f} s: {push.client}: {push.error}\n")
    sys.stdout.writelines(around_failures(registry, reads, pushes))
    return reads, pushes


def quiet(registry: Changing, reads: Reading, pushes: Pushing) -> None:
    """Nobody noticed: a read that is cut off is the only one, as containerd tries it again at once."""
    assert not pushes.failed
    assert not pushes.lost(registry)
    assert len(reads.failed) <= 1, reads
    assert all(request.closed for request in reads.failed), reads


def last_said(host: Host, unit: str, text: str) -> float:
    """When the journal of *host* has *text* last about *unit*, in seconds since 1970."""
    argv = ("journalctl", "--no-pager", "--quiet", "--output=short-unix", f"--unit={unit}", f"--grep={text}")
    return float(host.sh(*argv).stdout.splitlines()[-1].split()[0])


def each_may_be_lost(registry: Changing) -> None:
    """Cut each node in turn, once `status` says so: everything is still read."""
    assert registry.cli("status").returncode == 0
    for host in registry.servers.values():
        host.power_cut()
        for what in all_images():
            assert not images.missing(registry, what, REPOSITORY, timeout=30), f"without {host.name}"
        host.power_on()
        registry.wait_copied()


def test_a_node_joins(registry: Changing, tmp_path: Path) -> None:
    stay, garage = list(registry.servers.values()), registry.unit("garage")
    before = registry.invocations(stay)
    registry.become("h1", "h2", "h3", "h5")
    reads, pushes = changed(registry, tmp_path, "join", "h5")
    quiet(registry, reads, pushes)
    check_all(registry)
    after = registry.invocations(stay)
    storage = [name for name in before if name.endswith(garage)]
    assert len(storage) == len(stay)
    assert [name for name in storage if after[name] != before[name]] == [], "the storage restarts nowhere"
    for host in registry.servers.values():
        found = registry.listed(host)
        assert (found.generation, set(found.nodes), found.before) == (2, {"h1", "h2", "h3", "h5"}, ())
        # A busy machine is slow for a moment.
        wait_until("no condition", lambda at=host: registry.state(at)["conditions"] == [], seconds=30)  # type: ignore[misc]
    assert "nothing to do" in registry.cli("join", "h5", "--bundle", registry.bundle).stdout
    assert "nothing to do" in registry.cli("init", "--bundle", registry.bundle).stdout
    each_may_be_lost(registry)


def test_a_dead_node_is_replaced_and_comes_back(registry: Changing, tmp_path: Path) -> None:
    old = registry.lab.hosts["h2"]
    before = registry.write_file(name="before.yaml")
    old.power_cut()
    registry.become("h1", "h3", "h5", "h6")
    reads, pushes = changed(registry, tmp_path, "replace", "h2", "h6", "--yes")
    quiet(registry, reads, pushes)
    check_all(registry)
    assert registry.cli("status").returncode == 0
    with reading(registry, KNOWN, period=0.1, deadline=PATIENCE) as reads:
        old.power_on()
        wait_until("the agent of h2 to learn that it has left", lambda: removed(old), seconds=60)
        wait_until("h2 not to hold the VIP", lambda: not holds_vip(registry, old), seconds=10)
    assert not reads.failed
    assert old.sh("cat", f"{paths.RUN}/agent/fit", check=False).stdout.strip() != "1"
    said = registry.cli("status", "--file", before, check=False)
    assert said.returncode != 0, "h6 is not in that file"
    assert "h2: it has left the registry, which continues without it" in said.stdout
    for name in registry.names:
        health = registry.garage(registry.servers[name])
        assert health["storageNodes"] == 4
    each_may_be_lost(registry)


def test_the_holder_of_the_virtual_ip_leaves(registry: Changing, tmp_path: Path) -> None:
    registry.become("h1", "h3", "h5", "h6")
    if registry.holder().name != "h5":
        registry.cli("vip", "move", "h5")
    reads, pushes = changed(registry, tmp_path, "leave", "h5", "--yes")
    registry.become("h1", "h3", "h6")
    quiet(registry, reads, pushes)
    check_all(registry)
    left = registry.lab.hosts["h5"]
    assert left.sh("test", "-e", paths.ETC, check=False).returncode == 1
    stopped = last_said(left, paths.unit(registry.frontend), "Stopped ")
    gave_away = last_said(left, paths.unit("garage"), r"\(bucket_v2\) Offloading")
    assert stopped < gave_away, "it answered reads when its storage had no list of buckets any more"
    assert registry.cli("status").returncode == 0
    each_may_be_lost(registry)


def test_a_node_with_a_broken_disk_is_replaced_by_one_that_had_left(registry: Changing) -> None:
    """SSH answers there, its storage does not run, and it cannot be uninstalled. The other one has data of before."""
    registry.become("h1", "h3", "h6")
    if registry.holder().name == "h3":
        registry.cli("vip", "move", "h1")
    old, back = registry.lab.hosts["h3"], registry.lab.hosts["h5"]
    unit, stale = paths.unit("garage"), f"{DATA}/garage/data/stale"
    back.sh("test", "-e", f"{DATA}/garage/meta/db.lmdb")
    back.sh("touch", stale)
    old.sh("sh", "-c", f"mount --bind {DATA} {DATA} && mount -o remount,ro,bind {DATA}")
    old.sh("systemctl", "restart", unit, check=False)
    wait_until(
        "the storage of h3 to fail",
        lambda: old.sh("systemctl", "is-active", "--quiet", unit, check=False).returncode != 0,
        seconds=30,
    )
    registry.become("h1", "h5", "h6")
    said = registry.cli("replace", "h3", "h5", "--yes", "--bundle", registry.bundle, timeout=500).stdout
    assert "it is not uninstalled, and the others keep it out" in said
    assert back.sh("test", "-e", stale, check=False).returncode == 1
    check_all(registry)
    assert set(registry.listed(registry.lab.hosts["h1"]).nodes) == {"h1", "h5", "h6"}
    assert registry.cli("status").returncode == 0


def test_the_first_node_is_replaced_while_it_holds_all(registry: Changing, tmp_path: Path) -> None:
    """It is first in the file, has the virtual IP, writes, and runs. The other was dead when it left, and is as it was
    then: nobody has uninstalled it."""
    registry.become("h1", "h5", "h6")
    if registry.holder().name != "h1":
        registry.cli("vip", "move", "h1")
    if registry.frontend == "zot":
        first = registry.servers["h1"]
        wait_until("h1 to write", lambda: registry.state(first)["writer"]["role"] == "writer", seconds=30)
    registry.become("h2", "h5", "h6")
    reads, pushes = changed(registry, tmp_path, "replace", "h1", "h2", "--yes")
    quiet(registry, reads, pushes)
    check_all(registry)
    left = registry.lab.hosts["h1"]
    assert left.sh("test", "-e", paths.ETC, check=False).returncode == 1
    assert not holds_vip(registry, left)
    assert set(registry.listed(registry.lab.hosts["h2"]).nodes) == {"h2", "h5", "h6"}
    each_may_be_lost(registry)
