"""A containerd that pulls a layer of 500 MB while what serves it dies or hangs ends with the right digest.

containerd checks the digest itself. The stall, the longest time in which no byte of the layer arrived, is printed.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest

from tests.lab import images
from tests.lab.command import LabError, wait_until
from tests.lab.host import Host
from tests.lab.registry import Registry

pytest_plugins = ["tests.lab.registry"]

#: Run by `make day-two`.
pytestmark = pytest.mark.long
SIZE = 500_000_000
NAME = "registry.k8s.io/tests/large:v1"
REPOSITORY = "registry.k8s.io/tests/large"
CERTS = "/etc/containerd/certs.d"
#: So slow that the fault falls into the middle of the pull (bit/s), as on a network of this speed.
RATE = "800mbit"
#: Seconds in which a client has gone on at the next holder; half a second is what the VIP needs to move.
STALL = 5.0


@pytest.fixture(scope="module")
def large() -> images.Image:
    return images.image([SIZE], seed=500)


@pytest.fixture
def pushed(registry: Registry, large: images.Image) -> Iterator[Registry]:
    """The image is in the registry, and the worker's containerd has the servers' hosts files meanwhile."""
    if images.missing(registry, large, REPOSITORY):
        images.push(registry, large, REPOSITORY, "v1")
    server, client = registry.servers["h1"], registry.client
    for path in server.sh("find", CERTS, "-type", "f").stdout.split():
        client.sh("mkdir", "-p", str(Path(path).parent))
        client.sh("sh", "-c", 'cat > "$1"', "-", path, stdin=server.sh("cat", path).stdout)
    yield registry
    client.sh("rm", "-r", CERTS)


@contextmanager
def slowed(registry: Registry, host: Host) -> Iterator[None]:
    """Let the network carry no more than RATE towards *host*."""
    registry.lab.run(
        "tc", "qdisc", "replace", "dev", host.port, "root", "tbf", "rate", RATE, "burst", "1mb", "latency", "50ms"
    )
    try:
        yield
    finally:
        registry.lab.run("tc", "qdisc", "del", "dev", host.port, "root", check=False)


def received(host: Host) -> int:
    """How many bytes of unfinished layers *host*'s containerd has."""
    ingest = host.var / "lib/containerd/io.containerd.content.v1.content/ingest"
    total = 0
    for data in ingest.glob("*/data"):
        try:
            total += data.stat().st_size
        except FileNotFoundError:
            continue
    return total


def pull(registry: Registry, host: Host, strike: Callable[[], object]) -> tuple[float, float]:
    """Pull on *host*, *strike* in the middle; seconds it took, and its longest stall."""
    host.sh("ctr", "images", "rm", NAME, check=False)
    host.sh("ctr", "content", "prune", "references", check=False)
    begin = time.monotonic()
    process = subprocess.Popen(
        host.sh_argv("ctr", "images", "pull", "--local", "--hosts-dir", CERTS, NAME),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    stall, last, size, struck = 0.0, time.monotonic(), 0, False
    try:
        while process.poll() is None:
            now, there = time.monotonic(), received(host)
            if there > size:
                stall, last, size = max(stall, now - last) if size else 0.0, now, there
            if not struck and size > SIZE * 0.3:
                strike()
                struck = True
            if now - begin > 120:
                raise LabError(f"the pull did not end; {size} bytes are there")
            time.sleep(0.02)
        assert struck, f"the pull was over before the fault: {process.communicate()[1]}"
        assert process.returncode == 0, process.communicate()[1]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return time.monotonic() - begin, stall


@pytest.mark.parametrize("where", ["worker", "holder"])
@pytest.mark.parametrize("strike", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_pull_goes_on_when_the_frontend_fails(
    pushed: Registry, large: images.Image, where: str, strike: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    holder, unit = pushed.holder(), pushed.unit("frontend")
    host = pushed.client if where == "worker" else holder
    try:
        with slowed(pushed, host) if where == "worker" else nullcontext():
            seconds, stall = pull(pushed, host, lambda: holder.kill(unit, strike))
    finally:
        holder.kill(unit, signal.SIGCONT)
    with capsys.disabled():
        print(f"\n{pushed.frontend}, {where}, frontend {strike.name}: {seconds:.1f} s, stall {stall:.2f} s")
    arrived(pushed, host, large)


@pytest.mark.parametrize(("where", "fault"), [("worker", "power cut"), ("server", "dead port")])
def test_a_pull_goes_on_when_the_holder_dies(
    pushed: Registry, large: images.Image, where: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A client that only waits would notice after half a minute, and its pull would fail."""
    holder = pushed.holder()
    others = [server for server in pushed.servers.values() if server is not holder]
    host = pushed.client if where == "worker" else others[0]
    strike = holder.power_cut if fault == "power cut" else partial(holder.cut, silent=True)
    try:
        with slowed(pushed, host):
            seconds, stall = pull(pushed, host, strike)
    finally:
        pushed.lab.restore()
    with capsys.disabled():
        print(f"\n{pushed.frontend}, {where}, the holder's {fault}: {seconds:.1f} s, stall {stall:.2f} s")
    arrived(pushed, host, large)
    assert stall < STALL


def arrived(registry: Registry, host: Host, large: images.Image) -> None:
    """The layer is on *host*, and the registry whole again."""
    there = host.sh("ctr", "content", "ls", "-q").stdout.split()
    assert images.digest_of(large.layers[0]) in there
    wait_until("a whole registry", lambda: not registry.flaws(), seconds=60, every=0.5)
