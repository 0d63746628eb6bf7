"""A server that we reach, and the seam behind which it is reached."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from kubeadm_registry.addresses import prefix
from kubeadm_registry.errors import CommandFailed, Error


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended: its argv, exit status and output, as bytes."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes = b""
    stderr: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether the command ended with status 0."""
        return self.code == 0

    @property
    def text(self) -> str:
        """Standard output without the blanks around it."""
        return self.stdout.decode(errors="replace").strip()

    @property
    def command(self) -> str:
        """The command as a person would type it, cut to one line; a script by its name and arguments."""
        script = self.argv[1:2] == ("-c",) and len(self.argv) > 3
        line = shlex.join(self.argv[3:] if script else self.argv).replace("\n", " ")
        return line if len(line) <= 160 else line[:157] + "..."


class Transport(Protocol):
    """The only seam to a host: four methods. Behind it are SSH, this machine, or a fake in unit tests."""

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Result:
        """Run *argv* as root and wait for its end, *timeout* seconds at most (raises CommandTimeout)."""

    def upload(self, source: Path, path: str) -> None:
        """Copy the file *source* of this machine to *path* on the host, as a stream, without reading it whole."""

    def lock(self, who: str) -> str | None:
        """Take the host's lock until ``close`` or the connection's end; None, or who holds it already."""

    def dial(self, address: str, port: int) -> tuple[str, int]:
        """An address and port of this machine that leads to *address*:*port* as the host sees it."""

    def close(self) -> None:
        """End the connection and with it the lock."""


#: Asks for type, mode, owner and size of a path and for its content, in one round trip.
#: ``$1`` path. Status 3: no such file; 4: it is there and is not a plain file.
_READ = """
[ -e "$1" ] || [ -L "$1" ] || exit 3
[ -f "$1" ] || exit 4
stat -L -c '%a %U:%G' -- "$1" && cat -- "$1"
"""

#: Writes standard input to a new file beside ``$1``, with mode ``$2`` and owner ``$3``; lets ``$4...`` look at it
#: (``{path}`` stands for its name); flushes it to disk and renames it: the file is whole at any moment.
_WRITE = """
set -e
path=$1 mode=$2 owner=$3; shift 3
directory=$(dirname -- "$path")
# The end of the name stays: some programs tell the format by it.
new=$(mktemp --suffix="-${path##*/}" -- "$directory/.new.XXXXXXXXXX")
trap 'rm -f -- "$new"' EXIT
cat > "$new"
chown -- "$owner" "$new"
chmod -- "$mode" "$new"
if [ $# -gt 0 ]; then
  for word in "$@"; do
    shift
    [ "$word" = '{path}' ] && word=$new
    set -- "$@" "$word"
  done
  "$@" >&2
fi
sync -- "$new"
mv -f -T -- "$new" "$path"
sync -- "$directory"
"""


Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def side_by_side(
    work: Callable[[Item], Outcome], items: Sequence[Item], *, at_most: int | None = None
) -> list[Outcome]:
    """Do *work* for all *items*, hosts or nodes, at the same time, or *at_most* so many at a time.

    Returns the outcomes in their order, or raises the first error.
    """
    with ThreadPoolExecutor(max_workers=max(1, min(len(items), at_most or len(items)))) as pool:
        return list(pool.map(work, items))


def has_address(host: Host, address: str) -> bool:
    """Whether *host* has *address* now, and not one that another host denied it (dadfailed, which is tentative too)."""
    return bool(host.query("ip", "-oneline", "address", "show", "-tentative", "to", prefix(address), timeout=15).text)


@dataclass(frozen=True, slots=True)
class FileState:
    """A plain file on a host: content, mode (``644``) and owner (``root:root``)."""

    content: bytes
    mode: int
    owner: str


@dataclass(frozen=True, slots=True)
class Host:
    """One server. ``query``, ``read`` and ``state`` ask; ``run``, ``write`` and ``upload`` act.

    A *read_only* host refuses to act: that is how a dry-run is enforced rather than promised.
    """

    name: str
    address: str
    transport: Transport = field(compare=False, repr=False)
    read_only: bool = False

    def query(self, *argv: str, stdin: bytes = b"", timeout: float = 60) -> Result:
        """Ask: run *argv*, which changes nothing. A non-zero status is an answer."""
        return self.transport.run(argv, stdin=stdin, timeout=timeout)

    def run(self, *argv: str, stdin: bytes = b"", timeout: float = 60) -> Result:
        """Act: run *argv*. Raises CommandFailed on a non-zero status."""
        self._may_act(argv)
        result = self.transport.run(argv, stdin=stdin, timeout=timeout)
        if not result.ok:
            raise CommandFailed(result, host=self.name)
        return result

    def state(self, path: str) -> FileState | None:
        """Content, mode and owner of the plain file *path*; None if there is none."""
        result = self.query("sh", "-c", _READ, "read", path)
        if result.code == 3:
            return None
        if not result.ok:
            what = "is not a plain file" if result.code == 4 else result.stderr.decode(errors="replace").strip()
            raise Error(f"cannot read {path}: {what}", host=self.name, code="FileUnreadable")
        head, _, content = result.stdout.partition(b"\n")
        mode, owner = head.decode().split(" ", 1)
        return FileState(content, int(mode, 8), owner)

    def read(self, path: str) -> bytes | None:
        """Content of the file *path*; None if there is none."""
        state = self.state(path)
        return None if state is None else state.content

    def write(
        self, path: str, content: bytes, *, mode: int = 0o644, owner: str = "root:root", validate: Sequence[str] = ()
    ) -> None:
        """Write *path* whole: new name, content, owner, mode, *validate*, flush, rename.

        *validate* is a command that must accept the new file (``{path}`` stands for its name) before it replaces the
        old one. Raises CommandFailed, and the old file is as it was.
        """
        self.run("sh", "-c", _WRITE, "write", path, f"{mode:o}", owner, *validate, stdin=content)

    def upload(self, source: Path, path: str) -> None:
        """Copy the large file *source* of this machine to *path* on the host."""
        self._may_act(("upload", path))
        self.transport.upload(source, path)

    def dial(self, address: str, port: int) -> tuple[str, int]:
        """An address and port of this machine that leads to *address*:*port* as the host sees it."""
        return self.transport.dial(address, port)

    def as_read_only(self) -> Host:
        """The same host, which refuses to be changed."""
        return replace(self, read_only=True)

    def _may_act(self, argv: Sequence[str]) -> None:
        if self.read_only:
            raise AssertionError(f"a phase tried to change {self.name} outside of a Change: {shlex.join(argv)}")
