"""What holds of any plan, whatever the registry, the workloads and the policy.

KUBEADM_REGISTRY_RETENTION is in how many worlds all of it is tried, 500 if it is not set; CI tries 10,000. More than
20,000 are drawn at random from the numbers 0, 1, 2, ..., without the search for a smaller example.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubeadm_registry.config.durations import seconds
from kubeadm_registry.retention import Inventory, Manifest, Plan, Refused, Repository, Tag, plan, protect
from kubeadm_registry.retention.decision import decide
from kubeadm_registry.retention.policy import Keep
from kubeadm_registry.retention.protected import subject_of_tag
from kubeadm_registry.retention.uses import failed_list
from tests.unit.retention_worlds import DAY, World, random_world, world

pytestmark = pytest.mark.slow

WORLDS = int(os.environ.get("KUBEADM_REGISTRY_RETENTION", "500"))
MOST_SEARCHED = 20_000
#: Tests that share the worlds, so that every processor has some; each has worlds of its own, and others in each run.
PARTS = 10
START = os.urandom(8).hex()
Check = Callable[[World], None]
Image = tuple[str, str]


def closure(inventory: Inventory, named: frozenset[str]) -> set[str]:
    """Everything that must stay with *named*, by the words of the promise, once more and slowly."""
    found = set(named)
    for name, repository in inventory.repositories.items():
        if name.startswith("kubeadm-registry/"):
            found |= {tag.digest for label, tag in repository.tags.items() if label not in repository.trash}
    while True:
        more = set(found)
        for digest, manifest in inventory.manifests.items():
            if digest in more:
                more |= {*manifest.children, manifest.subject} - {""}
            if more & {*manifest.children} or manifest.subject in more:
                more.add(digest)
        for repository in inventory.repositories.values():
            more |= {tag.digest for label, tag in repository.tags.items() if subject_of_tag(label) in more}
        if more == found:
            return found
        found = more


def going(made: Plan) -> set[Image]:
    return {(one.repository, one.digest) for one in made.deletions}


def keys(made: Plan) -> set[tuple[str, str, str]]:
    return {one.key for one in made.deletions}


def present(inventory: Inventory) -> set[Image]:
    return {(name, one) for name, repository in inventory.repositories.items() for one in repository.manifests}


def without(inventory: Inventory, made: Plan) -> Inventory:
    """The registry after *made* was carried out."""
    gone, gone_tags = going(made), {(one.repository, one.tag) for one in made.deletions}
    return replace(
        inventory,
        repositories={
            name: replace(
                repository,
                tags={tag: what for tag, what in repository.tags.items() if (name, tag) not in gone_tags},
                manifests={one: seen for one, seen in repository.manifests.items() if (name, one) not in gone},
            )
            for name, repository in inventory.repositories.items()
        },
    )


def stored(inventory: Inventory) -> int:
    """The bytes in storage, once for all repositories."""
    held = {one for _, one in present(inventory)}
    blobs = {blob for one in held for blob in (*inventory.manifests[one].blobs, inventory.manifests[one].config)}
    return sum(inventory.manifests[one].size for one in held) + sum(inventory.blobs.get(blob, 0) for blob in blobs)


def broken(
    inventory: Inventory, left: set[Image], *, subjects: bool = True, besides: Collection[Image] = ()
) -> Iterator[str]:
    """What is in *left* without a part that the inventory has, without what refers to it, or without its *subjects*.

    What is *besides* them is there as well.
    """
    there = {*left, *besides}
    for name, digest in left:
        manifest: Manifest = inventory.manifests[digest]
        held = inventory.repositories[name].manifests
        for other in {*manifest.children, *([manifest.subject] if subjects else ())} & set(held):
            if (name, other) not in there:
                yield f"{name}@{digest} is left without {other}"
        for one in held:
            if inventory.manifests[one].subject == digest and (name, one) not in there:
                yield f"{name}@{digest} is left without its referrer {one}"
        for label, tag in inventory.repositories[name].live():
            if subject_of_tag(label) == digest and (name, tag.digest) not in there:
                yield f"{name}@{digest} is left without its list of referrers"


def nothing_protected_goes(made: World) -> None:
    protected = closure(made.inventory, made.named)
    assert protected <= set(made.protected.digests) | {""}
    assert not {one.digest for one in made.plan.deletions} & protected
    assert not any(one.repository.startswith("kubeadm-registry/") for one in made.plan.deletions)
    assert not {one.digest for one in made.plan.deletions} & set(made.protected.digests)
    assert not {(one.repository, one.tag) for one in made.plan.deletions} & set(made.protected.tags)


def more_workload_never_makes_it_larger(made: World) -> None:
    uses = made.workloads.uses
    for more in made.more:
        uses = (*uses, more)
        larger = protect(made.inventory, replace(made.workloads, uses=uses), made.policy, made.now)
        found = plan(made.inventory, larger, made.policy, made.now)
        assert isinstance(found, Refused) or keys(found) <= keys(made.plan)


def what_could_not_be_read_gives_no_plan(made: World) -> None:
    failed = failed_list("Pods", "403")
    lists = protect(made.inventory, replace(made.workloads, problems=(failed,)), made.policy, made.now)
    assert plan(made.inventory, lists, made.policy, made.now) == Refused((failed,))
    torn = replace(made.inventory, problems=(replace(failed, code="InventoryIncomplete"),))
    assert isinstance(plan(torn, made.protected, made.policy, made.now), Refused)
    for digest in made.inventory.manifests:
        rest = {one: found for one, found in made.inventory.manifests.items() if one != digest}
        used = any(digest in repository.manifests for repository in made.inventory.repositories.values())
        lost = replace(made.inventory, manifests=rest)
        outcome = plan(lost, protect(lost, made.workloads, made.policy, made.now), made.policy, made.now)
        assert isinstance(outcome, Refused) or not used
        break


def order_does_not_matter(made: World) -> None:
    def backwards(repository: Repository) -> Repository:
        return Repository(
            dict(reversed(repository.tags.items())), dict(reversed(repository.manifests.items())), repository.trash
        )

    turned = Inventory(
        {name: backwards(repository) for name, repository in reversed(made.inventory.repositories.items())},
        dict(reversed(made.inventory.manifests.items())),
        dict(reversed(made.inventory.blobs.items())),
        made.inventory.pulls_since,
    )
    uses = replace(made.workloads, uses=tuple(reversed(made.workloads.uses)))
    again = plan(turned, protect(turned, uses, made.policy, made.now), made.policy, made.now)
    assert isinstance(again, Plan)
    assert again.to_dict() == made.plan.to_dict()


def a_second_plan_finds_nothing(made: World) -> None:
    left = without(made.inventory, made.plan)
    again = plan(left, protect(left, made.workloads, made.policy, made.now), made.policy, made.now)
    assert isinstance(again, Plan)
    assert again.deletions == ()


def what_is_left_is_complete(made: World) -> None:
    left, waits = present(made.inventory) - going(made.plan), in_trash(made)
    assert list(broken(made.inventory, left, subjects=False)) == []
    assert list(broken(made.inventory, left - waits, besides=waits)) == []


def in_trash(made: World) -> set[Image]:
    """What stays since it is in the trash, where its subject may follow it."""
    return {
        (name, digest)
        for name in made.inventory.repositories
        for digest, because in decide(name, made.inventory, made.protected, made.policy.spec, made.now).reasons.items()
        if because.cause == "Trash"
    }


def images_go_with_all_their_tags(made: World) -> None:
    for name, repository in made.inventory.repositories.items():
        for tag, what in repository.live():
            assert ((name, what.digest) in going(made.plan)) == ((name, tag, what.digest) in keys(made.plan))
        trash = {repository.tags[tag].digest for tag in repository.trash}
        assert not {digest for other, digest in going(made.plan) if other == name} & trash


def nothing_young_goes(made: World) -> None:
    since = made.now - seconds(made.policy.spec.grace)
    for one in made.plan.deletions:
        repository = made.inventory.repositories[one.repository]
        assert repository.manifests[one.digest].first_seen <= since
        assert not one.tag or repository.tags[one.tag].first_seen <= since


def without_a_rule_no_tag_goes(made: World) -> None:
    for one in made.plan.deletions:
        if made.policy.spec.rule_of(one.repository) is None:
            assert not one.tag or subject_of_tag(one.tag)


def time_only_adds(made: World) -> None:
    for later in (made.now + DAY, made.now + 30 * DAY):
        found = plan(made.inventory, protect(made.inventory, made.workloads, made.policy, later), made.policy, later)
        assert isinstance(found, Plan)
        assert keys(made.plan) <= keys(found)


def another_part_of_keep_only_keeps(made: World) -> None:
    spec = made.policy.spec
    for part in (Keep(newest=1), Keep(tags=("dev-*",)), Keep(within="15d")):
        rules = tuple(
            rule.model_copy(update={"keep": rule.keep.model_copy(update=part.model_dump(exclude_defaults=True))})
            if not getattr(rule.keep, next(iter(part.model_fields_set)))
            else rule
            for rule in spec.rules
        )
        policy = made.policy.model_copy(update={"spec": spec.model_copy(update={"rules": rules})})
        found = plan(made.inventory, made.protected, policy, made.now)
        assert isinstance(found, Plan)
        assert keys(found) <= keys(made.plan)


def both_is_in_both_and_leaves_nothing_broken(made: World) -> None:
    """The second plan is made when workloads are gone, time has passed, and a tag has moved."""
    later = made.now + 20 * DAY
    moved = made.inventory
    for name, repository in made.inventory.repositories.items():
        if repository.manifests and "dev-1" in repository.tags:
            where = Tag(min(repository.manifests), made.now - 39 * DAY)
            moved = replace(
                moved,
                repositories={
                    **moved.repositories,
                    name: replace(repository, tags={**repository.tags, "dev-1": where}),
                },
            )
    second = plan(moved, protect(moved, replace(made.workloads, uses=()), made.policy, later), made.policy, later)
    assert isinstance(second, Plan)
    found = made.plan.both(second)
    assert keys(found) <= keys(made.plan) & keys(second)
    assert list(broken(moved, present(moved) - going(found), subjects=False)) == []
    same = made.plan.both(made.plan)
    assert same == made.plan


def sizes_add_up(made: World) -> None:
    left = without(made.inventory, made.plan)
    assert made.plan.freed == stored(made.inventory) - stored(left)


def it_is_read_as_it_was_written(made: World) -> None:
    document = made.plan.to_dict()
    again = Plan.parse(json.dumps(document).encode())
    assert again == made.plan
    assert again.to_dict() == document
    assert [one.key for one in again.deletions] == sorted(keys(made.plan))


PROPERTIES: tuple[Check, ...] = (
    nothing_protected_goes,
    more_workload_never_makes_it_larger,
    what_could_not_be_read_gives_no_plan,
    order_does_not_matter,
    a_second_plan_finds_nothing,
    what_is_left_is_complete,
    images_go_with_all_their_tags,
    nothing_young_goes,
    without_a_rule_no_tag_goes,
    time_only_adds,
    another_part_of_keep_only_keeps,
    both_is_in_both_and_leaves_nothing_broken,
    sizes_add_up,
    it_is_read_as_it_was_written,
)


def check(made: World) -> None:
    for holds in PROPERTIES:
        holds(made)


@pytest.mark.skipif(WORLDS > MOST_SEARCHED, reason="so many are drawn at random")
@pytest.mark.parametrize("part", range(PARTS))
def test_every_property_holds_in_any_world(part: int) -> None:
    too_much = [HealthCheck.too_slow, HealthCheck.data_too_large]

    @hypothesis.seed(f"{START} {part}")
    @settings(max_examples=WORLDS // PARTS, suppress_health_check=too_much)
    @given(st.binary(min_size=200, max_size=260))
    def holds(data: bytes) -> None:
        check(world(data))

    holds()


@pytest.mark.skipif(WORLDS <= MOST_SEARCHED, reason="few are searched for")
@pytest.mark.parametrize("part", range(PARTS))
def test_every_property_holds_in_very_many_worlds(part: int) -> None:
    for seed in range(part, WORLDS, PARTS):
        try:
            check(random_world(seed))
        except Exception as error:
            raise AssertionError(f"world {seed}: random_world({seed})") from error


def test_the_worlds_are_worth_trying() -> None:
    """Most of them have something to delete and something that is in use."""
    worlds = [random_world(seed) for seed in range(200)]
    assert sum(bool(one.plan.deletions) for one in worlds) > 60
    assert sum(bool(one.named) for one in worlds) > 60
    causes = {one.cause for made in worlds for one in (*made.plan.deletions, *made.plan.kept)}
    assert causes >= {"NotKept", "PartOfDeleted", "Untagged", "InUse", "Own", "TooNew", "NoRule", "Rule", "Related"}
