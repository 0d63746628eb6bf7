"""Errors of this machine's file systems: a full or read-only disk, a path that does not exist.

These are not bugs of this program. ``naming`` adds the name of the file where Python does not, as in errors of
``write``; ``refusal`` turns an OSError that was not handled elsewhere into an Error.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kubeadm_registry.errors import Error

_ROOM = (
    "free space there or use another path (--output-file for a bundle, TMPDIR for temporary files, "
    "XDG_CACHE_HOME for the cache, XDG_STATE_HOME for the state of seed), then run the command again"
)
_RIGHTS = "check the permissions (ls -ld) or use another path, then run the command again"
_PATH = "check the path, then run the command again"
#: By error number: the code and the hint. Other errors, mostly of the network, are handled where they occur.
_REFUSALS = {
    errno.ENOSPC: ("DiskFull", _ROOM),
    errno.EDQUOT: ("DiskFull", _ROOM),
    errno.EFBIG: ("FileTooLarge", "raise the limit (ulimit -f, or that of the file system), or use another path"),
    errno.EROFS: ("ReadOnly", "mount it read-write or use another path, then run the command again"),
    errno.EACCES: ("NotPermitted", _RIGHTS),
    errno.EPERM: ("NotPermitted", _RIGHTS),
    errno.EIO: ("DiskFailed", "check the kernel log for disk errors (dmesg)"),
    errno.EBADF: ("OutputClosed", "open standard output, for example redirect it to /dev/null"),
    errno.ENXIO: ("DiskFailed", "check the kernel log for errors of the device (dmesg)"),
    errno.ESTALE: ("DiskFailed", "mount the network file system again"),
    errno.EMFILE: ("TooManyFiles", "raise the limit of open files (ulimit -n), then run the command again"),
    errno.ENFILE: ("TooManyFiles", "raise the limit of open files (sysctl fs.file-max), then run the command again"),
    errno.ENOMEM: ("MemoryFull", "free memory, then run the command again"),
    errno.ENOENT: ("PathUnusable", _PATH),
    errno.ENOTDIR: ("PathUnusable", _PATH),
    errno.EISDIR: ("PathUnusable", _PATH),
    errno.EEXIST: ("PathUnusable", _PATH),
    errno.ENOTEMPTY: ("PathUnusable", _PATH),
    errno.ELOOP: ("PathUnusable", _PATH),
    errno.ENAMETOOLONG: ("PathUnusable", _PATH),
    errno.ENOLCK: (
        "PathUnusable",
        "use a path on a local disk (XDG_CACHE_HOME for the cache, XDG_STATE_HOME for the state of seed), then run the "
        "command again",
    ),
    errno.ETXTBSY: ("PathUnusable", "stop the program of that name, then run the command again"),
}


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add *path* to an error of the file system that names no file."""
    try:
        yield
    except OSError as error:
        if error.errno in _REFUSALS and error.filename is None:
            error.filename = os.fspath(path)
        raise


def refusal(error: OSError) -> Error | None:
    """*error* as an Error for the user; None if the file system is not its cause, which is then a bug."""
    if error.errno not in _REFUSALS or (error.errno == errno.EBADF and error.filename is None):
        return None
    code, hint = _REFUSALS[error.errno]
    # Of two names the first is a temporary file of this program, the second is the target.
    name = error.filename2 or error.filename
    where = f"{os.fsdecode(name)}: " if name is not None and not isinstance(name, int) else ""
    what = os.strerror(error.errno)
    return Error(f"{where or 'cannot continue: '}{what[:1].lower()}{what[1:]}", hint=hint, code=code)


def read_text(path: Path, most: int) -> str:
    """The UTF-8 text in the file *path*, which may be a pipe, without a byte order mark.

    Raises ValueError with the reason if it has more than *most* bytes or is not text; OSError.
    """
    with path.open("rb") as file, naming(path):
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most // 1024} KiB")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is UTF-16; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"it is not UTF-8 text: byte 0x{content[error.start]:02x} in line {line}") from None
