"""Memory of the commands that handle bundles: little, and no more for a large one than for a small one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench.bundles import MB, noise_images
from tests.bench.loopback import loopback
from tests.bench.memory import peak

SMALL, LARGE, HUGE = 250 * MB, 1000 * MB, 10_000 * MB
MOST = 200 * MB
#: What the same command may take more for the large one: its own noise from run to run.
FLAT = 15 * MB


@dataclass(frozen=True, slots=True)
class Given:
    """A bundle, and a directory for what comes of it."""

    bundle: Path
    directory: Path


def create(given: Given) -> int:
    """``bundle create``, from the images of another bundle."""
    garage = given.directory / "garage"
    garage.write_text("#!/bin/sh\necho 'garage v2.3.0'\n")
    garage.chmod(0o755)
    target = given.directory / "new.tar"
    found = peak("kubeadm_registry", "bundle", "create", "-o", target, "--with", "garage", "--program",
                 f"garage={garage}", "--images-from", given.bundle)  # fmt: skip
    assert target.stat().st_size > given.bundle.stat().st_size
    target.unlink()
    return found


def verify(given: Given) -> int:
    """``bundle verify``."""
    return peak("kubeadm_registry", "bundle", "verify", given.bundle)


def seed(given: Given) -> int:
    """Seeding with its proof."""
    with loopback("distribution", where=given.directory) as registry:
        return peak("tests.bench.seeding", given.bundle, registry.ca, str(registry.port), given.directory / "journal",
                    within=registry.network.argv())  # fmt: skip


COMMANDS = (create, verify, seed)


def peaks(command: Callable[[Given], int], directory: Path, size: int) -> int:
    """Of a bundle of *size*: half of it one layer, the rest in ten images."""
    images = noise_images(directory / str(size), [[size // 2], *[[size // 40] * 2] * 10])
    try:
        return command(Given(images.bundle, directory))
    finally:
        shutil.rmtree(directory / str(size))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.__name__))
def test_flat(command: Callable[[Given], int], scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, large = peaks(command, scratch, SMALL), peaks(command, scratch, LARGE)
    with capsys.disabled():
        print(f"\n  {command.__name__}: {small / MB:.0f} MB of memory for {SMALL / MB:.0f} MB, "
              f"{large / MB:.0f} MB for {LARGE / MB:.0f} MB")  # fmt: skip
    assert max(small, large) < MOST
    assert large - small < FLAT


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.__name__))
def test_huge(command: Callable[[Given], int], scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = peaks(command, scratch, HUGE)
    with capsys.disabled():
        print(f"\n  {command.__name__}: {found / MB:.0f} MB of memory for {HUGE / MB:.0f} MB")
    assert found < MOST
