"""Bundles of one line, and damaged ones, against the registries that there are: each alone, with a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeadm_registry.bundle import Bundle
from kubeadm_registry.errors import BundleError
from kubeadm_registry.images import seed, seeded
from kubeadm_registry.images.journal import Journal
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Registry
from tests.lab.standalone import ADDRESS
from tests.lab.test_registries import Served, served
from tests.unit.corrupted import Good, flip
from tests.unit.test_bundle_delta import APP, BIG, NEW, PAUSE, PROXY, SMALL, Line

__all__ = ["served"]


class Apart(Registry):
    """A client whose registry does not mount from another repository, as zot on S3."""

    def begin_upload(self, repository: str, *, mount: str = "", source: str = "") -> str:
        return super().begin_upload(repository)


def run(at: Served, path: Path, journal: Path, *, mounts: bool = True) -> int:
    """Seed *path* and prove it; how many bytes went out."""

    def connect() -> Registry:
        return at.client() if mounts else Apart(ADDRESS, at.port, ca=at.ca, timeout=20)

    with Bundle.open(path) as bundle:
        items = seed.plan(bundle)
        sent = seed.Seeder(bundle, connect, Journal(journal), patience=20).run(items)
        assert seed.prove(connect, items) == {}
        return sent


def refusal(at: Served, path: Path, journal: Path) -> str:
    with pytest.raises(BundleError) as caught:
        run(at, path, journal)
    return caught.value.code


def test_deltas_follow_on_their_base(served: Served, tmp_path: Path) -> None:
    line, journal = Line(tmp_path), tmp_path / "journal"
    assert refusal(served, line.first, journal) == "BundleBaseMissing"
    with served.client() as at:
        assert at.tags("registry.k8s.io/pause") == [], "and nothing was pushed"
    assert run(served, line.full, journal) == len(BIG) + 2 * len(SMALL) + len(PAUSE + APP) - len(SMALL)
    assert refusal(served, line.second, journal) == "BundleBaseMissing"
    sent = run(served, line.first, journal, mounts=False)
    # The layer that another image has is read and pushed: a new repository has none, so it is not asked for it.
    assert sent == len(NEW) + len(PROXY) + len(BIG)
    assert run(served, line.first, journal) == 0
    run(served, line.second, journal)
    for older in (line.full, line.first, line.sibling):
        assert refusal(served, older, journal) == "BundleReplayed"
    with Bundle.open(line.second) as bundle, served.client() as at:
        place = bundle.layout.lineage
        assert seeded.read(at, place) == seeded.Record(place.index, 2)


def test_a_flipped_bit_makes_no_image(served: Served, tmp_path: Path) -> None:
    good, path = Good.make(tmp_path), tmp_path / "flipped.tar"
    path.write_bytes(flip("layer", good))
    assert refusal(served, path, tmp_path / "journal") == "BundleDamaged"
    layer = good.part("layer")
    with served.client() as at:
        assert at.digest("quay.io_443/org/app", "v1") is None
        assert at.digest("registry.k8s.io/pause", "3.10") != good.entry(PAUSE)["digest"]
        assert not at.has_blob("registry.k8s.io/pause", layer)
    assert run(served, tmp_path / "good.tar", tmp_path / "journal") > 0, "the whole one is taken afterwards"
    with served.client() as at:
        assert at.blob("registry.k8s.io/pause", layer) == good.files[oci.blob_name(layer)]
