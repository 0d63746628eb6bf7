"""The way back: what containerd's files were before us, and what exactly we made of them. See ``record``.

The copies lie below ``files/``. An entry is made before the first change and never written again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kubeadm_registry.containerd.record import DIRECTORY, ORIGINALS, WRITTEN, Original, Originals, Record, Written
from kubeadm_registry.containerd.settings import Refused
from kubeadm_registry.containerd.unmerge import unmerge
from kubeadm_registry.errors import Error
from kubeadm_registry.formats import Damaged, NewerFormat
from kubeadm_registry.transport.host import FileState, Host

_Kind = TypeVar("_Kind", Originals, Record)

_BY_HAND = (
    f"compare the originals in {DIRECTORY}/files with containerd's files, restore them manually, then remove "
    f"{DIRECTORY}"
)

#: Prints those of the directories ``$@`` that are not there.
_MISSING = 'for path in "$@"; do [ -d "$path" ] || printf "%s\\n" "$path"; done'


def originals(host: Host) -> Originals:
    """What was there before; empty if nothing was kept yet. Raises Error (BackupDamaged, NewerFormat)."""
    return _load(host, ORIGINALS, Originals)


def record(host: Host) -> Record:
    """What we wrote; empty if nothing was. Raises Error (BackupDamaged, NewerFormat)."""
    return _load(host, WRITTEN, Record)


def store(host: Host, what: Originals | Record) -> None:
    """To the host, below a directory that only root may read. Raises NewerFormat."""
    path = ORIGINALS if isinstance(what, Originals) else WRITTEN
    make_parent(host, path, 0o700)
    host.write(path, what.render(), mode=0o600)


def is_whole(host: Host) -> bool:
    """Whether the records say all that they must once anything was written."""
    known, written = originals(host), record(host)
    return host.query("test", "-e", WRITTEN).ok and written.files.keys() <= known.files.keys()


def problems(host: Host) -> Iterator[str]:
    """What keeps the records from being read and written on, a sentence with its remedy each."""
    for read in (originals, record):
        try:
            found: Originals | Record = read(host)
            found.render()
        except Error as error:
            yield f"{error.message}: {error.hint}"


def copy_of(path: str) -> str:
    """Where the original of *path* is kept."""
    return f"{DIRECTORY}/files{path}"


def restored(host: Host, path: str, original: Original, now: FileState, written: Written) -> FileState:
    """The original of the file *path*, which is *now* as we left it, for certain. Raises Error (BackupDamaged)."""
    content = host.read(copy_of(path))
    if content is None or original.sha256 not in (None, digest(content)):
        said = "gone" if content is None else "modified since it was made"
        # Without our keys it may well be the very original.
        content = _without_ours(now, written)
        if content is None or digest(content) != original.sha256:
            raise Error(
                f"the copy of {path} in {DIRECTORY} is {said}", host=host.name, code="BackupDamaged",
                hint=f"restore the original of {path} manually, then remove {DIRECTORY}",
            )  # fmt: skip
    return FileState(content, int(original.mode, 8), original.owner)


def _without_ours(now: FileState, written: Written) -> bytes | None:
    try:
        return unmerge(now.content.decode(), written.undoable).encode()
    except (Refused, UnicodeDecodeError):
        return None


def is_original(host: Host, path: str, original: Original | None, content: bytes) -> bool:
    """Whether *content* is what the file *path* was before us."""
    if original is None:
        return False
    if original.sha256 is None:
        return content == host.read(copy_of(path))
    return digest(content) == original.sha256


@dataclass(frozen=True, slots=True)
class Backup:
    """The originals of *files*, and of *directories* the knowledge whether they were there, are kept. Once."""

    files: Sequence[str]
    directories: Sequence[str]

    @property
    def title(self) -> str:
        """What apply does."""
        return "back up containerd's configuration"

    def _missing(self, host: Host) -> tuple[Originals, list[str], list[str]]:
        known = originals(host)
        files = [path for path in self.files if path not in known.files]
        there = [path for path in self.directories if path not in known.directories]
        gone = host.query("sh", "-c", _MISSING, "missing", *there).text.splitlines() if there else []
        return known, files, gone

    def diff(self, host: Host) -> str | None:
        """What is to be kept, or None."""
        _, files, directories = self._missing(host)
        said = [f"copied to {copy_of(path)}: {path}" for path in files]
        said += [f"recorded as absent before: {path}" for path in directories]
        return "\n".join(said) or None

    def apply(self, host: Host) -> None:
        """Copy, and note what was copied last: a run that dies between leaves only a copy that nobody refers to."""
        known, files, directories = self._missing(host)
        entries = dict(known.files)
        for path in files:
            state = host.state(path)
            entries[path] = None
            if state is not None:
                make_parent(host, copy_of(path))
                host.write(copy_of(path), state.content, mode=state.mode & 0o600)
                entries[path] = Original(mode=f"{state.mode:o}", owner=state.owner, sha256=digest(state.content))
        update = {"files": entries, "directories": (*known.directories, *directories)}
        store(host, known.model_copy(update=update))


def digest(content: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(content).hexdigest()


def make_parent(host: Host, path: str, mode: int = 0o755) -> None:
    """Make the directory that *path* lies in, and leave one that is there as it is."""
    host.run("mkdir", "-p", "-m", f"{mode:o}", "--", path.rpartition("/")[0])


def _load(host: Host, path: str, kind: type[_Kind]) -> _Kind:
    content = host.read(path)
    if content is None:
        return kind()
    try:
        return kind.parse(content)
    except Damaged as error:
        raise Error(f"{path} is damaged: {error}", host=host.name, code="BackupDamaged", hint=_BY_HAND) from error
    except NewerFormat as error:
        error.host = host.name
        raise
