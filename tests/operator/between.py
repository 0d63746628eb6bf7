"""A server between a client and a real API server, which alters what passes: what networks, proxies and mistakes do."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import urllib3

from kubeadm_registry.upkeep.api import Api
from tests.operator.apiserver import ApiServer


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; of its body only *sent* bytes come (None: all), and after *reset* none, but a RST."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    sent: int | None = None
    reset: bool = False

    def altered(self, change: Callable[[Any], object]) -> Reply:
        """The same with its JSON changed in place."""
        value = json.loads(self.body)
        change(value)
        return replace(self, body=json.dumps(value).encode())


Forward = Callable[[str], Reply]
"""What the real server answers to a path with its query."""
Alter = Callable[[str, Forward], Reply]


@contextmanager
def between(server: ApiServer, alter: Alter, *, patience: float = 2) -> Iterator[tuple[Api, list[str]]]:
    """An administrator's client of *server* by way of *alter*, and the paths that were asked for so far."""
    asked: list[str] = []
    failed: list[BaseException] = []
    pool = urllib3.PoolManager(ca_certs=str(server.certificate))

    def forward(path: str) -> Reply:
        answer = pool.request("GET", server.url + path, headers={"Authorization": "Bearer admin-token"}, retries=False)
        return Reply(answer.status, answer.data)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            asked.append(self.path)
            try:
                reply = alter(self.path, forward)
            except BaseException as error:
                failed.append(error)
                raise
            if reply.reset:
                # Without anything left to send, the kernel ends the connection by a RST.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(reply.status)
            self.send_header("Content-Length", str(len(reply.body)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # the client may have given up
                self.wfile.write(reply.body[: reply.sent])
            self.close_connection = reply.sent is not None

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    thread = Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    api = Api(f"http://127.0.0.1:{proxy.server_address[1]}", urllib3.PoolManager(), patience=patience)
    try:
        yield api, asked
    finally:
        api.close()
        proxy.shutdown()
        proxy.server_close()
    for error in failed:
        raise error
