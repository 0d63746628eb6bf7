"""The door passes a question on, and says why there is no answer."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeadm_registry.helper import door


class Streams:
    """What the door has of ``sys``."""

    def __init__(self) -> None:
        self.stdin = io.TextIOWrapper(io.BytesIO(b"question" * 50_000))
        self.stdout = io.TextIOWrapper(io.BytesIO())
        self.stderr = io.StringIO()

    @property
    def answer(self) -> bytes:
        assert isinstance(self.stdout.buffer, io.BytesIO)
        return self.stdout.buffer.getvalue()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    made = Streams()
    monkeypatch.setattr(door, "sys", made)
    return made


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = str(tmp_path / "helper.sock")
    monkeypatch.setattr(door, "HELPER_SOCKET", path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        yield server


def test_an_answer_is_passed_back(listener: socket.socket, streams: Streams) -> None:
    def answer() -> None:
        wire, _ = listener.accept()
        with wire, wire.makefile("rwb") as stream:
            assert stream.read() == b"question" * 50_000
            stream.write(b"answer")

    thread = threading.Thread(target=answer)
    thread.start()
    assert door.main() == 0
    thread.join()
    assert streams.answer == b"answer"


@pytest.mark.parametrize("reads", [0, 1_000_000], ids=["at once", "after the question"])
def test_one_connection_too_many_is_told(listener: socket.socket, streams: Streams, reads: int) -> None:
    """systemd accepts it, and closes it."""

    def close() -> None:
        wire, _ = listener.accept()
        with wire, wire.makefile("rb") as stream:
            stream.read(reads)

    thread = threading.Thread(target=close)
    thread.start()
    assert door.main() == 1
    thread.join()
    assert "as many questions as its socket unit allows" in streams.stderr.getvalue()


def test_without_a_helper_there_is_none(listener: socket.socket, streams: Streams) -> None:
    listener.close()
    assert door.main() == 1
    assert "Connection refused" in streams.stderr.getvalue()
