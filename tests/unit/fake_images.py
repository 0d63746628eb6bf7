"""A registry that keeps each repository by itself, as real ones do: tags, indexes, referrers, deleting."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Api
from tests.unit.fake_registry import FakeRegistry, Handler, Request


@dataclass
class Store:
    """One repository."""

    manifests: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def manifest(self, reference: str) -> bytes | None:
        return self.manifests.get(self.tags.get(reference, reference))


@dataclass
class Repositories(FakeRegistry):
    """``untags``: whether a tag can be deleted alone. Without ``referrers`` there is no list of what refers to what."""

    store: dict[str, Store] = field(default_factory=dict)
    untags: bool = True
    #: Repositories whose list of tags cannot be read; zot calls that 404, also for who pushes.
    nameless: set[str] = field(default_factory=set)

    def refusal(self, method: str, path: str) -> int | None:
        if any(path.startswith((f"/v2/{name}/tags/", f"/v2/{name}/manifests/")) for name in self.nameless):
            return 404
        return super().refusal(method, path)

    def blob(self, repository: str, content: bytes, media_type: str = oci.LAYER) -> oci.Descriptor:
        digest = oci.digest_of(content)
        self.store.setdefault(repository, Store()).blobs[digest] = content
        return oci.Descriptor(media_type=media_type, digest=digest, size=len(content))

    def put(self, repository: str, document: dict[str, Any], tag: str = "") -> oci.Descriptor:
        content = oci.canonical({"schemaVersion": 2, **document})
        store = self.store.setdefault(repository, Store())
        digest = oci.digest_of(content)
        store.manifests[digest] = content
        if tag:
            store.tags[tag] = digest
        return oci.Descriptor(media_type=document["mediaType"], digest=digest, size=len(content))

    def image(self, repository: str, tag: str = "", layer: bytes = b"layer", **more: Any) -> oci.Descriptor:
        """An image of one layer."""
        config = plain(self.blob(repository, b'{"os":"linux"}', oci.EMPTY))
        layers = [plain(self.blob(repository, layer))]
        return self.put(repository, {"mediaType": oci.MANIFEST, "config": config, "layers": layers, **more}, tag)

    def index(self, repository: str, tag: str, **images: oci.Descriptor) -> oci.Descriptor:
        """An index; the images by their architecture."""
        entries = [
            {**plain(one), "platform": {"os": "linux", "architecture": architecture}}
            for architecture, one in images.items()
        ]
        return self.put(repository, {"mediaType": oci.INDEX, "manifests": entries}, tag)


def plain(descriptor: oci.Descriptor) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


class ScopedHandler(Handler):
    registry: Repositories

    def _handle(self) -> None:
        held, url = self.registry, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        held.requests.append(Request(self.command, self.path, "", "", ""))
        refusal = held.refusal(self.command, url.path)
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs|blobs/uploads|tags|referrers)/([^/]*)", url.path)
        repository, kind, last = found.groups() if found else ("", "", "")
        store = held.store.get(repository, Store())
        if refusal is not None:
            self._say(refusal)
        elif url.path == "/v2/":
            self._say(200)
        elif url.path == "/v2/_catalog":
            self._say(200, json.dumps({"repositories": list(held.store)}).encode())
        elif kind == "tags":
            self._say(200, json.dumps({"tags": list(store.tags) or None}).encode())
        elif kind == "referrers":
            self._list_referrers(store, last)
        elif self.command in ("GET", "HEAD"):
            content = store.manifest(last) if kind == "manifests" else store.blobs.get(last)
            self._say(404) if content is None else self._say(200, content)
        elif self.command == "DELETE" and kind == "blobs":
            self._delete_blob(store, last)
        elif self.command == "DELETE":
            self._delete(store, last)
        elif kind == "manifests":
            self._put_manifest(held.store.setdefault(repository, Store()), last, body)
        elif self.command == "POST":
            self._begin(repository, parse_qs(url.query))
        elif self.command == "PATCH":
            held.uploads[last] += body
            self._say(202, location=url.path)
        else:
            held.store.setdefault(repository, Store()).blobs[parse_qs(url.query)["digest"][0]] = (
                bytes(held.uploads[last]) + body
            )
            self._say(201)

    def _list_referrers(self, store: Store, subject: str) -> None:
        if not self.registry.referrers:
            return self._say(404)
        found = []
        for digest, content in store.manifests.items():
            document = json.loads(content) if b"subject" in content else {}
            if document.get("subject", {}).get("digest") == subject:
                kind = document.get("artifactType", "")
                found.append({"digest": digest, "size": len(content), "mediaType": oci.MANIFEST, "artifactType": kind})
        return self._say(200, json.dumps({"manifests": found}).encode())

    def _begin(self, repository: str, query: dict[str, list[str]]) -> None:
        held = self.registry
        if held.mounts and "mount" in query:
            digest = query["mount"][0]
            content = held.store[query["from"][0]].blobs[digest]
            held.store.setdefault(repository, Store()).blobs[digest] = content
            return self._say(201)
        number = str(len(held.uploads) + 1)
        held.uploads[number] = bytearray()
        return self._say(202, location=f"/v2/{repository}/blobs/uploads/{number}")

    def _put_manifest(self, store: Store, reference: str, body: bytes) -> None:
        digest = oci.digest_of(body)
        document = json.loads(body)
        lacking = [
            one
            for one in (*document.get("layers", ()), *document.get("manifests", ()))
            if one["digest"] not in store.blobs
            and one["digest"] not in store.manifests
            and not oci.NOT_DISTRIBUTED.search(one.get("mediaType", ""))
        ]
        if lacking and reference != digest and not reference.startswith("sha256-"):
            return self._say(400, b"what it needs is not there")
        if self.registry.referrers and "manifests" in document:  # zot 2.1.18; Distribution does not look
            before = store.tags.get(reference, digest)
            if before != digest and before not in store.manifests:
                return self._say(400, b"BLOB_UNKNOWN: the index in whose place it comes")
        store.manifests[digest] = body
        if ":" not in reference:
            store.tags[reference] = digest
        noted = self.registry.referrers and "subject" in document
        return self._say(201, more={"OCI-Subject": document["subject"]["digest"]} if noted else {})

    def _delete_blob(self, store: Store, digest: str) -> None:
        """As zot does."""
        if digest not in store.blobs and digest not in store.manifests:
            return self._say(404)
        if digest in store.manifests or any(digest.encode() in content for content in store.manifests.values()):
            return self._say(405, b'{"errors":[{"code":"DENIED"}]}')
        del store.blobs[digest]
        return self._say(202)

    def _delete(self, store: Store, reference: str) -> None:
        if ":" not in reference and not self.registry.untags:
            return self._say(400, b"DIGEST_INVALID")
        if store.manifest(reference) is None:
            return self._say(404)
        if ":" in reference:
            indexes = (json.loads(content) for content in store.manifests.values() if b'"manifests"' in content)
            needed = any(reference == one["digest"] for index in indexes for one in index["manifests"])
            if needed and self.registry.referrers:  # Distribution, which has no such list, deletes it
                return self._say(405, b"part of an index, says zot")
            del store.manifests[reference]
            store.tags = {tag: digest for tag, digest in store.tags.items() if digest != reference}
        else:
            del store.tags[reference]
        return self._say(202)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _handle


class _Within(ScopedHandler):
    """Answers one request without a socket."""

    def __init__(self, registry: Repositories, request: httpx.Request) -> None:
        content = request.read()
        self.registry, self.command, self.path = registry, request.method, request.url.raw_path.decode()
        self.headers = {"Content-Length": str(len(content))}  # type: ignore[assignment]
        self.rfile = io.BytesIO(content)
        self._handle()

    def _say(
        self, status: int, body: bytes = b"", location: str = "", more: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        headers = {**more, **({"Location": location} if location else {})}
        self.answer = httpx.Response(status, headers=headers, content=b"" if self.command == "HEAD" else body)


def answered(registry: Repositories, request: httpx.Request) -> httpx.Response:
    """What *registry* makes of *request*."""
    return _Within(registry, request).answer


def within(
    registry: Repositories, meddle: Callable[[httpx.Request], httpx.Response | None] = lambda _: None
) -> Callable[[], Api]:
    """Who opens connections to *registry* in this thread's own process, where thousands of requests take a second.

    *meddle* sees each request first, and may answer it.
    """

    def answer(request: httpx.Request) -> httpx.Response:
        return meddle(request) or answered(registry, request)

    return lambda: Api("registry", "http://registry", httpx.Client(transport=httpx.MockTransport(answer)))
