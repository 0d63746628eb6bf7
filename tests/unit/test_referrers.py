"""What refers to an image is found where the registry has a list for it, and where the client keeps one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeadm_registry import pki
from kubeadm_registry.bundle import Bundle
from kubeadm_registry.errors import Error, RegistryError
from kubeadm_registry.images import delete, referrers, seed
from kubeadm_registry.images.journal import Journal
from kubeadm_registry.images.names import Place
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Registry, referrers_tag
from tests.unit.bundle_files import write_layout
from tests.unit.fake_images import Repositories, ScopedHandler, plain
from tests.unit.fake_registry import connector, serving

REPOSITORY = "quay.io/org/app"
SUBJECT = oci.Descriptor(media_type=oci.MANIFEST, digest=f"sha256:{64 * 'a'}", size=7)
TAG = f"sha256-{64 * 'a'}"
SIGNATURE = "application/vnd.example.signature"
CONFIG = oci.Descriptor(media_type=oci.EMPTY, digest=oci.digest_of(b"{}"), size=2)


@pytest.fixture
def fake(pair: pki.Pair) -> Iterator[Repositories]:
    """A registry without the API, as Distribution."""
    with serving(Repositories(referrers=False), pair, ScopedHandler) as registry:
        yield registry  # type: ignore[misc]


@pytest.fixture
def at(fake: Repositories) -> Iterator[Registry]:
    with connector(fake)() as registry:
        yield registry


def signature(number: int = 0, **more: object) -> tuple[oci.Descriptor, bytes]:
    """A manifest that refers to SUBJECT."""
    document = {
        "schemaVersion": 2, "mediaType": oci.MANIFEST, "config": plain(CONFIG), "layers": [], "subject": plain(SUBJECT),
        "annotations": {"number": str(number)}, **more,
    }  # fmt: skip
    content = oci.canonical({key: value for key, value in document.items() if value is not None})
    return oci.Descriptor(media_type=oci.MANIFEST, digest=oci.digest_of(content), size=len(content)), content


def listed(fake: Repositories) -> list[dict[str, object]]:
    content = fake.store[REPOSITORY].manifest(TAG)
    return [] if content is None else json.loads(content)["manifests"]


def put(at: Registry, one: tuple[oci.Descriptor, bytes], reference: str = "") -> None:
    referrers.push(at, REPOSITORY, reference or one[0].digest, *one)


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"artifactType": SIGNATURE}, SIGNATURE),
        ({}, oci.EMPTY),
        ({"artifactType": ""}, oci.EMPTY),
        ({"mediaType": oci.INDEX, "config": None, "layers": None, "manifests": []}, None),
    ],
)
def test_the_client_keeps_the_list(fake: Repositories, at: Registry, more: dict[str, object], kind: str | None) -> None:
    one = signature(**more)
    put(at, one)
    put(at, one)
    wanted = {"mediaType": oci.MANIFEST, "digest": one[0].digest, "size": one[0].size, "annotations": {"number": "0"}}
    assert listed(fake) == [{**wanted, **({"artifactType": kind} if kind else {})}], "once"


def test_what_others_wrote_into_the_list_is_kept(fake: Repositories, at: Registry) -> None:
    other = fake.put(REPOSITORY, {"mediaType": oci.MANIFEST, "config": plain(CONFIG), "layers": []})
    gone = {**plain(SUBJECT), "digest": f"sha256:{64 * 'b'}"}
    entry = {**plain(other), "future": 1}
    fake.put(REPOSITORY, {"mediaType": oci.INDEX, "manifests": [entry, gone, {"digest": "../x"}], "also": [1]}, TAG)
    one, two = signature(1), signature(2)
    put(at, one)
    put(at, two)
    assert [found["digest"] for found in listed(fake)] == [other.digest, one[0].digest, two[0].digest]
    assert listed(fake)[0] == entry
    assert json.loads(fake.store[REPOSITORY].manifest(TAG) or b"")["also"] == [1]


@pytest.mark.parametrize(
    "document",
    [
        b"<html>",
        b"[]",
        b"5",
        b'{"manifests": 5}',
        b'{"manifests": [5]}',
        b'{"config": {}, "layers": []}',
        b'{"annotations": {"half a character": "\\ud800"}}',
    ],
)
def test_a_tag_that_is_no_list_is_left_alone(fake: Repositories, at: Registry, document: bytes) -> None:
    put(at, signature())
    store = fake.store[REPOSITORY]
    store.manifests[store.tags[TAG]] = document
    with pytest.raises(RegistryError, match=TAG) as caught:
        put(at, signature(1))
    assert caught.value.code == "ReferrersTagInvalid"
    assert store.manifest(TAG) == document


def test_what_is_referred_to_is_no_list(fake: Repositories, at: Registry) -> None:
    """GitLab takes the tag for the digest (https://github.com/oras-project/oras-go/issues/1396)."""
    part = fake.put(REPOSITORY, {"mediaType": oci.MANIFEST, "config": plain(CONFIG), "layers": []})
    index = fake.put(REPOSITORY, {"mediaType": oci.INDEX, "manifests": [plain(part)]})
    tag = referrers_tag(index.digest)
    fake.store[REPOSITORY].tags[tag] = index.digest
    assert at.referrers(REPOSITORY, index.digest) == []
    one = signature(subject=plain(index))
    put(at, one)
    found = json.loads(fake.store[REPOSITORY].manifest(tag) or b"")["manifests"]
    assert [entry["digest"] for entry in found] == [one[0].digest]


def test_a_registry_with_the_api_keeps_the_list_itself(fake: Repositories, at: Registry) -> None:
    fake.referrers = True
    one = signature()
    put(at, one, "signed")
    assert fake.store[REPOSITORY].tags == {"signed": one[0].digest}
    assert referrers.is_noted(at, REPOSITORY, *one)


def test_the_tag_of_what_refers_comes_last(fake: Repositories, at: Registry) -> None:
    """So an image that is there is listed too, also after a run that was interrupted."""
    fake.refuse = {("PUT", f"/manifests/{TAG}"): [403]}
    with pytest.raises(RegistryError):
        put(at, signature(), "v1")
    assert fake.store[REPOSITORY].tags == {}
    put(at, signature(), "v1")
    assert set(fake.store[REPOSITORY].tags) == {TAG, "v1"}


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"subject": null}', b'{"subject": {}}', b'{"subject": {"digest": 5}}',
     b'{"subject": {"digest": "../../other"}}', b"[" * 100_000],
)  # fmt: skip
def test_what_refers_to_nothing(content: bytes) -> None:
    assert referrers.subject_of(content) == ""


@pytest.mark.parametrize(
    ("digest", "tag"),
    [
        (SUBJECT.digest, TAG),
        (f"sha512:{128 * 'a'}", f"sha512-{64 * 'a'}"),
        ("a+b:x=y", "a-b-x-y"),
    ],
)
def test_the_tag_of_a_digest(digest: str, tag: str) -> None:
    assert referrers_tag(digest) == tag


def test_what_was_deleted_is_taken_from_the_list(fake: Repositories, at: Registry) -> None:
    one, two = signature(1), signature(2)
    put(at, one)
    put(at, two)
    assert delete.carry_out(connector(fake), delete.Deletion(Place(REPOSITORY, one[0].digest), one[0].digest, ()))
    assert [found["digest"] for found in listed(fake)] == [two[0].digest]


@pytest.mark.parametrize("untags", [True, False])
def test_what_refers_can_be_deleted_though_the_list_remains(fake: Repositories, at: Registry, untags: bool) -> None:
    fake.untags = untags
    one, two = signature(1), signature(2)
    put(at, one)
    put(at, two, "signed")
    fake.blob(REPOSITORY, b"{}")
    connect = connector(fake)
    named = Place(REPOSITORY, two[0].digest if untags else "signed")
    for planned in delete.plan(connect, [named], all_tags=True):
        assert delete.carry_out(connect, planned)
    assert [found["digest"] for found in listed(fake)] == [one[0].digest]
    assert two[0].digest not in fake.store[REPOSITORY].manifests


def test_what_refers_stays_where_the_list_loses_its_tag(fake: Repositories, at: Registry) -> None:
    """Nothing would take it from the list, which remains under its digest."""
    one = signature()
    put(at, one)
    with pytest.raises(Error, match="which remains"):
        delete.plan(connector(fake), [Place(REPOSITORY, one[0].digest), Place(REPOSITORY, TAG)], all_tags=False)


# ---- seeding ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    """Two signatures of one image, as an image of its own each."""
    entries, files = [], {oci.LAYOUT_FILE: oci.LAYOUT, oci.blob_name(CONFIG.digest): b"{}"}
    for number in range(2):
        manifest, content = signature(number)
        files[oci.blob_name(manifest.digest)] = content
        name = {oci.REFERENCE_NAME: f"{REPOSITORY}:signature-{number}"}
        entries.append(manifest.model_copy(update={"annotations": name}))
    files[oci.INDEX_FILE] = oci.Index(manifests=tuple(entries)).to_json()
    with Bundle.open(write_layout(tmp_path / "layout", files)) as opened:
        yield opened


def test_a_seed_keeps_the_list(bundle: Bundle, fake: Repositories, tmp_path: Path) -> None:
    def run() -> None:
        seed.Seeder(bundle, connector(fake), Journal(tmp_path / "journal"), patience=5).run(items)

    items = seed.plan(bundle)
    wanted = {item.root.digest for item in items}
    run()
    assert {one["digest"] for one in listed(fake)} == wanted, "both, though they were pushed side by side"

    del fake.store[REPOSITORY].tags[TAG]  # as it was seeded before the list was kept
    run()
    assert {one["digest"] for one in listed(fake)} == wanted

    before = len(fake.requests)
    run()
    assert {one.method for one in fake.requests[before:]} <= {"GET", "HEAD"}, "nothing is left to do"
