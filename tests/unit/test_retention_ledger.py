"""The ledger: since when things are as they are, what clusters said, and what a silent one keeps."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeadm_registry.formats import Damaged, NewerFormat
from kubeadm_registry.retention import Manifest, Reason, Use
from kubeadm_registry.retention.holdings import Held, Holdings
from kubeadm_registry.retention.inventory import Repository, Seen, Tag
from kubeadm_registry.retention.ledger import Ledger, Missed
from kubeadm_registry.retention.names import wanted
from kubeadm_registry.retention.plan import silent
from kubeadm_registry.retention.pulls import Miss, Pulls
from kubeadm_registry.retention.trash import Trashed

SAMPLE = Path(__file__).parents[1] / "golden" / "formats" / "0.1" / "retention-ledger.json"
A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
DAY = 86400
MANIFEST = Manifest("application/vnd.oci.image.manifest.v1+json", 100)


def held(tags: dict[str, str], *more: str, unread: str = "") -> Holdings:
    digests = frozenset({*tags.values(), *more})
    problems = (Reason("InventoryIncomplete", "no answer"),) if unread else ()
    repositories = {} if unread else {"team/app": Held(tags, digests)}
    return Holdings(repositories, dict.fromkeys(digests, MANIFEST), {}, frozenset(filter(None, [unread])), problems)


def test_what_is_new_was_first_seen_now_and_stays_so() -> None:
    ledger = Ledger().after(held({"v1": A}), 100).after(held({"v1": A, "v2": B}), 200)
    app = ledger.repositories["team/app"]
    assert {tag: what.first_seen for tag, what in app.tags.items()} == {"v1": 100, "v2": 200}
    assert {digest: seen.first_seen for digest, seen in app.manifests.items()} == {A: 100, B: 200}
    assert ledger.written == 200


def test_a_tag_that_moves_is_new_and_what_it_meant_has_no_tag_from_then_on() -> None:
    ledger = Ledger().after(held({"v1": A}), 100).after(held({"v1": B}, A), 200).after(held({"v1": B}, A), 300)
    app = ledger.repositories["team/app"]
    assert (app.tags["v1"].digest, app.tags["v1"].first_seen) == (B, 200)
    assert (app.manifests[A].first_seen, app.manifests[A].untagged_since) == (100, 200)
    assert app.manifests[B].untagged_since is None
    again = ledger.after(held({"v1": B, "old": A}), 400).repositories["team/app"]
    assert again.manifests[A].untagged_since is None
    assert again.manifests[A].first_seen == 100
    assert again.tags["old"].first_seen == 400


@pytest.mark.parametrize("gone", [held({}), held({"v1": B}, A), held({"v2": A}), replace(held({}), repositories={})])
def test_what_one_look_or_some_do_not_find_is_as_old_as_it_was_when_it_is_back(gone: Holdings) -> None:
    known = Ledger().after(held({"v1": A, "v2": A}), 100)
    for looks in ([200], [200, 300, 400], [200, 200 + 3 * DAY], [90 * DAY]):
        ledger = known
        for now in looks:
            ledger = Ledger.parse(ledger.after(gone, now).to_json())
            assert A in ledger.digests()["team/app"], "it is looked for"
        back = ledger.after(held({"v1": A, "v2": A}), looks[-1] + 100)
        app = back.repositories["team/app"]
        moved = gone.repositories.get("team/app", Held({}, frozenset())).tags.get("v1") == B
        assert app.tags["v2"] == known.repositories["team/app"].tags["v2"]
        assert app.tags["v1"].first_seen == (looks[-1] + 100 if moved else 100), (
            "a tag that meant something else is new"
        )
        assert app.manifests == known.repositories["team/app"].manifests
        assert {one for _, one in back.missed} == ({B} if moved else set())


def test_what_is_gone_for_longer_is_new_when_it_is_back() -> None:
    ledger = Ledger().after(held({"v1": A}), 100).after(held({}), 200).after(held({}), 201 + 3 * DAY)
    assert not ledger.missed
    app = ledger.after(held({"v1": A}), 4 * DAY).repositories["team/app"]
    assert (app.tags["v1"].first_seen, app.manifests[A].first_seen) == (4 * DAY, 4 * DAY)


def test_what_is_no_longer_missed_or_asked_for_is_not_read_from_the_record_again() -> None:
    """Else an image that is pushed again after months would be as old as then, and go at once."""
    ledger = Ledger().after(held({"trash-a": A}), 900).asked_for([trashed("v1")], missed("v1", 1001), 2000)
    ledger = Ledger.parse(ledger.after(held({}), 3000).to_json())
    assert ledger.missed and ledger.asked
    ledger = Ledger.parse(ledger.after(held({}), 9 * DAY).asked_for([], None, 9 * DAY).to_json())
    assert not ledger.missed
    assert not ledger.asked
    assert ledger.after(held({"v1": A}), 90 * DAY).repositories["team/app"].manifests[A].first_seen == 90 * DAY


@pytest.mark.parametrize("looks", [[], [held({})]], ids=["at once", "after a look"])
def test_what_was_deleted_for_good_is_new_when_it_is_pushed_again(looks: list[Holdings]) -> None:
    ledger = Ledger().after(held({"v1": A, "v2": B}), 100)
    for one in looks:
        ledger = ledger.after(one, 200)
    app = ledger.without([replace(trashed("v1"), parts=(C,))]).after(held({"v1": A, "v2": B}), 300)
    assert {digest: one.first_seen for digest, one in app.repositories["team/app"].manifests.items()} == {
        A: 300,
        B: 100,
    }


def test_what_two_looks_at_once_find_is_as_old_as_who_saw_it_first_has_it() -> None:
    before = Ledger().after(held({"v1": A}), 100)
    mine = before.after(held({"v1": A, "v2": B}), 300)
    for theirs in (before.after(held({"v1": A, "v2": B, "v3": C}), 200), before.after(held({"v2": B, "v3": C}), 200)):
        ledger = Ledger.parse(mine.merged(theirs, before).to_json())
        assert ledger.repositories["team/app"].tags == {"v1": Tag(A, 100), "v2": Tag(B, 200)}
        assert ledger.repositories["team/app"].manifests == {A: Seen(100), B: Seen(200)}
        app = ledger.after(held({"v1": A, "v3": C}), 400).repositories["team/app"]
        assert (app.tags["v3"], app.manifests[C]) == (Tag(C, 200), Seen(200))
    assert mine.merged(before, before) == mine
    moved = mine.merged(before.after(held({"v1": B, "v2": C}), 200), before).repositories["team/app"]
    assert moved.tags == {"v1": Tag(A, 100), "v2": Tag(B, 300)}, "that look is of another time"


def test_what_was_forgotten_during_a_look_is_new() -> None:
    before = Ledger().after(held({"v1": A, "v2": B}), 100)
    ledger = before.after(held({"v1": A}), 300).merged(Ledger(), before)
    assert ledger.repositories["team/app"] == Repository({"v1": Tag(A, 300)}, {A: Seen(300)})
    assert not ledger.missed


def test_a_look_that_knows_of_no_pulls_keeps_those_that_another_one_recorded_meanwhile() -> None:
    before = Ledger().after(held({"trash-a": A}), 900)
    theirs = before.pulled(Pulls(1, {("team/app", A): 5 * DAY})).asked_for([trashed("v1")], missed("v1", 1001), 2000)
    ledger = before.after(held({"trash-a": A}), 1000).merged(theirs, before)
    assert ledger.repositories["team/app"].manifests[A].last_pulled == 5 * DAY
    assert ledger.asked == theirs.asked != {}


def test_records_of_retention_itself_are_not_missed() -> None:
    own = {"kubeadm-registry/retention": Held({"ledger": A}, frozenset([A]))}
    ledger = Ledger().after(replace(held({"v1": A}), repositories=own), 100)
    assert ledger.repositories
    assert not ledger.after(held({}), 200).missed


def test_what_no_tag_leads_to_any_more_has_no_tag_from_then_on() -> None:
    """The parts of an index that is gone, or out of reach, are no older as untagged manifests than it is away."""
    whole = replace(held({"v1": A}, B, C), manifests={
        A: replace(MANIFEST, children=(B,)), B: MANIFEST, C: replace(MANIFEST, subject=B),
    })  # fmt: skip
    ledger = Ledger().after(whole, 100).after(whole, 200)
    assert {one.untagged_since for one in ledger.repositories["team/app"].manifests.values()} == {None}
    trashed = replace(whole, repositories={"team/app": Held({"trash-a": A}, frozenset([A, B, C]))})
    there = ledger.after(trashed, 300, {"team/app": frozenset(["trash-a"])}).repositories["team/app"]
    assert {one.untagged_since for one in there.manifests.values()} == {None}
    parts = replace(whole, repositories={"team/app": Held({}, frozenset([B, C]))})
    away = ledger.after(parts, 400).repositories["team/app"]
    assert {one.untagged_since for one in away.manifests.values()} == {400}


def test_what_is_gone_is_forgotten_and_what_could_not_be_read_is_not() -> None:
    ledger = Ledger().after(held({"v1": A}), 100)
    assert ledger.after(held({"v2": B}), 200).repositories["team/app"].tags.keys() == {"v2"}
    unread = ledger.after(held({}, unread="team/app"), 200)
    assert unread.repositories == ledger.repositories
    assert unread.inventory(held({}, unread="team/app")).problems


def trashed(*tags: str, deleted: int = 1000) -> Trashed:
    return Trashed("team/app", A, dict.fromkeys(tags, 5), (), deleted, "sha256:0", "one", "old", 10, complete=True)


def missed(tag: str, moment: int, repository: str = "team/app") -> Pulls:
    return Pulls(None, {}, {(repository, tag): Miss(moment, "10.0.0.77")})


def asked(ledger: Ledger) -> list[tuple[str, tuple[str, ...], int | None]]:
    return [(use.reference, use.users, use.last_seen) for use in ledger.asked.values()]


def test_what_is_asked_for_in_the_trash_is_in_use_from_then_on() -> None:
    ledger = Ledger().after(held({"trash-a": A}), 900)
    found = ledger.asked_for([trashed("v1", "v2")], missed("v2", 1001), 2000)
    assert asked(found) == [("team/app:v2", ("a pull by 10.0.0.77",), 2000)]
    assert [use.reference for use in found.workloads({}).uses] == ["team/app:v2"]
    assert found.workloads({}).current == 0, "it is no workload whose absence would be noticed"
    assert Ledger.parse(found.to_json()).asked == found.asked


@pytest.mark.parametrize(
    "pulls",
    [
        None,
        Pulls(None, {}),
        missed("v9", 1001),
        missed("v1", 1000),
        missed("v1", 1001, "team/other"),
        Pulls(1, {("team/app", A): DAY - 1}),
        Pulls(1, {("team/app", B): 9 * DAY - 1}),
    ],
    ids=["not known", "nothing", "another tag", "before", "elsewhere", "a pull of that day", "another digest"],
)
def test_what_was_not_asked_for_since_it_was_deleted_is_not_in_use(pulls: Pulls | None) -> None:
    assert not Ledger().after(held({"trash-a": A}), 900).asked_for([trashed("v1")], pulls, 2 * DAY).asked


def test_what_is_asked_for_of_an_upstream_with_a_port_is_that_image() -> None:
    name = "registry.example_5000/team/app"
    image = replace(trashed("v1"), repository=name)
    holdings = held({"trash-a": A})
    ledger = Ledger().after(replace(holdings, repositories={name: holdings.repositories["team/app"]}), 900)
    for pulls in (missed("v1", 1001, name), Pulls(1, {(name, A): 2 * DAY - 1})):
        (use,) = ledger.asked_for([image], pulls, 2 * DAY).asked.values()
        found = wanted(use.reference)
        assert found is not None and name in found.repositories, use.reference


def test_a_pull_by_digest_counts_from_the_next_day_on() -> None:
    ledger = Ledger().after(held({"trash-a": A}), 900)
    found = ledger.asked_for([trashed("v1")], Pulls(1, {("team/app", A): 2 * DAY - 1}), 2 * DAY)
    assert asked(found) == [(f"team/app@{A}", ("a pull by its digest",), 2 * DAY)]


def test_who_asks_again_and_again_keeps_nothing_for_ever() -> None:
    ledger = Ledger().after(held({"trash-a": A}), 900).asked_for([trashed("v1")], missed("v1", 1001), 2000)
    again = ledger.after(held({"trash-a": A}), 9 * DAY)
    again = again.asked_for([trashed("v1", deleted=9 * DAY)], missed("v1", 9 * DAY + 1), 10 * DAY)
    assert asked(again) == asked(ledger)
    out = again.after(held({"v1": B}), 11 * DAY).asked_for([], None, 11 * DAY)
    assert out.asked == again.asked, "it may only be out of reach"
    # Another image of these bytes is another one.
    gone = out.without([trashed("v1")]).asked_for([], None, 11 * DAY)
    assert not gone.asked
    assert not out.after(held({"v1": B}), 15 * DAY).asked_for([], None, 15 * DAY).asked
    back = gone.after(held({"trash-a": A}), 12 * DAY)
    assert back.asked_for([trashed("v1", deleted=12 * DAY)], missed("v1", 13 * DAY), 13 * DAY).asked


def looks(ledger: Ledger, trash: list[Trashed], day: int, *, grace: int = 7) -> Ledger:
    """The ledger after a look on that *day*, when the image is in the *trash* or not, and is asked for all the time."""
    there = held({"trash-a": A} if trash else {"v1": A})
    return ledger.after(there, day * DAY).asked_for(
        trash, missed("v1", day * DAY - 1) if trash else None, day * DAY, grace=grace * DAY
    )


def seen_last(ledger: Ledger) -> list[int | None]:
    return [None if use.last_seen is None else use.last_seen // DAY for use in ledger.asked.values()]


def test_an_image_that_was_used_for_months_may_be_asked_for_again() -> None:
    ledger = looks(Ledger(), [trashed("v1")], 2)
    for day in range(3, 100):
        ledger = looks(ledger, [], day)
        assert bool(ledger.asked) == (day <= 32)
    ledger = looks(ledger, [trashed("v1", deleted=100 * DAY)], 101)
    assert seen_last(ledger) == [101]


@pytest.mark.parametrize("grace", [1, 7, 30, 90])
@pytest.mark.parametrize("pause", [0, 60])
def test_who_asks_every_day_has_an_image_back_once_and_then_it_goes(grace: int, pause: int) -> None:
    """It goes to the trash when its grace is over, and from there a week later, or when a *pause* of days ends."""
    ledger = looks(Ledger(), [trashed("v1")], 2, grace=grace)
    for day in range(3, 2 + grace + 1):
        ledger = looks(ledger, [], day, grace=grace)
    back = 2 + grace
    for day in range(back + 1, back + 8 + pause):
        ledger = looks(ledger, [trashed("v1", deleted=back * DAY)], day, grace=grace)
        assert seen_last(ledger) == [2], "that is over"


def test_a_pull_by_tag_counts_for_what_lost_its_last_tag_since_that_day() -> None:
    seen = {A: Seen(1, untagged_since=30 * DAY), B: Seen(1, untagged_since=32 * DAY + 5), C: Seen(1, 29 * DAY)}
    ledger = Ledger(40 * DAY, {"app": Repository({"v1": Tag(C, 1)}, seen)})
    days = (30, 32, 35)  # A was without a tag from the first moment of the first of these days on
    pulls = {("app", f"of day {day}"): (day + 1) * DAY - 1 for day in days}
    after = ledger.pulled(Pulls(DAY, {**pulls, ("app", "v1"): 20 * DAY - 1})).repositories["app"].manifests
    assert [after[one].last_pulled for one in (A, B, C)] == [31 * DAY - 1, 33 * DAY - 1, 29 * DAY]


def test_pulls_of_a_large_repository_are_entered_in_a_moment() -> None:
    digests = [f"sha256:{number:064}" for number in range(20_000)]
    tags = {f"v{number}": Tag(digest, 1) for number, digest in enumerate(digests)}
    ledger = Ledger(90 * DAY, {"app": Repository(tags, dict.fromkeys(digests, Seen(1, untagged_since=DAY)))})
    pulls = Pulls(DAY, {("app", tag): 90 * DAY - 1 for tag in tags})
    begin = time.process_time()
    ledger.pulled(pulls)
    assert time.process_time() - begin < 2, "it took 10 s"


def test_a_name_that_no_pod_could_have_is_no_reason_for_no_plan() -> None:
    image = replace(trashed("v1"), repository="team/a..b")
    holdings = replace(held({"trash-a": A}), repositories={"team/a..b": Held({"trash-a": A}, frozenset([A]))})
    ledger = Ledger().after(holdings, 900)
    assert not ledger.asked_for([image], missed("v1", 1001, "team/a..b"), 2000).asked


def test_a_clock_that_goes_back_does_not_make_the_ledger_younger() -> None:
    ledger = Ledger().after(held({"v1": A}), 1000).after(held({"v1": A, "v2": B}), 500)
    assert ledger.written == 1000
    assert ledger.repositories["team/app"].tags["v1"].first_seen == 1000, "and a plan sees that the clock is wrong"


def test_uses_that_are_gone_stay_for_a_while_with_when_they_were_last_seen() -> None:
    ledger = Ledger().reported("uid", "one", (Use("app:v1"), Use("app:v2")), 100, kept=7 * DAY)
    ledger = ledger.reported("uid", "one", (Use("app:v2"),), 200, kept=7 * DAY)
    assert {use.reference: use.last_seen for use in ledger.clusters["uid"].uses} == {"app:v1": 200, "app:v2": None}
    assert ledger.clusters["uid"].current == 1
    ledger = ledger.reported("uid", "one", (Use("app:v2"),), 200 + 7 * DAY, kept=7 * DAY)
    assert {use.reference for use in ledger.clusters["uid"].uses} == {"app:v1", "app:v2"}
    ledger = ledger.reported("uid", "one", (Use("app:v2"),), 201 + 7 * DAY, kept=7 * DAY)
    assert {use.reference for use in ledger.clusters["uid"].uses} == {"app:v2"}
    back = ledger.reported("uid", "one", (Use("app:v1"), Use("app:v2")), 300 + 7 * DAY, kept=7 * DAY)
    assert {use.last_seen for use in back.clusters["uid"].uses} == {None}


def test_a_cluster_that_is_silent_keeps_what_it_used() -> None:
    ledger = Ledger().reported("one", "first", (Use("app:v1"),), 100, kept=DAY)
    ledger = ledger.reported("two", "second", (Use("app:v2"),), 100 + 365 * DAY, kept=DAY)
    assert {use.reference: use.last_seen for use in ledger.workloads({}).uses} == {"app:v1": None, "app:v2": None}
    assert [one.name for one in silent(ledger, {"two"})] == ["first"]


def test_the_ledger_of_release_0_1_is_read() -> None:
    ledger = Ledger.parse(SAMPLE.read_bytes())
    assert json.loads(ledger.to_json()) == json.loads(SAMPLE.read_bytes())
    app = ledger.repositories["team/app"]
    assert app.tags["v1"].first_seen == 1_790_000_000
    assert app.manifests[app.tags["v1"].digest].last_pulled == 1_795_000_000
    assert [use.who() for use in ledger.clusters["4f6f3f39-7f1c-4dcb-9d1e-2f8d3a0c5f11"].uses] == ["Pod default/web"]


def test_what_a_newer_release_added_is_written_back() -> None:
    document = json.loads(SAMPLE.read_bytes())
    document["more"] = {"a": [1]}
    document["clusters"]["4f6f3f39-7f1c-4dcb-9d1e-2f8d3a0c5f11"]["more"] = True
    document["format"]["version"] = 7
    assert json.loads(Ledger.parse(json.dumps(document).encode()).to_json()) == document
    document["format"]["minWriter"] = 7
    with pytest.raises(NewerFormat):
        Ledger.parse(json.dumps(document).encode()).to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"written": "1"}, {"written": None}, {"repositories": []}, {"repositories": {"a": {}}}, {"clusters": None},
        {"repositories": {"a": {"tags": {"v1": ["sha256:x"]}, "manifests": {}}}},
        {"repositories": {"a": {"tags": {"v1": [1, 1]}, "manifests": {}}}},
        {"repositories": {"a": {"tags": {}, "manifests": {"d": [1, "2", None]}}}},
        {"clusters": {"u": {"name": "x", "reported": 1, "current": 0, "uses": [{}]}}},
        {"clusters": {"u": {"name": "x", "reported": 1, "current": True, "uses": []}}},
        {"missed": [["a", "v1", 1]]}, {"missed": [["a", "v1", 1, [1, None, None]]]}, {"missed": [["a", A, 1, [A, 1]]]},
    ],
)  # fmt: skip
def test_a_damaged_ledger(change: dict[str, object]) -> None:
    with pytest.raises(Damaged):
        Ledger.parse(json.dumps({**json.loads(SAMPLE.read_bytes()), **change}).encode())


LOOKS = st.lists(st.dictionaries(st.sampled_from(["v1", "v2", "v3"]), st.sampled_from([A, B, C])), max_size=6)


@given(LOOKS)
def test_nothing_is_first_seen_before_it_was_there_or_loses_its_age(looks: list[dict[str, str]]) -> None:
    """A tag that means what it meant when it was there last is as old as it was then."""
    ledger, last = Ledger(), dict[str, tuple[str, int]]()
    for now, tags in enumerate(looks, 1):
        ledger = ledger.after(held(tags), now)
        for tag, digest in tags.items():
            last[tag] = last[tag] if tag in last and last[tag][0] == digest else (digest, now)
        seen = ledger.repositories["team/app"].tags
        assert {tag: (what.digest, what.first_seen) for tag, what in seen.items()} == {tag: last[tag] for tag in tags}
        assert Ledger.parse(ledger.to_json()) == ledger


def test_the_frozen_sample_of_what_was_asked_for_is_read() -> None:
    ledger = Ledger.parse((SAMPLE.parents[1] / "retention-ledger-asked.json").read_bytes())
    assert asked(ledger) == [("team/app:v1", ("a pull by 10.0.0.77",), 1900000000)]
    assert list(ledger.asked) == [("team/app", A)]


def test_the_frozen_sample_of_what_is_missed_is_read() -> None:
    content = (SAMPLE.parents[1] / "retention-ledger-missed.json").read_bytes()
    ledger = Ledger.parse(content)
    assert ledger.missed == {
        ("team/app", "v1"): Missed(1_900_000_000, Tag(A, 1_890_000_000)),
        ("team/app", A): Missed(1_900_000_000, Seen(1_890_000_000, 1_895_000_000)),
    }
    assert json.loads(ledger.to_json()) == json.loads(content)


def test_the_frozen_sample_with_the_marker_of_a_cluster_is_read() -> None:
    content = (SAMPLE.parents[1] / "retention-ledger-marker.json").read_bytes()
    [cluster] = Ledger.parse(content).clusters.values()
    assert (cluster.revision, cluster.marker) == (812345, 470911223344)
    assert json.loads(Ledger.parse(content).to_json()) == json.loads(content)


def test_the_frozen_sample_with_the_version_of_a_cluster_is_read() -> None:
    content = (SAMPLE.parents[1] / "retention-ledger-version.json").read_bytes()
    [cluster] = Ledger.parse(content).clusters.values()
    assert cluster.version == "v1.36.3"
    assert json.loads(Ledger.parse(content).to_json()) == json.loads(content)


def test_the_frozen_sample_with_the_longest_grace_is_read() -> None:
    content = (SAMPLE.parents[1] / "retention-ledger-grace.json").read_bytes()
    assert Ledger.parse(content).grace == (30 * DAY, 1_900_000_000)
    assert json.loads(Ledger.parse(content).to_json()) == json.loads(content)


def test_of_two_looks_at_once_the_longer_grace_stands() -> None:
    before = Ledger().planned(7 * DAY, 0)
    short, long = before.planned(DAY, DAY), before.planned(30 * DAY, DAY)
    assert short.with_newer_reports(long, before).grace == (30 * DAY, DAY)
    assert long.with_newer_reports(short, before).grace == (30 * DAY, DAY)
    later = before.planned(DAY, 8 * DAY)
    assert later.with_newer_reports(before, before).grace == (DAY, 8 * DAY), "nobody else looked"


@pytest.mark.parametrize(
    ("before", "mine", "theirs", "kept"),
    [(1, 2, 1, 2), (1, 1, 3, 3), (1, 1, 1, 1), (0, 2, 0, 2), (1, 2, 3, 3)],
    ids=["told here", "told there", "not told", "told first", "told twice"],
)
def test_a_marker_outlives_a_report_without_one(before: int, mine: int, theirs: int, kept: int) -> None:
    """Whoever reported later."""

    def told(marker: int, now: int) -> Ledger:
        return Ledger().reported("u", "x", (), now, kept=0, marker=marker)

    for now in (1, 9):
        found = told(mine, 5).with_newer_reports(told(theirs, now), told(before, 0)).clusters["u"]
        assert (found.marker, found.reported) == (kept, max(now, 5))
    assert told(7, 1).reported("u", "x", (), 2, kept=0).clusters["u"].marker == 7


def test_a_cluster_that_is_forgotten_during_a_look_stays_forgotten_unless_it_said_something_there() -> None:
    before = Ledger().reported("u", "x", (Use("app:v1"),), 1, kept=0).reported("w", "y", (), 1, kept=0)
    assert before.with_newer_reports(before.forgotten("u"), before).clusters.keys() == {"w"}
    reported = before.reported("u", "x", (Use("app:v2"),), 2, kept=0)
    assert reported.with_newer_reports(before.forgotten("u"), before).clusters.keys() == {"u", "w"}


def test_what_a_cluster_said_in_one_of_two_looks_at_once_is_used_until_its_grace_is_over() -> None:
    """A pod may have come and gone between the last look and these."""

    def said(ledger: Ledger, now: int, *names: str) -> Ledger:
        return ledger.reported("u", "x", tuple(map(Use, names)), now, kept=100)

    before = said(said(Ledger(), 1, "app:gone"), 10, "app:v1")
    for mine, theirs in ((30, 20), (20, 30)):
        ledger = said(before, mine, "app:v1", "app:mine").with_newer_reports(
            said(before, theirs, "app:v1", "app:theirs"), before
        )
        newer, older = ("app:mine", "app:theirs") if mine > theirs else ("app:theirs", "app:mine")
        last = {use.reference: use.last_seen for use in ledger.clusters["u"].uses}
        assert last == {"app:v1": None, "app:gone": 10, newer: None, older: 20}
        assert ledger.clusters["u"].in_use == 2
    later = said(before, 120, "app:v1")
    assert later.with_newer_reports(before, before) == later == before.with_newer_reports(later, before)
