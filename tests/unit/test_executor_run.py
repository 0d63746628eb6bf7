"""Runs of the executor: what they do when the registry, the clock or people say something else in the middle."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import httpx
import pytest

from kubeadm_registry.components.executor_files import Settings
from kubeadm_registry.errors import Error, RegistryError
from kubeadm_registry.executor import __main__ as program
from kubeadm_registry.executor.__main__ import Node
from kubeadm_registry.executor.run import Executor
from kubeadm_registry.registry import Api
from kubeadm_registry.retention import Plan, Reason, RegistryPolicy, Repository, Seen, Tag, Use, policy
from kubeadm_registry.retention.history import Run
from kubeadm_registry.retention.ledger import ClusterUses, Ledger
from kubeadm_registry.retention.order import Order, Restore
from kubeadm_registry.retention.standing import Pin, Spent, Standing
from kubeadm_registry.retention.trash import Trash, Trashed
from kubeadm_registry.upkeep import planning, reading, running, store
from kubeadm_registry.upkeep.signed import Record
from tests.unit.fake_images import Repositories, Store, answered, plain, within

pytestmark = pytest.mark.slow

KEY = "the key of the ledger"
NOW, DAY = 1_800_000_000, 86400
TAGS = tuple(f"v{number}" for number in range(1, 9))


def nothing(_: httpx.Request) -> None:
    """Let the request pass."""


@dataclass
class Site:
    """A registry with eight images of the repository ``app``, long known, and the records of retention."""

    registry: Repositories = field(default_factory=Repositories)
    time: float = NOW
    doubted: Sequence[Reason] = ()
    meddle: Callable[[httpx.Request], httpx.Response | None] = nothing
    told: list[str] = field(default_factory=list)
    tell: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        self.registry.image("kubeadm-registry/canary", "v1")
        for tag in TAGS:
            self.registry.image("app", tag, layer=tag.encode())
        tags = {tag: Tag(digest, NOW - 90 * DAY) for tag, digest in self.app.tags.items()}
        seen = {digest: Seen(NOW - 90 * DAY) for digest in self.app.manifests}
        with self.connect() as at:
            store.write(at, KEY, Ledger(NOW - DAY, {"app": Repository(tags, seen)}))

    def connect(self) -> Api:
        return within(self.registry, self.meddle)()

    @property
    def app(self) -> Store:
        return self.registry.store["app"]

    def image(self, tag: str) -> Trashed:
        """What the plan says of that image."""
        return Trashed("app", self.app.tags[tag], {tag: NOW - 90 * DAY}, (), int(self.time), "", "", "not kept", 10)

    def order(self, **what: object) -> Order:
        return replace(Order(int(self.time)), **what)  # type: ignore[arg-type]

    def carry_out(self, order: Order) -> Run:
        with self.connect() as at:
            return Executor(
                at, KEY, "cp-1", lambda: None, self.tell or self.told.append, lambda: self.time, lambda: self.doubted
            ).carry_out(order)

    def refused(self, order: Order) -> Error:
        with pytest.raises(Error) as error:
            self.carry_out(order)
        return error.value

    def trash(self) -> Trash:
        with self.connect() as at:
            return store.read_trash(at, KEY)

    def tags(self) -> list[str]:
        return sorted(tag for tag in self.app.tags if not tag.startswith("trash-"))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr("kubeadm_registry.registry.retries.time.sleep", lambda _: None)
    return Site()


NOT_WHOLE = (Reason("RegistryNotWhole", "1 of 3 nodes are not heard", "wait"),)


# ---- what seems to be gone ---------------------------------------------------------------------------------------


@pytest.fixture
def trashed(site: Site) -> Trashed:
    """An image that is in the trash."""
    image = site.image("v1")
    site.carry_out(site.order(delete=(image,)))
    assert site.tags() == sorted({*TAGS} - {"v1"})
    return site.trash().images[image.key]


def test_an_image_takes_no_longer_to_delete_for_those_that_went_before_it(site: Site) -> None:
    asked: list[str] = []
    ended: list[int] = []
    site.meddle = lambda request: asked.append(request.url.path)
    site.tell = lambda _: ended.append(len(asked))
    assert site.carry_out(site.order(delete=tuple(map(site.image, TAGS[:6])))).deleted == 6
    assert len({after - before for before, after in itertools.pairwise(ended)}) == 1


def test_an_entry_whose_image_is_gone_is_forgotten(site: Site, trashed: Trashed) -> None:
    site.app.manifests.pop(trashed.digest)
    site.app.tags.pop(trashed.tag)
    run = site.carry_out(site.order(forget=(trashed,)))
    assert not site.trash().images
    assert run.said == ("forgot app:v1: it is not in the registry any more",)


def test_nothing_is_forgotten_while_the_registry_is_not_whole(site: Site, trashed: Trashed) -> None:
    site.doubted = NOT_WHOLE
    assert "1 of 3 nodes are not heard" in site.refused(site.order(forget=(trashed,))).message
    assert trashed.key in site.trash().images


def test_what_only_seemed_to_be_gone_stays_in_the_record(site: Site, trashed: Trashed) -> None:
    run = site.carry_out(site.order(forget=(trashed,)))
    assert run.said == ("skipped app:v1: it is still there",)
    assert trashed.key in site.trash().images


@pytest.mark.parametrize("left", ["the manifest", "a part", "the tag"])
def test_what_is_left_of_an_image_keeps_its_entry(site: Site, trashed: Trashed, left: str) -> None:
    part = site.app.tags["v2"] if left == "a part" else "sha256:" + "0" * 64
    if left != "the manifest":
        del site.app.manifests[trashed.digest]
    if left != "the tag":
        del site.app.tags[trashed.tag]
    assert site.carry_out(site.order(forget=(replace(trashed, parts=(part,)),))).skipped == 1
    assert trashed.key in site.trash().images


@pytest.mark.parametrize("lasts", [0, 1], ids=["at first", "in the end"])
def test_nothing_is_forgotten_by_a_registry_that_does_not_find_the_canary_image(
    site: Site, trashed: Trashed, lasts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers 404 to everything but the records: as many questions about the canary image are answered as *lasts*"""
    monkeypatch.setattr("kubeadm_registry.executor.images.PATIENCE", 0.0)
    asked: list[str] = []

    def away(request: httpx.Request) -> httpx.Response | None:
        canary = "/canary/" in request.url.path
        asked.extend([request.url.path] if canary else [])
        hidden = len(asked) > lasts if canary else request.url.path.startswith("/v2/app/")
        return httpx.Response(404) if hidden else None

    site.meddle = away
    assert site.refused(site.order(forget=(trashed,))).code == "RegistryNotWhole"
    assert len(asked) == lasts + 1
    assert trashed.key in site.trash().images


def test_an_image_whose_reads_all_fail_while_it_goes_for_good_stays_in_the_record(
    site: Site, trashed: Trashed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubeadm_registry.executor.images.PATIENCE", 0.0)
    site.time += 8 * DAY
    site.meddle = lambda request: httpx.Response(404) if f"/{store.REPOSITORY}/" not in request.url.path else None
    assert site.refused(site.order(purge=(trashed,))).code == "RegistryNotWhole"
    assert trashed.key in site.trash().images
    site.meddle = nothing
    assert site.carry_out(site.order(purge=(trashed,))).purged == 1
    assert not site.trash().images
    assert trashed.digest not in site.app.manifests


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_what_one_404_hides_of_an_image_that_goes_for_good_keeps_its_entry(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nothing would lead to it any more, and its space would be lost."""
    monkeypatch.setattr("kubeadm_registry.registry.retries.time.sleep", lambda _: None)
    began, kept = Site(), 0
    parts = {name: began.registry.image("app", layer=name.encode()) for name in ("amd64", "arm64")}
    began.registry.index("app", "index", **parts)
    with began.connect() as at:
        ledger = store.read(at, KEY).after(reading.read(began.connect, {}), NOW - 90 * DAY)
        store.write(at, KEY, ledger)
    whole = replace(began.image("index"), parts=tuple(one.digest for one in parts.values()))
    began.carry_out(began.order(delete=(whole,)))
    began.time += 8 * DAY
    for number in itertools.count():
        site, asked = copy.deepcopy(began), list[str]()

        def lies(request: httpx.Request, number: int = number, asked: list[str] = asked) -> httpx.Response | None:
            if request.method != method or f"/{store.REPOSITORY}/" in request.url.path:
                return None
            asked.append(request.url.path)
            return httpx.Response(404) if len(asked) == number + 1 else None

        site.meddle = lies
        with suppress(Error):
            site.carry_out(site.order(purge=tuple(site.trash())))
        site.meddle = nothing
        left = {whole.digest, *whole.parts} & site.app.manifests.keys()
        assert not left or whole.key in site.trash().images, asked[number:]
        kept += bool(left)
        if site.trash().images:
            site.carry_out(site.order(purge=tuple(site.trash())))
        assert not {whole.digest, *whole.parts} & site.app.manifests.keys()
        assert not site.trash().images
        if number >= len(asked):
            break
    assert kept or method == "HEAD", "some are in the middle of it"


def test_an_image_that_lost_some_of_its_tags_when_it_was_given_up_stays_in_the_record(site: Site) -> None:
    image = replace(site.image("v1"), tags={"v1": 5, "v2": 5})
    site.app.tags["v2"] = image.digest

    def denied(request: httpx.Request) -> httpx.Response | None:
        last = request.method == "DELETE" and request.url.path.endswith("/manifests/v2")
        return httpx.Response(405) if last else None

    site.meddle = denied
    assert site.carry_out(site.order(delete=(image,))).skipped == 1
    site.meddle = nothing
    assert "v1" not in site.tags()
    assert site.trash().images[image.key].tags.keys() == {"v1", "v2"}
    assert not site.trash().images[image.key].complete


# ---- a 404 that is none ------------------------------------------------------------------------------------------

POLICY_TEXT = """\
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryPolicy
spec:
  approval: Automatic
  sets: []
  rules: [{name: apps, repositories: [app], keep: {tags: [v5, v6, v7, v8]}}]
"""
POLICY = policy.parse(POLICY_TEXT, "policy.yaml")


def retained(site: Site, rules: RegistryPolicy = POLICY, looked: Callable[[], None] = lambda: None) -> None:
    """Look at the registry, plan, and carry the order out, as the timer does; *looked* is called in between."""
    look = planning.look(site.connect, KEY, rules, int(site.time), sets={})
    plan = look.plan(rules)
    assert isinstance(plan, Plan), plan
    looked()
    with site.connect() as at:
        prepared = running.prepare(at, KEY, look, plan, rules)
        running.keep(at, KEY, plan)
    assert not prepared.waits
    if prepared.order:
        site.carry_out(prepared.order)


def with_records() -> Site:
    """What is in use by a silent cluster, a pin, an approval that was used, and v1 in the trash for a day."""
    site = Site(time=NOW - DAY)
    site.carry_out(site.order(delete=(site.image("v1"),)))
    site.time = NOW
    with site.connect() as at:
        ledger = store.read(at, KEY).reported("uid", "silent", (Use("app:v2"),), NOW - 3600, kept=DAY)
        store.write(at, KEY, ledger)
        store.restate(at, KEY, lambda one: one.pinned(Pin("app:v3", "mine", NOW - DAY)).with_approval("sha256:1", 5))
        store.spend(at, KEY, lambda one: replace(one, approvals={"sha256:1": 5}, window=7 * DAY))
    return site


def state(site: Site) -> dict[str, object]:
    """What must not depend on an answer that was wrong for a moment."""
    with site.connect() as at:
        said, spent = store.read_said(at, KEY), store.read_spent(at, KEY)
        return {
            "tags": dict(site.app.tags),
            "manifests": {*site.app.manifests},
            "trash": {one.key: ({*one.tags}, one.complete) for one in store.read_trash(at, KEY)},
            "clusters": store.read(at, KEY).clusters,
            "pins": said.pins,
            "approved": said.after(spent).approved,
            "window": spent.window,
        }


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_one_404_that_is_none_changes_nothing_in_the_end(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """zot makes a 404 of a storage error. After one at any request, the next runs end as they do without."""
    monkeypatch.setattr("kubeadm_registry.registry.retries.time.sleep", lambda _: None)
    monkeypatch.setattr(reading.read, "__kwdefaults__", {**reading.read.__kwdefaults__, "workers": 1})
    undisturbed = with_records()
    retained(undisturbed)
    expected = state(undisturbed)
    assert undisturbed.tags() == ["v2", "v3", "v5", "v6", "v7", "v8"]
    for number in itertools.count():
        site, asked = with_records(), list[str]()

        def lies(request: httpx.Request, number: int = number, asked: list[str] = asked) -> httpx.Response | None:
            if request.method != method:
                return None
            asked.append(request.url.path)
            return httpx.Response(404) if len(asked) == number + 1 else None

        site.meddle = lies
        with suppress(Error):
            retained(site)
        site.meddle = nothing
        for minutes in (10, 20):
            site.time = NOW + minutes * 60
            retained(site)
        assert state(site) == expected, (number, asked[number:])
        if number >= len(asked):
            assert number > (3 if method == "DELETE" else 15)
            break


NEWEST = policy.parse(
    """\
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryPolicy
spec:
  approval: Automatic
  maximumShare: 100
  sets: []
  untagged: {after: 1d}
  rules: [{name: apps, repositories: [app], keep: {newest: 4}}]
""",
    "policy.yaml",
)


def by_age() -> Site:
    """The images of ``app`` were pushed on one day each, and after them an index with a signature."""
    site = Site(time=NOW)
    del site.registry.store["app"]
    with site.connect() as at:
        store.write(at, KEY, Ledger())
    for day, tag in enumerate([*TAGS, "index"]):
        parts = {name: site.registry.image("app", layer=name.encode()) for name in ("amd64", "arm64")}
        if tag == "index":
            index = site.registry.index("app", tag, **parts)
            site.registry.image("app", layer=b"about it", subject=plain(index))
        else:
            site.registry.image("app", tag, layer=tag.encode())
        site.time = NOW + day * DAY
        planning.look(site.connect, KEY, NEWEST, int(site.time), sets={})
    site.time += 30 * DAY
    return site


def ages(site: Site) -> object:
    """What the next look knows of the images that are not in the trash, and since when of all of them."""
    app = planning.look(site.connect, KEY, NEWEST, int(site.time), sets={}).after.repositories["app"]
    tags = {tag: one for tag, one in app.tags.items() if not tag.startswith("trash-")}
    return tags, {digest: seen.first_seen for digest, seen in app.manifests.items()}


@pytest.mark.parametrize("of", ["", "/manifests/", "list"])
@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_many_404s_in_looks_have_nothing_deleted_that_stays_without_them(
    share: float, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubeadm_registry.registry.retries.time.sleep", lambda _: None)
    monkeypatch.setattr(reading.read, "__kwdefaults__", {**reading.read.__kwdefaults__, "workers": 1})
    began = by_age()
    undisturbed = copy.deepcopy(began)
    retained(undisturbed, NEWEST)
    stays, goes = {*undisturbed.tags()}, undisturbed.trash().images.keys()
    assert stays == {"v6", "v7", "v8", "index"}
    for seed in range(5):
        random, site, lied = Random(seed), copy.deepcopy(began), list[str]()

        def lies(request: httpx.Request, random: Random = random, lied: list[str] = lied) -> httpx.Response | None:
            path = request.url.path
            if of not in path or "/retention/" in path or random.random() >= share:
                return None
            lied.append(path)
            return httpx.Response(404)

        for _ in range(3):
            site.meddle = lies
            retained(site, NEWEST, lambda site=site: setattr(site, "meddle", nothing))  # type: ignore[misc]
            assert {*site.tags()} >= stays
            assert site.trash().images.keys() <= goes
            site.time += 3600
        retained(site, NEWEST)
        assert (site.tags(), ages(site)) == (undisturbed.tags(), ages(undisturbed))
        assert lied or share < 1


def test_a_tag_that_is_listed_and_not_found_is_given_to_no_image_that_comes_back(site: Site, trashed: Trashed) -> None:
    """It may mean a newer one."""
    newer = site.registry.image("app", "v1", layer=b"newer")
    order = site.order(restore=(Restore(trashed, "asked for"),))
    site.meddle = lambda request: (
        httpx.Response(404) if (request.method, request.url.path) == ("HEAD", "/v2/app/manifests/v1") else None
    )
    run = site.carry_out(order)
    assert (run.restored, run.skipped) == (0, 1)
    assert "the registry lists its tag v1 and does not find it" in run.said[0]
    assert site.app.tags["v1"] == newer.digest
    assert trashed.key in site.trash().images
    site.meddle = nothing
    del site.app.tags["v1"]
    assert site.carry_out(order).restored == 1
    assert site.app.tags["v1"] == trashed.digest


@pytest.mark.parametrize("again", [False, True], ids=["", "the earlier one came back and went again"])
def test_of_two_images_that_had_a_tag_it_comes_back_to_the_one_that_had_it_last(
    site: Site, trashed: Trashed, again: bool
) -> None:
    site.registry.image("app", "v1", layer=b"later")
    later = replace(site.image("v1"), tags={"v1": NOW + DAY})
    site.time += 2 * DAY
    planning.look(site.connect, KEY, POLICY, int(site.time), sets={})
    site.carry_out(site.order(delete=(later,)))
    if again:
        site.carry_out(site.order(restore=(Restore(trashed, "undo"),)))
        site.time += DAY
        planning.look(site.connect, KEY, POLICY, int(site.time), sets={})
        site.carry_out(site.order(delete=(site.image("v1"),)))
    assert "v1" not in site.tags()
    both = site.trash().images
    restore = (Restore(both[trashed.key], "asked for"), Restore(both[later.key], "asked for"))
    last, seen = (trashed, NOW - 90 * DAY) if again else (later, NOW + DAY)
    assert site.carry_out(site.order(restore=restore)).restored == 2
    assert site.app.tags["v1"] == last.digest
    look = planning.look(site.connect, KEY, POLICY, int(site.time), sets={})
    assert look.after.repositories["app"].tags["v1"] == Tag(last.digest, seen)


def test_a_tag_that_distribution_lists_without_a_manifest_is_given_back(site: Site, trashed: Trashed) -> None:
    """It deletes a manifest first, and then the tags that it had."""
    site.registry.untags = False
    site.app.tags["v1"] = "sha256:" + "0" * 64
    assert site.carry_out(site.order(restore=(Restore(trashed, "asked for"),))).restored == 1
    assert site.app.tags["v1"] == trashed.digest


@pytest.mark.parametrize("hidden", ["manifest", "layer"])
@pytest.mark.parametrize("record", [store.LEDGER, store.TRASH, store.STANDING, store.SPENT], ids=lambda one: one.tag)
def test_a_record_that_is_listed_and_not_found_is_out_of_reach(record: Record, site: Site, hidden: str) -> None:
    with site.connect() as at:
        for one in (store.TRASH, store.STANDING, store.SPENT):
            assert one.read(at, KEY) is None, "before the first there is none"
        record.write(at, KEY, b"{}")
        kept = site.registry.store[store.REPOSITORY]
        digest, place = kept.tags[record.tag], kept.manifests
        if hidden == "layer":
            digest, place = json.loads(kept.manifests[digest])["layers"][0]["digest"], kept.blobs
        content = place.pop(digest)
        with pytest.raises(RegistryError) as error:
            record.read(at, KEY)
        assert error.value.temporary
        assert (error.value.code, "forget" in error.value.hint) == (record.code, True)
        place[digest] = content
        assert record.read(at, KEY) == b"{}"


def test_where_nothing_is_listed_and_the_canary_image_is_not_found_no_record_is_taken_for_empty(site: Site) -> None:
    site.meddle = lambda _: httpx.Response(404)
    with site.connect() as at, pytest.raises(RegistryError) as error:
        store.LEDGER.read(at, KEY)
    assert (error.value.code, error.value.temporary) == ("RegistryNotWhole", True)


def test_a_pin_that_comes_and_goes_while_earlier_records_are_deleted_leaves_the_record_there(site: Site) -> None:
    """Then the record says again what one of those said."""
    with site.connect() as at:
        store.restate(at, KEY, lambda one: one.pinned(Pin("app:v8", "for ever", NOW)))
        planning.look(site.connect, KEY, POLICY, NOW, sets={})  # the ledger knows that record
        store.restate(at, KEY, lambda one: one.pinned(Pin("app:v7", "for a moment", NOW)))
    came: list[str] = []

    def unpin(request: httpx.Request) -> None:
        if request.method == "DELETE" and f"/{store.REPOSITORY}/" in request.url.path and not came:
            came.append(request.url.path)
            with within(site.registry)() as at:
                store.restate(at, KEY, lambda one: one.unpinned("app:v7"))

    site.meddle = unpin
    site.carry_out(site.order(sweep={"app": ()}))
    assert came
    with site.connect() as at:
        assert [one.name for one in store.read_said(at, KEY).pins] == ["app:v8"]


# ---- what changes between the look and the run -------------------------------------------------------------------


@dataclass
class Distribution(Site):
    """A registry that deletes what an index needs. v1 is an index, and with its part in the trash for long enough."""

    registry: Repositories = field(default_factory=lambda: Repositories(untags=False, referrers=False))
    time: float = NOW - 30 * DAY

    def __post_init__(self) -> None:
        Site.__post_init__(self)
        with self.connect() as at:  # no look comes before the one by which it was written
            store.write(at, KEY, replace(store.read(at, KEY), written=int(self.time)))
        part = self.registry.image("app", layer=b"part")
        self.registry.index("app", "v1", old=part)
        self.mine = self.registry.index("app", "", mine=part)
        self.content = self.app.manifests.pop(self.mine.digest)
        self.look(self.time)
        self.whole = replace(self.image("v1"), parts=(part.digest,))
        self.carry_out(self.order(delete=(self.whole,)))
        self.part, self.time = part.digest, NOW

    def look(self, now: float) -> planning.Look:
        return planning.look(self.connect, KEY, POLICY, int(now), sets={})

    def push(self) -> None:
        """Push an index, which is taken because its part is there."""
        assert self.part in self.app.manifests
        self.app.manifests[self.mine.digest] = self.content
        self.app.tags["mine"] = self.mine.digest

    def remove(self) -> None:
        """Delete it again."""
        del self.app.manifests[self.mine.digest], self.app.tags["mine"]


@pytest.fixture
def distribution(monkeypatch: pytest.MonkeyPatch) -> Distribution:
    monkeypatch.setattr("kubeadm_registry.registry.retries.time.sleep", lambda _: None)
    return Distribution()


def to_purge_v1(site: Distribution) -> Order:
    """The order of a look that finds nothing that needs the part."""
    look = site.look(site.time)
    plan = look.plan(POLICY)
    assert isinstance(plan, Plan), plan
    order = look.order(replace(plan, deletions=()), POLICY, approved=False)
    assert [(one.digest, one.parts) for one in order.purge] == [(site.whole.digest, (site.part,))]
    return order


@pytest.mark.parametrize(
    ("seconds", "before"), [(30, False), (0, False), (-60, False), (30, True)],
    ids=["later", "in the same second", "begun earlier", "there before"],
)  # fmt: skip
def test_what_an_index_needs_that_was_pushed_since_the_order_stays_if_another_look_has_seen_it(
    distribution: Distribution, seconds: int, before: bool
) -> None:
    """The timer, a command or the operator of another cluster may look before the executor reads the ledger."""
    if before:  # then the ledger has it as old as it was
        distribution.push()
        distribution.look(NOW - 2 * DAY)
        distribution.remove()
        distribution.look(NOW - DAY)
    order = to_purge_v1(distribution)
    distribution.push()
    distribution.look(NOW + seconds)
    distribution.time += 60
    distribution.carry_out(order)
    assert distribution.part in distribution.app.manifests
    assert distribution.app.manifests[distribution.mine.digest] == distribution.content


def test_without_a_push_the_part_goes_whoever_has_looked(distribution: Distribution) -> None:
    order = to_purge_v1(distribution)
    distribution.look(NOW + 30)
    assert distribution.carry_out(order).purged == 1
    assert not {distribution.part, distribution.whole.digest} & distribution.app.manifests.keys()


def test_what_the_order_knew_is_not_read_again(distribution: Distribution) -> None:
    order = to_purge_v1(distribution)
    kept = distribution.app.tags["v5"]
    read: list[str] = []
    distribution.meddle = lambda request: read.append(request.url.path) if request.method == "GET" else None
    distribution.carry_out(order)
    assert not [path for path in read if kept in path]


def test_an_image_that_was_tagged_since_the_order_stays_if_another_look_has_seen_the_tag(site: Site) -> None:
    order = to_delete(site)
    site.app.tags["mine"] = site.app.tags["v1"]
    planning.look(site.connect, KEY, POLICY, int(site.time) + 30, sets={})
    site.time += 60
    run = site.carry_out(replace(order, approval=""))
    assert (run.deleted, run.skipped) == (2, 1)
    assert "skipped app:v1: it was tagged mine meanwhile" in run.said
    assert {"v1", "mine"} <= {*site.tags()}


# ---- what changes while a run goes on ----------------------------------------------------------------------------


def after_the_first(site: Site, happens: Callable[[], None]) -> None:
    """Let that happen once the first image is done."""

    def tell(line: str) -> None:
        if not site.told:
            happens()
        site.told.append(line)

    site.tell = tell


def to_delete(site: Site) -> Order:
    """The order to delete the first three images, by an approval."""
    return site.order(delete=tuple(map(site.image, TAGS[:3])), approved=True, approval="sha256:1")


def to_purge(site: Site) -> Order:
    """The order to delete these for good."""
    site.carry_out(replace(to_delete(site), approval=""))
    site.time += 8 * DAY
    site.told.clear()
    return site.order(purge=tuple(site.trash().images.values()), approved=True, approval="sha256:1")


@pytest.mark.parametrize("by", ["tag", "tag of another digest", "digest", "digest alone", "imageID"])
def test_what_another_cluster_says_after_the_order_that_it_uses_does_not_go_for_good(site: Site, by: str) -> None:
    """Its operator may have looked at the same time, with a report that the ledger of the order did not have."""
    order = to_purge(site)
    first, *others = order.purge
    names = {
        "tag": Use("10.0.0.10:5000/app:v1"), "tag of another digest": Use(f"app:v1@sha256:{64 * 'e'}"),
        "digest": Use(f"app@{first.digest}"), "digest alone": Use(first.digest),
        "imageID": Use("elsewhere:v1", f"elsewhere@{first.digest}"),
    }  # fmt: skip
    with site.connect() as at:
        later = store.read(at, KEY).reported("u", "another", (names[by],), int(site.time) - 5, kept=DAY)
        store.write(at, KEY, later)
    run = site.carry_out(order)
    assert (run.purged, run.skipped) == (len(others), 1)
    assert run.said[0].startswith("skipped app:v1: it is used by ")
    assert site.trash().images.keys() == {first.key}
    look = planning.look(site.connect, KEY, POLICY, int(site.time), sets={})
    plan = look.plan(POLICY)
    assert isinstance(plan, Plan)
    assert [one.image.key for one in look.order(plan, POLICY, approved=False).restore] == [first.key]


@pytest.mark.parametrize("moved", [False, True], ids=["it was used", "its tag means another image"])
def test_what_is_not_in_use_now_goes_for_good(site: Site, moved: bool) -> None:
    order = to_purge(site)
    if moved:
        site.registry.image("app", "v1", layer=b"newer")
        planning.look(site.connect, KEY, POLICY, int(site.time), sets={})
    with site.connect() as at:
        use = Use("app:v1", last_seen=None if moved else NOW)
        store.write(at, KEY, store.read(at, KEY).reported("u", "another", (use,), int(site.time), kept=DAY))
    assert site.carry_out(order).purged == 3


@pytest.fixture(params=[to_delete, to_purge])
def order(request: pytest.FixtureRequest, site: Site) -> Order:
    made: Order = request.param(site)
    with site.connect() as at:
        store.restate(at, KEY, lambda one: one.with_approval("sha256:1", 5))
    return made


def waiting(site: Site, order: Order) -> int:
    """How many images of *order* are still as they were."""
    if order.purge:
        return sum(one.digest in site.app.manifests for one in order.purge)
    kept = [one for one in order.delete if one.tags.keys() <= {*site.tags()}]
    assert not {one.key for one in kept} & site.trash().images.keys(), "what is not deleted is not in the trash"
    return len(kept)


def say(site: Site, change: Callable[[Standing], Standing]) -> None:
    with within(site.registry)() as at:
        store.restate(at, KEY, change)


def is_approved(site: Site) -> bool:
    with site.connect() as at:
        return "sha256:1" in store.read_standing(at, KEY).approved


def test_the_approval_stands_for_what_an_order_had_no_room_for(site: Site, order: Order) -> None:
    run = site.carry_out(replace(order, left=5))
    assert (run.left, waiting(site, order), run.error) == (5, 0, "")
    assert is_approved(site)


def test_an_order_deletes_for_ten_minutes_and_the_next_one_does_the_rest(site: Site, order: Order) -> None:
    after_the_first(site, lambda: setattr(site, "time", site.time + 601))
    run = site.carry_out(order)
    assert (run.left, waiting(site, order), run.error) == (2, 2, "")
    assert "2 left for the next run" in run.summary()
    assert Run.parse(run.to_dict()) == run
    assert is_approved(site), "for what is left"
    assert site.refused(order).code == "OrderRefused"
    assert waiting(site, order) == 2
    run = site.carry_out(replace(order, made=int(site.time), delete=order.delete[1:], purge=order.purge[1:]))
    assert (run.left, waiting(site, order), is_approved(site)) == (0, 0, False)


def test_a_pause_in_the_middle_of_a_run_stops_it(site: Site, order: Order) -> None:
    def pause() -> None:
        say(site, lambda one: replace(one, paused=NOW, why="wait"))
        site.time += 10

    after_the_first(site, pause)
    assert "retention is paused: wait" in site.refused(order).message
    assert (waiting(site, order), is_approved(site)) == (2, True)
    say(site, lambda one: replace(one, paused=None))
    site.carry_out(replace(order, delete=order.delete[1:], purge=order.purge[1:]))
    assert waiting(site, order) == 0


def test_a_registry_that_is_not_whole_any_more_in_the_middle_of_a_run_stops_it(site: Site, order: Order) -> None:
    after_the_first(site, lambda: setattr(site, "doubted", NOT_WHOLE))
    assert "[RegistryNotWhole]" in site.refused(order).message
    assert (waiting(site, order), is_approved(site)) == (2, True)
    site.doubted = ()
    site.carry_out(replace(order, delete=order.delete[1:], purge=order.purge[1:]))
    assert waiting(site, order) == 0


def test_an_approval_that_is_withdrawn_after_the_look_lets_nothing_go(site: Site) -> None:
    order = to_delete(site)
    say(site, lambda one: one.with_approval("sha256:1", 5).with_approval("sha256:2", 5))
    say(site, lambda one: one.without_approval("sha256:1"))
    error = site.refused(order)
    assert "the approval of plan sha256:1 was withdrawn or is used up [ApprovalMissing]" in error.message
    assert (waiting(site, order), site.trash().images) == (3, {})
    assert site.carry_out(replace(order, approval="sha256:2")).deleted == 3


def test_an_approval_is_for_one_run(site: Site) -> None:
    say(site, lambda one: one.with_approval("sha256:1", 5))
    order = to_delete(site)
    site.carry_out(replace(order, delete=order.delete[:1]))
    assert "used up" in site.refused(order).message
    assert waiting(site, order) == 2


def test_an_approval_that_is_withdrawn_in_the_middle_of_a_run_stops_it(site: Site) -> None:
    order = to_delete(site)
    say(site, lambda one: one.with_approval("sha256:1", 5))

    def reject() -> None:
        say(site, lambda one: one.without_approval("sha256:1"))
        site.time += 10

    after_the_first(site, reject)
    assert "nothing more is deleted: the approval of plan sha256:1 was withdrawn" in site.refused(order).message
    assert waiting(site, order) == 2


def test_the_trash_is_emptied_without_an_approval(site: Site) -> None:
    order = to_purge(site)
    assert site.carry_out(order).purged == 3


@pytest.mark.parametrize("name", ["app:v2", "10.0.0.10:5000/app:v2", "app@{}"])
def test_what_is_pinned_in_the_middle_of_a_run_stays(site: Site, order: Order, name: str) -> None:
    digest = next(one.digest for one in (*order.delete, *order.purge) if "v2" in one.tags)

    def pin() -> None:
        say(site, lambda one: one.pinned(Pin(name.format(digest), "a customer runs it", NOW)))
        site.time += 10

    after_the_first(site, pin)
    run = site.carry_out(order)
    assert (run.skipped, waiting(site, order)) == (1, 1)
    assert any("it is pinned as" in line and "a customer runs it" in line for line in run.said)
    assert digest in site.app.manifests


def test_a_pin_that_ended_or_is_for_another_image_keeps_nothing(site: Site, order: Order) -> None:
    for pin in (Pin("app:v2", "over", 1, NOW - 1), Pin("app:v7", "x", 1), Pin("other/app:v2", "x", 1)):
        say(site, lambda one, pin=pin: one.pinned(pin))  # type: ignore[misc]
    assert site.carry_out(order).skipped == 0
    assert waiting(site, order) == 0


def test_what_went_for_good_is_new_when_it_is_pushed_again(site: Site) -> None:
    site.carry_out(to_purge(site))
    image = site.registry.image("app", "v1", layer=b"v1")
    look = planning.look(site.connect, KEY, POLICY, int(site.time), sets={})
    app = look.after.repositories["app"]
    assert app.manifests[image.digest].first_seen == site.time
    assert app.manifests[app.tags["v8"].digest].first_seen == NOW - 90 * DAY


def test_a_tag_that_has_moved_on_is_no_younger_when_its_earlier_image_comes_back(site: Site, trashed: Trashed) -> None:
    """Else the image that has it now would be the newest, and take the place of another."""
    newer = site.registry.image("app", "v1", layer=b"newer")
    planning.look(site.connect, KEY, POLICY, int(site.time), sets={})
    site.time += 5 * DAY
    site.carry_out(site.order(restore=(Restore(trashed, "asked for"),)))
    look = planning.look(site.connect, KEY, POLICY, int(site.time), sets={})
    assert look.after.repositories["app"].tags["v1"] == Tag(newer.digest, NOW)


def looked(site: Site, meanwhile: Callable[[], object], *, late: bool, rules: RegistryPolicy = POLICY) -> planning.Look:
    """A look in which *meanwhile* happens after the ledger was read; *late*: after the images were as well."""
    connected = itertools.count()

    def connect() -> Api:
        if next(connected) == 1 and not late:
            meanwhile()
        return site.connect()

    def pulls() -> None:
        if late:
            meanwhile()

    return planning.look(connect, KEY, rules, int(site.time), sets={}, pulls=pulls)


@pytest.mark.parametrize("late", [False, True], ids=["before it reads the images", "after that"])
def test_an_image_that_comes_back_during_a_look_is_as_old_as_it_was(site: Site, trashed: Trashed, late: bool) -> None:
    """Else it would be the newest, and take the place of another. The look has read the ledger before."""
    for _ in range(2):
        planning.look(site.connect, KEY, POLICY, int(site.time), sets={})
        site.time += 5 * DAY
    during = looked(site, lambda: site.carry_out(site.order(restore=(Restore(trashed, "undo"),))), late=late)
    for look in (*([] if late else [during]), planning.look(site.connect, KEY, POLICY, int(site.time) + 60, sets={})):
        assert look.after.repositories["app"].tags["v1"] == Tag(trashed.digest, NOW - 90 * DAY)


def test_an_image_that_goes_to_the_trash_during_a_look_takes_the_place_of_none(site: Site) -> None:
    """Its tag in the trash is younger than all, and was in the record of the trash only after the look had read it."""
    newest = policy.parse(POLICY_TEXT.replace("tags: [v5, v6, v7, v8]", "newest: 1"), "policy.yaml")
    site.registry.image("app", "v9", layer=b"v9")
    planning.look(site.connect, KEY, newest, NOW, sets={})
    site.time += 10 * DAY
    look = looked(site, lambda: site.carry_out(site.order(delete=(site.image("v1"),))), late=False, rules=newest)
    plan = look.plan(newest)
    assert isinstance(plan, Plan)
    assert {one.tag for one in plan.deletions} == {*TAGS} - {"v1"}
    assert site.trash().tags()["app"] == look.after.repositories["app"].trash


@pytest.mark.parametrize("late", [False, True], ids=["before it reads the images", "after that"])
def test_what_went_for_good_during_a_look_is_new_when_it_is_pushed_again(site: Site, late: bool) -> None:
    order = to_purge(site)
    looked(site, lambda: site.carry_out(order), late=late)
    image = site.registry.image("app", "v1", layer=b"v1")
    assert image.digest in {one.digest for one in order.purge}
    look = planning.look(site.connect, KEY, POLICY, int(site.time) + 60, sets={})
    assert look.after.repositories["app"].manifests[image.digest].first_seen >= site.time


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after it"])
@pytest.mark.parametrize("status", [0, 500], ids=["killed", "registry gone"])
def test_a_run_that_ends_at_any_write_leaves_no_approval_by_which_something_has_gone(
    status: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what `retention undo` brings back would go again by it."""
    monkeypatch.setattr("kubeadm_registry.registry.retries.time.sleep", lambda _: None)
    for patience in ("kubeadm_registry.executor.run.PATIENCE", "kubeadm_registry.executor.images.PATIENCE"):
        monkeypatch.setattr(patience, 0.0)
    monkeypatch.setattr(store, "PATIENCE", 0.0)
    began, approved = Site(), []
    say(began, lambda one: one.with_approval("sha256:1", 5))
    for number in itertools.count():
        site, written = copy.deepcopy(began), list[str]()

        def ends(
            request: httpx.Request, number: int = number, site: Site = site, written: list[str] = written
        ) -> httpx.Response | None:
            if request.method in ("PUT", "DELETE"):
                written.append(request.url.path)
            if len(written) <= number:
                return None
            if after and len(written) == number + 1 and request.method in ("PUT", "DELETE"):
                answered(site.registry, request)
            if not status:
                raise Killed
            return httpx.Response(status)

        site.meddle = ends
        with suppress(Killed, Error):
            site.carry_out(to_delete(site))
        site.meddle = nothing
        gone = site.tags() != began.tags() or bool(site.trash().images)
        assert not (is_approved(site) and gone), written[number:]
        approved.append(is_approved(site))
        if len(written) <= number:
            break
    assert True in approved, "it ended before anything was done"
    assert approved.count(False) > 10


class Killed(Exception):
    """The process is gone."""


def killed_when(done: Callable[[httpx.Request], bool]) -> Callable[[httpx.Request], None]:
    """Answers nothing more from the first request on for which *done* is true."""
    dead: list[bool] = []

    def kill(request: httpx.Request) -> None:
        if dead or done(request):
            dead.append(True)
            raise Killed

    return kill


def test_what_a_killed_run_deleted_for_good_is_new_when_it_is_pushed_again(site: Site) -> None:
    order = to_purge(site)
    site.meddle = killed_when(lambda _: not {one.digest for one in order.purge} & site.app.manifests.keys())
    with suppress(Killed):
        site.carry_out(order)
    site.meddle = nothing
    retained(site)
    assert not site.trash().images.keys() & {one.key for one in order.purge}
    image = site.registry.image("app", "v1", layer=b"v1")
    look = planning.look(site.connect, KEY, POLICY, int(site.time), sets={})
    assert look.after.repositories["app"].manifests[image.digest].first_seen == site.time


@dataclass(frozen=True, slots=True)
class Here(Node):
    """A node that holds the lease of *site*'s registry."""

    site: Site = field(default_factory=Site)

    def connect(self) -> Api:  # type: ignore[override]
        return self.site.connect()

    def carry_out(self, registry: Api, order: Order) -> Run:
        return self.site.carry_out(order)


def test_the_timer_makes_another_plan_for_what_one_run_has_no_time_for(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY_TEXT)
    monkeypatch.setattr("time.time", lambda: site.time)
    after_the_first(site, lambda: setattr(site, "time", site.time + 601))
    settings = Settings("cp-1", "https://127.0.0.1:5000", "ca", "retention", "secret", KEY, "agent.json")
    run = program._due(tmp_path, Here(settings, 7, site))
    assert run is not None
    assert (run.deleted, run.left) == (3, 0)
    assert "1 to the trash, 0 restored, 0 deleted permanently, 3 left for the next run" in capsys.readouterr().out
    assert site.tags() == ["v5", "v6", "v7", "v8"]


def test_the_timer_keeps_the_pause_image_in_its_settings(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY_TEXT)
    monkeypatch.setattr("time.time", lambda: site.time)
    settings = Settings(
        "cp-1", "https://127.0.0.1:5000", "ca", "retention", "secret", KEY, "agent.json",
        sandbox_image="10.0.0.10:5000/app:v1",
    )  # fmt: skip
    assert program._due(tmp_path, Here(settings, 7, site)) is not None
    assert site.tags() == ["v1", "v5", "v6", "v7", "v8"]


CLUSTER = Ledger().reported("uid", "prod", (), NOW, kept=0).clusters


def forgotten_cluster(site: Site) -> None:
    with site.connect() as at:
        store.write(at, KEY, store.read(at, KEY).forgotten("uid"))


def forgotten_operator(site: Site) -> None:
    """As `retention forget --standing` does it."""
    with site.connect() as at:
        store.SPENT.write(at, KEY, Spent().to_json())


@pytest.mark.parametrize(
    ("clusters", "spent", "said", "remedy", "forget"),
    [
        (CLUSTER, Spent(), "1 cluster reported before: prod", "retention forget NAME", forgotten_cluster),
        ({}, Spent(callers={"lease": 4}), "an operator gave orders before", "forget --standing", forgotten_operator),
    ],
    ids=["a cluster", "an operator"],
)
def test_the_timer_does_nothing_where_a_cluster_uses_the_registry(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clusters: Mapping[str, ClusterUses], spent: Spent,
    said: str, remedy: str, forget: Callable[[Site], None],
) -> None:  # fmt: skip
    """What has begun to use an image since the last report is known to nobody here."""
    (tmp_path / "policy.yaml").write_text(POLICY_TEXT)
    monkeypatch.setattr("time.time", lambda: site.time)
    with site.connect() as at:
        store.write(at, KEY, replace(store.read(at, KEY), clusters=clusters))
        store.SPENT.write(at, KEY, spent.to_json())
    here = Here(Settings("cp-1", "https://127.0.0.1:5000", "ca", "retention", "secret", KEY, "agent.json"), 7, site)
    with pytest.raises(Error, match=said) as caught:
        program._due(tmp_path, here)
    assert caught.value.code == "WorkloadsUnknown"
    assert "retention timer disable" in caught.value.hint and remedy in caught.value.hint
    assert site.tags() == sorted(TAGS)
    forget(site)
    assert program._due(tmp_path, here) is not None
    assert site.tags() != sorted(TAGS)


def test_the_journal_has_what_to_do_about_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the timer nobody else hears."""

    def fail(*_: object) -> None:
        raise Error("the timer cannot", code="WorkloadsUnknown", hint="run something else")

    monkeypatch.setattr(program.executor_files, "load", fail)
    assert program.main(["--config", str(tmp_path / "config.json"), "--timer"]) == 1
    assert capsys.readouterr().out == "failed [WorkloadsUnknown]: the timer cannot; run something else\n"
