"""The client that measures: reads a manifest and a blob in turn through the VIP, each on a new connection.

Open loop: a request begins every PERIOD seconds, whether or not those before it have ended. Every body is hashed. Runs
on a host of the lab by that host's own Python, so it needs nothing but the standard library and Python 3.9:

    python3 reader.py ADDRESS PORT CA REPOSITORY MANIFEST-DIGEST BLOB-DIGEST PERIOD DEADLINE

The first line of its standard input is the login ("user:password", or empty). Says "ready" once both have been read,
ends when its standard input does, and then writes one JSON object a request: kind, begin (seconds since 1970), seconds
it took, and error (empty: status 200 and the right bytes).
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import socket
import ssl
import sys
import threading
import time

TYPES = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json"
)


class CutOff(Exception):
    """The response had begun, and the connection ended before all of its body was here."""


class Reader:
    """Reads, and notes what came of it."""

    def __init__(
        self,
        address: str,
        port: int,
        context: ssl.SSLContext,
        paths: list[tuple[str, str, str]],
        deadline: float,
        login: str,
    ) -> None:
        self._address = (address, port)
        self._context = context
        self._paths = paths
        self._deadline = deadline
        encoded = base64.b64encode(login.encode()).decode()
        self._login = [f"Authorization: Basic {encoded}"] if login else []
        self.results: list[tuple[str, float, float, str]] = []

    def once(self, number: int) -> str:
        """Read one of the objects; what went wrong, or nothing."""
        kind, path, digest = self._paths[number % len(self._paths)]
        wall, begin = time.time(), time.monotonic()
        error = ""
        try:
            got = "sha256:" + hashlib.sha256(self._get(path, begin + self._deadline)).hexdigest()
            if got != digest:
                error = "WrongBytes"
        except (OSError, http.client.HTTPException, ValueError, CutOff) as problem:
            error = f"{type(problem).__name__}: {problem}"
        self.results.append((kind, wall, time.monotonic() - begin, error))
        return error

    def _get(self, path: str, until: float) -> bytes:
        """The body at *path*, which is here whole at the time *until* (monotonic) or not at all."""

        def left() -> float:
            rest = until - time.monotonic()
            if rest <= 0:
                raise TimeoutError("deadline")
            return rest

        with socket.create_connection(self._address, timeout=left()) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._context.wrap_socket(plain, server_hostname=self._address[0]) as connection:
                host = f"[{self._address[0]}]" if ":" in self._address[0] else self._address[0]
                head = (
                    f"GET {path} HTTP/1.1",
                    f"Host: {host}:{self._address[1]}",
                    f"Accept: {TYPES}",
                    "Connection: close",
                    *self._login,
                )
                connection.settimeout(left())
                connection.sendall("".join(f"{line}\r\n" for line in (*head, "")).encode())
                response = http.client.HTTPResponse(connection)
                response.begin()
                pieces = []
                try:
                    while True:
                        connection.settimeout(left())
                        piece = response.read1(65536)
                        if not piece:
                            break
                        pieces.append(piece)
                except (ConnectionError, ssl.SSLEOFError) as problem:
                    raise CutOff(str(problem)) from None
                body = b"".join(pieces)
                if response.length:
                    raise CutOff(f"{response.length} bytes before the end")
                if response.status != 200:
                    raise ValueError(f"status {response.status} {body[:100]!r}")
                return body


def main() -> None:
    """Read until standard input ends."""
    address, port, ca, repository, manifest, blob, *numbers = sys.argv[1:]
    period, deadline = map(float, numbers)
    paths = [
        ("manifest", f"/v2/{repository}/manifests/{manifest}", manifest),
        ("blob", f"/v2/{repository}/blobs/{blob}", blob),
    ]
    context = ssl.create_default_context(cafile=ca)
    reader = Reader(address, int(port), context, paths, deadline, sys.stdin.readline().strip())
    for number in range(len(paths)):
        if error := reader.once(number):
            sys.exit(f"cannot read {paths[number][1]} at the start: {error}")
    reader.results.clear()
    ended = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=watch, daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    threads = []
    start = time.monotonic()
    number = 0
    while not ended.wait(max(0.0, start + number * period - time.monotonic())):
        thread = threading.Thread(target=reader.once, args=(number,), daemon=True)
        thread.start()
        threads.append(thread)
        number += 1
    for thread in threads:
        thread.join(deadline + 1)
    for kind, begin, seconds, error in reader.results:
        sys.stdout.write(
            json.dumps({"kind": kind, "begin": begin, "seconds": round(seconds, 4), "error": error}) + "\n"
        )


if __name__ == "__main__":
    main()
