"""Twenty images, three of them of 500 MB, are pulled by containerd all the time, and others push, while nodes come and
go, certificates and keys are exchanged, and all is upgraded.

No pull fails, and no push, but those that a power cut ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab import images
from tests.lab.changing import KNOWN, PATIENCE, Changing, around_failures, changing
from tests.lab.clients import Pushing, pushing
from tests.lab.pulling import Pulls, configure, pulling
from tests.lab.reading import Reading, reading
from tests.lab.registry import CLIENT
from tests.lab.settings import FRONTENDS
from tests.lab.test_upgrade import restart_all

#: Run by `make day-two`.
pytestmark = pytest.mark.long
MB = 1_000_000
#: Bytes of the layers of each.
SIZES = (*((400 * MB, 100 * MB),) * 3, *((8 * MB, 2 * MB),) * 17)
NAMES = tuple(f"registry.k8s.io/tests/large-{number}" for number in range(len(SIZES)))


@pytest.fixture(scope="module", params=FRONTENDS)
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changing]:
    with changing("members", request.param, tmp_path_factory.mktemp("large")) as made:
        assert CLIENT not in made.names
        configure(made)
        with made.lab.network():
            # The large ones one at a time: each is in memory as a whole.
            for seed, (name, sizes) in enumerate(zip(NAMES, SIZES, strict=True)):
                images.push(made, images.image(sizes, seed=seed), name, "v1")
        made.wait_copied()
        yield made


@contextmanager
def used(registry: Changing, directory: Path, what: str) -> Iterator[tuple[Pulls, Reading, Pushing]]:
    """All that clients do meanwhile, for the length of a ``with``; shows what came of it, and that no pull was lost."""
    begin = time.time()
    with (
        pulling(registry.client, [f"{name}:v1" for name in NAMES]) as pulls,
        reading(registry, KNOWN, period=0.1, deadline=PATIENCE) as reads,
        pushing(registry, directory, every=1.0) as pushes,
    ):
        yield pulls, reads, pushes
        took = time.time() - begin
    sys.stdout.write(f"\n  {registry.frontend}, {what} in {took:.0f} s: {pulls}; reads: {reads}; {pushes}\n")
    failed = [(one.begin, one.seconds, one.error) for kind in (pulls, reads, pushes) for one in kind.failed]
    for at, seconds, error in failed:
        sys.stdout.write(f"  after {at - begin:.1f} s, {seconds:.1f} s: {error}\n")
    sys.stdout.writelines(around_failures(registry, reads, pushes))
    assert not pulls.lost
    assert pulls.done
    assert not pushes.lost(registry)


def planned(registry: Changing, directory: Path, *arguments: str, then: Callable[[], None] = lambda: None) -> None:
    """Run a command of which nobody notices anything; containerd reads once more by itself what is cut off."""
    with used(registry, directory, " ".join(arguments)) as (pulls, reads, pushes):
        registry.cli(*arguments, timeout=900)
    then()
    registry.forget_logins()
    registry.ca.unlink(missing_ok=True)
    assert not pulls.failed
    assert not pushes.failed
    assert len(reads.failed) <= 1, reads
    registry.wait_copied()


def test_a_node_joins(registry: Changing, tmp_path: Path) -> None:
    registry.become("h1", "h2", "h3", "h5")
    planned(registry, tmp_path, "join", "h5", "--bundle", str(registry.bundle))


def test_certificates_are_renewed(registry: Changing, tmp_path: Path) -> None:
    planned(registry, tmp_path, "certs", "renew")


def test_the_ca_is_replaced(registry: Changing, tmp_path: Path) -> None:
    """Clients trust both meanwhile, as people have them do between the two commands."""
    settings, there = registry.lab.settings, registry.client
    nodes = tmp_path / "clients.txt"
    nodes.write_text(f"{CLIENT} {there.address} user={settings.user} port={settings.ssh_port}\n")
    registry.cli("certs", "renew", "--ca", "--nodes", nodes, "--trust-only")
    registry.ca.write_text(registry.cli("ca").stdout)
    planned(registry, tmp_path / "large", "certs", "renew", "--ca", "--nodes", str(nodes))


@pytest.mark.parametrize("role", ["push", "heartbeat", "s3", "admin"])
def test_keys_are_replaced(registry: Changing, tmp_path: Path, role: str) -> None:
    planned(registry, tmp_path, "credentials", "rotate", "--role", role)


def test_all_is_upgraded(registry: Changing, tmp_path: Path) -> None:
    restart_all(registry)
    planned(registry, tmp_path, "upgrade", "--bundle", str(registry.bundle))


def test_a_node_that_runs_is_replaced(registry: Changing, tmp_path: Path) -> None:
    registry.become("h1", "h6", "h3", "h5")
    planned(registry, tmp_path, "replace", "h2", "h6", "--yes", "--bundle", str(registry.bundle))


def test_a_node_leaves(registry: Changing, tmp_path: Path) -> None:
    registry.become("h1", "h6", "h3", "h5")
    planned(
        registry, tmp_path, "leave", "h5", "--yes", then=lambda: registry.become("h1", "h6", "h3"),
    )  # fmt: skip


def test_the_holder_dies_and_is_replaced(registry: Changing, tmp_path: Path) -> None:
    """What was in flight there may fail, and is counted; what was acknowledged is there.

    The next holder ends what clients receive, and containerd goes on. What it was opening at that moment fails.
    """
    dead = registry.holder()
    left = [name for name in registry.names if name != dead.name]
    with used(registry, tmp_path, f"{dead.name} loses its power and is replaced") as (pulls, _, _):
        dead.power_cut()
        pulls.struck = time.time()
        registry.become(*left, "h2")
        registry.cli("replace", dead.name, "h2", "--yes", "--bundle", str(registry.bundle), timeout=900)
    registry.wait_copied()
    assert registry.cli("status").returncode == 0
