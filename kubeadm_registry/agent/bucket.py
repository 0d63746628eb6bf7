"""Lists what a bucket of this node's storage holds, and deletes objects of it.

Run on the node with this source alone; the request stands on standard input, so that no secret is in an argv:

    python3 -I -c SOURCE < {"host", "port", "region", "key", "secret", "bucket", "keys", "newer", "always"}
    python3 -I -c SOURCE < {"host", "port", "region", "key", "secret", "bucket", "delete", "seconds", "fsync"}
    python3 -I -c SOURCE < {"latency"}

The first prints a line ``AGE SIZE KEY`` for each object whose key matches the pattern *keys* and that is *newer* than
so many seconds (null: of any age), or whose key matches *always* (null: none does). AGE is in seconds, by the clock of
the storage; SIZE in bytes. The second prints each key of *delete* that is there no more, and begins no deletion after
so many *seconds*, nor while an etcd on this node needs longer than *fsync* seconds to bring what it writes to the disk,
which the storage deletes from as well. The third prints how long that takes in the coming *latency* seconds, if there
is an etcd. The last line is ``end``.

Source of etcd's metrics: "Metrics" of its operations guide, and the address that kubeadm has for them.

Source of the signatures: "Authenticating Requests (AWS Signature Version 4)" of the S3 API, with an unsigned payload.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import math
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

DEADLINE = 60.0  # seconds, for each answer
AT_ONCE = 8  # deletions; each waits for a majority of the storage's nodes
UNSIGNED = "UNSIGNED-PAYLOAD"
ETCD = ("127.0.0.1", 2381)
BUCKET = re.compile(r'^etcd_disk_wal_fsync_duration_seconds_bucket\{le="([^"]+)"\} ([0-9.e+]+)$', re.MULTILINE)
SHARE = 0.99  # of its fsyncs, which are to be quick
LOOK = 1.0  # seconds over which they are looked at
ANSWER = 1.0  # seconds in which it tells of them; one that takes longer is slow


def signed(request: Mapping[str, Any], path: str, query: str, now: datetime, method: str = "GET") -> dict[str, str]:
    """The headers of a request for *path* with *query*, both encoded, at the time *now*."""
    moment = now.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{moment[:8]}/{request['region']}/s3/aws4_request"
    headers = {"host": f"{request['host']}:{request['port']}", "x-amz-content-sha256": UNSIGNED, "x-amz-date": moment}
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    canonical = "\n".join((method, path, query, lines, names, UNSIGNED))
    text = "\n".join(("AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    signature = f"AWS4{request['secret']}".encode()
    for part in (*scope.split("/"), text):
        signature = hmac.new(signature, part.encode(), "sha256").digest()
    credential = f"Credential={request['key']}/{scope}, SignedHeaders={names}, Signature={signature.hex()}"
    return {**headers, "Authorization": f"AWS4-HMAC-SHA256 {credential}"}


def pages(request: Mapping[str, Any]) -> Iterator[tuple[datetime, ElementTree.Element]]:
    """Each page of the list, with the storage's time. Raises OSError, http.client.HTTPException."""
    wire = http.client.HTTPConnection(request["host"], request["port"], timeout=DEADLINE)
    path, token = quote(f"/{request['bucket']}"), ""
    while True:
        words = {"list-type": "2", **({"continuation-token": token} if token else {})}
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in sorted(words.items()))
        wire.request("GET", f"{path}?{query}", headers=signed(request, path, query, datetime.now(timezone.utc)))
        answer = wire.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise http.client.HTTPException(f"status {answer.status}: {content[:300].decode(errors='replace')}")
        # It comes from the storage of this very node, which no client reaches.
        page = ElementTree.fromstring(content)  # noqa: S314
        yield datetime.now(timezone.utc), page
        token = page.findtext("{*}NextContinuationToken") or ""
        if not token:
            return


def lines(request: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the answer."""
    wanted, newer = re.compile(request["keys"]), request["newer"]
    always = re.compile(request.get("always") or "(?!)")
    for now, page in pages(request):
        for one in page.iterfind("{*}Contents"):
            key = one.findtext("{*}Key") or ""
            if wanted.search(key) is None:
                continue
            made = (one.findtext("{*}LastModified") or "").replace("Z", "+00:00")
            age = (now - datetime.fromisoformat(made)).total_seconds()
            if newer is None or age < newer or always.search(key) is not None:
                yield f"{age:.0f} {one.findtext('{*}Size')} {key}"
    yield "end"


def fsyncs() -> dict[float, float] | None:
    """How many fsyncs of etcd's took at most so many seconds, since it started; empty without an etcd, None if it does
    not tell."""
    wire = http.client.HTTPConnection(*ETCD, timeout=ANSWER)
    try:
        wire.request("GET", "/metrics")
        text = wire.getresponse().read().decode(errors="replace")
        return {float(limit): float(count) for limit, count in BUCKET.findall(text)}
    except socket.timeout:  # no TimeoutError before Python 3.10
        return None
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        wire.close()


def latency(before: Mapping[float, float] | None, after: Mapping[float, float] | None) -> float:
    """Within how many seconds SHARE of the fsyncs between the two looks ended; 0 if there was none."""
    if before is None or after is None:
        return 0.0 if after is not None else math.inf
    counts = {limit: count - before.get(limit, 0.0) for limit, count in after.items()}
    whole = max(counts.values(), default=0.0)
    return min((limit for limit, count in counts.items() if count >= SHARE * whole), default=0.0) if whole > 0 else 0.0


class Spare:
    """Lets deletions begin as long as etcd's fsyncs are quick enough: as long as no look has found them slower."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._turn = threading.Lock()
        self._before = fsyncs() if limit else {}
        self._looked = time.monotonic()

    def wait(self, until: float) -> None:
        """Return when a deletion may begin, or when it is *until*."""
        if self._before == {}:
            return
        with self._turn:  # all wait while one looks
            while time.monotonic() - self._looked >= LOOK:
                now, self._looked = fsyncs(), time.monotonic()
                slow, self._before = latency(self._before, now), now or self._before
                if slow <= self._limit or time.clock_gettime(time.CLOCK_BOOTTIME) > until:
                    return
                time.sleep(LOOK)


def measured(request: Mapping[str, Any]) -> Iterator[str]:
    """How slow etcd's fsyncs are, a line if there is an etcd."""
    before = fsyncs()
    if before != {}:
        time.sleep(request["latency"])
        yield f"{latency(before, fsyncs()):.6f}"
    yield "end"


def deleted(request: Mapping[str, Any]) -> Iterator[str]:
    """Each key that is there no more, in their order; what was not tried in time is left out."""
    # While the host is suspended its time goes on, as it does for those who wait for the end of this.
    until = time.clock_gettime(time.CLOCK_BOOTTIME) + request["seconds"]
    wires, spare = threading.local(), Spare(request.get("fsync") or 0.0)

    def delete(key: str) -> str:
        spare.wait(until)
        if not hasattr(wires, "one"):
            wires.one = http.client.HTTPConnection(request["host"], request["port"], timeout=DEADLINE)
        path = quote(f"/{request['bucket']}/{key}")
        headers = signed(request, path, "", datetime.now(timezone.utc), "DELETE")
        if time.clock_gettime(time.CLOCK_BOOTTIME) > until:
            return ""
        wires.one.request("DELETE", path, headers=headers)
        answer = wires.one.getresponse()
        content = answer.read()
        if answer.status not in (204, 404):
            raise http.client.HTTPException(f"status {answer.status}: {content[:300].decode(errors='replace')}")
        return key

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from filter(None, pool.map(delete, request["delete"]))  # after an error no more begin
    yield "end"


def main() -> int:
    """See above."""
    request = json.load(sys.stdin)
    work, what = (deleted, "delete from") if "delete" in request else (lines, "list")
    work = measured if "latency" in request else work
    try:
        for line in work(request):
            print(line)
    except (OSError, http.client.HTTPException, ElementTree.ParseError, ValueError) as error:
        print(f"cannot {what} the bucket: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
