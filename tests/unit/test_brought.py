"""Which images bundles brought: the list that the registry keeps of each series of bundles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kubeadm_registry import pki
from kubeadm_registry.bundle import Bundle
from kubeadm_registry.bundle.lineage import Lineage
from kubeadm_registry.errors import Error, RegistryError
from kubeadm_registry.formats import Damaged
from kubeadm_registry.images import brought, seed, seeded
from kubeadm_registry.images.brought import Brought
from kubeadm_registry.images.journal import Journal
from kubeadm_registry.oci import canary
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Api
from tests.unit.bundle_files import image, write_layout
from tests.unit.fake_images import Repositories, within
from tests.unit.fake_registry import FakeRegistry, connector, serving

SAMPLE = Path(__file__).parents[1] / "golden" / "formats" / "0.1" / "brought.json"
PAUSE, APP = "registry.k8s.io/pause:3.10", "quay.io:443/org/app:v1"


@pytest.fixture
def fake(pair: pki.Pair) -> Iterator[FakeRegistry]:
    with serving(FakeRegistry(mounts=True), pair) as registry:
        yield registry


@pytest.fixture
def registry(fake: FakeRegistry) -> Iterator[Api]:
    with connector(fake)() as opened:
        yield opened


def seeding(fake: FakeRegistry, folder: Path, name: str, layer: bytes = b"layer") -> str:
    """Seed a bundle with the image *name*; its index."""
    with Bundle.open(write_layout(folder / "layout", image(name, layer))) as bundle:
        run = seed.Seeder(bundle, connector(fake), Journal(folder / "journal.json"), workers=1, patience=5.0)
        run.run(seed.plan(bundle))
        return bundle.layout.lineage.index


def listed(registry: Api) -> dict[str, tuple[str, ...]]:
    return {one.index: one.references for one in brought.everything(registry)}


def test_a_seeded_bundle_leaves_its_list(fake: FakeRegistry, registry: Api, tmp_path: Path) -> None:
    index = seeding(fake, tmp_path, PAUSE)
    digest = registry.digest("registry.k8s.io/pause", "3.10")
    assert listed(registry)[index] == (f"{PAUSE}@{digest}",)
    before = len(fake.requests)
    seeding(fake, tmp_path, PAUSE)
    assert not [one for one in fake.requests[before:] if one.method in ("PUT", "POST", "PATCH")], "it is there"


def test_two_series_have_two_lists(fake: FakeRegistry, registry: Api, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    indexes = {seeding(fake, tmp_path / "a", PAUSE), seeding(fake, tmp_path / "b", APP)}
    assert listed(registry).keys() == indexes
    assert {name.partition("@")[0] for names in listed(registry).values() for name in names} == {PAUSE, APP}


def test_a_delta_has_its_list_in_the_place_of_that_of_its_base(registry: Api) -> None:
    full = Lineage(f"sha256:{'a' * 64}", f"sha256:{'a' * 64}", "", 0, {})
    delta = Lineage(f"sha256:{'b' * 64}", full.root, full.index, 1, {})
    for line, name in ((full, PAUSE), (delta, APP)):
        brought.write(registry, line, {name: f"sha256:{'c' * 64}"})
        found = brought.read(registry, seeded.tag(line).removeprefix(seeded.LINE_TAG))
        assert found is not None
        assert (found.index, list(found.images)) == (line.index, [name])


def test_a_list_of_another_bundle_is_none(fake: FakeRegistry, registry: Api, tmp_path: Path) -> None:
    """As after an older release has seeded the next bundle, which does not write lists."""
    index = seeding(fake, tmp_path, PAUSE)
    line = f"{seeded.LINE_TAG}{index.removeprefix('sha256:')}"
    content = registry.manifest(seeded.REPOSITORY, line)
    assert content is not None
    registry.push_manifest(
        seeded.REPOSITORY, line, content.replace(index.encode(), b"sha256:" + b"1" * 64), oci.MANIFEST
    )
    with pytest.raises(Error, match="not known which images the bundle with index sha256:1111") as caught:
        listed(registry)
    assert caught.value.code == "ImagesUnknown"


def test_a_bundle_seeded_by_an_older_release_gets_its_list(fake: FakeRegistry, registry: Api, tmp_path: Path) -> None:
    index = seeding(fake, tmp_path, PAUSE)
    fake.manifests = {name: held for name, held in fake.manifests.items() if not name.startswith("images-")}
    with pytest.raises(Error, match="seeded by an older"):
        listed(registry)
    seeding(fake, tmp_path, PAUSE)
    assert listed(registry).keys() == {index}


@pytest.mark.parametrize("all_of_it", [False, True], ids=["one record", "all"])
def test_what_is_out_of_reach_is_no_shorter_list(all_of_it: bool) -> None:
    """zot makes a 404 of a storage error. By the list that is left, what a bundle brought would not be in use."""
    fake = Repositories()
    for tag in ("line-1", "line-2"):
        fake.image(seeded.REPOSITORY, tag, layer=tag.encode())
    hidden = "/v2/" if all_of_it else "/manifests/line-1"
    opened = within(fake, lambda request: httpx.Response(404) if hidden in request.url.path else None)
    with opened() as registry, pytest.raises(RegistryError) as caught:
        listed(registry)
    assert (caught.value.code, caught.value.temporary) == ("RegistryNotWhole", True)


@pytest.mark.parametrize("hidden", ["manifest", "layer"])
def test_a_list_that_is_out_of_reach_is_not_one_that_was_never_written(
    fake: FakeRegistry, registry: Api, tmp_path: Path, hidden: str
) -> None:
    """Else the reason for no plan would be that the set of bundles is not known, and its hint to do without it."""
    seeding(fake, tmp_path, PAUSE)
    (content,) = [held for name, held in fake.manifests.items() if name.startswith("images-")]
    part = "/manifests/images-" if hidden == "manifest" else json.loads(content)["layers"][0]["digest"]
    fake.refuse = {("GET", part): [404]}
    with pytest.raises(RegistryError) as caught:
        listed(registry)
    assert (caught.value.code, caught.value.temporary) == ("RegistryNotWhole", True)
    assert listed(registry)


def test_what_is_deleted_meanwhile_is_no_list() -> None:
    fake = Repositories()
    fake.image(canary.REPOSITORY, canary.TAG)
    fake.image(seeded.REPOSITORY, "line-1")

    def deleted(request: httpx.Request) -> None:
        if request.url.path.endswith("/manifests/line-1"):
            del fake.store[seeded.REPOSITORY]

    with within(fake, deleted)() as registry:
        assert listed(registry) == {}
        assert listed(registry) == {}, "there is no list either where no bundle was seeded"


def test_the_list_of_release_0_1_is_read() -> None:
    found = Brought.parse(SAMPLE.read_bytes())
    assert found.to_json() == SAMPLE.read_bytes()
    assert [name.partition("@")[0] for name in found.references] == [APP, PAUSE]


@pytest.mark.parametrize(
    "change",
    [{"images": None}, {"index": 1}, {"images": {"a": 1}}, {"images": []}],
)
def test_a_damaged_list(change: dict[str, object]) -> None:
    document = json.loads(SAMPLE.read_bytes()) | change
    with pytest.raises(Damaged):
        Brought.parse(json.dumps(document).encode())
