"""The operator has new nodes of Kubernetes pull from the registry: which ones, how often, and what it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from kubeadm_registry import config
from kubeadm_registry.access.collecting import POINT
from kubeadm_registry.errors import ConnectionFailed, Error
from kubeadm_registry.operator import clients
from kubeadm_registry.operator.clients import AGAIN, DAILY
from kubeadm_registry.operator.figures import Figures
from kubeadm_registry.operator.leadership import Lost
from kubeadm_registry.operator.replacement import HOST_KEY
from kubeadm_registry.operator.rounds import Rounds
from kubeadm_registry.operator.way import Way
from kubeadm_registry.retention.order import Caller
from kubeadm_registry.transport.ssh import UNREACHABLE
from kubeadm_registry.upkeep.nodes import CLIENT

SPEC = config.parse(config.SMALLEST, "x")
LIST = f"/api/v1/nodes?labelSelector={CLIENT}&limit=500"


def worker(name: str, at: str = "10.0.1.1", key: str = "ssh-ed25519 AAAA") -> dict[str, Any]:
    addresses = [{"type": "Hostname", "address": name}, *([{"type": "InternalIP", "address": at}] if at else [])]
    return {
        "metadata": {"name": name, "labels": {CLIENT: ""}, "annotations": {HOST_KEY: key} if key else None},
        "status": {"addresses": addresses},
    }


@dataclass
class Member:
    """A node of the registry, whose helper answers."""

    name: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    fails: Callable[[str], Error | None] = lambda _: None
    notes: list[str] = field(default_factory=list)
    configured: set[str] = field(default_factory=set)

    def do(self, step: str, **values: Any) -> dict[str, Any]:
        assert step == POINT
        self.asked.append(values)
        if (error := self.fails(values["name"])) is not None:
            raise error
        changes = 0 if values["name"] in self.configured else 3
        self.configured.add(values["name"])
        return {"changes": changes, "notes": self.notes}

    def names(self) -> list[str]:
        """Who it was asked for, and forget that."""
        found = [one["name"] for one in self.asked]
        self.asked.clear()
        return found


class Turns:
    """An operator with a clock of the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, Any]) -> None:
        self.now, self.pages, self.spec = 1_000_000.0, {LIST: {"items": [*nodes]}}, SPEC
        self.members = [Member("cp-1"), Member("cp-2")]
        self.events: list[dict[str, Any]] = []
        self.leads = True
        monkeypatch.setattr(Way, "members", lambda *_: self.members)
        self.rounds = self.replica()

    def replica(self) -> Rounds:
        return Rounds(
            "here", self, (None, None), lambda: Way("ca"), Figures(), self.caller,  # type: ignore[arg-type]
            clock=lambda: self.now,
        )  # fmt: skip

    def caller(self) -> Caller:
        if not self.leads:
            raise Lost("another one leads")
        return Caller("l", 1)

    def list(self, _: str) -> list[dict[str, Any]]:
        document = self.spec.model_dump(by_alias=True, exclude_none=True, mode="json")
        return [{**document, "metadata": {"name": "registry", "uid": "u", "generation": 1}}]

    def get(self, path: str) -> dict[str, Any] | None:
        return self.pages[path]

    def create(self, _: str, event: dict[str, Any]) -> dict[str, Any]:
        self.events.append(event)
        return event

    def turn(self, seconds: float = 60.0) -> list[tuple[str, str]]:
        """A round after so many seconds; type and note of its Events."""
        self.now += seconds
        self.events.clear()
        self.rounds.clients()
        return [(one["type"], one["note"]) for one in self.events]

    def condition(self) -> tuple[bool | None, str, str] | None:
        found = self.rounds._found.get(clients.KIND)
        return None if found is None else (found.status, found.reason, found.message)


def test_each_is_configured_once_and_again_a_day_later(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch, worker("w-1"), worker("w-2", "10.0.1.2"))
    assert turns.turn() == [
        ("Normal", "w-1: containerd pulls through the virtual IP"),
        ("Normal", "w-2: containerd pulls through the virtual IP"),
    ]
    assert turns.members[0].asked[0] == {"name": "w-1", "address": "10.0.1.1", "hostKey": "ssh-ed25519 AAAA"}
    assert turns.members[0].names() == ["w-1", "w-2"]
    assert turns.condition() == (True, "Configured", "configured to pull by the virtual IP: 2 client nodes")
    assert turns.turn() == []
    assert turns.members[0].names() == []
    assert turns.turn(DAILY) == [], "nothing had changed"
    assert turns.members[0].names() == ["w-1", "w-2"]
    turns.rounds = turns.replica()
    assert turns.turn() == [], "another replica does it again, which is no news"
    assert turns.members[0].names() == ["w-1", "w-2"]


def test_those_without_the_label_and_nodes_of_the_registry_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch, worker("cp-1", "10.0.9.9"), worker("other", "10.0.0.11"))
    assert turns.turn() == []
    assert (turns.members[0].asked, turns.condition()) == ([], None)


def test_a_changed_registry_or_node_is_configured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch, worker("w-1"))
    turns.turn()
    turns.spec = SPEC.with_spec(mirrors=(*SPEC.spec.mirrors, "registry.example.org"))
    turns.turn()
    turns.pages[LIST] = {"items": [worker("w-1", "10.0.1.7")]}
    turns.turn()
    assert [one["address"] for one in turns.members[0].asked] == ["10.0.1.1", "10.0.1.1", "10.0.1.7"]


def test_all_pages_of_a_large_cluster_count(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch)
    turns.pages[LIST] = {"items": [worker("w-1")], "metadata": {"continue": "a+b="}}
    turns.pages[f"{LIST}&continue=a%2Bb%3D"] = {"items": [worker("w-2")], "metadata": {}}
    turns.turn()
    assert turns.members[0].names() == ["w-1", "w-2"]


def test_a_failure_is_told_once_and_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch, worker("w-1"), worker("w-2"), worker("w-3"))
    broken = Error("containerd did not start", code="ContainerdRestart", hint="see its journal")
    turns.members[0].fails = lambda name: None if name == "w-3" else broken
    warnings = [("Warning", f"{name}: containerd did not start; see its journal") for name in ("w-1", "w-2")]
    assert turns.turn() == [*warnings, ("Normal", "w-3: containerd pulls through the virtual IP")]
    assert turns.condition() == (
        False,
        "ContainerdRestart",
        "w-1 and 1 more are not configured; w-1: containerd did not start; see its journal",
    )
    turns.members[0].names()
    assert turns.turn() == []
    assert turns.members[0].names() == []
    assert turns.turn(AGAIN) == []
    assert turns.members[0].names() == ["w-1", "w-2"]
    turns.members[0].fails = lambda _: None
    assert [kind for kind, _ in turns.turn(AGAIN)] == ["Normal", "Normal"]
    assert turns.condition() == (True, "Configured", "configured to pull by the virtual IP: 3 client nodes")


def test_after_three_failed_restarts_no_other_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch, *(worker(f"w-{number}") for number in range(6)))
    turns.members[0].fails = lambda _: Error("containerd did not start", code="ContainerdRestart")
    turns.turn()
    assert turns.members[0].names() == ["w-0", "w-1", "w-2"]
    turns.turn()
    assert turns.members[0].names() == []
    turns.turn(AGAIN)
    assert turns.members[0].names() == ["w-0", "w-1", "w-2"]
    turns.members[0].fails = lambda _: None
    turns.turn(AGAIN)
    assert turns.members[0].names() == [f"w-{number}" for number in range(6)]


@pytest.mark.parametrize(
    ("away", "code"),
    [
        (ConnectionFailed("no route to host", host="cp-1"), ""),
        (Error("no route to w-1", code=UNREACHABLE), UNREACHABLE),
    ],
)
def test_another_node_goes_there_where_one_does_not_answer_or_reach_it(
    monkeypatch: pytest.MonkeyPatch, away: Error, code: str
) -> None:
    turns = Turns(monkeypatch, worker("w-1"))
    turns.members[0].fails = lambda _: away
    assert turns.turn() == [("Normal", "w-1: containerd pulls through the virtual IP")]
    assert turns.members[1].names() == ["w-1"]
    turns.pages[LIST] = {"items": [worker("w-2")]}
    turns.members[1].fails = lambda _: away
    [(kind, note)] = turns.turn()
    assert (kind, note.startswith(f"w-2: {away.message}")) == ("Warning", True)


@pytest.mark.parametrize(
    ("node", "reason", "hint"),
    [(worker("w-1", ""), "AddressMissing", "get nodes -o wide"), (worker("w-1", key=""), "HostKeyMissing", HOST_KEY)],
)
def test_what_its_node_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, node: dict[str, Any], reason: str, hint: str
) -> None:
    turns = Turns(monkeypatch, node)
    [(kind, note)] = turns.turn()
    assert kind == "Warning"
    assert hint in note
    assert turns.members[0].asked == []
    found = turns.condition()
    assert found is not None
    assert found[:2] == (False, reason)


def test_an_operator_that_only_plans_says_what_it_would_need(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch, worker("w-1"))
    monkeypatch.setattr(Way, "members", lambda *_: None)
    [(kind, note)] = turns.turn()
    assert (kind, "operator install --replace-nodes" in note) == ("Warning", True)


def test_one_that_is_not_labelled_any_more_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch, worker("w-1", key=""))
    turns.turn()
    turns.pages[LIST] = {"items": []}
    assert turns.turn() == []
    assert turns.condition() == (True, "Configured", "configured to pull by the virtual IP: 0 client nodes")


def test_who_does_not_lead_any_more_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch, worker("w-1"))
    turns.leads = False
    with pytest.raises(Lost):
        turns.turn()
    assert turns.members[0].asked == []
