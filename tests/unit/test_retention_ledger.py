"""The ledger: since when things are as they are, what clusters said, and what a silent one keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeadm_registry.formats import Damaged, NewerFormat
from kubeadm_registry.retention import Manifest, Reason, Use
from kubeadm_registry.retention.holdings import Held, Holdings
from kubeadm_registry.retention.ledger import Ledger, silent

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


def test_what_is_gone_is_forgotten_and_what_could_not_be_read_is_not() -> None:
    ledger = Ledger().after(held({"v1": A}), 100)
    assert ledger.after(held({"v2": B}), 200).repositories["team/app"].tags.keys() == {"v2"}
    unread = ledger.after(held({}, unread="team/app"), 200)
    assert unread.repositories == ledger.repositories
    assert unread.inventory(held({}, unread="team/app")).problems


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
    ],
)  # fmt: skip
def test_a_damaged_ledger(change: dict[str, object]) -> None:
    with pytest.raises(Damaged):
        Ledger.parse(json.dumps({**json.loads(SAMPLE.read_bytes()), **change}).encode())


LOOKS = st.lists(st.dictionaries(st.sampled_from(["v1", "v2", "v3"]), st.sampled_from([A, B, C])), max_size=6)


@given(LOOKS)
def test_nothing_is_first_seen_before_it_was_there_or_loses_its_age(looks: list[dict[str, str]]) -> None:
    ledger, since = Ledger(), dict[tuple[str, str], int]()
    for now, tags in enumerate(looks, 1):
        ledger = ledger.after(held(tags), now)
        since = {(tag, digest): since.get((tag, digest), now) for tag, digest in tags.items()}
        seen = ledger.repositories["team/app"].tags
        assert {(tag, what.digest): what.first_seen for tag, what in seen.items()} == since
        assert Ledger.parse(ledger.to_json()) == ledger
