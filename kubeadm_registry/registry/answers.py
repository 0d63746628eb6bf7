"""Answers of registries, read with bounds: on how much they hold, and on how slowly it may come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import httpx

from kubeadm_registry.errors import RegistryError

#: The most bytes of a manifest or a list: the specification lets registries refuse larger manifests.
#: Source: distribution-spec, "Pushing Manifests".
MAX_DOCUMENT: Final = 4 * 2**20
#: The most bytes that are read of an answer that is an error.
_MAX_ERROR: Final = 2**16
#: Seconds in which a body that goes on must bring LEAST bytes: 1 kB/s, which a modem brings.
WINDOW: Final = 30.0
LEAST: Final = 30_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What a registry answered to a request of that *method*, read whole."""

    method: str
    status_code: int
    headers: httpx.Headers
    content: bytes

    @property
    def text(self) -> str:
        """The content as text, whatever it is."""
        return self.content.decode(errors="replace")


def whole(answer: httpx.Response, most: int, what: str) -> Answer:
    """*answer*, read to its end; of an error no more than people want to see.

    Raises RegistryError that says *what* has more than *most* bytes, or is too slow.
    """
    if answer.status_code >= httpx.codes.BAD_REQUEST:
        return beginning(answer, what)
    content = _first(answer, most + 1, what)
    if len(content) > most:
        raise RegistryError(f"{what}: the response is larger than {most} bytes", code="AnswerTooLarge")
    return Answer(answer.request.method, answer.status_code, answer.headers, content)


def beginning(answer: httpx.Response, what: str) -> Answer:
    """*answer* with no more of its content than an error message shows. Raises RegistryError if it is too slow."""
    content = _first(answer, _MAX_ERROR, what)
    return Answer(answer.request.method, answer.status_code, answer.headers, content)


def _first(answer: httpx.Response, size: int, what: str) -> bytes:
    found, came = [], 0
    for chunk in paced(answer.iter_bytes(), what):
        found.append(chunk)
        came += len(chunk)
        if came >= size:
            break
    return b"".join(found)[:size]


def elsewhere(error: Exception, request: httpx.Request) -> str:
    """Where *request* was redirected to when *error* came, in words; empty if it was at its own host.

    The host alone: the rest of the address lets in whoever has it.
    """
    asked, sent = (one.url.netloc.decode() for one in (request, getattr(error, "request", request)))
    return f", redirected to {sent}," if sent != asked else ""


def paced(chunks: Iterator[bytes], what: str, clock: Callable[[], float] = time.monotonic) -> Iterator[bytes]:
    """*chunks* as they come. Raises RegistryError, temporary, if WINDOW seconds of waiting bring less than LEAST bytes.

    That a single byte comes now and then is no progress, though no read ever times out.
    """
    waited, came = 0.0, 0
    while True:
        before = clock()
        chunk = next(chunks, None)
        if chunk is None:
            return
        waited += clock() - before
        came += len(chunk)
        if waited >= WINDOW:
            if came < LEAST:
                raise RegistryError(f"{what}: only {came} bytes received in {waited:.0f} seconds", temporary=True)
            waited, came = 0.0, 0
        yield chunk


def cut(chunks: Iterator[bytes], skip: int, size: int | None = None) -> Iterator[bytes]:
    """*chunks* without the first *skip* bytes; *size* bytes of them, or all."""
    for chunk in chunks:
        part = chunk[skip:] if size is None else chunk[skip : skip + size]
        skip = max(0, skip - len(chunk))
        if part:
            yield part
        if size is not None:
            size -= len(part)
            if not size:
                return
