"""Each workflow is killed at a change chosen at random, and completed from another machine: one of the servers.

That server has SSH and a bundle, and nothing of the machine that ran ``init``. KUBEADM_REGISTRY_REPEAT kills each
workflow as often, at another change each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeadm_registry.components import cluster_file
from kubeadm_registry.phases.certificates import STAGES
from kubeadm_registry.phases.credentials import KEYS
from kubeadm_registry.transport.shell import SILENT
from tests.lab import images
from tests.lab.carried import FOLDER, Carried, carried
from tests.lab.changing import REPOSITORY, Changing, changing
from tests.lab.killing import RELEASED, complete, kill
from tests.lab.registry import repeat
from tests.lab.settings import FRONTENDS
from tests.lab.test_backup import backed_up, restore_from
from tests.lab.test_upgrade import restart_all

#: Run by `make day-two`.
pytestmark = pytest.mark.long
IMAGE = images.image((3_000_000, 1_500_000), seed=77)
#: The server that completes what was begun; it is in every list of members.
OTHER = "h3"
SEEDS = range(repeat())


@pytest.fixture(scope="module", params=FRONTENDS)
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changing]:
    with changing("members", request.param, tmp_path_factory.mktemp("killed")) as made, made.lab.network():
        images.push(made, IMAGE, REPOSITORY, "v1")
        yield made


@pytest.fixture
def other(registry: Changing) -> Iterator[Carried]:
    with carried(registry, registry.lab.hosts[OTHER], registry.bundle) as tool:
        yield tool


def layout(registry: Changing) -> int:
    """The version of the storage's layout: it grows when data is to move."""
    return int(registry.ask_garage(registry.servers[OTHER], "GetClusterLayout")["version"])


def converges(registry: Changing, other: Carried, *arguments: str, seconds: float = RELEASED) -> None:
    """The other server completes it, and nothing is left to be done. Locks are free after so many *seconds*."""
    complete(lambda: other.run(*arguments, check=False), seconds=seconds)
    registry.forget_logins()
    registry.ca.unlink(missing_ok=True)
    registry.wait_copied()
    is_whole(registry, other)


def is_whole(registry: Changing, other: Carried) -> None:
    """Nothing is left to be done, and the image is at the virtual IP and at each node."""
    assert other.run("init", "--bundle", "bundle.tar").stdout.splitlines()[-1] == "nothing to do"
    for address in ("", *(host.address for host in registry.servers.values())):
        assert not images.missing(registry, IMAGE, REPOSITORY, address=address)


def test_all_is_asked_and_written_from_there_as_well(registry: Changing, other: Carried) -> None:
    registry.wait_whole()
    assert other.run("status").returncode == 0
    assert other.run("doctor").stdout == "no problem found\n"
    other.run("certs", "check")
    other.run("support-bundle", "-o", "support.tar.gz")
    other.run("backup", "-o", "backup.tar", "--recipients-file", "key.pub")
    found = other.host.sh("sh", "-ec", "cd -- $1; stat -c '%a %n' support.tar.gz backup.tar", "-", FOLDER).stdout
    assert found.splitlines() == ["600 support.tar.gz", "600 backup.tar"]
    other.run("backup", "verify", "backup.tar", "--identity", "key")


def test_a_node_has_the_cluster_file_for_whoever_has_none(other: Carried) -> None:
    """How to get from here to the nodes is no part of it, so ssh_config says it."""
    ssh = f"IdentityFile {FOLDER}/key\nUserKnownHostsFile {FOLDER}/known_hosts\n"
    other.host.sh("sh", "-c", "mkdir -p /root/.ssh; cat > /root/.ssh/config", stdin=ssh)
    try:
        given = ("-f", cluster_file.PATH)
        assert other.run("init", *given, "--bundle", "bundle.tar").stdout.splitlines()[-1] == "nothing to do"
    finally:
        other.host.sh("rm", "/root/.ssh/config")


# The seed is the last decorator, so it changes last: each seed goes through all changes, from three nodes to three.
@pytest.mark.parametrize(
    ("names", "arguments"),
    [
        (("h1", "h2", "h3", "h5"), ("join", "h5")),
        (("h1", "h6", "h3", "h5"), ("replace", "h2", "h6", "--yes")),
        (("h1", "h6", "h3"), ("leave", "h5", "--yes")),
        (("h1", "h2", "h3"), ("replace", "h6", "h2", "--yes")),
    ],
    ids=["join", "replace", "leave", "back"],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_change_of_members(
    registry: Changing, other: Carried, names: tuple[str, ...], arguments: tuple[str, ...], seed: int
) -> None:
    registry.become(*names)
    before = layout(registry)
    kill(registry, seed, *arguments, "--bundle", str(registry.bundle))
    converges(registry, other, *arguments, "--bundle", "bundle.tar")
    assert layout(registry) == before + 1, "the data moved once"
    for host in registry.servers.values():
        assert set(registry.listed(host).nodes) == set(registry.names), host.name


@pytest.mark.parametrize("seed", SEEDS)
def test_an_upgrade(registry: Changing, other: Carried, seed: int) -> None:
    restart_all(registry)
    kill(registry, seed, "upgrade", "--bundle", str(registry.bundle))
    converges(registry, other, "upgrade", "--bundle", "bundle.tar")


# As above: a password is replaced again only after --finish.
@pytest.mark.parametrize(
    "arguments",
    [
        ("certs", "renew"),
        ("certs", "renew", "--ca", "--no-clients"),
        ("credentials", "rotate", "--role", "push"),
        ("credentials", "rotate", "--role", "push", "--finish"),
        ("credentials", "rotate", "--role", "s3"),
        ("credentials", "rotate", "--role", "heartbeat"),
        ("credentials", "rotate", "--role", "admin"),
    ],
    ids=lambda arguments: "-".join(word.strip("-") for word in arguments),
)
@pytest.mark.parametrize("seed", SEEDS)
def test_certificates_and_credentials(
    registry: Changing, other: Carried, arguments: tuple[str, ...], seed: int
) -> None:
    staged = "--ca" in arguments or arguments[-1] in KEYS
    kill(registry, seed, *arguments, stages=len(STAGES) if staged else 1)
    converges(registry, other, *arguments)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_move_of_the_vip(registry: Changing, other: Carried, seed: int) -> None:
    target = registry.others(registry.holder())[0].name
    kill(registry, seed, "vip", "move", target)
    converges(registry, other, "vip", "move", target)
    assert registry.holder().name == target


def test_init_and_reset(registry: Changing, other: Carried, tmp_path: Path) -> None:
    """All is removed but the data, and installed again."""
    for seed in SEEDS:
        kill(registry, seed, "reset", "--yes")
        complete(lambda: other.run("reset", "--yes", check=False))
        kill(registry, seed, "init", "--bundle", str(registry.bundle))
        converges(registry, other, "init", "--bundle", "bundle.tar")


def test_the_node_from_which_all_was_run_loses_its_power_in_the_middle_of_a_run(
    registry: Changing, other: Carried
) -> None:
    """Its connections stand, and with them its locks, until the next run ends them."""
    old = registry.lab.hosts["h2"]
    with carried(registry, old, registry.bundle) as usual:
        process = usual.popen("certs", "renew", "-o", "json")
        assert process.stdout is not None
        changes = (event for event in map(json.loads, process.stdout) if event["event"] == "change")
        next(one for one in changes if one["host"] != old.name)
        old.power_cut()
        process.kill()
        process.communicate()
        registry.become("h1", "h6", "h3")
        bundle = ("--yes", "--bundle", "bundle.tar")
        converges(registry, other, "replace", "h2", "h6", *bundle, seconds=SILENT + RELEASED)
        old.reinstall()
    registry.become("h1", "h2", "h3")
    converges(registry, other, "replace", "h6", "h2", *bundle)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_restore(registry: Changing, tmp_path: Path, seed: int) -> None:
    """All three are lost. What was pushed is in no bundle, so the backup names it as missing (5)."""
    given = backed_up(registry, tmp_path)
    registry.installed = False
    for host in registry.servers.values():
        host.reinstall()
    kill(registry, seed, *map(str, given))
    complete(lambda: restore_from(registry, registry.servers[OTHER], given), well=(0, 5))
    registry.installed = True
    registry.wait_whole()
    images.push(registry, IMAGE, REPOSITORY, "v1")
    registry.wait_copied()
    with carried(registry, registry.servers[OTHER], registry.bundle) as tool:
        is_whole(registry, tool)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_recovery(registry: Changing, seed: int) -> None:
    """Two of three are lost, and two bare machines come; the next time it is the other way around."""
    gone, come = (("h2", "h3"), ("h5", "h6"))[:: -1 if seed % 2 else 1]
    assert registry.names == ("h1", *gone)
    for name in come:
        registry.lab.hosts[name].reinstall()
    for name in gone:
        registry.lab.hosts[name].power_cut()
    registry.become("h1", *come)
    kill(registry, seed, "recover", "--bundle", str(registry.bundle), "--yes")
    with carried(registry, registry.servers["h1"], registry.bundle) as tool:
        complete(lambda: tool.run("recover", "--bundle", "bundle.tar", "--yes", check=False), well=(0, 5))
        registry.wait_whole()
        is_whole(registry, tool)
