"""A client of the OCI distribution API, as far as verifying and seeding need it.

https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx

from kubeadm_registry.addresses import url
from kubeadm_registry.errors import RegistryError

#: What a verifying client accepts as a manifest.
_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)

#: What a proxy answers while nobody can serve, and a registry about an upload that an earlier writer began.
_TEMPORARY = (404, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Login:
    """User and password."""

    user: str
    password: str


class Registry:
    """One registry, reached at one address. A context manager; not shared between threads."""

    def __init__(
        self, address: str, port: int, *, ca: str, login: Login | None = None, via: tuple[str, int] | None = None,
        timeout: float = 20,
    ) -> None:  # fmt: skip
        """*address*:*port* is whom the certificate must name; *via* where to connect instead (a forwarded port).

        *ca* is the authority's certificate, PEM, and the only one trusted. *timeout* is seconds of silence.
        """
        self._name = address
        self._base = url(*(via or (address, port)))
        self._headers = {"Host": url(address, port).removeprefix("https://")}
        context = ssl.create_default_context(cadata=ca)
        auth = httpx.BasicAuth(login.user, login.password) if login is not None else None
        # No proxy variables and no netrc of the operator's environment: the registry is on this network.
        self._client = httpx.Client(verify=context, auth=auth, timeout=timeout, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def manifest(self, repository: str, reference: str) -> bytes | None:
        """The manifest; None if there is none. A *reference* by digest is checked. Raises RegistryError."""
        answer = self._send("GET", f"/v2/{repository}/manifests/{reference}", headers={"Accept": _ACCEPT})
        return self._body(answer, reference, f"manifest {repository}@{reference}")

    def blob(self, repository: str, digest: str) -> bytes | None:
        """The blob, whole and checked; None if there is none. Raises RegistryError."""
        answer = self._send("GET", f"/v2/{repository}/blobs/{digest}")
        return self._body(answer, digest, f"blob {repository}@{digest}")

    def push_blob(self, repository: str, digest: str, content: bytes) -> None:
        """Push a blob in one piece (POST, then PUT), unless it is there. Raises RegistryError."""
        if self._send("HEAD", f"/v2/{repository}/blobs/{digest}").status_code == httpx.codes.OK:
            return
        begun = self._expect(
            self._send("POST", f"/v2/{repository}/blobs/uploads/"), 202, f"begin upload to {repository}"
        )
        if "Location" not in begun.headers:
            raise RegistryError(f"begin upload to {repository} at {self._name}: the answer has no Location")
        location = httpx.URL(self._base).join(begun.headers["Location"])
        # The answer may name the registry by its own address; the way there is ours.
        target = location.copy_with(scheme="https", host=httpx.URL(self._base).host, port=httpx.URL(self._base).port)
        target = target.copy_merge_params({"digest": digest})
        headers = {"Content-Type": "application/octet-stream"}
        self._expect(self._send("PUT", target, content=content, headers=headers), 201, f"push {repository}@{digest}")

    def push_manifest(self, repository: str, reference: str, content: bytes, media_type: str) -> None:
        """Push a manifest by tag or digest. Raises RegistryError."""
        path = f"/v2/{repository}/manifests/{reference}"
        answer = self._send("PUT", path, content=content, headers={"Content-Type": media_type})
        self._expect(answer, 201, f"push {repository}:{reference}")

    def _send(
        self,
        method: str,
        target: str | httpx.URL,
        *,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        where = target if isinstance(target, httpx.URL) else f"{self._base}{target}"
        try:
            return self._client.request(
                method,
                where,
                content=content,
                headers={**self._headers, **(headers or {})},
                extensions={"sni_hostname": self._name},
            )
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise RegistryError(
                f"{method} {where} at {self._name} failed: {reason}", code="RegistryUnreachable", temporary=True
            ) from error

    def _expect(self, answer: httpx.Response, status: int, what: str) -> httpx.Response:
        if answer.status_code != status:
            raise RegistryError(
                f"{what} at {self._name}: status {answer.status_code} instead of {status}: {answer.text[:300].strip()}",
                temporary=answer.status_code in _TEMPORARY,
            )
        return answer

    def _body(self, answer: httpx.Response, reference: str, what: str) -> bytes | None:
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        self._expect(answer, 200, what)
        algorithm, _, wanted = reference.partition(":")
        if algorithm == "sha256" and hashlib.sha256(answer.content).hexdigest() != wanted:
            raise RegistryError(f"{what} at {self._name}: the bytes have another digest", code="DigestMismatch")
        return answer.content
