"""Orders: what goes to the trash, what comes back from it, what goes for good."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from kubeadm_registry.access import questions
from kubeadm_registry.oci.references import TRASH
from kubeadm_registry.retention import RegistryPolicy, Use, Workloads, plan, protect
from kubeadm_registry.retention.order import MOST, Order, order, undo
from kubeadm_registry.retention.record import Plan
from kubeadm_registry.retention.trash import Trash, Trashed, trash_tag
from tests.unit.retention_registry import DAY, NOW, SETS, Registry, digest, keep

POLICY = keep("{newest: 1}", sets="[]")


def made(registry: Registry, trash: Trash, *uses: Use, by: RegistryPolicy = POLICY, now: int = NOW) -> Order:
    """The order for *registry* when *trash* is in it."""
    for one in trash:
        registry.trash.setdefault(one.repository, set()).add(one.tag)
    inventory = registry.inventory()
    protected = protect(inventory, Workloads(uses, SETS), by, now)
    found = plan(inventory, protected, by, now)
    assert isinstance(found, Plan), found
    return order(found, trash, inventory, protected, by.spec, now=now, approved=True)


def in_trash(
    registry: Registry, repository: str, name: str, *tags: str, days: float, parts: tuple[str, ...] = ()
) -> Trashed:
    """The image *name* of *repository*, which was deleted *days* ago and had *tags*."""
    found = digest(name)
    registry.tags[repository] = {tag: one for tag, one in registry.tags[repository].items() if one.digest != found}
    registry.also(repository, trash_tag(found), of=found)
    return Trashed(
        repository,
        found,
        dict.fromkeys(tags, 5),
        parts,
        NOW - int(days * DAY),
        "sha256:0",
        "one",
        "not kept",
        10,
        complete=True,
    )


def waiting(*images: Trashed) -> Trash:
    return Trash().with_all(images)


def old_and_new() -> Registry:
    registry = Registry()
    registry.image("team/app", "v1", days=30)
    registry.image("team/app", "v2", days=20)
    return registry


def test_an_image_goes_to_the_trash_with_all_its_tags_and_parts() -> None:
    registry = Registry()
    child = registry.image("team/app", name="child", days=30)
    registry.index("team/app", "v1", children=[child], days=30)
    registry.also("team/app", "also", of=registry.tags["team/app"]["v1"].digest)
    signature = registry.image("team/app", name="signature", subject=registry.tags["team/app"]["v1"].digest)
    below = registry.image("team/app", name="of the signature", subject=signature)
    registry.image("team/app", "v2", days=20)
    [one] = made(registry, Trash()).delete
    assert (one.repository, set(one.tags), one.deleted) == ("team/app", {"also", "v1"}, NOW)
    assert set(one.tags.values()) == {NOW - 30 * DAY}
    assert set(one.parts) == {child, signature, below}
    assert one.parts.index(signature) < one.parts.index(below), "wholes come before their parts"


def test_an_order_has_no_more_images_than_a_helper_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubeadm_registry.retention.order.MOST", 2)
    registry = Registry()
    for number in range(6):
        registry.image("team/app", f"v{number}", days=30 - number)
    over = [
        in_trash(registry, "team/app", f"old{number}", days=8)
        for number in range(3)
        if registry.image("team/app", f"old{number}", name=f"old{number}", days=40)
    ]
    found = made(registry, waiting(*over))
    assert (len(found.delete), len(found.purge), found.left) == (2, 2, 4)
    assert Order.parse(found.to_json()) == found


def test_a_question_with_the_largest_order_is_not_too_long() -> None:
    one = Trashed(
        "r" * 255, digest("one"), dict.fromkeys(("t" * 128, "latest"), 1_800_000_000), (digest("a"), digest("b")), NOW,
        digest("plan"), "r" * 63, "w" * 80, 2**40, complete=True,
    )  # fmt: skip
    largest = Order(NOW, delete=(one,) * MOST, purge=(one,) * MOST)
    assert len(questions.question("start", order=largest.to_json().decode())) < questions.MOST


def test_what_a_broken_run_has_deleted_and_something_names_does_not_come_back_at_each_run() -> None:
    registry = Registry()
    child = registry.image("team/app", name="child", days=30)
    gone = Trashed(
        "team/app", digest("index"), {"v1": 5}, (child,), NOW - 20 * DAY, "sha256:0", "one", "not kept", 10,
        complete=True,
    )  # fmt: skip
    assert not made(registry, waiting(gone), Use(f"team/app@{gone.digest}"))
    assert made(registry, waiting(gone)).purge == (gone,)


def test_what_waits_stays_until_its_window_is_over() -> None:
    registry = old_and_new()
    one = in_trash(registry, "team/app", "team/app:v1", "v1", days=6.9)
    assert not made(registry, waiting(one))
    assert made(registry, waiting(one), now=NOW + DAY).purge == (one,)


def test_what_is_used_again_comes_back() -> None:
    registry = old_and_new()
    trash = waiting(in_trash(registry, "team/app", "team/app:v1", "v1", days=30))
    for use in (
        Use("team/app:v1", users=("Pod default/a",)),
        Use(f"10.0.0.10:5000/team/app@{digest('team/app:v1')}", users=("Pod default/a",)),
        Use("team/app:v1", digest("team/app:v1"), users=("Pod default/a",)),
    ):
        found = made(registry, trash, use)
        assert [list(one.image.tags) for one in found.restore] == [["v1"]], use
        assert "Pod default/a" in found.restore[0].why
        assert not found.purge


def test_a_tag_that_means_a_newer_image_is_no_use_of_the_older() -> None:
    registry = old_and_new()
    trash = waiting(in_trash(registry, "team/app", "team/app:v1", "v1", days=30))
    registry.image("team/app", "v1", name="newer v1", days=10)
    found = made(registry, trash, Use("team/app:v1", users=("Pod default/a",)))
    assert not found.restore
    assert [one.digest for one in found.purge] == [digest("team/app:v1")]


def test_what_somebody_has_tagged_again_comes_back() -> None:
    registry = old_and_new()
    one = in_trash(registry, "team/app", "team/app:v1", "v1", days=30)
    registry.also("team/app", "mine", of=one.digest, days=0)
    found = made(registry, waiting(one))
    assert [(list(back.image.tags), back.why) for back in found.restore] == [(["v1"], "tagged mine again")]


def test_a_part_that_an_image_needs_is_not_purged() -> None:
    registry = old_and_new()
    child = registry.image("team/app", name="child", days=30)
    index = registry.index("team/app", "multi", children=[child], days=30)
    one = in_trash(registry, "team/app", f"team/app:multi {[child]}", "multi", days=30, parts=(child,))
    assert one.digest == index
    assert made(registry, waiting(one)).purge == (one,)
    registry.index("team/app", "other", children=[child], days=0)
    assert made(registry, waiting(one)).purge == (replace(one, parts=()),)


def test_an_image_that_became_part_of_another_comes_back() -> None:
    registry = old_and_new()
    one = in_trash(registry, "team/app", "team/app:v1", "v1", days=30)
    registry.index("team/app", "multi", children=[one.digest], days=0)
    found = made(registry, waiting(one))
    assert not found.purge
    assert [back.why for back in found.restore] == ["part of an image that stays"]


def test_an_entry_without_its_image_is_forgotten() -> None:
    registry = old_and_new()
    gone = Trashed("team/app", digest("nothing"), {"v0": 1}, (), NOW, "", "", "", 1)
    elsewhere = replace(gone, repository="team/none")
    assert made(registry, waiting(gone, elsewhere)).forget == (gone, elsewhere)


def test_an_image_that_is_deleted_again_keeps_the_tags_that_it_had_first() -> None:
    first = Trashed("team/app", digest("a"), {"v1": 1, "v2": 1}, (), 1, "", "", "", 1)
    [one] = Trash().with_all([first]).with_all([replace(first, tags={"v2": 9}, deleted=2)])
    assert (one.tags, one.deleted) == ({"v1": 1, "v2": 1}, 2)
    assert one.tag.startswith(TRASH)


def test_records_are_read_as_they_were_written() -> None:
    registry = old_and_new()
    found = made(registry, Trash())
    assert found.delete
    assert Order.parse(found.to_json()) == found
    back = undo(found.delete, NOW, "asked for")
    assert Order.parse(back.to_json()) == back
    trash = Trash().with_all(found.delete)
    assert Trash.parse(trash.to_json()).images == trash.images


def test_an_image_of_a_forgotten_trash_keeps_its_tag_there() -> None:
    """`retention forget --trash` leaves the tag; an image without any could not be restored."""
    registry = old_and_new()
    one = in_trash(registry, "team/app", "team/app:v1", "v1", days=30)
    registry.also("team/app", "old", of=one.digest)
    (deleted,) = made(registry, Trash()).delete
    assert (deleted.digest, set(deleted.tags)) == (one.digest, {"old"})


def test_a_deletion_that_was_broken_off_goes_on() -> None:
    registry = old_and_new()
    one = replace(in_trash(registry, "team/app", "team/app:v1", "v1", "also", days=1), complete=False)
    registry.also("team/app", "also", of=one.digest)  # a tag that the broken run had not come to
    found = made(registry, waiting(one))
    assert (found.delete, found.restore) == ((one,), ())
    back = made(registry, waiting(one), Use("team/app:v1", users=("Pod default/a",)))
    assert (back.delete, [other.image for other in back.restore]) == ((), [one])
    registry.also("team/app", "mine", of=one.digest)
    assert [other.why for other in made(registry, waiting(one)).restore] == ["tagged mine again"]


def test_what_a_broken_run_had_only_noted_goes_by_a_plan_only() -> None:
    """Its approval is used up, and the policy may be another one by now."""
    registry = old_and_new()
    noted = Trashed(
        "team/app", digest("team/app:v1"), {"v1": NOW - 30 * DAY}, (), NOW - DAY, "", "one", "not kept", 10
    )  # fmt: skip
    found = made(registry, waiting(noted), by=keep("{all: true}", sets="[]"))
    assert (found.delete, [one.image for one in found.restore]) == ((), [noted])
    assert [one.key for one in made(registry, waiting(noted)).delete] == [noted.key]


def test_a_purge_that_was_broken_off_goes_on_with_the_parts() -> None:
    registry = old_and_new()
    child = registry.image("team/app", name="child", days=30)
    gone = Trashed("team/app", digest("index"), {"v0": 1}, (child,), NOW - 8 * DAY, "", "", "", 1, complete=True)
    assert made(registry, waiting(gone)).purge == (gone,)


def test_an_order_for_a_large_repository_with_much_in_the_trash_is_made_in_a_moment() -> None:
    registry = Registry()
    for number in range(10_000):
        registry.image("app", f"v{number}", layers=("one",))
    registry.trash["app"] = set()
    found = {}
    for number in range(2000):
        meaning = registry.tags["app"].pop(f"v{number}")
        one = Trashed("app", meaning.digest, {f"v{number}": 5}, (), NOW - DAY, "", "one", "", 10, complete=True)
        registry.also("app", one.tag, of=one.digest)
        registry.trash["app"].add(one.tag)
        found[one.key] = one
    inventory = registry.inventory()
    protected = protect(inventory, Workloads((), SETS), POLICY, NOW)
    empty = Plan("", NOW, (), ())
    begin = time.process_time()
    made = order(empty, Trash(found), inventory, protected, POLICY.spec, now=NOW, approved=True)
    assert time.process_time() - begin < 2, "it took 8 s"
    assert not made
