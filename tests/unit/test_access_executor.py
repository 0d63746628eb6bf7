"""An order is started on the node that holds the lease, waited for and ended, by what the nodes say.

Both by root, as commands do, and by the nodes' helpers, as the operator does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import paths
from kubeadm_registry.access import executor, questions
from kubeadm_registry.access.executor import ByHelper, Node, OnHost, Outcome
from kubeadm_registry.components import retention
from kubeadm_registry.components.executor_files import RESULT, order_path, result_path
from kubeadm_registry.errors import Error
from kubeadm_registry.helper.__main__ import answered
from kubeadm_registry.retention.order import Order
from kubeadm_registry.transport.host import Host
from tests.unit.fake_cluster import FakeCluster
from tests.unit.fakes import FakeTransport
from tests.unit.here import here, stub

CONTENT = Order(1000).to_json()
ORDER, OTHER = hashlib.sha256(CONTENT).hexdigest(), "f" * 64
UNIT = retention.unit(ORDER)
NOW = 1000.0


@dataclass
class Executor:
    """One node's systemd and agent as far as an order needs them. *looks* is how often a run is seen before it ends."""

    server: FakeTransport
    role: str | None = "standby"
    term: int = 0
    written: float = NOW - 0.5
    looks: int = 2
    status: int = 0
    result: str = "success"
    says: dict[str, Any] | None = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=dict)
    """Looks that are left, by unit."""
    queued: int = 0
    """Looks at which systemd has a job for the unit, and has not begun with it."""
    kept: dict[str, bytes] = field(default_factory=dict)
    log: str = "moved 1 of 3 images"

    def __post_init__(self) -> None:
        server = self.server
        server.answer("sh", "-c", executor._LOOK, "look", paths.AGENT_STATE, retention.INSTANCES, with_=self._look)
        server.answer("systemctl", "start", "--no-block", "--", with_=self._start, act="start")
        server.answer("systemctl", "stop", "--", with_=self._stop, act="stop")
        server.answer("sh", "-c", executor._STATE, "state", with_=self._state)
        server.answer("sh", "-c", executor._TIDY, "tidy", retention.ORDERS)
        server.answer("runuser", "-u", retention.USER, "--", "cat", with_=self._cat)

    def _look(self, *_: object) -> str:
        state = {"time": self.written, "writer": {"mode": "any", "role": self.role, "term": self.term}}
        units = "".join(f"{name} activating\n" for name in self.running)
        return f"{units}{retention.unit('0' * 64)} failed\n---\n{NOW}\n{json.dumps(state)}\n"

    def _start(self, argv: tuple[str, ...], _: bytes) -> str:
        self.running.setdefault(argv[-1], self.looks)
        return ""

    def _stop(self, argv: tuple[str, ...], _: bytes) -> str:
        self.running.pop(argv[-1], None)
        return ""

    def _state(self, argv: tuple[str, ...], _: bytes) -> str:
        unit = argv[-1]
        if unit in self.running:
            self.running[unit] -= 1
            if self.running[unit] < 0:
                del self.running[unit]
                self._end(unit)
        active = "activating" if unit in self.running else "failed" if self.result != "success" else "inactive"
        job = ""
        if unit in self.running and self.queued:
            self.queued -= 1
            active, job = "inactive", "Job=4711\n"
        return f"ActiveState={active}\nResult={self.result}\nExecMainStatus={self.status}\n{job}---\n{self.log}\n"

    def _end(self, unit: str) -> None:
        order = unit.partition("@")[2].partition(".")[0]
        if self.says is not None:
            number = next(_runs)
            self.kept[result_path(order)] = RESULT.render({"order": order, "invocation": f"run {number}", **self.says})

    def _cat(self, argv: tuple[str, ...], _: bytes) -> bytes | int:
        return self.kept.get(argv[-1], 1)


_runs = itertools.count()
Nodes = dict[str, Executor]


def by_helper(host: Host) -> Node:
    """The node as the operator reaches it, without sshd and systemd between."""
    return ByHelper(host.name, lambda content, _: answered(content, OnHost(host)))


@pytest.fixture(params=[OnHost, by_helper], ids=["root", "helper"])
def way(request: pytest.FixtureRequest) -> Callable[[Host], Node]:
    """How a node is reached."""
    found: Callable[[Host], Node] = request.param
    return found


@pytest.fixture
def three(installed: FakeCluster) -> FakeCluster:
    """They are not bare here."""
    return installed


@pytest.fixture
def nodes(three: FakeCluster, monkeypatch: pytest.MonkeyPatch, way: Callable[[Host], Node]) -> Nodes:
    """Three nodes after init, of which cp-2 holds the lease."""
    monkeypatch.setattr(executor, "on_hosts", lambda cluster: [way(host) for host in cluster.hosts])
    monkeypatch.setattr(executor, "INTERVAL", 0.0)
    found = {name: Executor(server) for name, server in three.servers.items()}
    found["cp-2"].role, found["cp-2"].term = "writer", 7
    return found


def run(three: FakeCluster, content: bytes = CONTENT, deadline: float = 60, **options: Any) -> Outcome:
    return executor.run(executor.on_hosts(three.cluster), content, deadline=deadline, **options)


def failure(three: FakeCluster, content: bytes = CONTENT, deadline: float = 60) -> Error:
    with pytest.raises(Error) as caught:
        run(three, content, deadline)
    assert caught.value.hint
    return caught.value


def acts(nodes: Nodes) -> dict[str, list[str]]:
    """What was started and ended on each node; that the order is written there first is not told."""
    found = {name: [act for act in one.server.acts if not act.startswith("write ")] for name, one in nodes.items()}
    return {name: what for name, what in found.items() if what}


def test_an_order_is_carried_out_where_the_lease_is(three: FakeCluster, nodes: Nodes) -> None:
    nodes["cp-2"].says = {"deleted": 3}
    told: list[str] = []
    outcome = run(three, progress=told.append)
    assert (outcome.node, outcome.status, outcome.result["deleted"]) == ("cp-2", 0, 3)
    assert acts(nodes) == {"cp-2": ["start"]}
    assert nodes["cp-2"].server.content(order_path(ORDER)) == CONTENT
    assert told == ["moved 1 of 3 images"], "a line is told once"


@pytest.mark.parametrize(("role", "written"), [("candidate", NOW), ("closing", NOW), (None, NOW), ("writer", NOW - 6),
                                               ("writer", NOW + 6)])  # fmt: skip
def test_without_a_node_that_holds_the_lease_nothing_is_started(
    three: FakeCluster, nodes: Nodes, role: str | None, written: float
) -> None:
    nodes["cp-2"].role, nodes["cp-2"].written = role, written
    assert failure(three).code == "NoExecutor"
    assert acts(nodes) == {}


def test_of_two_nodes_that_say_so_the_one_with_the_later_term_holds_it(three: FakeCluster, nodes: Nodes) -> None:
    nodes["cp-3"].role, nodes["cp-3"].term = "writer", 9
    assert run(three).node == "cp-3"


@pytest.mark.parametrize("where", ["cp-1", "cp-2"])
@pytest.mark.parametrize("unit", [retention.unit(OTHER), retention.DAILY])
def test_another_order_that_runs_anywhere_is_in_the_way(
    three: FakeCluster, nodes: Nodes, where: str, unit: str
) -> None:
    nodes[where].running[unit] = 9
    error = failure(three)
    assert (error.code, error.host) == ("ExecutorBusy", where)
    assert unit in error.message
    assert acts(nodes) == {}


def test_the_same_order_is_waited_for_where_the_lease_is_and_refused_elsewhere(
    three: FakeCluster, nodes: Nodes
) -> None:
    nodes["cp-2"].running[UNIT] = 3
    assert run(three).node == "cp-2"
    nodes["cp-1"].running[UNIT] = 3
    assert failure(three).code == "ExecutorBusy"


def test_the_exit_status_is_the_executors(three: FakeCluster, nodes: Nodes) -> None:
    node = nodes["cp-2"]
    node.status, node.result, node.says = 1, "exit-code", {"error": "OrderRefused"}
    outcome = run(three)
    assert (outcome.status, outcome.result["error"]) == (1, "OrderRefused")


def test_a_start_that_systemd_has_queued_has_not_ended(three: FakeCluster, nodes: Nodes) -> None:
    nodes["cp-2"].says, nodes["cp-2"].queued = {"deleted": 3}, 1
    assert run(three).result["deleted"] == 3


def test_an_end_without_a_result_is_a_failure_with_the_last_words(three: FakeCluster, nodes: Nodes) -> None:
    node = nodes["cp-2"]
    node.says, node.result, node.status, node.log = None, "signal", 9, "the lease is gone"
    error = failure(three)
    assert (error.code, error.host) == ("ExecutorFailed", "cp-2")
    assert error.message.endswith("without a result (signal): the lease is gone")
    assert UNIT in error.hint


def test_the_result_of_an_earlier_run_is_not_taken_for_that_of_this_one(three: FakeCluster, nodes: Nodes) -> None:
    run(three)
    nodes["cp-2"].says = None
    assert failure(three).code == "ExecutorFailed"


@pytest.mark.parametrize("content", [b"", b"[]", b"{"])
def test_a_result_that_is_none_counts_as_none(three: FakeCluster, nodes: Nodes, content: bytes) -> None:
    nodes["cp-2"].says = None
    nodes["cp-2"].kept[result_path(ORDER)] = content
    assert failure(three).code == "ExecutorFailed"


def test_without_units_or_program_the_tool_is_missing(three: FakeCluster, nodes: Nodes) -> None:
    node = nodes["cp-2"]
    node.status, node.result, node.says = 203, "exit-code", None
    assert failure(three).code == "ToolMissing"
    del node.server.tree[f"{paths.UNITS}/{retention.TEMPLATE}"]
    node.server.acts.clear()
    error = failure(three)
    assert (error.code, error.host) == ("ToolMissing", "cp-2")
    assert acts(nodes) == {}


def test_whoever_stops_waiting_does_not_end_the_order(three: FakeCluster, nodes: Nodes) -> None:
    nodes["cp-2"].looks = 10**6
    error = failure(three, deadline=0.05)
    assert (error.code, error.host) == ("Timeout", "cp-2")
    assert UNIT in nodes["cp-2"].running
    nodes["cp-2"].running[UNIT] = 1
    assert run(three).status == 0
    assert acts(nodes) == {"cp-2": ["start", "start"]}, "the second start finds that it runs"


def test_an_order_is_ended_wherever_it_runs(three: FakeCluster, nodes: Nodes) -> None:
    assert executor.stop(executor.on_hosts(three.cluster), ORDER) == []
    for name in ("cp-1", "cp-2"):
        nodes[name].running[UNIT] = 9
    nodes["cp-3"].running[retention.unit(OTHER)] = 9
    assert executor.stop(executor.on_hosts(three.cluster), ORDER) == ["cp-1", "cp-2"]
    assert acts(nodes) == {"cp-1": ["stop"], "cp-2": ["stop"]}
    assert [[*one.running] for one in nodes.values()] == [[], [], [retention.unit(OTHER)]]


@pytest.mark.parametrize("order", ["", "timer", "../x", ORDER.upper(), ORDER + "0", f"{ORDER}.service\n"])
def test_what_is_no_order_reaches_no_node(three: FakeCluster, nodes: Nodes, order: str) -> None:
    for one in nodes.values():
        one.server.log.clear()
    with pytest.raises(Error) as caught:
        executor.stop(executor.on_hosts(three.cluster), order)
    assert (caught.value.code, caught.value.exit_code) == ("OrderInvalid", 2)
    assert not [command for one in nodes.values() for command in one.server.log if "systemctl" in command.argv]


# ---- the scripts, run ------------------------------------------------------------------------------------------------

#: As systemd 252 and 257 say it.
SYSTEMCTL = f"""
case $1 in
  list-units) echo "{UNIT} loaded activating start Retention of the container registry, order {ORDER}"
    echo "{retention.unit(OTHER)} loaded failed failed Retention of the container registry, order {OTHER}" ;;
  show) printf 'ActiveState=inactive\\nResult=success\\nExecMainStatus=0\\n' ;;
esac
"""


def test_what_systemd_and_the_agent_say_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(tmp_path / "bin", "systemctl", SYSTEMCTL)
    state = tmp_path / "state.json"
    monkeypatch.setattr(paths, "AGENT_STATE", str(state))
    node = OnHost(here(tmp_path / "bin"))
    seen = node.look()
    assert (seen.running, seen.agent, seen.term) == ((UNIT,), None, 0)
    state.write_text(json.dumps({"time": time.time(), "writer": {"role": "writer", "term": 7}}))
    assert node.look().term == 7
    state.write_text(json.dumps({"time": time.time()}))
    assert node.look().term == 0


def test_the_end_of_a_run_is_seen_with_its_last_line(tmp_path: Path) -> None:
    stub(tmp_path / "bin", "systemctl", SYSTEMCTL)
    stub(tmp_path / "bin", "journalctl", "echo 'all 3 images are in the trash'")
    found = OnHost(here(tmp_path / "bin")).progress(ORDER)
    assert (found.state, found.result, found.status, found.runs) == ("inactive", "success", 0, False)
    assert found.line == "all 3 images are in the trash"


# ---- what the helper does not take -----------------------------------------------------------------------------------


def asked(host: Host, content: bytes) -> Error:
    with pytest.raises(Error) as caught:
        questions.read(answered(content, OnHost(host)), "cp-1")
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "QuestionInvalid"),
        (b"[]", "QuestionInvalid"),
        (b"look", "QuestionInvalid"),
        (questions.question("run", argv=["id"]), "QuestionInvalid"),
        (questions.question("look").replace(b'"look"', b'["look"]'), "QuestionInvalid"),
        (questions.question("progress"), "OrderInvalid"),
        (questions.question("progress", order="../../etc/shadow"), "OrderInvalid"),
        (questions.question("stop", order="x; reboot"), "OrderInvalid"),
        (questions.question("stop", order=[ORDER]), "OrderInvalid"),
        (questions.question("start"), "QuestionInvalid"),
        (questions.question("start", order="{}"), "QuestionInvalid"),
        (questions.question("start", order=ORDER), "QuestionInvalid"),
    ],
)
def test_what_is_no_question_changes_nothing(three: FakeCluster, nodes: Nodes, content: bytes, code: str) -> None:
    server = nodes["cp-1"].server
    server.log.clear()
    assert asked(three.cluster.hosts[0], content).code == code
    assert not server.acts
    assert not [command for command in server.log if {"systemctl", "cat"} & set(command.argv)]


@pytest.mark.parametrize("content", [b"", b"Welcome to cp-1!\n", b"{}", questions.answer({"error": "no"})])
def test_what_is_no_answer_is_told(content: bytes) -> None:
    with pytest.raises(Error) as caught:
        ByHelper("cp-1", lambda *_: content).look()
    assert (caught.value.code, caught.value.host) == ("HelperUnknown", "cp-1")


# ---- as another release says it --------------------------------------------------------------------------------------

FORMATS = Path(__file__).parents[1] / "golden" / "formats"


def test_the_frozen_question_is_asked_and_understood() -> None:
    content = (FORMATS / "helper-question.json").read_bytes()
    order = json.loads(content)["order"]
    assert questions.question("progress", order=order) == content
    more = {**json.loads(content), "ofANewerRelease": [1]}
    values = questions.QUESTION.parse(json.dumps(more).encode()).values
    assert (values["verb"], values["order"]) == ("progress", order)


def test_the_frozen_answer_is_understood_with_one_key_more_and_not_with_one_less() -> None:
    document = json.loads((FORMATS / "helper-answer.json").read_text())

    def told(**more: object) -> executor.Progress:
        return ByHelper("cp-1", lambda *_: json.dumps({**document, **more}).encode()).progress(ORDER)

    assert (told().state, told().status, told().said["run"]) == ("inactive", 0, {})
    assert told(ofANewerRelease=1) == told()
    for key in document.keys() - {"format"}:
        less = {name: value for name, value in document.items() if name != key}
        with pytest.raises(Error) as caught:
            ByHelper("cp-1", lambda *_, less=less: json.dumps(less).encode()).progress(ORDER)
        assert caught.value.code == "HelperUnknown"
