"""What holds of any order: what went to the trash is whole until its window is over and comes back exactly, and nothing
that is in use goes for good. The registry is a value here; the executor's tests do the same with real ones.

KUBEADM_REGISTRY_RETENTION is in how many worlds it is tried, as in test_retention_properties.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubeadm_registry.config.durations import seconds
from kubeadm_registry.retention import Inventory, Plan, Repository, Tag, Workloads, plan, protect
from kubeadm_registry.retention.order import Order, order
from kubeadm_registry.retention.trash import Trash, Trashed
from tests.unit.retention_worlds import World, random_world, world
from tests.unit.test_retention_properties import MOST_SEARCHED, PARTS, WORLDS, broken, closure, present

pytestmark = pytest.mark.slow


def ordered(
    made: World, inventory: Inventory, trash: Trash, *, workloads: Workloads | None = None, now: int = 0
) -> Order:
    """The order for *inventory* with *trash* in it; by default nothing else has changed."""
    workloads, now = workloads or made.workloads, now or made.now
    protected = protect(inventory, workloads, made.policy, now)
    found = plan(inventory, protected, made.policy, now)
    assert isinstance(found, Plan)
    return order(found, trash, inventory, protected, made.policy.spec, now=now, approved=True)


def with_tags(inventory: Inventory, name: str, tags: dict[str, Tag], trash: frozenset[str]) -> Inventory:
    repository = replace(inventory.repositories[name], tags=tags, trash=trash)
    return replace(inventory, repositories={**inventory.repositories, name: repository})


def trashed(inventory: Inventory, images: Iterable[Trashed], *, keeping: int = 0) -> Inventory:
    """The registry after *images* went to the trash; a run that breaks leaves the last *keeping* tags of each."""
    for one in images:
        held = inventory.repositories[one.repository]
        gone = sorted(one.tags)[: len(one.tags) - keeping]
        tags = {tag: what for tag, what in held.tags.items() if tag not in gone}
        tags[one.tag] = Tag(one.digest, one.deleted)
        inventory = with_tags(inventory, one.repository, tags, held.trash | {one.tag})
    return inventory


def restored(inventory: Inventory, images: Iterable[Trashed]) -> Inventory:
    """The registry after *images* came back."""
    for one in images:
        held = inventory.repositories[one.repository]
        tags = {tag: what for tag, what in held.tags.items() if tag != one.tag}
        tags |= {tag: Tag(one.digest, seen) for tag, seen in one.tags.items() if tag not in tags}
        inventory = with_tags(inventory, one.repository, tags, held.trash - {one.tag})
    return inventory


def purged(inventory: Inventory, images: Iterable[Trashed]) -> Inventory:
    """The registry after *images* went for good."""
    for one in images:
        held = inventory.repositories[one.repository]
        gone = {one.digest, *one.parts}
        left = Repository(
            {tag: what for tag, what in held.tags.items() if what.digest not in gone},
            {digest: seen for digest, seen in held.manifests.items() if digest not in gone},
            held.trash - {one.tag},
        )
        inventory = replace(inventory, repositories={**inventory.repositories, one.repository: left})
    return inventory


def record(images: Iterable[Trashed], *, complete: bool = True) -> Trash:
    return Trash().with_all(replace(one, complete=complete) for one in images)


def check(made: World) -> None:
    first = ordered(made, made.inventory, Trash())
    assert {(one.repository, one.digest) for one in first.delete} <= present(made.inventory)
    after, trash = trashed(made.inventory, first.delete), record(first.delete)

    # Whole until the window is over, and nothing is left to do.
    assert present(after) == present(made.inventory)
    assert not ordered(made, after, trash)

    # It comes back exactly.
    assert restored(after, first.delete).repositories.keys() == made.inventory.repositories.keys()
    for name, held in restored(after, first.delete).repositories.items():
        assert held.tags == made.inventory.repositories[name].tags

    # A run that was broken off is completed by the next one.
    half = trashed(made.inventory, first.delete, keeping=1)
    again = ordered(made, half, record(first.delete, complete=False))
    assert {one.key for one in again.delete} == {one.key for one in first.delete}
    assert not again.restore
    assert not again.purge

    # What is used again comes back, and is never purged; the rest goes, and what stays is complete.
    later = made.now + seconds(made.policy.spec.trash.window)
    uses = replace(made.workloads, uses=(*made.workloads.uses, *made.more))
    protected = protect(after, uses, made.policy, later)
    if protected.problems:
        return
    last = ordered(made, after, trash, workloads=uses, now=later)
    gone = {(one.repository, digest) for one in last.purge for digest in (one.digest, *one.parts)}
    assert not {digest for _, digest in gone} & set(protected.digests)
    assert not {digest for _, digest in gone} & closure(after, made.named)
    keys = {one.key for one in (*last.purge, *(back.image for back in last.restore))}
    assert keys == {one.key for one in first.delete}
    end = purged(restored(after, [back.image for back in last.restore]), last.purge)
    assert present(end) == present(after) - gone
    before = set(broken(after, present(after), subjects=False))
    assert set(broken(after, present(end), subjects=False)) <= before


@pytest.mark.skipif(WORLDS > MOST_SEARCHED, reason="so many are drawn at random")
@settings(max_examples=WORLDS, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.binary(min_size=200, max_size=260))
def test_the_trash_holds_its_promises_in_any_world(data: bytes) -> None:
    check(world(data))


@pytest.mark.skipif(WORLDS <= MOST_SEARCHED, reason="few are searched for")
@pytest.mark.parametrize("part", range(PARTS))
def test_the_trash_holds_its_promises_in_very_many_worlds(part: int) -> None:
    for seed in range(part, WORLDS, PARTS):
        try:
            check(random_world(seed))
        except Exception as error:
            raise AssertionError(f"world {seed}: random_world({seed})") from error
