"""Reading a large registry: its time and memory, which grow with what it holds, however few repositories that is in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.oci import descriptors as oci
from tests.bench.bundles import MB
from tests.bench.loopback import PORT, Loopback, loopback
from tests.bench.memory import told
from tests.lab.registry import skip_without

TAGS, REPOSITORIES = 20_000, 400
#: Of the tags, in one repository, as a build pipeline fills it.
LARGEST = 10_000
#: Twice as much may take so many times as long, with noise from run to run; bytes.
LINEAR, MOST_MEMORY = 2.2, 300 * MB


@pytest.fixture
def registry() -> Iterator[Loopback]:
    """Distribution with nothing in it. What zot has in its storage is written by itself only."""
    skip_without("distribution")
    with loopback("distribution") as made:
        yield made


class Storage:
    """Writes images into the files of Distribution that stands still, which takes a hundredth of the time of pushes."""

    def __init__(self, data: Path) -> None:
        self._root = data / "docker" / "registry" / "v2"
        self._tags = 0

    def fill(self, tags: int, largest: int) -> None:
        """Add *tags*, of which *largest* are in one repository; every second is an index of two images."""
        for number in range(tags):
            name = "large/app" if number < largest else f"team-{number % 50}/app-{number % REPOSITORIES}"
            self._tag(name, f"build-{self._tags}")
            self._tags += 1

    def _tag(self, name: str, tag: str) -> None:
        digest = self._index(name, tag) if self._tags % 2 else self._image(name, tag)
        self._link(name, f"tags/{tag}/current", digest)

    def _index(self, name: str, tag: str) -> str:
        children = [{"mediaType": oci.MANIFEST, "digest": self._image(name, f"{tag}-{n}"), "size": 400} for n in "ab"]
        return self._manifest(name, {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": children})

    def _image(self, name: str, marked: str) -> str:
        layers = [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": _digest(f"{name} {n}"), "size": 9}
            for n in range(8)
        ]
        config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": _digest(marked), "size": 9}
        document = {"schemaVersion": 2, "mediaType": oci.MANIFEST, "config": config, "layers": layers}
        return self._manifest(name, document)

    def _manifest(self, name: str, document: dict[str, Any]) -> str:
        content = json.dumps(document).encode()
        digest = oci.digest_of(content)
        plain = digest.removeprefix("sha256:")
        directory = self._root / "blobs" / "sha256" / plain[:2] / plain
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "data").write_bytes(content)
        self._link(name, f"revisions/sha256/{plain}", digest)
        return digest

    def _link(self, name: str, where: str, digest: str) -> None:
        directory = self._root / "repositories" / name / "_manifests" / where
        directory.mkdir(parents=True)
        (directory / "link").write_text(digest)
        (self._root / "repositories" / name / "_layers").mkdir(exist_ok=True)  # by it a repository is known


def _digest(text: str) -> str:
    return oci.digest_of(text.encode())


def measured(registry: Loopback, storage: Storage, tags: int) -> tuple[dict[str, Any], int]:
    """Add *tags*, and what a fresh process says of all, and the most bytes that it has in memory."""
    registry.stop()
    storage.fill(tags, tags * LARGEST // TAGS)
    registry.start()
    printed, memory = told("tests.bench.holdings", str(PORT), registry.ca, within=registry.network.argv())
    found: dict[str, Any] = json.loads(printed)
    return found, memory


def test_many_tags(registry: Loopback, capsys: pytest.CaptureFixture[str]) -> None:
    storage = Storage(registry.data)
    half, half_memory = measured(registry, storage, TAGS // 2)
    whole, memory = measured(registry, storage, TAGS // 2)
    with capsys.disabled():
        for found, most in ((half, half_memory), (whole, memory)):
            print(
                f"\n  {found['tags']} tags, {found['manifests']} manifests, {found['repositories']} repositories: "
                f"{found['cpu']:.1f} s of processor time, {found['seconds']:.1f} s in all, {most / MB:.0f} MB"
            )
    assert whole["tags"] == TAGS
    assert whole["manifests"] == 2 * TAGS
    assert whole["cpu"] < LINEAR * half["cpu"]
    assert memory < MOST_MEMORY
