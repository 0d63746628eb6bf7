"""`status --watch`: round after round, whatever nodes do meanwhile; and what `status --images` adds."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kubeadm_registry import config
from kubeadm_registry import status as cluster_status
from kubeadm_registry.access import presence, session
from kubeadm_registry.access.following import Follower
from kubeadm_registry.access.presence import Presence
from kubeadm_registry.cli import status as command
from kubeadm_registry.cli.main import cli
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.errors import ConfigError, ConnectionFailed, Error
from kubeadm_registry.status import NodeStatus
from kubeadm_registry.transport.host import Host, Transport
from tests.unit.fake_images import Repositories, within
from tests.unit.fakes import FakeTransport
from tests.unit.test_status import THREE, gone, well

NAMES = ("cp-1", "cp-2", "cp-3")


class Room:
    """Three nodes: how often each was connected to, what its answer waits for, and whether it can be reached."""

    def __init__(self) -> None:
        self.connected: list[str] = []
        self.transports: dict[str, FakeTransport] = {}
        self.away: set[str] = set()
        self.holds: dict[str, threading.Event] = {}
        self.dies: set[str] = set()
        self.silent: set[str] = set()

    def reach(self, _: RegistryCluster, node: Node, prompts: session.Prompts) -> Transport:
        assert prompts.ask_sudo_password() is None
        if node.name in self.away:
            raise ConnectionFailed("no route to host", hint="plug it in", host=node.name)
        self.connected.append(node.name)
        self.transports[node.name] = FakeTransport(node.name)
        return self.transports[node.name]

    def ask(self, host: Host) -> NodeStatus:
        if (hold := self.holds.get(host.name)) is not None:
            hold.wait(30)
        if host.name in self.silent:
            raise ConnectionFailed("no response", hint="its console", host=host.name)
        return gone(well(host.name)) if host.name in self.dies else well(host.name, vip=host.name == "cp-1")


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    one = Room()
    monkeypatch.setattr(session, "reach", one.reach)
    monkeypatch.setattr(cluster_status, "observe", lambda _config, host: one.ask(host))
    yield one
    for hold in one.holds.values():
        hold.set()


def follower(room: Room) -> Follower[NodeStatus]:
    reached, _ = session.attempt_all(THREE, session.Prompts())
    return cluster_status.follow(THREE, reached, session.Prompts())


def test_connections_stay_open_and_one_that_is_lost_is_made_again(room: Room) -> None:
    one = follower(room)
    for _ in range(3):
        seen = cluster_status.followed(THREE, one, 5)
        assert [node.name for node in seen if node.reachable] == [*NAMES]
    assert sorted(room.connected) == [*NAMES]
    room.dies, lost = {"cp-2"}, room.transports["cp-2"]
    assert [node.reachable for node in cluster_status.followed(THREE, one, 5)] == [True, False, True]
    assert lost.closed
    room.dies, room.away = set(), {"cp-2"}
    [_, second, _] = cluster_status.followed(THREE, one, 5)
    assert (second.reachable, second.trouble) == (False, "no route to host (plug it in)")
    room.away = set()
    assert all(node.reachable for node in cluster_status.followed(THREE, one, 5))
    assert sorted(room.connected) == ["cp-1", "cp-2", "cp-2", "cp-3"]
    one.close()
    assert all(transport.closed for transport in room.transports.values())


def test_a_node_that_says_nothing_holds_up_nobody_and_is_not_asked_twice(room: Room) -> None:
    one = follower(room)
    room.holds["cp-3"] = threading.Event()
    for _ in range(2):
        seen = cluster_status.followed(THREE, one, 2)  # in which the two that answer have to be run
        assert one._threads["cp-3"].is_alive(), "its answer is not waited for"
        assert [node.reachable for node in seen] == [True, True, False]
        assert seen[2].trouble == "no response within 2 s"
    assert sum(thread.is_alive() for thread in one._threads.values()) == 1
    room.holds.pop("cp-3").set()
    one._threads["cp-3"].join(30)
    assert all(node.reachable for node in cluster_status.followed(THREE, one, 5))
    assert sorted(room.connected) == [*NAMES]
    one.close()


def test_a_node_that_always_needs_longer_is_heard_one_round_later(room: Room) -> None:
    one = follower(room)
    for answers in (True, False):  # what it says, and why it cannot be reached
        room.holds["cp-3"] = hold = threading.Event()
        assert cluster_status.followed(THREE, one, 1)[2].trouble == "no response within 1 s"
        hold.set()
        one._threads["cp-3"].join(30)
        room.holds["cp-3"] = threading.Event()
        found = cluster_status.followed(THREE, one, 1)[2]
        assert (found.reachable, found.trouble) == ((True, "") if answers else (False, "no response (its console)"))
        room.holds.pop("cp-3").set()
        room.silent = {"cp-3"}
    one.close()


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.yaml").write_text(config.SMALLEST)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ("status", *arguments), prog_name="kubeadm-registry")

    return run


class Interrupted:
    """Stands for the wait between rounds: *acts* happen in it, one after the other, and then Ctrl-C."""

    def __init__(self, *acts: Callable[[], object]) -> None:
        self.acts = [*acts]
        self.waited: list[float] = []

    def __call__(self) -> Any:
        return self

    def wait(self, seconds: float) -> None:
        self.waited.append(seconds)
        if not self.acts:
            raise KeyboardInterrupt
        self.acts.pop(0)()


def test_each_round_is_a_line_of_json_and_ctrl_c_ends_with_what_was_last(
    run: Callable[..., Result], room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = Interrupted(lambda: room.dies.add("cp-3"), room.dies.clear, lambda: room.dies.add("cp-2"))
    monkeypatch.setattr(command, "_pause", pauses)
    result = run("--watch", "7", "-o", "json")
    rounds = [json.loads(line) for line in result.stdout.splitlines()]
    assert [[node["name"] for node in one["nodes"] if not node["reachable"]] for one in rounds] == [
        [], ["cp-3"], [], ["cp-2"],
    ]  # fmt: skip
    assert result.exit_code == 5
    assert "Traceback" not in result.output
    assert all(0 < seconds <= 7 for seconds in pauses.waited)
    assert all(transport.closed for transport in room.transports.values())


@pytest.mark.parametrize(
    ("away", "code"), [((), 0), (("cp-2",), 5), (("cp-1",), 1), (NAMES, 4)], ids=["well", "degraded", "down", "gone"]
)
@pytest.mark.parametrize("watch", [(), ("--watch",)])
def test_the_exit_code_says_how_it_is(
    run: Callable[..., Result], room: Room, monkeypatch: pytest.MonkeyPatch, away: tuple[str, ...], code: int,
    watch: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.setattr(command, "_pause", Interrupted())
    room.away = {*away}
    result = run(*watch)
    assert result.exit_code == code, result.output
    assert result.stdout.count("Serving at the virtual IP") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--watch", "soon"), "--watch soon: not a number of seconds"),
        (("--watch", "0"), "--watch 0: not a number of seconds"),
        (("--watch", "0.1"), "--watch 0.1: not a number of seconds\nhint: pass a number from 0.5 to 3600"),
        (("--watch", "nan"), "--watch nan: not a number of seconds"),
        (("--watch", "--images"), "--watch and --images are mutually exclusive"),
        (("--bundle", "x"), "--bundle needs --images"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_contacted(
    run: Callable[..., Result], room: Room, arguments: tuple[str, ...], words: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert room.connected == []


def test_help_tells_the_exit_codes(run: Callable[..., Result]) -> None:
    text = run("--help").stdout
    for line in ("0  healthy", "1  down: the registry is not serving", "4  no node is reachable", "5  degraded:"):
        assert line in text


def test_images_that_cannot_be_asked_for_hide_nothing_else(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise Error("no node has secrets", code="NotInstalled", hint="run init")

    monkeypatch.setattr(command.terminal, "registry", fails)
    result = run("--images", "-o", "json")
    found = json.loads(result.stdout)
    assert (found["conditions"][-1]["status"], found["conditions"][-1]["reason"]) == ("Unknown", "NotInstalled")
    assert [node["name"] for node in found["nodes"]] == [*NAMES]
    assert result.exit_code == 5

    def refuses(*_: object) -> None:
        raise ConfigError("no such bundle: x", code="BundleMissing", hint="check the path")

    monkeypatch.setattr(command.terminal, "registry", refuses)
    assert run("--images", "--bundle", "x").exit_code == 2


@pytest.mark.parametrize("frontend", ["zot", "distribution"])
def test_images_that_the_registry_cannot_read_count(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, frontend: str
) -> None:
    """The storage has lost a manifest, and with zot a list of tags; what they consisted of is not known."""
    spec = config.parse(f"{config.SMALLEST}  frontend: {{type: {frontend}}}\n", "x").spec
    registry = Repositories()
    registry.image("app", "v1")
    registry.store["app"].tags["lost"] = f"sha256:{64 * 'd'}"
    registry.image("db", "v1")
    registry.nameless.add("db")

    @contextmanager
    def opened(*_: object) -> Iterator[tuple[object, object, bool]]:
        yield SimpleNamespace(spec=spec, bundle=None), within(registry), False

    monkeypatch.setattr(command.terminal, "registry", opened)
    monkeypatch.setattr(presence, "look", lambda _, items: ([Presence(one.name, 5, {}, 3) for one in items], {}))
    result = run("--images", "-o", "json")
    found = json.loads(result.stdout)
    condition = found["conditions"][-1]
    assert (result.exit_code, condition["status"], condition["reason"]) == (5, "False", "ImagesUnreadable")
    assert found["unreadable"][0] == {"name": "app:lost", "reason": "is not in the registry"}
    names = "app:lost, db" if frontend == "zot" else "app:lost"
    assert condition["message"] == f"the registry cannot read {names}"


def test_images_are_shown_and_count(capsys: pytest.CaptureFixture[str]) -> None:
    found = cluster_status.judge(THREE, [well("cp-1", vip=True), well("cp-2"), well("cp-3")])
    whole = Presence("app", 15_000_000, dict.fromkeys(NAMES, 0), 3)
    partly = Presence("db", 15_000_000, {"cp-1": 0, "cp-3": 5_000_000}, 1)
    for there, code in (([whole], 0), ([whole, partly], 5), ([Presence("x", 0, {}, 0, lost=True)], 5)):
        conditions = [one for one in found["conditions"] if one["type"] != "ImagesComplete"]
        told = {**found, "images": [one.to_dict() for one in there]}
        told["conditions"] = [*conditions, presence.verdict(there, {}, 3)]
        assert command.exit_code(told) == code
        command.show(told)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["app", "15.0", "MB", "3", "yes", "yes", "yes"] in lines
    assert ["db", "15.0", "MB", "1", "yes", "-", "lacks", "5.0", "MB"] in lines
    assert ["x", "0.0", "MB", "lost", "-", "-", "-"] in lines
