"""Deltas: what they hold and say, how they are verified and compared, and where they may be seeded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import pki
from kubeadm_registry.bundle import Bundle, diff, inspect, problems, verify
from kubeadm_registry.bundle.lineage import BASE, LEFT_OUT, ROOT, SEQUENCE
from kubeadm_registry.bundle.make import FromLayout, choose, create
from kubeadm_registry.bundle.make.remote import FromRegistries
from kubeadm_registry.errors import BundleError, Error, RegistryError
from kubeadm_registry.images import seed, seeded
from kubeadm_registry.images.journal import Journal
from kubeadm_registry.oci import descriptors as oci
from tests.unit.bundle_files import contents, resealed, script, write_layout
from tests.unit.fake_cluster import authority
from tests.unit.fake_registry import FakeRegistry, connector, serving
from tests.unit.fake_upstream import FakeUpstream
from tests.unit.fake_upstream import serving as upstream_serving
from tests.unit.test_seed import run

PAUSE, APP, PROXY = "registry.k8s.io/pause:3.10", "quay.io/org/app:v1", "registry.k8s.io/kube-proxy:v1.36.3"
BIG, SMALL, NEW = b"big" * 10_000, b"small" * 100, b"new" * 5_000


def layered(name: str, *layers: bytes) -> dict[str, bytes]:
    """A layout with one image of those layers."""
    files = {oci.LAYOUT_FILE: oci.LAYOUT}

    def blob(content: bytes, media_type: str) -> oci.Descriptor:
        digest = oci.digest_of(content)
        files[oci.blob_name(digest)] = content
        return oci.Descriptor(media_type=media_type, digest=digest, size=len(content))

    config = blob(name.encode(), "application/vnd.oci.image.config.v1+json")
    manifest = oci.Manifest(config=config, layers=tuple(blob(layer, oci.LAYER) for layer in layers))
    entry = blob(manifest.to_json(), oci.MANIFEST).model_copy(update={"annotations": {oci.REFERENCE_NAME: name}})
    files[oci.INDEX_FILE] = oci.Index(manifests=(entry,)).to_json()
    return files


def bundle(path: Path, images: dict[str, tuple[bytes, ...]], since: Path | None = None, garage: str = "") -> Path:
    sources = []
    for number, (name, layers) in enumerate(images.items()):
        sources.append(FromLayout(write_layout(path.with_suffix(f".{number}"), layered(name, *layers))))
    programs = choose(["garage"], {"garage": script(path.parent / "garage", garage)}) if garage else {}
    create(path, programs, images=sources, since=since, cache=path.parent / "cache")
    return path


def blobs(path: Path) -> set[bytes]:
    """The contents in a bundle that are no JSON."""
    return {held for held in contents(path).values() if not held.startswith(b"{")}


class Line:
    """A full bundle and the deltas that follow on it."""

    def __init__(self, folder: Path) -> None:
        self.full = bundle(folder / "full.tar", {PAUSE: (SMALL,), APP: (BIG, SMALL)}, garage="garage v2.3.0")
        moved = {PAUSE: (SMALL,), PROXY: (BIG, NEW)}  # the app is gone, and another image has its layer
        self.first = bundle(folder / "first.tar", moved, self.full, garage="garage v2.3.0")
        self.second = bundle(folder / "second.tar", {PROXY: (NEW, b"third"), APP: (BIG,)}, self.first, "garage v2.4.0")
        self.sibling = bundle(folder / "sibling.tar", {PAUSE: (SMALL, b"sibling")}, self.full)
        self.stranger = bundle(folder / "stranger.tar", {PAUSE: (b"another",)})


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    return Line(tmp_path_factory.mktemp("line"))


def test_holds_only_what_is_new(line: Line) -> None:
    assert blobs(line.first) == {NEW, PROXY.encode()}
    with Bundle.open(line.first) as delta, Bundle.open(line.full) as full:
        place, before = delta.layout.lineage, full.layout.lineage
        assert (before.sequence, before.base, before.root) == (0, "", before.index)
        assert (place.sequence, place.base, place.root) == (1, before.index, before.index)
        assert place.left_out[oci.digest_of(BIG)] == APP, "and says which image has the rest"
        assert set(delta.images) == {PAUSE, PROXY}
        assert delta.programs["garage"].digest in place.left_out
    assert line.first.stat().st_size < line.full.stat().st_size


def test_a_delta_of_a_delta(line: Line) -> None:
    """It leaves out what the one before it left out as well, and holds again what that one no longer had."""
    with Bundle.open(line.second) as delta:
        assert delta.layout.lineage.sequence == 2
        assert oci.digest_of(BIG) in delta.layout.lineage.left_out
        assert delta.layout.lineage.left_out[oci.digest_of(NEW)] == PROXY
        assert not delta.layout.has(delta.programs["garage"].digest) or delta.programs["garage"].version == "2.4.0"
    assert {b"third", APP.encode()} <= blobs(line.second)


def test_the_same_inputs_give_the_same_bytes(line: Line, tmp_path: Path) -> None:
    moved = {PROXY: (BIG, NEW), PAUSE: (SMALL,)}
    again = bundle(tmp_path / "again.tar", moved, line.full, garage="garage v2.3.0")
    assert again.read_bytes() == line.first.read_bytes()


def test_verified_alone_and_with_its_base(line: Line) -> None:
    verify(line.first)
    verify(line.first, bases=[line.full])
    verify(line.second)
    verify(line.second, bases=[line.first, line.full])
    told = inspect(line.first)
    assert (told["sequence"], told["base"]) == (1, inspect(line.full)["index"])
    assert told["leftOut"] > len(BIG) + len(SMALL)


def test_verified_with_another_base(line: Line) -> None:
    for delta, bases in [(line.first, [line.stranger]), (line.second, [line.first])]:
        [problem] = problems(delta, bases=bases)
        assert problem.code == "BundleBaseMissing"
        assert f"{oci.digest_of(BIG)} (of " in problem.message
        assert inspect(delta)["base"] in problem.hint


def test_verified_with_a_damaged_base(line: Line, tmp_path: Path) -> None:
    files = contents(line.full)
    name = oci.blob_name(oci.digest_of(BIG))
    damaged = write_layout(tmp_path / "damaged.tar", files | {name: files[name][:-1] + b"!"})
    assert {problem.code for problem in problems(line.first, bases=[damaged])} == {"BundleDamaged"}


def changed(path: Path, to: Path, edit: Any) -> Path:
    files = contents(path)
    index = json.loads(files[oci.INDEX_FILE])
    edit(index["annotations"])
    return write_layout(to, resealed(files | {oci.INDEX_FILE: json.dumps(index).encode()}))


def test_what_is_lost_is_not_left_out(line: Line, tmp_path: Path) -> None:
    files = contents(line.first)
    del files[oci.blob_name(oci.digest_of(NEW))]
    assert "BundleIncomplete" in {problem.code for problem in problems(write_layout(tmp_path / "x.tar", files))}


LIES: dict[str, Any] = {
    "no base": lambda said: said.pop(BASE),
    "no root": lambda said: said.pop(ROOT),
    "nothing left out": lambda said: said.pop(LEFT_OUT),
    "a base that is no digest": lambda said: said.update({BASE: "sha256:1"}),
    "a number that is none": lambda said: said.update({SEQUENCE: "-1"}),
    "number 0": lambda said: said.update({SEQUENCE: "0"}),
    "a number too large": lambda said: said.update({SEQUENCE: "9" * 50}),
    "no JSON": lambda said: said.update({LEFT_OUT: "{"}),
    "a list": lambda said: said.update({LEFT_OUT: "[]"}),
    "a digest that is none": lambda said: said.update({LEFT_OUT: '{"x": ["sha256:../.."]}'}),
    "a digest twice": lambda said: said.update({LEFT_OUT: json.dumps({"x": [oci.digest_of(BIG)] * 2})}),
    "what is held": lambda said: said.update({LEFT_OUT: json.dumps({"x": [oci.digest_of(NEW)]})}),
    "what nobody needs": lambda said: said.update(
        {LEFT_OUT: json.dumps(json.loads(said[LEFT_OUT]) | {"x": [oci.digest_of(b"-")]})}
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_about_what_is_left_out(line: Line, tmp_path: Path, lie: str) -> None:
    path = changed(line.first, tmp_path / "x.tar", LIES[lie])
    assert {problem.code for problem in problems(path)} == {"BundleDamaged"}


def test_a_delta_is_no_source_of_images(line: Line, tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        create(tmp_path / "x.tar", {}, images=[FromLayout(line.first)], cache=tmp_path)
    assert caught.value.code == "BundleBaseMissing"


def test_what_the_older_one_has_is_not_fetched(tmp_path: Path) -> None:
    with upstream_serving(FakeUpstream()) as upstream:
        upstream.image("a/app", "v1", BIG, SMALL)
        upstream.image("a/app", "v2", BIG, NEW)

        def make(name: str, tag: str, since: Path | None = None) -> int:
            before = upstream.sent
            source = FromRegistries((f"{upstream.host}/a/app:{tag}",), patience=1)
            create(tmp_path / name, {}, images=[source], since=since, cache=tmp_path / f"cache of {name}")
            return upstream.sent - before

        assert make("old.tar", "v1") > len(BIG) + len(SMALL)
        assert len(NEW) <= make("new.tar", "v2", since=tmp_path / "old.tar") < len(BIG)
    verify(tmp_path / "new.tar", bases=[tmp_path / "old.tar"])


def test_a_program_that_is_left_out(line: Line, tmp_path: Path) -> None:
    with Bundle.open(line.first) as delta, pytest.raises(BundleError) as caught:
        delta.extract(delta.programs["garage"], tmp_path / "layer")
    assert caught.value.code == "BundleBaseMissing"
    assert "program/garage:2.3.0" in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_diff(line: Line) -> None:
    found = json.loads(json.dumps(diff(line.full, line.second)))
    assert [(item["kind"], item["name"]) for item in found["added"]] == [("image", PROXY)]
    assert [item["name"] for item in found["removed"]] == [PAUSE]
    assert [(item["name"], item["wasVersion"], item["version"]) for item in found["changed"]] == [
        (APP, "", ""), ("garage", "2.3.0", "2.4.0"),
    ]  # fmt: skip
    [proxy] = diff(line.full, line.first)["added"]
    assert proxy["size"] - proxy["adds"] == len(BIG)
    assert found["adds"] >= sum(item["adds"] for item in found["changed"])
    nothing = diff(line.full, line.full)
    assert nothing == {"added": [], "removed": [], "changed": [], "adds": 0}


# ---- seeding ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(request: pytest.FixtureRequest) -> Iterator[FakeRegistry]:
    """A registry that keeps repositories apart; whether it mounts from one into another is the parameter."""
    pair = pki.issue(authority(), "cp-1", ("10.0.0.10",))
    with serving(FakeRegistry(mounts=getattr(request, "param", False), places=set()), pair) as registry:
        yield registry


def seeding(path: Path, fake: FakeRegistry, folder: Path) -> int:
    with Bundle.open(path) as opened:
        sent = run(opened, fake, folder)
        assert seed.prove(connector(fake), seed.plan(opened), 1) == {}
        return sent


def refused(path: Path, fake: FakeRegistry, folder: Path) -> BundleError:
    before = len(fake.requests)
    with pytest.raises(BundleError) as caught:
        seeding(path, fake, folder)
    assert {request.method for request in fake.requests[before:]} <= {"GET", "HEAD"}, "something was pushed"
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("fake", [True, False], indirect=True, ids=["mounts", "does not mount"])
def test_one_after_the_other(line: Line, fake: FakeRegistry, tmp_path: Path) -> None:
    """The layer that moved to another image comes from the registry itself, also where it cannot be mounted."""
    for path in (line.full, line.first, line.second):
        seeding(path, fake, tmp_path)
        assert seeding(path, fake, tmp_path) == 0, "again, and nothing is to do"
    assert fake.places
    assert ("registry.k8s.io/kube-proxy", oci.digest_of(BIG)) in fake.places
    assert fake.blobs[oci.digest_of(BIG)] == BIG


def test_what_the_registry_has_lost_of_the_base_is_named(line: Line, fake: FakeRegistry, tmp_path: Path) -> None:
    """It is listed there, and moves to another image, but cannot be read: the bundle is not to blame."""
    seeding(line.full, fake, tmp_path)
    fake.refuse = {("GET", f"/blobs/{oci.digest_of(BIG)}"): [404]}
    with Bundle.open(line.first) as opened, pytest.raises(RegistryError) as caught:
        run(opened, fake, tmp_path)
    assert caught.value.code == "ImageMissing"
    assert oci.digest_of(BIG) in caught.value.message


def test_a_path_of_another_registry(line: Line, fake: FakeRegistry, tmp_path: Path) -> None:
    """What the delta leaves out is below that path as well, and nothing outside it is asked for."""
    for path in (line.full, line.first, line.second):
        with Bundle.open(path) as opened:
            items = seed.plan(opened, "mirror/")
            seeder = seed.Seeder(
                opened, connector(fake), Journal(tmp_path / "journal"), workers=1, patience=0, record=False,
                below="mirror/",
            )  # fmt: skip
            seeder.run(items)
            assert seed.prove(connector(fake), items, 1) == {}
    assert all(request.path.startswith("/v2/mirror/") for request in fake.requests)


def test_a_wrong_base_is_named_with_what_is_missing(line: Line, fake: FakeRegistry, tmp_path: Path) -> None:
    seeding(line.stranger, fake, tmp_path)
    error = refused(line.first, fake, tmp_path)
    assert error.code == "BundleBaseMissing"
    assert f"{oci.digest_of(BIG)} of {APP}" in error.message
    assert f"{oci.digest_of(SMALL)} of " in error.message
    assert inspect(line.full)["index"] in error.hint


def test_one_between_is_missing(line: Line, fake: FakeRegistry, tmp_path: Path) -> None:
    seeding(line.full, fake, tmp_path)
    error = refused(line.second, fake, tmp_path)
    assert error.code == "BundleBaseMissing"
    assert inspect(line.first)["index"] in error.message


@pytest.mark.parametrize("older", ["first", "full", "sibling"])
def test_an_older_one_is_not_taken_again(line: Line, fake: FakeRegistry, tmp_path: Path, older: str) -> None:
    for path in (line.full, line.first, line.second):
        seeding(path, fake, tmp_path)
    before = dict(fake.manifests)
    error = refused(getattr(line, older), fake, tmp_path)
    assert error.code == "BundleReplayed"
    assert inspect(line.second)["index"] in error.message
    assert fake.manifests == before


def test_an_older_one_on_purpose(line: Line, fake: FakeRegistry, tmp_path: Path) -> None:
    for path in (line.full, line.first):
        seeding(path, fake, tmp_path)
    with Bundle.open(line.full) as opened:
        journal = Journal(tmp_path / "journal.json")
        seeder = seed.Seeder(opened, connector(fake), journal, workers=1, patience=5, allow_older=True)
        seeder.run(seed.plan(opened))
    seeding(line.first, fake, tmp_path)  # which then follows again


def test_lines_do_not_know_each_other(line: Line, fake: FakeRegistry, tmp_path: Path) -> None:
    for path in (line.full, line.stranger, line.first, line.stranger, line.second):
        seeding(path, fake, tmp_path)


def test_a_run_that_was_killed_before_the_note_goes_on(line: Line, fake: FakeRegistry, tmp_path: Path) -> None:
    seeding(line.full, fake, tmp_path)
    note = {name: held for name, held in fake.manifests.items() if name.startswith("line-")}
    seeding(line.first, fake, tmp_path)
    fake.manifests.update(note)
    assert seeding(line.first, fake, tmp_path) == 0


def tag_of(path: Path) -> str:
    """The tag of the record of a bundle's line."""
    with Bundle.open(path) as opened:
        return seeded.tag(opened.layout.lineage)


GARBAGE = (
    b"{", b"[]", b"{}", b'{"annotations": 5}', b"[" * 100_000,
    oci.Manifest(config=oci.Descriptor(media_type="x", digest=oci.digest_of(b""), size=0)).to_json(),
    b'{"annotations": {"dev.kubeadm-registry.bundle.index": "x", "dev.kubeadm-registry.bundle.sequence": "1"}}',
    b'{"annotations": {"dev.kubeadm-registry.format": "{"}}',
    b'{"annotations": {"dev.kubeadm-registry.format": "{\\"version\\": 0}"}}',
)  # fmt: skip


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_a_record_that_is_garbage_is_named_and_can_be_written_again(
    line: Line, fake: FakeRegistry, tmp_path: Path, content: bytes
) -> None:
    fake.manifests[tag_of(line.full)] = content
    with Bundle.open(line.full) as opened:
        seeder = partial(seed.Seeder, opened, connector(fake), Journal(tmp_path / "journal.json"), patience=5)
        items = seed.plan(opened)
        with pytest.raises(Error, match=tag_of(line.full)) as caught:
            seeder().run(items)
        assert caught.value.code == "SeedRecordDamaged"
        assert "--allow-older" in caught.value.hint
        assert {request.method for request in fake.requests} <= {"GET", "HEAD"}, "something was pushed"
        seeder(allow_older=True).run(items)
        assert seeder().run(items) == 0


def test_a_record_that_is_listed_and_not_found_is_not_none(line: Line, fake: FakeRegistry, tmp_path: Path) -> None:
    """zot makes a 404 of a storage error: an older bundle must not come in then."""
    for path in (line.full, line.first):
        seeding(path, fake, tmp_path)
    tag = tag_of(line.full)
    with Bundle.open(line.full) as opened:
        seeder = partial(seed.Seeder, opened, connector(fake), Journal(tmp_path / "journal.json"), patience=0)
        fake.refuse = {("GET", f"/manifests/{tag}"): [404]}
        before = len(fake.requests)
        with pytest.raises(Error, match=tag) as caught:
            seeder().run(seed.plan(opened))
        assert caught.value.code == "RegistryNotWhole"
        assert "--allow-older" in caught.value.hint
        assert {request.method for request in fake.requests[before:]} <= {"GET", "HEAD"}, "something was pushed"
        fake.refuse = {("GET", f"/manifests/{tag}"): [404]}
        seeder(allow_older=True).run(seed.plan(opened))
    assert json.loads(fake.manifests[tag])["annotations"][seeded.INDEX] == inspect(line.full)["index"]


def test_a_record_of_a_newer_release(line: Line, fake: FakeRegistry, tmp_path: Path) -> None:
    seeding(line.full, fake, tmp_path)
    tag = tag_of(line.full)

    def stamp(**versions: int) -> None:
        record = json.loads(fake.manifests[tag])
        record["annotations"] |= {"dev.kubeadm-registry.format": json.dumps(versions), "of.a.newer": "release"}
        fake.manifests[tag] = oci.canonical(record)

    for key in ("minReader", "minWriter"):
        stamp(**{"version": 9, key: 9})
        before = len(fake.requests)
        with pytest.raises(Error, match="a newer release wrote the record of what was seeded") as caught:
            seeding(line.first, fake, tmp_path)
        assert (caught.value.code, caught.value.hint) == ("NewerFormat", "use a newer kubeadm-registry")
        assert {request.method for request in fake.requests[before:]} <= {"GET", "HEAD"}, "something was pushed"
    assert seeding(line.full, fake, tmp_path) == 0, "what need not be written can be looked at"
    stamp(version=9)
    seeding(line.first, fake, tmp_path)
    written = json.loads(fake.manifests[tag])["annotations"]
    assert written["of.a.newer"] == "release"
    assert json.loads(written["dev.kubeadm-registry.format"])["version"] == 9
