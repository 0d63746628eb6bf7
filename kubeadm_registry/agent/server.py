"""``GET /metrics`` and ``GET /state`` over TLS on the node's address."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Callable, Optional

from kubeadm_registry.agent.config import Config

LARGEST = 8192  # bytes of a request
PATIENCE = 5.0  # seconds for the handshake, and for the exchange
MOST = 16  # connections at a time: strangers who only connect must not use up the agent's descriptors, nor all places
BREATH = 0.01  # seconds from one connection to the next: nor its time
UNITS = frozenset({"registry-node"})
METRICS_UNIT = "registry-metrics"  # reads the metrics and nothing else

Pages = Callable[[str], Optional[tuple[str, bytes]]]  # path: (content type, body)


def context(config: Config) -> ssl.SSLContext:
    """TLS with the node's certificate; clients come with one of our CA. Raises OSError, ssl.SSLError."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.load_cert_chain(config.tls.cert, config.tls.key)
    tls.load_verify_locations(config.tls.ca)
    tls.verify_mode = ssl.CERT_OPTIONAL if config.metrics_anonymous else ssl.CERT_REQUIRED
    return tls


def units(certificate: Optional[dict[str, Any]]) -> set[str]:
    """Which of our organizational units the subject of a verified client certificate has."""
    names = [pair for part in (certificate or {}).get("subject", ()) for pair in part]
    return {value for key, value in names if key == "organizationalUnitName"} & {*UNITS, METRICS_UNIT}


class Server:
    """Answers on the metrics port, one request a connection."""

    def __init__(self, config: Config, pages: Pages) -> None:
        self._config = config
        self._pages = pages
        self._tls: Optional[ssl.SSLContext] = None
        self._listener: Optional[socket.socket] = None
        self._stamp: tuple[float, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers: dict[asyncio.Task[None], None] = {}  # those who have shown no certificate, the oldest first

    @property
    def running(self) -> bool:
        """Whether it listens."""
        return self._listener is not None

    async def start(self) -> None:
        """Listen. Raises OSError, ssl.SSLError."""
        self._tls = context(self._config)
        self._stamp = self._stamps()
        address = self._config.address
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, self._config.ports.metrics), family=family, backlog=MOST)
        listener.setblocking(False)
        self._listener = listener
        self._begin(self._accept(listener))

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._strangers.pop(task, None)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError:  # it went before it was taken, or there is no descriptor left
                await asyncio.sleep(1.0)
                continue
            # This task is one of them. The stranger who has had the most time gives place; one who is known never does.
            if len(self._tasks) > MOST and self._strangers:
                oldest = next(iter(self._strangers))
                self._ended(oldest)
                oldest.cancel()
            if len(self._tasks) > MOST:
                client.close()
            elif self._tls is not None:
                self._strangers[self._begin(self._serve(client, self._tls))] = None
            await asyncio.sleep(BREATH)

    def renew(self) -> bool:
        """Take up a renewed certificate for new connections; whether there was one. Raises OSError, ssl.SSLError."""
        stamp = self._stamps()
        if self._tls is None or stamp == self._stamp:
            return False
        self._tls = context(self._config)  # a new one: the one of before trusts a CA that is gone from the file
        self._stamp = stamp
        return True

    def _stamps(self) -> tuple[float, ...]:
        tls = self._config.tls
        return tuple(Path(path).stat().st_mtime_ns for path in (tls.cert, tls.key, tls.ca))

    async def _serve(self, client: socket.socket, tls: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(LARGEST, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, client, ssl=tls, ssl_handshake_timeout=PATIENCE
            )
        except OSError:  # no TLS, or no certificate of ours
            client.close()
            return
        except asyncio.CancelledError:
            client.close()
            raise
        task = asyncio.current_task()
        if task is not None and units(transport.get_extra_info("peercert")):
            self._strangers.pop(task, None)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            await asyncio.wait_for(self._answer(reader, writer), PATIENCE)
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), PATIENCE)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that went or dawdled; the next one is served
        finally:
            transport.abort()  # else TLS waits for the client's goodbye, before Python 3.11 without end

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        words = head.split(b"\r\n", 1)[0].split(b" ")
        path = words[1].decode("ascii", "replace").split("?", 1)[0] if len(words) == 3 else ""
        who = units(writer.get_extra_info("peercert"))
        allowed = who & UNITS or (path == "/metrics" and (who or self._config.metrics_anonymous))
        status, kind, body = "200 OK", "text/plain; charset=utf-8", b""
        if words[0] != b"GET":
            status, body = "405 Method Not Allowed", b"only GET\n"
        elif not allowed:
            status, body = "403 Forbidden", b"a certificate that allows this is needed: kubeadm-registry credentials\n"
        elif (page := self._pages(path)) is None:
            status, body = "404 Not Found", b"there are /state and /metrics\n"
        else:
            kind, body = page
        fields = (
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(fields.encode() + body)
        await writer.drain()

    def close(self) -> None:
        """Stop listening."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
