"""Two of three servers are lost for good: the third makes a whole registry with two others, and says what is gone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from kubeadm_registry.access.lacking import NAMES_LOST
from kubeadm_registry.bundle.make import FromLayout, create
from tests.lab import images
from tests.lab.carried import carried
from tests.lab.changing import KNOWN, PATIENCE, Changing, changing, holds_vip, removed
from tests.lab.command import wait_until
from tests.lab.host import Host
from tests.lab.killing import killed
from tests.lab.reading import reading
from tests.lab.settings import FRONTENDS

#: Run by `make day-two`.
pytestmark = pytest.mark.long
BROUGHT = "registry.k8s.io/tests/recover"
PUSHED = "registry.example/team/recover"
LISTLESS = "registry.example/team/listless"
BLOCKS = "/var/lib/kubeadm-registry/garage/data"
SIZES = (2_500_000, 600_000)


@dataclass
class Loss:
    """Images by tag, each in what the bundle has (*brought*) and in what only people have pushed (*pushed*).

    ``whole`` is on three servers. Of ``broken`` the one that is left has the names, and no block. Of ``late`` it has
    nothing: its storage was stopped. Of the repository of ``listless`` it has no block either, and so no list of tags.
    ``given_up`` is as ``broken``, and nobody pushes it again.
    """

    brought: dict[str, images.Image] = field(default_factory=dict)
    pushed: dict[str, images.Image] = field(default_factory=dict)
    listless: images.Image = field(default_factory=lambda: images.image(SIZES, seed=time.time_ns()))
    given_up: images.Image = field(default_factory=lambda: images.image(SIZES, seed=time.time_ns()))

    @property
    def wanted(self) -> list[str]:
        """What people have pushed, without the registry's name."""
        return [*(f"{PUSHED}:{tag}" for tag in (*self.pushed, "given-up")), f"{LISTLESS}:broken"]


@pytest.fixture(scope="module", params=FRONTENDS)
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changing]:
    with changing("recover", request.param, tmp_path_factory.mktemp("recover")) as registry:
        registry.login()
        assert registry.ca.exists()
        yield registry


def blocks(host: Host) -> set[str]:
    return set(host.sh("find", BLOCKS, "-type", "f").stdout.split())


def lists_of_tags(host: Host, files: Sequence[str], those: Sequence[images.Image]) -> set[str]:
    """Those of the *files* that name the manifest of one of *those*: index.json of zot's repositories."""
    words = [word for one in those for word in ("-e", one.digest)]
    return set(host.sh("grep", "-lF", *words, "--", *files, check=False).stdout.split())


def bundle_of(directory: Path, brought: dict[str, images.Image]) -> Path:
    layouts = [
        FromLayout(image.write_layout(directory / tag), f"{BROUGHT}:{tag}") for tag, image in sorted(brought.items())
    ]
    return create(directory / "images.tar", {}, images=layouts).path


def lose_parts(registry: Changing, left: Host) -> Loss:
    """Push images: *left* gets all of some, loses the blocks of others, and then its storage stops and gets no more."""
    loss, seed = Loss(), time.time_ns()
    for number, tag in enumerate(("whole", "broken", "late")):
        loss.brought[tag] = images.image(SIZES, seed=seed + number)
        loss.pushed[tag] = images.image(SIZES, seed=seed + 10 + number)
    others = [host for host in registry.servers.values() if host is not left]

    def store(tag: str) -> None:
        images.push(registry, loss.brought[tag], BROUGHT, tag)
        images.push(registry, loss.pushed[tag], PUSHED, tag)

    def same() -> bool:
        return all(blocks(left) == blocks(one) for one in others)

    def copied() -> set[str]:
        # A push ends with two copies. The third may be on its way still, and nobody calls that a copy to be made.
        registry.wait_copied()
        wait_until("each storage to have the same blocks", same, seconds=60)
        return blocks(left)

    store("whole")
    before = copied()
    store("broken")
    images.push(registry, loss.given_up, PUSHED, "given-up")
    images.push(registry, loss.listless, LISTLESS, "broken")
    new = sorted(copied() - before)
    # Not before it has stopped: it gets again what is read of it, as a list of tags is.
    # And a zot that restarts wants it started.
    left.keep_down(registry.unit("garage"))
    left.sh("systemctl", "stop", registry.unit("garage"))
    gone = set(new) - lists_of_tags(left, new, [loss.brought["broken"], loss.pushed["broken"]])
    assert gone
    left.sh("rm", "--", *sorted(gone))
    wait_until("another holder of the VIP", lambda: registry.holders() not in ([], [left.name]), seconds=30)
    store("late")
    return loss


def from_it(registry: Changing, left: Host, given: Path, wanted: Path) -> subprocess.CompletedProcess[str]:
    """Recover from the server that is *left*, which has SSH and the bundles, and nothing of the machine of before."""
    with carried(registry, left, registry.bundle) as tool:
        arguments = ["--bundle", "bundle.tar", "--bundle", tool.put(given), "--images-from", tool.put(wanted)]
        return tool.run("recover", *arguments, "--yes", "-o", "json", check=False)


def test_two_servers_are_lost_and_the_third_goes_on_with_two_others(registry: Changing, tmp_path: Path) -> None:
    left, *lost = registry.servers.values()
    loss = lose_parts(registry, left)
    given = bundle_of(tmp_path, loss.brought)
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("".join(f"{registry.vip}:5000/{name}\n" for name in loss.wanted))
    arguments: list[str | Path] = ["recover", "--bundle", registry.bundle, "--bundle", given, "--images-from", wanted]
    registry.become("h1", "h5", "h6")
    refused = registry.json(*arguments, "--yes", check=False)[-1]
    assert (refused["code"], "answers SSH" in refused["message"]) == ("NodeAlive", True), refused

    for host in lost:
        host.power_cut()
    left.let_up(registry.unit("garage"))
    assert registry.json(*arguments, check=False)[-1]["code"] == "ConfirmationNeeded"
    killed(registry, [*arguments, "--yes"], r"h1 .*apply the storage layout")
    begin = time.monotonic()
    done = from_it(registry, left, given, wanted)
    sys.stdout.write(f"\n{done.stdout}\n{done.stderr}\n  {registry.frontend}: {time.monotonic() - begin:.1f} s\n")
    assert done.returncode == 5, done.stdout + done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    missing = {one["name"]: one["reason"] for one in last["missing"]}
    assert (missing.pop(LISTLESS, "") == NAMES_LOST) is (registry.frontend == "zot"), missing
    assert set(missing) == {name for name in loss.wanted if not name.endswith(":whole")}
    # The bundle with the programs has an image of the operator, which nobody has loaded before.
    assert [name for name in last["loaded"] if name.startswith(BROUGHT)] == [f"{BROUGHT}:broken", f"{BROUGHT}:late"]
    check_all(registry, loss)

    holds = partial(holds_vip, registry)
    with reading(registry, KNOWN, period=0.1, deadline=PATIENCE) as reads:
        for host in lost:
            host.start()
        for host in lost:
            host.wait_ready()
        wait_until("their agents to learn that they have left", lambda: all(map(removed, lost)), seconds=60)
        wait_until("neither to hold the VIP", lambda: not any(map(holds, lost)), seconds=10)
        check_all(registry, loss)
    sys.stdout.write(f"  while the lost ones came back: reads: {reads}\n")
    assert len(reads.failed) <= 1, reads
    images.push(registry, loss.pushed["late"], PUSHED, "late")
    registry.cli("images", "delete", f"{PUSHED}:given-up")
    images.push(registry, loss.pushed["broken"], PUSHED, "broken")
    images.push(registry, loss.listless, LISTLESS, "broken")
    assert not images.missing(registry, loss.listless, LISTLESS)
    for tag, image in loss.pushed.items():
        assert not images.missing(registry, image, PUSHED), tag
    assert registry.json("images", "check")[-1]["images"] == 7
    assert "nothing to do" in registry.cli("init", "--bundle", registry.bundle).stdout


def check_all(registry: Changing, loss: Loss) -> None:
    """What is to be there is, with every byte, at the VIP and at each member."""
    registry.wait_whole()
    for address in ("", *(host.address for host in registry.servers.values())):
        for tag, image in loss.brought.items():
            assert not images.missing(registry, image, BROUGHT, address=address), (tag, address)
        assert not images.missing(registry, loss.pushed["whole"], PUSHED, address=address), address
    for host in registry.servers.values():
        found = registry.listed(host)
        assert (found.generation, set(found.nodes), found.before) == (3, {"h1", "h5", "h6"}, ())
        assert set(found.former) == {"h2", "h3"}
