"""Files of upstream releases, fetched over HTTPS and compared with a digest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from kubeadm_registry.bundle import temporary
from kubeadm_registry.bundle.failures import refused, unavailable
from kubeadm_registry.bundle.make.context import BuildContext
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.printable import reason
from kubeadm_registry.registry.answers import elsewhere

#: The largest file that is fetched, in bytes.
MAX_DOWNLOAD = 1024**3
MAX_CHECKSUMS = 1024 * 1024
MAX_REDIRECTS = 5
#: Seconds without a single byte before a download is given up.
TIMEOUT = 30.0


def fetch(context: BuildContext, url: str, digest: str, *, hint: str) -> Path:
    """Return a file of the cache with the content of *url*, which has the digest *digest*; fetch it if need be.

    Raises BundleError, with *hint* as the remedy, if it cannot be fetched or has another digest.
    """
    kept = context.cache / "downloads" / digest.replace(":", "/", 1)
    if kept.is_file():
        with kept.open("rb") as held:
            if oci.digest_of_file(held) == digest:
                return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    context.progress(f"downloading {url}")
    with temporary.file(kept.parent, kept.name) as file:
        hashed = hashlib.sha256()
        for chunk in _stream(context, url, MAX_DOWNLOAD, hint):
            hashed.update(chunk)
            file.write(chunk)
        found = "sha256:" + hashed.hexdigest()
        if found != digest:
            raise refused(f"{url} has the digest {found} instead of {digest}", hint=hint)
        temporary.put(file, kept)
    return kept


def published_digest(context: BuildContext, checksums: str, url: str, *, hint: str) -> str:
    """Return the digest of the file at *url* that the list of SHA-256 sums at the address *checksums* gives.

    The list has lines ``SUM NAME`` or ``SUM *NAME``, or one line with a sum alone. Raises BundleError, with *hint*
    as the remedy, if it cannot be fetched or does not name the file exactly once.
    """
    context.progress(f"downloading {checksums}")
    content = b"".join(_stream(context, checksums, MAX_CHECKSUMS, hint)).decode(errors="replace")
    wanted = url.rpartition("/")[2]
    sums = set()
    lines = [line.split() for line in content.splitlines() if line.strip()]
    for words in lines:
        name = words[1].removeprefix("*").removeprefix("./") if len(words) > 1 else wanted if len(lines) == 1 else ""
        if name == wanted and re.fullmatch(r"[0-9a-fA-F]{64}", words[0]):
            sums.add("sha256:" + words[0].lower())
    if len(sums) != 1:
        raise refused(f"{checksums} has {len(sums)} SHA-256 sums for {wanted} instead of one", hint=hint)
    return sums.pop()


def _stream(context: BuildContext, url: str, limit: int, hint: str) -> Iterator[bytes]:
    total = 0
    with _response(context, url, hint) as response:
        for chunk in response.iter_bytes(oci.CHUNK):
            total += len(chunk)
            if total > limit:
                raise refused(f"{url} has more than {limit} bytes", hint=hint)
            yield chunk


@contextmanager
def _response(context: BuildContext, url: str, hint: str) -> Iterator[httpx.Response]:
    """Ask for *url*, follow redirects to https addresses only, and give the answer with status 200."""
    try:
        with context.client() as client:
            address = httpx.URL(url)
            for _ in range(MAX_REDIRECTS + 1):
                if address.scheme != "https":
                    raise refused(f"{url} redirects to {address}, which is not https", hint=hint)
                with client.stream("GET", address, follow_redirects=False, timeout=TIMEOUT) as response:
                    if response.next_request is not None:
                        address = response.next_request.url
                        continue
                    if response.status_code != httpx.codes.OK:
                        raise unavailable(f"{url} returned status {response.status_code}", hint=hint)
                    yield response
                    return
            raise unavailable(f"{url} redirected more than {MAX_REDIRECTS} times", hint=hint)
    except httpx.HTTPError as error:
        at = elsewhere(error, httpx.Request("GET", url)).removesuffix(",")
        raise unavailable(f"cannot download {url}{at}: {reason(error)}", hint=hint) from error
