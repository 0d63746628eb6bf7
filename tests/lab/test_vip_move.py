"""The virtual IP is moved to each node in turn, as people do before they pull a cable: no pull and no push fails.

Meanwhile a client reads by new connections, three others push, one pushes a large layer, and containerd pulls one on a
client node. In a test of its own it pulls on the old holder and on the new one, whose connections cannot be kept.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import paths
from kubeadm_registry.components import handover
from kubeadm_registry.oci import canary
from kubeadm_registry.registry import retry
from tests.lab import images
from tests.lab.clients import EVERY, pushing
from tests.lab.command import LabError, wait_until
from tests.lab.host import Host
from tests.lab.reading import Object, reading
from tests.lab.registry import Registry

pytest_plugins = ["tests.lab.registry"]
#: Run by `make day-two`.
pytestmark = pytest.mark.long

SIZE = 200_000_000
NAME = "registry.k8s.io/tests/moved:v1"
REPOSITORY = "registry.k8s.io/tests/moved"
CERTS = "/etc/containerd/certs.d"
CANARY = Object(canary.REPOSITORY, canary.MANIFEST.digest, canary.LAYER.digest)
#: So slowly (bit/s) a layer arrives that the move falls into the middle of it.
SHAPE = ("root", "tbf", "rate", "160mbit", "burst", "1mb", "latency", "50ms")


def say(text: str) -> None:
    """Show a figure."""
    sys.stdout.write(f"\n  {text}\n")


@pytest.fixture(scope="module")
def large() -> images.Image:
    return images.image([SIZE], seed=501)


@pytest.fixture
def pushed(registry: Registry, large: images.Image) -> Iterator[Registry]:
    """The large image is in the registry, the client's containerd knows it, and what it receives is limited."""
    if images.missing(registry, large, REPOSITORY, timeout=60):
        images.push(registry, large, REPOSITORY, "v1")
    server, client = registry.servers["h1"], registry.client
    for path in server.sh("find", CERTS, "-type", "f").stdout.split():
        client.sh("mkdir", "-p", str(Path(path).parent))
        client.sh("sh", "-c", 'cat > "$1"', "-", path, stdin=server.sh("cat", path).stdout)
    registry.lab.run("tc", "qdisc", "replace", "dev", client.port, *SHAPE)
    yield registry
    registry.lab.run("tc", "qdisc", "del", "dev", client.port, "root", check=False)
    client.sh("rm", "-r", CERTS)


def pulled(host: Host, image: images.Image) -> tuple[float, float]:
    """Pull the large image on *host*: how long it took, and the longest time in which no byte of it came."""
    host.sh("ctr", "images", "rm", NAME, check=False)
    host.sh("ctr", "content", "prune", "references", check=False)
    ingest = host.var / "lib/containerd/io.containerd.content.v1.content/ingest"
    with ThreadPoolExecutor(1) as pool:
        begin = last = time.monotonic()
        pull = pool.submit(host.sh, "ctr", "images", "pull", "--local", "--hosts-dir", CERTS, NAME, timeout=120)
        stall, size = 0.0, 0
        while not pull.done():
            now, there = time.monotonic(), _size(ingest)
            if there > size:
                stall, last, size = max(stall, now - last) if size else 0.0, now, there
            time.sleep(0.02)  # the rate of sampling
        pull.result()
    assert images.digest_of(image.layers[0]) in host.sh("ctr", "content", "ls", "-q").stdout.split()
    return time.monotonic() - begin, stall


def _size(ingest: Path) -> int:
    """How many bytes of layers that are not complete are in *ingest*."""
    try:
        return sum(data.stat().st_size for data in ingest.glob("*/data"))
    except FileNotFoundError:
        return 0


def _receives(host: Host, least: int) -> None:
    ingest = host.var / "lib/containerd/io.containerd.content.v1.content/ingest"
    wait_until(f"{host.name} to receive a layer", lambda: _size(ingest) > least, seconds=20, every=0.05)


def _push_large(registry: Registry) -> str:
    """Push an image of 20 MB, new; what went wrong, or nothing."""
    image = images.image((20_000_000,), seed=time.time_ns())
    try:
        # As `seed` does: with zot one that paused between two requests, as on a busy machine, begins anew.
        retry(lambda: images.push(registry, image, "tests/moved-large", "v1"), 60)
        return "; ".join(images.missing(registry, image, "tests/moved-large"))
    except Exception as error:
        return repr(error)


def test_the_vip_moves_to_each_node_and_no_client_notices(
    pushed: Registry, large: images.Image, tmp_path: Path
) -> None:
    registry = pushed
    moves: list[dict[str, Any]] = []
    stalls: list[float] = []
    names = list(registry.servers)
    first = names.index(registry.holder().name)
    clients = tmp_path / "clients"
    with (
        reading(registry, CANARY) as seen,
        pushing(registry, clients, every=1, clients=EVERY) as pushes,
        ThreadPoolExecutor(3) as pool,
    ):
        for name in (*names[first + 1 :], *names[: first + 1]):
            holder = registry.holder()
            pull = pool.submit(pulled, registry.client, large)
            upload: Future[str] = pool.submit(_push_large, registry)
            _receives(registry.client, SIZE // 20)
            # Degraded, since what was just pushed is not on all nodes yet.
            moves.append(registry.json("vip", "move", name, "--degraded")[-1])
            assert registry.holder().name == name, moves
            assert not upload.result(), upload.result()
            seconds, stall = pull.result()
            stalls.append(stall)
            say(f"pull while the VIP moves from {holder.name} to {name}: {seconds:.1f} s, stall {stall:.2f} s")
            registry.wait_whole()
    _told(registry, moves, seen, pushes, stalls)
    assert not seen.failed, f"{seen}"
    assert not pushes.failed, [one.error for one in pushes.failed]
    assert not pushes.lost(registry)
    assert seen.gap < 1.5
    assert not _left_behind(registry)


def _told(registry: Registry, moves: list[dict[str, Any]], seen: Any, pushes: Any, stalls: list[float]) -> None:
    gaps = ", ".join(f"{one['gapSeconds']} s" for one in moves)
    closed = ", ".join(f"{one['writesClosedSeconds']} s" for one in moves)
    say(f"{registry.frontend}: gaps {gaps}; writes closed {closed}; longest stall of a pull {max(stalls):.2f} s")
    say(f"{registry.frontend}: {seen}")
    say(f"{registry.frontend}: pushes: {pushes}")


def _left_behind(registry: Registry) -> list[str]:
    """What a move has left on a node."""
    script = (
        f"nft list tables | grep -E '{handover.STAY}|{handover.PASS}'; ip rule | grep ^{paths.HANDOVER_TABLE}; "
        f"ls {paths.MOVE} 2>/dev/null; systemctl is-active --quiet {handover.UNIT}.timer && echo timer; :"
    )
    found = {host.name: host.sh("sh", "-c", script).stdout for host in registry.servers.values()}
    return [f"{name}: {text}" for name, text in found.items() if text]


def test_what_the_two_nodes_pull_themselves_goes_on(pushed: Registry, large: images.Image) -> None:
    registry = pushed
    holder = registry.holder()
    target = registry.others(holder)[0]
    both = (holder, target)
    for host in both:
        host.sh("tc", "qdisc", "replace", "dev", "lo", *SHAPE)
    registry.lab.run("tc", "qdisc", "replace", "dev", target.port, *SHAPE)
    try:
        with ThreadPoolExecutor(2) as pool:
            pulls = [pool.submit(pulled, host, large) for host in both]
            for host in both:
                _receives(host, SIZE // 100)
            moved = registry.json("vip", "move", target.name)[-1]
            for host, pull in zip(both, pulls, strict=True):
                seconds, stall = pull.result()
                say(f"pull on {host.name}, VIP {holder.name} to {target.name}: {seconds:.1f} s, stall {stall:.2f} s")
    finally:
        for host in both:
            host.sh("tc", "qdisc", "del", "dev", "lo", "root", check=False)
        registry.lab.run("tc", "qdisc", "del", "dev", target.port, "root", check=False)
    assert moved["connectionsLeft"] == 0


def test_a_request_of_a_run_that_died_ends_by_itself(registry: Registry) -> None:
    """The file names a node that is not fit, then one that is, and nobody takes it away."""
    holder = registry.holder()
    [target, other] = registry.others(holder)
    ask = ("sh", "-c", handover._ASK, "ask", paths.MOVE, target.name, "4", "{}", "false")
    other.sh("systemctl", "stop", paths.unit("haproxy@1"), paths.unit("haproxy@2"))
    try:
        for host in (holder, other):
            host.sh(*ask)
        wait_until("the VIP to move", lambda: registry.holders() == [target.name], seconds=5, every=0.05)
    finally:
        other.sh("systemctl", "start", paths.unit("haproxy@1"), paths.unit("haproxy@2"))
    registry.wait_whole(20)
    assert registry.holder() is target
    wait_until(
        "the request to end", lambda: not any(registry.state(host)["vip"].get("moves_to") for host in (holder, other)),
        seconds=8,
    )  # fmt: skip


def test_what_cannot_be_moved_stays(registry: Registry) -> None:
    holder = registry.holder()
    target = registry.others(holder)[0]
    assert registry.json("vip", "move", holder.name)[-1]["changed"] == 0
    before = {host.name: host.sh("nft", "list", "tables").stdout for host in registry.servers.values()}
    dry = registry.json("vip", "move", target.name, "--dry-run")[-1]
    assert (dry["from"], dry["to"], dry["changed"] > 0) == (holder.name, target.name, True)
    assert before == {host.name: host.sh("nft", "list", "tables").stdout for host in registry.servers.values()}
    target.sh("systemctl", "stop", registry.unit("frontend"))
    try:
        wait_until("it to be unfit", lambda: bool(registry.state(target).get("level")), seconds=10)
        refused = registry.cli("vip", "move", target.name, "-o", "json", check=False)
        assert refused.returncode == 1
        assert "NodeUnfit" in refused.stdout
    finally:
        target.sh("systemctl", "start", registry.unit("frontend"))
    if registry.holder() is not holder:
        raise LabError("the VIP moved")
