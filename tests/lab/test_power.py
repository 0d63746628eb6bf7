"""Servers lose their power, one or all at once: nothing that was pushed is lost, and nobody has to help."""

from __future__ import annotations

import sys
import time

import pytest

from kubeadm_registry.errors import RegistryError
from kubeadm_registry.registry import retry
from tests.lab import images
from tests.lab.command import wait_until
from tests.lab.faults import BLOCKS
from tests.lab.host import Host
from tests.lab.registry import SERVERS, Registry

pytest_plugins = ["tests.lab.registry"]

DEADLINE = 60
"""Seconds from the power's return until the registry must answer."""
SIZES = (3 * 2**20, 64 * 1024, 2000)
"""Of the layers: several blocks of the storage, one block, and one that the storage keeps in its metadata."""


def say(text: str) -> None:
    """Show a figure."""
    sys.stdout.write(f"\n  {text}\n")


def served(registry: Registry, image: images.Image, repository: str) -> bool:
    """Whether all of *image* can be read through the VIP at this moment."""
    try:
        return not images.missing(registry, image, repository, timeout=3)
    except RegistryError:
        return False


def blocks(host: Host) -> set[str]:
    """The names of the storage's blocks on the disk of *host*."""
    found = host.sh("find", BLOCKS, "-mindepth", "2", "-type", "f", "-size", "+0", "-printf", "%f\n").stdout
    return set(found.split())


def missed(registry: Registry, host: Host, by: Host) -> set[str]:
    """The blocks of *host* that *by* lacks, without those of versions that were replaced.

    Garage keeps these for a while, and copies them to nobody. With zot each push replaces a list.
    """

    def references(block: str) -> int:
        request = {"node": "self", "body": {"blockHash": block.partition(".")[0]}}
        [said] = registry.ask_garage(host, "GetBlockInfo", request)["success"].values()
        return int(said["refcount"])

    return {block for block in blocks(host) - blocks(by) if references(block)}


def returned(registry: Registry) -> tuple[images.Image, images.Image, Host, float]:
    """The holder loses its power and returns, with a push before and one meanwhile; whole again. Both images, the
    server, and the moment (monotonic) at which its log-in worked.
    """
    before, meanwhile = (images.image(SIZES, seed=time.time_ns() + turn) for turn in (1, 2))
    images.push(registry, before, "power/before")
    victim = registry.holder()
    victim.power_cut()
    wait_until("an answer", lambda: served(registry, before, "power/before"), seconds=60)
    # What was sent to a process that the others have not given up yet fails, as what was in hand does, and is repeated.
    retry(lambda: images.push(registry, meanwhile, "power/meanwhile"), seconds=30)
    victim.power_on()
    begin = time.monotonic()
    registry.wait_whole()
    return before, meanwhile, victim, begin


def test_after_a_return_another_server_may_be_lost(registry: Registry) -> None:
    """What was pushed before and while it was away is read without the other one, through every server that is left."""
    before, meanwhile, victim, begin = returned(registry)
    say(f"{registry.frontend}: returned, whole {time.monotonic() - begin:.1f} s after")
    other = registry.others(victim)[0]
    other.power_cut()
    wait_until("an answer", lambda: served(registry, before, "power/before"), seconds=60)
    for address in ("", *(server.address for server in registry.others(other))):
        assert not images.missing(registry, before, "power/before", address=address)
        assert not images.missing(registry, meanwhile, "power/meanwhile", address=address)


def test_a_returned_server_gets_its_copies(registry: Registry) -> None:
    """What was pushed while it was away comes to its own disk soon; by itself Garage would take up to ten minutes."""
    _, _, victim, begin = returned(registry)
    whole = time.monotonic() - begin
    other = registry.others(victim)[0]
    wait_until("its copy of every block", lambda: not missed(registry, other, victim), seconds=60, every=0.5)
    say(f"{registry.frontend}: returned, whole {whole:.1f} s after, its copies {time.monotonic() - begin:.1f} s after")


@pytest.mark.long
def test_a_server_that_lost_everything_is_made_anew_and_gets_all_data(registry: Registry) -> None:
    """A new machine under its name and address: ``init`` gives it its place back, and the storage fills its disk."""
    image = images.image(SIZES, seed=time.time_ns())
    victim = registry.holder()
    other = registry.others(victim)[0]
    before = blocks(other)  # some of them may be rubbish that Garage keeps for ten minutes, and gives to nobody
    images.push(registry, image, "power/replaced")
    wanted = blocks(other) - before
    assert wanted
    victim.reinstall()
    registry.cli("init", "--bundle", registry.bundle)
    begin = time.monotonic()

    def may_be_lost() -> bool:
        """Whether any node may be lost, and a wrong yes is an error."""
        yes = registry.cli("status", check=False).returncode == 0
        assert not yes or wanted <= blocks(victim), "status said yes before the copies were there"
        return yes

    registry.wait_whole()
    wait_until("status to say that any node may be lost", may_be_lost, seconds=120, every=0.5)
    say(f"{registry.frontend}: made anew, its copies {time.monotonic() - begin:.1f} s after init")
    other.power_cut()
    wait_until("an answer", lambda: served(registry, image, "power/replaced"), seconds=60)
    assert not images.missing(registry, image, "power/replaced", address=victim.address)


@pytest.mark.long
def test_two_servers_that_lost_everything_get_it_from_the_third(registry: Registry) -> None:
    """Among them the one where things are done that are done once for all."""
    image = images.image(SIZES, seed=time.time_ns())
    images.push(registry, image, "power/third")
    for name in SERVERS[:2]:
        registry.servers[name].reinstall()
    refused = registry.cli("init", "--bundle", registry.bundle, check=False)
    assert refused.returncode == 3
    assert "NodesLost" in refused.stderr
    registry.cli("init", "--bundle", registry.bundle, "--ignore-preflight-errors", "NodesLost")
    registry.wait_whole()
    for host in registry.servers.values():
        assert not images.missing(registry, image, "power/third", address=host.address)


@pytest.mark.parametrize("absent", ["nobody", *(pytest.param(one, marks=pytest.mark.long) for one in SERVERS)])
def test_the_rack_comes_back_by_itself(registry: Registry, absent: str) -> None:
    """The power of all servers fails at once, and returns, for all or for all but one: the registry answers."""
    image = images.image(SIZES, seed=time.time_ns())
    images.push(registry, image, "power/rack")
    for host in registry.servers.values():
        host.power_cut()
    back = [host for host in registry.servers.values() if host.name != absent]
    begin = time.monotonic()
    for host in back:
        host.start()
    wait_until("an answer", lambda: served(registry, image, "power/rack"), seconds=120, every=0.2)
    seconds = time.monotonic() - begin
    say(f"{registry.frontend}: power back, without {absent}: all is read {seconds:.1f} s after")
    for host in back:
        host.wait_ready()
    assert seconds <= DEADLINE
    after = images.image((100_000,), seed=time.time_ns())
    images.push(registry, after, "power/after")
    assert not images.missing(registry, after, "power/after")
    assert len(registry.holders()) == 1
