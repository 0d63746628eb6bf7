"""A host on which commands run, and the interface that connects to it."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from kubeadm_registry.addresses import prefix
from kubeadm_registry.errors import CommandFailed, Error
from kubeadm_registry.result import Result


class Transport(Protocol):
    """The only interface to a host, implemented by SSH, by this machine, and by a fake in unit tests."""

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Result:
        """Run *argv* as root and wait for its end, *timeout* seconds at most (raises CommandTimeout)."""

    def upload(self, source: Path, path: str) -> None:
        """Copy the file *source* of this machine to *path* on the host, as a stream, without reading it whole."""

    def lock(self, who: str) -> str | None:
        """Take the host's lock until ``close`` or the connection's end; None, or who holds it already."""

    def dial(self, address: str, port: int) -> tuple[str, int]:
        """An address and port of this machine that leads to *address*:*port* as the host sees it."""

    def close(self) -> None:
        """Close the connection, which releases the lock."""


#: Owner and group of a file as names and as numbers, for ``stat``; ``owner_of`` reads it.
OWNER = "%U:%G %u:%g"

#: The suffix of a file that is being written. Programs may read ``conf.d/*.toml`` and the like at any moment, and Go's
#: patterns match names that begin with a dot, so only a suffix hides the file from them.
UNFINISHED = ".kubeadm-registry"

#: Reads mode, owner and content of the file ``$1`` in one round trip. Status 3: it does not exist; 4: it is not a
#: regular file.
_READ = f"""
[ -e "$1" ] || [ -L "$1" ] || exit 3
[ -f "$1" ] || exit 4
stat -L -c '%a {OWNER}' -- "$1" && exec cat -- "$1"
"""

#: The same for many paths with a few processes: prints a status for each path, then, for those that are files, size,
#: mode and owner, then the contents.
_READ_MANY = f"""
count=$#
for path; do
  if [ -f "$path" ]; then set -- "$@" "$path"; echo 0
  elif [ -e "$path" ] || [ -L "$path" ]; then echo 4
  else echo 3
  fi
done
shift "$count"
[ $# = 0 ] || {{ stat -L -c '%s %a {OWNER}' -- "$@" && exec cat -- "$@"; }}
"""

#: Writes standard input, ``$4`` bytes with the SHA-256 ``$5``, to a new file beside ``$1``, with mode ``$2`` and owner
#: ``$3``; validates it with ``$7...`` (``{path}`` stands for its name, which ends in ``$6``); flushes it to disk and
#: renames it, so that the file is complete at any moment. Unfinished files of earlier runs are removed.
#: Another user, such as a service, may own the directory and replace the new file by a link. So it is created
#: exclusively and used by its descriptor: otherwise root would write to the target of the link, and change its owner.
#: PIPE is ignored because nobody reads the output after a broken connection: it would end the shell before its cleanup.
_WRITE = f"""
set -e
trap '' PIPE HUP
trap 'exit 143' TERM
path=$1 mode=$2 owner=$3 size=$4 digest=$5 ending=$6; shift 6
directory=$(dirname -- "$path") name=${{path##*/}}
rm -f -- "$directory/.$name."??????????"{UNFINISHED}"* "$directory/.new."??????????"-$name"
new=$(mktemp -u --suffix="{UNFINISHED}$ending" -- "$directory/.$name.XXXXXXXXXX")
trap 'rm -f -- "$new"' EXIT
umask 077; set -C; exec 3>"$new"; set +C; umask 022
cat >&3
arrived=$(stat -L -c %s -- /proc/self/fd/3)
[ "$arrived" = "$size" ] || {{ echo "$arrived of $size bytes arrived" >&2; exit 3; }}
[ "$(sha256sum </proc/self/fd/3)" = "$digest  -" ] || {{ echo "other bytes arrived than were sent" >&2; exit 3; }}
chown -- "$owner" /proc/self/fd/3
chmod -- "$mode" /proc/self/fd/3
exec 3>&-
if [ $# -gt 0 ]; then
  for word in "$@"; do
    shift
    [ "$word" = '{{path}}' ] && word=$new
    set -- "$@" "$word"
  done
  "$@" >&2
fi
sync -- "$new"
mv -f -T -- "$new" "$path"
sync -- "$directory"
"""


def _reading(path: str) -> tuple[str, ...]:
    return ("sh", "-c", _READ, "read", path)


Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
#: They are kept, since to start one costs as much as many a question. So many that work side by side may have more such
#: work in it, and none waits for a thread.
_THREADS = ThreadPoolExecutor(1000)


def side_by_side(
    work: Callable[[Item], Outcome], items: Sequence[Item], *, at_most: int | None = None,
    interrupted: Callable[[], object] = lambda: None,
) -> list[Outcome]:  # fmt: skip
    """Do *work* for all *items*, hosts or nodes, in parallel, or for *at_most* of them at a time.

    Returns the outcomes in the order of *items*, or raises the first error. A KeyboardInterrupt calls *interrupted*,
    and is raised when the work that has begun is completed.
    """
    if len(items) == 1:  # needs no thread, as in a phase that runs on one node at a time
        return [work(items[0])]
    if at_most is not None and at_most < len(items):
        with ThreadPoolExecutor(at_most) as pool:
            return _all(pool, work, items, interrupted)
    return _all(_THREADS, work, items, interrupted)


def _all(
    pool: ThreadPoolExecutor, work: Callable[[Item], Outcome], items: Sequence[Item], interrupted: Callable[[], object]
) -> list[Outcome]:
    """The same by the threads of *pool*. What has not begun when an error is raised does not begin."""
    outcomes = [pool.submit(work, item) for item in items]
    try:
        return [outcome.result() for outcome in outcomes]
    except KeyboardInterrupt:
        interrupted()
        raise
    finally:
        wait([outcome for outcome in outcomes if not outcome.cancel()])


def has_address(host: Host, address: str) -> bool:
    """Whether *host* has *address*. A tentative one does not count, such as one that another host uses (dadfailed)."""
    return bool(host.query("ip", "-oneline", "address", "show", "-tentative", "to", prefix(address), timeout=15).text)


def owner_of(said: str) -> str:
    """``user:group`` from what ``stat`` printed for OWNER. A number replaces a name that is unknown or has a blank.

    The usual group of users from Active Directory has a blank: ``domain users``.
    """
    names, _, numbers = said.rpartition(" ")
    pairs = zip(names.split(":"), numbers.split(":"), strict=True)
    return ":".join(number if name == "UNKNOWN" or " " in name else name for name, number in pairs)


def _write_hint(path: str, said: bytes) -> str:
    """The hint for a failed write to *path*, by the output *said*; empty if there is none."""
    directory = path.rpartition("/")[0] or "/"
    if b"Operation not permitted" in said:
        return (
            f"the file or its directory may be immutable: see `lsattr -d {directory} {path}` on the host, "
            "remove the attribute with `chattr -i`, then run the command again"
        )
    if b"Read-only file system" in said:
        return f"mount the file system of {directory} read-write, or check why the kernel made it read-only"
    if b"No space left" in said or b"quota exceeded" in said:
        return f"free space there, then run the command again; see `df -h {directory}` and `df -i {directory}`"
    return ""


@dataclass(frozen=True, slots=True)
class FileState:
    """A regular file on a host: content, mode (``644``) and owner (``root:root``; see ``owner_of``)."""

    content: bytes
    mode: int
    owner: str


@dataclass(frozen=True, slots=True)
class Host:
    """A host. ``query``, ``read`` and ``state`` only read; ``run``, ``write`` and ``upload`` change it.

    A *read_only* host refuses changes, which enforces a dry-run.
    """

    name: str
    address: str
    transport: Transport = field(compare=False, repr=False)
    read_only: bool = False

    def query(self, *argv: str, stdin: bytes = b"", timeout: float = 60) -> Result:
        """Run *argv*, which changes nothing. A non-zero status is not an error."""
        return self.transport.run(argv, stdin=stdin, timeout=timeout)

    def run(self, *argv: str, stdin: bytes = b"", timeout: float = 60) -> Result:
        """Run *argv*, which may change the host. Raises CommandFailed on a non-zero status."""
        self._may_act(argv)
        result = self.transport.run(argv, stdin=stdin, timeout=timeout)
        if not result.ok:
            raise CommandFailed(result, host=self.name)
        return result

    def state(self, path: str) -> FileState | None:
        """Content, mode and owner of the regular file *path*; None if it does not exist."""
        result = self.query(*_reading(path))
        if result.code == 3:
            return None
        if not result.ok:
            what = "is not a regular file" if result.code == 4 else result.stderr.decode(errors="replace").strip()
            raise Error(f"cannot read {path}: {what}", host=self.name, code="FileUnreadable")
        head, _, content = result.stdout.partition(b"\n")
        mode, _, owner = head.decode().partition(" ")
        return FileState(content, int(mode, 8), owner_of(owner))

    def read_ahead(self, paths: Sequence[str]) -> list[Result]:
        """The commands that ``state`` will run for *paths*, with their results, read by one command.

        Empty if the sizes do not match the contents, because a file has changed meanwhile.
        """
        result = self.query("sh", "-c", _READ_MANY, "read-ahead", *paths)
        lines = result.stdout.split(b"\n", len(paths))
        codes = [int(code) for code in lines[: len(paths)] if code.isdigit()]
        there = codes.count(0)
        if not result.ok or len(codes) < len(paths):
            return []
        *heads, content = lines[-1].split(b"\n", there) if there else [b""]
        sizes = [int(head.split(b" ")[0]) for head in heads]
        if sum(sizes) != len(content):
            return []
        answers, begin = [], 0
        for path, code in zip(paths, codes, strict=True):
            output = b""
            if code == 0:
                size = sizes.pop(0)
                output = heads.pop(0).partition(b" ")[2] + b"\n" + content[begin : begin + size]
                begin += size
            answers.append(Result(_reading(path), code, output))
        return answers

    def read(self, path: str) -> bytes | None:
        """The content of the regular file *path*; None if it does not exist."""
        state = self.state(path)
        return None if state is None else state.content

    def write(
        self, path: str, content: bytes, *, mode: int = 0o644, owner: str = "root:root", validate: Sequence[str] = ()
    ) -> None:
        """Replace *path* atomically: write a new file with *content*, *mode* and *owner*, validate it, and rename it.

        *validate* is a command that must accept the new file: ``{path}`` stands for its name, and ``{path}.json`` for a
        name with that suffix, for programs that detect the format by it. Raises CommandFailed and keeps the old file if
        it does not.
        """
        ending = next((word.removeprefix("{path}") for word in validate if word.startswith("{path}")), "")
        check = [word.removesuffix(ending) if word.startswith("{path}") else word for word in validate]
        size, digest = str(len(content)), hashlib.sha256(content).hexdigest()
        argv = ("sh", "-c", _WRITE, "write", path, f"{mode:o}", owner)
        try:
            self.run(*argv, size, digest, ending, *check, stdin=content)
        except CommandFailed as error:
            shown = replace(error.result, argv=argv)
            raise CommandFailed(shown, host=self.name, hint=_write_hint(path, shown.stderr)) from error

    def upload(self, source: Path, path: str) -> None:
        """Copy the large file *source* of this machine to *path* on the host."""
        self._may_act(("upload", path))
        try:
            self.transport.upload(source, path)
        except CommandFailed as error:
            raise CommandFailed(error.result, host=self.name, hint=_write_hint(path, error.result.stderr)) from error

    def dial(self, address: str, port: int) -> tuple[str, int]:
        """An address and port of this machine that leads to *address*:*port* as the host sees it."""
        return self.transport.dial(address, port)

    @property
    def live(self) -> Host:
        """The same host without remembered answers, for questions whose answer changes."""
        return replace(self, transport=getattr(self.transport, "live", self.transport))

    def as_read_only(self) -> Host:
        """The same host, which refuses changes."""
        return replace(self, read_only=True)

    def _may_act(self, argv: Sequence[str]) -> None:
        if self.read_only:
            raise AssertionError(f"a phase tried to change {self.name} outside of a Change: {shlex.join(argv)}")
