"""A planned move of the VIP: what is refused, in which order it goes, and what a run that dies leaves behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import paths
from kubeadm_registry.addresses import prefix
from kubeadm_registry.agent import gap, reopen
from kubeadm_registry.agent import moving as request
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import drain, garage, handover, health
from kubeadm_registry.components.handover import MEASURED, PASS, STAY, Route
from kubeadm_registry.engine.render import render
from kubeadm_registry.errors import ConfigError, Error, HostBusy, PhaseFailed
from kubeadm_registry.phases import moves, vip_move
from kubeadm_registry.phases.vip_move import Move, Standing
from kubeadm_registry.secrets import Vault
from kubeadm_registry.transport import host_python
from tests.unit.fake_cluster import FakeCluster, fixed_secrets
from tests.unit.fakes import FakeTransport
from tests.unit.test_workflow import Recorder

GOLDEN = Path(__file__).parents[1] / "golden"
ZOT = (GOLDEN / "ipv4-zot" / "cluster.yaml").read_text()
NAMES = ("cp-1", "cp-2", "cp-3")


def said(name: str, **changes: Any) -> dict[str, Any]:
    """What a healthy agent says."""
    state = {
        "name": name, "time": 1000.0, "level": 0, "fit": True, "good": True, "conditions": [],
        "vip": {"addresses": ["10.0.0.10"], "held": False, "moves_to": None}, "quorum": {"storage": 3, "heard": 3},
        "writer": {"mode": "single", "role": "standby"}, "peers": {},
    }  # fmt: skip
    return state | changes


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A workflow that moves the VIP waits for nobody."""
    plan = vip_move.plan

    def planned(cluster: Cluster, **options: Any) -> Move:
        made = plan(cluster, **{**options, "patience": 0.0})
        made.reads, made.drain_seconds = lambda *_: None, 0.0
        return made

    monkeypatch.setattr(vip_move, "plan", planned)
    monkeypatch.setattr(vip_move, "ARRIVAL", 0.2)
    monkeypatch.setattr(drain, "LONG", 0.0)
    monkeypatch.setattr(drain, "SHORT", 0.0)


@dataclass
class World:
    """Three nodes; the agents do what the file asks them, and the VIP moves once the holder is asked."""

    fake: FakeCluster = field(default_factory=lambda: FakeCluster.of(ZOT))
    holder: str = "cp-1"
    agents: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    tables: set[tuple[str, str]] = field(default_factory=set)
    clients: dict[str, int] = field(default_factory=dict)
    """Connections to the VIP that a node serves."""
    story: list[str] = field(default_factory=list)
    stuck: bool = False
    """The agents read what they are asked for, and the VIP stays."""

    def __post_init__(self) -> None:
        for name, server in self.fake.servers.items():
            self._furnish(name, server)

    def move(self, **options: Any) -> Move:
        hosts = self.fake.cluster_hosts()
        vault = Vault("registry", list(NAMES), {"": fixed_secrets(NAMES).found})
        cluster = replace(self.fake.cluster, hosts=hosts, vault=vault)
        made = vip_move.plan(cluster, **{"patience": 0.0, **options})
        made.reads = lambda cluster, address, host: None
        return made

    def carry_out(self, one: Move, **options: Any) -> moves.Moved:
        return moves.move(one, Recorder(), wait=0.0, **options)

    def _furnish(self, name: str, server: FakeTransport) -> None:
        def tell(*words: str, with_: Callable[[tuple[str, ...], bytes], Any], act: str = "") -> None:
            server.answer("sh", "-c", *words, with_=with_, act=act)

        vip = self.fake.config.spec.vip.address
        server.answer(
            "ip", "-oneline", "address", "show", "-tentative", "to", prefix(vip),
            with_=lambda *_: "there" if self.holder == name else "",
        )  # fmt: skip
        tell(health._STATE, with_=lambda *_: f"1000.5\n{json.dumps(self._state(name))}")
        tell(handover._ASK, with_=lambda argv, _: self._ask(name, argv), act="ask")
        server.answer("rm", "-f", "--", paths.MOVE, with_=lambda *_: self._withdraw(name, server))
        tell(handover._BEGIN, with_=lambda _, rules: self._begin(name, rules.decode()), act="begin")
        tell(handover._UNPASS, with_=lambda *_: self._unpass(name), act="pass nothing on")
        tell(handover._FORGET, with_=lambda *_: self._end(name))
        for table in (STAY, PASS):
            server.answer("nft", "list", "table", "ip", table, with_=lambda argv, _: self._list(name, argv[-1]))
        server.answer("ss", with_=lambda *_: self._clients(name))
        server.answer(*host_python.command(reopen), with_=lambda argv, _: self._reopen(name, argv[6]))
        tell(handover._BACKGROUND, with_=lambda argv, _: self._measure(name, argv, server))
        server.answer("rm", "-f", "--", MEASURED, with_=lambda *_: self._forget(server))

    def _state(self, name: str) -> dict[str, Any]:
        state = said(name) | self.agents.get(name, {})
        state["vip"] = {**state["vip"], "moves_to": self.asked.get(name), "held": self.holder == name}
        state["writer"] = {"mode": "single", "role": "writer" if self.holder == name else "standby"}
        return state

    def _ask(self, name: str, argv: tuple[str, ...]) -> int:
        _, _, _, _, path, target, seconds, _, yields = argv
        assert yields == "false"
        assert path == paths.MOVE
        assert float(seconds) <= request.LONGEST
        self.story.append(f"ask {name}")
        self.asked[name] = target
        self.fake.servers[name].put(path, json.dumps({"to": target, "until": 1}))
        if name == self.holder and not self.stuck:
            others = {one for one in NAMES if one not in (name, target)}
            assert all(self.asked.get(one) == target for one in others), "another one could win"
            assert {(name, STAY), (target, PASS)} <= self.tables, "clients would be cut off"
            self.holder = target
        return 0

    def _withdraw(self, name: str, server: FakeTransport) -> int:
        self.asked.pop(name, None)
        server.tree.pop(paths.MOVE, None)
        return 0

    def _measure(self, name: str, argv: tuple[str, ...], server: FakeTransport) -> int:
        assert argv[4:10] == (MEASURED, *host_python.command(gap)[:5])
        assert name in self.asked and self.holder not in self.asked, (
            "it begins while the file is there, before the move"
        )
        server.put(MEASURED, '{"gap": 0.08}')
        return 0

    def _forget(self, server: FakeTransport) -> int:
        server.tree.pop(MEASURED, None)
        return 0

    def _begin(self, name: str, rules: str) -> int:
        self.tables.add((name, PASS if PASS in rules else STAY))
        return 0

    def _unpass(self, name: str) -> int:
        assert self.holder != name, "it knows where all belongs"
        self.tables.discard((name, PASS))
        return 0

    def _end(self, name: str) -> int:
        self.tables -= {(name, STAY), (name, PASS)}
        self.story.append(f"end {name}")
        return 0

    def _list(self, name: str, table: str) -> str | int:
        return "  dup to 10.0.0.11 device\n" if (name, table) in self.tables else 1

    def _clients(self, name: str) -> str:
        # What both nodes pull themselves is connected anew, and nothing reaches these ends any more.
        own = "0 77 10.0.0.10:5000 10.0.0.10:3999\n"
        if name == "cp-1" != self.holder:
            own += f"0 77 10.0.0.10:5000 10.0.0.1{self.holder[-1]}:3998\n"
        return own + "".join(f"0 0 10.0.0.10:5000 10.0.0.9:{4000 + one}\n" for one in range(self.clients.get(name, 0)))

    def _reopen(self, name: str, verb: str) -> str:
        self.story.append(f"{verb} {name}")
        return '{"ended": 1, "trouble": []}'

    def expire(self) -> None:
        """The requests end by themselves."""
        for name, server in self.fake.servers.items():
            self._withdraw(name, server)


@pytest.fixture
def world() -> World:
    return World()


# ---- which node ----------------------------------------------------------------------------------------------------


def standing(**changes: dict[str, Any] | None) -> Standing:
    """All is well, but for *changes* by node, with ``_`` for the dash; None: it does not report."""
    agents: dict[str, Any] = {name: said(name) for name in NAMES}
    for name, change in changes.items():
        key = name.replace("_", "-")
        agents[key] = None if change is None else agents[key] | change
    return Standing(("cp-1",), agents)


def test_the_first_other_node_is_taken_that_is_healthy() -> None:
    assert vip_move.choose(standing(), NAMES, "cp-1", None) == "cp-2"
    assert vip_move.choose(standing(cp_2={"level": 2}), NAMES, "cp-1", None) == "cp-3"
    assert vip_move.choose(standing(), NAMES, "cp-2", None) == "cp-1"
    assert vip_move.choose(standing(), NAMES, "cp-1", "cp-3") == "cp-3"


@pytest.mark.parametrize(
    "flaw",
    [
        None,
        {"level": 1},
        {"fit": False},
        {"good": False},
        {"conditions": ["ProxyPartial"]},
        {"conditions": ["ClockOff"]},
    ],
)  # fmt: skip
def test_a_node_that_is_not_fit_does_not_get_the_vip(flaw: dict[str, Any] | None) -> None:
    for wanted in ("cp-2", None):
        with pytest.raises(Error) as caught:
            vip_move.choose(standing(cp_2=flaw, cp_3={"level": 1}), NAMES, "cp-1", wanted)
        assert caught.value.code == "NodeUnfit"
        assert "cp-2" in caught.value.message


def test_where_the_vip_is_it_may_stay_whatever_is_wrong_there() -> None:
    assert vip_move.choose(standing(cp_1={"level": 1}), NAMES, "cp-1", "cp-1") == "cp-1"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cp_3": None}, "cp-3 does not report"),
        ({"cp_3": {"level": 2}}, "cp-3 is not healthy"),
        ({"cp_2": {"quorum": {"storage": 2, "heard": 3}}}, "cp-2 reaches 2 of 3"),
        ({"cp_1": {"conditions": ["StorageCopying"]}}, "cp-1 is still copying"),
    ],
)
def test_what_leaves_no_redundancy_is_named(changes: dict[str, Any], told: str) -> None:
    assert list(vip_move.wanting(standing(), NAMES)) == []
    [obstacle] = vip_move.wanting(standing(**changes), NAMES)
    assert told in obstacle


def test_a_slow_node_serves_nevertheless_so_another_may_be_lost() -> None:
    slow = {"level": 1, "good": False, "conditions": ["ChainSlow"]}
    assert list(vip_move.wanting(standing(cp_3=slow), NAMES)) == []
    assert vip_move.choose(standing(cp_3=slow), NAMES, "cp-1", None) == "cp-2"
    for worse in ({"fit": False}, {"level": 2}, {"conditions": ["ChainSlow", "ClockOff"]}, {"conditions": []}):
        [obstacle] = vip_move.wanting(standing(cp_3={**slow, **worse}), NAMES)
        assert "cp-3 is not healthy" in obstacle
    with pytest.raises(Error):
        vip_move.choose(standing(cp_3=slow), NAMES, "cp-1", "cp-3")


# ---- refused -------------------------------------------------------------------------------------------------------


def test_a_name_that_is_none_and_a_single_node_are_refused_before_anything_is_contacted() -> None:
    for nodes, name, code in ((NAMES, "cp-9", "NodeUnknown"), (("cp-1",), None, "OneNode")):
        with pytest.raises(ConfigError) as caught:
            vip_move.require_name(nodes, name)
        assert caught.value.code == code


def test_nothing_moves_while_no_node_may_be_lost_unless_that_is_wanted(world: World) -> None:
    world.agents["cp-3"] = {"conditions": ["StorageCopying"]}
    with pytest.raises(Error) as caught:
        world.move(wanted="cp-2")
    assert caught.value.code == "NotRedundant"
    assert not world.fake.acts()
    world.carry_out(world.move(wanted="cp-2", degraded=True))
    assert world.holder == "cp-2"


@pytest.mark.parametrize("somewhere", [0, 1])
def test_blocks_that_no_node_has_do_not_keep_the_vip_where_it_is(world: World, somewhere: int) -> None:
    """A copy that exists is waited for."""
    for server in world.fake.servers.values():
        server.unit(garage.UNIT).active = "active"
    world.fake.garage.failed, world.fake.garage.somewhere = 2, somewhere
    left = {"storage_left": {"blocks": 2, "tables": 0}, "storage_queues": {"errors": 2}}
    world.agents["cp-3"] = {"conditions": ["StorageCopying"], **left}
    if somewhere:
        with pytest.raises(Error, match="cp-3 is still copying"):
            world.move(wanted="cp-2")
    else:
        assert world.move(wanted="cp-2").target == "cp-2"


def test_a_node_that_has_yet_to_compare_tables_is_waited_for_beside_blocks_that_are_lost(world: World) -> None:
    for server in world.fake.servers.values():
        server.unit(garage.UNIT).active = "active"
    world.fake.garage.failed = 2
    lost = {"storage_left": {"blocks": 2, "tables": 0}, "storage_queues": {"errors": 2}}
    world.agents["cp-2"] = {"conditions": ["StorageCopying"], **lost}
    world.agents["cp-3"] = {"conditions": ["StorageCopying"], **lost, "storage_left": {"blocks": 2, "tables": 1}}
    with pytest.raises(Error, match="cp-3 is still copying"):
        world.move(wanted="cp-2")


def test_a_node_that_is_late_for_a_moment_gets_the_vip(world: World) -> None:
    """A busy one; who asks for a move waits a little."""
    world.agents["cp-2"] = {"conditions": ["ProxyPartial"]}
    threading.Timer(0.7, world.agents.clear).start()
    assert world.move(wanted="cp-2", patience=10.0).target == "cp-2"


def test_without_one_holder_nothing_moves(world: World) -> None:
    world.holder = "nobody"
    with pytest.raises(Error) as caught:
        world.move()
    assert caught.value.code == "VipUnclear"


# ---- the move ------------------------------------------------------------------------------------------------------


def test_others_are_asked_before_the_holder_and_connections_are_kept(world: World) -> None:
    done = world.carry_out(world.move(wanted="cp-3"))
    assert world.holder == "cp-3"
    assert [line for line in world.story if line.startswith("ask")] == ["ask cp-2", "ask cp-1"]
    assert {"own cp-1", "own cp-3"} <= set(world.story)
    assert "own cp-2" not in world.story
    assert done.gap == 0.08
    assert not done.left
    assert not world.asked, "nobody is asked any longer"
    assert not world.tables, "nobody needs them any more"


def test_what_still_goes_on_at_the_old_holder_is_told_and_kept(world: World) -> None:
    one = world.move(wanted="cp-2")
    world.clients["cp-1"] = 3
    done = world.carry_out(one)
    assert done.left == ["10.0.0.9 port 4000", "10.0.0.9 port 4001", "10.0.0.9 port 4002"]
    assert "idle cp-1" in world.story
    assert world.tables == {("cp-1", STAY), ("cp-2", PASS)}
    assert not world.asked


def test_what_the_new_holder_serves_already_is_its_own(world: World) -> None:
    """The VIP comes back to a node that still has clients of before."""
    world.clients["cp-2"] = 2
    server = world.fake.servers["cp-2"]
    world.carry_out(world.move(wanted="cp-2"))
    [rules] = [one.stdin.decode() for one in server.log if one.argv[2:3] == (handover._BEGIN,)]
    assert "elements = { 10.0.0.9 . 4000, 10.0.0.9 . 4001 }" in rules
    assert 'dup to 10.0.0.11 device "eth0"' in rules


def test_connections_of_an_earlier_holder_go_straight_there(world: World) -> None:
    """The VIP was at cp-3, then came to cp-1, which passed on to cp-3."""
    world.tables.add(("cp-1", PASS))
    world.clients["cp-3"] = 2
    world.carry_out(world.move(wanted="cp-2"))
    [rules] = [one.stdin.decode() for one in world.fake.servers["cp-2"].log if one.argv[2:3] == (handover._BEGIN,)]
    assert "{ 10.0.0.9 . 4000, 10.0.0.9 . 4001 } dup to 10.0.0.13 device" in rules
    assert ("cp-1", PASS) not in world.tables
    assert ("cp-2", PASS) in world.tables


def test_where_the_vip_is_already_nothing_is_done(world: World) -> None:
    done = world.carry_out(world.move(wanted="cp-1"))
    assert done.changed == 0
    assert not world.fake.acts()


def test_a_dry_run_tells_and_does_nothing(world: World) -> None:
    one = world.move(wanted="cp-2")
    done = moves.move(one, Recorder(), dry_run=True)
    assert done.changed > 3
    assert not world.fake.acts()
    assert world.holder == "cp-1"


def test_a_vip_that_stays_is_told_and_asked_for_no_longer(world: World) -> None:
    world.stuck = True
    one = world.move(wanted="cp-2")
    one.drain_seconds = 0.5 - vip_move.ARRIVAL
    with pytest.raises(Error) as caught:
        world.carry_out(one)
    assert caught.value.code == "VipNotMoved"
    assert not world.asked


def test_what_another_run_asked_for_is_not_withdrawn(world: World) -> None:
    one = world.move(wanted="cp-2")
    world.asked = dict.fromkeys(("cp-1", "cp-2"), "cp-3")
    world.fake.servers["cp-2"].holder = "colleague@desk pid 7"
    with pytest.raises(HostBusy):
        world.carry_out(one)
    assert world.asked == dict.fromkeys(("cp-1", "cp-2"), "cp-3")
    assert not world.fake.acts()


def test_a_run_that_dies_anywhere_leaves_nothing_for_good_and_the_next_one_completes_it() -> None:
    counted = World()
    counted.carry_out(counted.move(wanted="cp-3"))
    acts = {name: len(server.acts) for name, server in counted.fake.servers.items()}
    assert sum(acts.values()) == 4
    for name, count in acts.items():
        for place in range(count):
            world = World()
            one = world.move(wanted="cp-3")
            world.fake.servers[name].cut_at = place
            with pytest.raises(PhaseFailed):
                world.carry_out(one)
            world.expire()
            world.carry_out(world.move(wanted="cp-3"))
            assert world.holder == "cp-3"
            assert not world.asked


def test_what_passes_is_waited_for_and_told(world: World) -> None:
    world.agents["cp-3"] = {"conditions": ["StorageCopying"]}
    told: list[str] = []

    def note(text: str) -> None:
        told.append(text)
        world.agents.clear()

    world.carry_out(world.move(wanted="cp-2", patience=5.0, note=note))
    assert told == ["no node may be lost now: cp-3 is still copying what it missed; waiting up to 5 s"]
    assert world.holder == "cp-2"


# ---- the rules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vip", "gateway"), [("10.0.0.10", "10.0.0.11"), ("fd00::10", "fd00::11")])
def test_the_kernel_takes_the_rules(vip: str, gateway: str) -> None:
    if shutil.which("nft", path="/usr/sbin:/usr/bin:/sbin") is None:
        pytest.skip("there is no nft")
    client = f"{gateway} . 4000"
    route = Route(vip, gateway, "lo", [client], {gateway: [client]})
    both = [
        render("handover/pass.nft.j2", routes=[route], table=PASS, port=5000, seconds=60),
        render("handover/stay.nft.j2", vips=[vip], table=STAY, port=5000, mark=handover.MARK),
    ]
    for rules in both:
        done = subprocess.run(
            ["unshare", "--map-root-user", "--net", "nft", "-f", "-"], input=rules, capture_output=True, check=False
        )
        if b"unshare failed" in done.stderr:
            pytest.skip("this user may have no network of its own")
        assert done.returncode == 0, done.stderr.decode()
