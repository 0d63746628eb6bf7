"""This machine as a host: the same shell as over SSH, without a network between."""

from __future__ import annotations

import os
import secrets
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.result import Result
from kubeadm_registry.transport.process import CHUNK, NotStarted, Stream, lost, start_argv, started
from kubeadm_registry.transport.shell import Shell


class Local:
    """A Transport to this machine. Works as root; for another user through ``sudo -n``.

    *name* is the host's name for messages. Raises ConnectionFailed when sudo asks for a password.
    """

    def __init__(self, name: str = "localhost") -> None:
        self._name = name
        self._sudo = () if os.geteuid() == 0 else ("sudo", "-n", "--")
        self._shell = Shell(self._spawn, name)

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Result:
        """Run *argv* as root and wait for its end, *timeout* seconds at most (raises CommandTimeout)."""
        return self._shell.run(argv, stdin=stdin, timeout=timeout)

    def upload(self, source: Path, path: str) -> None:
        """Copy the file *source* to *path*, whole or not at all, mode 600."""
        self._shell.upload(source, path)

    def lock(self, who: str) -> str | None:
        """Take the host's lock until ``close`` or this process's end; None, or who holds it already."""
        return self._shell.lock(who)

    def dial(self, address: str, port: int) -> tuple[str, int]:
        """*address* and *port* as they are: this machine is the host."""
        return address, port

    def close(self) -> None:
        """End the shell and with it the lock."""
        self._shell.close()

    def _spawn(self, argv: Sequence[str]) -> Stream:
        mark = secrets.token_hex(16)
        try:
            stream = ProcessStream([*self._sudo, *start_argv(argv, mark)])
        except FileNotFoundError as error:
            raise self._not_root(f"no such program: {error.filename}") from error
        try:
            return started(stream, mark)
        except NotStarted as error:
            stream.close()
            raise self._not_root(error.said) from error
        except TimeoutError as error:
            stream.close()
            raise lost(self._name, Result(tuple(argv), 0).command, str(error)) from error
        except BaseException:
            stream.close()
            raise

    def _not_root(self, why: str) -> ConnectionFailed:
        return ConnectionFailed(
            f"root is required on this host, and sudo failed: {why}",
            host=self._name,
            hint="run the command as root, for example: sudo kubeadm-registry ...",
            code="SudoNeeded",
        )


class ProcessStream:
    """A process of this machine as a Stream, in a session of its own, so that Ctrl-C reaches only the program."""

    def __init__(self, argv: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            argv, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, close_fds=True
        )
        self._files = [file for file in (self._process.stdin, self._process.stdout, self._process.stderr) if file]
        self._in, self._out, self._err = (file.fileno() for file in self._files)
        for fd in (self._in, self._out, self._err):
            os.set_blocking(fd, False)
        self._poll = select.poll()
        self._reading = {self._out, self._err}
        for fd in self._reading:
            self._poll.register(fd, select.POLLIN)
        self._writing = True
        self._write_registered = False

    def exchange(self, data: memoryview, wait: float) -> tuple[int, bytes, bytes]:
        """Send what fits of *data* and read what is there; see Stream."""
        if not self._reading:
            raise EOFError("the process exited")
        sent = self._send(data)
        self._watch_input(bool(len(data) - sent))
        ready = {fd for fd, _ in self._poll.poll(0 if sent else max(0, wait) * 1000)}
        out, err = (self._read(fd) if fd in ready else b"" for fd in (self._out, self._err))
        return sent, out, err

    def end_input(self) -> None:
        """Close the process's standard input."""
        self._watch_input(False)
        self._writing = False
        self._files[0].close()

    def status(self, wait: float) -> int | None:
        """The exit status of the ended process, waiting *wait* seconds at most."""
        try:
            code = self._process.wait(wait)
        except subprocess.TimeoutExpired:
            return None
        return 128 - code if code < 0 else code

    def close(self) -> None:
        """Close the pipes and see the process end; one that does not is killed."""
        for file in self._files:
            file.close()
        self._reading.clear()
        self._writing = False
        if self.status(2) is None:
            self._process.kill()
            self._process.wait()

    def _send(self, data: memoryview) -> int:
        if not data:
            return 0
        if not self._writing:
            return len(data)
        try:
            return os.write(self._in, data[:CHUNK])
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            # A process may end without reading all its input; its output tells how it went.
            self._watch_input(False)
            self._writing = False
            return len(data)

    def _watch_input(self, wanted: bool) -> None:
        wanted = wanted and self._writing
        if wanted and not self._write_registered:
            self._poll.register(self._in, select.POLLOUT)
        elif self._write_registered and not wanted:
            self._poll.unregister(self._in)
        self._write_registered = wanted

    def _read(self, fd: int) -> bytes:
        if fd not in self._reading:
            return b""
        try:
            chunk = os.read(fd, CHUNK)
        except BlockingIOError:
            return b""
        if not chunk:
            self._reading.discard(fd)
            self._poll.unregister(fd)
        return chunk
