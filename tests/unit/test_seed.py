"""Seeding: what is sent, what is not sent again, and what the proof at the end finds."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import unquote

import pytest

from kubeadm_registry import pki
from kubeadm_registry.bundle import Bundle
from kubeadm_registry.bundle.layout import Layout, PiecesStore
from kubeadm_registry.bundle.tool import OPERATOR_IMAGE
from kubeadm_registry.cli import seed as cli_seed
from kubeadm_registry.errors import BundleError, Error, RegistryError
from kubeadm_registry.images import seed, seeded
from kubeadm_registry.images.journal import Journal
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Api
from tests.unit.bundle_files import image, write_layout
from tests.unit.fake_images import Repositories, ScopedHandler, plain
from tests.unit.fake_registry import FakeRegistry, connector, serving

ONE, TWO = "registry.k8s.io/pause:3.10", "quay.io:443/org/app:v1"
LAYER = b"layer" * 1000


@pytest.fixture
def fake(pair: pki.Pair) -> Iterator[FakeRegistry]:
    with serving(FakeRegistry(mounts=True), pair) as registry:
        yield registry


def joined(*layouts: dict[str, bytes]) -> dict[str, bytes]:
    """One layout with the images of all."""
    entries = [oci.Index.model_validate_json(one[oci.INDEX_FILE]).manifests[0] for one in layouts]
    files = {name: content for one in layouts for name, content in one.items()}
    return files | {oci.INDEX_FILE: oci.Index(manifests=tuple(entries)).to_json()}


def described(content: bytes, media_type: str) -> oci.Descriptor:
    return oci.Descriptor(media_type=media_type, digest=oci.digest_of(content), size=len(content))


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    path = write_layout(tmp_path / "layout", joined(image(ONE, LAYER), image(TWO, LAYER + b"!")))
    with Bundle.open(path) as opened:
        yield opened


class Told:
    """Progress that is remembered."""

    def __init__(self) -> None:
        self.numbers: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.numbers.append((done, total))


def run(
    bundle: Bundle, fake: FakeRegistry, path: Path, progress: Told | None = None, stop: threading.Event | None = None
) -> int:
    journal = Journal(path / "journal.json")
    options = {"workers": 1, "patience": 5.0, "piece": 2000, "progress": progress or Told(), "stop": stop}
    return seed.Seeder(bundle, connector(fake), journal, **options).run(seed.plan(bundle))  # type: ignore[arg-type]


def pushed(fake: FakeRegistry) -> list[str]:
    """What was changed, until the bundle was noted down."""
    images = itertools.takewhile(lambda one: f"/{seeded.REPOSITORY}/blobs" not in one.path, fake.requests)
    return [f"{one.method} {one.path.split('?')[0]}" for one in images if one.method not in ("GET", "HEAD")]


def test_where_images_go(bundle: Bundle) -> None:
    two, one = seed.plan(bundle)
    assert (two.name, two.repository, two.reference) == (TWO, "quay.io_443/org/app", "v1"), "no colon in a repository"
    assert (one.name, one.repository, one.reference) == (ONE, "registry.k8s.io/pause", "3.10")
    assert [manifest.media_type for manifest in one.manifests] == [oci.MANIFEST, oci.INDEX], "children come first"
    assert one.manifests[-1] == one.root
    assert {blob.size for blob in one.blobs} == {len(b'{"os":"linux"}'), len(LAYER)}


def test_planning_takes_time_that_grows_with_the_image(tmp_path: Path) -> None:
    """An index of two thousand manifests, as tools write that keep all versions of something in one."""
    layers = [described(b"%d" % number, oci.LAYER) for number in range(2000)]
    texts = [oci.Manifest(config=layer, layers=(layer,)).to_json() for layer in layers]
    index = oci.Index(manifests=tuple(described(text, oci.MANIFEST) for text in texts)).to_json()
    entry = described(index, oci.INDEX).model_copy(update={"annotations": {oci.REFERENCE_NAME: ONE}})
    blobs = {layer.digest: (layer.size, io.BytesIO) for layer in layers}
    with Layout(PiecesStore.of([entry], [index, *texts], blobs), "many") as layout:
        begun = time.thread_time()
        [item] = seed.plan(Bundle(layout))
        assert time.thread_time() - begun < 2
    assert (len(item.manifests), len(item.blobs)) == (2001, 2000)


def test_coredns_goes_where_kubeadm_looks_for_it_in_a_registry_of_ones_own(tmp_path: Path) -> None:
    """kubeadm asks for coredns/coredns at registry.k8s.io, and for coredns anywhere else."""
    upstream, own = "registry.k8s.io/coredns/coredns:v1.14.2", "registry.k8s.io/coredns:v1.14.2"
    with Bundle.open(write_layout(tmp_path / "one", image(upstream, LAYER))) as opened:
        first, second = seed.plan(opened)
    assert {first.name: first.repository, second.name: second.repository} == {
        upstream: "registry.k8s.io/coredns/coredns", own: "registry.k8s.io/coredns",
    }  # fmt: skip
    assert (first.reference, first.root) == (second.reference, second.root)
    held = joined(image(upstream, LAYER), image(own, LAYER + b"!"))
    with Bundle.open(write_layout(tmp_path / "both", held)) as opened:
        assert len({item.root.digest for item in seed.plan(opened)}) == 2, "one that the bundle itself has stays"


@pytest.mark.parametrize("alone", [True, False])
def test_a_tag_is_not_given_to_an_image_that_is_pinned_to_another_digest(
    fake: FakeRegistry, tmp_path: Path, alone: bool
) -> None:
    """One manifest has NAME:TAG, and the next one NAME:TAG@DIGEST: an index of all platforms, say."""
    layers = [LAYER, LAYER + b"!", LAYER + b"?"]
    digests = [oci.Index.model_validate_json(image(ONE, layer)[oci.INDEX_FILE]).manifests[0].digest for layer in layers]
    names = [ONE if alone else f"{ONE}@{digests[0]}", f"{ONE}@{digests[1]}", f"{ONE}@{digests[2]}"]
    held = joined(*(image(name, layer) for name, layer in zip(names, layers, strict=True)))
    with Bundle.open(write_layout(tmp_path / "layout", held)) as opened:
        run(opened, fake, tmp_path)
        items = seed.plan(opened)
        assert seed.prove(connector(fake), items, 2) == {}
    assert {item.name: item.reference for item in items} == {
        names[0]: "3.10" if alone else digests[0], names[1]: digests[1], names[2]: digests[2],
    }  # fmt: skip


def test_an_image_with_tag_and_digest_gets_its_tag(tmp_path: Path) -> None:
    digest = oci.Index.model_validate_json(image(ONE, LAYER)[oci.INDEX_FILE]).manifests[0].digest
    held = joined(image(ONE, LAYER), image(f"{ONE}@{digest}", LAYER))
    with Bundle.open(write_layout(tmp_path / "layout", held)) as opened:
        assert [item.reference for item in seed.plan(opened)] == ["3.10", "3.10"]


def test_all_is_sent_once_and_can_then_be_read(bundle: Bundle, fake: FakeRegistry, tmp_path: Path) -> None:
    told = Told()
    sent = run(bundle, fake, tmp_path, told)
    configuration = len(b'{"os":"linux"}')
    assert sent == len(LAYER) * 2 + 1 + configuration, "the configuration that both have is sent once"
    assert told.numbers[0] == (0, sent + configuration)
    assert told.numbers[-1] == (sent + configuration, sent + configuration), "and mounted once"
    assert told.numbers == sorted(told.numbers)
    assert seed.prove(connector(fake), seed.plan(bundle), 2) == {}
    kinds = [line.split()[1].split("/")[-2] for line in pushed(fake)]
    assert kinds.index("manifests") > max(i for i, kind in enumerate(kinds) if kind == "uploads"), "blobs come first"

    looked = [one.path for one in fake.requests if one.method == "HEAD" and "/blobs/" in one.path]
    assert all(seeded.REPOSITORY in path for path in looked), "the request that begins an upload asks as well"

    before = len(fake.requests)
    assert run(bundle, fake, tmp_path) == 0
    again = {one.path for one in fake.requests[before:]}
    assert len(again) == 2 + 2, "one question an image, which bundle was the last, and whether its list is there"
    assert all("/manifests/" in path for path in again)


def test_what_an_image_that_is_there_has_is_mounted(bundle: Bundle, fake: FakeRegistry, tmp_path: Path) -> None:
    fake.places = set()
    run(bundle, fake, tmp_path)
    del fake.manifests["3.10"]
    fake.places = {place for place in fake.places if place[0] != "registry.k8s.io/pause"}
    before = len(fake.requests)
    assert run(bundle, fake, tmp_path) == len(LAYER)
    begun = [unquote(one.path) for one in fake.requests[before:] if one.method == "POST"]
    assert sum("from=quay.io_443/org/app" in query for query in begun) == 1, "the configuration"
    assert sum("from=registry.k8s.io/pause" in query for query in begun) == 1, "the layer may be there itself"
    assert seed.prove(connector(fake), seed.plan(bundle), 1) == {}


def test_what_a_repository_has_is_not_sent_to_a_registry_that_does_not_mount(
    bundle: Bundle, fake: FakeRegistry, tmp_path: Path
) -> None:
    """As zot on S3: its next version, or a run after one that was killed."""
    fake.places, fake.mounts, told = set(), False, Told()
    run(bundle, fake, tmp_path)
    del fake.manifests["3.10"]
    before = len(fake.requests)
    assert run(bundle, fake, tmp_path, told) == 0
    assert not [one.path for one in fake.requests[before:] if one.method == "POST"]
    size = len(LAYER) + len(b'{"os":"linux"}')
    assert told.numbers[-1] == (size, size)


def test_what_a_run_that_was_stopped_has_sent_is_not_sent_again(
    bundle: Bundle, fake: FakeRegistry, tmp_path: Path
) -> None:
    stop = threading.Event()

    class Stopping(Told):
        def __call__(self, done: int, total: int) -> None:
            if done >= 2000:
                stop.set()

    with pytest.raises(Error) as caught:
        run(bundle, fake, tmp_path, Stopping(), stop)
    assert caught.value.code == "SeedStopped"
    assert (tmp_path / "journal.json").stat().st_mode & 0o777 == 0o600
    patches = len([one for one in fake.requests if one.method == "PATCH"])
    assert patches == 2, "the request in hand, when it was told, ended"
    assert not [one for one in fake.requests if one.method == "DELETE"], "it is to be resumed"
    run(bundle, fake, tmp_path)
    assert seed.prove(connector(fake), seed.plan(bundle), 1) == {}
    again = [one for one in fake.requests if one.method == "PATCH"][patches:]
    assert len(again) == 1 + 3, "the piece that was missing of the first layer, and the second layer"


def test_a_run_that_is_stopped_early_pushes_nothing(bundle: Bundle, fake: FakeRegistry, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Error, match="stopped before all images"):
        run(bundle, fake, tmp_path, stop=stop)
    assert not fake.blobs
    assert not fake.manifests


def test_a_good_copy_can_be_seeded_after_a_damaged_one(bundle: Bundle, fake: FakeRegistry, tmp_path: Path) -> None:
    held = joined(image(ONE, LAYER), image(TWO, LAYER + b"!"))
    name = oci.blob_name(oci.digest_of(LAYER))
    with (
        Bundle.open(write_layout(tmp_path / "damaged", held | {name: LAYER[:-1] + b"?"})) as damaged,
        pytest.raises(BundleError, match="does not match its digest") as caught,
    ):
        run(damaged, fake, tmp_path)
    assert caught.value.code == "BundleDamaged"
    assert not fake.uploads, "nothing of it stays in the registry"
    run(bundle, fake, tmp_path)
    assert seed.prove(connector(fake), seed.plan(bundle), 1) == {}


def test_a_damaged_journal_is_as_good_as_none(bundle: Bundle, fake: FakeRegistry, tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_text("{")
    assert run(bundle, fake, tmp_path) > 0


def test_a_writer_that_moves_is_waited_for(bundle: Bundle, fake: FakeRegistry, tmp_path: Path) -> None:
    fake.refuse = {("POST", "/uploads/"): [503], ("PUT", "/manifests/"): [502], ("HEAD", "/blobs/"): [503]}
    run(bundle, fake, tmp_path)
    assert seed.prove(connector(fake), seed.plan(bundle), 1) == {}


def test_who_may_not_push_is_told_so_at_once(bundle: Bundle, fake: FakeRegistry, tmp_path: Path) -> None:
    fake.password = "push:another"
    with pytest.raises(RegistryError, match="status 401"):
        run(bundle, fake, tmp_path)
    assert not fake.manifests, "no image is there without what it needs"


@pytest.mark.parametrize("refused", [1, 2])
@pytest.mark.parametrize(
    ("status", "hint"), [(400, "create the bundle without it"), (412, "replace a tag"), (403, "replace a tag")]
)
def test_images_that_the_registry_refuses_are_named_and_the_others_pushed(
    bundle: Bundle, fake: FakeRegistry, tmp_path: Path, refused: int, status: int, hint: str
) -> None:
    """As zot does with a manifest whose list of layers is null, and Harbor with one for a tag that is to stay."""
    items = seed.plan(bundle)
    fake.refuse = {("PUT", f"{item.repository}/manifests/"): [status] * 9 for item in items[:refused]}
    with pytest.raises(RegistryError, match=f"status {status}") as caught:
        run(bundle, fake, tmp_path)
    first, *lines = caught.value.message.splitlines()
    others = ", and has all others" if refused == 1 else ""
    assert first == f"the registry does not accept {refused} of 2 images{others}:"
    assert [line.split(": ")[0] for line in lines] == [f"  {item.name}" for item in items[:refused]]
    assert hint in caught.value.hint
    fake.refuse = {}
    fake.requests.clear()
    run(bundle, fake, tmp_path)
    tags = [one for one in pushed(fake) if "/manifests/" in one and "sha256:" not in one]
    assert len(tags) == refused, "the others are there already"


def test_the_parts_of_an_index_are_pushed_side_by_side_and_before_what_needs_them(
    fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an index of hundreds waits for hundreds of answers. A signature comes after what it is of."""
    layer = described(LAYER, oci.LAYER)
    texts = [oci.Manifest(config=layer, layers=(layer,), annotations={"n": str(n)}).to_json() for n in range(3)]
    leaves = tuple(described(text, oci.MANIFEST) for text in texts)
    signature = oci.Manifest(config=layer, layers=(layer,), subject=leaves[0]).to_json()
    nested = oci.Index(manifests=(*leaves[:2], described(signature, oci.MANIFEST))).to_json()
    root = oci.Index(manifests=(described(nested, oci.INDEX), leaves[2])).to_json()
    entry = described(root, oci.INDEX).model_copy(update={"annotations": {oci.REFERENCE_NAME: ONE}})
    blobs = {layer.digest: (layer.size, lambda: io.BytesIO(LAYER))}
    together, push = threading.Barrier(len(leaves), timeout=20), Api.push_manifest

    def waiting(registry: Api, repository: str, reference: str, content: bytes, media_type: str) -> object:
        if content in texts:
            together.wait()
        return push(registry, repository, reference, content, media_type)

    monkeypatch.setattr(Api, "push_manifest", waiting)
    with Layout(PiecesStore.of([entry], [root, nested, signature, *texts], blobs), "one") as layout:
        run(Bundle(layout), fake, tmp_path)
    manifests = [one.rpartition("/")[2] for one in pushed(fake) if "/pause/manifests/" in one]
    assert set(manifests[:3]) == {leaf.digest for leaf in leaves}
    assert manifests[3:] == [oci.digest_of(signature), oci.digest_of(nested), "3.10"]


def test_no_image_is_pushed_that_shares_a_part_which_the_registry_refuses(fake: FakeRegistry, tmp_path: Path) -> None:
    """Two tags of one repository: it is refused for each of them, and both are named."""
    layer = described(LAYER, oci.LAYER)
    text = oci.Manifest(config=layer, layers=(layer,)).to_json()
    part = described(text, oci.MANIFEST)
    names = [ONE, f"{ONE}-b"]
    roots = [oci.Index(manifests=(part,), annotations={"n": name}).to_json() for name in names]
    entries = [
        described(root, oci.INDEX).model_copy(update={"annotations": {oci.REFERENCE_NAME: name}})
        for name, root in zip(names, roots, strict=True)
    ]
    blobs = {layer.digest: (layer.size, lambda: io.BytesIO(LAYER))}
    fake.refuse = {("PUT", f"/manifests/{part.digest}"): [400] * 9}
    with (
        Layout(PiecesStore.of(entries, [*roots, text], blobs), "two") as layout,
        pytest.raises(RegistryError, match="does not accept 2 of 2 images:") as caught,
    ):
        run(Bundle(layout), fake, tmp_path)
    assert [line.split(": ")[0] for line in caught.value.message.splitlines()[1:]] == [f"  {name}" for name in names]
    assert not fake.manifests


@pytest.mark.parametrize("what", ["blob", "end of a blob", "manifest", "tag"])
def test_the_proof_names_the_image_and_what_is_missing(
    bundle: Bundle, fake: FakeRegistry, tmp_path: Path, what: str
) -> None:
    run(bundle, fake, tmp_path)
    item = seed.plan(bundle)[1]
    if what == "blob":
        lost = max(item.blobs, key=lambda blob: blob.size).digest
        del fake.blobs[lost]
    elif what == "end of a blob":
        lost = max(item.blobs, key=lambda blob: blob.size).digest
        fake.blobs[lost] = fake.blobs[lost][:-1]
    elif what == "manifest":
        lost = item.manifests[0].digest
        del fake.manifests[lost]
    else:
        lost = item.root.digest
        fake.manifests["3.10"] = b"{}"
    flaws = seed.prove(connector(fake), seed.plan(bundle), 2)
    assert set(flaws) == {ONE}
    assert lost in flaws[ONE]


def test_an_image_whose_tag_is_there_and_cannot_be_read_is_not_proven(
    bundle: Bundle, fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a database answers for the tag, and the storage has lost the manifest."""
    run(bundle, fake, tmp_path)
    items = seed.plan(bundle)
    item, there = items[1], {one.reference: one.root.digest for one in items}
    monkeypatch.setattr(Api, "digest", lambda _registry, _repository, reference: there[reference])
    fake.refuse = {("GET", f"/manifests/{one}"): [404] * 9 for one in (item.reference, item.root.digest)}
    assert seed.prove(connector(fake), seed.plan(bundle), 1) == {ONE: f"manifest {item.root.digest} is missing"}


def test_what_was_proven_is_only_looked_for_until_it_is_pushed_again(
    bundle: Bundle, fake: FakeRegistry, tmp_path: Path
) -> None:
    items, index = seed.plan(bundle), bundle.layout.lineage.index

    def seeded_and_proven() -> tuple[set[str], int]:
        """The images that are taken for proven, and how many blobs the proof reads."""
        journal = Journal(tmp_path / "journal")
        seeder = seed.Seeder(bundle, connector(fake), journal, patience=2)
        seeder.run(items)
        before = len(fake.requests)
        assert seed.prove(connector(fake), items, known=seeder.known) == {}
        journal.prove(index, proven=True)
        return seeder.known, sum("/blobs/" in one.path for one in fake.requests[before:])

    first, read = seeded_and_proven()
    assert not first
    assert read
    assert seeded_and_proven() == ({item.name for item in items}, 0)
    lost = items[0]
    del fake.manifests[lost.reference]
    known, read = seeded_and_proven()
    assert known == {item.name for item in items} - {lost.name}
    assert read == len(lost.blobs)


def test_what_was_proven_is_read_where_it_is_looked_for(bundle: Bundle, fake: FakeRegistry, tmp_path: Path) -> None:
    """So that it need not be read once more; unless something is missing, since to push that may take hours."""
    items, index = seed.plan(bundle), bundle.layout.lineage.index

    def again(proven: bool = True) -> seed.Seeder:
        journal = Journal(tmp_path / "journal")
        journal.prove(index, proven=proven)
        seeder = seed.Seeder(bundle, connector(fake), journal, patience=2)
        fake.requests.clear()
        seeder.run(items)
        return seeder

    run(bundle, fake, tmp_path)
    assert again(proven=False).read == set()
    everything = {item.name for item in items}
    assert again().read == everything
    assert sum("HEAD" in one.method for one in fake.requests) == 0, "each name is asked for once"
    lost = max(items[0].blobs, key=lambda blob: blob.size)
    content = fake.blobs.pop(lost.digest)
    seeder = again()
    assert seeder.read == {item.name for item in items if lost not in item.blobs} != everything
    assert seeder.known == everything, "its tag is there, and who reads it says what is lost"
    fake.blobs[lost.digest] = content
    del fake.manifests[items[0].reference]
    assert again().read == set()
    assert items[0].reference in fake.manifests


def test_who_is_stopped_before_the_proof_has_proven_nothing(bundle: Bundle, fake: FakeRegistry, tmp_path: Path) -> None:
    journal, index = Journal(tmp_path / "journal"), bundle.layout.lineage.index
    with journal:
        journal.prove(index, proven=True)
    seed.Seeder(bundle, connector(fake), journal, patience=2).run(seed.plan(bundle))
    with Journal(tmp_path / "journal") as again:
        assert not again.proven(index)


def test_an_empty_blob_is_not_missing(fake: FakeRegistry, tmp_path: Path) -> None:
    with Bundle.open(write_layout(tmp_path / "empty", image(ONE, b""))) as opened:
        run(opened, fake, tmp_path)
        assert seed.prove(connector(fake), seed.plan(opened), 1) == {}


def test_an_empty_blob_that_is_not_served_is_told(fake: FakeRegistry, tmp_path: Path) -> None:
    """As by zot, which answers 201 when it is pushed and 404 when it is read."""
    with Bundle.open(write_layout(tmp_path / "empty", image(ONE, b""))) as opened:
        run(opened, fake, tmp_path)
        del fake.blobs[oci.digest_of(b"")]
        [flaw] = seed.prove(connector(fake), seed.plan(opened), 1).values()
    assert flaw == f"blob {oci.digest_of(b'')}, which is empty, is missing; zot does not serve empty blobs"


@pytest.mark.parametrize("content", [b"the same", b""])
def test_signatures_that_were_added_to_those_of_the_bundle_stay(pair: pki.Pair, tmp_path: Path, content: bytes) -> None:
    """cosign keeps all signatures of an image under one tag, and who has the image here may sign it as well.

    Of the same content there is one layer then, listed twice, and an annotation of each has the signature.
    """
    repository, tag, fake = "registry.k8s.io/pause", f"sha256-{'5' * 64}.sig", Repositories()
    config = plain(fake.blob(repository, b"{}", oci.CONFIG))

    def signed(*by: str) -> dict[str, object]:
        layers = [
            {**plain(fake.blob(repository, content or one.encode())), "annotations": {"signature": one}} for one in by
        ]
        return {"schemaVersion": 2, "mediaType": oci.MANIFEST, "config": config, "layers": layers}

    manifest = oci.canonical(signed("by them"))
    entry = oci.Descriptor(
        media_type=oci.MANIFEST, digest=oci.digest_of(manifest), size=len(manifest),
        annotations={oci.REFERENCE_NAME: f"{repository}:{tag}"},
    )  # fmt: skip
    layout = {
        oci.LAYOUT_FILE: oci.LAYOUT, oci.INDEX_FILE: oci.Index(manifests=(entry,)).to_json(),
        **{oci.blob_name(oci.digest_of(one)): one for one in (manifest, content or b"by them", b"{}")},
    }  # fmt: skip
    with (
        serving(fake, pair, ScopedHandler),
        Bundle.open(write_layout(tmp_path / "layout", layout)) as opened,
    ):
        [item] = seed.plan(opened)
        for by, stays in ((("by us", "by them"), True), (("by us",), False)):
            ours = fake.put(repository, signed(*by), tag).digest
            run(opened, fake, tmp_path)
            assert fake.store[item.repository].tags[tag] == (ours if stays else item.root.digest)
            assert seed.prove(connector(fake), [item]) == {}


def test_images_that_containerd_looks_for_elsewhere_are_told(bundle: Bundle) -> None:
    items = seed.plan(bundle)
    assert cli_seed.without_mirror(items, ("registry.k8s.io", "docker.io")) == {"quay.io:443"}
    assert cli_seed.without_mirror(items, ("registry.k8s.io", "quay.io:443")) == set()
    assert cli_seed.without_mirror(items, ("*",)) == set()


def test_the_image_of_the_operator_needs_no_mirror(tmp_path: Path) -> None:
    with Bundle.open(write_layout(tmp_path / "own", image(f"{OPERATOR_IMAGE}:v1"))) as opened:
        assert cli_seed.without_mirror(seed.plan(opened), ("registry.k8s.io",)) == set()


@pytest.mark.parametrize("what", ["a manifest", "a blob"])
def test_what_another_registry_has_lost_of_an_image_is_pushed_again(
    bundle: Bundle, fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Some have rules that delete what has no tag, also where an index that has one needs it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(cli_seed, "run_in_child", threading.Event)
    monkeypatch.setattr(cli_seed, "Upstream", lambda *_, **__: connector(fake)())
    monkeypatch.setattr(cli_seed, "nullcontext", lambda _: connector(fake)())  # none of these is for several threads
    fake.places = set()

    def seed_to() -> int:
        reporter = Mock()
        cli_seed._elsewhere(reporter, ("registry.example", "mirror"), tmp_path / "layout", None, 2, 0)
        return int(reporter.result.call_args.kwargs["sent"])

    seed_to()
    item = next(one for one in seed.plan(bundle, "mirror/") if one.name == ONE)
    if what == "a manifest":
        del fake.manifests[item.manifests[0].digest]
        assert seed_to() == 0
    else:
        fake.places = {place for place in fake.places if place != (item.repository, oci.digest_of(LAYER))}
        assert seed_to() == len(LAYER)
    assert seed.prove(connector(fake), seed.plan(bundle, "mirror/"), 1) == {}
