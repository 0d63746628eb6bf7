"""A seed that is killed twenty times, at random moments: in the end all is there, and hardly a byte was sent twice.

Distribution 2.8 and zot 2.1 both forget all of an upload whose connection ends in the middle of a request: a process
that outlives the kill ends what is in hand (kubeadm_registry/images/detached.py), and the next run waits for it.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kubeadm_registry.bundle import Bundle
from kubeadm_registry.images import seed, seeded
from tests.bench.bundles import MB, noise_images
from tests.bench.loopback import ROOT, Loopback, loopback

KILLS = 20
#: What may come to the registry in all, for each byte of the bundle.
MOST = 1.10
SEED = int(os.environ.get("KUBEADM_REGISTRY_SEED") or time.time())


def seeding(registry: Loopback, bundle: Path, journal: Path) -> subprocess.Popen[bytes]:
    """A seed that has begun."""
    argv = ["-m", "tests.bench.seeding", str(bundle), str(registry.ca), str(registry.port), str(journal), "--no-proof"]
    return subprocess.Popen(registry.network.argv(sys.executable, *argv), cwd=ROOT, stdout=subprocess.DEVNULL)


def killed(registry: Loopback, process: subprocess.Popen[bytes], bytes_before: int) -> bool:
    """Kill it when so many bytes have come to the registry in all; whether it was still at work."""
    deadline = time.monotonic() + 60
    while registry.taken() < bytes_before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    at_work = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return at_work


def flaws(registry: Loopback, bundle: Path) -> list[str]:
    """In what the registry is not the bundle: every byte of each blob is read, and every name."""
    found = []
    with Bundle.open(bundle) as opened, registry.network.entered(), registry.connect() as client:
        items = seed.plan(opened)
        for item in items:
            if client.digest(item.repository, item.reference) != item.root.digest:
                found.append(f"{item.name} is not there")
            for blob in item.blobs:
                content = client.blob(item.repository, blob.digest, most=blob.size) or b""
                if f"sha256:{hashlib.sha256(content).hexdigest()}" != blob.digest:
                    found.append(f"{blob.digest} of {item.name}")
        wanted = sorted((item.repository, item.reference) for item in items)
        there = [(name, tag) for name in client.repositories() for tag in client.tags(name)]
        if sorted(one for one in there if one[0] != seeded.REPOSITORY) != wanted:
            found.append(f"there are other tags: {there}")
    return found


def test_killed_twenty_times(kind: str, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moments = random.Random(SEED)
    layers = [[moments.randint(20, 100) * MB, *(moments.randint(10_000, 8 * MB) for _ in range(5))] for _ in range(16)]
    images = noise_images(scratch / "images", layers)
    with loopback(kind) as registry:
        for number in range(KILLS + 1):
            process = seeding(registry, images.bundle, scratch / "journal")
            if number < KILLS:
                moment = registry.taken() + moments.randint(0, images.size // 50)
                assert killed(registry, process, moment), f"it was over after {number} kills (seed {SEED})"
            else:
                assert process.wait(timeout=300) == 0
        sent = registry.taken()
        assert flaws(registry, images.bundle) == []
    with capsys.disabled():
        more = (sent - images.size) / KILLS / MB
        print(f"\n  {kind}: {images.size / MB:.0f} MB, killed {KILLS} times (seed {SEED}): "
              f"{sent / images.size:.1%} came to the registry, {more:.1f} MB more for each kill")  # fmt: skip
    assert sent <= MOST * images.size
