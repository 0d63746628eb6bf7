"""One question on a new connection, answered or not by a deadline: cheap, since it happens all the time.

Streams and protocols of asyncio cost several times the CPU of what is needed here: connect, send, read to the end.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from dataclasses import dataclass
from enum import Enum
from typing import Callable, Optional, Union

from kubeadm_registry.agent.clock import clock

NO_TIME_WAIT = struct.pack("ii", 1, 0)  # SO_LINGER: forty probes a second would leave thousands of ports behind
CHUNK = 131072
LARGEST = 64 * 1024 * 1024  # bytes; no known object is larger, and an answer without end must not fill the memory
LATE = 0.15  # seconds

Address = Union[str, tuple[str, int]]


class Kind(Enum):
    """How an exchange ended."""

    ANSWERED = "answered"
    REFUSED = "refused"  # certain: nobody listens
    BROKEN = "broken"  # the other side ended it too early
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class Outcome:
    """The end of an exchange: *started* and *ended* by the agent's clock, *pid* of the peer for Unix sockets."""

    kind: Kind
    data: bytes
    started: float
    ended: float
    pid: int = 0


class Exchange:
    """Sends *request* to *address* and calls *done* exactly once.

    *complete* looks at what was received, and at whether more can come, and says whether it is all; without it the
    answer is complete at its end.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: Address,
        request: bytes,
        *,
        deadline: float,
        done: Callable[[Outcome], None],
        complete: Optional[Callable[[bytearray, bool], bool]] = None,
    ) -> None:
        self._loop = loop
        self._request = request
        self._done: Optional[Callable[[Outcome], None]] = done
        self._complete = complete
        self._data = bytearray()
        self._pid = 0
        self._started = clock()
        self._unix = isinstance(address, str)
        family = (
            socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        )
        self._number = -1
        self._writes = self._reads = False  # asked for; to take back what was not is dear
        self._timer: Optional[asyncio.TimerHandle] = None
        try:
            self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError:  # no descriptor is left: as if nobody had answered
            loop.call_soon(self._finish, Kind.BROKEN)
            return
        self._number = self._socket.fileno()
        try:
            code = self._socket.connect_ex(address)
        except OSError as error:
            code = error.errno or errno.EIO
        if code in (0, errno.EINPROGRESS):
            self._timer = loop.call_later(deadline, self._expired, deadline, True)
            self._send()
        else:
            self._failed(code)

    def cancel(self) -> None:
        """Give up without an outcome."""
        self._done = None
        self._finish(Kind.TIMEOUT)

    def _send(self) -> None:
        if self._writes:
            self._writes = False
            self._loop.remove_writer(self._number)
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._failed(code)
            return
        try:
            sent = self._socket.send(self._request)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOTCONN):
                self._wait_to_write()
            else:
                self._failed(error.errno or errno.EIO)
            return
        self._request = self._request[sent:]
        if self._request:
            self._wait_to_write()
            return
        if self._unix:
            credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            self._pid = struct.unpack("iII", credentials)[0]
        self._reads = True
        self._loop.add_reader(self._number, self._receive)

    def _wait_to_write(self) -> None:
        self._writes = True
        self._loop.add_writer(self._number, self._send)

    def _receive(self) -> None:
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._failed(error.errno or errno.EIO)
            return
        self._data += data
        if len(self._data) > LARGEST:
            self._finish(Kind.BROKEN)
            return
        if self._complete is None:
            if not data:
                self._finish(Kind.ANSWERED if self._data else Kind.BROKEN)
        elif self._complete(self._data, not data):
            self._finish(Kind.ANSWERED)
        elif not data:
            self._finish(Kind.BROKEN)

    def _expired(self, deadline: float, first: bool) -> None:
        if (
            first and clock() - self._started > deadline + LATE
        ):  # this process was not run: the other side may be in time
            self._timer = self._loop.call_later(deadline, self._expired, deadline, False)
            return
        self._finish(Kind.TIMEOUT)

    def _failed(self, code: int) -> None:
        refused = code in (errno.ECONNREFUSED, errno.ENOENT)
        kind = Kind.REFUSED if refused and not self._data else Kind.BROKEN
        self._loop.call_soon(self._finish, kind)  # never before the caller has this exchange in hand

    def _finish(self, kind: Kind) -> None:
        if self._number >= 0:
            if self._writes:
                self._loop.remove_writer(self._number)
            if self._reads:
                self._loop.remove_reader(self._number)
            self._number = -1
            if not self._unix:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_TIME_WAIT)
            self._socket.close()
        if self._timer is not None:
            self._timer.cancel()
        done, self._done = self._done, None
        if done is not None:
            done(Outcome(kind, bytes(self._data), self._started, clock(), self._pid))


def http_request(
    host: str, path: str, *, method: str = "GET", accept: str = "*/*", token: str = "", body: Optional[bytes] = None
) -> bytes:
    """A request, with a *body* of JSON if there is one; the connection ends after the answer."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"Accept: {accept}", "User-Agent: kubeadm-registry-agent"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b"")


def http_complete(data: bytearray, ended: bool) -> bool:
    """Whether *data* is a whole answer: as long as its Content-Length says, or *ended* when it has none."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = bytes(data[:end]).lower()
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        return ended
    value = head[at + 17 :].split(b"\r\n", 1)[0].strip()
    return value.isdigit() and len(data) >= end + 4 + int(value)


def http_answer(data: bytes) -> tuple[int, bytes]:
    """Status and body of an answer; status 0 if it is none. Chunked bodies are joined."""
    head, _, body = data.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return 0, b""
    if b"transfer-encoding: chunked" in head.lower():
        body = _joined(body)
    return int(words[1]), body


def _joined(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, body = body.partition(b"\r\n")
        try:
            length = int(size.split(b";")[0], 16)
        except ValueError:
            break
        parts.append(body[:length])
        body = body[length + 2 :]
        if not length:
            break
    return b"".join(parts)
