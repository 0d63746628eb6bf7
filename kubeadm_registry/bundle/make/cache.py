"""Manifests and blobs that were fetched or compressed for bundles, kept from run to run."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

from kubeadm_registry.bundle.failures import refused
from kubeadm_registry.disk import naming
from kubeadm_registry.errors import Error, RegistryError
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import retry
from kubeadm_registry.registry.client import Api


class Stopped(Error):
    """The run ends, so a download does."""


class Taken:
    """Counts what all downloads together have taken, and tells *tell* of it: bytes of *total*."""

    def __init__(self, total: int, tell: Callable[[int, int], None]) -> None:
        self._lock = threading.Lock()
        self._done = 0
        self._total = total
        self._tell = tell
        self._stopped = False
        tell(0, total)

    def stop(self) -> None:
        """Let all downloads end: none counts a byte more."""
        self._stopped = True

    def add(self, count: int) -> None:
        """*count* bytes more are here. Raises Stopped."""
        if self._stopped:
            raise Stopped("the run was stopped")
        with self._lock:
            self._done += count
            self._tell(self._done, self._total)

    def again(self, count: int) -> None:
        """*count* bytes that are counted already come once more."""
        with self._lock:
            self._total += count


class Blobs:
    """The blobs in a cache, by digest; a file of that name has been compared with it.

    *thorough*: those that are there are compared again, and removed if they were damaged since.
    """

    def __init__(self, cache: Path, *, thorough: bool = False) -> None:
        self._thorough = thorough
        self._folder = cache / "blobs" / "sha256"
        self._notes = cache / "blobs" / "notes"
        self._manifests = cache / "manifests"
        for folder in (self._folder, self._notes, self._manifests):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where the blob *digest* is, or would be."""
        return self._folder / digest.removeprefix("sha256:")

    def note(self, name: str) -> Path:
        """The file for a note called *name* about what is here."""
        return self._notes / name

    def has(self, blob: oci.Descriptor) -> bool:
        """Whether the blob is there, by its size: its content is compared when it is read."""
        path = self.path(blob.digest)
        if not (path.is_file() and path.stat().st_size == blob.size):
            return False
        if self._thorough:
            with path.open("rb") as file:
                if oci.digest_of_file(file) != blob.digest:
                    path.unlink()
                    return False
        return True

    def keep(self, name: str, content: bytes, kind: str) -> None:
        """Keep the manifest *content* of the type *kind*, which *name* means now."""
        path = self._manifest(name)
        with naming(path):
            path.write_bytes(f"{oci.digest_of(content)} {kind}\n".encode() + content)

    def kept(self, name: str) -> tuple[bytes, str] | None:
        """The manifest that *name* meant when it was kept, and its type; None if there is none, or it was damaged."""
        try:
            head, _, content = self._manifest(name).read_bytes().partition(b"\n")
            digest, _, kind = head.decode().partition(" ")
        except (OSError, UnicodeDecodeError):
            return None
        return (content, kind) if oci.digest_of(content) == digest else None

    def _manifest(self, name: str) -> Path:
        return self._manifests / hashlib.sha256(name.encode()).hexdigest()

    def opener(self, digest: str) -> Callable[[], io.BufferedReader]:
        """A way to open the blob."""
        path = self.path(digest)
        return lambda: path.open("rb")

    def fetch(self, blob: oci.Descriptor, registry: Api, repository: str, patience: float, taken: Taken) -> None:
        """Bring *blob*, from the byte on where an earlier run stopped, whose bytes may be damaged since.

        Raises BundleError, RegistryError.
        """
        part = self.path(blob.digest).with_suffix(".part")
        hashed = hashlib.sha256()
        with naming(part), part.open("a+b") as file:
            file.seek(0)
            while chunk := file.read(oci.CHUNK):
                hashed.update(chunk)
            kept = file.tell()
            taken.add(kept)

            def attempt() -> None:
                for chunk in registry.stream(repository, blob.digest, file.tell()):
                    if file.tell() + len(chunk) > blob.size:
                        raise refused(f"{registry.name} sent more bytes than {blob.digest} has", hint="try again")
                    hashed.update(chunk)
                    file.write(chunk)
                    taken.add(len(chunk))
                if file.tell() < blob.size:
                    raise RegistryError(f"{registry.name} sent fewer bytes than {blob.digest} has", temporary=True)

            if file.tell() < blob.size:
                retry(attempt, patience, reached=file.tell)
            file.flush()
            os.fsync(file.fileno())  # or a power cut leaves zeros under the name of a blob
            came = file.tell()
        if "sha256:" + hashed.hexdigest() == blob.digest:
            part.replace(self.path(blob.digest))
            return
        part.unlink()
        if not kept:
            raise refused(f"content from {registry.name} does not match the digest {blob.digest}", hint="try again")
        taken.again(came)
        self.fetch(blob, registry, repository, patience, taken)
