"""Plans of small registries: what goes, what stays, why, and when there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kubeadm_registry.oci import canary
from kubeadm_registry.retention import Deletion, Inventory, Manifest, Plan, Reason, Refused, Repository, Seen, Tag, Use
from kubeadm_registry.retention import plan as make
from kubeadm_registry.retention.trash import trash_tag
from tests.unit.retention_registry import DAY, MB, NOW, Registry, digest, gone, keep, rules


def builds(*days: float, repository: str = "team/app") -> Registry:
    """A registry with one image for each of *days*, tagged b1, b2, ... in that order."""
    registry = Registry()
    for number, age in enumerate(days, 1):
        registry.image(repository, f"b{number}", days=age)
    return registry


def tags(made: Plan) -> list[str]:
    return [one.tag for one in made.deletions]


def causes(made: Plan) -> dict[str, str]:
    """Why images stay, by their first tag."""
    return {(one.tags or (one.digest,))[0]: one.cause for one in made.kept}


def test_without_rules_everything_stays() -> None:
    registry = builds(400, 300)
    registry.image("team/app", name="untagged", days=400)
    made = registry.plan(rules("[]"))
    assert made.deletions == ()
    assert sorted(causes(made).values()) == ["NoRule", "NoRule", "Untagged"]


def test_newest_counts_images_and_keeps_those_of_the_same_time() -> None:
    registry = builds(9, 8, 7, 7, 6)
    registry.also("team/app", "alias", of=digest("team/app:b5"), days=6)
    assert tags(registry.plan(keep("{newest: 1}"))) == ["b1", "b2", "b3", "b4"]
    assert tags(registry.plan(keep("{newest: 2}"))) == ["b1", "b2"]
    assert tags(registry.plan(keep("{newest: 9}"))) == []


def test_what_waits_in_the_trash_without_its_record_takes_the_place_of_no_newer_image() -> None:
    """As after `retention forget --trash`: its tag there is newer than the images that stayed."""
    registry = builds(9, 8, 7, 6)
    for number in (1, 2):
        deleted = registry.tags["team/app"].pop(f"b{number}").digest
        registry.also("team/app", trash_tag(deleted), of=deleted, days=2)
    assert tags(registry.plan(keep("{newest: 2}"))) == []
    assert tags(registry.plan(keep("{newest: 1}"))) == ["b3"]


def test_newest_counts_each_repository_by_itself() -> None:
    registry = builds(9, 8)
    registry.image("team/web", "old", days=100)
    assert tags(registry.plan(keep("{newest: 1}"))) == ["b1"]


def test_what_is_protected_counts_as_well() -> None:
    registry = builds(9, 8, 7)
    assert tags(registry.plan(keep("{newest: 1}"), Use("team/app:b3"))) == ["b1", "b2"]


@pytest.mark.parametrize(("within", "left"), [("7d", ["b1", "b2"]), ("8d", ["b1"]), ("192h", ["b1"]), ("9d", [])])
def test_within(within: str, left: list[str]) -> None:
    assert tags(builds(9, 8, 6).plan(keep(f"{{within: {within}}}"))) == left


def test_pulled_within() -> None:
    registry = Registry()
    registry.image("team/app", "pulled", days=90, pulled=3)
    registry.image("team/app", "pulled-long-ago", days=90, pulled=60)
    registry.image("team/app", "never", days=90)
    registry.image("team/app", "new", days=20)
    policy = keep("{pulledWithin: 30d}")
    made = registry.plan(policy, pulls_since=NOW - 30 * DAY)
    assert tags(made) == ["never", "pulled-long-ago"]
    assert causes(made) == {"pulled": "Rule", "new": "Rule"}


def test_an_index_was_pulled_when_what_it_is_made_of_was() -> None:
    """A client that has the digest of its own architecture asks for nothing else."""
    registry = Registry()
    arm, old = registry.image("team/app", name="arm", days=90, pulled=3), registry.image("team/app", name="o", days=90)
    registry.index("team/app", "inner", children=[registry.index("team/app", children=[arm], days=90)], days=90)
    registry.index("team/app", "old", children=[old, digest("absent")], days=90)
    loose = registry.index("team/app", children=[arm, old], days=90)
    made = registry.plan(keep("{pulledWithin: 30d}", untagged="{after: 30d}"), pulls_since=NOW - 60 * DAY)
    assert tags(made) == ["old"]
    assert loose not in {one.digest for one in made.deletions}


@pytest.mark.parametrize(
    ("since", "why"),
    [(None, "pulled within 30d: pulls are not known of all nodes"),
     (NOW - 29 * DAY, "pulled within 30d: pulls are recorded for a shorter time")],
)  # fmt: skip
def test_what_was_pulled_before_pulls_were_recorded_is_not_known(since: int | None, why: str) -> None:
    made = builds(90, 80).plan(keep("{pulledWithin: 30d}"), pulls_since=since)
    assert made.deletions == ()
    assert {one.why for one in made.kept} == {why}


def test_tags_and_versions() -> None:
    registry = Registry()
    for tag in ("v1.0.0", "v1.0.1", "v1.1.0", "main-1", "main-2", "release-1"):
        registry.image("team/app", tag)
    assert tags(registry.plan(keep("{tags: ['release-*', 'v*']}"))) == ["main-1", "main-2"]
    assert tags(registry.plan(keep("{semver: {newest: 1}}"))) == ["main-1", "main-2", "release-1", "v1.0.0"]
    assert tags(registry.plan(keep("{semver: {newest: 1, ofEach: major}, tags: ['main-[!1]']}"))) == [
        "main-1", "release-1", "v1.0.0", "v1.0.1",
    ]  # fmt: skip


def test_one_version_among_its_tags_keeps_an_image() -> None:
    registry = Registry()
    image = registry.image("team/app", "v1.0.0")
    registry.also("team/app", "prod", of=image)
    registry.image("team/app", "v0.9.0")
    assert tags(registry.plan(keep("{semver: {newest: 1, ofEach: major}}"))) == []
    assert tags(registry.plan(keep("{semver: {newest: 1}, tags: [v0.9.0]}"))) == []


def test_an_image_is_kept_by_any_part_and_any_of_its_tags() -> None:
    registry = builds(9, 8, 7)
    registry.also("team/app", "stable", of=digest("team/app:b1"), days=9)
    made = registry.plan(keep("{newest: 1, tags: [stable]}"))
    assert tags(made) == ["b2"]
    [b1] = [one for one in made.kept if "stable" in one.tags]
    assert (b1.tags, b1.rule, b1.why) == (("b1", "stable"), "one", "tag stable")


def test_the_first_rule_decides_and_all_its_repositories_are_its() -> None:
    registry = builds(9, 8)
    registry.image("team/web", "w1", days=9)
    policy = rules("[{name: a, repositories: [team/web], keep: {all: true}}, "
                   "{name: b, repositories: ['team/*'], keep: {within: 1d}}]")  # fmt: skip
    made = registry.plan(policy)
    assert tags(made) == ["b1", "b2"]
    assert [(one.rule, one.cause) for one in made.deletions] == [("b", "NotKept")] * 2
    assert [(one.repository, one.rule, one.why) for one in made.kept] == [("team/web", "a", "all")]


@pytest.mark.parametrize(
    ("days", "left"), [(1, ["b1", "b2"]), (1 - 1 / DAY, ["b1"]), (0.5, ["b1"]), (0, ["b1"]), (-60 / DAY, ["b1"])]
)
def test_what_is_new_stays(days: float, left: list[str]) -> None:
    registry = builds(9, days)
    made = registry.plan(keep("{tags: [none]}"))
    assert tags(made) == left
    assert causes(made) == dict.fromkeys({"b1", "b2"} - set(left), "TooNew")
    assert tags(registry.plan(keep("{tags: [none]}"), now=NOW + 2 * DAY)) == ["b1", "b2"]


def test_a_new_tag_makes_an_old_image_new() -> None:
    registry = builds(90)
    registry.also("team/app", "again", of=digest("team/app:b1"), days=0.5)
    registry.seen["team/app"][digest("team/app:b1")] = Seen(NOW - 90 * DAY)
    assert causes(registry.plan(keep("{tags: [none]}"))) == {"again": "TooNew"}


def test_who_keeps_what_is_told() -> None:
    registry = builds(9, 8)
    use = Use("10.0.0.10:5000/team/app:b1", "", ("Pod default/web", "Pod default/web-2"), 7)
    made = registry.plan(keep("{tags: [none]}"), use)
    assert tags(made) == ["b2"]
    [one] = made.kept
    assert (one.cause, one.rule, one.age) == ("InUse", "", 9 * DAY)
    assert one.why == "used by Pod default/web, Pod default/web-2 and 5 more as '10.0.0.10:5000/team/app:b1'"


def test_a_tag_that_was_protected_stays_whatever_it_means_by_now() -> None:
    registry = builds(9, 8)
    protected = registry.protected(Use("team/app:b1"))
    registry.also("team/app", "b1", of=digest("team/app:b2"), days=5)
    made = make(registry.inventory(), protected, keep("{tags: [none]}"), NOW)
    assert isinstance(made, Plan)
    assert made.deletions == (), "b2 has the protected tag now, and b1 is protected by its digest"


def multi(registry: Registry, tag: str, shared: str = "") -> tuple[str, str, str]:
    """An index with two children and a signature of it: the digests of index, own child, signature."""
    child = registry.image("team/app", name=f"child of {tag}")
    index = registry.index("team/app", tag, children=[child, *([shared] if shared else ()), digest("absent")])
    signature = registry.image("team/app", name=f"signature of {tag}", subject=index)
    return index, child, signature


def test_what_belongs_to_an_image_goes_with_it() -> None:
    registry = Registry()
    shared = registry.image("team/app", name="shared")
    old, old_child, old_signature = multi(registry, "old", shared)
    multi(registry, "new", shared)
    listed = registry.image("team/app", f"sha256-{old[7:]}", name="list")
    made = registry.plan(keep("{tags: [new]}"))
    assert {one.digest for one in made.deletions} == {old, old_child, old_signature, listed}
    found = {one.digest: (one.tag, one.cause, one.part_of) for one in made.deletions}
    assert found == {
        old: ("old", "NotKept", ()),
        old_child: ("", "PartOfDeleted", (old,)),
        old_signature: ("", "PartOfDeleted", (old,)),
        listed: (f"sha256-{old[7:]}", "PartOfDeleted", (old,)),
    }


def test_a_tagged_child_stays_with_its_index_and_a_subject_with_a_kept_referrer() -> None:
    registry = Registry()
    child = registry.image("team/app", "amd64")
    registry.index("team/app", "v1", children=[child])
    subject = registry.image("team/app", "v2")
    registry.image("team/app", "v3", subject=subject)
    made = registry.plan(keep("{tags: [v1, v3]}"))
    assert made.deletions == ()
    assert causes(made) == {"amd64": "Related", "v1": "Rule", "v2": "Related", "v3": "Rule"}


def test_parts_of_an_index_with_tags_of_their_own_count_as_images() -> None:
    registry = Registry()
    for number in range(1, 5):
        days = 40 - number
        parts = [registry.image("app", f"v{number}-{name}", days=days) for name in ("amd64", "arm64")]
        registry.index("app", f"v{number}", children=parts, days=days)
    assert {tag.partition("-")[0] for tag in tags(registry.plan(keep("{newest: 9}")))} == {"v1"}


def test_an_index_of_a_kept_child_may_go() -> None:
    registry = Registry()
    child = registry.image("team/app", "amd64")
    registry.index("team/app", "v1", children=[child])
    assert tags(registry.plan(keep("{tags: [amd64]}"))) == ["v1"]


def test_a_digest_in_two_repositories_is_decided_in_each_and_protected_in_both() -> None:
    registry = Registry()
    image = registry.image("team/app", "v1")
    registry.also("team/web", "v1", of=image)
    policy = rules("[{name: a, repositories: [team/app], keep: {all: true}}, "
                   "{name: b, repositories: ['**'], keep: {within: 1d}}]")  # fmt: skip
    made = registry.plan(policy)
    assert gone(made) == ["team/web:v1"]
    assert made.freed == 0, "the other repository still needs every byte"
    assert gone(registry.plan(policy, Use("team/app:v1"))) == []


def test_the_trash_is_no_part_of_a_plan() -> None:
    registry = builds(9, 8)
    waiting = registry.image("team/app", "trash-x", days=1)
    registry.trash["team/app"] = {"trash-x"}
    made = registry.plan(keep("{newest: 1}"))
    assert tags(made) == ["b1"], "what is in the trash does not count as the newest"
    assert waiting not in {one.digest for one in made.kept}


@pytest.mark.parametrize(
    ("days", "untagged", "pulled", "stays"),
    [
        (90, None, None, False),
        (30, None, None, False),
        (29, None, None, True),
        (90, 29, None, True),
        (90, 31, 29, True),
        (90, 31, 31, False),
    ],
)
def test_untagged_manifests(days: float, untagged: float | None, pulled: float | None, stays: bool) -> None:
    registry = Registry()
    registry.image("team/app", "v1", days=90)
    image = registry.image("team/app", name="untagged", days=days, untagged=untagged, pulled=pulled)
    made = registry.plan(rules("[]", untagged="{after: 30d}"))
    assert gone(made) == ([] if stays else [f"team/app@{image}"])
    assert [one.cause for one in made.deletions] == ([] if stays else ["Untagged"])
    assert registry.plan(rules("[]")).deletions == ()


def test_parts_of_an_untagged_index_stay_with_it() -> None:
    registry = Registry()
    child = registry.image("team/app", "old", days=90)
    registry.index("team/app", children=[child], days=90)
    assert registry.plan(keep("{tags: [none]}")).deletions == ()
    assert len(registry.plan(keep("{tags: [none]}", untagged="{after: 1h}")).deletions) == 2


def test_a_list_of_referrers_whose_subject_is_gone_is_untagged() -> None:
    registry = Registry()
    registry.image("team/app", f"sha256-{digest('absent')[7:]}.sig")
    assert registry.plan(keep("{tags: [none]}")).deletions == ()
    [one] = registry.plan(keep("{all: true}", untagged="{after: 1d}")).deletions
    assert one.cause == "Untagged"
    assert one.why == "without a tag of its own, but for an image that is gone, for longer than spec.untagged.after"


def test_the_canary_image_stays_whatever_a_rule_says() -> None:
    registry = Registry()
    registry.image(canary.REPOSITORY, canary.TAG, days=900)
    registry.image("kubeadm-registry/ledger", name="untagged", days=900)
    assert registry.plan(keep("{tags: [none]}", untagged="{after: 1h}")).deletions == ()


def test_sizes_and_what_is_freed() -> None:
    registry = Registry()
    registry.image("team/app", "old", layers=("base", "old"))
    registry.image("team/app", "older", layers=("base", "old", "older"))
    registry.image("team/app", "new", layers=("base", "new"))
    registry.image("team/web", "web", layers=("web",))
    made = registry.plan(keep("{tags: [new, web]}"))
    old, older = made.deletions
    assert (old.size, older.size) == (20 * MB + 1500, 30 * MB + 1500)
    # "base" stays, and "old" counts once.
    assert (old.freed, older.freed) == (10 * MB + 1500, 10 * MB + 1500)
    assert made.freed == 20 * MB + 3000


def test_what_an_index_frees_counts_with_the_index() -> None:
    registry = Registry()
    index, _, _ = multi(registry, "old")
    made = registry.plan(keep("{tags: [none]}"))
    freed = {one.digest: one.freed for one in made.deletions}
    assert freed.pop(index) == 10 * MB + 1500 + 300
    assert sorted(freed.values()) == [0, 10 * MB + 1500]


@pytest.mark.parametrize(
    ("held", "going", "share", "needs"),
    [(30, 6, 20, False), (29, 6, 20, True), (5, 5, 20, False), (6, 6, 20, True), (100, 20, 20, False),
     (100, 21, 20, True), (100, 21, 21, False), (6, 6, 100, False)],
)  # fmt: skip
def test_a_large_share_needs_an_approval(held: int, going: int, share: int, needs: bool) -> None:
    registry = builds(*[90] * going, *[5] * (held - going))
    made = registry.plan(keep("{within: 30d}", maximumShare=str(share), approval="Automatic"))
    assert len(made.deletions) == going
    assert [one.code for one in made.needs_approval] == (["ShareOfRepository", "ShareOfAll"] if needs else [])
    if needs:
        assert made.needs_approval[0].message == (
            f"deletes {going} of {held} tags of team/app, which is more than {share} %"
        )


def test_a_share_of_one_repository_and_of_all() -> None:
    registry = builds(*[90] * 6)
    for number in range(100):
        registry.image("team/web", f"w{number}", days=3)
    made = registry.plan(keep("{within: 30d}"))
    assert [one.code for one in made.needs_approval] == ["ShareOfRepository"]
    many = Registry()
    for number in range(6):
        many.image(f"team/r{number}", "x", days=90)
    assert [one.code for one in many.plan(keep("{within: 30d}")).needs_approval] == ["ShareOfAll"]


def test_untagged_manifests_count_in_shares_and_do_not_hide_tags() -> None:
    registry = builds(*[90] * 6)
    for number in range(94):
        registry.image("team/app", name=f"untagged {number}", days=3)
    [share, _] = registry.plan(keep("{within: 30d}")).needs_approval
    assert share.message == "deletes 6 of 6 tags of team/app, which is more than 20 %"
    only = Registry()
    for number in range(30):
        only.image("team/app", name=f"untagged {number}", days=90)
    [share, _] = only.plan(rules("[]", untagged="{after: 1d}")).needs_approval
    assert share.message == "deletes 30 of 30 tags or untagged manifests of team/app, which is more than 20 %"


def refusals(registry: Registry, now: int = NOW, **changes: object) -> Iterator[Reason]:
    outcome = make(registry.inventory(**changes), registry.protected(), keep("{newest: 1}"), now)  # type: ignore[arg-type]
    assert isinstance(outcome, Refused)
    yield from outcome.reasons


def test_an_inventory_that_is_not_complete_gives_no_plan() -> None:
    torn = Reason("InventoryIncomplete", "cannot read team/app:v1: 500")
    assert list(refusals(builds(9, 8), problems=(torn,))) == [torn]


@pytest.mark.parametrize(
    ("inventory", "message"),
    [
        (Inventory({"a": Repository({"t": Tag(digest("x"), 0)}, {})}, {}, {}),
         f"a:t is {digest('x')}, which is not in the inventory of a"),
        (Inventory({"a": Repository({}, {digest("x"): Seen(0)})}, {}, {}), f"a@{digest('x')} was not read"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_missing_gives_no_plan(inventory: Inventory, message: str) -> None:
    outcome = make(inventory, Registry().protected(), keep("{newest: 1}"), NOW)
    assert isinstance(outcome, Refused)
    assert [(one.code, one.message) for one in outcome.reasons] == [("ManifestMissing", message)]


def test_a_manifest_of_an_unknown_type_gives_no_plan() -> None:
    registry = builds(9)
    registry.manifests[digest("team/app:b1")] = Manifest("application/vnd.docker.distribution.manifest.v1+json", 1)
    [reason] = refusals(registry)
    assert reason.code == "ManifestNotUnderstood"
    name = f"team/app@{digest('team/app:b1')}"
    assert reason.message.startswith(f"{name} has the media type application/vnd.docker.distribution.manifest.v1+json")
    assert f"`kubeadm-registry images delete {name}`" in reason.hint
    outcome = registry.outcome(keep("{newest: 1}", "['other/*']"))
    assert isinstance(outcome, Refused)
    assert outcome.reasons == (reason,), "whatever the rules say"


def test_a_clock_that_went_back_gives_no_plan() -> None:
    registry = builds(9, 8)
    assert isinstance(registry.outcome(keep("{newest: 1}"), now=NOW - 8 * DAY - 60), Plan)
    outcome = registry.outcome(keep("{newest: 1}"), now=NOW - 8 * DAY - 61)
    assert isinstance(outcome, Refused)
    [reason] = outcome.reasons
    assert reason.code == "ClockDoubtful"
    assert reason.message == ("the clock is wrong now or was wrong before: an image was first seen 61 seconds from now")


@pytest.mark.parametrize(
    ("previous", "current", "refused"),
    [(None, 0, False), (20, 0, False), (21, 0, True), (42, 21, False), (42, 20, True), (43, 21, True), (100, 50, False),
     (100, 49, True), (10, 100, False)],
)  # fmt: skip
def test_far_fewer_uses_than_last_time_give_no_plan(previous: int | None, current: int, refused: bool) -> None:
    registry = builds(9, 8)
    protected = registry.protected(*(Use(f"x.example/{number}:1") for number in range(current)))
    assert protected.current == current
    policy = keep("{newest: 1}")
    outcome = make(registry.inventory(), protected, policy, NOW, previous=previous)
    assert isinstance(outcome, Refused) == refused
    if isinstance(outcome, Refused):
        [reason] = outcome.reasons
        assert (reason.code, reason.approval) == ("UsesShrank", f"UsesShrank={current}")
        assert isinstance(
            make(registry.inventory(), protected, policy, NOW, previous=previous, accepted=[reason.approval]), Plan
        )
        other = make(registry.inventory(), protected, policy, NOW, previous=previous, accepted=["UsesShrank=7"])
        assert isinstance(other, Refused), "an approval is for the number that was seen"


def test_all_reasons_are_told_at_once_and_nothing_else_can_be_accepted() -> None:
    registry = builds(9, 8)
    policy = keep("{newest: 1}")
    torn = Reason("InventoryIncomplete", "cannot read team/app:v1: 500")
    protected = registry.protected(Use("UPPER"), problems=(Reason("UsesIncomplete", "cannot list Pods: 403"),))
    codes = ["ClockDoubtful", "ImageNotUnderstood", "InventoryIncomplete", "UsesIncomplete", "UsesShrank"]
    for accepted in ([], codes):
        outcome = make(
            registry.inventory(problems=(torn,)), protected, policy, NOW - 90 * DAY, previous=50, accepted=accepted
        )
        assert isinstance(outcome, Refused)
        assert [one.code for one in outcome.reasons] == codes


def test_a_deletion_is_named_by_what_is_deleted() -> None:
    first, second = builds(9, 8).plan(keep("{newest: 1}")), builds(90, 8).plan(keep("{newest: 1}"))
    assert first.digest == second.digest, "ages are no part of it"
    assert first.digest != builds(9, 8, 7).plan(keep("{newest: 1}")).digest
    assert [type(one) for one in first.deletions] == [Deletion]


def test_what_refers_to_an_image_in_another_repository_stays_as_long_as_that() -> None:
    """cosign keeps signatures apart from images if COSIGN_REPOSITORY says so."""
    registry = Registry()
    image = registry.image("team/app", "v1")
    tag = f"sha256-{image[7:]}.sig"
    signature = registry.image("signatures", tag)
    policy = keep("{all: true}", untagged="{after: 7d}")
    made = registry.plan(policy)
    assert not made.deletions
    (why,) = [one for one in made.kept if one.digest == signature]
    assert (why.cause, why.why) == ("Related", f"refers to {image} in another repository")
    del registry.manifests[image], registry.seen["team/app"], registry.tags["team/app"]
    assert gone(registry.plan(policy)) == [f"signatures:{tag}"]


def test_an_artifact_with_a_tag_stays_as_long_as_its_subject_in_another_repository() -> None:
    registry = Registry()
    image = registry.image("team/app", "v1", days=90)
    registry.image("sboms", "v1-sbom", days=90, subject=image)
    registry.image("sboms", "v2-sbom", days=80)
    policy = keep("{newest: 1}", "[sboms]")
    assert gone(registry.plan(policy)) == []
    del registry.manifests[image], registry.seen["team/app"], registry.tags["team/app"]
    assert gone(registry.plan(policy)) == ["sboms:v1-sbom"]
