"""The frontend of the one writer: its file is written in place, its process is ended, its writes are tried."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.agent import gate as module
from kubeadm_registry.agent.config import Config, Frontend, parse
from kubeadm_registry.agent.gate import Executor, Gate, Writer, acting, put
from kubeadm_registry.agent.processes import Processes
from tests.unit.test_agent_config import smallest


def test_a_file_is_written_in_place_and_keeps_its_length(tmp_path: Path) -> None:
    file = tmp_path / "runtime"
    file.write_bytes(b'{"a": "long and longer"}\n')
    inode = file.stat().st_ino
    assert put(file, b'{"b": 1}\n')
    assert file.read_bytes() == b'{"b": 1}' + b" " * 16 + b"\n"
    assert file.stat().st_ino == inode
    assert not put(file, b'{"b": 1}\n'), "it holds it already"
    assert put(file, b'{"b": 1}\n', again=True)
    longer = b'{"c": "' + b"x" * 50 + b'"}\n'
    assert put(file, longer)
    assert file.read_bytes() == longer


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        put(tmp_path / "none", b"{}")


@pytest.fixture
def frontend(tmp_path: Path) -> Frontend:
    (tmp_path / "writer").write_text('{"w": 1}\n')
    (tmp_path / "standby").write_text('{"s": 1}\n')
    (tmp_path / "runtime").write_text('{"s": 1}\n')
    return Frontend(
        type="zot",
        unit="zot.service",
        runtime_config=str(tmp_path / "runtime"),
        writer_config=str(tmp_path / "writer"),
        standby_config=str(tmp_path / "standby"),
    )


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_a_process_that_could_write_is_ended_and_one_that_could_not_is_left(tmp_path: Path, frontend: Frontend) -> None:
    process = sleeper()
    try:
        gate = Gate(frontend, Processes(pid=process.pid), tmp_path / "mark")
        assert asyncio.run(gate.fence(5.0))
        assert process.poll() is None, "it has never had the writing configuration"
        assert gate.writing()
        assert (tmp_path / "runtime").read_text() == '{"w": 1}\n'
        assert asyncio.run(gate.fence(5.0))
        assert process.wait(10) == -9
        assert (tmp_path / "runtime").read_text() == '{"s": 1}\n'
        assert not (tmp_path / "mark").exists()
    finally:
        process.kill()
        process.wait()


def test_a_full_file_system_takes_nobody_the_right_to_write(
    tmp_path: Path, frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without content needs no room; and the file that the frontend watches is written over in place."""

    def full(self: Path, *_: object, **__: object) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    assert Gate(frontend, Processes("none.service"), tmp_path / "mark").writing()
    assert (tmp_path / "mark").exists()
    assert (tmp_path / "runtime").read_text() == '{"w": 1}\n'


def test_the_mark_of_an_earlier_life_ends_a_process_whose_file_is_a_standbys_again(
    tmp_path: Path, frontend: Frontend
) -> None:
    """The agent died between writing the standby configuration and ending the process that had read the other."""
    process = sleeper()
    try:
        (tmp_path / "mark").touch()
        assert asyncio.run(Gate(frontend, Processes(pid=process.pid), tmp_path / "mark").fence(5.0))
        assert process.wait(10) == -9
    finally:
        process.kill()
        process.wait()


def test_all_processes_of_an_executor_are_ended_and_what_they_start_meanwhile() -> None:
    assert asyncio.run(Executor(Processes("none@.service")).fence(0.1)), "there is none"
    family = subprocess.Popen(["sh", "-c", "while :; do sleep 60 & sleep 0.01; done"], start_new_session=True)

    class Family(Processes):
        """The processes of that session, whoever their parent is by now."""

        def _candidates(self) -> list[int]:
            numbers = [int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()]
            return [one for one in numbers if session(one) == family.pid]

    processes = Family("x.service")
    try:
        asyncio.run(until(lambda: len(processes.find()) > 3))
        assert asyncio.run(Executor(processes).fence(5.0))
        assert family.wait(10) == -9
        assert processes.find() == ()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(family.pid, signal.SIGKILL)


def session(pid: int) -> int:
    """The session that a process belongs to; 0 if it is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


@pytest.mark.parametrize(
    ("writer", "executor", "ended"),
    [("any", None, []), ("any", {}, [Executor]), ("single", None, [Gate]), ("single", {}, [Executor, Gate])],
)
def test_what_acts_under_the_lease_is_ended_and_nothing_else(
    writer: str, executor: dict[str, Any] | None, ended: list[type]
) -> None:
    raw = smallest() | {"writer": writer, "fence": {}, "executor": executor}
    raw["frontend"] |= dict.fromkeys(("runtime_config", "writer_config", "standby_config"), "x")
    config = parse(raw)
    assert [type(one) for one in acting(config, Processes("none.service"))] == ended
    assert config.settings.leased is bool(ended)


def test_where_no_frontend_has_started_there_is_nothing_to_end(tmp_path: Path, frontend: Frontend) -> None:
    (tmp_path / "runtime").unlink()
    assert asyncio.run(Gate(frontend, Processes("none.service"), tmp_path / "mark").fence(0.1))


async def until(true: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not true():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), 30)


def test_a_frontend_takes_writes_when_it_no_longer_refuses_to_end_an_upload(
    tmp_path: Path, frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 20.0)  # it is asked once
    status = "401 Unauthorized"
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    async def run() -> None:
        nonlocal status
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            raw = smallest()
            raw["frontend"] |= {"port": server.sockets[0].getsockname()[1]}
            config: Config = parse(raw)
            gate = Gate(frontend, Processes("none.service"), tmp_path / "mark")
            news: list[bool | None] = []
            one = Writer(config, gate, lambda: news.append(one.writable))
            one.tick(100.0, False)
            await until(lambda: bool(news))
            assert news == [False]
            assert (tmp_path / "runtime").read_text() == '{"w": 1}\n'
            status = "404 Not Found"
            one.tick(100.05, False)
            await until(lambda: len(news) == 2)
            assert news == [False, True]
            one.tick(100.1, True)
            assert len(asked) == 2, "once it writes it is asked rarely"
            status = "500 Internal Server Error"
            one.tick(102.0, True)
            await until(lambda: len(asked) == 3)
            await asyncio.sleep(0.05)
            assert one.writable, "an error is no refusal"
            one.reset()
            assert one.writable is None

    asyncio.run(run())
    assert asked[0].startswith(b"DELETE /v2/canary/blobs/uploads/")
