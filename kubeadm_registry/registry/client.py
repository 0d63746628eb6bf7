"""The requests of the OCI distribution API, each with its answers."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import httpx

from kubeadm_registry.addresses import url
from kubeadm_registry.errors import RegistryError
from kubeadm_registry.registry.line import Line

#: What a verifying client accepts as a manifest.
_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)

#: What a proxy answers while nobody can serve, a registry whose storage has no quorum for a moment (500), and one about
#: an upload that an earlier writer began.
#: 429 is an upstream's word for later.
_TEMPORARY = (404, 429, 500, 502, 503, 504)
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Login:
    """User and password."""

    user: str
    password: str


class Api:
    """The requests of the API, sent by *client* to *base*, the URL of a registry that messages call *name*.

    *headers* go with every request. A context manager.
    """

    def __init__(
        self, name: str, base: str, client: httpx.Client, *,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.name = name
        """What messages call the registry."""
        self._base = httpx.URL(base)
        self._client = client
        self._headers = headers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def ping(self) -> None:
        """Ask for ``/v2/``, which every registry answers. Raises RegistryError."""
        self.expect(self.send("GET", "/v2/"), 200, "look for the registry")

    def manifest(self, repository: str, reference: str) -> bytes | None:
        """The manifest; None if there is none. A *reference* by digest is checked. Raises RegistryError."""
        found = self.manifest_of_type(repository, reference)
        return None if found is None else found[0]

    def manifest_of_type(self, repository: str, reference: str) -> tuple[bytes, str] | None:
        """The manifest and its media type; None if there is none. Raises RegistryError."""
        answer = self.send("GET", f"/v2/{repository}/manifests/{reference}", headers={"Accept": _ACCEPT})
        content = self._body(answer, reference, f"manifest {repository}@{reference}")
        kind = str(answer.headers.get("Content-Type", "")).partition(";")[0].strip()
        return None if content is None else (content, kind)

    def blob(self, repository: str, digest: str) -> bytes | None:
        """The blob, whole and checked; None if there is none. Raises RegistryError."""
        answer = self.send("GET", f"/v2/{repository}/blobs/{digest}")
        return self._body(answer, digest, f"blob {repository}@{digest}")

    def has_blob(self, repository: str, digest: str) -> bool:
        """Whether the registry has the blob. Raises RegistryError."""
        answer = self.send("HEAD", f"/v2/{repository}/blobs/{digest}")
        return self._found(answer, 200, f"look for {repository}@{digest}")

    def piece(self, repository: str, digest: str, offset: int, size: int) -> bytes | None:
        """*size* bytes of a blob from byte *offset* on, or all that are left; None if there is no such blob.

        They are not checked: that takes all of it. Raises RegistryError.
        """
        headers = {"Range": f"bytes={offset}-{offset + size - 1}"}
        answer = self.send("GET", f"/v2/{repository}/blobs/{digest}", headers=headers)
        if answer.status_code == httpx.codes.OK:  # a registry need not know ranges
            return answer.content[offset : offset + size]
        return answer.content if self._found(answer, 206, f"read a piece of {repository}@{digest}") else None

    def stream(self, repository: str, digest: str, offset: int = 0) -> Iterator[bytes]:
        """A blob's bytes from *offset* on, as they come, not checked. Raises RegistryError, also in the middle."""
        what = f"read {repository}@{digest}"
        # Encoded bytes would not be those that have the digest.
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={offset}-"} if offset else {})}
        request = self._request("GET", f"/v2/{repository}/blobs/{digest}", headers=headers)
        with self._unanswered(request), closing(self._client.send(request, stream=True)) as answer:
            if answer.status_code == httpx.codes.OK:
                skip = offset  # a registry need not know ranges
            elif answer.status_code == httpx.codes.PARTIAL_CONTENT and offset:
                skip = 0
            else:
                answer.read()
                self.expect(answer, 206 if offset else 200, what)
            for chunk in answer.iter_raw():
                if skip < len(chunk):
                    yield chunk[skip:]
                skip = max(0, skip - len(chunk))

    def push_blob(self, repository: str, digest: str, content: bytes) -> None:
        """Push a blob in one piece (POST, then PUT), unless it is there. Raises RegistryError."""
        if self.has_blob(repository, digest):
            return
        headers = {"Content-Type": "application/octet-stream"}
        location = self.begin_upload(repository)
        answer = self.send("PUT", location, params={"digest": digest}, content=content, headers=headers)
        self.expect(answer, 201, f"push {repository}@{digest}")

    def begin_upload(self, repository: str, *, mount: str = "", source: str = "") -> str:
        """The Location of a new upload; empty if the blob *mount* of the repository *source* was mounted instead.

        Raises RegistryError.
        """
        what = f"begin upload to {repository}"
        query = {"mount": mount, "from": source} if source else {}
        answer = self.send("POST", f"/v2/{repository}/blobs/uploads/", params=query)
        if source and answer.status_code == httpx.codes.CREATED:
            return ""
        self.expect(answer, 202, what)
        if not answer.headers.get("Location"):
            raise RegistryError(f"{what} at {self.name}: the answer has no Location")
        return str(answer.headers["Location"])

    def cancel_upload(self, location: str) -> None:
        """Drop the upload at *location*; nothing happens if there is none. Raises RegistryError.

        Source: https://distribution.github.io/distribution/spec/api/#canceling-an-upload (no part of the OCI one).
        """
        self._found(self.send("DELETE", location), 204, "cancel an upload")

    def digest(self, repository: str, reference: str) -> str | None:
        """The digest of a manifest; None if there is none. Raises RegistryError."""
        answer = self.send("HEAD", f"/v2/{repository}/manifests/{reference}", headers={"Accept": _ACCEPT})
        if not self._found(answer, 200, f"look for {repository}:{reference}"):
            return None
        if told := answer.headers.get("Docker-Content-Digest"):
            return str(told)
        content = self.manifest(repository, reference)
        return None if content is None else f"sha256:{hashlib.sha256(content).hexdigest()}"

    def delete_manifest(self, repository: str, reference: str) -> bool:
        """Delete a manifest by digest, or a tag; False if there is none. Raises RegistryError."""
        answer = self.send("DELETE", f"/v2/{repository}/manifests/{reference}")
        return self._found(answer, 202, f"delete {repository}:{reference}")

    def has_repository(self, repository: str) -> bool:
        """Whether the registry lists tags of *repository*, even if there are none. Raises RegistryError."""
        path = f"/v2/{repository}/tags/list"
        return self._found(self.send("GET", f"{path}?n=1"), 200, f"list {path}")

    def tags(self, repository: str) -> list[str]:
        """All tags, over as many pages as there are; none if there is no such repository. Raises RegistryError."""
        return [str(tag) for page in self._pages(f"/v2/{repository}/tags/list") for tag in page.get("tags") or ()]

    def repositories(self) -> list[str]:
        """All repositories, by the catalogue, which is no part of the specification. Raises RegistryError."""
        return [str(name) for page in self._pages("/v2/_catalog") for name in page.get("repositories") or ()]

    def _pages(self, path: str) -> Iterator[dict[str, Any]]:
        """The pages of a list. Source: distribution-spec, "Listing Tags": Link as in RFC 8288."""
        target, seen = f"{path}?n={_PAGE}", set[str]()
        while target not in seen:
            seen.add(target)
            answer = self.send("GET", target)
            if not self._found(answer, 200, f"list {path}"):
                return
            yield _object(answer.content, path)
            following = re.search(r'<([^>]+)>\s*;\s*rel="?next"?', answer.headers.get("Link", ""))
            if following is None:
                return
            target = following[1]

    def referrers(self, repository: str, digest: str) -> list[dict[str, Any]]:
        """The descriptors of what refers to a manifest; by the tag of that form where the registry has no such list.

        Source: distribution-spec, "Listing Referrers" and "Referrers Tag Schema". Raises RegistryError.
        """
        answer = self.send("GET", f"/v2/{repository}/referrers/{digest}")
        native = self._found(answer, 200, f"list what refers to {repository}@{digest}")
        content = answer.content if native else self.manifest(repository, digest.replace(":", "-"))
        return [] if content is None else list(_object(content, f"referrers of {digest}").get("manifests") or ())

    def push_manifest(self, repository: str, reference: str, content: bytes, media_type: str) -> bool:
        """Push a manifest by tag or digest; whether the registry notes its subject itself. Raises RegistryError.

        Source: distribution-spec, "Pushing Manifests with Subject".
        """
        path = f"/v2/{repository}/manifests/{reference}"
        answer = self.send("PUT", path, content=content, headers={"Content-Type": media_type})
        self.expect(answer, 201, f"push {repository}:{reference}")
        return "OCI-Subject" in answer.headers

    def can_untag(self, repository: str) -> bool:
        """Whether the registry deletes a tag without its manifest: asked with a tag that nobody has, so none goes.

        Distribution 2.8 takes the tag for a damaged digest. *repository* must exist. Raises RegistryError.
        """
        answer = self.send("DELETE", f"/v2/{repository}/manifests/_{secrets.token_hex(16)}")
        if answer.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.METHOD_NOT_ALLOWED):
            return False
        self._found(answer, 202, f"ask whether tags of {repository} can be deleted")
        return True

    def send(
        self,
        method: str,
        target: str,
        *,
        content: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send a request to *target*, a path or a Location that the registry gave; *params* go to its query.

        Raises RegistryError, temporary, when there is no answer.
        """
        request = self._request(method, target, content=content, headers=headers or {}, params=params)
        with self._unanswered(request):
            return self._client.send(request)

    def _request(
        self, method: str, target: str, *, content: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str], params: Mapping[str, str] | None = None,
    ) -> httpx.Request:  # fmt: skip
        base = self._base
        if params:
            target += ("&" if "?" in target else "?") + urlencode(params)
        if re.match(r"/(?!/)", target):
            where = base.copy_with(raw_path=target.encode())  # thousands of times, and the other way is slow
        else:
            # A Location may name the registry by its own address; the way there is ours.
            where = base.join(target).copy_with(scheme=base.scheme, host=base.host, port=base.port)
        return self._client.build_request(method, where, content=content, headers={**self._headers, **headers})

    @contextmanager
    def _unanswered(self, request: httpx.Request) -> Iterator[None]:
        """What httpx raises when there is no whole answer, as RegistryError, temporary."""
        try:
            yield
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise RegistryError(
                f"{request.method} {request.url} at {self.name} failed: {reason}",
                code="RegistryUnreachable", temporary=True,
            ) from error  # fmt: skip

    def expect(self, answer: httpx.Response, status: int, what: str) -> httpx.Response:
        """*answer*, which must have that *status*. Raises RegistryError that says *what* failed, and why."""
        if answer.status_code != status:
            raise RegistryError(
                f"{what} at {self.name}: status {answer.status_code} instead of {status}: {answer.text[:300].strip()}",
                temporary=answer.status_code in _TEMPORARY,
            )
        return answer

    def _found(self, answer: httpx.Response, status: int, what: str) -> bool:
        """Whether *answer* has that *status*; False for 404. Raises RegistryError for any other."""
        if answer.status_code == httpx.codes.NOT_FOUND:
            return False
        self.expect(answer, status, what)
        return True

    def _body(self, answer: httpx.Response, reference: str, what: str) -> bytes | None:
        if not self._found(answer, 200, what):
            return None
        algorithm, _, wanted = reference.partition(":")
        if algorithm == "sha256" and hashlib.sha256(answer.content).hexdigest() != wanted:
            raise RegistryError(f"{what} at {self.name}: the bytes have another digest", code="DigestMismatch")
        return answer.content


class Registry(Api):
    """Our own registry, reached at one address. Not shared between threads."""

    def __init__(
        self, address: str, port: int, *, ca: str, login: Login | None = None, via: tuple[str, int] | None = None,
        timeout: float = 20,
    ) -> None:  # fmt: skip
        """*address*:*port* is whom the certificate must name; *via* where to connect instead (a forwarded port).

        *ca* is the authority's certificate, PEM, and the only one trusted. *timeout* is seconds of silence.
        """
        host, number = via or (address, port)
        auth = httpx.BasicAuth(login.user, login.password) if login is not None else None
        line = Line(host, number, name=address, ca=ca, timeout=timeout)
        # No proxy variables and no netrc of the operator's environment: the registry is on this network.
        super().__init__(
            address,
            url(host, number),
            httpx.Client(transport=line, auth=auth, trust_env=False),
            headers={"Host": url(address, port).removeprefix("https://")},
        )


def _object(content: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise RegistryError(f"{what}: the answer is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise RegistryError(f"{what}: the answer is no object")
    return found
