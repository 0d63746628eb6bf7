"""The connection to a registry: what ends it, and that no answer is taken for another one."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kubeadm_registry import pki
from kubeadm_registry.errors import RegistryError
from kubeadm_registry.registry import Registry, answers
from tests.unit.fake_cluster import authority

Turn = Callable[[ssl.SSLSocket], None]
"""What the server does with a connection."""


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    pair = pki.issue(authority(), "cp-1", ("10.0.0.10",))
    file = tmp_path_factory.mktemp("tls") / "pair.pem"
    Path(file).write_text(pair.certificate + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@contextmanager
def served(context: ssl.SSLContext, *turns: Turn) -> Iterator[Registry]:
    """A client of a server that does one of *turns* with each connection, in their order, and then ends it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve() -> None:
            for turn in turns:
                line, _ = listener.accept()
                with context.wrap_socket(line, server_side=True) as secured:
                    turn(secured)

        thread = threading.Thread(target=serve)
        thread.start()
        ca, via = authority().certificate, listener.getsockname()
        try:
            with Registry("10.0.0.10", 5000, ca=ca, via=via, timeout=10) as client:
                yield client
        finally:
            thread.join(10)
            assert not thread.is_alive()


def heard(line: ssl.SSLSocket) -> bytes:
    """The header of a request."""
    content = b""
    while b"\r\n\r\n" not in content:
        content += line.recv(1000)
    return content


def saying(answer: str, *, times: int = 1) -> Turn:
    def turn(line: ssl.SSLSocket) -> None:
        for _ in range(times):
            heard(line)
            line.sendall(answer.replace("\n", "\r\n").encode())

    return turn


OK = "HTTP/1.1 200 OK\nContent-Length: 2\n\n{}"


def test_one_connection_for_many_requests(context: ssl.SSLContext) -> None:
    with served(context, saying(OK, times=3)) as client:
        for _ in range(3):
            client.ping()


def test_one_that_has_ended_while_idle_is_opened_again(context: ssl.SSLContext) -> None:
    with served(context, saying(OK), saying(OK)) as client:
        client.ping()
        client.ping()


def test_an_answer_that_is_cut_short_is_none(context: ssl.SSLContext) -> None:
    with served(context, saying("HTTP/1.1 200 OK\nContent-Length: 9\n\n{}"), saying(OK)) as client:
        with pytest.raises(RegistryError, match="7 bytes are missing") as caught:
            client.ping()
        assert caught.value.temporary
        client.ping()


@pytest.mark.parametrize("kind", ["Content-Length: 300000\n\n", "Transfer-Encoding: chunked\n\n"])
def test_an_answer_that_drips_is_given_up(context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(answers, "WINDOW", 0.2)
    gone = threading.Event()

    def drip(line: ssl.SSLSocket) -> None:
        saying(f"HTTP/1.1 200 OK\n{kind}")(line)
        with contextlib.suppress(OSError):
            for _ in range(200):
                line.sendall(b"1\r\n \r\n" if "chunked" in kind else b" ")
                time.sleep(0.02)  # what the test is about: it ends when the other side goes away
            gone.set()

    with served(context, drip, saying(OK)) as client:
        with pytest.raises(RegistryError, match=r"only [0-9]+ bytes received in") as caught:
            client.ping()
        assert caught.value.temporary
        assert not gone.is_set(), "it was heard to its end"
        client.ping()


def test_a_long_answer_leaves_the_connection_open(context: ssl.SSLContext) -> None:
    with served(context, saying("HTTP/1.1 200 OK\nContent-Length: 600000\n\n" + "x" * 600_000, times=3)) as client:
        for _ in range(3):
            assert b"".join(client.stream("a", "sha256:0")) == b"x" * 600_000


def test_no_answer_at_all(context: ssl.SSLContext) -> None:
    with served(context, heard) as client, pytest.raises(RegistryError, match="without response"):  # type: ignore[arg-type]
        client.ping()


def test_what_is_no_http(context: ssl.SSLContext) -> None:
    with served(context, saying("SSH-2.0-OpenSSH\n\n")) as client, pytest.raises(RegistryError, match="SSH"):
        client.ping()


def test_an_answer_that_comes_before_all_is_read(context: ssl.SSLContext) -> None:
    def refuse(line: ssl.SSLSocket) -> None:
        heard(line)
        line.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        line.unwrap()  # the client's next write finds it ended

    def endless() -> Iterator[bytes]:
        yield b"x"
        said.wait(10)
        for _ in range(2000):
            yield bytes(2**16)

    said = threading.Event()

    def turn(line: ssl.SSLSocket) -> None:
        try:
            refuse(line)
        except OSError:
            pass
        finally:
            said.set()

    with served(context, turn) as client:
        answer = client.send(
            "PATCH", "/v2/a/blobs/uploads/1", content=endless(), headers={"Content-Length": str(2**30)}
        )
    assert answer.status_code == 413


def test_what_is_left_of_an_answer_is_not_taken_for_the_next_one(context: ssl.SSLContext) -> None:
    large = 2**22

    def turn(line: ssl.SSLSocket) -> None:
        heard(line)
        line.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {large}\r\n\r\n".encode())
        try:
            line.sendall(bytes(large))
        except OSError:
            return  # the client had enough

    with served(context, turn, saying(OK)) as client:
        stream = client.stream("a", "sha256:" + "0" * 64)
        assert next(stream)
        stream.close()  # type: ignore[attr-defined]
        client.ping()


def test_a_content_that_fails_ends_the_request(context: ssl.SSLContext) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x"
        raise RegistryError("the bundle is damaged")

    with served(context, heard, saying(OK)) as client:  # type: ignore[arg-type]
        with pytest.raises(RegistryError, match="the bundle is damaged"):
            client.send("PATCH", "/v2/a/blobs/uploads/1", content=broken(), headers={"Content-Length": "10"})
        client.ping()


def test_a_file_that_cannot_be_read_is_not_taken_for_a_broken_connection(context: ssl.SSLContext) -> None:
    """A stick with bad blocks, say: what is sent is read from it meanwhile."""

    def content() -> Iterator[bytes]:
        yield b"begun"
        raise OSError(errno.EIO, os.strerror(errno.EIO), "bundle.tar")

    ok = saying("HTTP/1.1 200 OK\nContent-Length: 2\n\n{}")
    with served(context, heard, ok) as client:
        with pytest.raises(OSError, match="bundle") as caught:
            client.send("PATCH", "/v2/a/blobs/uploads/1", content=content(), headers={"Content-Length": "9"})
        assert caught.value.errno == errno.EIO
        client.ping()  # by a connection of its own: the other one awaits the rest
