"""Uploads of large blobs through the virtual IP: in pieces, broken off, resumed, mounted, with either frontend."""

from __future__ import annotations

import io
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from kubeadm_registry.registry import Registry as Client
from kubeadm_registry.registry import Upload
from tests.lab import images
from tests.lab.registry import Registry

pytest_plugins = ["tests.lab.registry"]

SIZE = 48 * 2**20
PIECE = 8 * 2**20


def noise(seed: int) -> bytes:
    """The content of a blob, another for each test."""
    source = random.Random(seed)
    return b"".join(source.randbytes(2**20) for _ in range(SIZE // 2**20))


@dataclass
class Blob:
    """A blob that counts what is read of it."""

    content: bytes
    opened: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)

    def source(self, offset: int) -> io.BytesIO:
        self.opened.append(offset)
        return io.BytesIO(self.content[offset:])

    @property
    def digest(self) -> str:
        return images.digest_of(self.content)


@pytest.fixture
def blob() -> Blob:
    return Blob(noise(time.time_ns()))


@pytest.fixture
def at(registry: Registry) -> Iterator[Client]:
    with registry.lab.network(), images.client(registry, role="push", timeout=60) as client:
        yield client


def test_in_pieces_then_mounted_by_another_repository(registry: Registry, at: Client, blob: Blob) -> None:
    Upload(at, "upload/one", blob.digest, SIZE, piece=PIECE, progress=blob.told.append).run(blob.source)
    assert blob.told == [*range(0, SIZE, PIECE), SIZE]
    assert at.blob("upload/one", blob.digest) == blob.content
    assert at.piece("upload/one", blob.digest, SIZE - 100, 100) == blob.content[-100:]
    opened = len(blob.opened)
    Upload(at, "upload/two", blob.digest, SIZE, piece=PIECE).run(blob.source, mount_from="upload/one")
    assert at.blob("upload/two", blob.digest) == blob.content
    if registry.frontend == "distribution":  # zot mounts only what its cache of duplicates knows, and has none on S3
        assert len(blob.opened) == opened, "nothing was sent"


class KilledError(Exception):
    """Stands for the end of the program."""


def test_a_later_run_sends_only_what_is_missing(registry: Registry, at: Client, blob: Blob) -> None:
    def half_way(taken: int) -> None:
        if taken >= SIZE // 2:
            raise KilledError

    first = Upload(at, "upload/resumed", blob.digest, SIZE, piece=PIECE, progress=half_way)
    with pytest.raises(KilledError):
        first.run(blob.source)
    blob.opened.clear()
    with images.client(registry, role="push", timeout=60) as other:
        again = Upload(other, "upload/resumed", blob.digest, SIZE, location=first.location, piece=PIECE)
        again.run(blob.source)
    assert min(blob.opened) == SIZE // 2
    assert at.blob("upload/resumed", blob.digest) == blob.content


def test_the_frontend_dies_in_the_middle(registry: Registry, at: Client, blob: Blob) -> None:
    """The upload goes on, or begins anew where the next writer does not know it; it ends well."""
    victim, done = registry.holder(), False

    def kill(taken: int) -> None:
        nonlocal done
        blob.told.append(taken)
        if taken >= SIZE // 2 and not done:
            done = True
            victim.kill(registry.unit("frontend"))

    begin = time.monotonic()
    Upload(at, "upload/killed", blob.digest, SIZE, piece=PIECE, progress=kill).run(blob.source)
    sent = sum(max(0, after - before) for before, after in zip(blob.told, blob.told[1:], strict=False))
    sys.stdout.write(
        f"\n  {registry.frontend}: killed at {SIZE // 2**21} of {SIZE // 2**20} MiB, {sent / 2**20:.0f} MiB sent, "
        f"{time.monotonic() - begin:.1f} s\n"
    )
    assert done
    assert at.blob("upload/killed", blob.digest) == blob.content


def test_tags_and_digests(registry: Registry, at: Client) -> None:
    image = images.image((1000,), seed=time.time_ns())
    for tag in ("v1", "v2", "v3"):
        images.push(registry, image, "upload/tagged", tag)
    assert sorted(at.tags("upload/tagged")) == ["v1", "v2", "v3"]
    assert at.digest("upload/tagged", "v2") == image.digest
    assert at.digest("upload/tagged", "none") is None
    assert at.referrers("upload/tagged", image.digest) == []
