"""A registry in this process: HTTPS on loopback with a certificate of ours, blobs and manifests in dicts."""

from __future__ import annotations

import base64
import hashlib
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from kubeadm_registry import pki


@dataclass
class Request:
    method: str
    path: str
    host: str
    login: str
    type: str


@dataclass
class FakeRegistry:
    """What it holds and what it was asked. ``refuse`` answers a request in its own way: method and path -> status."""

    port: int = 0
    password: str = "push:secret"
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    refuse: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    #: What an upload's Location begins with; it may be absolute, by a name that only the registry knows.
    location: str = "/v2/a/blobs/uploads/1?state=x"
    spoil: bool = False

    def refusal(self, method: str, path: str) -> int | None:
        for (wanted, part), statuses in self.refuse.items():
            if method == wanted and part in path and statuses:
                return statuses.pop(0)
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: FakeRegistry

    def _say(self, status: int, body: bytes = b"", location: str = "") -> None:
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:
        held, url = self.registry, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        scheme, _, login = self.headers.get("Authorization", "").partition(" ")
        login = base64.b64decode(login).decode() if scheme == "Basic" else ""
        held.requests.append(
            Request(self.command, self.path, self.headers["Host"], login, self.headers.get("Content-Type", ""))
        )
        refusal = held.refusal(self.command, url.path)
        if refusal is not None:
            self._say(refusal, b'{"errors":[{"code":"UNAVAILABLE"}]}')
        elif self.command in ("GET", "HEAD"):
            kept = held.blobs if "/blobs/" in url.path else held.manifests
            content = kept.get(url.path.rpartition("/")[2])
            if content is None:
                self._say(404, b'{"errors":[{"code":"BLOB_UNKNOWN"}]}')
            else:
                self._say(200, content[:-1] + b"!" if held.spoil else content)
        elif login != held.password:
            self._say(401, b"log in to push")
        elif self.command == "POST":
            self._say(202, location=held.location)
        else:
            self._put(url.path, parse_qs(url.query).get("digest"), body)

    def _put(self, path: str, wanted: list[str] | None, body: bytes) -> None:
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        if "/uploads/" not in path:
            self.registry.manifests[digest] = self.registry.manifests[path.rpartition("/")[2]] = body
        elif wanted == [digest]:
            self.registry.blobs[digest] = body
        else:
            return self._say(400, b"digest invalid")
        return self._say(201)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(registry: FakeRegistry, pair: pki.Pair) -> Iterator[FakeRegistry]:
    """Serve *registry* on 127.0.0.1 with the certificate *pair*; ``registry.port`` is where."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(pair.certificate + pair.key)
        file.flush()
        context.load_cert_chain(Path(file.name))
    handler = type("Handler", (_Handler,), {"registry": registry})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        registry.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()
