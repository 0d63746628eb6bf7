"""One blob on its way into a registry, in pieces: what a broken connection or another writer cuts off goes on.

The parts of the specification: "Pushing blobs", "Pushing a blob in chunks", "Mounting a blob from another repository",
https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pushing-blobs
"""

from __future__ import annotations

import contextlib
import io
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final

import httpx

from kubeadm_registry.errors import BundleError, RegistryError
from kubeadm_registry.registry.answers import Answer
from kubeadm_registry.registry.client import Api
from kubeadm_registry.registry.limit import Limit
from kubeadm_registry.registry.retries import retry

#: Bytes a request. Distribution forgets what a request brought that was cut off, so no more than this is sent twice.
PIECE: Final = 8 * 2**20
#: Bytes of a blob that goes with the request that ends its upload: a round trip less. What such a request brings is
#: forgotten when it is cut off, by every registry.
SMALL: Final = 2**20
#: Bytes a second at which a registry reads what has arrived, and copies it, before it answers the request that ends an
#: upload: a large blob takes minutes.
_COPIED: Final = 16 * 2**20
#: Bytes a second at which a piece gets through at least, beside the others. What was sent waits in buffers of the way.
_SLOWEST: Final = 32 * 2**10
#: Statuses of an upload that the registry knows no more: it expired, or another writer began it.
_LOST: Final = (404, 410)
#: Statuses of a proxy that reaches no registry.
_AWAY: Final = (502, 503, 504)
#: Statuses that say nothing of the upload, only that the request is to be made again.
_BUSY: Final = (408, 429)
#: Seconds after which an upload that nobody can tell of begins anew.
_FORGET: Final = 2.0
#: A range that does not follow on what the registry has; ghcr.io also means that it is longer than 4 MiB.
_ELSEWHERE: Final = 416
#: Statuses of a registry that may take no pieces at all, as Google's Artifact Registry by its documentation.
_NO_PIECES: Final = (400, 405, 501)
#: Statuses of a piece that was taken, beside that of the specification: 201 of ECR (aws/containers-roadmap#2831), 204
#: of earlier releases of Pulp (pulp/pulp_container#2199).
_TAKEN: Final = (201, 204)

Source = Callable[[int], BinaryIO]
"""Opens the blob's content, to be read from that byte on."""


class Upload:
    """Brings the blob *digest* of *size* bytes into *repository*. Not shared between threads.

    *patience* is how many seconds may pass without a byte taken until it is given up; *piece* how many bytes a request
    carries at most; *progress* is told how many bytes the registry has of it, a number that falls when it forgets some.
    """

    def __init__(
        self, registry: Api, repository: str, digest: str, size: int, *, location: str = "",
        piece: int = PIECE, patience: float = 60, limit: Limit | None = None,
        progress: Callable[[int], None] = lambda _bytes: None,
    ) -> None:  # fmt: skip
        self._registry = registry
        self._repository = repository
        self._digest = digest
        self._size = size
        self._piece = piece
        self._whole = min(SMALL, piece)
        self._patience = patience
        self._limit = limit or Limit()
        self.progress = progress
        self._taken = 0
        self._silent: float | None = None
        self.sent = 0
        """Bytes that were sent, also those that the registry forgot."""
        self.location = location
        """Where the upload goes on, also in a later run; empty before it has begun."""

    @property
    def in_pieces(self) -> bool:
        """Whether it goes in several requests, so that a later run can go on where this one stopped."""
        return self._size > self._whole

    def run(self, source: Source, *, mount_from: str = "") -> None:
        """Push it, from where an earlier run stopped if there is a location; *mount_from* a repository that has it.

        Raises RegistryError when the registry refuses it, or takes nothing for ``patience`` seconds; and what *source*
        raises. The location is forgotten then, unless the upload can be resumed there.
        """
        if self.location:
            try:
                self._run(source, mount_from)
            except RegistryError as error:
                # The bytes that an earlier run sent may be the wrong ones: its copy of the bundle was damaged, say.
                if error.temporary:
                    raise
            else:
                return
        self._run(source, mount_from)

    def _run(self, source: Source, mount_from: str) -> None:
        before = self._taken

        def go_on() -> None:
            self._recover()
            while not self._step(source, mount_from):
                pass

        try:
            retry(go_on, self._patience, reached=lambda: self._taken)
        except (BundleError, RegistryError) as error:  # what *progress* raises only ends this run
            if not (isinstance(error, RegistryError) and error.temporary):
                self._cancel()
            elif self._taken <= before:  # a later run would fail there as well
                self._forget()
            raise

    def _step(self, source: Source, mount_from: str) -> bool:
        """Begin, send a piece, or finish; whether that was the last."""
        if not self.location:
            return self._begin(mount_from)
        if self.in_pieces and self._taken < self._size:
            self._append(source)
            return False
        self._finish(source)
        return True

    def _begin(self, mount_from: str) -> bool:
        self.location = self._registry.begin_upload(self._repository, mount=self._digest, source=mount_from)
        mounted = not self.location
        self._tell(self._size if mounted else 0)
        return mounted

    def _append(self, source: Source) -> None:
        end = min(self._size, self._taken + self._piece)
        answer = self._send("PATCH", source, end)
        what = f"push {self._repository}@{self._digest}"
        status = answer.status_code
        if status in _NO_PIECES or (status == _ELSEWHERE and not self._taken):
            self._whole = self._size
            self._cancel()
            return
        if status in (*_LOST, _ELSEWHERE):
            raise RegistryError(f"{what}: the registry does not resume the upload ({status})", temporary=True)
        if status not in _TAKEN:
            self._registry.expect(answer, 202, what)
        self._follow(answer)
        told = _end_of(answer, default=end)
        # ECR goes on telling of the first piece, though it takes each one (aws/containers-roadmap#2831). A registry
        # that has not taken this one answers the next with 416.
        self._tell(told if told > self._taken else end)

    def _finish(self, source: Source) -> None:
        answer = self._send("PUT", source, self._size, digest=self._digest)
        lost = answer.status_code in (*_LOST, 500, *_AWAY)
        if not lost or not self._registry.has_blob(self._repository, self._digest):  # an earlier answer may be lost
            self._registry.expect(answer, 201, f"push {self._repository}@{self._digest}")
        if self._taken < self._size:
            self._tell(self._size)

    def _send(self, method: str, source: Source, end: int, **params: str) -> Answer:
        """A request with what the registry lacks up to the byte *end*, if anything."""
        size = end - self._taken
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        if not size:
            return self._ask(method, params=params, content=b"", headers=headers, silence=self._size / _COPIED)
        if method == "PATCH" or self._taken:  # with it a blob that comes whole is a piece, to ghcr.io too large a one
            headers["Content-Range"] = f"{self._taken}-{end - 1}"
        self.sent += size
        with source(self._taken) as content:
            body = _limited(content, size, self._limit, self._digest)
            return self._ask(method, params=params, content=body, headers=headers, silence=size / _SLOWEST)

    def _ask(self, method: str, **more: Any) -> Answer:
        return self._registry.send(method, self.location, repository=self._repository, **more)

    def _recover(self) -> None:
        """After a break: go on behind what the registry has, or anew if it knows the upload no more.

        Our own proxy answers 503 for an upload that another writer began, as for a registry that is not there just
        now: after a moment the one is taken for the other.
        """
        try:
            if self.location and not self._find():
                self._forget()
        except RegistryError as error:
            if not error.temporary or error.status in _BUSY:
                raise
            now = time.monotonic()
            self._silent = now if self._silent is None else self._silent
            if now - self._silent >= _FORGET:
                self._forget()
        else:
            self._silent = None

    def _cancel(self) -> None:
        """Forget the upload, and ask the registry to drop what it has of it."""
        location = self.location
        self._forget()
        if location:
            with contextlib.suppress(RegistryError):  # it expires by itself as well
                self._registry.cancel_upload(location, self._repository)

    def _forget(self) -> None:
        self.location, self._silent = "", None
        self._tell(0)

    def _find(self) -> bool:
        """Ask how much the registry has of it; whether it knows the upload."""
        answer = self._ask("GET")
        if answer.status_code != httpx.codes.NO_CONTENT:
            # Distribution says 500 of an upload that it does not find in its storage.
            if answer.status_code not in (*_AWAY, *_BUSY):
                return False
            self._registry.expect(answer, 204, f"look at the upload to {self._repository}")
        self._follow(answer)
        self._tell(_end_of(answer, default=0))
        return True

    def _follow(self, answer: Answer) -> None:
        self.location = answer.headers.get("Location", self.location)

    def _tell(self, taken: int) -> None:
        self._taken = min(taken, self._size)
        self.progress(self._taken)


def push_blob(registry: Api, repository: str, digest: str, content: bytes) -> None:
    """Push the small blob *content* unless it is there. Raises RegistryError."""
    if not registry.has_blob(repository, digest):

        def source(first: int) -> BinaryIO:
            return io.BytesIO(content[first:])

        Upload(registry, repository, digest, len(content), patience=0).run(source)


def _end_of(answer: Answer, *, default: int) -> int:
    """How many bytes the ``Range`` of an answer says that the registry has: ``0-99`` are a hundred.

    Some write ``0-0`` for nothing as well as for one byte: then *default* tells, and a wrong guess is answered by 416.
    """
    found = re.fullmatch(r"(?:bytes=)?0-([0-9]{1,18})", answer.headers.get("Range", ""))
    if found is None:
        return default
    return int(found[1]) + 1 if int(found[1]) else min(default, 1)


def _limited(content: BinaryIO, size: int, limit: Limit, what: str) -> Iterator[bytes]:
    """The next *size* bytes of *content*, as fast as *limit* allows. Raises RegistryError if there are fewer."""
    while size:
        chunk = content.read(min(limit.chunk, size))
        if not chunk:
            raise RegistryError(f"{what} is shorter than its descriptor says", code="BlobTruncated")
        limit.wait(len(chunk))
        size -= len(chunk)
        yield chunk
