"""The client of the distribution API against the registries that there are, each alone on loopback with a folder.

Distribution 2.8 is Debian's, as in a bundle; 3 is built from its source; zot is that of KUBEADM_REGISTRY_ZOT.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from kubeadm_registry import pki
from kubeadm_registry.bundle import Bundle
from kubeadm_registry.bundle.make import FromLayout, choose, create
from kubeadm_registry.errors import RegistryError
from kubeadm_registry.images import referrers
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Deleted, Registry, Upload, push_blob, referrers_tag
from kubeadm_registry.registry.answers import Answer
from tests.lab import images, programs
from tests.lab.command import cache, wait_until
from tests.lab.fresh import require_frontend
from tests.lab.standalone import ADDRESS, distribution, zot

ROOT = Path(__file__).parents[2]
KINDS = ("distribution", "distribution3", "zot")
PIECE = 2**20
CONTENT = hashlib.shake_256(b"a blob of five pieces").digest(5 * PIECE)
DIGEST = oci.digest_of(CONTENT)


@dataclass(frozen=True, slots=True)
class Served:
    """A registry of *kind* at *port*, and who it trusts."""

    kind: str
    port: int
    ca: str

    def client(self) -> Registry:
        return Registry(ADDRESS, self.port, ca=self.ca, timeout=20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


def debians(folder: Path) -> list[str]:
    """Distribution 2.8 out of a bundle; the loader of its tree starts it from any place."""
    if shutil.which("apt-get") is None:
        pytest.skip("this machine has no apt, which fetches Debian's Distribution")
    create(folder / "bundle.tar", choose(["distribution"]), cache=cache() / "bundle")
    with Bundle.open(folder / "bundle.tar") as bundle:
        bundle.extract(bundle.programs["distribution"], folder / "layer.tar.gz")
    with tarfile.open(folder / "layer.tar.gz") as layer:
        layer.extractall(folder / "tree", filter="data")
    [loader] = (folder / "tree/lib").glob("ld-linux-*")
    libraries = str(folder / "tree/lib")
    return [str(loader), "--library-path", libraries, str(folder / "tree/bin/docker-registry")]


def command(kind: str, folder: Path, port: int) -> list[str]:
    """Write the registry's configuration; how to start it. Skips where there is none."""
    file = folder / "config.json"  # which is YAML as well
    settings = zot if kind == "zot" else distribution
    file.write_text(json.dumps(settings(folder / "data", port, folder / "tls.crt", folder / "tls.key")))
    if kind == "zot":
        require_frontend(kind)
        return [str(programs.zot()), "serve", str(file)]
    program = debians(folder) if kind == "distribution" else [str(programs.program("registry"))]
    return [*program, "serve", str(file)]


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    kind, folder, port = str(request.param), tmp_path_factory.mktemp(str(request.param)), free_port()
    authority = pki.make_ca("registries")
    pair = pki.issue(authority, "registry", (ADDRESS,))
    (folder / "tls.crt").write_text(pair.certificate)
    (folder / "tls.key").write_text(pair.key)
    argv = command(kind, folder, port)
    with (folder / "log").open("wb") as log:
        environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
        process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
    registry = Served(kind, port, authority.certificate)

    def answers() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"{kind} has ended: {(folder / 'log').read_text()[-2000:]}")
        try:
            with registry.client() as at:
                at.ping()
        except RegistryError:
            return False
        return True

    try:
        wait_until(f"{kind} on port {port}", answers, seconds=30, every=0.1)
        yield registry
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def at(served: Served) -> Iterator[Registry]:
    with served.client() as client:
        yield client


def source(content: bytes) -> Callable[[int], io.BytesIO]:
    return lambda offset: io.BytesIO(content[offset:])


def push_image(at: Registry, repository: str, tag: str, *, subject: oci.Descriptor | None = None) -> oci.Descriptor:
    """Push an image of one small layer, unlike all others; its descriptor."""
    config, layer = b"{}", f"{repository} {tag} {time.time_ns()}".encode()
    for content in (config, layer):
        push_blob(at, repository, oci.digest_of(content), content)
    manifest = oci.Manifest(
        artifact_type="application/vnd.example.test",
        config=oci.Descriptor(media_type=oci.CONFIG, digest=oci.digest_of(config), size=len(config)),
        layers=(oci.Descriptor(media_type=oci.LAYER, digest=oci.digest_of(layer), size=len(layer)),),
        subject=subject,
    ).to_json()
    digest = oci.digest_of(manifest)
    at.push_manifest(repository, tag or digest, manifest, oci.MANIFEST)
    return oci.Descriptor(media_type=oci.MANIFEST, digest=digest, size=len(manifest))


class KilledError(Exception):
    """Stands for the end of the program."""


def stop_at(size: int) -> Callable[[int], None]:
    """Progress of a run that ends when the registry has *size* bytes."""

    def stop(taken: int) -> None:
        if taken >= size:
            raise KilledError

    return stop


def test_a_blob_in_pieces_goes_on_in_a_later_run(served: Served, at: Registry) -> None:
    opened: list[int] = []

    def read(offset: int) -> io.BytesIO:
        opened.append(offset)
        return io.BytesIO(CONTENT[offset:])

    first = Upload(at, "a/pieces", DIGEST, len(CONTENT), piece=PIECE, progress=stop_at(2 * PIECE))
    with pytest.raises(KilledError):
        first.run(read)
    opened.clear()
    with served.client() as other:
        Upload(other, "a/pieces", DIGEST, len(CONTENT), piece=PIECE, location=first.location).run(read)
    assert min(opened) == 2 * PIECE, "what was there was not sent again"
    assert at.blob("a/pieces", DIGEST) == CONTENT


def test_a_mount_from_the_repository_itself_asks_and_begins_in_one(at: Registry) -> None:
    """What a seed counts on: a blob that is there costs one request, and one that is not costs no more than before."""
    content = b"of the repository's own"
    digest = oci.digest_of(content)
    assert at.begin_upload("a/itself", mount=digest, source="a/itself"), "no repository yet"
    Upload(at, "a/itself", digest, len(content)).run(source(content), mount_from="a/itself")
    assert at.blob("a/itself", digest) == content
    assert at.begin_upload("a/itself", mount=digest, source="a/itself") == "", "it is there"
    assert at.begin_upload("a/itself", mount=DIGEST.replace("0", "1"), source="a/itself"), "another blob is not"


def test_an_upload_that_is_cut_off_in_a_piece(served: Served, at: Registry) -> None:
    """Only Distribution 3 keeps what it has: with the others a seed that was killed begins the blob anew."""
    cut = PIECE + PIECE // 2

    def dying() -> Iterator[bytes]:
        yield CONTENT[PIECE:cut]
        wait_until("the registry to have it", lambda: time.monotonic() > begin + 0.3, seconds=1)
        raise KilledError

    begin = time.monotonic()
    content = {"Content-Type": "application/octet-stream", "Content-Length": str(PIECE)}
    headers = {**content, "Content-Range": f"0-{PIECE - 1}"}
    place = at.begin_upload("a/cut")
    place = at.send("PATCH", place, content=CONTENT[:PIECE], headers=headers).headers["Location"]
    with pytest.raises(KilledError):
        at.send("PATCH", place, content=dying(), headers={**content, "Content-Range": f"{PIECE}-{2 * PIECE - 1}"})
    told: list[Answer] = []

    def settled() -> bool:
        with served.client() as other:
            told.append(other.send("GET", place))
        return told[-1].status_code == 404 or told[-1].headers["Range"] == f"0-{cut - 1}"

    wait_until("the registry to notice", settled, seconds=30)
    assert told[-1].status_code == (204 if served.kind == "distribution3" else 404)
    with served.client() as other:
        Upload(other, "a/cut", DIGEST, len(CONTENT), piece=PIECE, location=place).run(source(CONTENT))
    assert at.blob("a/cut", DIGEST) == CONTENT


def test_parts_of_a_blob_are_read(at: Registry) -> None:
    Upload(at, "a/parts", DIGEST, len(CONTENT)).run(source(CONTENT))
    assert at.piece("a/parts", DIGEST, len(CONTENT) - 10, 100) == CONTENT[-10:]
    assert b"".join(at.stream("a/parts", DIGEST)) == CONTENT
    assert b"".join(at.stream("a/parts", DIGEST, len(CONTENT) - 1000)) == CONTENT[-1000:]
    assert at.piece("a/parts", "sha256:" + "0" * 64, 0, 1) is None


def test_a_wrong_blob_is_refused(at: Registry) -> None:
    with pytest.raises(RegistryError):
        Upload(at, "a/wrong", "sha256:" + "0" * 64, len(CONTENT), patience=0).run(source(CONTENT))
    assert not at.has_blob("a/wrong", "sha256:" + "0" * 64)


def test_wrong_bytes_of_an_earlier_run_are_replaced(served: Served, at: Registry) -> None:
    """A damaged copy of a bundle was seeded, in a run that was killed or that was refused; then a good one is."""
    wrong = bytes(PIECE) + CONTENT[PIECE:]
    killed = Upload(at, "a/replaced", DIGEST, len(CONTENT), piece=PIECE, progress=stop_at(2 * PIECE))
    with pytest.raises(KilledError):
        killed.run(source(wrong))
    refused = Upload(at, "a/replaced", DIGEST, len(CONTENT), piece=PIECE)
    with pytest.raises(RegistryError):
        refused.run(source(wrong))
    assert refused.location == ""
    with served.client() as other:
        Upload(other, "a/replaced", DIGEST, len(CONTENT), piece=PIECE, location=killed.location).run(source(CONTENT))
    assert at.blob("a/replaced", DIGEST) == CONTENT


def test_an_upload_that_was_cancelled_is_gone(at: Registry) -> None:
    place = at.begin_upload("a/cancelled")
    at.cancel_upload(place)
    assert at.send("GET", place).status_code != httpx.codes.NO_CONTENT
    at.cancel_upload(place)  # as often as one likes


def test_a_blob_of_another_repository_is_mounted(at: Registry) -> None:
    content = os.urandom(PIECE)
    digest = oci.digest_of(content)
    Upload(at, "a/home", digest, len(content)).run(source(content))
    again = Upload(at, "a/mounted", digest, len(content))
    again.run(source(content), mount_from="a/home")
    assert again.sent == 0
    assert at.blob("a/mounted", digest) == content


def test_an_empty_blob(at: Registry) -> None:
    digest = oci.digest_of(b"")
    Upload(at, "a/empty", digest, 0).run(source(b""))
    assert at.blob("a/empty", digest) == b""


def test_all_tags_and_repositories_over_many_pages(at: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubeadm_registry.registry.client._PAGE", 2)
    tags = [f"v{number}" for number in range(5)]
    for tag in tags:
        push_image(at, "pages/one", tag)
    for name in ("pages/two", "pages/three"):
        push_image(at, name, "v1")
    assert sorted(at.tags("pages/one")) == tags
    assert {"pages/one", "pages/two", "pages/three"} <= set(at.repositories())
    assert at.tags("pages/none") == []


def test_what_refers_to_an_image_is_found(served: Served, at: Registry) -> None:
    """By the registry's own list (zot), or by the tag that the client keeps (Distribution, also 3)."""
    subject = push_image(at, "a/subject", "v1")
    assert at.referrers("a/subject", subject.digest) == []
    wanted = []
    for number in range(2):
        content = oci.Manifest(
            artifact_type="application/vnd.example.test",
            config=oci.Descriptor(media_type=oci.EMPTY, digest=oci.digest_of(b"{}"), size=2),
            subject=subject,
            annotations={"number": str(number)},
        ).to_json()
        one = oci.Descriptor(media_type=oci.MANIFEST, digest=oci.digest_of(content), size=len(content))
        push_blob(at, "a/subject", oci.digest_of(b"{}"), b"{}")
        referrers.push(at, "a/subject", one.digest, one, content)
        assert referrers.is_noted(at, "a/subject", one, content)
        wanted.append((one.digest, "application/vnd.example.test", {"number": str(number)}))
    found = at.referrers("a/subject", subject.digest)
    assert sorted((one["digest"], one["artifactType"], one["annotations"]) for one in found) == sorted(wanted)
    kept = [] if served.kind == "zot" else [referrers_tag(subject.digest)]
    assert sorted(at.tags("a/subject")) == [*kept, "v1"]


def test_a_list_of_what_refers_outlives_what_was_deleted(served: Served, at: Registry) -> None:
    if served.kind == "zot":
        pytest.skip("zot keeps the list itself")
    subject = push_image(at, "a/outlived", "v1")
    first, second = (push_image(at, "a/outlived", "", subject=subject) for _ in range(2))
    for one in (first, second):
        content = at.manifest("a/outlived", one.digest)
        assert content is not None
        referrers.push(at, "a/outlived", one.digest, one, content)
        if one is first:
            assert at.delete_manifest("a/outlived", one.digest)
    assert [one["digest"] for one in at.referrers("a/outlived", subject.digest)] == [second.digest]


def test_tags_and_manifests_are_deleted(served: Served, at: Registry) -> None:
    first = push_image(at, "a/deleted", "v1")
    content = at.manifest("a/deleted", "v1")
    assert content is not None
    at.push_manifest("a/deleted", "v2", content, oci.MANIFEST)
    if served.kind == "distribution":  # 2.8 deletes by digest alone
        with pytest.raises(RegistryError):
            at.delete_manifest("a/deleted", "v2")
    else:
        assert at.delete_manifest("a/deleted", "v2")
        assert at.digest("a/deleted", "v2") is None
    assert at.digest("a/deleted", "v1") == first.digest, "the other tag stays"
    assert at.delete_manifest("a/deleted", first.digest)
    assert at.manifest("a/deleted", first.digest) is None
    assert not at.delete_manifest("a/deleted", first.digest)


def test_a_blob_that_a_manifest_needs_is_not_deleted(served: Served, at: Registry) -> None:
    """What freeing counts on, with the frontend that frees blobs one by one."""
    if served.kind != "zot":
        pytest.skip("Distribution unlinks a blob whatever needs it, so it is never asked")
    first, second = (push_image(at, "a/freed", tag) for tag in ("v1", "v2"))
    content = at.manifest("a/freed", first.digest)
    assert content is not None
    parsed = oci.parse(oci.Manifest, content, "v1")
    shared, own = parsed.config.digest, parsed.layers[0].digest
    assert at.delete_blob("a/freed", own) is Deleted.NEEDED
    assert at.delete_manifest("a/freed", first.digest)
    assert at.delete_blob("a/freed", shared) is Deleted.NEEDED, "the other image has the same"
    assert at.delete_blob("a/freed", own) is Deleted.GONE
    assert at.delete_blob("a/freed", own) is Deleted.ABSENT
    assert at.delete_blob("a/freed", second.digest) is Deleted.NEEDED, "a manifest is one of its repository's"
    with pytest.raises(RegistryError, match="MANIFEST_INVALID"):
        at.push_manifest("a/freed", "late", content, oci.MANIFEST)
    assert at.digest("a/freed", "late") is None, "no push is acknowledged whose layer has gone"


# The command


def seed_to(served: Served, folder: Path, target: str, *options: str) -> subprocess.CompletedProcess[str]:
    """``seed --to`` as somebody runs it who trusts the registry's authority, from the folder with the bundle."""
    (folder / "ca.crt").write_text(served.ca)
    environment = {**os.environ, "SSL_CERT_FILE": str(folder / "ca.crt"), "XDG_STATE_HOME": str(folder / "state"),
                   "PYTHONPATH": str(ROOT), "HOME": str(folder)}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "kubeadm_registry", "seed", "--bundle", "bundle.tar", "--to", target, *options],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_bundle_is_loaded_into_a_registry_that_is_not_ours(served: Served, at: Registry, tmp_path: Path) -> None:
    wanted = {
        f"registry.k8s.io/elsewhere/app-{number}:v1": images.image((3 * PIECE, 1000), seed=number) for number in (1, 2)
    }
    layouts = [FromLayout(one.write_layout(tmp_path / str(n)), name) for n, (name, one) in enumerate(wanted.items())]
    create(tmp_path / "bundle.tar", {}, images=layouts)
    target = f"{ADDRESS}:{served.port}"
    first = seed_to(served, tmp_path, f"{target}/mirror")
    assert first.returncode == 0, first.stderr
    assert re.search(rf"^2 images can be pulled from {target}/mirror; 6\.3 MB sent$", first.stdout, re.MULTILINE)
    for name, image in wanted.items():
        repository = f"mirror/{name.removesuffix(':v1')}"
        assert at.digest(repository, "v1") == image.digest
        assert all(at.blob(repository, images.digest_of(blob)) == blob for blob in image.blobs)
    assert not at.tags("kubeadm-registry/bundle"), "what is not ours is told nothing of bundles"
    again = seed_to(served, tmp_path, f"{target}/mirror", "-o", "json")
    assert json.loads(again.stdout.splitlines()[-1])["sent"] == 0


def test_a_registry_that_is_not_there_is_told(served: Served, tmp_path: Path) -> None:
    create(
        tmp_path / "bundle.tar", {}, images=[FromLayout(images.image((10,)).write_layout(tmp_path / "1"), "a.b/c:d")]
    )
    absent = seed_to(served, tmp_path, f"{ADDRESS}:{free_port()}")
    assert absent.returncode != 0
    assert "Traceback" not in absent.stderr
    assert seed_to(served, tmp_path, "https://registry.example").returncode == 2
