"""The metrics port: nobody without a certificate of ours, and nobody can use up the agent from there."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from kubeadm_registry import pki
from kubeadm_registry.agent import certificate, served, server
from kubeadm_registry.agent.config import parse
from kubeadm_registry.agent.server import Server
from tests.unit.test_agent_config import smallest

CA = pki.make_ca("test")
PAGES = {"/state": ("application/json", b"{}\n"), "/metrics": ("text/plain", b"up 1\n")}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def client(folder: Path, unit: str | None, ca: pki.Pair = CA) -> ssl.SSLContext:
    """As a client sees it: *unit* is the organizational unit of its certificate; None: it has none."""
    (folder / "trust.pem").write_text(CA.certificate)
    tls = ssl.create_default_context(cafile=str(folder / "trust.pem"))
    if unit is not None:
        pair = pki.issue(ca, "client", ["client"], unit=unit)
        (folder / "client.pem").write_text(pair.certificate + pair.key)
        tls.load_cert_chain(folder / "client.pem")
    return tls


def node_pem(folder: Path) -> Path:
    pair = pki.issue(CA, "cp-1", ["127.0.0.1"])
    (folder / "node.pem").write_text(pair.certificate + pair.key)
    (folder / "ca.pem").write_text(CA.certificate)
    return folder / "node.pem"


@asynccontextmanager
async def serving(folder: Path, *, anonymous: bool = False) -> AsyncIterator[tuple[Server, int]]:
    pem = str(node_pem(folder))
    port = free_port()
    raw = smallest() | {"address": "127.0.0.1", "ports": {"metrics": port}, "metrics_anonymous": anonymous}
    raw["tls"] = {"cert": pem, "key": pem, "ca": str(folder / "ca.pem")}
    raw["peers"] = []
    one = Server(parse(raw), PAGES.get)
    await one.start()
    try:
        yield one, port
    finally:
        one.close()
        await asyncio.sleep(0)


async def get(port: int, tls: ssl.SSLContext, request: bytes = b"GET /state HTTP/1.1\r\n\r\n") -> bytes:
    """The answer; nothing if the server ends the connection (with TLS 1.3 only after the client's handshake)."""
    async with asyncio.timeout(10):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
            writer.write(request)
            answer = await reader.read()
        except (ssl.SSLError, ConnectionError):
            return b""
        writer.close()
        return answer


@pytest.mark.parametrize(
    ("unit", "begins"),
    [
        (None, b""),
        ("registry-node", b"HTTP/1.1 200 OK\r\n"),
        ("registry-admin", b"HTTP/1.1 403 Forbidden\r\n"),
        ("somebody", b"HTTP/1.1 403 "),
        ("registry-metrics", b"HTTP/1.1 403 "),
    ],
)
def test_a_client_needs_a_certificate_of_ours(tmp_path: Path, unit: str | None, begins: bytes) -> None:
    async def course() -> bytes:
        async with serving(tmp_path) as (_, port):
            return await get(port, client(tmp_path, unit))

    answer = asyncio.run(course())
    assert answer.startswith(begins)
    assert bool(answer) == bool(begins)
    assert answer.endswith(b"\r\n\r\n{}\n") == (b"200" in begins)


def test_a_certificate_for_metrics_reads_these_alone(tmp_path: Path) -> None:
    async def course() -> tuple[bytes, bytes]:
        async with serving(tmp_path) as (_, port):
            tls = client(tmp_path, pki.METRICS_UNIT)
            return await get(port, tls, b"GET /metrics HTTP/1.1\r\n\r\n"), await get(port, tls)

    metrics, state = asyncio.run(course())
    assert metrics.endswith(b"up 1\n")
    assert state.startswith(b"HTTP/1.1 403 ")


def test_a_certificate_of_another_authority_is_refused(tmp_path: Path) -> None:
    async def course() -> bytes:
        async with serving(tmp_path) as (_, port):
            return await get(port, client(tmp_path, "registry-node", pki.make_ca("other")))

    assert asyncio.run(course()) == b""


def test_without_a_certificate_there_are_the_metrics_only_if_that_was_asked_for(tmp_path: Path) -> None:
    async def course() -> tuple[bytes, bytes]:
        async with serving(tmp_path, anonymous=True) as (_, port):
            tls = client(tmp_path, None)
            return await get(port, tls, b"GET /metrics HTTP/1.1\r\n\r\n"), await get(port, tls)

    metrics, state = asyncio.run(course())
    assert metrics.endswith(b"up 1\n")
    assert state.startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    ("request_", "begins"),
    [
        (b"GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 "),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 "),
        (b"POST /state HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 "),
        (b"GET\r\n\r\n", b"HTTP/1.1 404 "),
        (b"x" * 20000, b""),
    ],
)
def test_other_requests_are_answered_or_end(tmp_path: Path, request_: bytes, begins: bytes) -> None:
    async def course() -> bytes:
        async with serving(tmp_path) as (_, port):
            return await get(port, client(tmp_path, "registry-node"), request_)

    answer = asyncio.run(course())
    assert answer.startswith(begins)
    assert bool(answer) == bool(begins)


async def until(test: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not test():
            await asyncio.sleep(0.01)


def test_strangers_who_only_connect_hold_a_few_descriptors_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.5)
    monkeypatch.setattr(server, "BREATH", 0.001)

    async def course() -> bytes:
        async with serving(tmp_path) as (one, port):
            strangers = [socket.socket() for _ in range(60)]
            for stranger in strangers:
                stranger.setblocking(False)  # not all are let in at once
                stranger.connect_ex(("127.0.0.1", port))
            await until(lambda: len(one._tasks) == server.MOST + 1)
            for _ in range(20):
                await asyncio.sleep(0.005)
                assert len(one._tasks) <= server.MOST + 1
            await until(lambda: len(one._tasks) < server.MOST)
            for stranger in strangers:
                stranger.close()
            monkeypatch.setattr(server, "PATIENCE", 20.0)  # also for who has a certificate
            return await get(port, client(tmp_path, "registry-node"))

    assert asyncio.run(course()).startswith(b"HTTP/1.1 200 ")


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_who_was_answered_and_does_not_go_holds_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS ends with a goodbye of both sides, and these clients say none."""
    monkeypatch.setattr(server, "PATIENCE", 0.5)

    async def course() -> None:
        async with serving(tmp_path, anonymous=True) as (_, port):
            tls, loop = client(tmp_path, None), asyncio.get_running_loop()
            before = descriptors()

            def ask() -> ssl.SSLSocket:
                wire = tls.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="127.0.0.1")
                wire.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
                assert wire.recv(12) == b"HTTP/1.1 200"
                return wire

            wires = [await loop.run_in_executor(None, ask) for _ in range(4)]
            try:
                await until(lambda: descriptors() <= before + len(wires))
            finally:
                for wire in wires:
                    wire.close()

    asyncio.run(course())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever says nothing could stay for longer than a test waits for anything."""
    monkeypatch.setattr(server, "PATIENCE", 60.0)


@pytest.mark.usefixtures("patient")
def test_strangers_who_say_nothing_do_not_keep_out_who_has_a_certificate(tmp_path: Path) -> None:
    """As many as there are places."""

    async def course() -> bytes:
        async with serving(tmp_path) as (one, port):
            strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(server.MOST)]
            await until(lambda: len(one._tasks) == server.MOST + 1)
            answer = await get(port, client(tmp_path, "registry-node"))
            for stranger in strangers:
                stranger.close()
            return answer

    assert asyncio.run(course()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("patient")
def test_who_has_shown_a_certificate_is_not_put_out_by_strangers(tmp_path: Path) -> None:
    async def course() -> bytes:
        async with serving(tmp_path) as (one, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client(tmp_path, "registry-node"))
            writer.write(b"GET /state HTTP/1.1\r\n")
            await until(lambda: len(one._tasks) == 2 and not one._strangers)
            strangers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(server.MOST + 4)]
            async with asyncio.timeout(server.PATIENCE / 2):
                for stranger in strangers[:4]:
                    with suppress(ConnectionError):
                        assert await stranger[0].read() == b""  # the oldest gave place to the newest
            writer.write(b"\r\n")
            answer = await reader.read()
            for _, stranger_writer in strangers:
                stranger_writer.close()
            writer.close()
            return answer

    assert asyncio.run(course()).startswith(b"HTTP/1.1 200 ")


def test_a_renewed_certificate_is_taken_up_for_new_connections(tmp_path: Path) -> None:
    async def serial(port: int, tls: ssl.SSLContext) -> object:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        found = writer.get_extra_info("peercert")["serialNumber"]
        writer.close()
        return found

    async def course() -> None:
        async with serving(tmp_path) as (one, port):
            tls = client(tmp_path, "registry-node")
            before = await serial(port, tls)
            assert not one.renew()
            node_pem(tmp_path)
            assert one.renew()
            assert await serial(port, tls) != before

    asyncio.run(course())


def test_a_ca_that_is_gone_from_the_file_is_trusted_no_longer(tmp_path: Path) -> None:
    async def course() -> None:
        async with serving(tmp_path) as (one, port):
            tls = client(tmp_path, "registry-node")
            assert (await get(port, tls)).startswith(b"HTTP/1.1 200 ")
            (tmp_path / "ca.pem").write_text(pki.make_ca("registry").certificate)
            assert one.renew()
            assert await get(port, tls) == b""

    asyncio.run(course())


def test_what_it_presents_is_seen_without_a_certificate_of_ours(tmp_path: Path) -> None:
    async def course() -> str | None:
        async with serving(tmp_path) as (_, port):
            return await asyncio.to_thread(served.of_agent, "127.0.0.1", port)

    shown = asyncio.run(course())
    assert shown is not None and (tmp_path / "node.pem").read_text().startswith(shown)


def test_the_end_of_a_certificate_is_read_without_a_library(tmp_path: Path) -> None:
    pem = node_pem(tmp_path)
    assert certificate.not_after(pem) == pki.expiry(pem.read_text())
    authority = tmp_path / "ca.pem"
    assert certificate.not_after(authority) == pki.expiry(CA.certificate)


@pytest.mark.parametrize("length", [0, 1, 3, 40, 100])
def test_what_is_no_certificate_is_said(tmp_path: Path, length: int) -> None:
    whole = ssl.PEM_cert_to_DER_cert(CA.certificate)
    (tmp_path / "bad.pem").write_text(ssl.DER_cert_to_PEM_cert(whole[:length]))
    with pytest.raises(ValueError, match=r"."):
        certificate.not_after(tmp_path / "bad.pem")
    (tmp_path / "bad.pem").write_text("")
    with pytest.raises(ValueError, match="not found"):
        certificate.not_after(tmp_path / "bad.pem")
