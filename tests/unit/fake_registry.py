"""A registry in this process: HTTPS on loopback with a certificate of ours, blobs and manifests in dicts."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from urllib.parse import parse_qs, urlsplit

from kubeadm_registry import pki
from kubeadm_registry.images import referrers
from kubeadm_registry.registry import Login, Registry
from tests.unit.fake_cluster import authority


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
    #: How many uploads have begun, and what has come of each, by its number.
    begun: int = 0
    uploads: dict[str, bytearray] = field(default_factory=dict)
    #: Bytes of a PATCH after which the connection breaks, one for each PATCH; and whether what came is kept.
    breaks: list[int] = field(default_factory=list)
    keeps: bool = True
    mounts: bool = False
    #: Repository and digest of each blob, for a registry that keeps repositories apart; None for one that does not.
    places: set[tuple[str, str]] | None = None
    referrers: bool = True
    page: int = 2

    def place(self, number: str) -> str:
        """Where the upload of that number goes on."""
        return self.location.replace("uploads/1", f"uploads/{number}")

    def refusal(self, method: str, path: str) -> int | None:
        for (wanted, part), statuses in self.refuse.items():
            if method == wanted and part in path and statuses:
                return statuses.pop(0)
        return None


def _repository(path: str) -> str:
    return path.removeprefix("/v2/").partition("/blobs/")[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer with a body waits for an acknowledgement, 40 ms
    registry: FakeRegistry

    def _say(
        self, status: int, body: bytes = b"", location: str = "", more: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.send_response(status)
        for name, value in more.items():
            self.send_header(name, value)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:  # noqa: PLR0912  one line for each request
        held, url = self.registry, urlsplit(self.path)
        if self.command == "PATCH" and held.breaks:
            part = self.rfile.read(held.breaks.pop(0))
            if held.keeps:
                held.uploads[self._number] += part
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        scheme, _, login = self.headers.get("Authorization", "").partition(" ")
        login = base64.b64decode(login).decode() if scheme == "Basic" else ""
        held.requests.append(
            Request(self.command, self.path, self.headers["Host"], login, self.headers.get("Content-Type", ""))
        )
        refusal = held.refusal(self.command, url.path)
        if refusal is not None:
            self._say(refusal, b'{"errors":[{"code":"UNAVAILABLE"}]}')
        elif url.path == "/v2/":
            self._say(200)
        elif "/uploads/" in url.path and self.command == "GET":
            self._say_how_far()
        elif url.path.endswith(("/tags/list", "/_catalog")):
            self._list(url.path, parse_qs(url.query))
        elif "/referrers/" in url.path:
            self._referrers(url.path.rpartition("/")[2])
        elif self.command in ("GET", "HEAD"):
            kept = held.blobs if "/blobs/" in url.path else held.manifests
            content = kept.get(url.path.rpartition("/")[2])
            if content is None or not self._is_here(url.path):
                self._say(404, b'{"errors":[{"code":"BLOB_UNKNOWN"}]}')
            elif not content and self.headers["Range"]:  # as S3: RFC 9110, section 15.5.17
                self._say(416)
            else:
                self._say(200, content[:-1] + b"!" if held.spoil else content)
        elif login != held.password:
            self._say(401, b"log in to push")
        elif self.command == "DELETE" and "/uploads/" in url.path:
            self._say(404 if held.uploads.pop(self._number, None) is None else 204)
        elif self.command == "DELETE":
            self._say(404 if held.manifests.pop(url.path.rpartition("/")[2], None) is None else 202)
        elif self.command == "POST" and held.mounts and self._can_mount(parse_qs(url.query)):
            self._put_here(url.path, parse_qs(url.query)["mount"][0])
            self._say(201)
        elif self.command == "POST":
            held.begun += 1
            number = str(held.begun)
            held.uploads[number] = bytearray()
            self._say(202, location=self._place(number))
        elif self.command == "PATCH":
            self._append(body)
        else:
            self._put(url.path, parse_qs(url.query).get("digest"), body)

    def _place(self, number: str) -> str:
        place = self.registry.place(number)
        return place if self.registry.places is None else place.replace("/a/", f"/{_repository(self.path)}/")

    def _is_here(self, path: str) -> bool:
        places = self.registry.places
        return places is None or "/blobs/" not in path or (_repository(path), path.rpartition("/")[2]) in places

    def _can_mount(self, query: dict[str, list[str]]) -> bool:
        [digest], [source] = query.get("mount", [""]), query.get("from", [""])
        places = self.registry.places
        return digest in self.registry.blobs and (places is None or (source, digest) in places)

    def _put_here(self, path: str, digest: str) -> None:
        if self.registry.places is not None:
            self.registry.places.add((_repository(path), digest))

    @property
    def _number(self) -> str:
        return urlsplit(self.path).path.rpartition("/")[2]

    def _say_how_far(self) -> None:
        if self._number not in self.registry.uploads:
            return self._say(404)
        return self._say(204, location=self._place(self._number), more=self._range())

    def _range(self) -> dict[str, str]:
        return {"Range": f"0-{max(0, len(self.registry.uploads[self._number]) - 1)}"}

    def _append(self, body: bytes) -> None:
        upload = self.registry.uploads.get(self._number)
        if upload is None:
            return self._say(404)
        if not self.headers["Content-Range"].startswith(f"{len(upload)}-"):
            return self._say(416, more=self._range())
        upload += body
        return self._say(202, location=self._place(self._number), more=self._range())

    def _referrers(self, subject: str) -> None:
        if not self.registry.referrers:
            return self._say(404)
        held = self.registry.manifests.items()
        found = [{"digest": digest} for digest, one in held if ":" in digest and referrers.subject_of(one) == subject]
        return self._say(200, json.dumps({"manifests": found}).encode())

    def _list(self, path: str, query: dict[str, list[str]]) -> None:
        places = self.registry.places
        known = self.registry.manifests if places is None else [one for one, _ in places if one == path[4:-10]]
        if path.endswith("/tags/list") and not known:
            return self._say(404, b'{"errors":[{"code":"NAME_UNKNOWN"}]}')
        names = sorted(name for name in self.registry.manifests if ":" not in name)
        names = [name for name in names if name > query.get("last", [""])[0]]
        page = names[: self.registry.page]
        link = {"Link": f'<{path}?n=2&last={page[-1]}>; rel="next"'} if len(page) < len(names) else {}
        kind = "tags" if path.endswith("list") else "repositories"
        return self._say(200, json.dumps({kind: page}).encode(), more=link)

    def _put(self, path: str, wanted: list[str] | None, body: bytes) -> None:
        if "/uploads/" in path:
            body = bytes(self.registry.uploads.get(self._number, b"")) + body
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        if "/uploads/" not in path:
            self.registry.manifests[digest] = self.registry.manifests[path.rpartition("/")[2]] = body
            if self.registry.referrers and (subject := referrers.subject_of(body)):
                return self._say(201, more={"OCI-Subject": subject})
        elif wanted == [digest]:
            self.registry.blobs[digest] = body
            self.registry.uploads.pop(self._number, None)
            self._put_here(path, digest)
        else:
            return self._say(400, b"digest invalid")
        return self._say(201)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(registry: FakeRegistry, pair: pki.Pair, handler: type[Handler] = Handler) -> Iterator[FakeRegistry]:
    """Serve *registry* on 127.0.0.1 with the certificate *pair*; ``registry.port`` is where."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(pair.certificate + pair.key)
        file.flush()
        context.load_cert_chain(Path(file.name))
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"registry": registry})) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        registry.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()


def connector(fake: FakeRegistry) -> Callable[[], AbstractContextManager[Registry]]:
    """Who opens connections to *fake*, by the name and with the login of the registry."""

    def connect() -> AbstractContextManager[Registry]:
        return Registry(
            "10.0.0.10", 5000, ca=authority().certificate, login=Login("push", "secret"),
            via=("127.0.0.1", fake.port), timeout=10,
        )  # fmt: skip

    return connect
