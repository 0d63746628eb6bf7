"""Images made on the spot, of noise or of programs, described as OCI says."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubeadm_registry import paths
from kubeadm_registry.registry import Login as Credentials
from kubeadm_registry.registry import Registry as Client
from kubeadm_registry.registry import push_blob
from tests.lab.command import run
from tests.lab.registry import Registry

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
#: Python makes no more noise than this in one go: 256 MiB is its limit.
_PIECE = 2**20
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest_of(content: bytes) -> str:
    """``sha256:...``."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def tar_digest(layer: bytes) -> str:
    """The digest of the tar in the compressed *layer*."""
    return digest_of(gzip.decompress(layer))


@dataclass(frozen=True, slots=True)
class Image:
    """An image as its bytes."""

    manifest: bytes
    config: bytes
    layers: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return digest_of(self.manifest)

    @property
    def blobs(self) -> tuple[bytes, ...]:
        """Configuration and layers."""
        return (self.config, *self.layers)

    def write_layout(self, directory: Path, tag: str = "latest") -> Path:
        """Write it as an OCI image layout, which skopeo reads as ``oci:DIRECTORY:TAG``."""
        return write_layout(directory, {tag: self})


def write_layout(directory: Path, images: Mapping[str, Image]) -> Path:
    """Write *images*, by their names, as one OCI image layout into the new *directory*."""
    folder = directory / "blobs/sha256"
    folder.mkdir(parents=True)
    entries = []
    for name, image in images.items():
        for content in (image.manifest, *image.blobs):
            (folder / digest_of(content).partition(":")[2]).write_bytes(content)
        annotations = {"org.opencontainers.image.ref.name": name}
        entry = {"mediaType": MANIFEST, "digest": image.digest, "size": len(image.manifest), "annotations": annotations}
        entries.append(entry)
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    (directory / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    return directory


def read_layout(directory: Path) -> Image:
    """The only image of an OCI image layout."""

    def blob(described: Mapping[str, str]) -> bytes:
        return (directory / "blobs" / described["digest"].replace(":", "/")).read_bytes()

    [listed] = json.loads((directory / "index.json").read_bytes())["manifests"]
    manifest = json.loads(blob(listed))
    return Image(blob(listed), blob(manifest["config"]), tuple(map(blob, manifest["layers"])))


def image(sizes: Sequence[int] = (128 * 1024,), *, seed: int = 1) -> Image:
    """An image with one layer of noise for each of *sizes* (bytes, nearly), the same for the same *seed*."""
    source = random.Random(seed)
    layers, diffs = [], []
    for number, size in enumerate(sizes):
        content = b"".join(source.randbytes(min(_PIECE, size - at)) for at in range(0, size, _PIECE))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            entry = tarfile.TarInfo(f"noise-{number}")
            entry.size = size
            tar.addfile(entry, io.BytesIO(content))
        diffs.append(digest_of(buffer.getvalue()))
        layers.append(gzip.compress(buffer.getvalue(), compresslevel=0, mtime=0))
    return _described({}, layers, diffs)


def _described(settings: Mapping[str, object], layers: Sequence[bytes], diffs: Sequence[str]) -> Image:
    """An image of compressed *layers*, whose tars have the digests *diffs*, that starts as *settings* say."""
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": settings, "rootfs": {"type": "layers", "diff_ids": diffs}}
    ).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": digest_of(config), "size": len(config)},
        "layers": [{"mediaType": LAYER, "digest": digest_of(layer), "size": len(layer)} for layer in layers],
    }
    return Image(json.dumps(manifest).encode(), config, tuple(layers))


def packed(files: Mapping[str, Path], *, texts: Mapping[str, str] | None = None) -> Image:
    """An image of programs, by their places in it, that starts the first of them; *texts* are further files.

    One layer, the same bytes for the same files. A program that is linked dynamically brings its libraries.
    """
    sources = dict(files)
    for source in files.values():
        sources.update({library: Path(library) for library in _libraries(source)})
    contents = {"/etc/passwd": "root:x:0:0::/:/sbin/nologin\nnobody:x:65534:65534::/:/sbin/nologin\n", **(texts or {})}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for directory in _directories([*sources, *contents, "/tmp/-"]):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            tar.addfile(entry)
        for name, text in contents.items():
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
        for name, source in sources.items():
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.size, entry.mode = source.stat().st_size, 0o755
            with source.open("rb") as content:
                tar.addfile(entry, content)
    settings = {
        "Entrypoint": [next(iter(files))],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "WorkingDir": "/",
    }
    layer = gzip.compress(buffer.getvalue(), compresslevel=1, mtime=0)
    return _described(settings, [layer], [digest_of(buffer.getvalue())])


def _directories(files: Iterable[str]) -> list[str]:
    """The directories above *files*, the outer ones first, as a tar names them."""
    above = {str(parent) for file in files for parent in Path(file.lstrip("/")).parents}
    return sorted(above - {"."})


def _libraries(program: Path) -> list[str]:
    """The shared libraries of *program*, its loader among them; none of a static one."""
    return sorted(set(re.findall(r"(/\S+) \(0x", run("ldd", program, check=False).stdout)))


def client(registry: Registry, *, address: str = "", role: str = "", timeout: float = 20) -> Client:
    """A client of the registry at *address* (the VIP), logged in as *role*. Use it in the lab's network only."""
    credentials = None
    if role:
        login = registry.login(role)
        credentials = Credentials(login.username, login.password)
    ca = registry.ca.read_text()
    return Client(address or registry.vip, paths.REGISTRY_PORT, ca=ca, login=credentials, timeout=timeout)


def push(registry: Registry, what: Image, repository: str, tag: str = "latest", *, address: str = "") -> None:
    """Push *what*. Raises RegistryError."""
    with registry.lab.network(), client(registry, address=address, role="push", timeout=180) as at:
        for blob in what.blobs:
            push_blob(at, repository, digest_of(blob), blob)
        at.push_manifest(repository, tag, what.manifest, MANIFEST)


def missing(registry: Registry, what: Image, repository: str, *, address: str = "", timeout: float = 20) -> list[str]:
    """The digests of *what* that are not at *address* (the VIP), asked for without a login, with every byte checked.

    Raises RegistryError where there is no answer, or a wrong one; *timeout* is seconds of silence.
    """
    with registry.lab.network(), client(registry, address=address, timeout=timeout) as at:
        found = [what.digest] if at.manifest(repository, what.digest) is None else []
        digests = {digest_of(blob): len(blob) for blob in what.blobs}
        return found + [one for one, size in digests.items() if at.blob(repository, one, most=size) is None]
