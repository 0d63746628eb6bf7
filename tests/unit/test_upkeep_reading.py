"""Everything that a registry holds, as a plan needs it: tags, what they lead to, and what has no tag."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping

import pytest

from kubeadm_registry import pki
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.retention.holdings import Holdings
from kubeadm_registry.upkeep import reading
from tests.unit.fake_images import Repositories, ScopedHandler, plain
from tests.unit.fake_registry import connector, serving

APP, BASE = "team/app", "docker.io/library/base"


@pytest.fixture(params=[True, False], ids=["lists referrers", "has tags for referrers"])
def fake(pair: pki.Pair, request: pytest.FixtureRequest) -> Iterator[Repositories]:
    with serving(Repositories(referrers=request.param), pair, ScopedHandler) as registry:
        yield registry


def read(fake: Repositories, known: Mapping[str, Collection[str]] | None = None) -> Holdings:
    return reading.read(connector(fake), known or {}, workers=3, patience=1.0)


def test_tags_indexes_and_their_parts(fake: Repositories) -> None:
    amd, arm = fake.image(APP, layer=b"amd"), fake.image(APP, layer=b"arm")
    index = fake.index(APP, "v1", amd64=amd, arm64=arm)
    one = fake.image(BASE, "latest", layer=b"base")
    found = read(fake)
    assert found.problems == ()
    assert found.repositories.keys() == {APP, BASE}
    assert found.repositories[APP].tags == {"v1": index.digest}
    assert found.repositories[APP].manifests == {index.digest, amd.digest, arm.digest}
    assert found.repositories[BASE].manifests == {one.digest}
    assert found.manifests[index.digest].children == (amd.digest, arm.digest)
    assert found.manifests[index.digest].size == index.size
    image = found.manifests[amd.digest]
    assert image.media_type == oci.MANIFEST
    assert image.blobs == (oci.digest_of(b"amd"),)
    assert found.blobs[oci.digest_of(b"amd")] == 3
    assert found.blobs[image.config] == len(b'{"os":"linux"}')


def test_what_refers_to_an_image_and_what_refers_to_that(fake: Repositories) -> None:
    image = fake.image(APP, "v1")
    signature = fake.image(APP, layer=b"signature", subject=plain(image))
    about = fake.image(APP, layer=b"about the signature", subject=plain(signature))
    if not fake.referrers:
        for subject, one in ((image, signature), (signature, about)):
            fake.index(APP, subject.digest.replace(":", "-"), any=one)
    found = read(fake)
    assert found.repositories[APP].manifests >= {image.digest, signature.digest, about.digest}
    assert found.manifests[about.digest].subject == signature.digest
    assert found.manifests[image.digest].subject == ""


def test_each_manifest_is_followed_once_however_deep_others_are(
    fake: Repositories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may push makes a chain as long as they like, in a repository of tens of thousands."""
    one = fake.image(APP)
    chain = {one.digest, *((one := fake.index(APP, "", inner=one)).digest for _ in range(20))}
    fake.store[APP].tags["v1"] = one.digest
    followed: list[reading.Place] = []
    led_to = reading._Reader._led_to

    def watched(self: reading._Reader) -> Iterator[reading.Place]:
        for place in led_to(self):
            followed.append(place)
            yield place

    monkeypatch.setattr(reading._Reader, "_led_to", watched)
    assert read(fake).repositories[APP].manifests == chain
    assert len(followed) == len(set(followed)) == 20


def test_an_index_may_refer_too(fake: Repositories) -> None:
    image = fake.image(APP, "v1")
    index = fake.put(APP, {"mediaType": oci.INDEX, "manifests": [], "subject": plain(image)}, "attached")
    assert read(fake).manifests[index.digest].subject == image.digest


def test_what_lost_its_tag_is_found_while_it_is_known(fake: Repositories) -> None:
    old = fake.image(APP, "v1", layer=b"old")
    known = {name: held.manifests for name, held in read(fake).repositories.items()}
    new = fake.image(APP, "v1", layer=b"new")
    assert read(fake).repositories[APP].manifests == {new.digest}
    gone = "sha256:" + "0" * 64
    known = {APP: {*known[APP], gone}, "no/longer": {gone}}
    assert read(fake, known).repositories[APP].manifests == {old.digest, new.digest}


def test_an_index_whose_parts_are_not_all_there(fake: Repositories) -> None:
    there = fake.image(APP)
    absent = fake.image("other/place", layer=b"elsewhere")
    index = fake.index(APP, "v1", amd64=there, arm64=absent)
    found = read(fake)
    assert found.problems == ()
    assert found.repositories[APP].manifests == {index.digest, there.digest}
    assert found.manifests[index.digest].children == (there.digest, absent.digest)


def test_what_is_no_image_is_named_and_not_guessed(fake: Repositories) -> None:
    odd = fake.put(APP, {"mediaType": "application/vnd.docker.distribution.manifest.v1+json"}, "odd")
    assert read(fake).manifests[odd.digest].media_type == "application/vnd.docker.distribution.manifest.v1+json"


@pytest.mark.parametrize("content", [b"no JSON", b"[]", json.dumps({"mediaType": oci.MANIFEST}).encode()])
def test_a_manifest_that_cannot_be_read_makes_its_repository_unread(fake: Repositories, content: bytes) -> None:
    fake.image(BASE, "latest")
    fake.image(APP, "v1")
    digest = oci.digest_of(content)
    fake.store[APP].manifests[digest] = content
    fake.store[APP].tags["bad"] = digest
    found = read(fake)
    assert found.unread == {APP}
    assert found.repositories.keys() == {BASE}
    [problem] = found.problems
    assert problem.code == "InventoryIncomplete"
    assert problem.message.startswith(f"{APP}:bad: ")
    assert "images delete" in problem.hint, "the registry is healthy"


@pytest.mark.parametrize("part", ["/tags/list", "/manifests/v1", "/manifests/sha256:"])
def test_a_registry_that_does_not_answer_makes_no_shorter_list(fake: Repositories, part: str) -> None:
    fake.index(APP, "v1", amd64=fake.image(APP))
    fake.refuse["GET", f"{APP}{part}"] = [500] * 50
    found = read(fake)
    assert found.unread == {APP}
    assert [one.code for one in found.problems] == ["InventoryIncomplete"]


def test_many_pages(fake: Repositories) -> None:
    for number in range(7):
        fake.image(f"team/app-{number}", "v1", layer=b"%d" % number)
        fake.image("team/many", f"v{number}", layer=b"%d" % number)
    found = read(fake)
    assert len(found.repositories) == 8
    assert len(found.repositories["team/many"].tags) == 7
