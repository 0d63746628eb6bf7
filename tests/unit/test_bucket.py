"""Deletions leave etcd's fsyncs alone: none begins while these are slow on the same node."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from typing import Any

import pytest

from kubeadm_registry.agent import bucket

LIMITS = ("0.001", "0.004", "0.016", "0.064", "0.256", "+Inf")


class Server(ThreadingHTTPServer):
    """An etcd as far as it tells of its fsyncs, and a storage: *counts* by LIMITS, *slow* ones more with each look."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.counts = [100.0, 0, 0, 0, 0, 0]
        self.slow = 0
        self.looks = 0
        self.tells = threading.Event()
        self.tells.set()
        self.deleted: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.looks += 1
        self.server.tells.wait(30)
        self.server.counts[0] += 10
        self.server.counts[4] += self.server.slow
        name = "etcd_disk_wal_fsync_duration_seconds"
        sums = zip(LIMITS, accumulate(self.server.counts), strict=True)
        lines = [f'{name}_bucket{{le="{limit}"}} {count:g}' for limit, count in sums]
        self._say(200, "\n".join(["# TYPE x histogram", *lines, f"{name}_sum 1.5", ""]))

    def do_DELETE(self) -> None:
        self.server.deleted.append(self.path)
        self._say(204)

    def _say(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def etcd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(bucket, "ETCD", server.server_address)
        monkeypatch.setattr(bucket, "LOOK", 0.05)
        yield server
        server.shutdown()


def request(server: Server, seconds: float, keys: int = 40) -> dict[str, Any]:
    """A request to delete so many keys."""
    address, port = server.server_address[:2]
    login = {"region": "r", "key": "k", "secret": "s", "bucket": "b"}
    wanted = [f"key-{number}" for number in range(keys)]
    return {"host": address, "port": port, **login, "delete": wanted, "seconds": seconds, "fsync": 0.025}


def test_the_latency_is_that_of_99_in_100_between_two_looks() -> None:
    before = {0.001: 100.0, 0.016: 100.0, 0.256: 100.0}
    assert bucket.latency(before, before) == 0
    assert bucket.latency(before, {0.001: 198.0, 0.016: 199.0, 0.256: 200.0}) == 0.016
    assert bucket.latency(before, {0.001: 190.0, 0.016: 191.0, 0.256: 200.0}) == 0.256
    assert bucket.latency({}, {}) == 0


def test_while_etcd_is_quick_all_is_deleted(etcd: Server) -> None:
    assert len(list(bucket.deleted(request(etcd, 30)))) == 41
    assert len(etcd.deleted) == 40
    assert etcd.looks > 0


def test_no_deletion_begins_while_etcd_is_slow_and_what_is_not_reached_is_not_told(etcd: Server) -> None:
    etcd.slow = 10
    spare = bucket.Spare(0.025)
    time.sleep(0.06)
    until = time.clock_gettime(time.CLOCK_BOOTTIME) + 0.4
    spare.wait(until)
    assert time.clock_gettime(time.CLOCK_BOOTTIME) >= until, "it waits to the end of the time"
    etcd.slow = 0
    until = time.clock_gettime(time.CLOCK_BOOTTIME) + 300
    spare.wait(until)
    assert time.clock_gettime(time.CLOCK_BOOTTIME) < until, "and goes on when etcd does"
    etcd.slow = 10
    found = list(bucket.deleted(request(etcd, 0.4, keys=3000)))
    assert found[-1] == "end"
    assert len(found) - 1 == len(etcd.deleted) < 3000


def test_an_etcd_that_does_not_tell_in_time_is_slow(etcd: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "ANSWER", 0.1)
    etcd.tells.clear()
    spare = bucket.Spare(0.025)
    time.sleep(0.06)
    until = time.clock_gettime(time.CLOCK_BOOTTIME) + 0.4
    spare.wait(until)
    assert time.clock_gettime(time.CLOCK_BOOTTIME) >= until
    assert list(bucket.measured({"latency": 0.1})) == ["inf", "end"]
    etcd.tells.set()


def test_without_an_etcd_nothing_is_waited_for(etcd: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "ETCD", ("127.0.0.1", 1))
    assert len(list(bucket.deleted(request(etcd, 30)))) == 41
    assert list(bucket.measured({"latency": 0.1})) == ["end"]


def test_the_latency_is_told(etcd: Server) -> None:
    etcd.slow = 5
    assert list(bucket.measured({"latency": 0.1})) == ["0.256000", "end"]
