"""Reading files that people name, which may be anything: a pipe that nobody writes to must not make a run wait."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def regular(path: Path) -> BinaryIO:
    """Open the regular file *path*. Raises OSError, with what is wrong as strerror, for any other kind as well."""
    file = anything(path)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(None, "it is not a regular file", str(path))
    return file


def _at_once(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)


def anything(path: Path) -> BinaryIO:
    """Open *path*, also if it is a pipe, as in ``<(command)``; one that nobody writes to is empty. Raises OSError."""
    file = open(path, "rb", opener=_at_once)  # noqa: SIM115  whoever asked for it closes it
    os.set_blocking(file.fileno(), True)
    return file


def text(path: Path, most: int) -> str:
    """The text in *path*, of *most* bytes, without a byte order mark.

    Raises OSError with what is wrong as strerror, also for what is no text.
    """
    with anything(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        size = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"
        raise OSError(None, f"it is larger than {size}", str(path))
    try:
        if b"\0" not in content:  # UTF-8 all the same, as an archive of texts may be
            return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    raise OSError(None, "it is not a text file", str(path))


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """All that is below *folder*, as ``os.walk`` gives it.

    Raises OSError for a part that cannot be listed: what is in there would count as missing.
    """
    yield from os.walk(folder, onerror=_fail)


def _fail(error: OSError) -> None:
    raise error
