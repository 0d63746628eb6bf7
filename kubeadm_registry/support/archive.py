"""The archive as one file: whole or not there, and for its owner alone."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kubeadm_registry.bundle import temporary


@dataclass(frozen=True, slots=True)
class Archive:
    """Where it is, its *size* in bytes, and the number of its *files*."""

    path: Path
    size: int
    files: int


def write(path: Path, files: Mapping[str, bytes]) -> Archive:
    """Write *files*, by their names, to the archive *path* (tar, gzip; mode 600). All are in one directory.

    Raises OSError, and ConfigError for what must not be replaced; then there is no new file.
    """
    target = temporary.target(path)
    top = path.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz") or "support"
    with temporary.file(target.parent, target.name) as new:
        with tarfile.open(fileobj=new, mode="w:gz") as tar:
            for place, content in sorted(files.items(), key=lambda item: (item[0] != "index.md", item[0])):
                entry = tarfile.TarInfo(f"{top}/{place}")
                entry.size, entry.mode, entry.mtime = len(content), 0o600, time.time()
                tar.addfile(entry, io.BytesIO(content))
        size = new.tell()
        temporary.put(new, target)
    return Archive(path, size, len(files))
