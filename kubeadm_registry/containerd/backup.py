"""The way back: what containerd's files were before us, and what exactly we made of them.

``originals.json`` says of each file whether it was there, with which mode and owner, and which directories were not;
the copies lie below ``files/``. An entry is made before the first change and never written again. ``written.json``
says which keys we set and what the file's digest was after that, so that an edit made since can be told from our own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from kubeadm_registry import paths
from kubeadm_registry.containerd.settings import Edit
from kubeadm_registry.errors import Error
from kubeadm_registry.host import FileState, Host

DIRECTORY = f"{paths.ETC}/backup/containerd"
_ORIGINALS = f"{DIRECTORY}/originals.json"
_WRITTEN = f"{DIRECTORY}/written.json"

#: Prints those of the directories ``$@`` that are not there.
_MISSING = 'for path in "$@"; do [ -d "$path" ] || printf "%s\\n" "$path"; done'


@dataclass(frozen=True, slots=True)
class Originals:
    """What was there before: file -> mode and owner (None: no file), and the directories that were not."""

    files: dict[str, tuple[int, str] | None] = field(default_factory=dict)
    directories: tuple[str, ...] = ()

    @classmethod
    def read(cls, host: Host) -> Self:
        """From the host; empty if nothing was kept yet."""
        values = _load(host, _ORIGINALS)
        files = {
            path: (int(entry["mode"], 8), str(entry["owner"])) if entry else None
            for path, entry in values.get("files", {}).items()
        }
        return cls(files, tuple(values.get("directories", ())))

    def write(self, host: Host) -> None:
        """To the host, below a directory that only root may read."""
        files = {
            path: {"mode": f"{entry[0]:o}", "owner": entry[1]} if entry else None for path, entry in self.files.items()
        }
        _store(host, _ORIGINALS, {"files": files, "directories": list(self.directories)})

    def state(self, host: Host, path: str) -> FileState | None:
        """The original of *path*; None if there was no file."""
        entry = self.files[path]
        if entry is None:
            return None
        content = host.read(copy_of(path))
        if content is None:
            raise Error(
                f"the copy of {path} in {DIRECTORY} is gone", host=host.name, code="BackupMissing",
                hint=f"put the original of {path} back by hand, then remove {DIRECTORY}",
            )  # fmt: skip
        return FileState(content, *entry)


def copy_of(path: str) -> str:
    """Where the original of *path* is kept."""
    return f"{DIRECTORY}/files{path}"


@dataclass(frozen=True, slots=True)
class Keep:
    """The originals of *files*, and of *directories* the knowledge whether they were there, are kept. Once."""

    files: Sequence[str]
    directories: Sequence[str]

    @property
    def title(self) -> str:
        """What apply does."""
        return "keep a copy of containerd's configuration"

    def _missing(self, host: Host) -> tuple[list[str], list[str]]:
        known = Originals.read(host)
        files = [path for path in self.files if path not in known.files]
        there = [path for path in self.directories if path not in known.directories]
        gone = host.query("sh", "-c", _MISSING, "missing", *there).text.splitlines() if there else []
        return files, gone

    def diff(self, host: Host) -> str | None:
        """What is to be kept, or None."""
        files, directories = self._missing(host)
        said = [f"copied to {copy_of(path)}: {path}" for path in files]
        said += [f"noted as not there before: {path}" for path in directories]
        return "\n".join(said) or None

    def apply(self, host: Host) -> None:
        """Copy, and note what was copied last: a run that dies between leaves only a copy that nobody refers to."""
        files, directories = self._missing(host)
        known = Originals.read(host)
        entries = dict(known.files)
        for path in files:
            state = host.state(path)
            entries[path] = None if state is None else (state.mode, state.owner)
            if state is not None:
                make_parent(host, copy_of(path))
                host.write(copy_of(path), state.content, mode=state.mode & 0o600)
        Originals(entries, (*known.directories, *directories)).write(host)


@dataclass(frozen=True, slots=True)
class Written:
    """What we made of one file: the digest of all of it, and our edits. *edited*: by somebody else in between."""

    digest: str
    edits: tuple[Edit, ...]
    edited: bool


@dataclass(frozen=True, slots=True)
class Record:
    """All that we wrote: file -> Written, and the directories in which our hosts files lie."""

    files: dict[str, Written] = field(default_factory=dict)
    hosts_directories: tuple[str, ...] = ()

    @classmethod
    def read(cls, host: Host) -> Self:
        """From the host; empty if nothing was written yet."""
        values = _load(host, _WRITTEN)
        files = {
            path: Written(entry["sha256"], tuple(_edit(item) for item in entry["edits"]), bool(entry["edited"]))
            for path, entry in values.get("files", {}).items()
        }
        return cls(files, tuple(values.get("hostsDirectories", ())))

    def write(self, host: Host) -> None:
        """To the host."""
        files = {
            path: {
                "sha256": entry.digest,
                "edited": entry.edited,
                "edits": [dataclasses.asdict(item) for item in entry.edits],
            }
            for path, entry in self.files.items()
        }
        _store(host, _WRITTEN, {"files": files, "hostsDirectories": list(self.hosts_directories)})

    def with_file(
        self, path: str, edits: Sequence[Edit], *, original: bytes | None, before: bytes | None, after: bytes
    ) -> Record:
        """The record once *path*, of content *before*, has become *after* by *edits*."""
        entry = self.files.get(path)
        if before == original or entry is None:
            new = Written(digest(after), tuple(edits), before != original)
        else:
            known = {(item.table, item.key): item for item in entry.edits}
            for item in edits:
                # The value to go back to is the first one, not one of ours that was replaced since.
                first = known.get((item.table, item.key), item)
                known[item.table, item.key] = dataclasses.replace(item, old=first.old, opens=first.opens or item.opens)
            edited = entry.edited or digest(before or b"") != entry.digest
            new = Written(digest(after), tuple(known.values()), edited)
        return dataclasses.replace(self, files={**self.files, path: new})


def digest(content: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(content).hexdigest()


def make_parent(host: Host, path: str, mode: int = 0o755) -> None:
    """Make the directory that *path* lies in, and leave one that is there as it is."""
    host.run("mkdir", "-p", "-m", f"{mode:o}", "--", path.rpartition("/")[0])


def _edit(values: dict[str, Any]) -> Edit:
    return Edit(**{**values, "table": tuple(values["table"])})


def _load(host: Host, path: str) -> dict[str, Any]:
    content = host.read(path)
    if content is None:
        return {}
    try:
        values = json.loads(content)
    except ValueError as error:
        raise Error(
            f"{path} is damaged: {error}", host=host.name, code="BackupDamaged",
            hint=f"the originals lie below {DIRECTORY}/files; put them back by hand, then remove {DIRECTORY}",
        ) from error  # fmt: skip
    return dict(values)


def _store(host: Host, path: str, values: dict[str, Any]) -> None:
    make_parent(host, path, 0o700)
    host.write(path, (json.dumps(values, indent=2) + "\n").encode(), mode=0o600)
