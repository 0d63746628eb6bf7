"""One long-lived POSIX shell on a host, so that a question costs one round trip instead of a new process and login.

The shell reads commands from a byte stream and answers on two others, standard output and standard error. After each
command it prints a random mark on both, so output is binary-safe and needs no newline at its end. It works where
``/bin/sh`` is dash or bash and needs ``timeout``, ``base64``, ``sha256sum`` and ``flock`` on the host.

The shell ends at the end of its input. A command cut short on its way never runs: each stands in ``{ }``, and a
shell refuses an unclosed brace.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import itertools
import os
import secrets
import shlex
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from kubeadm_registry import paths
from kubeadm_registry.errors import CommandFailed, CommandTimeout, ConnectionFailed, Error
from kubeadm_registry.result import Result
from kubeadm_registry.transport.commands import ran
from kubeadm_registry.transport.host import UNFINISHED
from kubeadm_registry.transport.process import KILL_AFTER, MARGIN, STATUS, Spawn, Stream, Until, lost, run_process

#: Commands on their way at a time, of threads that wait for the shell: a round trip for all of them, not for each.
AT_ONCE = 32
#: Seconds between two looks for an answer: so exactly it is known when the next command began.
LOOK = 0.5
#: Seconds without a word after which a machine that holds a lock by SSH has vanished: each says something every few
#: seconds (``ssh_config.LONGEST_KEEPALIVE``).
SILENT = 60.0
#: Seconds in which an upload must move.
STALL = 120.0
#: Seconds to flush a large file to a slow disk.
FLUSH_TIMEOUT = 900.0
#: More standard input than this goes to a process of its own: bash reads its commands byte by byte, about 2 MB/s, and a
#: ``printf`` that is not built in takes 128 KiB in one argument, which this is not in base64.
INLINE_STDIN = 64 * 1024

#: Names the missing programs, then the user's id. The ``timeout`` of busybox knows no long options: each command would
#: fail, and look like an answer.
_HELLO = """
for tool in timeout base64 sha256sum flock; do command -v "$tool" >/dev/null 2>&1 || printf '%s ' "$tool"; done
if command -v timeout >/dev/null 2>&1; then
  timeout --kill-after=9 -- 9 id -u </dev/null >/dev/null 2>&1 || printf '%s ' 'timeout(coreutils)'
fi
id -u </dev/null
"""

#: Takes the lock ``$1`` for ``$2``, who comes by ``$3``, on descriptor 9 of the shell itself. Status 75: held, by whom
#: is on standard output. Status 77: it was the lock of a run that ended just then, which removed the file; try again.
#: A redirection that fails ends a POSIX shell, hence the trial in a subshell. Only root may open the file: who can read
#: it can hold the lock (flock(2)), and keep out every run.
_LOCK = """
if ( umask 077 && : >>"$1" && chmod 600 -- "$1" ) && umask 077 && exec 9>>"$1"; then
  umask 022
  flock -n 9 </dev/null
  case $?$([ "$1" -ef /proc/self/fd/9 ] || echo gone) in
  0gone) exec 9>&-; (exit 77) ;;
  0) printf '%s, since %s, %sprocess %s\\n' "$2" "$(date -u +%Y-%m-%dT%H:%M:%SZ 9>&-)" "$3" "$$" >"$1.who" ;;
  1|1gone) exec 9>&-; cat -- "$1.who" </dev/null 2>/dev/null; (exit 75) ;;
  *) exec 9>&-; (exit 76) ;;
  esac
else
  umask 022
  (exit 76)
fi
"""

#: Ends the SSH connection by which a run holds the lock ``$1``, if nothing came through it for ``$2`` ms, and waits a
#: moment for what the run does just then. All connections of that sshd count, also those that it forwards.
_END_SILENT = """
holder=$(sed -n 's/.*, by SSH, process \\([0-9]*\\)$/\\1/p' "$1.who")
[ "$holder" ] && [ "$1" -ef "/proc/$holder/fd/9" ] || exit 0
all=$(ss -tnpiOH state established) pid=$holder
while pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status") && [ "${pid:-1}" -gt 1 ]; do
  silent=$(printf '%s\\n' "$all" | sed -n "/,pid=$pid,/s/.* lastrcv:\\([0-9]*\\).*/\\1/p" | sort -n | head -n 1)
  [ "$silent" ] || continue
  [ "$silent" -lt "$2" ] || { kill "$pid" && echo ended && flock -w 5 "$1" true; }
  break
done
"""

#: Writes standard input, which must have ``$2`` bytes and the SHA-256 ``$3``, beside ``$1`` and renames it, as
#: ``Host.write`` does. One line, see above.
_UPLOAD = (
    "set -e; trap '' PIPE HUP; trap 'exit 143' TERM; "
    'directory=$(dirname -- "$1") name=${1##*/}; '
    f'rm -f -- "$directory/.$name."??????????"{UNFINISHED}"; '
    f'new=$(mktemp --suffix={UNFINISHED} -- "$directory/.$name.XXXXXXXXXX"); '
    "trap 'rm -f -- \"$new\"' EXIT; "
    'cat >"$new"; size=$(stat -c %s -- "$new"); '
    '[ "$size" = "$2" ] || { echo "$size of $2 bytes arrived" >&2; exit 3; }; '
    '[ "$(sha256sum <"$new")" = "$3  -" ] || { echo "other bytes arrived than were sent" >&2; exit 3; }; '
    'sync -- "$new"; mv -f -T -- "$new" "$1"; sync -- "$directory"'
)


class Shell:
    """The long-lived shell. Safe to use from several threads: it does what they want in turn, one thing at a time.

    *spawn* starts processes as root, *host* is the name for messages. Raises ConnectionFailed when the host lacks a
    program that the shell needs.

    The lock is a ``flock`` held by the shell itself on *lock_file*, with who holds it beside it in ``.who``. It ends
    with the shell, and the shell ends as soon as its input does and the command that runs just then is over: on
    ``close``, when this process is killed, when the connection breaks. When this machine vanishes without a word, the
    host's sshd notices only by ``ClientAliveInterval`` (off by default; then by TCP, after 15 minutes to 2 hours). The
    next one that wants the lock of a shell *by_ssh* ends such a connection. The line that ``lock`` returns ends in the
    process to kill where it cannot.
    """

    def __init__(
        self, spawn: Spawn, host: str, *, program: str = "sh", lock_file: str = paths.LOCK, by_ssh: bool = False
    ) -> None:
        self._spawn = spawn
        self._host = host
        self._lock_file = lock_file
        self._way = "by SSH, " if by_ssh else ""
        self._turn = threading.RLock()
        self._waiting: deque[_Question] = deque()
        self._locked = False
        self._why_closed = ""
        self._stream = spawn([program])
        try:
            words = self._script(("id", "-u"), _HELLO).text.split()
            if not words or not words[-1].isdigit():
                raise lost(host, "start of the shell", " ".join(words))
            if missing := words[:-1]:
                raise ConnectionFailed(
                    f"missing on the host: {', '.join(missing)}",
                    host=host,
                    hint="install coreutils (timeout, base64, sha256sum) and util-linux (flock) on the host",
                    code="ToolsMissing",
                )
        except BaseException:
            self._stream.close()
            raise
        #: The user's id on the host; 0 is root.
        self.uid = int(words[-1])

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Result:
        """Run *argv* with *stdin* and wait for its end.

        Raises CommandTimeout when it runs longer than *timeout* seconds, and it is killed on the host; raises
        ConnectionFailed when the host does not answer.
        """
        if not argv or any("\0" in word for word in argv):
            raise ValueError(f"not a command: {argv!r}")
        limited = ("timeout", f"--kill-after={KILL_AFTER:g}", "--", f"{timeout:f}", *argv)
        if len(stdin) > INLINE_STDIN:
            self._need_open(argv)
            # Taken before the process starts: where we are not run in time, the command must not look short.
            started = time.monotonic()
            result = run_process(
                self._spawn(limited), io.BytesIO(stdin), argv, self._host, timeout=timeout, stall=timeout
            )
            seconds = time.monotonic() - started
        else:
            # ``test`` is built into the shell: it starts nothing, and what holds up a look at a file cannot be killed.
            words = shlex.join(argv if argv[0] == "test" else limited)
            if stdin:
                # No here-document: bash keeps a large one in /tmp, and goes on without it where that is full.
                text = base64.encodebytes(stdin).decode()
                words = f"{{ printf %s '{text}' | base64 -d; }} 2>/dev/null 9>&- | {words} 9>&-"
            else:
                words = f"{words} </dev/null 9>&-"
            result, seconds = self._ask(tuple(argv), words, timeout)
        ran(self._host, result, seconds)
        if result.code in (124, 137) and seconds >= timeout:
            raise CommandTimeout(f"{result.command} did not exit within {timeout:g} s and was killed", host=self._host)
        return result

    def upload(self, source: Path, path: str) -> None:
        """Copy the file *source* of this machine to *path* on the host: as a stream, whole or not at all, mode 600.

        Raises Error when *source* cannot be read, CommandFailed when the host cannot write it or other bytes arrived
        than were sent.
        """
        self._need_open(("upload", path))
        started = time.monotonic()
        try:
            with source.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
                process = self._spawn(("sh", "-c", _UPLOAD, "upload", path, str(size), digest))
                result = run_process(process, file, ("upload", path), self._host, timeout=FLUSH_TIMEOUT, stall=STALL)
        except OSError as error:
            raise Error(f"cannot read {source}: {error.strerror}", code="FileUnreadable") from error
        ran(self._host, result, time.monotonic() - started)
        if not result.ok:
            raise CommandFailed(result, host=self._host)

    def lock(self, who: str) -> str | None:
        """Take the host's lock until ``close`` or the connection's end; None, or who holds it already."""
        with self._turn:
            if self._locked:
                return None
            for _ in range(5):
                result = self._script(("flock", self._lock_file), _LOCK, self._lock_file, who, self._way)
                if result.code != 77 and not (result.code == 75 and self._end_silent()):
                    break
            if result.code == 75:
                return result.text or "unknown"
            if not result.ok:
                raise CommandFailed(result, host=self._host)
            self._locked = True
            return None

    def _end_silent(self) -> bool:
        """Whether the lock was held by a machine that has vanished, and its connection was ended."""
        words = ("sh", "-c", _END_SILENT, "lock", self._lock_file, str(round(SILENT * 1000)))
        return self.run(words, timeout=30).text == "ended"

    def close(self) -> None:
        """End the shell and with it the lock; waits a moment for its end. Never raises."""
        # Another thread may wait for a long command: it learns from the closed stream.
        mine = self._turn.acquire(timeout=1)
        try:
            if self._why_closed:
                return
            self._why_closed = "the connection was closed"
            if mine:
                self._say_goodbye()
            self._stream.close()
        finally:
            if mine:
                self._turn.release()

    def _say_goodbye(self) -> None:
        text = "exit\n"
        if self._locked:
            text = f"rm -f -- {shlex.quote(self._lock_file + '.who')} {shlex.quote(self._lock_file)} </dev/null\n{text}"
        with contextlib.suppress(EOFError, OSError):
            self._stream.exchange(memoryview(text.encode()), 0)
            self._stream.end_input()
            deadline = time.monotonic() + 2
            while (left := deadline - time.monotonic()) > 0:
                self._stream.exchange(memoryview(b""), left)

    def _need_open(self, argv: Sequence[str]) -> None:
        if self._why_closed:
            raise lost(self._host, Result(tuple(argv), 0).command, self._why_closed)

    def _script(self, what: tuple[str, ...], script: str, *words: str) -> Result:
        """Run the constant *script* in the shell itself, *words* as its positional parameters; *what* names it."""
        with self._turn:
            return self._ask(what, f"set -- {shlex.join(words)}\n{script}", 30)[0]

    def _ask(self, argv: tuple[str, ...], words: str, timeout: float) -> tuple[Result, float]:
        """Have the shell run *words*; the result, and the seconds since it had all of them and could begin."""
        mark = secrets.token_hex(16)
        text = os.fsencode(f"{{ {words}\n}}; printf '{mark} %d\\n' \"$?\"; printf '{mark}\\n' >&2\n")
        question = _Question(argv, text, mark.encode(), timeout)
        self._waiting.append(question)
        try:
            with self._turn:
                # Whoever has the turn asks for those as well who wait for theirs.
                while not question.answer.done():
                    self._ask_waiting()
        except BaseException:
            with contextlib.suppress(ValueError):  # nobody waits for it any more, so nobody is to ask it
                self._waiting.remove(question)
            raise
        return question.answer.result()

    def _ask_waiting(self) -> None:
        """Have the shell run what is waiting, AT_ONCE questions at most, one after another, and answer each."""
        questions: list[_Question] = []
        try:
            while self._waiting and len(questions) < AT_ONCE:
                questions.append(self._waiting.popleft())
            line = _Line(self._stream, [question.text for question in questions])
            for question in questions:
                self._need_open(question.argv)
                question.answer.set_result(self._one(question, line))
        except ConnectionFailed as error:
            question.answer.set_exception(error)
        finally:
            # After an error or an interrupt the answer is still on its way: nobody could tell it from the next one.
            if unanswered := [one for one in questions if not one.answer.done() or one.answer.exception()]:
                self._why_closed = self._why_closed or "aborted earlier"
                self._stream.close()
                for one in unanswered:
                    if not one.answer.done():
                        one.answer.set_exception(lost(self._host, one.what, self._why_closed))

    def _one(self, question: _Question, line: _Line) -> tuple[Result, float]:
        """The answer to the next *question*, and the seconds since the shell had it and could begin with it."""
        out, err = Until(question.mark, STATUS), Until(question.mark)
        started = line.begin()
        out.add(line.out)
        err.add(line.err)
        patience = question.timeout + KILL_AFTER + MARGIN
        try:
            while not (out.found and err.found):
                left = started + patience - time.monotonic()
                if left <= 0:
                    raise lost(self._host, question.what, f"no answer for {patience:g} s")
                started = line.exchange(left)
                out.add(line.out)
                err.add(line.err)
        except (EOFError, OSError) as error:
            detail = err.data.decode(errors="replace").strip() or str(error)
            raise lost(self._host, question.what, detail[-500:]) from error
        line.end(out.after, err.after)
        return Result(question.argv, int(out.value), out.before, err.before), time.monotonic() - started


class _Line:
    """*texts* on their way to the shell, one after another, and what comes back."""

    def __init__(self, stream: Stream, texts: Sequence[bytes]) -> None:
        self._stream = stream
        self._data = memoryview(b"".join(texts))
        self._behind = list(itertools.accumulate(reversed(list(map(len, texts))), initial=0))[:-1]
        self._started = self._earlier = self._before = time.monotonic()
        self.out = self.err = b""
        """What the last exchange brought, or the last text left."""

    def begin(self) -> float:
        """Turn to the next text; the same as ``exchange``."""
        self._ours = self._behind.pop()
        return self._started

    def exchange(self, wait: float) -> float:
        """Send and take what can be. Returns a time at which the shell cannot yet have been at this text for long.

        That is before the last part of it went out, or before the answer to the one before came in: where we are not
        run in time, a command must not look shorter than it was.
        """
        self._earlier, self._before = self._before, time.monotonic()
        sent, self.out, self.err = self._stream.exchange(self._data, min(wait, LOOK))
        if sent and len(self._data) > self._ours:
            self._started = self._before
        self._data = self._data[sent:]
        return self._started

    def end(self, out: bytes, err: bytes) -> None:
        """This text was answered, and more came: *out* and *err*."""
        self.out, self.err = out, err
        self._started = max(self._started, self._earlier)


@dataclass(eq=False, slots=True)
class _Question:
    """*text* for the shell, of which the answer ends with *mark*, and who waits for it: result, and seconds."""

    argv: tuple[str, ...]
    text: bytes
    mark: bytes
    timeout: float
    answer: Future[tuple[Result, float]] = field(default_factory=Future)

    @property
    def what(self) -> str:
        """Its name in messages."""
        return Result(self.argv, 0).command
