"""One question, one answer, one deadline: against real sockets on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kubeadm_registry.agent.exchange import Exchange, Kind, Outcome, http_answer, http_complete, http_request

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def ask(address: str | tuple[str, int], *, deadline: float = 20.0, http: bool = True) -> Outcome:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Outcome] = loop.create_future()
    Exchange(
        loop,
        address,
        http_request("h", "/v2/"),
        deadline=deadline,
        done=future.set_result,
        complete=http_complete if http else None,
    )
    return await asyncio.wait_for(future, 30)


def against(serve: Serve, *, deadline: float = 20.0) -> Outcome:
    async def run() -> Outcome:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            return await ask(server.sockets[0].getsockname(), deadline=deadline)

    return asyncio.run(run())


def answering(*pieces: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()

    return serve


def test_an_answer_with_a_length_is_whole_before_its_connection_ends() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
        await asyncio.sleep(0.01)
        writer.write(b"lo")
        await reader.read()  # until the other side goes

    outcome = against(serve)
    assert outcome.kind is Kind.ANSWERED
    assert http_answer(outcome.data) == (200, b"hello")
    assert outcome.ended > outcome.started


def test_an_answer_without_a_length_is_whole_when_its_connection_ends() -> None:
    outcome = against(answering(b"HTTP/1.1 404 Not Found\r\n\r\n", b"a", b"b"))
    assert outcome.kind is Kind.ANSWERED
    assert http_answer(outcome.data) == (404, b"ab")


def test_chunks_are_joined() -> None:
    outcome = against(
        answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n", b"2;x\r\nde\r\n0\r\n\r\n")
    )
    assert http_answer(outcome.data) == (200, b"abcde")


def test_an_answer_that_is_cut_short_is_broken() -> None:
    assert against(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")).kind is Kind.BROKEN
    assert against(answering()).kind is Kind.BROKEN


def test_silence_is_a_timeout() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    outcome = against(serve, deadline=0.05)
    assert outcome.kind is Kind.TIMEOUT
    assert outcome.ended - outcome.started >= 0.05


def test_a_port_that_nobody_listens_on_refuses_and_the_asker_hears_of_it_later() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()

    async def run() -> list[str]:
        order = []
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()

        def done(outcome: Outcome) -> None:
            order.append("done")
            future.set_result(outcome)

        Exchange(loop, address, b"x", deadline=1, done=done)
        order.append("made")
        assert (await future).kind is Kind.REFUSED
        return order

    assert asyncio.run(run()) == ["made", "done"]


def test_a_unix_socket_says_whose_it_is(tmp_path: Path) -> None:
    path = str(tmp_path / "s")

    async def run() -> tuple[Outcome, Outcome]:
        missing = await ask(path, http=False)
        async with await asyncio.start_unix_server(answering(b"hello"), path):
            return missing, await ask(path, http=False)

    missing, outcome = asyncio.run(run())
    assert missing.kind is Kind.REFUSED
    assert outcome.data == b"hello"
    import os

    assert outcome.pid == os.getpid()


def test_a_cancelled_exchange_says_nothing() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def run() -> list[Outcome]:
        said: list[Outcome] = []
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            where = server.sockets[0].getsockname()
            exchange = Exchange(asyncio.get_running_loop(), where, b"x", deadline=0.02, done=said.append)
            exchange.cancel()
            await asyncio.sleep(0.05)
        return said

    assert asyncio.run(run()) == []


def test_a_question_larger_than_the_buffers_arrives_whole() -> None:
    received = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while len(received) < 8 << 20:
            received.extend(await reader.read(65536))
        writer.write(b"ok")
        writer.close()

    async def run() -> Outcome:
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            future: asyncio.Future[Outcome] = loop.create_future()
            where = server.sockets[0].getsockname()
            Exchange(loop, where, bytes(8 << 20), deadline=10, done=future.set_result)
            return await future

    assert asyncio.run(run()).data == b"ok"


@pytest.mark.parametrize("noise", [b"", b"HTTP/1.1", b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n\r\n"])
def test_what_is_no_answer_has_no_status(noise: bytes) -> None:
    assert http_answer(noise)[0] == 0
