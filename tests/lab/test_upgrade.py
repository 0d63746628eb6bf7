"""From each release to this one, with its real bundle, while images are pulled and pushed; and back.

Each release is installed by its own program, see ``releases``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import paths
from kubeadm_registry.components.compatibility import way_back
from kubeadm_registry.oci import canary
from kubeadm_registry.phases.upgrade_plan import RECORDS
from tests.lab import images, releases
from tests.lab.clients import Pushing, pushing
from tests.lab.command import LabError
from tests.lab.killing import complete, kill
from tests.lab.pulling import configure, pulling
from tests.lab.reading import Object, Reading, reading
from tests.lab.registry import SERVERS, Registry, renew, repeat
from tests.lab.releases import RELEASES, Release, release

pytest_plugins = ["tests.lab.registry"]
#: Run by `make day-two`.
pytestmark = pytest.mark.long

CANARY = Object(canary.REPOSITORY, canary.MANIFEST.digest, canary.LAYER.digest)
UPSTREAM = "registry.k8s.io/tests"
#: Bytes of the layers of images that containerd pulls in turn.
SIZES = (200_000, 3_000_000, 20_000_000)
#: Seconds between two reads, and for one: new connections wait while the VIP moves.
PERIOD, DEADLINE = 0.1, 20.0
#: Takes away what says with which files the services were started: then all restart, as after any change of all.
FORGET = 'rm -f -- "$1"/*'


def report(text: str) -> None:
    """Show a figure."""
    sys.stdout.write(f"\n  {text}\n")


@pytest.fixture(autouse=True, scope="module")
def _history() -> None:
    if missing := [version for version in RELEASES if not releases.commit(version)]:
        pytest.skip(f"the history of this repository does not contain release {', '.join(missing)}")


def run_release(made: Release, registry: Registry, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the program of the release *made* to its end, in the lab's network."""
    argv = registry.lab.argv(*made.argv, *map(str, arguments))
    return subprocess.run(
        argv, cwd=registry.directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )


def install_release(made: Release, registry: Registry) -> None:
    """Three bare servers, and on them a registry of the release *made*."""
    renew(registry, SERVERS)
    result = run_release(made, registry, "init", "--bundle", made.bundle)
    if result.returncode != 0:
        raise LabError(f"release {made.version} was not installed:\n{result.stdout}{result.stderr}")
    registry.installed = True
    registry.wait_whole()


def restart_all(registry: Registry) -> None:
    """Let every service want a restart."""
    for host in registry.servers.values():
        host.sh("sh", "-c", FORGET, "-", f"{paths.RUN}/started")


def taken(registry: Registry, since: float) -> list[str]:
    """What keepalived said when a server took the VIP since the time *since*."""
    return [line for line in registry.journals(since).splitlines() if "Entering MASTER STATE" in line]


def upgrade(registry: Registry, *options: str) -> list[dict[str, Any]]:
    """Run ``upgrade`` with this version's bundle; what it said."""
    return registry.json("upgrade", "--bundle", registry.bundle, *options, timeout=600)


def watched(registry: Registry, directory: Path) -> tuple[list[dict[str, Any]], Reading, Pushing, list[str]]:
    """Run ``upgrade`` beside a reader and clients that push: what it said, what came of these, who took the VIP."""
    login, begin = registry.login("pull"), time.time()
    with (
        reading(registry, CANARY, login=login, period=PERIOD, deadline=DEADLINE) as read,
        pushing(registry, directory, every=1.5) as pushes,
    ):
        time.sleep(1)
        events = upgrade(registry)
        time.sleep(1)
    return events, read, pushes, taken(registry, begin)


@pytest.mark.parametrize("version", RELEASES)
def test_from_a_release_to_this_one(
    hosts_for_registry: Registry, version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = hosts_for_registry
    made = release(version, registry.frontend)
    install_release(made, registry)
    kept = {f"{UPSTREAM}/{number}": images.image([size], seed=number) for number, size in enumerate(SIZES)}
    for repository, image in kept.items():
        images.push(registry, image, repository, "v1")
    configure(registry)

    plan = registry.json("upgrade", "plan", "--bundle", registry.bundle)[-1]
    assert {there["agent"] for there in plan["current"].values()} == {version}
    assert plan["release"] == version
    assert not plan["refusals"]
    holder = registry.holder().name
    assert [turn["node"] for turn in plan["order"]] == [*(name for name in SERVERS if name != holder), holder]

    restart_all(registry)
    with pulling(registry.client, [f"{name}:v1" for name in kept]) as pulls:
        events, read, pushes, moves = watched(registry, tmp_path / "pushing")
    with capsys.disabled():
        report(f"{registry.frontend}, {version}: {events[-1]['seconds']:.0f} s, {events[-1]['changed']} changes")
        report(f"the VIP moved {len(moves)} times; reads: {read}")
        report(f"{pulls}; {pushes}")
        for one in (*pulls.failed, *pushes.failed):
            report(str(one)[:500])
    nodes = [event["phase"].split("/")[0] for event in events if event["event"] == "change"]
    turns = [name for name in dict.fromkeys(nodes) if name in SERVERS]
    assert turns[-1] == holder
    assert nodes == sorted(nodes, key=lambda name: turns.index(name) if name in SERVERS else -1)
    assert len(moves) <= 1
    assert not pulls.failed
    # A zot that restarts as the single active writer loses the uploads in flight, and clients push again.
    assert not pushes.failed or registry.frontend == "zot"
    assert pushes.lost(registry) == []
    for repository, image in kept.items():
        assert images.missing(registry, image, repository) == []
    registry.wait_whole()
    assert [event for event in upgrade(registry) if event["event"] == "change"] == []
    plan = registry.json("upgrade", "plan", "--bundle", registry.bundle)[-1]
    assert version not in {there["agent"] for there in plan["current"].values()}


def test_between_agents_that_know_planned_moves_no_push_fails(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With zot either: the uploads that have begun end before the writer moves."""
    registry.wait_whole()
    holder = registry.holder().name
    restart_all(registry)
    events, read, pushes, moves = watched(registry, tmp_path / "pushing")
    with capsys.disabled():
        report(f"{registry.frontend}: {events[-1]['seconds']:.0f} s; the VIP moved {len(moves)} times; reads: {read}")
        report(str(pushes))
        for one in (*read.failed, *pushes.failed):
            report(str(one)[:500])
    assert not [event for event in events if "no planned move" in str(event)]
    assert "ask" in {event["phase"] for event in events if event["event"] == "change"}
    assert len(moves) == 1
    assert registry.holder().name != holder
    assert not read.failed
    assert not pushes.failed
    assert pushes.lost(registry) == []
    registry.wait_whole()
    assert [event for event in upgrade(registry) if event["event"] == "change"] == []


def test_an_upgrade_that_is_killed_is_completed_by_the_next(registry: Registry) -> None:
    """At a random change, whose number is printed; KUBEADM_REGISTRY_REPEAT times."""
    for number in range(repeat()):
        restart_all(registry)
        kill(registry, number, "upgrade", "--bundle", str(registry.bundle))
        complete(lambda: registry.cli("upgrade", "--bundle", registry.bundle, check=False, timeout=600))
        registry.wait_whole()
        assert [event for event in upgrade(registry) if event["event"] == "change"] == []
        assert images.missing(registry, canary_image(), canary.REPOSITORY) == []


def canary_image() -> images.Image:
    """What is in the registry in any case."""
    return images.Image(canary.MANIFEST.content, canary.CONFIG.content, (canary.LAYER.content,))


@pytest.mark.parametrize("version", RELEASES[-1:])
def test_back_to_the_release_before(registry: Registry, version: str) -> None:
    """By its own program and bundle, where it can read what this one wrote; else it refuses that by name."""
    made = release(version, registry.frontend)
    result = run_release(made, registry, "init", "--bundle", made.bundle, "-o", "json")
    last = json.loads(result.stdout.splitlines()[-1])
    if way_back(version, RECORDS):
        assert last["code"] == "NewerFormat", result.stdout
    else:
        assert result.returncode == 0, result.stdout + result.stderr
        registry.wait_whole()
        plan = registry.json("upgrade", "plan", "--bundle", registry.bundle)[-1]
        assert {there["agent"] for there in plan["current"].values()} == {version}
    refused = registry.json("upgrade", "--bundle", made.bundle, check=False)
    assert refused[-1]["code"] == "PreflightFailed"
    assert any(event["event"] == "check" and "use the tool in the bundle" in str(event) for event in refused)
    upgrade(registry)
    registry.wait_whole()
