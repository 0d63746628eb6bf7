"""How much may go without an approval: the executor reckons it as the plan does, from what it knows itself."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from kubeadm_registry.executor.checks import check
from kubeadm_registry.retention import Plan, Workloads, plan, protect
from kubeadm_registry.retention.holdings import Held, Holdings
from kubeadm_registry.retention.ledger import Ledger
from kubeadm_registry.retention.order import Order, order
from kubeadm_registry.retention.standing import Standing
from kubeadm_registry.retention.trash import Trash, Trashed, trash_tag
from tests.unit.retention_registry import DAY, NOW, SETS, Registry, rules

#: Of each repository: tagged images that stay and that go, untagged ones, indexes of two images that go, signatures,
#: more tags of an image that stays.
DRAWN = st.dictionaries(
    st.sampled_from(["app", "web"]),
    st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12), st.integers(0, 4), st.integers(0, 4),
              st.integers(0, 40)),
)  # fmt: skip


def filled(drawn: Mapping[str, tuple[int, int, int, int, int, int]]) -> Registry:
    registry = Registry()
    for name, (stay, go, loose, indexes, signatures, more) in drawn.items():
        for number in range(stay):
            registry.image(name, f"keep-{number}", *(f"keep-too-{one}" for one in range(more if number == 0 else 0)))
        for number in range(go):
            image = registry.image(name, f"v{number}", f"also-{number}")
            if number < signatures:
                registry.image(name, f"{image.replace(':', '-')}.sig", subject=image)
        for number in range(loose):
            registry.image(name, name=f"{name} loose {number}")
        for number in range(indexes):
            children = [registry.image(name, name=f"{name} part {number} {part}") for part in ("a", "b")]
            registry.index(name, f"index-{number}", children=children)
    return registry


def ordered(registry: Registry, share: int, trash: Trash) -> tuple[Plan, Order, Ledger]:
    """The plan for *registry*, all of which is known for long, the order, and the ledger."""
    holdings = Holdings(
        {
            name: Held({tag: one.digest for tag, one in tags.items()}, frozenset(registry.seen[name]))
            for name, tags in registry.tags.items()
        },
        registry.manifests, registry.blobs,
    )  # fmt: skip
    ledger = Ledger().after(holdings, NOW - 90 * DAY, trash.tags()).after(holdings, NOW, trash.tags())
    policy = rules(
        "[{name: one, repositories: ['**'], keep: {tags: ['keep-*']}}]", untagged="{after: 1d}", sets="[]",
        maximumShare=str(share), approval="Automatic",
    )  # fmt: skip
    inventory = ledger.inventory(holdings)
    protected = protect(inventory, Workloads((), SETS), policy, NOW)
    made = plan(inventory, protected, policy, NOW)
    assert isinstance(made, Plan), made
    return made, order(made, trash, inventory, protected, policy.spec, now=NOW, approved=False), ledger


def held(registry: Registry, share: int, trash: Trash = Trash()) -> tuple[list[str], list[str]]:  # noqa: B008
    """Why the plan needs an approval, and why the executor refuses the order without one."""
    made, asked, ledger = ordered(registry, share, trash)
    checked = check(asked, ledger, trash, {}, Standing(), now=NOW)
    assert not checked.refused
    return [one.message for one in made.needs_approval], [one.message for one in checked.held]


def as_executor(messages: list[str]) -> list[str]:
    return [f"the order {message}, and it is not approved" for message in messages]


@given(DRAWN, st.integers(1, 100))
def test_the_executor_asks_for_an_approval_where_the_plan_does(
    drawn: Mapping[str, tuple[int, int, int, int, int, int]], share: int
) -> None:
    by_plan, by_executor = held(filled(drawn), share)
    assert by_executor == as_executor(by_plan)


def test_a_few_untagged_images_of_many_need_no_approval() -> None:
    assert held(filled({"app": (40, 0, 8, 0, 0, 0)}), 20) == ([], [])
    by_plan, by_executor = held(filled({"app": (30, 0, 8, 0, 0, 0)}), 20)
    assert by_plan[0] == "deletes 8 of 38 tags or untagged manifests of app, which is more than 20 %"
    assert by_executor == as_executor(by_plan)


def test_many_tags_of_one_image_do_not_hide_how_many_images_go() -> None:
    by_plan, by_executor = held(filled({"app": (1, 10, 0, 0, 0, 200)}), 20)
    assert by_plan[0] == "deletes 10 of 11 images of app, which is more than 20 %"
    assert by_executor == as_executor(by_plan)


def test_what_a_run_had_begun_to_delete_counts_once() -> None:
    """Its trash tag is there, and it has lost some of its tags."""
    registry = filled({"app": (40, 8, 0, 0, 0, 0)})
    begun = []
    for number in range(8):
        digest = registry.tags["app"].pop(f"v{number}").digest
        registry.also("app", trash_tag(digest), of=digest)
        begun.append(Trashed("app", digest, {f"v{number}": 5, f"also-{number}": 5}, (), NOW - 60, "", "", "", 10))
    trash = Trash().with_all(begun)
    _, asked, _ = ordered(registry, 1, trash)
    assert len(asked.delete) == 8
    assert held(registry, 1, trash) == ([], [])
