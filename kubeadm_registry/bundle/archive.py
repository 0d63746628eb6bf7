"""Tar archives, read without trust and written the same way every time.

Python's ``tarfile`` accepts what this reader must not (links, sparse files, headers of any length), and a hostile
header makes it read as much memory as the file has. The format read here is POSIX.1-1988 ustar, with the long names
of GNU tar and the ``path`` and ``size`` records of POSIX.1-2001 (pax), which is what OCI tools write.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from kubeadm_registry.disk import naming
from kubeadm_registry.errors import damaged

BLOCK = 512
#: The most members that an archive may have; a bundle with every Kubernetes image has a few hundred.
MAX_MEMBERS = 100_000
#: The longest extended header, in bytes; real ones are under 1 KiB.
MAX_EXTENDED_HEADER = 64 * 1024
#: The most extended headers before one member, of which tools write two, and the bytes of all in an archive: as many as
#: tools write for MAX_MEMBERS.
MAX_EXTENDED_HEADERS = 4
MAX_EXTENDED_BYTES = 16 * 1024 * 1024
#: The most records in an extended header; tools write one for each field and each attribute of a file.
MAX_RECORDS = 64
#: The most zeros at the end, in bytes: records are 10 KiB, but dd with conv=sync fills up blocks of its own.
MAX_PADDING = 64 * 1024 * 1024
#: The largest member, in bytes: as much as a descriptor may say.
MAX_SIZE = 2**50

#: Records of pax that change how others read a name or a content; what writes them has no place in a bundle.
_REFUSED = (b"GNU.sparse", b"hdrcharset")
_PLAIN = "write the archive again, with files alone: tar --dereference --hard-dereference, without --sparse"
_RECORDS = frozenset({b"path", b"linkpath", b"size"})
_LENGTH = re.compile(rb"([0-9]{1,6}) ")
#: Surrogates are what Python makes of bytes that are no UTF-8, in the names of files.
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f\\\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Member:
    """A file or directory in an archive: where its content begins (*offset*, bytes) and how long it is (*size*)."""

    name: str
    offset: int
    size: int
    executable: bool
    directory: bool
    link: str = ""
    """The member that this one stands for, if it is a link; it may be missing."""


def safe_name(name: str) -> str:
    """Return *name* as a relative path without ``.`` parts; raises BundleError if it could leave its directory."""
    parts = [part for part in name.rstrip("/").split("/") if part != "."]
    if (
        name.startswith("/")
        or not _PRINTABLE.fullmatch(name)
        or any(part in {"", ".."} or len(part.encode()) > 255 for part in parts)
    ):
        raise damaged(f"unsafe name in an archive: {name[:200]!r}")
    return "/".join(parts)


def members(file: BinaryIO, *, max_bytes: int | None = None, links: bool = False) -> Iterator[Member]:
    """Go through the archive *file* from its start and give each member, at whose content the file then stands.

    The caller may read from *file* between members. Raises BundleError for anything but plain files and directories,
    for unsafe or repeated names, for an archive that is cut short or goes on after its end, and when the contents
    add up to more than *max_bytes*. With *links* also links are given, and refused if they lead out of the archive.
    """
    seen: set[str] = set()
    total = 0
    position = 0
    extended: dict[str, str] = {}
    headers = extended_bytes = 0
    while True:
        file.seek(position)
        block = file.read(BLOCK)
        if not block.strip(b"\0"):
            if len(block) < BLOCK:
                raise damaged("the archive is truncated: the end mark is missing")
            _expect_end(file)
            return
        header = _Header.parse(block)
        content = position + BLOCK
        if header.kind in b"xgLK":
            extended = _both(extended, _extended(file, header))
            position = content + _padded(header.size)
            headers, extended_bytes = headers + 1, extended_bytes + header.size
            if headers > MAX_EXTENDED_HEADERS or extended_bytes > MAX_EXTENDED_BYTES:
                raise damaged("the archive has too many extended headers")
            continue
        linked = links and header.kind in b"12"
        if header.kind not in b"0\x005" and not linked:
            raise damaged(
                f"{header.name[:200]!r} in the archive is neither a file nor a directory",
                hint=_PLAIN if header.kind in b"12S" else "",
            )
        size = _size(extended["size"]) if "size" in extended else header.size
        name = safe_name(extended.get("path", header.name))
        link = _target(name, extended.get("linkpath", header.link), symbolic=header.kind == b"2") if linked else ""
        if "linkpath" in extended and not linked:
            raise damaged(f"{name!r} in the archive is an invalid link")
        extended, headers = {}, 0
        directory = header.kind == b"5"
        if directory and size:
            raise damaged(f"directory {name!r} in the archive has content")
        total += size
        position = content + _padded(size)
        if max_bytes is not None and total > max_bytes:
            raise damaged(f"the archive unpacks to more than {max_bytes} bytes")
        if not name and directory:  # "./", the directory itself
            continue
        if name in seen:
            raise damaged(f"{name!r} is in the archive twice")
        seen.add(name)
        if len(seen) > MAX_MEMBERS:
            raise damaged(f"the archive has more than {MAX_MEMBERS} members")
        yield Member(name, content, size, bool(header.mode & 0o100), directory, link)


def _target(name: str, link: str, *, symbolic: bool) -> str:
    """The name that a link leads to: a hard link's is a name in the archive, a symbolic one's is seen from itself."""
    folder = name.rpartition("/")[0] if symbolic else ""
    return safe_name("/" if link.startswith("/") else posixpath.normpath(posixpath.join(folder, link)))


def _expect_end(file: BinaryIO) -> None:
    """Accept a second empty block and the zeros that fill up the last record, and nothing after them."""
    rest = file.read(1024 * 1024)
    if len(rest) < BLOCK:
        raise damaged("the archive is truncated: half of the end mark is missing")
    length = 0
    while rest:
        length += len(rest)
        if rest.strip(b"\0") or length > MAX_PADDING:
            raise damaged("the archive continues after its end mark")
        rest = file.read(1024 * 1024)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    mode: int
    size: int
    kind: bytes
    link: str

    @classmethod
    def parse(cls, block: bytes) -> _Header:
        if len(block) < BLOCK:
            raise damaged("the archive is truncated within a header")
        if block[257:262] != b"ustar":
            raise damaged("not a tar archive, or the archive is damaged")
        if sum(block[:148]) + sum(block[156:]) + 8 * 0x20 != _number(block[148:156]):
            raise damaged("a header in the archive has a wrong checksum")
        name = _text(block[:100])
        # GNU tar keeps other things where POSIX has the prefix, and marks itself by a blank after the magic.
        if block[262:263] == b"\0" and (prefix := _text(block[345:500])):
            name = f"{prefix}/{name}"
        size = _bounded(_number(block[124:136]))
        return cls(name, _number(block[100:108]), size, block[156:157], _text(block[157:257]))


def _text(field: bytes) -> str:
    try:
        return field.split(b"\0", 1)[0].decode()
    except UnicodeDecodeError as error:
        raise damaged("a name in the archive is not UTF-8") from error


def _number(field: bytes) -> int:
    """Read a number that is octal digits, or binary when its first bit is set (GNU tar, above 8 GiB)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not re.fullmatch(rb"[0-7]*", digits):
        raise damaged("a number in an archive's header is not a number")
    return int(digits or b"0", 8)


def _size(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise damaged("a size in the archive is not a number")
    return _bounded(int(text))


def _bounded(size: int) -> int:
    if size > MAX_SIZE:
        raise damaged(f"a file in the archive has {size} bytes")
    return size


def _extended(file: BinaryIO, header: _Header) -> dict[str, str]:
    """Read an extended header: the long name of GNU tar, or the records of pax (``LENGTH KEY=VALUE`` and a newline)."""
    if header.size > MAX_EXTENDED_HEADER:
        raise damaged(f"an extended header in the archive has {header.size} bytes")
    content = file.read(header.size)
    if len(content) < header.size:
        raise damaged("the archive is truncated within an extended header")
    if header.kind in b"LK":
        return {"path" if header.kind == b"L" else "linkpath": _text(content)}
    return _records(content, shared=header.kind == b"g")


def _both(one: dict[str, str], other: dict[str, str]) -> dict[str, str]:
    """What two extended headers of one member say. Raises BundleError if both say the same thing.

    Which of them counts depends on the tool: GNU tar prefers that of pax, wherever it stands.
    """
    if one.keys() & other.keys():
        raise damaged("a member of the archive has two names or sizes")
    return one | other


def _records(content: bytes, *, shared: bool) -> dict[str, str]:
    """The records in *content* that say something of a member; if *shared*, of all that follow, which is refused."""
    records: dict[str, str] = {}
    begin = count = 0
    while begin < len(content):
        # A length has six digits at most, by MAX_EXTENDED_HEADER. Each byte is looked at once, however many records
        # there are: this is done before any signature is checked.
        found = _LENGTH.match(content, begin)
        end = begin + int(found[1]) if found else 0
        if found is None or not found.end() < end <= len(content):
            raise damaged("an extended header in the archive has a wrong length")
        if (count := count + 1) > MAX_RECORDS:
            raise damaged(f"an extended header in the archive has more than {MAX_RECORDS} records")
        key, _, value = content[found.end() : end - 1].partition(b"=")
        if key.startswith(_REFUSED) or (shared and key in _RECORDS):
            raise damaged(f"the archive uses {key.decode(errors='replace')[:50]}, which is not supported", hint=_PLAIN)
        if key in _RECORDS:
            records[key.decode()] = _text(value)
        begin = end
    return records


def put_last(file: BinaryIO, name: str, content: bytes) -> None:
    """Make the small file *name* the last one of the archive *file*, which is open for reading and writing.

    One of that name which is the last already is replaced. The header is written after all else: an archive is whole
    without the new file until it is whole with it. Raises BundleError for an archive that *name* is elsewhere in.
    """
    begin = end = 0
    last = ""
    for member in members(file):
        if last == name:
            raise damaged(f"{name} is not the last file of the archive", hint="make the bundle again")
        begin, end, last = end, member.offset + _padded(member.size), member.name
    if last != name:
        begin = end
    new = io.BytesIO()
    writer = Writer(new)
    writer.file(name, io.BytesIO(content), len(content))
    writer.finish()
    written = new.getvalue()
    file.seek(begin + BLOCK)
    file.write(written[BLOCK:])
    file.flush()
    os.fsync(file.fileno())
    file.seek(begin)
    file.write(written[:BLOCK])
    file.truncate(begin + len(written))
    file.flush()
    os.fsync(file.fileno())


class Window(io.RawIOBase):
    """A part of an open file as a file of its own: *size* bytes from *offset*. Does not move the file's position.

    Several windows of one file may be read by several threads at once. The file must stay open.
    """

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        super().__init__()
        self._descriptor = file.fileno()
        self._name = file.name
        self._offset = offset
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """Say that this can be read."""
        return True

    def seekable(self) -> bool:
        """Say that this can be moved in."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to *offset* bytes from the start, the current position or the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: object, /) -> int:
        """Fill *buffer* from the current position; 0 at the end. Raises BundleError if the file ends too early."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        wanted = min(len(view), self._size - self._position)
        if wanted <= 0:
            return 0
        with naming(self._name):
            content = os.pread(self._descriptor, wanted, self._offset + self._position)
        if not content:
            raise damaged("the archive is truncated within a file")
        view[: len(content)] = content
        self._position += len(content)
        return len(content)


class Writer:
    """Writes an archive whose bytes depend on names, modes and contents alone: no times, no owners.

    *progress* is told how many bytes of contents were written so far.
    """

    def __init__(self, output: BinaryIO, *, progress: Callable[[int], None] = lambda _bytes: None) -> None:
        self._output = output
        self._progress = progress
        self._done = 0

    def directory(self, name: str) -> None:
        """Add the directory *name*."""
        self._header(name, 0, 0o755, tarfile.DIRTYPE)

    def file(self, name: str, content: BinaryIO, size: int, *, executable: bool = False) -> None:
        """Add *size* bytes of *content* as the file *name*; raises BundleError if there are fewer."""
        self._header(name, size, 0o755 if executable else 0o644, tarfile.REGTYPE)
        left = size
        while left:
            chunk = content.read(min(left, 1024 * 1024))
            if not chunk:
                raise damaged(f"{name} is shorter than its size of {size} bytes")
            self._output.write(chunk)
            left -= len(chunk)
            self._done += len(chunk)
            self._progress(self._done)
        self._output.write(b"\0" * (_padded(size) - size))

    def finish(self) -> None:
        """Write the end mark."""
        self._output.write(b"\0" * (2 * BLOCK))

    def _header(self, name: str, size: int, mode: int, kind: bytes) -> None:
        info = tarfile.TarInfo(safe_name(name))
        info.size, info.mode, info.type = size, mode, kind
        self._output.write(info.tobuf(tarfile.GNU_FORMAT))
