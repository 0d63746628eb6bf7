"""One process on a host: how it is started, through whatever stands before it, how it is fed, and how it ended."""

from __future__ import annotations

import base64
import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO, Protocol

from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.result import Result

#: Seconds between the TERM and the KILL for a command that outlives its time.
KILL_AFTER = 5.0
#: Seconds beyond a command's own time in which the host must answer, else the connection counts as lost.
MARGIN = 15.0
#: Seconds for the first answer of a new process: logins through PAM and LDAP are slow.
START_TIMEOUT = 30.0
CHUNK = 256 * 1024

#: What every process on a host is started by: fixed environment, then ``$1`` on a line of its own on both outputs, then
#: ``$2...``.
#: One line, since csh accepts no newline in quotes; no ``exec``, so that a signal becomes a status.
_START = (
    'PATH="$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"; LC_ALL=C; export PATH LC_ALL; '
    r'umask 022; cd /; printf "%s\n" "$1"; printf "%s\n" "$1" >&2; shift; "$@"; exit $?'
)


class Stream(Protocol):
    """A running process: bytes into its standard input, bytes out of its standard output and standard error."""

    def exchange(self, data: memoryview, wait: float) -> tuple[int, bytes, bytes]:
        """Send what fits of *data* and read what is there; wait *wait* seconds at most for either.

        Returns how many bytes went out, and what came on standard output and standard error. Raises EOFError once both
        have ended.
        """

    def end_input(self) -> None:
        """Close the process's standard input."""

    def status(self, wait: float) -> int | None:
        """The exit status of the ended process, waiting *wait* seconds at most; None if it cannot be known."""

    def close(self) -> None:
        """Give the process up."""


#: Starts argv as root on the host and returns it running.
Spawn = Callable[[Sequence[str]], Stream]


def lost(host: str, what: str, detail: str = "") -> ConnectionFailed:
    """The error for a connection that ended or fell silent during *what*."""
    return ConnectionFailed(
        f"the connection was lost during: {what}" + (f" ({detail})" if detail else ""),
        host=host,
        hint="check that the host is up and reachable, then run the command again; completed changes are kept",
        code="ConnectionLost",
    )


#: What may stand behind a mark: the end of its line, or a status before that.
END, STATUS = re.compile(rb"\n"), re.compile(rb" (\d+)\n")
#: Bytes that this has at most.
LONGEST = 8


class Until:
    """Gathers bytes until *mark* comes and *then* behind it, without looking twice at what was looked at.

    *value* is the last group of *then*. A pattern for each mark would take longer to compile than the answer takes.
    """

    def __init__(self, mark: bytes, then: re.Pattern[bytes] = END) -> None:
        self.data = bytearray()
        self.found = False
        self.value = b""
        self._mark, self._then = mark, then
        self._seen = self._end = self._after = 0

    def add(self, chunk: bytes) -> None:
        """Gather *chunk*."""
        self.data += chunk
        if self.found or not chunk:
            return
        while (begin := self.data.find(self._mark, self._seen)) >= 0:
            if match := self._then.match(self.data, begin + len(self._mark)):
                self.found = True
                self.value = bytes(match[match.lastindex or 0])
                self._end, self._after = begin, match.end()
                return
            self._seen = begin + 1
        self._seen = max(0, len(self.data) - len(self._mark) - LONGEST)

    @property
    def before(self) -> bytes:
        """What came before the mark."""
        return bytes(self.data[: self._end])

    @property
    def after(self) -> bytes:
        """What came after it."""
        return bytes(self.data[self._after :])


#: What a login shell may read otherwise than sh, also in single quotes: csh ends a command at the end of a line, and
#: takes ``!`` for an earlier command; fish takes two backslashes for one.
_OTHERWISE = re.compile(r"[\n!\\]")
#: Runs the words that ``$1`` has in base64, quoted.
_DECODED = 'eval "exec $(printf %s "$1" | base64 -d)"'


def start_argv(argv: Sequence[str], mark: str) -> list[str]:
    """The command that sets the environment, prints *mark* on lines of its own and runs *argv*."""
    if any(map(_OTHERWISE.search, argv)):
        argv = ("sh", "-c", _DECODED, "decoded", base64.b64encode(os.fsencode(shlex.join(argv))).decode())
    return ["sh", "-c", _START, "start", mark, *argv]


class NotStarted(Exception):
    """The process did not start; *said* is what the host said instead."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said


def started(stream: Stream, mark: str, *, prompt: str = "", password: str | None = None) -> Stream:
    """Read from *stream* until *mark* comes on both outputs, and throw away what login scripts print before.

    When *prompt* comes on standard error, *password* is the answer, once. Returns the running process: what it said
    already is not lost. Raises NotStarted, with *prompt* if the password is asked for a second time; TimeoutError when
    nothing comes in START_TIMEOUT seconds. Never raises EOFError.
    """
    data = memoryview(b"")
    answered = False
    out, err = Until(mark.encode()), Until(mark.encode())
    deadline = time.monotonic() + START_TIMEOUT
    while not (out.found and err.found):
        left = deadline - time.monotonic()
        said = bytes(err.data).replace(prompt.encode(), b"") if prompt else bytes(err.data)
        if left <= 0:
            detail = said.decode(errors="replace").strip()[-500:]
            raise TimeoutError(f"no answer for {START_TIMEOUT:g} s{': ' if detail else ''}{detail}")
        try:
            sent, stdout, stderr = stream.exchange(data, left)
        except EOFError:
            raise NotStarted((said or bytes(out.data)).decode(errors="replace").strip()[-500:] or "no output") from None
        data = data[sent:]
        out.add(stdout)
        err.add(stderr)
        if prompt and err.data.count(prompt.encode()) > answered:
            if answered or password is None:
                raise NotStarted(prompt)
            answered = True
            data = memoryview(password.encode() + b"\n")
    return _Begun(stream, out.after, err.after) if out.after or err.after else stream


class _Begun:
    """The process *stream*, of which *out* and *err* were read already."""

    def __init__(self, stream: Stream, out: bytes, err: bytes) -> None:
        self._stream = stream
        self._read = out, err

    def exchange(self, data: memoryview, wait: float) -> tuple[int, bytes, bytes]:
        """See Stream."""
        if any(self._read):
            (out, err), self._read = self._read, (b"", b"")
            return 0, out, err
        return self._stream.exchange(data, wait)

    def end_input(self) -> None:
        """See Stream."""
        self._stream.end_input()

    def status(self, wait: float) -> int | None:
        """See Stream."""
        return self._stream.status(wait)

    def close(self) -> None:
        """See Stream."""
        self._stream.close()


def run_process(
    stream: Stream, source: BinaryIO, argv: Sequence[str], host: str, *, timeout: float, stall: float
) -> Result:
    """Feed *source* to a process of its own and wait for its end.

    Raises ConnectionFailed when nothing moves for *stall* seconds while there is something to feed, for *timeout*
    seconds after that, and a margin.
    """
    what = Result(tuple(argv), 0).command
    out, err = bytearray(), bytearray()
    data = memoryview(source.read(CHUNK))
    feeding = True
    moved = time.monotonic()
    try:
        while True:
            if feeding and not data:
                data = memoryview(source.read(CHUNK))
                if not data:
                    stream.end_input()
                    feeding = False
            patience = (stall if feeding else timeout) + KILL_AFTER + MARGIN
            left = moved + patience - time.monotonic()
            if left <= 0:
                raise lost(host, what, f"no progress for {patience:g} s")
            try:
                sent, stdout, stderr = stream.exchange(data, left)
            except EOFError:
                break
            if sent:
                data, moved = data[sent:], time.monotonic()
            out += stdout
            err += stderr
        if (code := stream.status(MARGIN)) is None:
            raise lost(host, what)
    finally:
        stream.close()
    return Result(tuple(argv), code, bytes(out), bytes(err))
