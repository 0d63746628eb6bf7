"""etcd is brought back from an old copy: the cluster forgets what came after it, and the registry does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.custom_resources.names import NAMESPACE
from kubeadm_registry.operator.leadership import Outdated
from kubeadm_registry.operator.plans import APPROVE
from kubeadm_registry.operator.running import EXIT_LOST
from kubeadm_registry.operator.way import Way
from tests.lab.command import wait_until
from tests.operator.apiserver import ApiServer
from tests.operator.battery import changed, put
from tests.operator.replicas import OBJECTS, holder, replica
from tests.operator.site import VIP, Node, Site
from tests.operator.test_rounds import POLICY, Operator, healthy, operator, plan, there  # noqa: F401  fixtures
from tests.operator.workloads import named, spec

SOON = 60.0


def pod(image: str) -> Any:
    return named("v1", "Pod", image, "default", spec=spec(f"{VIP}:5000/team/{image}:v1"))


def others_write(server: ApiServer) -> None:
    """Let there be more revisions than an API server makes when it starts."""
    values = [named("v1", "ConfigMap", f"other-{number}", "default") for number in range(100)]
    assert server.send("create", values).taken


def conditions(plan: Any) -> dict[str, Any]:
    return {one["type"]: one for one in plan["status"]["conditions"]}


def test_what_a_restored_cluster_has_forgotten_is_not_deleted(
    operator: Operator,  # noqa: F811
    there: Site,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node, server = Node(), operator.server
    monkeypatch.setattr(Way, "nodes", lambda *_: [node])
    digests = {name: there.push(f"team/{name}", "v1") for name in ("unused", "before", "later")}

    def deleted() -> set[str]:
        return {name for name, digest in digests.items() if digest.encode() in b"".join(node.orders)}

    assert server.send("create", [changed(POLICY, put("spec.approval", "Automatic")), pod("before")]).taken
    plan(operator)
    with server.restored():
        assert server.send("create", [pod("later")]).taken
        others_write(server)
        plan(operator)
    assert not server.ask("get", "pod", "later").taken
    with pytest.raises(Outdated, match="its etcd was restored"):
        operator.look()

    again = Operator(server, there)
    again.now = operator.now
    found = plan(again, days=40)
    assert "digest" not in found["status"]
    assert conditions(found)["CarriedOut"]["reason"] == "NoPlan"
    assert healthy(again) == ("False", "ClusterOlder")
    plan(again, days=1)
    assert node.orders == [], "nobody has looked"

    approval = conditions(found)["Made"]["message"].rpartition(f"{APPROVE}=")[2]
    assert server.ask("annotate", "regplan", "retention", f"{APPROVE}={approval}").taken
    plan(again)
    assert deleted() == {"unused"}, "the ledger remembers what the cluster has forgotten"
    assert healthy(again) == ("True", "Planned")
    assert server.ask("annotate", "regplan", "retention", f"{APPROVE}-").taken
    plan(again, days=6)
    assert deleted() == {"unused"}
    plan(again, days=2)
    assert deleted() == {"unused", "later"}, "for spec.workloadGrace"


def test_a_replica_that_was_there_all_the_time_begins_anew(adopted: ApiServer, tmp_path: Path) -> None:
    """Its watches would hear of nothing until the revisions come again that it has seen already."""

    def planned(share: int) -> None:
        assert adopted.send("apply", [changed(POLICY, put("spec.maximumShare", share))]).taken
        generation = adopted.get("regp", "retention")["metadata"]["generation"]

        def seen() -> bool:
            plans = adopted.get("regplan")["items"]
            return bool(plans) and plans[0].get("status", {}).get("policyGeneration") == generation

        wait_until("the policy to be seen", seen, seconds=SOON)

    assert adopted.send("apply", list(OBJECTS)).taken
    with replica(adopted, tmp_path, "one", LEASE_SECONDS="300") as one:
        wait_until("it to lead", lambda: holder(adopted) == one.name, seconds=SOON)
        planned(21)
        with adopted.restored():
            others_write(adopted)
            planned(22)
        wait_until("it to end", lambda: not one.is_running, seconds=SOON)
        assert one.process.returncode == EXIT_LOST, one.log
        assert "its etcd was restored" in one.log
    with replica(adopted, tmp_path, "one", LEASE_SECONDS="300"):
        planned(23)
    for kind in ("registrypolicies", "registryretentionplans"):
        assert adopted.ask("delete", kind, "--all").taken
    assert adopted.ask("delete", "lease", "operator", f"--namespace={NAMESPACE}").taken
