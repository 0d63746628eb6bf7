"""The executor of retention with the registries that there are, each alone on loopback with a folder.

What its requests may do, and when, is the proxy's business (test_retention.py has that, on real hosts).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from kubeadm_registry.errors import Error
from kubeadm_registry.executor.run import Executor
from kubeadm_registry.images import referrers
from kubeadm_registry.images.tombstone import TOMBSTONE, TOMBSTONE_DIGEST
from kubeadm_registry.oci import canary
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.oci.references import TRASH
from kubeadm_registry.registry import Api, push_blob
from kubeadm_registry.registry.answers import Answer
from kubeadm_registry.retention import Plan, RegistryPolicy, Use, policy
from kubeadm_registry.retention.history import Run
from kubeadm_registry.retention.order import Order, undo
from kubeadm_registry.retention.trash import trash_tag
from kubeadm_registry.upkeep import planning, store
from tests.lab.test_registries import Served, served

__all__ = ["served"]

KEY = "a secret of the nodes"
DAY = 86400
BEGIN = 1_800_000_000
POLICY = """
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryPolicy
spec:
  rules: [{name: all, repositories: ["REPOSITORY"], keep: {newest: 1}}]
  untagged: {after: 1d}
  sets: []
  approval: Automatic
  maximumShare: 100
"""


class Broken(Exception):
    """The test ended the run here."""


@dataclass
class World:
    """A repository of its own at a registry, and the time there."""

    served: Served
    repository: str
    now: int = BEGIN
    uses: tuple[Use, ...] = ()
    said: list[str] = field(default_factory=list)

    @property
    def policy(self) -> RegistryPolicy:
        return policy.parse(POLICY.replace("REPOSITORY", self.repository), "policy.yaml")

    def image(self, name: str, *tags: str, subject: str = "", size: int = 1000) -> str:
        """Push an image called *name*; its digest."""
        layer = hashlib.shake_256(f"{self.repository} {name}".encode()).digest(size)
        config = f'{{"architecture":"amd64","os":"linux","name":"{name}"}}'.encode()
        with self.served.client() as at:
            for content in (layer, config):
                push_blob(at, self.repository, oci.digest_of(content), content)
            parts = [oci.Descriptor(media_type=kind, digest=oci.digest_of(one), size=len(one)) for kind, one in (
                ("application/vnd.oci.image.config.v1+json", config), ("application/vnd.oci.image.layer.v1.tar", layer)
            )]  # fmt: skip
            about = oci.Descriptor(media_type=oci.MANIFEST, digest=subject, size=1) if subject else None
            content = oci.Manifest(config=parts[0], layers=(parts[1],), subject=about).to_json()
            return self._push(content, oci.MANIFEST, tags)

    def index(self, *tags: str, children: list[str]) -> str:
        """Push an index of *children*; its digest."""
        listed = tuple(oci.Descriptor(media_type=oci.MANIFEST, digest=one, size=self._size(one)) for one in children)
        return self._push(oci.Index(manifests=listed).to_json(), oci.INDEX, tags)

    def _size(self, digest: str) -> int:
        with self.served.client() as at:
            return len(at.manifest(self.repository, digest) or b"")

    def _push(self, content: bytes, kind: str, tags: tuple[str, ...]) -> str:
        digest = oci.digest_of(content)
        described = oci.Descriptor(media_type=kind, digest=digest, size=len(content))
        with self.served.client() as at:
            for reference in tags or (digest,):
                referrers.push(at, self.repository, reference, described, content)
        return digest

    def tag(self, name: str, digest: str) -> None:
        with self.served.client() as at:
            found = at.manifest_of_type(self.repository, digest)
            assert found is not None
            at.push_manifest(self.repository, name, *found)

    def tags(self) -> dict[str, str]:
        """What the tags mean, but for those that mean nothing."""
        with self.served.client() as at:
            found = {tag: at.digest(self.repository, tag) for tag in at.tags(self.repository)}
        return {tag: digest for tag, digest in found.items() if digest}

    def live(self) -> dict[str, str]:
        return {tag: digest for tag, digest in self.tags().items() if not tag.startswith((TRASH, "sha256-"))}

    def there(self, digest: str) -> bool:
        with self.served.client() as at:
            return at.digest(self.repository, digest) is not None

    def look(self) -> planning.Look:
        return planning.look(self.served.client, KEY, self.policy, self.now, sets={}, uses=self.uses)

    def order(self) -> Order:
        found = self.look()
        made = found.plan(self.policy)
        assert isinstance(made, Plan), made
        return found.order(made, self.policy, approved=False)

    def run(
        self, order: Order | None = None, *, breaks: int | None = None, holds: Callable[[], None] = lambda: None
    ) -> Run:
        """Carry out *order*, or the present one; the run breaks after so many requests."""
        wanted = self.order() if order is None else order
        with self.served.client() as at:
            executor = Executor(
                _breaking(at, breaks), KEY, "h1", holds, tell=self.said.append, clock=lambda: float(self.now)
            )  # fmt: skip
            return executor.carry_out(wanted)

    def trash(self) -> Mapping[str, list[str]]:
        with self.served.client() as at:
            return {
                one.digest: sorted(one.tags) for one in store.read_trash(at, KEY) if one.repository == self.repository
            }


def _breaking(at: Api, after: int | None) -> Api:
    """*at*, which answers so many requests and no more."""
    if after is not None:
        left, send = [after], at.send

        def sends(*words: Any, **more: Any) -> Answer:
            if not left[0]:
                raise Broken
            left[0] -= 1
            return send(*words, **more)

        at.send = sends  # type: ignore[method-assign]
    return at


@pytest.fixture
def world(served: Served, request: pytest.FixtureRequest) -> Iterator[World]:
    """A repository that no other test uses; nothing is in the trash."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    with served.client() as at:
        for blob in (canary.LAYER, canary.CONFIG):
            push_blob(at, canary.REPOSITORY, blob.digest, blob.content)
        at.push_manifest(canary.REPOSITORY, canary.TAG, canary.MANIFEST.content, canary.MANIFEST_TYPE)
        for record in (store.LEDGER, store.TRASH, store.STANDING, store.SPENT, store.HISTORY):
            if digest := at.digest(store.REPOSITORY, record.tag):
                at.delete_manifest(store.REPOSITORY, digest)
    yield World(served, f"team/{name}")


def aged(world: World) -> World:
    """The images so far are seen, and then it is three days later."""
    world.look()
    world.now += 3 * DAY
    return world


def two(world: World) -> tuple[str, str]:
    """An old image, tagged v1 and also, and a newer one, v2; the digests."""
    old = world.image("old", "v1", "also")
    aged(world)
    new = world.image("new", "v2")
    aged(world)
    return old, new


def test_an_image_goes_to_the_trash_and_comes_back(world: World) -> None:
    old, new = two(world)
    run = world.run()
    assert (run.deleted, run.skipped, run.error) == (1, 0, ""), world.said
    assert world.live() == {"v2": new}
    assert world.tags()[trash_tag(old)] == old
    assert world.there(old), "a digest can be pulled until the window is over"
    assert world.trash() == {old: ["also", "v1"]}
    assert not world.order(), "there is nothing left to do"
    with world.served.client() as at:
        back = undo(store.read_trash(at, KEY), world.now, "undone")
    assert world.run(back).restored == 1
    assert world.tags() == {"v1": old, "also": old, "v2": new}
    assert world.trash() == {}


def test_after_its_window_an_image_and_its_parts_are_gone(world: World) -> None:
    child = world.image("child")
    index = world.index("v1", children=[child])
    signature = world.image("signature", subject=index)
    aged(world)
    shared = world.image("shared")
    kept = world.index("v2", children=[shared])
    aged(world)
    assert world.run().deleted == 1
    assert all(map(world.there, (child, index, signature)))
    world.now += 6 * DAY
    assert not world.order()
    world.now += DAY
    run = world.run()
    assert run.purged == 1, world.said
    assert not any(map(world.there, (child, index, signature)))
    assert world.there(kept)
    assert world.there(shared)
    assert world.live() == {"v2": kept}
    assert world.trash() == {}
    assert not world.order()


def test_what_is_used_again_comes_back_by_itself(world: World) -> None:
    old, new = two(world)
    world.run()
    world.now += 8 * DAY
    world.uses = (Use(f"{world.repository}:v1", users=("Pod default/web",)),)
    run = world.run()
    assert (run.restored, run.purged) == (1, 0), world.said
    assert world.live() == {"v1": old, "also": old, "v2": new}
    assert any("Pod default/web" in line for line in world.said)


def test_a_tag_that_was_moved_meanwhile_stays(world: World) -> None:
    old, new = two(world)
    order = world.order()
    other = world.image("other", "v1")
    assert world.run(order).deleted == 1
    assert world.live() == {"v1": other, "v2": new}
    assert world.trash() == {old: ["also", "v1"]}
    with world.served.client() as at:
        back = undo(store.read_trash(at, KEY), world.now, "undone")
    world.run(back)
    assert world.live() == {"v1": other, "also": old, "v2": new}, "a newer tag is never overwritten"


def test_an_image_that_got_a_new_tag_meanwhile_stays(world: World) -> None:
    old, new = two(world)
    order = world.order()
    world.tag("mine", old)
    run = world.run(order)
    assert (run.deleted, run.skipped) == (0, 1)
    assert world.live() == {"v1": old, "also": old, "mine": old, "v2": new}
    assert world.trash() == {}


def past_the_window(world: World, tag: str) -> None:
    """All images so far give way to a newer one of *tag*, and the window of the trash has passed."""
    aged(world)
    world.image("new", tag)
    aged(world)
    world.run()
    world.now += 8 * DAY


def test_a_part_that_a_new_index_needs_is_not_purged(world: World) -> None:
    child = world.image("child")
    index = world.index("v1", children=[child])
    past_the_window(world, "v2")
    order = world.order()
    assert [one.digest for one in order.purge] == [index]
    other = world.index("v3", children=[child, world.image("another child")])
    assert world.run(order).purged == 1
    assert not world.there(index)
    assert world.there(child)
    assert world.there(other)


def test_a_part_that_a_purged_index_shares_with_one_that_came_back_stays(world: World) -> None:
    shared = world.image("shared")
    first, second = (world.index(f"v{number}", children=[shared, world.image(f"own {number}")]) for number in (1, 2))
    past_the_window(world, "v3")
    order = world.order()
    assert {one.digest for one in order.purge} == {first, second}
    world.tag("back", second)
    assert world.run(order).purged == 1
    assert [world.there(one) for one in (first, second, shared)] == [False, True, True]


@pytest.mark.parametrize("late", [601, 3600])
def test_an_order_that_is_too_old_is_refused(world: World, late: int) -> None:
    old, _ = two(world)
    order = world.order()
    world.now += late
    with pytest.raises(Error) as caught:
        world.run(order)
    assert caught.value.code == "OrderRefused"
    assert world.live()["v1"] == old
    with world.served.client() as at:
        assert (
            "too" in store.read_history(at, KEY).runs[-1].error or "old" in store.read_history(at, KEY).runs[-1].error
        )


def test_nothing_more_is_done_once_the_lease_is_lost(world: World) -> None:
    old, _ = two(world)

    def lost() -> None:
        raise Error("another node holds the lease", code="TermOver")

    with pytest.raises(Error) as caught:
        world.run(holds=lost)
    assert caught.value.code == "TermOver"
    assert world.live()["v1"] == old


def test_a_run_that_breaks_anywhere_is_completed_by_the_next(world: World) -> None:
    """Into the trash and away for good, broken off after each number of requests; the end is always the same."""
    child = world.image("child")
    old = world.index("v1", "also", children=[child])
    aged(world)
    new = world.image("new", "v2")
    aged(world)
    for after in range(1, 200):
        try:
            world.run(breaks=after)
        except Broken:
            world.now += 60
            continue
        break
    assert world.live() == {"v2": new}
    assert world.trash() == {old: ["also", "v1"]}
    world.now += 8 * DAY
    for after in range(1, 200):
        try:
            world.run(breaks=after)
        except Broken:
            world.now += 60
            continue
        break
    assert not world.there(old)
    assert not world.there(child)
    assert world.live() == {"v2": new}
    assert world.trash() == {}
    assert not world.order()


def test_a_tag_of_a_tombstone_counts_as_none_and_is_swept(world: World) -> None:
    old, new = two(world)
    with world.served.client() as at:
        push_blob(at, world.repository, oci.digest_of(b"{}"), b"{}")
        at.push_manifest(world.repository, "left", TOMBSTONE, oci.MANIFEST)
    order = world.order()
    assert order.sweep == {world.repository: ("left",)}
    world.run(order)
    assert "left" not in world.tags()
    assert TOMBSTONE_DIGEST not in world.tags().values()
    del old, new


def test_old_records_of_retention_are_deleted(world: World) -> None:
    two(world)
    for _ in range(3):
        world.look()
        world.now += 60
    known = set(world.look().after.repositories[store.REPOSITORY].manifests)
    world.run()
    with world.served.client() as at:
        left = {digest for digest in known if at.digest(store.REPOSITORY, digest)}
        tagged = {at.digest(store.REPOSITORY, tag) for tag in at.tags(store.REPOSITORY)}
    assert len(known) > 3 or world.served.kind == "zot", "which drops a manifest with its last tag"
    assert left <= tagged
    assert not world.order()
