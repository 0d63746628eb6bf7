"""The images in the registry: what is listed, checked, copied and deleted, and what a log of misses becomes."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kubeadm_registry import pki
from kubeadm_registry.errors import ConfigError, Error, RegistryError
from kubeadm_registry.images import check, copy, delete, graph, inventory, seed, wanted
from kubeadm_registry.images.names import Place, name_of, place, upstream
from kubeadm_registry.images.tombstone import TOMBSTONE_DIGEST
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.retention.trash import trash_tag
from tests.unit.fake_images import Repositories, ScopedHandler, plain
from tests.unit.fake_registry import connector, serving

PAUSE = "registry.k8s.io/pause"
SIGNATURE = "application/vnd.example.signature"
COSIGN = "dev.cosignproject.cosign/signature"


@pytest.fixture
def fake(pair: pki.Pair) -> Iterator[Repositories]:
    """pause:3.10 for two platforms, signed; app:v1 and app:v2, the same image; and the project's own."""
    registry = Repositories()
    registry.image("kubeadm-registry/canary", "v1")
    amd64 = registry.image(PAUSE, layer=b"a" * 1000)
    arm64 = registry.image(PAUSE, layer=b"b" * 2000)
    index = registry.index(PAUSE, "3.10", amd64=amd64, arm64=arm64)
    registry.image(PAUSE, layer=b"signature", subject=plain(index), artifactType=SIGNATURE)
    registry.image("app", "v1")
    registry.store["app"].tags["v2"] = registry.store["app"].tags["v1"]
    with serving(registry, pair, ScopedHandler):
        yield registry


def digest(fake: Repositories, repository: str, tag: str) -> str:
    return fake.store[repository].tags[tag]


# ---- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "repository", "reference"),
    [
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause", "3.10"),
        ("registry.k8s.io/coredns/coredns:v1.14.2", "registry.k8s.io/coredns/coredns", "v1.14.2"),
        ("quay.io:443/org/app:v1", "quay.io_443/org/app", "v1"),
        ("quay.io:443/org/app", "quay.io_443/org/app", ""),
        ("app", "app", ""),
        ("app:v1", "app", "v1"),
        (f"app:v1@sha256:{64 * 'a'}", "app", f"sha256:{64 * 'a'}"),
    ],
)
def test_a_name_says_where_the_image_lies(name: str, repository: str, reference: str) -> None:
    assert place(name) == Place(repository, reference)


@pytest.mark.parametrize("name", ["", "App:v1", "app:", "a//b", "../a", "app:v1@sha256:12", "app v1", "a" * 600])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        place(name)
    assert caught.value.code == "ImageNameInvalid"


@pytest.mark.parametrize(
    ("repository", "name"),
    [
        ("registry.k8s.io/pause", "registry.k8s.io/pause"),
        ("quay.io_443/org/app", "quay.io:443/org/app"),
        ("localhost_5000/app", "localhost:5000/app"),
        ("team_1/app", ""),
        ("kube-apiserver", ""),
        ("registry.k8s.io", ""),
    ],
)
def test_a_repository_under_its_upstreams_name(repository: str, name: str) -> None:
    assert upstream(repository) == name


def test_names_come_back() -> None:
    for name in ("quay.io:443/org/app:v1", f"registry.k8s.io/pause@sha256:{64 * '0'}", "app:v1", "app"):
        assert str(place(name)) == name


# ---- list -------------------------------------------------------------------------------------------------------


def test_every_tag_is_listed_with_its_platforms(fake: Repositories) -> None:
    connect = connector(fake)
    places = inventory.places(connect)
    assert [str(one) for one in places] == ["app:v1", "app:v2", f"{PAUSE}:3.10"], "without the project's own"
    app, _, pause = inventory.look(connect, places, referrers=False)
    assert (app.platforms, pause.platforms) == ((), ("linux/amd64", "linux/arm64"))
    assert pause.graph is not None
    assert pause.graph.root.digest == digest(fake, PAUSE, "3.10")
    assert pause.graph.manifests[-1] == pause.graph.root
    config = len(b'{"os":"linux"}')
    manifests = sum(manifest.size for manifest in pause.graph.manifests)
    assert pause.to_dict()["size"] == manifests + 1000 + 2000 + config, "the configuration that both have counts once"
    assert pause.referrers == ()


def test_a_list_that_does_not_come_at_once_is_asked_for_again(fake: Repositories) -> None:
    """The virtual IP moves, or the storage has no quorum for a moment, while thousands of repositories are asked."""
    before = inventory.places(connector(fake))
    fake.refuse = {("GET", "/v2/_catalog"): [503], ("GET", "/v2/app/tags/list"): [500, 503]}
    assert inventory.places(connector(fake)) == before


def test_what_refers_to_an_image_is_listed_if_asked(fake: Repositories) -> None:
    connect = connector(fake)
    (pause,) = inventory.look(connect, [Place(PAUSE, "3.10")], referrers=True)
    (signature,) = pause.referrers
    assert (signature.subject, signature.artifact_type) == (digest(fake, PAUSE, "3.10"), SIGNATURE)
    assert pause.to_dict()["referrers"][0]["artifactType"] == SIGNATURE


def test_what_refers_to_it_and_does_not_come_at_once_is_asked_for_again(fake: Repositories) -> None:
    fake.refuse = {("GET", "/referrers/"): [503]}
    (image,) = inventory.look(connector(fake), [Place(PAUSE, "3.10")], referrers=True)
    assert [one.artifact_type for one in image.referrers] == [SIGNATURE]


def test_one_part_of_the_registry_or_all_of_it(fake: Repositories) -> None:
    connect = connector(fake)
    fake.image("registry.k8s.io/pauses", "v1")
    fake.store["app"].tags[f"sha256-{64 * '0'}"] = digest(fake, "app", "v1")
    assert inventory.places(connect, PAUSE) == [Place(PAUSE, "3.10")]
    assert len(inventory.places(connect, "registry.k8s.io")) == 2
    assert f"sha256-{64 * '0'}" not in {one.reference for one in inventory.places(connect)}, "a list, not an image"
    everything = inventory.places(connect, everything=True)
    assert Place("kubeadm-registry/canary", "v1") in everything
    assert Place("app", f"sha256-{64 * '0'}") in everything


def test_a_platform_that_is_not_there_is_said(fake: Repositories) -> None:
    amd64 = inventory.look(connector(fake), [Place(PAUSE, "3.10")], referrers=False)[0].to_dict()["platforms"][0]
    del fake.store[PAUSE].manifests[amd64["digest"]]
    (pause,) = inventory.look(connector(fake), [Place(PAUSE, "3.10")], referrers=True)
    assert (pause.platforms, pause.absent) == (("linux/arm64",), ("linux/amd64",))
    assert [one["present"] for one in pause.to_dict()["platforms"]] == [False, True]


@pytest.mark.parametrize(
    "content",
    [
        b"[]", b"{", b'{"mediaType": "application/x"}', b'{"schemaVersion": 2}', b'{"mediaType": ["x"]}',
        b'{"x": %s%s}' % (b"[" * 5000, b"]" * 5000),
    ],
    ids=lambda content: content[:20].decode(),
)  # fmt: skip
def test_what_is_no_image_does_not_hide_the_others(fake: Repositories, content: bytes) -> None:
    odd = oci.digest_of(content)
    fake.store["app"].manifests[odd] = content
    fake.store["app"].tags["odd"] = odd
    found = {image.place.reference: image for image in inventory.look(
        connector(fake), inventory.places(connector(fake), "app"), referrers=True
    )}  # fmt: skip
    assert found["v1"].graph is not None
    assert found["odd"].graph is None
    assert "app:odd" in found["odd"].to_dict()["problem"]


def test_indexes_in_indexes_end_somewhere(fake: Repositories) -> None:
    inner = fake.image("app")
    for _ in range(5):
        inner = fake.put("app", {"mediaType": oci.INDEX, "manifests": [plain(inner)]})
    (found,) = inventory.look(connector(fake), [Place("app", inner.digest)], referrers=False)
    assert "deep" in found.flaw


# ---- check ------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_told_from_what_is_broken(fake: Repositories) -> None:
    connect = connector(fake)
    places = [Place(PAUSE, "3.10"), Place("app", "v1"), Place(PAUSE, "3.9")]
    items, missing = check.find(connect, places)
    assert missing == {f"{PAUSE}:3.9": "is not in the registry"}
    assert seed.prove(connect, items, 2) == {}
    lost = oci.digest_of(b"b" * 2000)
    del fake.store[PAUSE].blobs[lost]
    flaws = seed.prove(connect, items, 2)
    assert set(flaws) == {f"{PAUSE}:3.10"}
    assert lost in flaws[f"{PAUSE}:3.10"]


def test_a_platform_that_is_lost_is_a_flaw(fake: Repositories) -> None:
    connect = connector(fake)
    (lost, *_) = inventory.look(connect, [Place(PAUSE, "3.10")], referrers=False)[0].to_dict()["platforms"]
    del fake.store[PAUSE].manifests[lost["digest"]]
    items, missing = check.find(connect, [Place(PAUSE, "3.10")])
    assert not missing
    assert lost["digest"] in seed.prove(connect, items, 2)[f"{PAUSE}:3.10"]


# ---- copy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mounts", [True, False])
def test_an_image_is_copied_whole(fake: Repositories, mounts: bool) -> None:
    fake.mounts = mounts
    connect = connector(fake)
    copied = copy.copy(connect, Place(PAUSE, "3.10"), Place("mine/pause", "3.10"), referrers=False)
    assert copied.digest == digest(fake, "mine/pause", "3.10") == digest(fake, PAUSE, "3.10")
    assert copied.manifests == 3
    assert copied.sent == (0 if mounts else 3000 + len(b'{"os":"linux"}'))
    items, _ = check.find(connect, [Place("mine/pause", "3.10")])
    assert seed.prove(connect, items, 2) == {}
    assert len(fake.store["mine/pause"].manifests) == 3, "without the signature"


@pytest.mark.parametrize(
    "kind", ["vnd.docker.image.rootfs.foreign.diff.tar.gzip", "vnd.oci.image.layer.nondistributable.v1.tar+gzip"]
)
def test_layers_that_registries_need_not_have_may_be_missing(fake: Repositories, kind: str) -> None:
    """Those of Windows are elsewhere: skopeo and crane push none of them; zot asks for none of OCI's types."""
    fake.image("win", "v1", layer=b"ours")
    document = json.loads(fake.store["win"].manifest("v1") or b"")
    elsewhere = oci.Descriptor(media_type=f"application/{kind}", digest=oci.digest_of(b"x"), size=1)
    document["layers"].insert(0, {**plain(elsewhere), "urls": ["https://a/b"]})
    fake.put("win", document, "v1")
    connect = connector(fake)
    copied = copy.copy(connect, Place("win", "v1"), Place("mine/win", "v1"), referrers=False)
    assert copied.digest == digest(fake, "mine/win", "v1") == digest(fake, "win", "v1")
    items, _ = check.find(connect, [Place("mine/win", "v1")])
    assert seed.prove(connect, items, 2) == {}
    fake.blob("win", b"x")
    copy.copy(connect, Place("win", "v1"), Place("other/win", "v1"), referrers=False)
    assert oci.digest_of(b"x") in fake.store["other/win"].blobs, "what is there comes along"


def test_another_tag_needs_no_blob(fake: Repositories) -> None:
    before = len(fake.requests)
    copied = copy.copy(connector(fake), Place("app", "v1"), Place("app", "stable"), referrers=True)
    assert digest(fake, "app", "stable") == digest(fake, "app", "v1") == copied.digest
    assert not [one for one in fake.requests[before:] if "/blobs/" in one.path]


@pytest.mark.parametrize("native", [True, False])
def test_what_refers_to_it_comes_along_if_asked(fake: Repositories, native: bool) -> None:
    source = connector(fake)
    index = digest(fake, PAUSE, "3.10")
    (signature,) = [one for one, content in fake.store[PAUSE].manifests.items() if SIGNATURE.encode() in content]
    if not native:
        fake.referrers = False
        entry = {"mediaType": oci.MANIFEST, "digest": signature, "size": 10}
        fake.put(PAUSE, {"mediaType": oci.INDEX, "manifests": [entry]}, index.replace(":", "-"))
    copy.copy(source, Place(PAUSE, "3.10"), Place("mine/pause", "v1"), referrers=True)
    with source() as registry:
        (found,) = registry.referrers("mine/pause", index)
    assert found["digest"] == signature
    assert found["artifactType"] == SIGNATURE
    assert (index.replace(":", "-") in fake.store["mine/pause"].tags) is not native
    assert oci.digest_of(b"signature") in fake.store["mine/pause"].blobs


def test_tags_of_cosign_come_along_if_asked(fake: Repositories) -> None:
    """An index is signed, and one of its images; the signature has a signature of its own."""
    index = digest(fake, PAUSE, "3.10")
    (child, *_) = inventory.look(connector(fake), [Place(PAUSE, "3.10")], referrers=False)[0].to_dict()["platforms"]
    signed, of_child = (f"{one.replace(':', '-')}.{kind}" for one, kind in ((index, "sig"), (child["digest"], "att")))
    fake.image(PAUSE, signed, layer=b"by cosign")
    fake.image(PAUSE, of_child, layer=b"of a child")
    again = f"{digest(fake, PAUSE, signed).replace(':', '-')}.sig"
    fake.image(PAUSE, again, layer=b"of the signature")
    copy.copy(connector(fake), Place(PAUSE, "3.10"), Place("mine/pause", "v1"), referrers=False)
    assert set(fake.store["mine/pause"].tags) == {"v1"}
    copy.copy(connector(fake), Place(PAUSE, "3.10"), Place("mine/pause", "v1"), referrers=True)
    assert set(fake.store["mine/pause"].tags) == {"v1", signed, of_child, again}
    assert all(digest(fake, "mine/pause", tag) == digest(fake, PAUSE, tag) for tag in (signed, of_child, again))


def test_signatures_that_only_the_copy_has_stay(fake: Repositories) -> None:
    """cosign keeps all signatures of an image under one tag, and the copy may be signed by somebody else as well."""
    tag = f"{digest(fake, 'app', 'v1').replace(':', '-')}.sig"

    def sign(repository: str, *by: bytes) -> None:
        layers = [plain(fake.blob(repository, one)) for one in by]
        config = plain(fake.blob(repository, b"{}" + b"".join(by), oci.CONFIG))
        fake.put(repository, {"mediaType": oci.MANIFEST, "config": config, "layers": layers}, tag)

    def copied() -> str:
        copy.copy(connector(fake), Place("app", "v1"), Place("mine/app", "v1"), referrers=True)
        return digest(fake, "mine/app", tag)

    sign("app", b"by a")
    first = copied()
    assert first == digest(fake, "app", tag)
    sign("mine/app", b"by a", b"by b")
    assert copied() == digest(fake, "mine/app", tag) != first
    sign("app", b"by a", b"by b", b"by c")
    assert copied() == digest(fake, "app", tag)
    sign("mine/app", b"by a", b"by d")
    before = dict(fake.store["mine/app"].tags)
    with pytest.raises(RegistryError, match="would lose them") as caught:
        copied()
    assert caught.value.code == "SignaturesDiffer"
    assert fake.store["mine/app"].tags == before


def test_two_keys_may_sign_the_same_content(fake: Repositories) -> None:
    """Then one layer is there twice, and an annotation of each has the signature."""
    tag = f"{digest(fake, 'app', 'v1').replace(':', '-')}.sig"

    def sign(repository: str, *by: str) -> str:
        layers = [{**plain(fake.blob(repository, b"content")), "annotations": {COSIGN: one}} for one in by]
        config = plain(fake.blob(repository, b"{}", oci.CONFIG))
        return fake.put(repository, {"mediaType": oci.MANIFEST, "config": config, "layers": layers}, tag).digest

    def copied() -> str:
        copy.copy(connector(fake), Place("app", "v1"), Place("mine/app", "v1"), referrers=True)
        return digest(fake, "mine/app", tag)

    assert sign("app", "a") == copied()
    assert sign("app", "a", "b") == copied()
    assert sign("mine/app", "a", "b", "c") == copied()
    sign("app", "a", "d")
    with pytest.raises(RegistryError, match="would lose them"):
        copied()


@pytest.mark.parametrize("what", ["image", "manifest", "blob"])
def test_half_an_image_is_not_copied(fake: Repositories, what: str) -> None:
    if what == "manifest":
        (lost, *_) = inventory.look(connector(fake), [Place(PAUSE, "3.10")], referrers=False)[0].to_dict()["platforms"]
        del fake.store[PAUSE].manifests[lost["digest"]]
    elif what == "blob":
        del fake.store[PAUSE].blobs[oci.digest_of(b"b" * 2000)]
    with pytest.raises(RegistryError) as caught:
        tag = "3.9" if what == "image" else "3.10"
        copy.copy(connector(fake), Place(PAUSE, tag), Place("mine/pause", "v1"), referrers=False)
    assert caught.value.code == "ImageMissing"
    assert "mine/pause" not in fake.store or not fake.store["mine/pause"].manifests


# ---- delete -----------------------------------------------------------------------------------------------------


def delete_all(fake: Repositories, *names: str, all_tags: bool = False) -> list[str]:
    connect = connector(fake)
    planned = delete.plan(connect, [place(name) for name in names], all_tags=all_tags)
    assert all(delete.carry_out(connect, one) for one in planned)
    return [str(one) for one in planned]


def refusal(fake: Repositories, *names: str, all_tags: bool = False) -> str:
    with pytest.raises(Error) as caught:
        delete_all(fake, *names, all_tags=all_tags)
    assert caught.value.code == "DeleteRefused"
    return caught.value.message


def test_a_tag_goes_alone(fake: Repositories) -> None:
    kept = digest(fake, "app", "v1")
    assert delete_all(fake, "app:v1") == [f"app:v1 ({kept})"]
    assert fake.store["app"].tags == {"v2": kept}
    assert kept in fake.store["app"].manifests


def test_a_registry_that_cannot_delete_a_tag_takes_others_along_only_if_told(fake: Repositories) -> None:
    fake.untags = False
    assert "tags v2, and this registry cannot delete a single tag" in refusal(fake, "app:v1")
    assert set(fake.store["app"].tags) == {"v1", "v2"}
    assert delete_all(fake, "app:v1", all_tags=True) == [f"app@{oci_digest(fake)} and with it app:v1, app:v2"]
    assert not fake.store["app"].tags
    assert not fake.store["app"].manifests


@pytest.mark.parametrize("untags", [True, False], ids=["zot", "distribution"])
def test_all_of_a_repository_goes_with_what_is_in_the_trash(fake: Repositories, untags: bool) -> None:
    """The proxy lets nobody but retention delete a tag of the trash."""
    fake.untags = untags
    trashed = fake.image("app", layer=b"old").digest
    lost = trash_tag("sha256:" + "0" * 64)
    fake.store["app"].tags |= {trash_tag(trashed): trashed, lost: "sha256:" + "0" * 64}
    fake.refuse = {("DELETE", "/manifests/trash-"): [403], ("PUT", "/manifests/trash-"): [403]}
    told = delete_all(fake, "app", all_tags=True)
    assert f"app@{trashed} and with it app:{trash_tag(trashed)}" in told
    assert set(fake.store["app"].tags) == {lost}, "retention completes what it has begun"
    assert trashed not in fake.store["app"].manifests


def oci_digest(fake: Repositories) -> str:
    """The digest of the only image in fake's requests to delete."""
    (path,) = [one.path for one in fake.requests if one.method == "DELETE" and "sha256:" in one.path]
    return path.rpartition("/")[2]


@pytest.mark.parametrize("untags", [True, False])
def test_a_tag_whose_manifest_is_lost_goes(fake: Repositories, untags: bool) -> None:
    """As zot lists one when a block of the storage is lost, and `recover` has deleted the rest of the manifest."""
    kept = digest(fake, "app", "v1")
    fake.untags = untags
    fake.store["app"].tags["lost"] = f"sha256:{64 * 'd'}"
    assert delete_all(fake, "app:lost") == ["app:lost (its manifest is lost)"]
    assert (fake.store["app"].tags, set(fake.store["app"].manifests) - {kept, TOMBSTONE_DIGEST}) == (
        {"v1": kept, "v2": kept}, set(),
    )  # fmt: skip


def test_a_tag_that_is_out_of_reach_for_a_moment_is_not_lost(
    fake: Repositories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zot makes a 404 of a storage error."""
    fake.refuse = {("GET", "/v2/app/manifests/v1"): [404]}
    assert delete_all(fake, "app:v1") == [f"app:v1 ({digest(fake, 'app', 'v2')})"]
    monkeypatch.setattr(delete, "PATIENCE", 0.0)
    fake.refuse = {("GET", "/manifests/v"): [404] * 9}
    with pytest.raises(RegistryError) as caught:
        delete_all(fake, "app:v2")
    assert (caught.value.code, list(fake.store["app"].tags)) == ("RegistryNotWhole", ["v2"])


def test_a_manifest_that_cannot_be_read_sends_to_recover(fake: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delete, "PATIENCE", 0.1)
    monkeypatch.setattr(fake, "refusal", lambda _, path: 500 if path.endswith("manifests/v2") else None)
    with pytest.raises(RegistryError, match="status 500") as caught:
        delete_all(fake, "app:v1")
    assert "run `recover` first" in caught.value.hint


@pytest.mark.parametrize("tag", ["lost", "v1"])
def test_a_tag_that_was_pushed_again_stays(fake: Repositories, tag: str) -> None:
    fake.store["app"].tags.setdefault(tag, f"sha256:{64 * 'd'}")
    connect = connector(fake)
    (one,) = delete.plan(connect, [place(f"app:{tag}")], all_tags=False)
    pushed = fake.image("app", tag, layer=b"again")
    with pytest.raises(RegistryError, match=f"app:{tag} was pushed again"):
        delete.carry_out(connect, one)
    assert fake.store["app"].tags[tag] == pushed.digest


def test_a_tag_that_was_pushed_again_while_the_registry_was_away_stays(
    fake: Repositories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the registry goes on when it is back: pushes do so at once, we after a pause."""
    connect = connector(fake)
    (one,) = delete.plan(connect, [place("app:v1")], all_tags=False)
    pushed: list[str] = []

    def refusal(method: str, path: str) -> int | None:
        if pushed or (method, path) != ("DELETE", "/v2/app/manifests/v1"):
            return None
        pushed.append(fake.image("app", "v1", layer=b"again").digest)
        return 503

    monkeypatch.setattr(fake, "refusal", refusal)
    with pytest.raises(RegistryError, match="app:v1 was pushed again"):
        delete.carry_out(connect, one)
    assert fake.store["app"].tags["v1"] == pushed[0]


def test_what_is_deleted_counts_though_the_answer_is_lost(fake: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = connector(fake)
    (one,) = delete.plan(connect, [place("app:v1")], all_tags=False)

    def refusal(method: str, path: str) -> int | None:
        if (method, path) == ("DELETE", "/v2/app/manifests/v1") and fake.store["app"].tags.pop("v1", None):
            return 503
        return None

    monkeypatch.setattr(fake, "refusal", refusal)
    assert delete.carry_out(connect, one)


def test_all_tags_of_an_image_may_be_named(fake: Repositories) -> None:
    fake.untags = False
    delete_all(fake, "app:v1", "app:v2")
    assert not fake.store["app"].manifests


def test_a_digest_takes_its_tags_along_only_if_told(fake: Repositories) -> None:
    image = digest(fake, "app", "v1")
    assert "v1, v2; pass --all-tags" in refusal(fake, f"app@{image}")
    delete_all(fake, f"app@{image}", all_tags=True)
    assert not fake.store["app"].tags


def test_many_tags_are_planned_in_a_moment(fake: Repositories) -> None:
    digests = [oci.digest_of(f"{number}".encode()) for number in range(4000)]
    roots = [oci.Descriptor(media_type=oci.MANIFEST, digest=one, size=1) for one in digests]
    images = {f"v{n}": graph.Graph(Place("app", f"v{n}"), one, {one.digest: ()}) for n, one in enumerate(roots)}
    held = delete._Repository("app", images, frozenset(), connector(fake), can_untag=False)
    begin = time.process_time()
    deletions, problems = held.plan([f"v{number}" for number in range(2000)], all_tags=False)
    assert time.process_time() - begin < 2, "it took 6 s"
    assert (len(deletions), problems) == (2000, [])


def test_a_repository_goes_only_if_told(fake: Repositories) -> None:
    assert "2 tags" in refusal(fake, "app")
    delete_all(fake, "app", all_tags=True)
    assert not fake.store["app"].tags
    assert "app is not in the registry" in refusal(fake, "app", all_tags=True)


@pytest.mark.parametrize("tagged", [True, False])
def test_what_an_index_needs_stays(fake: Repositories, tagged: bool) -> None:
    (child, *_) = inventory.look(connector(fake), [Place(PAUSE, "3.10")], referrers=False)[0].to_dict()["platforms"]
    name = f"{PAUSE}@{child['digest']}"
    if tagged:
        fake.untags = False
        fake.store[PAUSE].tags["amd64"] = child["digest"]
        name = f"{PAUSE}:amd64"
    assert f"is part of {PAUSE}:3.10, which remains" in refusal(fake, name, all_tags=True)
    index = digest(fake, PAUSE, "3.10")
    if not tagged:
        assert f"is part of {PAUSE}@{index}, which remains" in refusal(fake, name, f"{PAUSE}:3.10"), "without its tag"
    connect = connector(fake)
    for one in delete.plan(connect, [place(name), Place(PAUSE, "3.10"), Place(PAUSE, index)], all_tags=False):
        delete.carry_out(connect, one)
    assert not fake.store[PAUSE].tags
    assert not {index, child["digest"]} & set(fake.store[PAUSE].manifests), "the index first, then its part"


def test_the_tag_of_a_part_may_go_where_the_part_stays(fake: Repositories) -> None:
    (child, *_) = inventory.look(connector(fake), [Place(PAUSE, "3.10")], referrers=False)[0].to_dict()["platforms"]
    fake.store[PAUSE].tags["amd64"] = child["digest"]
    delete_all(fake, f"{PAUSE}:amd64")
    assert set(fake.store[PAUSE].tags) == {"3.10"}
    assert child["digest"] in fake.store[PAUSE].manifests


def test_all_that_stands_against_it_is_told_and_nothing_goes(fake: Repositories) -> None:
    said = refusal(fake, "app:v1", "app:v9", "kubeadm-registry/canary:v1", f"{PAUSE}@sha256:{64 * '0'}")
    for part in ("app:v9 is not in the registry", "kubeadm-registry/canary belongs to kubeadm-registry itself", "000"):
        assert part in said
    assert "v1" in fake.store["app"].tags
    assert "v1" in fake.store["kubeadm-registry/canary"].tags


def test_a_tag_of_an_unknown_format_can_go(fake: Repositories) -> None:
    odd = oci.digest_of(b"[]")
    fake.store["app"].manifests[odd] = b"[]"
    fake.store["app"].tags["odd"] = odd
    delete_all(fake, "app:odd")
    assert "odd" not in fake.store["app"].tags


def test_what_is_gone_already_is_no_failure(fake: Repositories) -> None:
    connect = connector(fake)
    (planned,) = delete.plan(connect, [Place("app", "v1")], all_tags=False)
    assert delete.carry_out(connect, planned)
    assert not delete.carry_out(connect, planned)


# ---- wanted -----------------------------------------------------------------------------------------------------

LOG = r"""
{"client":"10.0.0.21","who":"anonymous","method":"HEAD","path":"\/v2\/registry.k8s.io\/pause\/manifests\/3.9","status":404}
{"client":"10.0.0.21","who":"anonymous","method":"HEAD","path":"/v2/registry.k8s.io/pause/manifests/3.9","status":404}
{"client":"fd00::21","who":"pull","method":"GET","path":"/v2/registry.k8s.io/pause/manifests/3.9","status":404}
{"client":"10.0.0.21","who":"anonymous","method":"HEAD","path":"/v2/quay.io_443/org/app/manifests/v1","status":404}
{"client":"10.0.0.21","who":"anonymous","method":"HEAD","path":"/v2/kube-apiserver/manifests/v1.36.3","status":404}
{"client":"10.0.0.21","who":"anonymous","method":"HEAD","path":"/v2/kubeadm-registry/canary/manifests/v1","status":404}
{"client":"10.0.0.9","who":"push","method":"HEAD","path":"/v2/registry.k8s.io/mine/manifests/v1","status":404}
{"client":"10.0.0.9","who":"anonymous","method":"PUT","path":"/v2/registry.k8s.io/mine/manifests/v1","status":404}
{"client":"10.0.0.21","who":"anonymous","method":"GET","path":"/v2/registry.k8s.io/there/manifests/v1","status":200}
{"client":"10.0.0.21","who":"anonymous","method":"GET","path":"/v2/registry.k8s.io/x/blobs/sha256:0","status":404}
{"client":"10.0.0.66","who":"anonymous","method":"GET","path":"/v2/registry.k8s.io/$(id)/manifests/v1","status":404}
{"client":"10.0.0.66","who":"anonymous","method":"GET","path":"/v2/registry.k8s.io/x/manifests/v1 y","status":404}
{"client":"10.0.0.66","who":"anonymous","method":"GET","path":"/v2/registry.k8s.io/x/manifests/v1\n#","status":404}
{"client":"10.0.0.66","who":"anonymous","method":"GET","path":"/v2/registry.k8s.io/../x/manifests/v1","status":404}
"""


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A journalctl that shows LOG, and notes how it was called."""
    (tmp_path / "log").write_text(LOG.lstrip().replace("}", ',"up":0,"down":184}'))
    script = tmp_path / "journalctl"
    script.write_text(
        f"""#!/bin/sh
echo "$*" >> {tmp_path}/calls
case "$*" in
  *short-unix*) echo "1800000000.123456 cp-1 haproxy[1]: x" ;;
  *--output=cat*) cat {tmp_path}/log ;;
esac
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def asked() -> wanted.Asked:
    argv = ("sh", "-c", wanted.ASK, "wanted", "3600", "100", wanted.REQUEST, "one@1.service", "one@2.service")
    return wanted.parse(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines())


def test_a_log_becomes_a_list(journal: Path) -> None:
    found = asked()
    assert found.begins == datetime.fromtimestamp(1_800_000_000, UTC)
    assert found.complete
    *_, last = (journal / "calls").read_text().splitlines()
    assert last.split()[2:] == ["--output=cat", "--since=-3600s", "--unit=one@1.service", "--unit=one@2.service"]
    text = wanted.to_text(found.wishes, "7d", datetime(2026, 1, 2, tzinfo=UTC))
    assert text.splitlines()[2:] == [
        "quay.io:443/org/app:v1     # 1 time, by 10.0.0.21",
        "registry.k8s.io/pause:3.9  # 3 times, by 10.0.0.21, fd00::21",
        "# Requested without the name of an upstream registry, so their origin is unknown:",
        "#   kube-apiserver:v1.36.3  1 time, by 10.0.0.21",
        "#   registry.k8s.io/../x:v1  1 time, by 10.0.0.66",
    ]


def test_servers_are_added_up() -> None:
    here, there = (
        wanted.parse(["begins 1.5", f"  {count} 10.0.0.{count} registry.k8s.io/pause 3.9", "nonsense"])
        for count in (2, 3)
    )
    total = wanted.together([here, there])
    assert total == {Place(PAUSE, "3.9"): wanted.MissedPull(5, {"10.0.0.2", "10.0.0.3"})}


@pytest.mark.parametrize("lines", [[], [""], ["begins "], ["begins x"]])
def test_an_empty_log_has_no_beginning(lines: list[str]) -> None:
    assert wanted.parse(lines) == wanted.Asked({}, None, complete=True)


def test_many_clients_are_counted() -> None:
    wish = wanted.MissedPull(70, {f"10.0.0.{number}" for number in range(7)})
    text = wanted.to_text({Place(PAUSE, "3.9"): wish}, "7d", datetime(2026, 1, 2, tzinfo=UTC))
    assert text.splitlines()[-1].endswith("10.0.0.3, 10.0.0.4 and 2 more")


@pytest.mark.parametrize(
    ("text", "seconds"), [("7d", 604800), ("12h", 43200), ("30m", 1800), ("2w", 1209600), ("9999w", 9999 * 86400)]
)
def test_how_far_back(text: str, seconds: int) -> None:
    assert wanted.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-7d", "0d", "7 d", "1y", "99999d", "7d; reboot"])
def test_no_length_of_time(text: str) -> None:
    with pytest.raises(ConfigError):
        wanted.seconds(text)


def test_names_for_people(fake: Repositories) -> None:
    assert name_of("app", "") == "app"
