"""A registry for reading, straight from a bundle's file: the way back in when the room's own is lost.

It serves the images under the names that ``seed`` gives them, so a containerd that was pointed at the registry finds
them without any change. Nothing is unpacked: every blob is read from its place in the file, and compared with its
digest on the way out. Standard library only (http.server, ssl), besides what reads a bundle.

Source: https://github.com/opencontainers/distribution-spec (v1.1), the parts "Pull", "Content Discovery".
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from kubeadm_registry import paths
from kubeadm_registry.addresses import endpoint, is_ipv6
from kubeadm_registry.bundle import Bundle, files
from kubeadm_registry.errors import BundleError, Error
from kubeadm_registry.images import referrers, seed
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.printable import reason

#: Seconds of silence after which a connection ends: in an answer, and between requests, where it holds up others.
PATIENCE = 60
IDLE = 5
#: Connections at a time; others wait in the kernel's queue.
MOST_CLIENTS = 512
QUEUE = 256
#: The longest file of logins, in bytes.
MAX_LOGINS = 1024 * 1024
#: Bytes of a blob in hand, for each client.
PIECE = 256 * 1024

_PATH = re.compile(r"/v2/(?P<repository>.+)/(?P<kind>manifests|blobs|referrers)/(?P<reference>[^/]+)")
_TAGS = re.compile(r"/v2/(?P<repository>.+)/tags/list")
_ANY_UPSTREAM = re.compile(rf"/v2/{paths.ANY_UPSTREAM}(?P<rest>/.+)")
_UPSTREAM = re.compile(r"[a-z0-9][a-z0-9.-]*(?::[0-9]+)?")
_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})")
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Repository:
    """What a repository has: tags and digests, each with its descriptor, and what refers to a digest."""

    tags: dict[str, oci.Descriptor] = field(default_factory=dict)
    manifests: dict[str, oci.Descriptor] = field(default_factory=dict)
    blobs: dict[str, oci.Descriptor] = field(default_factory=dict)
    referrers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def repositories(bundle: Bundle) -> dict[str, Repository]:
    """The images of *bundle* by repository. Raises BundleError if one is damaged or incomplete."""
    found: dict[str, Repository] = {}
    for item in seed.plan(bundle):
        repository = found.setdefault(item.repository, Repository())
        if item.reference != item.root.digest:
            repository.tags[item.reference] = item.root
        for manifest in item.manifests:
            if manifest.digest not in repository.manifests:
                repository.manifests[manifest.digest] = manifest
                _note_subject(bundle, repository, manifest)
        repository.blobs.update({blob.digest: blob for blob in item.blobs})
    return found


def _note_subject(bundle: Bundle, repository: Repository, descriptor: oci.Descriptor) -> None:
    """Make the manifest known as a referrer, if it refers to another ("Listing Referrers")."""
    content = bundle.layout.read(descriptor)
    if subject := referrers.subject_of(content):
        entry = referrers.entry(descriptor, json.loads(content))
        repository.referrers.setdefault(subject, []).append(entry)


def certificate(pem: Path, key: Path | None = None) -> ssl.SSLContext:
    """The server's side of TLS with the certificate and key in *pem*, or the key in *key*.

    Raises Error (CertificateMissing, CertificateInvalid) with the remedy.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for file in filter(None, (pem, key)):
        if file.exists() and not file.is_file():  # it is read twice, and a pipe would make it wait
            raise Error(
                f"cannot use the certificate {file}: it is not a regular file", code="CertificateInvalid",
                hint="pass files in PEM format",
            )  # fmt: skip
    try:
        context.load_cert_chain(pem, key)
    except FileNotFoundError as error:
        raise Error(
            f"no certificate to serve with: {pem}{f' and {key}' if key else ''}", code="CertificateMissing",
            hint="run the command on a registry node, which has one, or create one for the virtual IP, signed "
            "by the CA that the nodes trust, and pass it with --cert FILE --key FILE",
        ) from error  # fmt: skip
    except (ssl.SSLError, OSError) as error:
        why = reason(error) if isinstance(error, ssl.SSLError) else error.strerror
        if why == "PEM lib":  # OpenSSL tells no more
            why = "it is not a certificate with its private key"
        raise Error(
            f"cannot use the certificate {pem}: {why}", code="CertificateInvalid",
            hint="check that it is readable (run the command as root), in PEM format, and matches its key",
        ) from error  # fmt: skip
    return context


def logins(auth_map: Path) -> frozenset[str]:
    """Who may read by *auth_map*, the proxy's own: SHA-256 of a login as HTTP has it, and its role, one a line.

    Raises Error (LoginsUnreadable), also when it names nobody: that would let everybody in.
    """
    try:
        found = frozenset(line.split()[0] for line in files.text(auth_map, MAX_LOGINS).splitlines() if line.strip())
    except OSError as error:
        raise Error(
            f"cannot read {auth_map}: {error.strerror}", code="LoginsUnreadable", hint="run the command as root"
        ) from error
    if not found:
        raise Error(
            f"{auth_map} contains no credentials",
            code="LoginsUnreadable",
            hint="omit the option to serve without authentication",
        )
    return found


class Server(ThreadingHTTPServer):
    """The registry of one bundle. ``serve_forever`` serves until ``shutdown``; close it, or use it in a ``with``."""

    daemon_threads = True
    request_queue_size = QUEUE

    def __init__(
        self, address: str, port: int, bundle: Bundle, tls: ssl.SSLContext,
        *, logins: frozenset[str] = frozenset(), told: Callable[[str, str], None] = lambda client, line: None,
    ) -> None:  # fmt: skip
        """*address* empty: all of this host. *told* gets each request's client and a line about it.

        *logins* are the SHA-256, hex, of those that may read; none: anybody may.

        Raises BundleError, or Error (ListenFailed) when the address or port cannot be had.
        """
        self.bundle = bundle
        self.repositories = repositories(bundle)
        self.logins = logins
        self.told = told
        self._tls = tls
        self._slots = threading.BoundedSemaphore(MOST_CLIENTS)
        self._both = not address and socket.has_dualstack_ipv6()
        self.address_family = socket.AF_INET6 if self._both or is_ipv6(address) else socket.AF_INET
        where = endpoint(address, port)
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            raise Error(
                f"cannot listen on {where}: {error.strerror}", code="ListenFailed",
                hint="stop the process that uses the port (`ss -tlnp`; on a registry node its own services, see "
                "/etc/kubeadm-registry/RUNBOOK), and add the address to this host first",
            ) from error  # fmt: skip

    def server_bind(self) -> None:
        """Bind, without asking a DNS that may not be there for this host's name, as HTTPServer does."""
        if self._both:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, as soon as there is one to give."""
        self._slots.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started, so none gives the place back
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In that thread: serve."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Agree on TLS here and not while accepting, where one that says nothing would hold up all others."""
        request.settimeout(IDLE)
        with self._tls.wrap_socket(request, server_side=True) as secure:
            _Handler(secure, client_address, self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of a client that does not trust us, and of a mistake of ours; one that went away is its own business."""
        error = sys.exception()
        if isinstance(error, ssl.SSLError) or not isinstance(error, OSError):
            self.told(client_address[0], f"failed: {error or 'unknown reason'}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "kubeadm-registry-rescue"
    sys_version = ""
    timeout = IDLE
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        """Answer; a bundle that turns out to be damaged is told to the client and to whoever looks on."""
        self.connection.settimeout(PATIENCE)
        try:
            self._answer(urlsplit(self.path))
        except BundleError as error:
            self.server.told(self.client_address[0], f"{self.path}: {error.message}")
            if self._begun:
                self.close_connection = True  # the body is short of its length, which the client sees
            else:
                self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, "UNKNOWN", error.message)
        self.connection.settimeout(IDLE)

    do_HEAD = do_GET

    def __getattr__(self, name: str) -> Any:
        # Whatever other method there is.
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    _begun = False

    def _refuse(self) -> None:
        self.close_connection = True  # a body may follow, which nobody reads
        more = {"Allow": "GET, HEAD", "Connection": "close"}
        self._fail(HTTPStatus.METHOD_NOT_ALLOWED, "UNSUPPORTED", "this registry is read-only", more)

    def _answer(self, url: Any) -> None:
        self._begun = False
        query = parse_qs(url.query)
        path = named_path(unquote(url.path), query.get("ns", [""])[0])
        if self.server.logins and not self._is_known():
            more = {"WWW-Authenticate": 'Basic realm="registry"'}
            self._fail(HTTPStatus.UNAUTHORIZED, "UNAUTHORIZED", "authentication required", more)
        elif path in ("/v2", "/v2/"):
            self._say(HTTPStatus.OK, b"{}")
        elif path == "/v2/_catalog":
            self._list(path, query, "repositories", self.server.repositories, {})
        elif found := _TAGS.fullmatch(path):
            name = found["repository"]
            repository = self.server.repositories.get(name)
            if repository is None:
                self._fail(HTTPStatus.NOT_FOUND, "NAME_UNKNOWN", f"the bundle has no {name}")
            else:
                self._list(path, query, "tags", repository.tags, {"name": name})
        elif found := _PATH.fullmatch(path):
            repository = self.server.repositories.get(found["repository"], Repository())
            {"manifests": self._manifest, "blobs": self._blob, "referrers": self._referrers}[found["kind"]](
                repository, found["reference"], query
            )
        else:
            self._fail(HTTPStatus.NOT_FOUND, "NOT_FOUND", "no such page")

    def _is_known(self) -> bool:
        scheme, _, login = self.headers.get("Authorization", "").strip().partition(" ")
        return scheme.lower() == "basic" and hashlib.sha256(login.strip().encode()).hexdigest() in self.server.logins

    def _manifest(self, repository: Repository, reference: str, _: object) -> None:
        descriptor = repository.tags.get(reference) or repository.manifests.get(reference)
        if descriptor is None:
            self._fail(HTTPStatus.NOT_FOUND, "MANIFEST_UNKNOWN", f"the bundle has no {reference} in this repository")
            return
        content = self.server.bundle.layout.read(descriptor)
        self._say(HTTPStatus.OK, content, descriptor.media_type, _digest(descriptor))

    def _referrers(self, repository: Repository, reference: str, query: dict[str, list[str]]) -> None:
        found, more = repository.referrers.get(reference, []), {}
        if wanted := query.get("artifactType"):
            found = [entry for entry in found if entry.get("artifactType") in wanted]
            more["OCI-Filters-Applied"] = "artifactType"
        content = json.dumps({"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": found}).encode()
        self._say(HTTPStatus.OK, content, oci.INDEX, more)

    def _blob(self, repository: Repository, reference: str, _: object) -> None:
        descriptor, layout = repository.blobs.get(reference), self.server.bundle.layout
        if descriptor is None or not layout.has(descriptor.digest):
            self._fail(HTTPStatus.NOT_FOUND, "BLOB_UNKNOWN", f"the bundle has no {reference} in this repository")
            return
        size = descriptor.size
        try:
            part = wanted_part(self.headers.get("Range", ""), size) if self.command == "GET" else None
        except ValueError:
            more = {"Content-Range": f"bytes */{size}"}
            self._fail(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "RANGE_INVALID", f"it has {size} bytes", more)
            return
        more = {**_digest(descriptor), "Accept-Ranges": "bytes"}
        if part is None:
            self._send(layout.blob(descriptor), HTTPStatus.OK, size, more)
        else:
            more["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
            # A part has no digest: the client compares the whole, as it does with every registry.
            self._send(layout.blob(descriptor, offset=part.start), HTTPStatus.PARTIAL_CONTENT, len(part), more)

    def _send(self, stream: BinaryIO, status: HTTPStatus, length: int, more: Mapping[str, str]) -> None:
        """Answer with *length* bytes of *stream*."""
        with stream:
            # Before the status, so that a small damaged blob is an error and no broken answer.
            piece = b"" if self.command == "HEAD" else stream.read(min(PIECE, length))
            self._head(status, length, "application/octet-stream", more)
            while piece:
                self.wfile.write(piece)
                length -= len(piece)
                piece = stream.read(min(PIECE, length)) if length else b""

    def _list(
        self, path: str, query: dict[str, list[str]], key: str, names: Iterable[str], more: dict[str, object]
    ) -> None:
        """A page of *names*, with the way to the next one ("Listing Tags")."""
        after = query.get("last", [""])[0]
        rest = [name for name in sorted(names) if name > after]
        asked = query.get("n", [""])[0]
        page = rest[: int(asked)] if re.fullmatch(r"[0-9]{1,9}", asked) else rest
        link = {}
        if len(page) < len(rest) and page:
            link["Link"] = f'<{path}?{urlencode({"n": asked, "last": page[-1]})}>; rel="next"'
        self._say(HTTPStatus.OK, json.dumps({**more, key: page}).encode(), more=link)

    def _fail(self, status: HTTPStatus, code: str, message: str, more: Mapping[str, str] = _NOTHING) -> None:
        self._say(status, json.dumps({"errors": [{"code": code, "message": message}]}).encode(), more=more)

    def _say(
        self, status: HTTPStatus, body: bytes, kind: str = "application/json", more: Mapping[str, str] = _NOTHING
    ) -> None:
        self._head(status, len(body), kind, more)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, length: int, kind: str, more: Mapping[str, str]) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(length),
            "Docker-Distribution-API-Version": "registry/2.0",
        }
        for name, value in {**headers, **more}.items():
            self.send_header(name, value)
        self._begun = True
        self.end_headers()
        self.server.told(self.client_address[0], f"{self.command} {self.path} {status.value}")

    def log_message(self, format: str, *arguments: Any) -> None:
        """What is worth telling was told."""


def _digest(descriptor: oci.Descriptor) -> dict[str, str]:
    return {"Docker-Content-Digest": descriptor.digest, "ETag": f'"{descriptor.digest}"'}


def named_path(path: str, upstream: str) -> str:
    """*path* with the name of the registry *upstream*, where containerd's ``_default`` has it in the query alone.

    As the proxy reads it: templates/haproxy/haproxy.cfg.j2.
    """
    found = _ANY_UPSTREAM.fullmatch(path)
    if found is None or not _UPSTREAM.fullmatch(upstream):
        return path
    return f"/v2/{upstream.replace(':', '_')}{found['rest']}"


def wanted_part(header: str, size: int) -> range | None:
    """Which of *size* bytes a Range *header* asks for; None: all, also where it is no single range of bytes.

    Raises ValueError when none of them is there. Source: RFC 9110, sections 14.1.2 and 14.2.
    """
    found = _RANGE.fullmatch(header.strip())
    if found is None or not (found["first"] or found["last"]):
        return None
    if not found["first"]:
        part = range(max(0, size - int(found["last"])), size)
    elif found["last"] and int(found["last"]) < int(found["first"]):
        return None
    else:
        part = range(int(found["first"]), min(size, int(found["last"] or size) + 1))
    if not part:
        raise ValueError("not in there")
    return part
