"""Retention on a full disk, with two broken images, while clients push and pull: nothing is lost, and no pull fails.

The disk of each node is filled until pushes close. Retention and a collection then free the space by which they open.
For each registry it takes some 15 minutes: Garage gives the bytes of what is deleted back after ten.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.agent import reserve
from kubeadm_registry.errors import RegistryError
from kubeadm_registry.registry import retry
from tests.lab import images, s3
from tests.lab.clients import USUAL, Pushing, pushing, with_layer
from tests.lab.command import wait_until
from tests.lab.host import Host
from tests.lab.pulling import CERTS, configure, pulling
from tests.lab.reading import Object, reading
from tests.lab.registry import Registry
from tests.lab.test_images import MultiArch, signed
from tests.lab.test_retention import plan
from tests.lab.test_space import DATA, FILLER, bucket, leave, say

pytest_plugins = ["tests.lab.registry"]
#: Run by `make day-two`.
pytestmark = pytest.mark.long

MIB = 2**20
COUNT = 18
"""Repositories, each with an old and a new image; the first two old ones are in use."""
OLD, NEW = "v1.0.0", "v1.1.0"
LARGE, SMALL = 10_000_000, 200_000
"""Bytes of an old image, and of a new one."""
GOES_BROKEN, STAYS_BROKEN = 2, 3
"""The repositories in which the old image has lost its layer, and the new one."""
WAY = 48 * MIB
"""How much more must be free on each disk, when the collection is over, for pushes to open: less than it freed."""
POLICY = """\
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryPolicy
metadata: {{name: full}}
spec:
  grace: 1m
  trash: {{window: 1m}}
  rules:
    - {{name: apps, repositories: ["{area}/**"], keep: {{semver: {{newest: 1, ofEach: major}}}}}}
    - {{name: used, repositories: ["{used}"], keep: {{tags: ["none"]}}}}
    - {{name: busy, repositories: ["tests/pushing-*"], keep: {{tags: ["v1"]}}}}
  sets: []
"""
TINY = images.image((1000,), seed=507)


@dataclass
class World:
    """What is in the registry, by repository and tag; images by which clients go on to push have a layer in common."""

    registry: Registry
    area: str
    index: MultiArch
    base: images.Image
    old: dict[str, images.Image] = field(default_factory=dict)
    new: dict[str, images.Image] = field(default_factory=dict)
    based: images.Image = field(init=False)
    targets: tuple[str, ...] = tuple(f"tests/pushing-{client}-{number}" for client in USUAL for number in range(2))

    def __post_init__(self) -> None:
        for number in range(COUNT):
            seed = time.time_ns() + number
            self.old[self.name(number)] = images.image((LARGE,), seed=seed)
            self.new[self.name(number)] = images.image((SMALL,), seed=seed + COUNT)
        self.based = with_layer(images.image((1000,), seed=time.time_ns()), self.base.layers[0])

    def name(self, number: int) -> str:
        return f"{self.area}/{number}"

    @property
    def kept(self) -> dict[str, images.Image]:
        """What must be there and whole in the end, by repository and tag."""
        new = {f"{name}:{NEW}": image for name, image in self.new.items() if name != self.name(STAYS_BROKEN)}
        used = {f"{self.name(number)}:{OLD}": self.old[self.name(number)] for number in range(2)}
        return {**new, **used}

    @property
    def going(self) -> dict[tuple[str, str], images.Image]:
        """What the policy deletes, by repository and tag."""
        old = {(name, OLD): image for name, image in list(self.old.items())[2:]}
        return {**old, **{(target, "base"): self.based for target in self.targets}}

    @property
    def broken(self) -> tuple[str, str]:
        """The names of the two images without a layer: the one that goes, and the one that stays."""
        return f"{self.name(GOES_BROKEN)}:{OLD}", f"{self.name(STAYS_BROKEN)}:{NEW}"

    def push(self) -> None:
        """Push all of it, and lose a layer of two."""
        everything = [
            *((name, OLD, image) for name, image in self.old.items()),
            *((name, NEW, image) for name, image in self.new.items()),
            *((target, "base", self.based) for target in self.targets),
        ]

        def push(one: tuple[str, str, images.Image]) -> None:
            repository, tag, image = one
            retry(lambda: images.push(self.registry, image, repository, tag), 60)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(push, everything))
        for image in (self.old[self.name(GOES_BROKEN)], self.new[self.name(STAYS_BROKEN)]):
            s3.lose(self.registry, images.digest_of(image.layers[0]))

    def unreadable(self, file: Path) -> set[str]:
        """Those of the new images and of the broken old one that `images check` names."""
        file.write_text("\n".join([*(f"{name}:{NEW}" for name in self.new), self.broken[0]]))
        events = self.registry.json("images", "check", "--images-from", file, check=False)
        return {one["message"].partition(": ")[0] for one in events if one["event"] == "check"}

    def lacking(self) -> list[str]:
        """What is not whole of that which must be, read without a login from each node and by the virtual IP."""
        flaws = []
        for address in ("", *(host.address for host in self.registry.servers.values())):
            for name, image in self.kept.items():
                flaws += images.missing(self.registry, image, name.rpartition(":")[0], address=address, timeout=60)
            for part in (self.index.amd64, self.index.arm64):
                flaws += images.missing(self.registry, part, self.index.repository, address=address, timeout=60)
            with self.registry.lab.network(), images.client(self.registry, address=address) as at:
                named = {name: at.digest(*name.rsplit(":", 1)) for name in (*self.kept, self.index.name)}
                found = [at.digest(self.index.repository, one) for one in (self.index.index, self.index.signature)]
            meant = {**{name: image.digest for name, image in self.kept.items()}, self.index.name: self.index.index}
            flaws += [f"{name} at {address or 'the virtual IP'}" for name in meant if named[name] != meant[name]]
            flaws += ["the index or its signature"] if None in found else []
        return flaws


@pytest.fixture
def world(registry: Registry) -> Iterator[World]:
    area = f"registry.k8s.io/full-{time.time_ns()}"
    made = World(registry, area, signed(registry), images.image((50_000,), seed=time.time_ns()))
    # An earlier run with a longer window would have this one's count from tomorrow on.
    registry.cli("retention", "forget", "--standing", "--yes")
    configure(registry)
    yield made
    for host in registry.servers.values():
        host.sh("rm", "-f", FILLER)
    registry.client.sh("rm", "-r", CERTS)
    for name in made.broken:  # else other tests' `images check` would find them
        registry.cli("images", "delete", "--all-tags", "--yes", name, check=False)


def space(host: Host) -> tuple[int, int]:
    """Free bytes, and all, of the file system that has the registry's data on *host*."""
    free, blocks, size = map(int, host.sh("stat", "-f", "-c", "%a %b %S", DATA).stdout.split())
    return free * size, blocks * size


def closed(registry: Registry) -> list[str]:
    """The nodes that take no push because their disk is full."""
    found = []
    for host in registry.servers.values():
        try:
            images.push(registry, TINY, "tests/full", "v1", address=host.address)
        except RegistryError as error:
            if error.status != 507:
                raise
            found.append(host.name)
    return found


def nearly_open(registry: Registry, way: int) -> dict[str, int]:
    """Leave *way* bytes less than pushes need to open, at no moment more; what is free then on each disk."""
    left = {}
    for name, host in registry.servers.items():
        free, size = space(host)
        more = int(reserve.of(size) * reserve.MORE) - way - free
        assert more > 0, f"{name}: {free} bytes are free already"
        host.sh("truncate", f"--size=-{more}", FILLER)
        left[name] = space(host)[0]
    return left


def moved_to_the_trash(world: World, policy: Path, used: Path) -> None:
    """Plan, approve and run: all that the policy does not keep loses its tags, but for a broken image that cannot."""
    registry, expected = world.registry, set(world.going)

    def deleted() -> dict[str, Any]:
        return plan(registry, policy, "--in-use", used)

    assert not deleted()["deletions"], "all of it is too new"
    found: dict[str, Any] = {}

    def due() -> bool:
        found.update(deleted())
        return {(one["repository"], one["tag"]) for one in found["deletions"]} == expected

    wait_until("what is older than a minute to go", due, seconds=180, every=10)
    registry.cli("retention", "approve", found["digest"])
    said = registry.cli("retention", "run", "--policy", policy, "--in-use", used, timeout=600).stdout
    last = registry.json("retention", "history")[-1]["runs"][-1]
    skipped = [line for line in last["said"] if line.startswith("skipped ")]
    say(f"{said.splitlines()[-1]}; {skipped or 'none'} skipped; {last['ended'] - last['began']} s")
    assert last["deleted"] + len(skipped) == len(expected)
    assert all(line.startswith(f"skipped {world.broken[0]}: ") for line in skipped), skipped


def purged(world: World, policy: Path, used: Path) -> None:
    """Run until the trash has nothing of all that, but for the broken image."""
    registry, broken = world.registry, world.old[world.name(GOES_BROKEN)].digest
    ours = {(repository, image.digest) for (repository, _), image in world.going.items() if image.digest != broken}

    def empty() -> bool:
        registry.cli("retention", "run", "--policy", policy, "--in-use", used, timeout=600)
        waiting = registry.json("retention", "trash")[-1]["images"]
        return not ours & {(one["repository"], one["digest"]) for one in waiting}

    wait_until("the trash to be emptied", empty, seconds=300, every=10)


def each_pushes(pushed: Pushing, since: float, number: int) -> bool:
    """Whether each client has pushed *number* images that it began *since* then."""
    good = [one.client for one in list(pushed.done) if not one.error and one.begin > since]
    return all(good.count(client) >= number for client in USUAL)


def test_space_comes_back_on_a_full_disk_and_nothing_else_goes(world: World, tmp_path: Path) -> None:
    registry = world.registry
    policy, used, names = tmp_path / "policy.yaml", tmp_path / "in-use.txt", tmp_path / "names.txt"
    policy.write_text(POLICY.format(area=world.area, used=world.index.repository))
    by_digest = f"{world.name(1)}@{world.old[world.name(1)].digest}"
    used.write_text(f"{world.name(0)}:{OLD}\n{by_digest}\n{world.index.name}\n")
    earlier = len(registry.json("retention", "history")[-1]["runs"])
    world.push()
    assert world.unreadable(names) == set(world.broken)
    one = world.new[world.name(0)]
    seen = Object(world.name(0), one.digest, images.digest_of(one.layers[0]))
    pulled = [f"{world.name(number)}:{tag}" for number, tag in ((0, OLD), (0, NEW), (1, OLD), (COUNT - 1, NEW))]
    with (
        pushing(registry, tmp_path / "pushing", world.base.layers[0], every=4) as pushed,
        pulling(registry.client, pulled) as pulls,
        reading(registry, seen, period=0.5, deadline=20) as read,
    ):
        wait_until("a push of each client", lambda: each_pushes(pushed, 0, 2), seconds=120, every=1)
        moved_to_the_trash(world, policy, used)

        filled = time.time()
        leave(registry, int(reserve.of(space(registry.servers["h1"])[1])) - 64 * MIB)
        wait_until("pushes to close", lambda: len(closed(registry)) == 3, seconds=60, every=2)
        purged(world, policy, used)
        before = bucket(registry)["bytes"]
        found = registry.json("images", "collect", "--grace", "1m", timeout=600)[-1]
        gone = (COUNT - 3) * LARGE
        assert found["freed"] >= gone, found
        wait_until("a smaller bucket", lambda: before - bucket(registry)["bytes"] >= gone, seconds=60, every=1)
        low = nearly_open(registry, WAY)
        say(f"{found['summary']}; the bucket: {before} bytes before, {bucket(registry)['bytes']} after")
        assert len(closed(registry)) == 3, "the disk follows later"

        def back() -> bool:
            return all(space(host)[0] - low[name] >= gone / 2 for name, host in registry.servers.items())

        begun = time.monotonic()
        wait_until("the disks to have the space back", back, seconds=900, every=10)
        wait_until("pushes to open", lambda: not closed(registry), seconds=120, every=2)
        opened = time.time()
        more = {name: space(host)[0] - low[name] for name, host in registry.servers.items()}
        say(f"free after {time.monotonic() - begun:.0f} s: {more} bytes more")
        wait_until("more pushes of each client", lambda: each_pushes(pushed, opened, 3), seconds=180, every=1)
    say(f"{pushed}; {pulls}; reads: {read}")
    assert not pulls.failed, pulls.failed
    assert not read.failed
    outside = [one for one in pushed.failed if one.begin + one.seconds < filled or one.begin > opened]
    assert not outside, outside
    assert pushed.failed, "while the disks were full"
    assert not pushed.lost(registry)
    assert not world.lacking()
    for (repository, _), image in world.going.items():
        if image is not world.old[world.name(GOES_BROKEN)]:
            with registry.lab.network(), images.client(registry) as at:
                assert at.digest(repository, image.digest) is None, f"{repository} has it"
                assert not at.has_blob(repository, images.digest_of(image.config))
    # The broken one that was to go is gone, or still named; the one that stays is named in any case.
    assert world.unreadable(names) == set(world.broken)
    runs = registry.json("retention", "history")[-1]["runs"][earlier:]
    assert {run["error"] for run in runs} == {""}
    registry.wait_whole()
