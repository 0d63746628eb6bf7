"""The whole agent: three of them on loopback addresses, with a frontend that answers and a proxy that does not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import pki
from kubeadm_registry.agent import daemon as module
from kubeadm_registry.agent import hands
from kubeadm_registry.agent.config import Config, parse
from kubeadm_registry.agent.daemon import Daemon
from kubeadm_registry.agent.gate import Gate
from kubeadm_registry.agent.hardstate import UNKNOWN, encode
from kubeadm_registry.agent.model import HardState
from kubeadm_registry.agent.netlink import End
from kubeadm_registry.agent.processes import Processes
from kubeadm_registry.agent.promised import RECORD
from kubeadm_registry.agent.timings import Timings
from kubeadm_registry.components import zipapp

NAMES = ("cp-1", "cp-2", "cp-3")
#: Three real agents wait longer than nodes do, for where processors are short one of them is not run for a while. Still
#: less than for what the host of a silent agent is borne (presence.BORNE): a longer silence would cost connections.
PATIENT = {"timings": {"peer_silent": 2.0}}


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def raw(folder: Path, number: int, ports: dict[str, int], frontend: int) -> dict[str, Any]:
    addresses = [f"127.8.0.{one}" for one in (1, 2, 3)]
    own = folder / NAMES[number]
    own.mkdir(exist_ok=True)
    (own / "key").write_text("k" * 32)
    peers = [{"name": name, "address": address} for name, address in zip(NAMES, addresses, strict=True)]
    return {
        "name": NAMES[number],
        "address": addresses[number],
        "peers": [peer for peer in peers if peer["name"] != NAMES[number]],
        "vips": ["192.0.2.1"],
        "frontend": {"type": "distribution", "unit": "kubeadm-registry-none.service", "port": frontend},
        "writer": "any",
        "heartbeat_key_file": str(own / "key"),
        "tls": {"cert": str(own / "none"), "key": str(own / "none"), "ca": str(own / "none")},
        "proxy": {"sockets": [str(own / "haproxy.sock")]},
        "ports": ports,
        "paths": {key: str(own / key) for key in ("fit", "alone", "state", "mark", "hardstate")},
    }


@pytest.fixture
def configs(tmp_path: Path) -> list[dict[str, Any]]:
    """The files of three nodes. The ports are free now; nobody listens on the public one."""
    ports = {"public": free_port(socket.SOCK_STREAM), "metrics": free_port(socket.SOCK_STREAM)}
    ports["heartbeat"] = free_port(socket.SOCK_DGRAM)
    frontend = free_port(socket.SOCK_STREAM)
    return [raw(tmp_path, number, ports, frontend) for number in range(3)]


def state(config: dict[str, Any]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(Path(config["paths"]["state"]).read_text())
    except OSError:
        return {}
    return found


def until(test: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, f"not so after {seconds} s: {what}"
        time.sleep(0.02)


@pytest.fixture
def agents(tmp_path: Path, configs: list[dict[str, Any]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Three agents as systemd starts them."""
    (tmp_path / "agent.pyz").write_bytes(zipapp.build())
    env = {"PATH": os.environ["PATH"]}
    with ExitStack() as stack:
        started = []
        for config in configs:
            file = Path(config["paths"]["fit"]).with_name("agent.json")
            file.write_text(json.dumps(config | PATIENT))
            argv = [sys.executable, "-I", "-B", str(tmp_path / "agent.pyz"), "--config", str(file)]
            started.append(stack.enter_context(subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True)))
        yield started
        for one in started:
            one.kill()


def presence(config: dict[str, Any], name: str) -> str:
    return str(state(config).get("peers", {}).get(name, {}).get("presence", ""))


def test_agents_hear_each_other_say_goodbye_and_notice_death_and_sleep(
    configs: list[dict[str, Any]], agents: list[subprocess.Popen[str]]
) -> None:
    until(
        lambda: all(state(config).get("quorum", {}).get("heard") == 3 for config in configs),
        "every agent hears both others",
    )
    assert all(not Path(config["paths"]["fit"]).read_text().startswith("1") for config in configs)

    os.kill(agents[2].pid, signal.SIGSTOP)
    until(lambda: presence(configs[0], "cp-3") == "silent", "a stopped agent is silent: its socket takes all")
    os.kill(agents[2].pid, signal.SIGCONT)
    until(lambda: presence(configs[0], "cp-3") == "fresh", "it is heard again")
    until(lambda: state(configs[2])["done"]["own_pauses"] >= 1, "it knows that it was not run")
    assert state(configs[2])["peers"]["cp-1"]["silences"] == 0, "and takes that for nobody's silence"

    agents[1].kill()
    until(lambda: presence(configs[0], "cp-2") == "gone", "the kernel there says that nobody listens")

    agents[2].terminate()
    _, said = agents[2].communicate(timeout=20)
    assert agents[2].returncode == 0
    assert "Traceback" not in said
    assert "round failed" not in said
    assert not Path(configs[2]["paths"]["fit"]).exists(), "who leaves is not fit"
    until(lambda: presence(configs[0], "cp-3") == "gone", "it has said goodbye")

    agents[0].terminate()
    _, said = agents[0].communicate(timeout=20)
    assert "round failed" not in said
    assert "something unexpected" not in said


def test_a_reload_takes_up_new_files_in_the_same_process_and_gives_nothing_up(
    tmp_path: Path, configs: list[dict[str, Any]], agents: list[subprocess.Popen[str]]
) -> None:
    """The agent of a node that held fit goes on as fit: keepalived must not see the file away or false for a moment."""
    until(lambda: presence(configs[0], "cp-2") == presence(configs[1], "cp-1") == "fresh", "they hear each other")
    before = state(configs[0])["instance"]
    fit = Path(configs[0]["paths"]["fit"])
    config = configs[0] | {"timings": {**PATIENT["timings"], "heartbeat_interval": 0.09}}
    fit.with_name("agent.json").write_text(json.dumps(config))
    os.kill(agents[0].pid, signal.SIGHUP)
    until(lambda: state(configs[0])["instance"] != before, "it is another life of the agent")
    assert agents[0].poll() is None
    assert "--takes-over" in Path(f"/proc/{agents[0].pid}/cmdline").read_text()
    until(lambda: presence(configs[1], "cp-1") == "fresh", "it is heard again")
    assert state(configs[1])["peers"]["cp-1"]["silences"] == 0, "nobody took it for a dead host"
    before = state(configs[0])["instance"]
    fit.with_name("agent.json").write_text(json.dumps(configs[0]))
    os.kill(agents[0].pid, signal.SIGHUP)
    until(lambda: state(configs[0])["instance"] != before, "it is a third life")
    assert Path(f"/proc/{agents[0].pid}/cmdline").read_text().count("--takes-over") == 1, "said once"


def received(config: dict[str, Any]) -> dict[str, int]:
    return {name: one["received"] for name, one in state(config)["peers"].items()}


def hears_more(config: dict[str, Any], before: dict[str, int]) -> None:
    """Wait until more heartbeats than before have come from each of these peers."""
    until(lambda: all(received(config)[name] > count for name, count in before.items()), "heartbeats go on")


def test_another_key_is_taken_up_in_stages_and_no_agent_begins_anew(
    configs: list[dict[str, Any]], agents: list[subprocess.Popen[str]]
) -> None:
    """One that begins gives no vote at first, so a holder of the lease could lose it."""
    until(lambda: all(state(one).get("quorum", {}).get("heard") == 3 for one in configs), "they hear each other")
    lives = [state(config)["instance"] for config in configs]
    files = [Path(config["heartbeat_key_file"]) for config in configs]
    old, new = files[0].read_text(), "n" * 32
    for keys in (f"{old}\n{new}\n", f"{new}\n{old}\n", f"{new}\nleft:{old}\n"):
        for file, agent in zip(files, agents, strict=True):
            file.write_text(keys)
            os.kill(agent.pid, signal.SIGHUP)
        for config in configs:
            hears_more(config, received(config))
    for wrong in ("short", f"left:{old}", f"{new}\nleft:short"):
        files[0].write_text(wrong)
        os.kill(agents[0].pid, signal.SIGHUP)
    hears_more(configs[1], {"cp-1": received(configs[1])["cp-1"]})  # it goes on with the key that it has
    assert [state(config)["instance"] for config in configs] == lives
    assert sum(one["silences"] for config in configs for one in state(config)["peers"].values()) == 0
    agents[0].terminate()
    assert "no other keys are used" in agents[0].communicate(timeout=20)[1]


def test_the_end_of_a_change_of_members_is_taken_up_and_no_agent_begins_anew(
    configs: list[dict[str, Any]], agents: list[subprocess.Popen[str]]
) -> None:
    """While members change, what the agents decide needs more than half of the list before, too."""
    path = Path(configs[0]["paths"]["fit"]).with_name("agent.json")

    def reload(**changes: Any) -> str:
        before = state(configs[0])["instance"]
        path.write_text(json.dumps(configs[0] | changes))
        os.kill(agents[0].pid, signal.SIGHUP)
        return str(before)

    until(lambda: state(configs[0]).get("quorum", {}).get("heard") == 3, "it hears the others")
    begins = reload(members_before=["cp-1", "cp-2"])
    until(lambda: state(configs[0])["instance"] != begins, "a change that begins needs another life")
    stays = reload(metrics_anonymous=False)  # which is the default
    hears_more(configs[0], received(configs[0]))
    assert state(configs[0])["instance"] == stays
    anew = reload(metrics_anonymous=True)
    until(lambda: state(configs[0])["instance"] != anew, "the list is not all that has changed")


@pytest.mark.parametrize("takes_over", [True, False])
def test_only_who_takes_over_stays_fit_without_having_been_good(
    configs: list[dict[str, Any]], takes_over: bool
) -> None:
    fit = Path(configs[0]["paths"]["fit"])
    seen: set[str] = set()

    async def run() -> None:
        fit.write_text("1\n")
        one = Daemon(parse(configs[0]), takes_over=takes_over)
        task = asyncio.get_running_loop().create_task(one.run())
        until_then = asyncio.get_running_loop().time() + 1
        while asyncio.get_running_loop().time() < until_then:
            await asyncio.sleep(0.01)
            seen.add(fit.read_text() if fit.exists() else "")
        one.reload()
        assert await task

    asyncio.run(run())
    assert seen == ({"1\n"} if takes_over else {"0\n"})
    assert fit.exists(), "a reload leaves it"


async def started(config: Config, course: Callable[[Daemon], Any]) -> None:
    """Run *course* beside an agent, then end it."""
    one = Daemon(config)
    task = asyncio.get_running_loop().create_task(one.run())
    try:
        async with asyncio.timeout(20):
            await course(one)
    finally:
        one.stop()
        await asyncio.wait([task], timeout=10)


async def eventually(test: Callable[[], object]) -> None:
    while not test():
        await asyncio.sleep(0.01)


def test_a_round_and_a_callback_that_fail_end_nothing(
    configs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def course(one: Daemon) -> None:
        await eventually(lambda: one.decisions is not None)
        healthy, failures = one.probes.tick, iter(range(3))

        def broken(now: float) -> None:
            if next(failures, None) is not None:
                raise KeyError("x")
            healthy(now)

        monkeypatch.setattr(one.probes, "tick", broken)
        await eventually(lambda: one.counters.errors >= 6)
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await eventually(lambda: one.counters.errors >= 7)
        last = one.memory.last
        await eventually(lambda: one.memory.last > last + 0.2)

    asyncio.run(started(parse(configs[0]), course))
    said = capsys.readouterr().err
    assert "a round failed: KeyError: 'x' (test_agent_daemon.py" in said
    assert "something unexpected failed: ZeroDivisionError: division by zero" in said


def test_it_tells_how_full_the_data_directory_is_and_when_certificates_expire(configs: list[dict[str, Any]]) -> None:
    tls = {key: Path(configs[0]["tls"][key]).with_name(f"{key}.pem") for key in ("cert", "key", "ca")}
    authority = pki.make_ca("test")
    pair = pki.issue(authority, "cp-1", ["127.8.0.1"])
    for key, content in (("cert", pair.certificate), ("key", pair.key), ("ca", authority.certificate)):
        tls[key].write_text(content)

    async def course(one: Daemon) -> None:
        await eventually(lambda: (told := one._state()) is not None and told["data"] is not None)
        told = one._state()
        assert told is not None and told["data"] is not None
        seen = os.statvfs(Path(configs[0]["paths"]["hardstate"]).parent)
        assert told["data"]["size"] == seen.f_blocks * seen.f_frsize
        assert 0 < told["data"]["free"] <= told["data"]["size"]
        assert (told["data"]["inodes"], told["data"]["writable"]) == (seen.f_files, True)
        assert 0 < told["data"]["free_inodes"] <= told["data"]["inodes"]
        assert told["certificate_expires"] == pki.expiry(pair.certificate).timestamp()
        assert told["ca_expires"] == pki.expiry(authority.certificate).timestamp()
        history = Path(configs[0]["paths"]["hardstate"]).with_name("space.json")
        await eventually(history.exists)
        [sample] = json.loads(history.read_text())["samples"]
        assert sample["free"] == told["data"]["free"]
        assert told["data_trend"] is None, "nothing follows from one sample"

    named = {key: str(path) for key, path in tls.items()}
    asyncio.run(started(parse(configs[0] | {"tls": named}), course))


def test_it_notes_when_the_virtual_ip_comes_and_the_next_agent_goes_on_from_there(
    configs: list[dict[str, Any]],
) -> None:
    one, own = configs[0], configs[0] | {"vips": ["127.0.0.1"]}
    notes = Path(one["paths"]["hardstate"]).with_name("moves.json")

    def told() -> list[tuple[str, bool, bool]]:
        noted = json.loads(notes.read_text())["moves"] if notes.exists() else []
        return [(move["what"], move["here"], move["exact"]) for move in noted]

    async def comes(agent: Daemon) -> None:
        await eventually(lambda: agent.decisions is not None)
        assert not notes.exists()
        agent.config = parse(own)
        await eventually(lambda: told() == [("vip", True, True)])
        assert agent.counters.vip_taken == 1
        state = agent._state()
        assert state is not None and [move["what"] for move in state["moves"]] == ["vip"]

    async def stays(agent: Daemon) -> None:
        await eventually(lambda: agent.decisions is not None)
        assert told() == [("vip", True, True)]

    async def left(_: Daemon) -> None:
        await eventually(lambda: told() == [("vip", True, True), ("vip", False, False)])

    asyncio.run(started(parse(one), comes))
    asyncio.run(started(parse(own), stays))
    asyncio.run(started(parse(one), left))


def test_what_it_has_promised_is_read_once_the_disk_lets_it(configs: list[dict[str, Any]]) -> None:
    """One that started while the disk was read-only gave no vote until somebody restarted it, and nothing said so."""
    path = Path(configs[0]["paths"]["hardstate"])
    path.mkdir()  # cannot be opened, like a file on a disk that is read-only
    timer = {"address": "127.8.0.9", "port": free_port(socket.SOCK_DGRAM)}

    async def look(one: Daemon) -> None:
        one._next["slow"] = 0.0
        await eventually(lambda: one._next["slow"])
        await eventually(one.hands._tasks["hardstate"].done)

    async def course(one: Daemon) -> None:
        await eventually(lambda: one.decisions is not None)
        await look(one)
        path.rmdir()
        await look(one)
        assert one.hands.hard.kept == UNKNOWN, "a disk that is not there has promised nothing"
        path.write_bytes(encode(HardState(1, 2**50)).ljust(2 * RECORD))
        await look(one)
        assert one.hands.hard.kept == HardState(1, 2**50)
        assert one.memory.lease.epoch == 2**50

    asyncio.run(started(parse(configs[0] | {"executor": {}, "fence": timer}), course))


def test_an_agent_that_cannot_decide_leaves(configs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        one = Daemon(parse(configs[0]))
        monkeypatch.setattr(module, "MOST_FAILURES", 3)

        def broken() -> None:
            raise KeyError("x")

        monkeypatch.setattr(one, "step", broken)
        async with asyncio.timeout(20):
            await one.run()

    with pytest.raises(KeyError):
        asyncio.run(run())


def test_no_descriptor_left_is_silence_and_passes(
    configs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def course(one: Daemon) -> None:
        await eventually(lambda: one.decisions is not None)
        real = socket.socket

        def none_left(*_: object, **__: object) -> socket.socket:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(socket, "socket", none_left)
        last = one.memory.last
        await eventually(lambda: one.memory.last > last + 0.3)
        monkeypatch.setattr(socket, "socket", real)
        await eventually(lambda: one.probes.frontend.answers.refused)

    asyncio.run(started(parse(configs[0]), course))


def test_unfit_is_said_by_no_file_if_it_cannot_be_written(
    configs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Path(configs[0]["paths"]["fit"])

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    async def run() -> None:
        one = Daemon(parse(configs[0]))
        fit.write_text("1\n")
        monkeypatch.setattr(hands, "write", full)
        one.hands.write_flag(str(fit), True)
        assert fit.exists()
        one.hands.write_flag(str(fit), False)
        assert not fit.exists()

    asyncio.run(run())


def test_only_connections_on_our_own_ports_are_ended(
    configs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the ssh session to a silent peer, and not etcd's."""

    async def run() -> None:
        one = Daemon(parse(configs[0] | {"ports": {"rpc": 3901, "internal": 5443, "metrics": 5445}}))
        asked: list[tuple[End, End, frozenset[int]]] = []

        def end_all(source: End, destination: End, *, ports: frozenset[int], **_: object) -> int:
            asked.append((source, destination, ports))
            return 0

        monkeypatch.setattr(one.hands._connections, "end_all", end_all)
        one.step()
        one.hands.cut("cp-2", False)
        assert one.decisions is not None
        why = replace(one.decisions, reset_reads="why", reset_rpc="why")
        one.hands.mend(why)
        assert asked == [
            (End(), End("127.8.0.2"), frozenset({3901, 5443, 5445})),
            (End("127.0.0.9"), End("127.0.0.1", configs[0]["frontend"]["port"]), frozenset()),
            (End(port=3901), End(), frozenset()),
            (End(), End(port=3901), frozenset()),
        ]

    asyncio.run(run())


def test_systemd_ends_a_hung_writer_before_another_node_may_write(root: Path) -> None:
    unit = (root / "kubeadm_registry/templates/agent/unit.j2").read_text()
    seconds = next(float(line.partition("=")[2]) for line in unit.splitlines() if line.startswith("WatchdogSec="))
    assert seconds < Timings().lease
    assert "WatchdogSignal=SIGKILL" in unit, "a core dump would take longer than the rest of the lease"
    assert "LimitCORE=0" in unit


def gate(folder: Path, port: int) -> Gate:
    config = raw(folder, 0, {}, port)
    config["frontend"] |= {key: str(folder / key) for key in ("runtime_config", "writer_config", "standby_config")}
    (folder / "standby_config").write_text('{"standby": 1}\n')
    (folder / "writer_config").write_text('{"writer": 1}\n')
    frontend = parse(config).frontend
    return Gate(frontend, Processes(frontend.unit), folder / "mark")


def test_a_frontend_whose_process_is_hidden_is_never_taken_for_gone(tmp_path: Path) -> None:
    async def run() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        one = gate(tmp_path, port)
        (tmp_path / "runtime_config").write_text('{"standby": 1}\n')
        assert await one.fence(0.1), "it has never been a writer"
        one.writing()
        assert (tmp_path / "mark").read_text() == "kubeadm-registry-none.service\n"
        with pytest.raises(OSError, match="hidepid"):
            await one.fence(0.1)
        assert (tmp_path / "mark").exists()
        server.close()
        await server.wait_closed()
        assert await one.fence(0.1), "nobody listens, so nobody writes"
        assert not (tmp_path / "mark").exists()

    asyncio.run(run())


def test_a_configuration_that_cannot_be_replaced_does_not_save_a_writer(tmp_path: Path) -> None:
    """Its unit gives the next process the standby configuration."""

    async def run() -> None:
        one = gate(tmp_path, free_port(socket.SOCK_STREAM))
        (tmp_path / "runtime_config").mkdir()
        (tmp_path / "mark").touch()
        assert await one.fence(0.1)
        assert not (tmp_path / "mark").exists()

    asyncio.run(run())
