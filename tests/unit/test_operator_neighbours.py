"""The operator of this release beside nodes and objects of the release before, as an upgrade has them for a while.

What 0.1.0 says was written by its own code: tests/golden/formats/0.1.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kubeadm_registry import config
from kubeadm_registry.access import collecting, executor
from kubeadm_registry.access.executor import ByHelper
from kubeadm_registry.operator import freeing, health, renewing
from kubeadm_registry.operator.health import Seen
from kubeadm_registry.operator.probes import Probe, parsed
from kubeadm_registry.retention.ledger import Ledger
from kubeadm_registry.upkeep import store
from tests.unit.fake_registry import connector
from tests.unit.test_operator_carrying import AUTOMATIC, KEY
from tests.unit.test_operator_plans import Turns as Plans
from tests.unit.test_operator_plans import turns as plans  # noqa: F401  fixture
from tests.unit.test_operator_replacing import Turns, running, turns  # noqa: F401  fixtures
from tests.unit.test_replacing import site  # noqa: F401  the fixture

pytest_plugins = ["tests.unit.image_site"]

SAMPLES = Path(__file__).parents[1] / "golden/formats/0.1"
METRICS, LOOK, REFUSAL = "agent-metrics.txt", "helper-look.json", "helper-refusal.json"
CLUSTER = config.parse(config.SMALLEST, "x")
NOW = datetime(2030, 1, 1, tzinfo=UTC)
#: It is not asked.
REGISTRY: Any = None
LATE = NOW + timedelta(days=1000)


def answered(content: bytes, _: float = 0) -> bytes:
    """What a helper of 0.1.0 answers: of today's questions at rest it knows one."""
    known = json.loads(content)["verb"] == "look"
    return (SAMPLES / (LOOK if known else REFUSAL)).read_bytes()


def test_an_agent_says_what_conditions_are_made_of() -> None:
    nodes = [
        Seen(name, Probe(node=name, ends=LATE), parsed((SAMPLES / METRICS).read_text()) if name == "cp-1" else None)
        for name in ("cp-1", "cp-2", "cp-3")
    ]
    found = {one.kind: (one.status, one.reason) for one in health.of_node(nodes[0], NOW)}
    assert found["Available"] == (True, "Serving")
    assert found["Degraded"] == (True, "AgentReports")
    assert found["RedundancyComplete"] == (False, "StorageCopying")
    assert found["StorageFilling"][0] is False, "how full it will be is not known, how full it is, is"
    assert nodes[0].says is not None
    assert nodes[0].says.holds_vip


def test_the_node_that_holds_the_lease_is_known() -> None:
    seen = ByHelper("cp-1", answered).look()
    assert seen.agent is not None
    assert (seen.running, seen.agent["version"], seen.term) == ((), "0.1.0", 7)


def test_what_its_helper_cannot_tell_is_not_known() -> None:
    notes: list[str] = []
    nodes = [ByHelper(name, answered) for name in ("cp-1", "cp-2", "cp-3")]
    assert executor.pulls(nodes, 3, notes.append).since is None, "images that may have been pulled stay"
    assert len(notes) == 3


def test_what_its_helper_cannot_do_is_told_with_the_way_out() -> None:
    members = [collecting.ByHelper(node.name, answered) for node in CLUSTER.spec.nodes]
    assert freeing.complete(CLUSTER, members) is None
    verdict = freeing.free(CLUSTER, members, REGISTRY, lambda: 0.0).verdict
    assert (verdict.status, verdict.reason) == (False, "QuestionInvalid")
    assert "run `kubeadm-registry init` with the release of the operator" in verdict.message
    ending = {"nodes": [{"name": one.name, "certificateDays": 10} for one in members]}
    failed = dict(renewing.Renewals().turn(ending, members, lambda: None))
    assert {one.reason for one in failed.values()} == {"QuestionInvalid"}


def test_no_node_is_replaced_while_none_can_tell_the_members(turns: Turns) -> None:  # noqa: F811
    """While some can, the node that is asked to do it finds different programs (SettingsDiffer)."""
    turns.ask = lambda _: answered  # type: ignore[method-assign]
    assert turns.round() == "HelpersSilent"
    [condition] = [one for one in turns.status["conditions"] if one["type"] == "NodesInPlace"]
    assert "run `kubeadm-registry init` with the release of the operator" in condition["message"]
    turns.swap()
    assert turns.round(3600) == "HelpersSilent"
    assert running(turns) == []


def test_objects_and_ledger_of_the_release_before_give_a_plan(plans: Plans) -> None:  # noqa: F811
    """It knew no markers: that is no etcd that was restored."""
    plans.policy(AUTOMATIC)
    plans.round()
    assert plans.plan["status"].pop("marker")
    with connector(plans.site.registry)() as registry:
        document = json.loads(store.read(registry, KEY).to_json())
        for one in document["clusters"].values():
            assert one.pop("marker")
        store.write(registry, KEY, Ledger.parse(json.dumps(document).encode()))
    plans.site.registry.image("app", "v4", layer=b"v4")
    plans.site.at(60)
    plans.round()
    assert plans.conditions()["Made"] == ("True", "Planned")
    assert plans.site.tags() == ["v4"]
