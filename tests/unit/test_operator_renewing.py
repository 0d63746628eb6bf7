"""The operator has a node renew its certificate before it ends; the node issues it itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kubeadm_registry import config, paths, pki
from kubeadm_registry.access.collecting import AsRoot, Place
from kubeadm_registry.components import haproxy
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error
from kubeadm_registry.helper import space as job
from kubeadm_registry.operator import health, looking, renewing
from kubeadm_registry.operator.conditions import merged
from kubeadm_registry.operator.figures import Figures
from kubeadm_registry.operator.leadership import Lost
from kubeadm_registry.operator.probes import Probe
from kubeadm_registry.operator.rounds import Rounds
from kubeadm_registry.operator.way import Way
from kubeadm_registry.phases.workflows import INIT
from kubeadm_registry.retention.order import Caller
from kubeadm_registry.status import CERTIFICATE_WARNING_DAYS
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.test_operator_replacing import Objects
from tests.unit.test_served import soon
from tests.unit.test_workflow import Recorder


def test_a_node_renews_its_own_certificate_once(three: FakeCluster) -> None:
    run(INIT, three.cluster, Recorder(), skip=ELSEWHERE)
    server = three.servers["cp-2"]
    server.put(paths.NODE_PEM, soon(three, "cp-2"), 0o640, f"root:{haproxy.USER}")
    cluster = three.cluster
    alone = next(host for host in cluster.hosts if host.name == "cp-2")
    member = AsRoot(Place(cluster, alone, connect=None))  # type: ignore[arg-type]
    others = {name: one.snapshot() for name, one in three.servers.items() if name != "cp-2"}
    assert member.do("renew") == {"renewed": True}
    left = pki.expiry(server.content(paths.NODE_PEM).decode()) - pki.expiry(cluster.secrets.ca_certificate)
    assert abs(left + pki.CA_LIFETIME - pki.LEAF_LIFETIME).days <= 1
    assert [act for act in server.acts if act.startswith("load the certificate")]
    assert member.do("renew") == {"renewed": False}
    assert others == {name: one.snapshot() for name, one in three.servers.items() if name != "cp-2"}
    assert run(INIT, three.cluster, Recorder(), skip=ELSEWHERE) == []


def test_nobody_else_works_on_the_node_meanwhile() -> None:
    assert "renew" in job.ACTS


@dataclass
class Member:
    """One whose helper answers."""

    name: str
    asked: list[str] = field(default_factory=list)
    failure: Error | None = None

    def do(self, step: str, **_: object) -> dict[str, Any]:
        self.asked.append(step)
        if self.failure is not None:
            raise self.failure
        return {"renewed": True}


@pytest.fixture
def members() -> list[Member]:
    return [Member(f"cp-{number}") for number in (1, 2, 3)]


SOON, LATE = renewing.DAYS - 1, renewing.DAYS


def turn(
    members: list[Member], days: dict[str, int], monkeypatch: pytest.MonkeyPatch, times: int = 1
) -> list[tuple[str, str]]:
    """So many rounds; type and note of their Events."""
    document = config.parse(config.SMALLEST, "x").model_dump(by_alias=True, exclude_none=True, mode="json")
    nodes = [{"name": name, "certificateDays": left} for name, left in days.items()]
    meta = {"name": "registry", "uid": "u", "generation": 1}
    objects = Objects({**document, "metadata": meta, "status": {"nodes": nodes}}, {})
    monkeypatch.setattr(Way, "members", lambda *_: members)
    rounds = Rounds(
        "here", objects, (None, None), lambda: Way("ca"), Figures(), lambda: Caller("l", 1)  # type: ignore[arg-type]
    )  # fmt: skip
    for _ in range(times):
        rounds.certificates()
    return [(one["type"], one["note"]) for one in objects.events]


def test_those_that_end_soon_are_renewed_and_no_others(
    members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    said = turn(members, {"cp-1": SOON, "cp-2": LATE, "cp-3": -1}, monkeypatch)
    assert [one.asked for one in members] == [["renew"], [], ["renew"]]
    assert said == [("Normal", "cp-1: it has a new certificate"), ("Normal", "cp-3: it has a new certificate")]
    assert turn(members, {}, monkeypatch) == []
    assert SOON > CERTIFICATE_WARNING_DAYS, "before anybody is warned"


@pytest.mark.parametrize(("reason", "expected"), [("NotTrusted", {"cp-1"}), ("Unreachable", set()), ("", set())])
def test_one_that_has_ended_is_renewed(reason: str, expected: set[str]) -> None:
    """As after the operator was away for months. No client sees when it ended: the handshake fails before."""
    now = datetime(2030, 1, 1, tzinfo=UTC)
    probe = Probe(reason, "no") if reason else Probe(node="cp-1", ends=now + timedelta(days=LATE))
    seen = health.Seen("cp-1", probe, "no response")
    node = {
        **looking.of_node(seen, now + timedelta(days=3650), now),
        "health": merged(None, health.of_node(seen, now), now.timestamp(), 1),
    }
    assert renewing.due({"nodes": [node]}) == expected


def test_a_failure_is_told_and_the_second_ends_the_round(
    members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = Error("locked by another run", host="cp-1", code="HostBusy", hint="wait until it is done")
    members[0].failure = busy
    said = turn(members, dict.fromkeys(("cp-1", "cp-2"), 3), monkeypatch)
    told = ("Warning", "cp-1: locked by another run; wait until it is done")
    assert said == [told, ("Normal", "cp-2: it has a new certificate")]
    members[1].failure = busy
    said = turn(members, dict.fromkeys(("cp-1", "cp-2", "cp-3"), 3), monkeypatch)
    assert said == [told, ("Warning", "cp-2: locked by another run; wait until it is done")]
    assert members[2].asked == []


def test_two_that_fail_each_time_do_not_keep_the_others_from_it(
    members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where they were away when the operator got another key."""
    members[0].failure = members[1].failure = Error("authentication failed", code="LoginRefused")
    turn(members, dict.fromkeys(("cp-1", "cp-2", "cp-3"), 3), monkeypatch, times=2)
    assert members[2].asked == ["renew"]


def test_the_same_failure_is_told_once(members: list[Member], monkeypatch: pytest.MonkeyPatch) -> None:
    members[0].failure = Error("locked by another run", host="cp-1", code="HostBusy", hint="wait until it is done")
    assert len(turn(members, {"cp-1": SOON}, monkeypatch, times=5)) == 1
    assert members[0].asked == ["renew"] * 5


def test_who_does_not_lead_any_more_asks_nobody(members: list[Member]) -> None:
    def lead() -> None:
        raise Lost("another one leads")

    with pytest.raises(Lost):
        list(renewing.Renewals().turn({"nodes": [{"name": "cp-1", "certificateDays": 1}]}, members, lead))
    assert members[0].asked == []
