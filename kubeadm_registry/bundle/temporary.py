"""Temporary files and directories that a killed run may leave behind, and that the next run then removes.

Each one is locked while it is used (flock(2)), and the kernel drops the lock with the process, however that ends. So
one that can be locked belongs to nobody. Where the file system has no locks, nothing is removed but by its own run.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from kubeadm_registry.disk import naming
from kubeadm_registry.errors import ConfigError

_SUFFIX = ".new"


@contextmanager
def file(folder: Path, name: str) -> Iterator[BinaryIO]:
    """A new file in *folder*, open for writing and reading; it is removed after the block, unless ``put`` moved it.

    Its name is made of *name*; what killed runs left under that name is removed first. Raises OSError.
    """

    def make() -> tuple[int, str]:
        return tempfile.mkstemp(dir=folder, prefix=prefix, suffix=_SUFFIX)

    def remove(path: Path) -> None:
        path.unlink(missing_ok=True)

    prefix = f".{name}."
    _sweep(folder, prefix, stat.S_ISREG, remove)
    with naming(folder / name), _held(make, remove) as path, path.open("w+b") as opened:
        yield cast(BinaryIO, opened)


def put(file: BinaryIO, target: Path, *, mode: int | None = None) -> None:
    """Move *file*, one of ``file``, to *target* in the same directory, flushed to the disk. Raises OSError."""
    file.flush()
    if mode is not None:
        with suppress(PermissionError):  # FAT has no modes
            os.fchmod(file.fileno(), mode)
    os.fsync(file.fileno())
    Path(file.name).replace(target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # folders that a virtual machine shares with its host know nothing of it
            raise
    finally:
        os.close(descriptor)


def target(output: Path, inputs: Iterable[Path] = ()) -> Path:
    """The file to write for *output*: where it leads if it is a link. Raises ConfigError for what must not be replaced.

    A rename would replace a device, as root even /dev/null, and the very bundle that a delta is made since: one of the
    *inputs*.
    """
    path = Path(os.path.realpath(output))
    wrong = ""
    if str(output) == "-":
        wrong = "standard output is not supported"
    elif path.is_dir():
        wrong = "it is a directory"
    elif not path.parent.is_dir():
        wrong = f"there is no directory {path.parent}"
    elif path.is_symlink() or (path.exists() and not path.is_file()):
        wrong = "it is not a regular file"
    elif path.exists():
        same = next((one for one in inputs if one.exists() and one.samefile(path)), None)
        wrong = f"the new file is created from {same}" if same is not None else ""
    if wrong:
        raise ConfigError(f"cannot write {output}: {wrong}", hint="use another path", code="OutputInvalid")
    return path


@contextmanager
def directory(prefix: str) -> Iterator[Path]:
    """An empty directory where temporary files belong, removed after the block with all in it.

    Those with *prefix* that killed runs left are removed first. Raises OSError.
    """

    def make() -> tuple[int, str]:
        while True:
            name = tempfile.mkdtemp(prefix=prefix, suffix=_SUFFIX)
            # One that begins at this moment, in another thread perhaps, takes it for left behind: nobody holds it yet.
            with suppress(FileNotFoundError):
                return os.open(name, os.O_RDONLY | os.O_DIRECTORY), name

    def remove(path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)

    _sweep(Path(tempfile.gettempdir()), prefix, stat.S_ISDIR, remove)
    with _held(make, remove) as path:
        yield path


@contextmanager
def _held(make: Callable[[], tuple[int, str]], remove: Callable[[Path], None]) -> Iterator[Path]:
    """What *make* made and opened, locked; after the block *remove* removes it."""
    while True:
        descriptor, name = make()
        path = Path(name)
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                yield path
                return
            # Another run removed it before it was locked.
        finally:
            remove(path)
            os.close(descriptor)


def _sweep(folder: Path, prefix: str, kind: Callable[[int], bool], remove: Callable[[Path], None]) -> None:
    """Remove what of this user's is in *folder*, of that *kind*, named as here, and locked by nobody."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if not re.fullmatch(re.escape(prefix) + "[a-z0-9_]{8}" + re.escape(_SUFFIX), entry.name):
                continue
            # What cannot be opened, locked or removed stays: it is only in the way.
            with suppress(OSError):
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    found = os.fstat(descriptor)
                    if kind(found.st_mode) and found.st_uid == os.geteuid():
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        remove(Path(entry.path))
                finally:
                    os.close(descriptor)
