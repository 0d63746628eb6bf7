"""A public registry in this process: plain HTTP on loopback, tokens, blobs elsewhere by redirect, broken transfers."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubeadm_registry.oci import descriptors as oci


@dataclass
class FakeUpstream:
    """What it holds: manifests by repository and reference with their type, blobs by digest."""

    host: str = ""
    tokens: bool = False
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    #: Bytes after which an answer with a blob breaks off, one for each answer.
    breaks: list[int] = field(default_factory=list)
    #: Seconds between pieces of a blob, of 64 KiB each.
    pace: float = 0
    lists_referrers: bool = True
    #: What it says instead of that list, as HTML.
    referrers_page: bytes = b""
    asked: list[str] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    sent: int = 0

    def add(self, repository: str, tag: str, content: bytes, kind: str) -> oci.Descriptor:
        """Hold a manifest, by *tag* (empty: none) and by digest."""
        digest = oci.digest_of(content)
        self.manifests[f"{repository}:{digest}"] = (content, kind)
        if tag:
            self.manifests[f"{repository}:{tag}"] = (content, kind)
        return oci.Descriptor(media_type=kind, digest=digest, size=len(content))

    def blob(self, content: bytes, kind: str = oci.LAYER) -> oci.Descriptor:
        """Hold a blob."""
        digest = oci.digest_of(content)
        self.blobs[digest] = content
        return oci.Descriptor(media_type=kind, digest=digest, size=len(content))

    def artifact(
        self, repository: str, subject: oci.Descriptor, *, tag: str = "", kind: str = "test/sig"
    ) -> oci.Descriptor:
        """Hold something that refers to *subject*."""
        config = self.blob(b"{}", oci.EMPTY)
        layer = self.blob(f"{kind} of {subject.digest}".encode())
        manifest = oci.Manifest(config=config, layers=(layer,), subject=subject, artifact_type=kind)
        return self.add(repository, tag, manifest.to_json(), oci.MANIFEST)

    def referring(self, repository: str, digest: str) -> bytes:
        """The list of what refers to a digest."""
        entries = {}
        for name, (content, kind) in self.manifests.items():
            where, _, reference = name.partition(":")
            about = json.loads(content).get("subject") or {}
            if where == repository and reference.startswith("sha256:") and about.get("digest") == digest:
                entries[reference] = oci.Descriptor(media_type=kind, digest=reference, size=len(content))
        return oci.Index(manifests=tuple(entries.values())).to_json()

    def image(self, repository: str, tag: str, *layers: bytes, platform: str = "amd64") -> oci.Descriptor:
        """Hold an image of those layers."""
        config = self.blob(b'{"os":"linux","architecture":"%s"}' % platform.encode(), oci.CONFIG)
        manifest = oci.Manifest(config=config, layers=tuple(self.blob(layer) for layer in layers))
        return self.add(repository, tag, manifest.to_json(), oci.MANIFEST)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    upstream: FakeUpstream

    def _say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        held, url = self.upstream, urlsplit(self.path)
        authorization = self.headers.get("Authorization", "")
        held.asked.append(url.path)
        if url.path == "/token":
            held.logins.append(authorization)
            scope = parse_qs(url.query)["scope"][0]
            self._say(200, b'{"token":"for %s"}' % scope.encode())
        elif url.path.startswith("/cdn/"):
            assert not authorization, "a token is not for others"
            self._blob(held.blobs[url.path.removeprefix("/cdn/")])
        elif held.tokens and not self._let_in(url.path, authorization):
            challenge = f'Bearer realm="http://{held.host}/token",service="fake"'
            self._say(401, b"{}", WWW_Authenticate=challenge)
        elif found := re.fullmatch(r"/v2/(.+)/blobs/(.+)", url.path):
            elsewhere = f"http://localhost:{held.host.rpartition(':')[2]}/cdn/{found[2]}"
            self._say(307, Location=elsewhere) if found[2] in held.blobs else self._say(404)
        elif found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", url.path):
            content, kind = held.manifests.get(f"{found[1]}:{found[2]}", (b"", ""))
            self._say(200, content, Content_Type=f"{kind}; charset=utf-8") if kind else self._say(404)
        elif "/referrers/" in url.path and held.referrers_page:
            self._say(200, held.referrers_page, Content_Type="text/html; charset=utf-8")
        elif (found := re.fullmatch(r"/v2/(.+)/referrers/(.+)", url.path)) and held.lists_referrers:
            self._say(200, held.referring(found[1], found[2]), Content_Type=oci.INDEX)
        else:
            self._say(404)

    do_HEAD = do_GET

    def _let_in(self, path: str, authorization: str) -> bool:
        repository = re.sub(r"^/v2/(.+)/(manifests|blobs)/.*", r"\1", path)
        return authorization == f"Bearer for repository:{repository}:pull"

    def _blob(self, content: bytes) -> None:
        held = self.upstream
        start = 0
        if held.ranges and (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(found[1])
        part = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if held.breaks:
            part = part[: held.breaks.pop(0)]
            self.close_connection = True
        held.sent += len(part)
        if not held.pace:
            self.wfile.write(part)
            return
        try:
            for begin in range(0, len(part), 65536):
                self.wfile.write(part[begin : begin + 65536])
                time.sleep(held.pace)
        except OSError:
            self.close_connection = True  # the client has gone

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(upstream: FakeUpstream) -> Iterator[FakeUpstream]:
    """Serve *upstream* on 127.0.0.1; ``upstream.host`` is where."""
    handler = type("Handler", (_Handler,), {"upstream": upstream})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        upstream.host = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield upstream
        finally:
            server.shutdown()
            thread.join()
