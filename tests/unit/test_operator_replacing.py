"""The operator's round that replaces nodes, against helpers in memory: what it asks and tells, whatever ends it."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import config, pki
from kubeadm_registry.access import executor
from kubeadm_registry.access.executor import ByHelper, OnHost
from kubeadm_registry.access.replacing import Standing, Work
from kubeadm_registry.components import helper
from kubeadm_registry.components import replacing as components
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.custom_resources.status import ClusterStatus
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import ConfigError, ConnectionFailed
from kubeadm_registry.helper import replacing as answering
from kubeadm_registry.helper.__main__ import answered
from kubeadm_registry.members import PATH, Members
from kubeadm_registry.operator import probes, replacing
from kubeadm_registry.operator.figures import Figures
from kubeadm_registry.operator.probes import Probe
from kubeadm_registry.operator.replacement import HOST_KEY, SPARE
from kubeadm_registry.operator.rounds import Rounds
from kubeadm_registry.operator.way import Way
from kubeadm_registry.operator.work import Worker
from kubeadm_registry.phases.helper import allow
from kubeadm_registry.retention.order import Caller
from kubeadm_registry.transport.ssh import UNREACHABLE
from tests.unit.agent_sample import everything
from tests.unit.fake_cluster import host_key
from tests.unit.test_members import THREE, file
from tests.unit.test_replacing import KEYS, OPERATOR, Site, check_replaced, site  # noqa: F401  the fixture
from tests.unit.test_workflow import Recorder

NOW = 1_795_000_000.0
LONG_AGO = "2026-11-18T00:00:00Z"
PLANE = "node-role.kubernetes.io/control-plane"


class Stopped(Exception):
    """Stands for the end of the operator."""


@dataclass
class Objects:
    """The API server as far as the round asks it."""

    cluster: dict[str, Any]
    nodes: dict[str, dict[str, Any]]
    events: list[dict[str, Any]] = field(default_factory=list)
    patches: list[dict[str, Any]] = field(default_factory=list)

    def list(self, plural: str) -> list[dict[str, Any]]:
        return [json.loads(json.dumps(self.cluster))] if plural == "registryclusters" else []

    def get(self, path: str) -> dict[str, Any] | None:
        if path == f"/api/v1/nodes?labelSelector={PLANE}":
            return {"items": [one for one in self.nodes.values() if PLANE in one["metadata"]["labels"]]}
        return self.nodes.get(path.removeprefix("/api/v1/nodes/"))

    def merge(self, path: str, patch: dict[str, Any]) -> bool:
        assert path.endswith("/registryclusters/registry")
        assert patch["metadata"]["resourceVersion"] == self.cluster["metadata"]["resourceVersion"]
        self.patches.append(patch)
        self.edit(patch["spec"]["nodes"])
        return True

    def edit(self, nodes: list[dict[str, Any]]) -> None:
        """As `kubectl edit` does."""
        self.cluster["spec"]["nodes"] = nodes
        self.cluster["metadata"]["resourceVersion"] += "1"

    def create(self, _: str, event: dict[str, Any]) -> dict[str, Any]:
        self.events.append(event)
        return event

    def put_status(self, _: str, found: dict[str, Any], status: dict[str, Any]) -> bool:
        self.cluster["status"] = status
        return True

    def reasons(self) -> list[str]:
        """Of the Events about the replacement."""
        return [one["reason"] for one in self.events if ".replacement." in one["metadata"]["name"]]


def kube_node(name: str, at: str, *, ready: bool = True, spare: bool = False) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name, "creationTimestamp": LONG_AGO, "labels": {PLANE: "", **({SPARE: ""} if spare else {})},
            "annotations": {HOST_KEY: host_key(name)} if spare else {},
        },
        "status": {
            "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": at}],
            "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown", "lastTransitionTime": LONG_AGO}],
        },
    }  # fmt: skip


class Turns:
    """Rounds of an operator by the *site*, with a clock of the test's."""

    def __init__(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
        self.site, self.now, self.asked, self.stops = site, NOW, 0, -1
        document = site.fake.config.model_dump(by_alias=True, exclude_none=True, mode="json")
        meta = {"name": "registry", "uid": "u", "generation": 1, "resourceVersion": "1"}
        self.objects = Objects(
            {**document, "metadata": meta},
            {**{name: kube_node(name, at) for name, at in THREE.items()},
             "cp-4": kube_node("cp-4", "10.0.0.14", spare=True), "worker": kube_node("worker", "10.0.0.99")},
        )  # fmt: skip
        monkeypatch.setattr(Way, "node", lambda _, __, node: ByHelper(node.name, self.ask(node)))
        monkeypatch.setattr(probes, "agent", lambda *_: "no response")
        monkeypatch.setattr(probes, "probe", lambda *_: Probe("Unreachable", "no response"))
        self.off: dict[str, float] = {}
        """By node, how far its clock is ahead."""
        self.at = threading.local()  # nodes are asked side by side
        monkeypatch.setattr(time, "time", lambda: self.now + self.off.get(getattr(self.at, "node", ""), 0.0))
        monkeypatch.setattr(replacing, "APART", 0.0)
        self.rounds = self.replica()

    def replica(self) -> Rounds:
        """Another one that leads."""
        way = Way("ca", helper=(Path("key"), Path("hosts")))
        return Rounds(
            "here", self.objects, (None, None), lambda: way, Figures(), lambda: Caller("l", 1),  # type: ignore[arg-type]
            clock=lambda: self.now,
        )  # fmt: skip

    def ask(self, node: Node) -> Callable[[bytes, float], bytes]:
        def ask(content: bytes, _: float) -> bytes:
            if self.asked == self.stops:
                raise Stopped
            self.asked += 1
            if node.name in self.site.dead or node.name not in self.site.all:
                raise ConnectionFailed("no route to host", host=node.name, code=UNREACHABLE)
            server = self.site.all[node.name]
            if helper.SOCKET not in server.units:
                raise ConnectionFailed("permission denied", host=node.name, code="LoginRefused")
            server.answer("sh", "-c", executor._LOOK, "look", with_=f"---\n{self.now}\n{self.state(node.name)}")
            self.at.node = node.name
            try:
                return answered(content, OnHost(self.site.host(node.name)))
            finally:
                self.at.node = ""

        return ask

    def turn(self, name: str) -> None:
        """The unit of *name* works, by its clock."""
        self.at.node = name
        self.site.turn(name)
        self.at.node = ""

    def state(self, name: str) -> str:
        """What the agent of *name* says."""
        state: Any = everything()
        known: Members = answering.standing(self.site.host(name)).members  # type: ignore[assignment]
        peer = state["peers"]["b"]
        silent = {"presence": "silent", "age": self.now - NOW + 86400}
        state["peers"] = {
            other: {**peer, "presence": "fresh", "age": 0.1, **(silent if other in self.site.dead else {})}
            for other in known.nodes if other != name
        }  # fmt: skip
        state.update(
            name=name, time=self.now, level=0, conditions=[], members={"generation": known.generation, "digest": ""}
        )
        return json.dumps(state)

    def round(self, seconds: float = 0.0) -> str:
        """Some time later; the reason of the condition."""
        self.now += seconds
        self.rounds.replacement()
        found = self.objects.list("registryclusters")[0]
        self.rounds._write("registryclusters", found, list(self.rounds._found.values()), self.now)
        return next(one["reason"] for one in self.status["conditions"] if one["type"] == "NodesInPlace")

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.objects.cluster["status"]
        return found

    def swap(self) -> None:
        """Somebody puts cp-4 in the place of cp-2."""
        new = {"name": "cp-4", "address": "10.0.0.14", "hostKey": host_key("cp-4")}
        self.objects.edit([new if one["name"] == "cp-2" else one for one in self.objects.cluster["spec"]["nodes"]])

    def lose(self, name: str) -> None:
        """It is dead, since long."""
        self.site.dead = {name}
        self.objects.nodes[name] = kube_node(name, THREE[name], ready=False)
        gone = {"type": "Available", "status": "False", "lastTransitionTime": LONG_AGO}
        self.objects.cluster["status"] = {"nodes": [{"name": name, "health": [gone]}]}


@pytest.fixture
def turns(site: Site, monkeypatch: pytest.MonkeyPatch) -> Turns:  # noqa: F811
    return Turns(site, monkeypatch)


def mode(turns: Turns, value: str) -> None:
    turns.objects.cluster["spec"]["replacement"] = {"mode": value, "after": "30m"}


def running(turns: Turns) -> list[str]:
    return [name for name, state in turns.site.states.items() if state == "activating"]


@pytest.mark.parametrize("dead", [True, False], ids=["dead", "alive"])
def test_an_edit_is_carried_out_and_told_step_by_step(turns: Turns, dead: bool) -> None:
    assert turns.round() == "AllInPlace"
    assert "replacement" not in turns.status
    if dead:
        turns.lose("cp-2")
    turns.swap()
    assert turns.round(30) == "Replacing"
    assert running(turns) == ["cp-1"]
    report = turns.status["replacement"]
    assert (report["old"], report["new"], report["cause"], report["node"], report["result"]) == (
        "cp-2", "cp-4", "SpecChanged", "cp-1", "Running",
    )  # fmt: skip
    assert turns.round(30) == "Replacing"
    assert running(turns) == ["cp-1"]
    turns.site.turn("cp-1")
    assert turns.round(30) == "AllInPlace"
    report = turns.status["replacement"]
    assert report["result"] == "Done"
    assert report["step"] == "runbook"
    reasons = turns.objects.reasons()
    assert reasons[0] == "Begun"
    assert reasons[-1] == "Replaced"
    assert [one for one in reasons if one.startswith("Step")] == list(dict.fromkeys(reasons[1:-1]))
    assert {"StepArrive", "StepMove", "StepUninstall", "StepMembers", "StepSettle"} <= set(reasons)
    turns.round(30)
    assert turns.objects.reasons() == reasons, "each is told once"
    check_replaced(turns.site)
    assert ClusterStatus.model_validate(turns.status).replacement is not None


def test_a_node_that_is_gone_is_replaced_where_that_is_switched_on(turns: Turns) -> None:
    mode(turns, "Automatic")
    turns.lose("cp-2")
    assert turns.round(30) == "Replacing"
    assert running(turns) == []
    [patch] = turns.objects.patches
    assert [one["name"] for one in patch["spec"]["nodes"]] == ["cp-1", "cp-4", "cp-3"]
    assert config.from_object(turns.objects.cluster).spec.node("cp-4").host_key == host_key("cp-4")
    assert turns.objects.reasons() == ["NodeGone"]
    turns.rounds = turns.replica()  # the next one knows by the object
    assert turns.round(30) == "Replacing"
    turns.site.turn("cp-1")
    assert turns.round(30) == "AllInPlace"
    assert turns.status["replacement"]["cause"] == "NodeGone"
    check_replaced(turns.site)
    old = [{"name": name, "address": at, "hostKey": host_key(name)} for name, at in THREE.items()]
    turns.objects.edit(old)
    turns.site.dead = set()
    assert turns.round(30) == "Reverted", "an older file was applied again"
    assert running(turns) == []


def test_what_was_replaced_earlier_is_not_told_again(turns: Turns) -> None:
    """A node remembers what it did last: here, months before the operator writes the next one into the object."""
    earlier = Work("cp-9", "cp-2", NOW - 9e6, ("move/layout", "members"), "Write", NOW - 8.9e6)
    turns.site.all["cp-3"].put(components.WORK, components.WORKED.render(earlier.values()), 0o600)
    assert turns.round() == "AllInPlace"
    told = turns.objects.reasons()
    assert told == ["StepMove", "StepMembers", "Replaced"], "once, by an operator that has no record"
    assert turns.round() == "AllInPlace"
    assert turns.objects.reasons() == told
    mode(turns, "Automatic")
    report = turns.status["replacement"]
    turns.lose("cp-2")
    turns.objects.cluster["status"]["replacement"] = report
    turns.round(30)
    turns.rounds = turns.replica()
    state = turns.state
    turns.state = lambda name: state(name).replace('"level": 0', '"level": 2')  # type: ignore[method-assign]
    assert turns.round(30) == "NotWhole"
    assert (turns.status["replacement"]["new"], turns.status["replacement"]["cause"]) == ("cp-4", "NodeGone")
    assert turns.objects.reasons() == [*told, "NodeGone"]


@pytest.mark.parametrize(
    ("moment", "lasts", "expected"),
    [
        ({"level": 2}, 3, "Replacing"),
        ({"level": 2}, 99, "NotWhole"),
        ({"conditions": ["StorageCopying"], "storage_left": {"blocks": 1, "tables": 0}}, 3, "Replacing"),
        ({"conditions": ["StorageCopying"], "storage_left": {"blocks": 0, "tables": 1}}, 99, "NotWhole"),
        ({"conditions": ["StorageCopying"], "storage_left": {"blocks": 0, "tables": 0}}, 99, "Replacing"),
        ({"conditions": ["StorageCopying"], "storage_left": None}, 99, "NotWhole"),
    ],
    ids=["busy", "unwell", "pushed-to", "copying", "pushed-to-all-the-time", "not-known"],
)
def test_what_pushes_and_load_do_for_a_moment_is_looked_past(
    turns: Turns, monkeypatch: pytest.MonkeyPatch, moment: dict[str, Any], lasts: int, expected: str
) -> None:
    turns.swap()
    whole, looks = turns.state, itertools.count()

    def state(name: str) -> str:
        ill = name == "cp-3" and next(looks) < lasts
        return json.dumps({**json.loads(whole(name)), **(moment if ill else {})})

    monkeypatch.setattr(turns, "state", state)
    assert turns.round() == expected


def test_it_is_only_proposed_by_default(turns: Turns) -> None:
    turns.lose("cp-2")
    assert turns.round(30) == "Proposed"
    [condition] = [one for one in turns.status["conditions"] if one["type"] == "NodesInPlace"]
    assert host_key("cp-4") in condition["message"]
    assert not turns.objects.patches
    assert not running(turns)


@pytest.mark.parametrize("status", ["True", "Unknown"])
def test_a_node_that_is_restarted_after_hours_of_maintenance_is_not_gone(turns: Turns, status: str) -> None:
    """Its services and its kubelet were stopped all the time, and its helper answered until a minute ago."""
    mode(turns, "Automatic")
    assert turns.round() == "AllInPlace"
    turns.lose("cp-2")
    nodes = turns.status["nodes"]
    turns.site.dead = set()
    assert turns.round(30) == "AllInPlace"
    turns.site.dead = {"cp-2"}
    placed = {"type": "NodesInPlace", "status": status, "lastTransitionTime": LONG_AGO, "reason": "x", "message": "x"}
    turns.status["conditions"] = [placed]
    for seconds, expected in ((60, "GoneForAWhile"), (1700, "GoneForAWhile"), (120, "Replacing")):
        turns.status["nodes"] = nodes
        turns.rounds = turns.replica()
        assert turns.round(seconds) == expected


@pytest.mark.parametrize("alive", ["helper", "agent", "registry", "kubelet", "peers"])
def test_a_node_that_anybody_hears_is_not_gone(turns: Turns, monkeypatch: pytest.MonkeyPatch, alive: str) -> None:
    mode(turns, "Automatic")
    turns.lose("cp-2")
    expected = "AllInPlace"
    if alive == "helper":
        turns.site.dead = set()
    elif alive == "agent":
        monkeypatch.setattr(probes, "agent", lambda _, at: probes.Agent() if at == "10.0.0.12" else "no response")
    elif alive == "registry":
        monkeypatch.setattr(probes, "probe", lambda _, at: Probe() if at == "10.0.0.12" else Probe("Unreachable", ""))
    elif alive == "kubelet":
        turns.objects.nodes["cp-2"] = kube_node("cp-2", "10.0.0.12")
        expected = "NodeReady"
    else:
        monkeypatch.setattr(turns, "state", lambda name, found=turns.state: found(name).replace('"silent"', '"gone"'))
        expected = "HeardByAgents"
    assert turns.round(30) == expected
    assert not turns.objects.patches


def test_a_failure_is_told_and_tried_again_by_another_member(turns: Turns) -> None:
    turns.lose("cp-2")
    turns.swap()
    turns.site.all["cp-3"].holder = "root@workstation pid 7"
    turns.round(30)
    turns.site.turn("cp-1")
    assert turns.round(30) == "HostBusy"
    assert turns.status["replacement"]["result"] == "Failed"
    assert "locked by another run" in turns.status["replacement"]["message"]
    assert turns.objects.reasons()[-1] == "HostBusy"
    assert turns.round(300) == "HostBusy"
    assert running(turns) == []
    turns.site.all["cp-3"].holder = None
    assert turns.round(300) == "Replacing"
    assert running(turns) == ["cp-3"]
    turns.site.turn("cp-3")
    assert turns.round(30) == "AllInPlace"
    check_replaced(turns.site)


def test_a_machine_that_somebody_put_there_meanwhile_is_not_replaced(turns: Turns) -> None:
    """By the command, after the operator's own spare had failed; the object still lists that one."""
    mode(turns, "Automatic")
    turns.lose("cp-2")
    assert turns.round(30) == "Replacing"
    turns.site.all["cp-3"].holder = "root@workstation pid 7"
    assert turns.round(30) == "Replacing"
    turns.site.turn("cp-1")
    assert turns.round(30) == "HostBusy"
    turns.site.all["cp-3"].holder = None
    nodes = {"cp-1": "10.0.0.11", "cp-3": "10.0.0.13", "cp-5": "10.0.0.15"}
    other = Members(2, nodes, former={"cp-2": "10.0.0.12"}).render()
    turns.site.all["cp-5"] = turns.site.all["cp-4"]
    for name in nodes:
        turns.site.all[name].put(PATH, other)
    turns.rounds = turns.replica()
    assert turns.round(3600) == "Reverted"
    assert running(turns) == []


@pytest.mark.parametrize("size", [100, 4000, 5000, 100_000])
def test_a_failed_command_that_said_much_is_told_in_a_status_that_the_api_server_takes(turns: Turns, size: int) -> None:
    """One that it refused would be refused with all conditions, until another node is replaced."""
    error = {"message": f"garage failed: {'x' * size} disk full", "code": "CommandFailed", "hint": "see the journal"}
    failed = Work("cp-2", "cp-4", NOW - 90, ("move/layout",), "Move", NOW - 60, error)
    turns.site.all["cp-1"].put(components.WORK, components.WORKED.render(failed.values()), 0o600)
    turns.round()
    found = ClusterStatus.model_validate_json(json.dumps(turns.status)).replacement
    assert found is not None and found.message is not None
    assert found.message.startswith("garage failed: ")
    assert found.message.endswith("disk full; see the journal")


def test_a_failure_without_advice_is_told_without_gaps(turns: Turns) -> None:
    error = {"message": "garage failed", "code": "PhaseFailed", "hint": ""}
    failed = Work("cp-2", "cp-4", NOW - 90, ("move/layout",), "Move", NOW - 60, error)
    turns.site.all["cp-1"].put(components.WORK, components.WORKED.render(failed.values()), 0o600)
    turns.swap()
    assert turns.round() == "PhaseFailed"
    [condition] = [one for one in turns.status["conditions"] if one["type"] == "NodesInPlace"]
    assert condition["message"] == (
        "cp-4 did not take the place of cp-2, by cp-1: garage failed; it is retried"
    )  # fmt: skip
    assert turns.status["replacement"]["message"] == "garage failed"


def test_a_unit_that_somebody_started_by_hand_is_no_replacement(turns: Turns) -> None:
    """Where nothing was asked for it fails, and its record names no nodes."""
    turns.turn("cp-1")
    assert json.loads(turns.site.all["cp-1"].content(components.WORK))["error"]["code"] == "RequestDamaged"
    assert turns.round() == "AllInPlace"
    assert "replacement" not in turns.status
    assert not turns.objects.reasons()
    turns.swap()
    assert turns.round(30) == "Replacing"


@pytest.mark.parametrize("off", [86400.0, -86400.0], ids=["ahead", "behind"])
def test_a_node_whose_clock_is_off_decides_nothing(turns: Turns, off: float) -> None:
    """Neither when it is tried again, nor whose work is the last one."""
    turns.off["cp-1"] = off
    turns.lose("cp-2")
    turns.swap()
    turns.site.all["cp-3"].holder = "root@workstation pid 7"
    turns.round(30)
    began = turns.status["replacement"]["began"]
    turns.turn("cp-1")
    assert turns.round(30) == "HostBusy"
    assert turns.status["replacement"]["began"] == began
    assert turns.round(300) == "HostBusy"
    reasons = turns.objects.reasons()
    assert reasons.count("HostBusy") == 1
    turns.site.all["cp-3"].holder = None
    assert turns.round(300) == "Replacing"
    assert running(turns) == ["cp-3"]
    assert turns.round(30) == "Replacing"
    assert turns.status["replacement"]["node"] == "cp-3"
    turns.turn("cp-3")
    assert turns.round(30) == "AllInPlace"
    report = turns.status["replacement"]
    assert (report["node"], report["result"]) == ("cp-3", "Done")
    assert turns.objects.reasons().count("Replaced") == 1


def test_a_helper_that_does_not_tell_its_clock_is_believed(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of an earlier release."""
    told = Standing.values
    monkeypatch.setattr(Standing, "values", lambda one: {k: v for k, v in told(one).items() if k != "clock"})
    turns.swap()
    assert turns.round(30) == "Replacing"
    turns.turn("cp-1")
    assert turns.round(30) == "AllInPlace"


def test_nothing_is_asked_of_nodes_that_may_not(turns: Turns) -> None:
    run(allow(OPERATOR), turns.site.fake.cluster, Recorder())
    turns.swap()
    assert turns.round(30) == "ReplacingForbidden"
    assert not running(turns)


def test_an_operator_that_ends_anywhere_is_followed_by_one_that_completes(turns: Turns) -> None:
    """And the node's own work may end at any time as well."""
    turns.lose("cp-2")
    turns.swap()
    for stops in itertools.count():
        turns.stops, turns.asked = stops, 0
        turns.rounds = turns.replica()
        try:
            turns.round(30)
        except Stopped:
            continue
        break
    assert stops > 5
    assert running(turns) == ["cp-1"]
    turns.site.states.clear()  # its unit was killed, and left nothing but what it had begun
    turns.stops = -1
    assert turns.round(30) == "Replacing"
    first = running(turns)
    assert len(first) == 1
    turns.site.turn(first[0])
    assert turns.round(30) == "AllInPlace"
    check_replaced(turns.site)


def test_work_that_is_killed_each_time_goes_round_and_is_told(turns: Turns) -> None:
    """As where memory is short: its unit is what the kernel ends first."""
    turns.swap()
    assert turns.round(30) == "Replacing"
    begun = []
    for expected in ("Replacing", "ReplacingEnded", "ReplacingEnded"):
        begun += running(turns)
        turns.site.states.clear()
        assert turns.round(30) == expected
    assert begun == ["cp-1", "cp-3"]
    [condition] = [one for one in turns.status["conditions"] if one["type"] == "NodesInPlace"]
    assert "see `journalctl -u kubeadm-registry-replace.service` on cp-1, cp-3" in condition["message"]
    assert turns.status["replacement"]["result"] == "Ended"
    assert turns.objects.reasons() == ["Begun", "ReplacingEnded", "Begun", "ReplacingEnded"]
    assert turns.round(600) == "Replacing"
    turns.site.turn(running(turns)[0])
    assert turns.round(30) == "AllInPlace"
    check_replaced(turns.site)


def test_a_node_whose_helper_cannot_be_asked_is_named_with_the_reason(turns: Turns) -> None:
    """As one that the operator put there, when its hostKey is no longer in the object."""
    ask = turns.ask

    def unknown(node: Node) -> Callable[[bytes, float], bytes]:
        def refuse(_: bytes, __: float) -> bytes:
            raise ConnectionFailed("its host key is unknown", host="cp-3", code="HostKeyUnknown", hint="add the key")

        return refuse if node.name == "cp-3" else ask(node)

    turns.ask = unknown  # type: ignore[method-assign]
    turns.swap()
    assert turns.round(30) == "AgentsSilent"
    [condition] = [one for one in turns.status["conditions"] if one["type"] == "NodesInPlace"]
    assert condition["message"] == "the agent of cp-3 reports nothing: its host key is unknown; add the key"
    turns.objects.edit([{"name": name, "address": at} for name, at in THREE.items()])
    turns.lose("cp-2")
    assert turns.round(30) == "AgentsSilent"
    [condition] = [one for one in turns.status["conditions"] if one["type"] == "NodesInPlace"]
    assert condition["message"].endswith("whether they hear it (cp-3: its host key is unknown; add the key)")


def test_two_operators_begin_one_replacement(turns: Turns) -> None:
    turns.lose("cp-2")
    turns.swap()
    other = turns.replica()
    turns.round(30)
    turns.rounds, first = other, turns.rounds
    assert turns.round(1) == "Replacing"
    turns.rounds = first
    assert turns.round(1) == "Replacing"
    assert running(turns) == ["cp-1"]
    assert turns.objects.reasons().count("Begun") == 1


def test_without_a_key_for_the_nodes_there_is_no_round(turns: Turns) -> None:
    turns.rounds.the_way = lambda: Way("ca")
    turns.rounds.replacement()
    assert not turns.rounds._found
    assert turns.asked == 0


def test_without_a_key_nothing_is_said_that_nobody_looks_at(turns: Turns) -> None:
    """As after `operator install --plan-only`: a node may go, and all would seem to be in place for ever."""
    assert turns.round() == "AllInPlace"
    asked, way, turns.rounds.the_way = turns.asked, turns.rounds.the_way, lambda: Way("ca")
    assert turns.round(30) == "NoHelper"
    turns.rounds.the_way = way
    assert (turns.asked, turns.round(30)) == (asked, "AllInPlace")


@pytest.mark.parametrize("kind", ["credentials", "bug"])
def test_a_round_that_fails_leaves_no_condition_of_before(turns: Turns, kind: str) -> None:
    assert turns.round() == "AllInPlace"

    def fails() -> Way:
        if kind == "bug":
            raise KeyError("x")
        raise ConfigError("there is no ca.crt", code="NoCredentials")

    turns.rounds.the_way = fails
    failed = partial(turns.rounds.failed, replacing.KIND)
    assert not Worker("replacement", turns.rounds.replacement, 30, Figures(), failed)._once()
    found = turns.rounds._found[replacing.KIND]
    assert (found.status, found.reason) == (None, "OperatorFailed" if kind == "bug" else "NoCredentials")


def test_a_new_node_is_known_by_its_host_key() -> None:
    spec: RegistryCluster = config.parse(file(THREE), "x")
    found = Way("ca", helper=(Path("key"), Path("hosts"))).node(spec, Node(name="cp-4", address="10.0.0.14",
                                                                          host_key=host_key("cp-4")))  # fmt: skip
    assert found is not None
    target = found.ask.args[0]  # type: ignore[attr-defined]
    assert (target.host_key, target.user) == (host_key("cp-4"), helper.USER)


def test_new_keys_take_the_place_of_the_old_ones(turns: Turns) -> None:
    cluster, public, private = turns.site.fake.cluster, "ssh-ed25519 AAAANewOperator", pki.ssh_key()[0]
    run(allow(public, private), cluster, Recorder())
    assert components.key_of(cluster) == private
    line = components.line(cluster, pki.ssh_key(private)[1])
    for name in THREE:
        server = turns.site.all[name]
        assert OPERATOR.encode() not in server.content(helper.KEYS)
        assert public.encode() in server.content(helper.KEYS)
        ours = [one for one in server.content(KEYS).decode().splitlines() if one.endswith("replacing")]
        assert ours == [line]
