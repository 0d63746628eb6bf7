"""Space of deleted images is freed on a running registry: nothing that was pushed is lost, and no pull fails."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.errors import RegistryError
from kubeadm_registry.oci import canary
from kubeadm_registry.registry import push_blob, retry
from tests.lab import images
from tests.lab.clients import EVERY, pushing, with_layer
from tests.lab.command import wait_past, wait_until
from tests.lab.host import Host
from tests.lab.reading import Object, reading
from tests.lab.registry import Registry
from tests.lab.web import ask

pytest_plugins = ["tests.lab.registry"]
pytestmark = pytest.mark.long  # minutes, most of them until what was pushed is older than the grace

COUNT, SIZE = 24, 300_000
GRACE = 61.0
CANARY = Object(canary.REPOSITORY, canary.MANIFEST.digest, canary.LAYER.digest)


def say(text: str) -> None:
    """Show a figure."""
    sys.stdout.write(f"\n  {text}\n")


def bucket(registry: Registry) -> dict[str, Any]:
    """What Garage says of the frontend's bucket."""
    host = next(iter(registry.servers.values()))
    found: dict[str, Any] = registry.ask_garage(host, "GetBucketInfo", {"globalAlias": f"registry-{registry.frontend}"})
    return found


def push_many(registry: Registry, area: str) -> list[images.Image]:
    """Push COUNT images, each into a repository of its own."""
    made = [images.image((SIZE,), seed=time.time_ns() + number) for number in range(COUNT)]

    def push(one: tuple[int, images.Image]) -> None:
        number, image = one
        retry(lambda: images.push(registry, image, f"{area}/{number}", "v1"), 60)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(push, enumerate(made)))
    return made


def older_than_the_grace(since: float) -> None:
    wait_past("what was pushed to be older than the grace", since + GRACE)


def test_space_is_freed_while_others_push_and_pull(registry: Registry, tmp_path: Path) -> None:
    if registry.frontend != "distribution":
        pytest.skip("zot frees what is deleted at once")
    area = f"tests/space-{time.time_ns()}"
    made = push_many(registry, area)
    gone, stays = made[: COUNT // 2], made[COUNT // 2 :]
    # An image whose manifest is still to come: its blobs are new, or were there already when it asked.
    waiting = with_layer(images.image((50_000,), seed=time.time_ns()), gone[0].layers[0])
    registry.cli(
        "images", "delete", "--all-tags", "--yes", *(f"{area}/{number}@{one.digest}" for number, one in enumerate(gone))
    )
    older_than_the_grace(time.time())
    before = bucket(registry)["bytes"]
    dry = registry.json("images", "collect", "--grace", "1m", "--dry-run")[-1]
    assert dry["blobs"] >= 2 * len(gone)
    assert bucket(registry)["bytes"] == before
    with registry.lab.network(), images.client(registry, role="push") as at:
        for blob in waiting.blobs[:-1]:
            push_blob(at, f"{area}/0", images.digest_of(blob), blob)
        push_blob(at, f"{area}/0", images.digest_of(waiting.layers[-1]), waiting.layers[-1])
    with pushing(registry, tmp_path / "pushing", clients=EVERY) as pushed, reading(registry, CANARY) as read:
        wait_until("some pushes", lambda: len(pushed.done) > 5, seconds=60)
        found = registry.json("images", "collect", "--grace", "1m")[-1]
        count = len(pushed.done)
        wait_until("more pushes", lambda: len(pushed.done) > count + 5, seconds=60)
    say(f"{found['summary']}; {found['kept']} kept; {pushed}; reads: {read}")
    assert found["freed"] >= (len(gone) - 1) * SIZE
    assert not read.failed
    assert not pushed.failed, pushed.failed
    assert not pushed.lost(registry)
    for number, image in enumerate(stays, len(gone)):
        assert not images.missing(registry, image, f"{area}/{number}")
    with registry.lab.network(), images.client(registry, role="push") as at:
        at.push_manifest(f"{area}/0", "later", waiting.manifest, images.MANIFEST)
    assert not images.missing(registry, waiting, f"{area}/0"), "it was asked for, and stayed"
    for one in gone[1:]:
        with registry.lab.network(), images.client(registry) as at:
            assert not at.has_blob(f"{area}/1", images.digest_of(one.layers[0]))
    # What is gone can be pushed again: no frontend believes that it is there.
    for host in registry.servers.values():
        images.push(registry, gone[1], f"{area}/1", "again", address=host.address)
        assert not images.missing(registry, gone[1], f"{area}/1", address=host.address)


def test_blobs_go_one_by_one_while_others_push_and_pull(registry: Registry, tmp_path: Path) -> None:
    if registry.frontend != "zot":
        pytest.skip("Distribution frees nothing of that kind")
    area = f"tests/space-{time.time_ns()}"
    made = push_many(registry, area)
    gone, stays = made[: COUNT // 2], made[COUNT // 2 :]
    # Images of which clients have the first layer as well, in the very repositories to which they push.
    base = images.image((SIZE,), seed=time.time_ns()).layers[0]
    based = with_layer(images.image((1000,), seed=time.time_ns()), base)
    targets = [f"tests/pushing-{client}-{number}" for client in EVERY for number in range(7)]
    for target in targets:
        retry(lambda target=target: images.push(registry, based, target, "base"), 60)  # type: ignore[misc]
    older_than_the_grace(time.time())
    before = bucket(registry)["bytes"]
    with pushing(registry, tmp_path / "pushing", base, clients=EVERY) as pushed, reading(registry, CANARY) as read:
        wait_until("some pushes", lambda: len(pushed.done) > 5, seconds=60)
        begun = time.monotonic()
        names = [f"{area}/{number}@{one.digest}" for number, one in enumerate(gone)]
        names += [f"{target}@{based.digest}" for target in targets]
        found = registry.json("images", "delete", "--all-tags", "--yes", "--grace", "1m", *names)
        took = time.monotonic() - begun
        count = len(pushed.done)
        wait_until("more pushes", lambda: len(pushed.done) > count + 5, seconds=60)
    notes = [one["message"] for one in found if one["event"] == "note" and "relied" in one["message"]]
    say(f"{found[-1]['summary']} in {took:.1f} s; {notes}; {pushed}; reads: {read}")
    assert found[-1]["freed"] >= len(gone) * SIZE
    assert not read.failed
    assert not pushed.failed, pushed.failed
    assert not pushed.lost(registry)
    for number, image in enumerate(stays, len(gone)):
        assert not images.missing(registry, image, f"{area}/{number}")
    say(f"bucket: {before} bytes before, {bucket(registry)['bytes']} after, with what was pushed meanwhile")

    # A push that did not complete: no manifest names its blobs.
    broken = images.image((SIZE,), seed=time.time_ns())
    with registry.lab.network(), images.client(registry, role="push") as at:
        for blob in broken.blobs:
            push_blob(at, f"{area}/0", images.digest_of(blob), blob)
    early = registry.json("images", "collect", "--grace", "1h")[-1]
    older_than_the_grace(time.time())
    late = registry.json("images", "collect", "--grace", "1m")[-1]
    say(f"after an hour: {early['summary']}; after a minute: {late['summary']}")
    assert late["freed"] >= SIZE
    with registry.lab.network(), images.client(registry) as at:
        assert not at.has_blob(f"{area}/0", images.digest_of(broken.layers[0]))
    assert not pushed.lost(registry)


DATA = "/var/lib/kubeadm-registry"
FILLER = f"{DATA}/filler"


def leave(registry: Registry, free: int) -> None:
    """Fill the data disk of each server but for *free* bytes."""
    for host in registry.servers.values():
        host.sh("rm", "-f", FILLER)
        blocks, size = host.sh("stat", "-f", "-c", "%a %S", DATA).stdout.split()
        host.sh("fallocate", "-l", str(int(blocks) * int(size) - free), FILLER)


def refused(registry: Registry) -> str:
    """Why a push is refused; empty if it is taken."""
    try:
        images.push(registry, images.image((1000,), seed=time.time_ns()), "tests/full", "v1")
    except RegistryError as error:
        return f"{error.status} {error.message}"
    return ""


@pytest.mark.parametrize("free", [2**25, 3 * 2**29])
def test_deletions_go_on_while_the_disk_is_nearly_full(registry: Registry, free: int) -> None:
    area = f"tests/full-{time.time_ns()}"
    made = images.image((2_000_000,), seed=time.time_ns())
    images.push(registry, made, area, "v1")
    older_than_the_grace(time.time())
    try:
        leave(registry, free)
        wait_until("pushes to close", lambda: refused(registry).startswith("507"), seconds=40, every=1)
        assert not images.missing(registry, made, area)
        name = f"{area}@{made.digest}"
        found = registry.json("images", "delete", "--all-tags", "--yes", "--grace", "1m", name)[-1]
        if registry.frontend == "distribution":
            found = registry.json("images", "collect", "--grace", "1m")[-1]
        say(f"{free / 2**20:.0f} MiB free: {found['summary']}")
        assert found["freed"] >= 2_000_000
    finally:
        for host in registry.servers.values():
            host.sh("rm", "-f", FILLER)
    wait_until("pushes to open", lambda: not refused(registry), seconds=40, every=1)


def test_a_run_that_is_killed_leaves_pushes_open_and_is_made_up_by_the_next(registry: Registry) -> None:
    if registry.frontend != "distribution":
        pytest.skip("zot closes pushes for two seconds at a time")
    area = f"tests/space-{time.time_ns()}"
    made = push_many(registry, area)
    names = [f"{area}/{number}@{one.digest}" for number, one in enumerate(made)]
    registry.cli("images", "delete", "--all-tags", "--yes", *names)
    older_than_the_grace(time.time())
    frontends = {host.name: invocation(registry, host) for host in registry.servers.values()}
    with registry.popen("images", "collect", "--grace", "1m") as run:
        wait_until("the collection to run", lambda: _collects(registry), seconds=120, every=0.1)
        run.kill()
    killed = time.monotonic()
    wait_until("pushes to open", lambda: _pushes(registry), seconds=400, every=2)
    say(f"pushes open {time.monotonic() - killed:.0f} s after the run was killed")
    for host in registry.servers.values():
        assert invocation(registry, host) != frontends[host.name], "it remembers what has gone"
    images.push(registry, made[0], f"{area}/0", "again")
    assert not images.missing(registry, made[0], f"{area}/0")
    again = registry.json("images", "collect", "--grace", "1m")[-1]
    say(f"again: {again['summary']}")
    with registry.lab.network(), images.client(registry) as at:
        for number, one in enumerate(made[1:], 1):
            assert not at.has_blob(f"{area}/{number}", images.digest_of(one.layers[0]))


def invocation(registry: Registry, host: Host) -> str:
    """The id of the run of the frontend of *host*."""
    return host.sh("systemctl", "show", "-P", "InvocationID", registry.unit("frontend")).stdout.strip()


def _collects(registry: Registry) -> bool:
    first = next(iter(registry.servers.values()))
    closed = first.sh("grep", "-c", "^closed [1-9]", "/etc/kubeadm-registry/haproxy/pushes.map", check=False).stdout
    runs = first.sh("systemctl", "is-active", "kubeadm-registry-collection.service", check=False).stdout
    return closed.strip() == "1" and runs.strip() in ("active", "activating")


def _pushes(registry: Registry) -> bool:
    """Whether what belongs to a push is answered at each server at once."""
    for host in registry.servers.values():
        try:
            answer = ask(registry, "HEAD", f"/v2/{canary.REPOSITORY}/blobs/{canary.LAYER.digest}", address=host.address)
        except TimeoutError:  # it is held
            return False
        if answer.status != 200:
            return False
    return True
