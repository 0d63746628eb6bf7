"""``GET /metrics`` and ``GET /state`` over TLS on the node's address."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any, Callable, Optional

from kubeadm_registry.agent.config import Config

LARGEST = 8192  # bytes of a request
PATIENCE = 5.0  # seconds for a whole exchange
MOST = 16  # connections at a time
UNITS = frozenset({"registry-node", "registry-admin"})

Pages = Callable[[str], Optional[tuple[str, bytes]]]  # path: (content type, body)


def context(config: Config) -> ssl.SSLContext:
    """TLS with the node's certificate; clients come with one of our CA. Raises OSError, ssl.SSLError."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.load_cert_chain(config.tls.cert, config.tls.key)
    tls.load_verify_locations(config.tls.ca)
    tls.verify_mode = ssl.CERT_OPTIONAL if config.metrics_anonymous else ssl.CERT_REQUIRED
    return tls


def known(certificate: Optional[dict[str, Any]]) -> bool:
    """Whether the subject of a verified client certificate has one of our organizational units."""
    names = [pair for part in (certificate or {}).get("subject", ()) for pair in part]
    return any(key == "organizationalUnitName" and value in UNITS for key, value in names)


class Server:
    """Answers on the metrics port, one request a connection."""

    def __init__(self, config: Config, pages: Pages) -> None:
        self._config = config
        self._pages = pages
        self._tls: Optional[ssl.SSLContext] = None
        self._server: Optional[asyncio.AbstractServer] = None
        self._stamp: tuple[float, ...] = ()
        self._open = 0

    @property
    def running(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    async def start(self) -> None:
        """Listen. Raises OSError, ssl.SSLError."""
        self._tls = context(self._config)
        self._stamp = self._stamps()
        self._server = await asyncio.start_server(
            self._serve,
            self._config.address,
            self._config.ports.metrics,
            ssl=self._tls,
            limit=LARGEST,
            ssl_handshake_timeout=PATIENCE,
        )

    def renew(self) -> bool:
        """Take up a renewed certificate for new connections; whether there was one. Raises OSError, ssl.SSLError."""
        stamp = self._stamps()
        if self._tls is None or stamp == self._stamp:
            return False
        self._tls.load_cert_chain(self._config.tls.cert, self._config.tls.key)
        self._tls.load_verify_locations(self._config.tls.ca)
        self._stamp = stamp
        return True

    def _stamps(self) -> tuple[float, ...]:
        tls = self._config.tls
        return tuple(Path(path).stat().st_mtime_ns for path in (tls.cert, tls.key, tls.ca))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MOST:
                await asyncio.wait_for(self._answer(reader, writer), PATIENCE)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that went or dawdled; the next one is served
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        words = head.split(b"\r\n", 1)[0].split(b" ")
        path = words[1].decode("ascii", "replace").split("?", 1)[0] if len(words) == 3 else ""
        allowed = known(writer.get_extra_info("peercert")) or (path == "/metrics" and self._config.metrics_anonymous)
        status, kind, body = "200 OK", "text/plain; charset=utf-8", b""
        if words[0] != b"GET":
            status, body = "405 Method Not Allowed", b"only GET\n"
        elif not allowed:
            status, body = "403 Forbidden", b"a certificate with OU=registry-node or OU=registry-admin is needed\n"
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
        if self._server is not None:
            self._server.close()
            self._server = None
