"""The proxy client: what is said to HAProxy and in which order; against a real one if there is one."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from kubeadm_registry.agent.config import Config, parse
from kubeadm_registry.agent.haproxy import Proxy, changes
from kubeadm_registry.agent.haproxy import parse as servers_of
from kubeadm_registry.agent.model import Decisions, Memory, Report, Role, Settings
from kubeadm_registry.agent.reserve import nearly_full
from kubeadm_registry.agent.steering import Servers, Steering, wanted
from tests.unit import real_haproxy
from tests.unit.test_agent_config import smallest

ONE = frozenset({"cp-2"})


def decisions(*, readers: frozenset[str] | None, writers: frozenset[str] | None, gate: bool, epoch: int) -> Decisions:
    return Decisions(readers, writers, gate, epoch, True, Report(), {})


def config(folder: Path, epoch_map: str = "") -> Config:
    raw = smallest() | {"writer": "single", "fence": {}}
    raw["frontend"] |= {"type": "zot", "runtime_config": "/r", "writer_config": "/w", "standby_config": "/s"}
    raw["proxy"] = {"sockets": [str(folder / "1.sock")], "epoch_map": epoch_map or str(folder / "state.map")}
    return parse(raw)


def test_what_was_not_decided_is_not_touched() -> None:
    start = wanted(decisions(readers=None, writers=None, gate=False, epoch=0), "cp-1", ("cp-2",))
    assert start == {("gate", "open"): False, ("vip", "here"): False}


def test_the_own_node_is_called_local() -> None:
    some = wanted(decisions(readers=ONE, writers=frozenset({"cp-1"}), gate=True, epoch=0), "cp-1", ("cp-2",))
    assert some == {
        ("reads", "local"): False,
        ("reads", "cp-2"): True,
        ("writer", "local"): True,
        ("writer", "cp-2"): False,
        ("gate", "open"): True,
        ("newwork", "open"): True,
        ("vip", "here"): False,
    }


def test_new_work_waits_while_the_writer_is_about_to_move() -> None:
    made = replace(decisions(readers=ONE, writers=ONE, gate=False, epoch=0), new_work=False)
    assert not wanted(made, "cp-1", ("cp-2",))["newwork", "open"]


@pytest.mark.parametrize("single", [True, False])
def test_who_leaves_shuts_its_gate_and_pushes_go_on_where_all_may_write(single: bool) -> None:
    routed: list[Servers] = []

    class Hands:
        def route(self, servers: Servers, _: int) -> None:
            routed.append(servers)

    config = Settings("cp-1", ("cp-2",), single, executor=True)
    steering = Steering(config, cast("Any", Hands()), lambda: 1.0, Memory(started=0.0))
    steering.shut()
    writers = {("writer", "local"): False, ("writer", "cp-2"): False} if single else {}
    assert routed == [{("gate", "open"): False, **writers}]
    assert steering.goodbye().role is Role.STANDBY


def test_reads_are_opened_before_they_are_closed_and_writes_the_other_way_round() -> None:
    want = {
        ("reads", "local"): False,
        ("reads", "cp-2"): True,
        ("writer", "local"): False,
        ("writer", "cp-2"): True,
    }
    have = {key: not takes for key, takes in want.items()}
    due = list(changes(want, have, ["reads"]))
    assert due.index(("reads", "cp-2")) < due.index(("reads", "local"))
    assert due.index(("writer", "local")) < due.index(("writer", "cp-2"))
    where_all_write = list(changes(want, have, ["reads", "writer"]))
    assert where_all_write.index(("writer", "cp-2")) < where_all_write.index(("writer", "local"))
    assert changes(want, want, ["reads"]) == {}
    assert changes(want, {}, ["reads"]) == {}, "what HAProxy does not know is left out"


def test_a_server_takes_requests_unless_it_is_in_maintenance_or_drains() -> None:
    head = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight\n"
    line = "4 reads {} {} 10.0.0.2 2 {} 100 100 1 1 0 0 0 0 0 0 - 5443 - 0 0 - - 0\n"
    text = head + line.format(1, "local", 0) + line.format(2, "cp-2", 1) + line.format(3, "cp-3", 8) + "\n"
    assert servers_of(text) == {("reads", "local"): True, ("reads", "cp-2"): False, ("reads", "cp-3"): False}


class Fake:
    """Behind a runtime socket: servers, a map, and all that was said, but for the questions."""

    def __init__(self) -> None:
        self.restart()
        self.said: list[str] = []
        self.readers: list[int] = []
        """How many servers took reads, after each change."""
        self.slow = asyncio.Semaphore(1000)
        """What each connection with a change waits for."""

    def restart(self) -> None:
        self.servers = {
            ("reads", "local"): 0,
            ("reads", "cp-2"): 0,
            ("reads", "cp-3"): 0,
            ("writer", "local"): 1,
            ("writer", "cp-2"): 1,
            ("writer", "cp-3"): 1,
            ("gate", "open"): 1,
            ("newwork", "open"): 0,
        }
        self.epoch = "0"

    def takes(self) -> set[str]:
        return {f"{backend}/{name}" for (backend, name), state in self.servers.items() if not state}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readline()).decode().strip()
        if "set server" in line:
            await self.slow.acquire()
        for command in line.split(";"):
            words = command.split()
            if words[:2] == ["show", "servers"]:
                rows = [f"4 {be} 1 {name} 10.0.0.2 2 {state} 100 0" for (be, name), state in self.servers.items()]
                writer.write("\n".join(["1", *rows, "", ""]).encode())
            elif words[:2] == ["show", "map"]:
                writer.write(f"0x55aa epoch {self.epoch}\n\n".encode())
            else:
                self.said.append(command)
                if words[:2] == ["set", "map"]:
                    self.epoch = words[4]
                else:
                    backend, name = words[2].split("/")
                    self.servers[backend, name] = 0 if words[4] == "ready" else 1
                    self.readers.append(sum(one.startswith("reads/") for one in self.takes()))
                writer.write(b"\n")
        await writer.drain()
        writer.close()


async def until(test: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until *test* holds."""
    async with asyncio.timeout(seconds):
        while not test():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def talking(folder: Path, fake: Fake) -> AsyncIterator[Proxy]:
    server = await asyncio.start_unix_server(fake.serve, folder / "1.sock")
    complaints: list[str] = []
    proxy = Proxy(config(folder), str(folder / "1.sock"), lambda: None, lambda _, text: complaints.append(text))
    try:
        yield proxy
    finally:
        proxy.close()
        server.close()
    assert complaints == []


def as_wanted(writer: str, epoch: int) -> tuple[dict[tuple[str, str], bool], int]:
    gate = writer == "cp-1"
    made = decisions(readers=ONE, writers=frozenset({writer} if writer else set()), gate=gate, epoch=epoch)
    return dict(wanted(made, "cp-1", ("cp-2", "cp-3"))), epoch


def test_a_new_writer_is_named_after_its_epoch(tmp_path: Path) -> None:
    """Else an upload that began under the earlier one would pass, and its repeated bytes would be appended."""

    async def course() -> None:
        fake = Fake()
        async with talking(tmp_path, fake) as proxy:
            proxy.want(*as_wanted("", 5))
            proxy.ask()
            await until(lambda: fake.epoch == "5")
            assert await proxy.settled(20.0)
            fake.said.clear()
            proxy.want(*as_wanted("cp-3", 9))
            await until(lambda: "writer/cp-3" in fake.takes())
            assert fake.said[0].endswith(" epoch 9")
            assert fake.said[-1] != fake.said[0]

    asyncio.run(course())


def test_a_process_that_was_restarted_is_told_again(tmp_path: Path) -> None:
    async def course() -> None:
        fake = Fake()
        async with talking(tmp_path, fake) as proxy:
            proxy.want(*as_wanted("cp-1", 5))
            assert await proxy.settled(20.0)
            told = fake.takes()
            assert told == {"reads/cp-2", "writer/local", "gate/open", "newwork/open"}
            before = proxy.corrections
            fake.restart()
            assert "gate/open" not in fake.takes(), "on disk it is shut"
            assert await proxy.settled(20.0)
            assert fake.takes() == told
            assert fake.epoch == "5"
            assert proxy.corrections == before + 1

    asyncio.run(course())


def test_what_was_said_a_moment_ago_is_taken_back_at_once(tmp_path: Path) -> None:
    async def course() -> None:
        fake = Fake()
        async with talking(tmp_path, fake) as proxy:
            proxy.want(*as_wanted("", 5))
            assert await proxy.settled(20.0)
            proxy.want(*as_wanted("cp-1", 5))
            await until(lambda: "gate/open" in fake.takes())
            proxy.want(*as_wanted("", 5))  # without a look in between
            await until(lambda: "gate/open" not in fake.takes())

    asyncio.run(course())


def test_a_change_that_is_held_up_is_not_overtaken_and_there_is_always_a_reader(tmp_path: Path) -> None:
    """HAProxy serves its connections side by side: on a busy node the later one was done first, and none took reads."""

    async def course() -> None:
        fake = Fake()
        async with talking(tmp_path, fake) as proxy:
            proxy.want({("reads", "local"): True, ("reads", "cp-2"): True, ("reads", "cp-3"): True}, 0)
            assert await proxy.settled(20.0)
            fake.slow = asyncio.Semaphore(0)
            proxy.want({("reads", "local"): True, ("reads", "cp-2"): False, ("reads", "cp-3"): False}, 0)
            first = fake.slow
            await until(lambda: first._waiters)
            fake.slow = asyncio.Semaphore(1000)
            proxy.want({("reads", "local"): False, ("reads", "cp-2"): True, ("reads", "cp-3"): False}, 0)
            for _ in range(3):
                proxy.ask()
                assert not await proxy.settled(0.05), "the first change has not ended"
            first.release()
            assert await proxy.settled(20.0)
            assert fake.takes() & {"reads/local", "reads/cp-2", "reads/cp-3"} == {"reads/cp-2"}
            assert min(fake.readers) == 1
            assert proxy.corrections == 0

    asyncio.run(course())


def test_writes_are_closed_at_once_while_another_change_is_held_up(tmp_path: Path) -> None:
    async def course() -> None:
        fake = Fake()
        async with talking(tmp_path, fake) as proxy:
            proxy.want(*as_wanted("cp-1", 5))
            assert await proxy.settled(20.0)
            fake.slow = first = asyncio.Semaphore(0)
            proxy.want({**as_wanted("cp-1", 5)[0], ("reads", "cp-3"): True}, 5)
            await until(lambda: first._waiters)
            fake.slow = asyncio.Semaphore(1000)
            proxy.want(*as_wanted("", 6))
            await until(lambda: not fake.takes() & {"writer/local", "gate/open"})
            assert fake.epoch == "6"
            assert "reads/cp-3" not in fake.takes()
            first.release()
            assert await proxy.settled(20.0)
            assert fake.takes() == {"reads/cp-2", "newwork/open"}

    asyncio.run(course())


def test_a_process_that_is_not_there_passes_on_nothing(tmp_path: Path) -> None:
    async def course() -> None:
        proxy = Proxy(config(tmp_path), str(tmp_path / "none"), lambda: None, lambda *_: None)
        proxy.want(*as_wanted("", 5))
        assert await proxy.settled(20.0)
        assert proxy.answered.answers.refused

    asyncio.run(course())


def test_a_silent_process_is_never_settled_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def course() -> None:
        server = await asyncio.start_unix_server(silent, tmp_path / "1.sock")
        proxy = Proxy(config(tmp_path), str(tmp_path / "1.sock"), lambda: None, lambda *_: None)
        for _ in range(3):
            assert not await proxy.settled(0.02)
        assert proxy._waiting == []
        proxy.close()
        server.close()

    asyncio.run(course())


HAPROXY = """\
global
  stats socket {folder}/1.sock mode 600 level admin expose-fd listeners
defaults
  mode http
  timeout connect 1s
  timeout client 5s
  timeout server 5s
frontend public
  bind unix@{folder}/http.sock
  http-request set-var(txn.epoch) str(epoch),map_str({folder}/state.map,0)
  http-request return status 200 content-type text/plain lf-string "%[var(txn.epoch)] %[nbsrv(gate)]"
backend reads
  server local 127.0.0.1:1
  server cp-2 127.0.0.1:1
  server cp-3 127.0.0.1:1
backend writer
  server local 127.0.0.1:1 disabled
  server cp-2 127.0.0.1:1 disabled
  server cp-3 127.0.0.1:1 disabled
backend gate
  server open 127.0.0.1:1 disabled
backend newwork
  server open 127.0.0.1:1
"""


@pytest.fixture
def haproxy(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real HAProxy, as master and worker."""
    program = real_haproxy.program()
    (tmp_path / "haproxy.cfg").write_text(HAPROXY.format(folder=tmp_path))
    (tmp_path / "state.map").write_text("epoch 0\n")
    process = subprocess.Popen([program, "-W", "-f", tmp_path / "haproxy.cfg"], stderr=subprocess.DEVNULL)
    yield process
    process.terminate()
    process.wait()


def test_a_real_haproxy_is_told_and_its_workers_are_known(tmp_path: Path, haproxy: subprocess.Popen[bytes]) -> None:
    complaints: list[str] = []

    async def ask_gate() -> bytes:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "http.sock")
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer.rsplit(b"\r\n", 1)[-1]

    async def course() -> None:
        proxy = Proxy(config(tmp_path), str(tmp_path / "1.sock"), lambda: None, lambda _, text: complaints.append(text))
        async with asyncio.timeout(10):
            while not proxy.have:
                proxy.ask()
                await asyncio.sleep(0.05)
        proxy.want(*as_wanted("cp-1", 7))
        assert await proxy.settled(20.0)
        assert await ask_gate() == b"7 1"
        assert proxy.have["reads", "local"] is False
        assert proxy.have["reads", "cp-2"] is True
        assert proxy.pid == haproxy.pid, "the kernel names the master"
        family = proxy.processes.find()
        assert len(family) == 2
        assert haproxy.pid in family
        proxy.processes.kill()
        await asyncio.to_thread(haproxy.wait, 20)
        await until(lambda: not proxy.processes.find())
        async with asyncio.timeout(10):
            while not proxy.answered.answers.refused:  # a question that was under way may get no answer at all
                proxy.ask()
                await asyncio.sleep(0.05)
        proxy.close()

    asyncio.run(course())
    assert complaints == []


# ---- a disk that is nearly full ----------------------------------------------------------------------------------


def test_pushes_are_closed_again_and_again_while_the_disk_is_nearly_full_and_opened_once(tmp_path: Path) -> None:
    async def course() -> None:
        fake = Fake()
        async with talking(tmp_path, fake) as proxy:
            # At first as well: an agent before this one may have closed them.
            for seconds, wall in ((0, 1000.0), (60, 1000.9), (60, 1010.0), (0, 1020.0)):
                said = len(fake.said)
                proxy.reserve(seconds, wall)
                await until(lambda said=said: len(fake.said) > said)  # type: ignore[misc]
            proxy.reserve(0, 1030.0)
            proxy.ask()
            await proxy.settled(20.0)
            name = "set map /etc/kubeadm-registry/haproxy/pushes.map full"
            assert fake.said == [f"{name} 0", f"{name} 1060", f"{name} 1070", f"{name} 0"]

    asyncio.run(course())


GIB = 2**30


@pytest.mark.parametrize(
    ("free", "size", "was", "full"),
    [
        (3 * GIB, 40 * GIB, False, False),
        (2 * GIB - 1, 40 * GIB, False, True),
        (2 * GIB, 40 * GIB, False, False),
        (2 * GIB, 40 * GIB, True, True),
        (2.6 * GIB, 40 * GIB, True, False),
        (49 * GIB, 1000 * GIB, False, True),
        (51 * GIB, 1000 * GIB, False, False),
        (51 * GIB, 1000 * GIB, True, True),
        (63 * GIB, 1000 * GIB, True, False),
    ],
)
def test_the_reserve_is_a_twentieth_and_at_least_2_gib(free: float, size: int, was: bool, full: bool) -> None:
    assert nearly_full(int(free), size, was) is full
