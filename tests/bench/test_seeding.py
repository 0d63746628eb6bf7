"""Seeding, compared with other programs: the same images into the same registry, in turn, whole processes.

Each peer in its best way to bring many images from a disk, one command an image, and as well six of them at a time:

- skopeo copy from an OCI layout, with its notes of what is where, which let it mount shared layers, kept for the run;
- crane push of an OCI layout;
- regctl image copy from an OCI layout;
- oras cp from an OCI layout.

Our library has no command line for a bare registry: tests/bench/seeding.py is a process that does what `seed` does.
What peers do not do, the proof that all can be read, is left out where it is compared, and shown by itself.

A small run by default; KUBEADM_REGISTRY_BENCH_FULL=1 is the one that the documentation quotes: 2 GB and five rounds.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kubeadm_registry.bundle import Bundle
from kubeadm_registry.images import seed
from tests.bench.bundles import MB, TAG, Images, noise_images, noise_index
from tests.bench.loopback import ROOT, Loopback, loopback
from tests.bench.turns import in_turn
from tests.lab import programs
from tests.lab.registry import repeat

FULL = os.environ.get("KUBEADM_REGISTRY_BENCH_FULL") == "1"
ROUNDS = repeat(5 if FULL else 2)
#: At most this many bytes reach the registry's port for an image that is there: questions, and the TLS of connections.
QUESTIONS = 20_000
LIMIT = 900


@dataclass
class Contestant:
    """One who seeds: *command* does it once, in *environment*. What came of it, a list entry a round."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    first: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    proof: list[float] = field(default_factory=list)
    bytes_again: list[int] = field(default_factory=list)
    used: float = 0.0
    """Seconds of processor time of the last run."""
    processor: list[float] = field(default_factory=list)
    """Seconds of processor time of each first run, with the proof of ours."""

    def run(self, registry: Loopback) -> float:
        """Seconds for all images; those of the proof are noted apart."""
        environment = {**os.environ, "SSL_CERT_FILE": str(registry.ca), **self.environment}
        used, begin = _used(), time.perf_counter()
        done = subprocess.run(
            registry.network.argv(*self.command), cwd=ROOT, env=environment, capture_output=True, text=True,
            timeout=LIMIT, check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        self.used = _used() - used
        assert done.returncode == 0, f"{self.name}: {done.stdout[-500:]}{done.stderr[-2000:]}"
        if self.name == OURS:
            told = json.loads(done.stdout.splitlines()[-1])
            assert told["flaws"] == {}
            self.proof.append(told["proof"])
            seconds -= told["proof"]
        return seconds


def _used() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


@contextmanager
def busy() -> Iterator[None]:
    """Every processor has something else to do twice over, for the length of a ``with``."""
    idle = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for process in idle:
            process.kill()
            process.wait()


OURS, TOGETHER = "kubeadm-registry", ", 6 at a time"


def peers(images: Images, port: int, home: Path) -> Iterator[Contestant]:
    """The other programs, one command an image, one after the other and six at a time."""
    home.mkdir()
    go = {name: str(programs.program(name)) for name in ("crane", "regctl", "oras")}
    # skopeo, as root, keeps its notes in /var/lib/containers: the run gets a /var/lib of its own, empty.
    own = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /var/lib && exec "$@"', "-"]
    skopeo = ["skopeo", "copy", "--quiet", "--insecure-policy", "--preserve-digests"]
    oras = [go["oras"], "cp", "--no-tty", "--to-plain-http=false", "--from-oci-layout"]
    ways: dict[str, tuple[list[str], list[str], Callable[[Path], str], str]] = {
        "skopeo": (own, skopeo, lambda at: f"oci:{at}:{TAG}", "docker://"),
        "crane": ([], [go["crane"], "push"], str, ""),
        "regctl": ([], [go["regctl"], "image", "copy"], lambda at: f"ocidir://{at}:{TAG}", ""),
        "oras": ([], oras, lambda at: f"{at}:{TAG}", ""),
    }
    for name, (prefix, command, source, scheme) in ways.items():
        lines = home / f"{name}.txt"
        lines.write_text(
            "".join(f"{source(at)} {scheme}localhost:{port}/{image}:{TAG}\n" for image, at in images.layouts.items())
        )
        for together in (1, 6):
            each = ["xargs", f"--arg-file={lines}", "--max-lines=1", f"--max-procs={together}"]
            yield Contestant(
                name if together == 1 else name + TOGETHER,
                [*prefix, *each, *command], {"HOME": str(home)},
            )  # fmt: skip


def ours(images: Images, registry: Loopback, home: Path) -> Contestant:
    """Our own."""
    argv = ["-m", "tests.bench.seeding", str(images.bundle), str(registry.ca), str(registry.port)]
    return Contestant(OURS, [sys.executable, *argv, str(home / "journal.json")])


def compare(registry: Loopback, images: Images, home: Path, *, without: Collection[str] = ()) -> list[Contestant]:
    """Let everybody (but those *without*) seed an empty registry, and then the same again, once a round.

    Each round another one begins.
    """
    with Bundle.open(images.bundle) as bundle:
        items = seed.plan(bundle)
    others = [one for one in peers(images, registry.port, home / "home") if one.name not in without]
    everybody = [ours(images, registry, home), *others]
    for number in range(ROUNDS):
        for one in in_turn(everybody, number):
            registry.empty()
            one.first.append(one.run(registry))
            one.processor.append(one.used)
            before = registry.taken()
            one.again.append(one.run(registry))
            one.bytes_again.append(registry.taken() - before)
            with registry.network.entered():
                assert seed.prove(registry.connect, items) == {}, f"{one.name} has not brought everything"
    return everybody


def show(title: str, everybody: list[Contestant]) -> tuple[float, float]:
    """Print the table; returns how many times faster ours was than the fastest peer, and that of the second run.

    That is of one command after the other, as people do it. Six at a time is shown as well, and not held to: on two
    busy processors it measures who has more processes.
    """
    mine, *others = everybody
    first, again = statistics.median(mine.first), statistics.median(mine.again)
    proof = statistics.median(mine.proof)
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"\n{title}; medians of {ROUNDS}, seconds; load {load}")
    print(f"  {'':<22} {'seed':>8} {'ratio':>6}   {'again':>8} {'ratio':>6} {'KB sent':>8} {'CPU':>6}")
    for one in everybody:
        seconds, repeated = statistics.median(one.first), statistics.median(one.again)
        print(f"  {one.name:<22} {seconds:8.2f} {seconds / first:6.2f}   {repeated:8.2f} {repeated / again:6.2f} "
              f"{statistics.median(one.bytes_again) / 1000:8.0f} {statistics.median(one.processor):6.2f}")  # fmt: skip
    print(f"  {'the proof after ours':<22} {proof:8.2f}")
    plain = [one for one in others if not one.name.endswith(TOGETHER)]
    fastest = min(statistics.median(one.first) for one in plain)
    return fastest / first, min(statistics.median(one.again) for one in plain) / again


def second_run(mine: Contestant, count: int) -> None:
    """The second seed is over in 3 s, with its proof, and sends no blob."""
    assert statistics.median(mine.again) + statistics.median(mine.proof) < 3
    assert max(mine.bytes_again) < QUESTIONS * count


@pytest.mark.parametrize("load", ["idle", "busy"])
def test_large(kind: str, load: str, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """20 images of which five each share a layer, and one has a layer of 600 MB: 2 GB."""
    unit = MB if FULL else MB // 10
    layers = [[f"base-{number % 4}", *((600,) if number == 0 else (40, 15, 5))] for number in range(20)]
    sizes = [[one if isinstance(one, str) else one * unit for one in held] for held in layers]
    images = noise_images(scratch / "images", sizes, {f"base-{number}": 50 * unit for number in range(4)})
    with loopback(kind) as registry, busy() if load == "busy" else nullcontext():
        everybody = compare(registry, images, scratch)
    with capsys.disabled():
        ratio, _ = show(f"{kind}, {images.size / MB:.0f} MB in 20 images, {load} processors", everybody)
    assert ratio >= 0.95 or not FULL, "small ones are over before Python has begun"
    if load == "idle":
        second_run(everybody[0], 20)


def test_far(kind: str, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """60 images of 8 layers of 64 KiB, 10 ms away."""
    images = noise_images(scratch / "images", [[2**16] * 8] * 60)
    with loopback(kind, milliseconds=10) as registry:
        everybody = compare(registry, images, scratch, without={"skopeo"})  # which takes a minute and a half
    with capsys.disabled():
        ratio, again = show(f"{kind}, 60 images of 8 small layers, 10 ms away", everybody)
    assert ratio >= 1.5
    assert again >= 1
    second_run(everybody[0], 60)


def test_an_index_of_many(kind: str, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One image that is an index of 200 small ones, as tools write that keep all versions of something in one."""
    images = noise_index(scratch / "images", 200, 20_000)
    with loopback(kind) as registry:
        everybody = compare(registry, images, scratch, without={"skopeo", "skopeo" + TOGETHER})
    with capsys.disabled():
        show(f"{kind}, an index of 200 images", everybody)
