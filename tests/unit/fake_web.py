"""Servers in this process that answer as a test says, by HTTP or HTTPS on loopback; and what they were asked."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    login: str
    body: bytes


@dataclass(frozen=True)
class Say:
    """One answer."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Web:
    """A server: *answer* says what it answers; ``asked`` what it was asked."""

    answer: Callable[[Asked], Say]
    url: str = ""
    asked: list[Asked] = field(default_factory=list)

    @property
    def host(self) -> str:
        """Where it is, as images name a registry."""
        return self.url.partition("://")[2]

    @property
    def logins(self) -> set[str]:
        """What it was told to let somebody in."""
        return {one.login for one in self.asked} - {""}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    web: Web

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = Asked(self.command, self.path, self.headers.get("Authorization", ""), body)
        self.web.asked.append(asked)
        said = self.web.answer(asked)
        self.send_response(said.status)
        for name, value in said.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(said.body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # who has read enough goes away
            self.wfile.write(said.body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_CONNECT = _handle

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that speaks the other protocol is part of a test."""


@contextmanager
def serving(answer: Callable[[Asked], Say], pair: Path | None = None) -> Iterator[Web]:
    """A server at 127.0.0.1; with TLS by the certificate and key in the file *pair*."""
    web = Web(answer)
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"web": web})) as server:
        if pair is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pair)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        web.url = f"http{'s' if pair else ''}://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def raw(answer: bytes | Callable[[socket.socket], None]) -> Iterator[str]:
    """Where somebody listens who answers with *answer*, or by it, and nothing else; only ``/v2/`` is answered well."""

    def serve(line: socket.socket) -> None:
        with line, contextlib.suppress(OSError):
            seen = b""
            while b"\r\n\r\n" not in seen and (more := line.recv(65536)):
                seen += more
            if seen.startswith(b"GET /v2/ "):
                line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            elif isinstance(answer, bytes):
                line.sendall(answer)
            else:
                answer(line)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    line, _ = listener.accept()
                    threading.Thread(target=serve, args=(line,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
