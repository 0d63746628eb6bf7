"""A node's disk goes away while all else there runs: the kernel mounts it read-only after an error, or it answers
nothing but errors.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import pytest

from kubeadm_registry.errors import RegistryError
from tests.lab import images
from tests.lab.command import LabError, wait_until
from tests.lab.host import Host
from tests.lab.reading import Object, reading
from tests.lab.registry import Registry

pytest_plugins = ["tests.lab.registry"]

IMAGE = images.image(seed=601)
REPOSITORY, MEANWHILE = "tests/disk", "tests/meanwhile"
SIZES = (3 * 2**20, 64 * 1024, 2000)
"""Of the layers: several blocks of the storage, one block, and one that the storage keeps in its metadata."""
#: Seconds until pushes are accepted again.
SOON = 60


def refusing(host: Host) -> None:
    """As ext4 does with ``errors=remount-ro``, Debian's default, once an error keeps it from writing its journal."""
    host.sh("mount", "-o", "remount,abort", "/var", check=False)
    assert host.sh("touch", "/var/lib/kubeadm-registry/x", check=False).returncode != 0


def dead(host: Host) -> None:
    """Each read and write ends with EIO."""
    host.lose_disk()


@pytest.fixture(params=[refusing, pytest.param(dead, marks=pytest.mark.long)], ids=lambda fault: fault.__name__)
def struck(request: pytest.FixtureRequest, registry: Registry) -> Iterator[Callable[[Host], None]]:
    """The fault; afterwards each node that it befell has been switched off and on."""
    fault: Callable[[Host], None] = request.param
    hosts: list[Host] = []

    def strike(host: Host) -> None:
        hosts.append(host)
        fault(host)

    registry.wait_whole()
    if images.missing(registry, IMAGE, REPOSITORY):
        images.push(registry, IMAGE, REPOSITORY)
    yield strike
    for host in hosts:
        if host.state == "on":
            host.power_cut()
        host.power_on()
    registry.wait_whole()


def say(text: str) -> None:
    """Show a figure."""
    sys.stdout.write(f"\n  {text}\n")


def accepted(registry: Registry, image: images.Image) -> float:
    """Seconds until a push is accepted."""
    begin = time.monotonic()

    def pushed() -> bool:
        try:
            images.push(registry, image, MEANWHILE)
        except RegistryError as error:
            say(f"{time.monotonic() - begin:.1f} s: {error.message[:200]}")
            return False
        return True

    wait_until("a push to be accepted", pushed, seconds=SOON)
    return time.monotonic() - begin


@pytest.mark.parametrize("where", ["the holder", "another"])
def test_pulls_and_pushes_go_on(registry: Registry, struck: Callable[[Host], None], where: str) -> None:
    holder = registry.holder()
    host = holder if where == "the holder" else registry.others(holder)[0]
    after = images.image(SIZES, seed=time.time_ns())
    begin = time.time()
    with reading(registry, Object(REPOSITORY, IMAGE.digest, images.digest_of(IMAGE.layers[0]))) as reads:
        time.sleep(1)
        struck(host)
        seconds = accepted(registry, after)
        time.sleep(5)
    say(f"{registry.frontend}, {where} ({host.name}): pushes after {seconds:.1f} s; {reads}; now {registry.holders()}")
    if reads.gap > 2 or seconds > 5:
        say(registry.journals(begin))
    assert not reads.wrong
    assert reads.gap < 4
    assert not images.missing(registry, IMAGE, REPOSITORY)
    assert not images.missing(registry, after, MEANWHILE)
    assert registry.cli("status", check=False).returncode != 0
    if host.ssh("true", check=False).returncode == 0:  # which starts a program from the disk that is away

        def said() -> str:
            return registry.cli("status", check=False).stdout

        try:
            wait_until("status to say so", lambda: f"{host.name} stores nothing" in said(), seconds=30, every=1)
        except LabError:
            say(said())
            raise
        assert "DataReadOnly" in registry.cli("doctor", check=False).stdout
