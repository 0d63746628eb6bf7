"""The requests of the OCI distribution API, each with its answers."""

from __future__ import annotations

import enum
import hashlib
import json
import re
import secrets
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlencode, urljoin

import httpx

from kubeadm_registry.addresses import url
from kubeadm_registry.errors import RegistryError
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.printable import counted, reason
from kubeadm_registry.registry.answers import MAX_DOCUMENT, Answer, beginning, cut, elsewhere, paced, whole
from kubeadm_registry.registry.one_connection import OneConnection
from kubeadm_registry.registry.retries import seconds_to_wait

#: What a verifying client accepts as a manifest.
_ACCEPT = ", ".join((oci.MANIFEST, oci.INDEX, oci.DOCKER_MANIFEST, oci.DOCKER_INDEX))

#: What a proxy answers while nobody can serve, or if a request came too slowly (408), a registry whose storage has no
#: quorum for a moment (500), and one that is asked too often. From 520 on Cloudflare, before Docker Hub.
TEMPORARY = (408, 429, 500, 502, 503, 504, *range(520, 526))
#: The same of a request that writes: of an upload that an earlier writer began nothing is known.
_TEMPORARY_FOR_WRITES = (*TEMPORARY, 404)
#: Name resolution that failed for good: no such name, or no address of it.
_NO_SUCH_HOST = (socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_FAIL)
_PAGE = 1000
#: Repositories a page. zot begins at the first one for each page; Distribution refuses so many (400).
_CATALOGUE = 10_000
#: Seconds that it may take for a page: 2 to 8 ms a repository.
_CATALOGUED = 600.0
#: What registries answer that know nothing of referrers.
_NO_REFERRERS = (400, 404, 405, 406)
#: The way to the next page in a Link, which may have other parameters.
_NEXT = re.compile(r'<([^>]+)>[^<]*;\s*rel\s*=\s*"?next"?', re.IGNORECASE)
#: The most bytes of a blob that is read into memory.
_MAX_BLOB = 2**28
#: Where a request says what repository it is about, if its path need not.
REPOSITORY = "kubeadm_registry.repository"
Entry = TypeVar("Entry", str, dict[str, Any])


class Deleted(enum.Enum):
    """What became of a blob that was to be deleted."""

    GONE = "gone"
    ABSENT = "absent"
    NEEDED = "needed"


@dataclass(frozen=True, slots=True)
class Login:
    """User and password; or an *identity_token*, which a tokens' server takes instead."""

    user: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)


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
        # A compressed answer has other bytes than the digest says, and may be far larger than it looks.
        # The proxies tell our own reads by it from those of clients, who may have the same login.
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "kubeadm-registry", **headers}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def ping(self) -> None:
        """Ask for ``/v2/``, which every registry answers. Raises RegistryError."""
        self.expect(self.send("GET", "/v2/"), 200, "look for the registry")

    def time(self) -> float:
        """The time of who answers, in seconds since 1970 (RFC 9110, section 6.6.1). Raises RegistryError."""
        said = self.send("GET", "/v2/").headers.get("Date", "")
        try:
            return parsedate_to_datetime(said).timestamp()
        except (ValueError, OverflowError) as error:
            raise RegistryError(f"the response of {self.name} has no valid Date: {said[:40]!r}") from error

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

    def blob(self, repository: str, digest: str, *, most: int = _MAX_BLOB) -> bytes | None:
        """The blob, of *most* bytes at most, whole and checked; None if there is none. Raises RegistryError."""
        answer = self.send("GET", f"/v2/{repository}/blobs/{digest}", most=most)
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
        request = self._request("GET", f"/v2/{repository}/blobs/{digest}", headers=headers)
        what = f"read a piece of {repository}@{digest}"
        with self._answering(request) as answer:
            if answer.status_code == httpx.codes.OK:  # a registry need not know ranges
                return b"".join(cut(paced(answer.iter_bytes(), what), offset, size))
            found = whole(answer, size, what)
        return found.content if self._found(found, 206, what) else None

    def stream(self, repository: str, digest: str, offset: int = 0) -> Iterator[bytes]:
        """A blob's bytes from *offset* on, as they come, not checked. Raises RegistryError, also in the middle."""
        what = f"read {repository}@{digest}"
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        request = self._request("GET", f"/v2/{repository}/blobs/{digest}", headers=headers)
        with self._answering(request) as answer:
            if answer.status_code == httpx.codes.OK:
                skip = offset  # a registry need not know ranges
            elif answer.status_code == httpx.codes.PARTIAL_CONTENT and offset:
                skip = 0
            else:
                self.expect(beginning(answer, what), 206 if offset else 200, what)
            yield from cut(paced(answer.iter_bytes(), what), skip)

    def begin_upload(self, repository: str, *, mount: str = "", source: str = "") -> str:
        """The Location of a new upload; empty if *source*'s blob *mount* was mounted instead. Raises RegistryError."""
        what, path = f"begin upload to {repository}", f"/v2/{repository}/blobs/uploads/"
        answer = self.send("POST", path, params={"mount": mount, "from": source} if source else {})
        if source and answer.status_code == httpx.codes.CREATED:
            return ""
        if source and answer.status_code == httpx.codes.NOT_FOUND:  # Pulp says so of what *source* does not have
            answer = self.send("POST", path)
        self.expect(answer, 202, what)
        if not answer.headers.get("Location"):
            raise RegistryError(f"{what} at {self.name}: the response has no Location")
        return str(answer.headers["Location"])

    def cancel_upload(self, location: str, repository: str = "") -> None:
        """Drop the upload to *repository* at *location*; nothing happens if there is none. Raises RegistryError.

        Source: https://distribution.github.io/distribution/spec/api/#canceling-an-upload (no part of the OCI one).
        """
        self._found(self.send("DELETE", location, repository=repository), 204, "cancel an upload")

    def digest(self, repository: str, reference: str) -> str | None:
        """The digest of a manifest; None if there is none. Raises RegistryError."""
        answer = self.send("HEAD", f"/v2/{repository}/manifests/{reference}", headers={"Accept": _ACCEPT})
        if answer.status_code != httpx.codes.METHOD_NOT_ALLOWED:  # of a registry that knows GET alone
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

    def delete_blob(self, repository: str, digest: str) -> Deleted:
        """Delete a blob; only for a registry that answers 405 while a manifest needs it. Raises RegistryError."""
        answer = self.send("DELETE", f"/v2/{repository}/blobs/{digest}")
        if answer.status_code == httpx.codes.METHOD_NOT_ALLOWED:
            return Deleted.NEEDED
        return Deleted.GONE if self._found(answer, 202, f"delete {repository}@{digest}") else Deleted.ABSENT

    def has_repository(self, repository: str) -> bool:
        """Whether the registry lists tags of *repository*, even if there are none. Raises RegistryError."""
        path = f"/v2/{repository}/tags/list"
        return self._found(self.send("GET", f"{path}?n=1"), 200, f"list {path}")

    def tags(self, repository: str) -> list[str]:
        """All tags, over as many pages as there are; none if there is no such repository. Raises RegistryError."""
        return list(self._pages(f"/v2/{repository}/tags/list", "tags"))

    def repositories(self) -> list[str]:
        """All repositories, by the catalogue, which is no part of the specification. Raises RegistryError."""
        try:
            return list(self._pages("/v2/_catalog", "repositories", _CATALOGUE, silence=_CATALOGUED))
        except RegistryError as error:
            if error.status != httpx.codes.BAD_REQUEST:
                raise
        return list(self._pages("/v2/_catalog", "repositories", silence=_CATALOGUED))

    def _pages(self, path: str, key: str, size: int = _PAGE, *, silence: float = 0) -> Iterator[str]:
        """The entries of a list, page by page; none of a list that is not there. Raises RegistryError, a temporary one
        if it is gone after some pages: it may only be out of reach, and what came is no whole list."""
        target, what = f"{path}?n={size}", f"list {path}"
        answers = self._answers(target, self.send("GET", target, silence=silence), silence)
        for number, answer in enumerate(answers):
            if not self._found(answer, 200, what):
                if number:
                    text = f"{what} at {self.name}: the list ended after {counted(number, 'page')}"
                    raise RegistryError(text, temporary=True)
                return
            yield from _listed(answer.content, key, str, path)

    def _answers(self, target: str, answer: Answer, silence: float = 0) -> Iterator[Answer]:
        """The *answer* of *target*, and those of the pages that follow it, each once: Link as in RFC 8288.

        Source: distribution-spec, "Listing Tags" and "Listing Referrers".
        """
        seen = {target}
        yield answer
        while following := _NEXT.search(answer.headers.get("Link", "")):
            target = _joined(target, following[1])  # it may be relative to this page
            if target in seen:
                return
            seen.add(target)
            answer = self.send("GET", target, silence=silence)
            yield answer

    def referrers(self, repository: str, digest: str) -> list[dict[str, Any]]:
        """The descriptors of what refers to a manifest; by the tag of that form where the registry has no such list.

        Source: distribution-spec, "Listing Referrers" and "Referrers Tag Schema". Raises RegistryError.
        """
        path, what = f"/v2/{repository}/referrers/{digest}", f"referrers of {digest}"
        answer = self.send("GET", path)
        if _knows_no_referrers(answer):
            content = self.referrers_list(repository, digest)
            return [] if content is None else _listed(content, "manifests", dict, what)
        found: list[dict[str, Any]] = []
        for page in self._answers(path, answer):
            self.expect(page, 200, f"list what refers to {repository}@{digest}")
            found += _listed(page.content, "manifests", dict, what)
        return found

    def referrers_list(self, repository: str, digest: str) -> bytes | None:
        """What the tag for the list of what refers to a manifest means; None if there is none. Raises RegistryError.

        GitLab takes such a tag for the digest, and gives the manifest itself.
        """
        content = self.manifest(repository, referrers_tag(digest))
        return None if content is None or oci.digest_of(content) == digest else content

    def lists_referrers(self, repository: str, digest: str) -> bool:
        """Whether the registry itself lists what refers to a manifest. Raises RegistryError.

        Source: distribution-spec, "Listing Referrers": 404 says that it does not know the request.
        """
        answer = self.send("GET", f"/v2/{repository}/referrers/{digest}")
        if _knows_no_referrers(answer):
            return False
        self.expect(answer, 200, f"list what refers to {repository}@{digest}")
        return True

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
        most: int = MAX_DOCUMENT,
        repository: str = "",
        silence: float = 0,
    ) -> Answer:
        """Send a request to *target*, a path or a Location that the registry gave; *params* go to its query.

        *repository* is what it is about, for a Location need not say so. The answer may take *silence* seconds, where
        that is longer than usual. Raises RegistryError when there is no answer, or one of more than *most* bytes.
        """
        request = self._request(method, target, content=content, headers=headers or {}, params=params)
        request.extensions[REPOSITORY] = repository
        usual = request.extensions["timeout"]
        request.extensions["timeout"] = {**usual, "read": max(usual["read"], silence)}
        with self._answering(request) as answer:
            return whole(answer, most, f"{method} {request.url} at {self.name}")

    @contextmanager
    def _answering(self, request: httpx.Request) -> Iterator[httpx.Response]:
        """The answer to *request*, whose body is still to be read. Raises RegistryError, also while it is read."""
        with self._unanswered(request), closing(self._exchange(request)) as answer:
            yield answer

    def _exchange(self, request: httpx.Request) -> httpx.Response:
        """Send *request*. Raises httpx.HTTPError."""
        return self._client.send(request, stream=True)

    def _request(
        self, method: str, target: str, *, content: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str], params: Mapping[str, str] | None = None,
    ) -> httpx.Request:  # fmt: skip
        base = self._base
        if params:
            target += ("&" if "?" in target else "?") + urlencode(params)
        try:
            if re.match(r"/(?!/)", target):
                where = base.copy_with(raw_path=target.encode("ascii"))  # thousands of times: the other way is slow
            else:
                # A Location may name the registry by its own address; the way there is ours.
                where = base.join(target).copy_with(scheme=base.scheme, host=base.host, port=base.port)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise RegistryError(f"{self.name} returned a location that is not valid: {error}") from error
        return self._client.build_request(method, where, content=content, headers={**self._headers, **headers})

    @contextmanager
    def _unanswered(self, request: httpx.Request) -> Iterator[None]:
        """What httpx raises when there is no whole answer, as RegistryError."""
        try:
            yield
        except (httpx.HTTPError, UnicodeError) as error:
            raise RegistryError(
                f"{request.method} {request.url} at {self.name}{elsewhere(error, request)} failed: {reason(error)}",
                code="RegistryUnreachable", hint=_remedy(error), temporary=self._may_pass(error),
            ) from error  # fmt: skip

    def _may_pass(self, error: Exception) -> bool:
        """Whether waiting may mend *error*."""
        if isinstance(error, httpx.ProxyError):  # the proxy's status and its words
            return not re.match(r"4(?!29)\d\d\b", str(error))
        if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol):
            return False
        return not _remedy(error)

    def expect(self, answer: Answer, status: int, what: str) -> Answer:
        """*answer*, which must have that *status*. Raises RegistryError that says *what* failed, and why."""
        if answer.status_code != status:
            reads = answer.method in ("GET", "HEAD")
            said = answer.text[:300].strip()
            raise RegistryError(
                f"{what} at {self.name}: status {answer.status_code} instead of {status}{f': {said}' if said else ''}",
                status=answer.status_code,
                hint=self._hint(answer.status_code),
                temporary=answer.status_code in (TEMPORARY if reads else _TEMPORARY_FOR_WRITES),
                wait=seconds_to_wait(answer.headers.get("Retry-After", "")),
            )
        return answer

    def _hint(self, status: int) -> str:
        """What to do about an answer of that *status*; empty if nobody can tell."""
        del status
        return ""

    def _found(self, answer: Answer, status: int, what: str) -> bool:
        """Whether *answer* has that *status*; False for 404. Raises RegistryError for any other."""
        if answer.status_code == httpx.codes.NOT_FOUND:
            return False
        self.expect(answer, status, what)
        return True

    def _body(self, answer: Answer, reference: str, what: str) -> bytes | None:
        if not self._found(answer, 200, what):
            return None
        algorithm, _, wanted = reference.partition(":")
        if algorithm == "sha256" and hashlib.sha256(answer.content).hexdigest() != wanted:
            raise RegistryError(f"{what} at {self.name}: the content does not match its digest", code="DigestMismatch")
        return answer.content


#: Seconds that our own registry may say nothing, where blobs of any size are read and sent.
SILENCE = 60.0


class Registry(Api):
    """Our own registry, reached at one address. Not shared between threads."""

    def __init__(
        self, address: str, port: int, *, ca: str, login: Login | None = None, via: tuple[str, int] | None = None,
        timeout: float = 20, headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """*address*:*port* is whom the certificate must name; *via* where to connect instead (a forwarded port).

        *ca* is the authority's certificate, PEM, and the only one trusted. *timeout* is seconds of silence. *headers*
        go with every request.
        """
        host, number = via or (address, port)
        auth = httpx.BasicAuth(login.user, login.password) if login is not None else None
        line = OneConnection(host, number, name=address, ca=ca, timeout=timeout)
        # No proxy variables and no netrc of the operator's environment: the registry is on this network.
        super().__init__(
            address,
            url(host, number),
            httpx.Client(transport=line, auth=auth, trust_env=False, timeout=timeout),
            headers={**headers, "Host": url(address, port).removeprefix("https://")},
        )


def referrers_tag(digest: str) -> str:
    """The tag that lists what refers to the manifest *digest*. Source: distribution-spec, "Referrers Tag Schema"."""
    algorithm, _, encoded = digest.partition(":")
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{algorithm[:32]}-{encoded[:64]}")


def cosign_tags(digest: str) -> list[str]:
    """The tags under which cosign keeps signatures, attestations and SBOMs of the manifest *digest*.

    Source: sigstore/cosign, specs/SIGNATURE_SPEC.md, "Storage".
    """
    return [f"{referrers_tag(digest)}.{kind}" for kind in ("sig", "att", "sbom")]


def _joined(page: str, link: str) -> str:
    """Where *link* on *page* leads (RFC 3986, section 5)."""
    try:
        return urljoin(page, link)
    except ValueError:
        return link  # no URL, which is told where it is asked for


def json_object(content: bytes, what: str) -> dict[str, Any]:
    """The JSON object that *content* is. Raises RegistryError that says *what* is none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{what}: the response is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RegistryError(f"{what}: the response is not a JSON object")
    return found


def _knows_no_referrers(answer: Answer) -> bool:
    """Whether it says so, or redirects what it does not know to a page for people, as ghcr.io does."""
    is_page = answer.headers.get("Content-Type", "").startswith("text/html")
    return answer.status_code in _NO_REFERRERS or (answer.status_code == httpx.codes.OK and is_page)


def _listed(content: bytes, key: str, kind: type[Entry], what: str) -> list[Entry]:
    """The list *key* of a JSON object, with entries of that *kind*; none if it is null. Raises RegistryError."""
    found = json_object(content, what).get(key)
    if found is None:
        return []
    if not (isinstance(found, list) and all(isinstance(one, kind) for one in found)):
        raise RegistryError(f"{what}: the response has no list of {key}")
    return found


def _remedy(error: Exception) -> str:
    """What to do about an error that waiting does not mend; empty for one that it may."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "check the address, and that this host trusts the CA of its certificate"
        # Python encodes a name before it looks it up, and not every one can be.
        if isinstance(cause, UnicodeError) or (isinstance(cause, socket.gaierror) and cause.errno in _NO_SUCH_HOST):
            return "check the host name and the DNS settings of this host"
        cause = cause.__cause__ or cause.__context__
    return ""
