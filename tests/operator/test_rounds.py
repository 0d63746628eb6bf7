"""What the operator finds and writes: a real API server, a real registry behind TLS on three nodes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.custom_resources.names import NAMESPACE
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.oci import canary
from kubeadm_registry.operator.figures import Figures
from kubeadm_registry.operator.leadership import Leadership, Lost, Times
from kubeadm_registry.operator.objects import Objects
from kubeadm_registry.operator.plans import APPROVE
from kubeadm_registry.operator.rounds import Rounds
from kubeadm_registry.upkeep import store
from kubeadm_registry.upkeep.kubeconfig import by_kubeconfig
from kubeadm_registry.upkeep.nodes import CLIENT
from tests.lab.fresh import require_frontend
from tests.lab.programs import cached
from tests.lab.settings import FRONTENDS
from tests.operator.apiserver import ApiServer
from tests.operator.battery import CLUSTER, changed, put
from tests.operator.replicas import OBJECTS
from tests.operator.site import ADDRESSES, VIP, Site, site
from tests.operator.workloads import named, spec

DAY = 86400
GOOD = {"Adopted": "True", "Available": "True", "Degraded": "False", "RedundancyComplete": "True",
        "CanLoseANode": "True", "CertificatesValid": "True", "StorageFilling": "False",
        "SplitVIP": "False"}  # fmt: skip


@pytest.fixture(params=FRONTENDS)
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    frontend: str = request.param
    require_frontend(frontend)
    if frontend != "zot" and not cached("registry"):
        pytest.skip("not built yet: registry; make test-operator builds it")
    with site(tmp_path, frontend) as found:
        yield found


class Operator:
    """The operator's rounds in this process, as the operator's user, with a clock of the test's."""

    def __init__(self, server: ApiServer, there: Site, kubeconfig: Path | None = None) -> None:
        self.server = server
        file = kubeconfig or server.kubeconfig("operator")
        # Certificates of the site are of now, or a day of theirs might end between two looks.
        self.now = float(int(time.time()))
        times = Times(3600)
        api = [by_kubeconfig(file, patience=10) for _ in range(4)]
        self.leadership = Leadership(api[0], NAMESPACE, "here", times)
        assert self.leadership.attempt()
        self.figures = Figures()
        self.rounds = Rounds("here", Objects(api[1], self.leadership, times), (api[2], api[3]), lambda: there.way,
                             self.figures, self.leadership.as_caller, clock=lambda: self.now,
                             compare=lambda *_: None)  # fmt: skip

    def look(self, seconds: float = 30) -> dict[str, str]:
        """A round of health, after some time; the conditions."""
        self.now += seconds
        self.rounds.health()
        return {kind: one["status"] for kind, one in self.conditions().items()}

    def conditions(self, node: str = "") -> dict[str, Any]:
        """By type, of the object or of a node in it."""
        status = self.object["status"]
        found = next(one for one in status["nodes"] if one["name"] == node)["health"] if node else status["conditions"]
        return {one["type"]: one for one in found}

    @property
    def object(self) -> Any:
        """The RegistryCluster."""
        return self.server.get("regc", "registry")

    def events(self) -> dict[tuple[str, str], int]:
        """How often each (reason, note) was said of the present object."""
        uid = self.object["metadata"]["uid"]
        found = self.server.get("events.events.k8s.io", "-n=default")["items"]
        return {(one["reason"], one["note"]): (one.get("series") or {"count": 1})["count"] for one in found
                if one["regarding"].get("uid") == uid}  # fmt: skip


@pytest.fixture
def operator(adopted: ApiServer, there: Site) -> Iterator[Operator]:
    assert adopted.send("apply", list(OBJECTS)).taken
    yield Operator(adopted, there)
    for kind in ("registrypolicies", "registryretentionplans"):
        assert adopted.ask("delete", kind, "--all").taken
    assert adopted.ask("delete", "pods", "--all", "--force", "-n=default").taken
    assert adopted.ask("delete", "lease", "operator", f"-n={NAMESPACE}").taken


# ---- health ---------------------------------------------------------------------------------------------------------


def test_all_is_well_and_nothing_is_written_again(operator: Operator) -> None:
    assert operator.look() == {**GOOD, "ImagesMissing": "Unknown", "RetentionHealthy": "Unknown"}
    status = operator.object["status"]
    assert status["vip"] == {"address": VIP, "holder": "cp-1"}
    assert [one["name"] for one in status["nodes"]] == list(ADDRESSES)
    assert all(one["fit"] and one["reachable"] and one["certificateDays"] > 300 for one in status["nodes"])
    assert {one["status"] for one in operator.conditions("cp-2").values()} == {"True", "False"}
    before = operator.object["metadata"]["resourceVersion"]
    operator.look()
    assert operator.object["metadata"]["resourceVersion"] == before
    assert operator.events() == {}


def test_a_node_that_is_lost_is_named_once(operator: Operator, there: Site) -> None:
    operator.look()
    there.kill("cp-3")
    found = operator.look()
    assert {key: found[key] for key in GOOD} == {
        **GOOD, "Degraded": "True", "RedundancyComplete": "False", "CanLoseANode": "False",
        "CertificatesValid": "Unknown", "StorageFilling": "Unknown", "SplitVIP": "Unknown",
    }  # fmt: skip
    degraded = operator.conditions()["Degraded"]
    assert degraded["reason"] == "Unreachable"
    assert degraded["message"] == "cp-3: connection refused"
    assert operator.conditions("cp-3")["Available"]["status"] == "False"
    assert operator.conditions("cp-1")["Available"]["status"] == "True"
    events = operator.events()
    assert events["Unreachable", "cp-3: connection refused"] == 1
    operator.look()
    assert operator.events() == events, "only a change is an Event"
    assert operator.conditions()["Degraded"]["lastTransitionTime"] == degraded["lastTransitionTime"]
    with contextlib.ExitStack() as stack:
        there.start("cp-3", stack)
        assert operator.look()["CanLoseANode"] == "True"
        assert operator.conditions()["Degraded"]["lastTransitionTime"] > degraded["lastTransitionTime"]
        there.kill("cp-3")
        operator.look()
        assert operator.events()["Unreachable", "cp-3: connection refused"] == 2, "the same again is a series"


def test_the_virtual_ip_is_looked_at_itself(operator: Operator, there: Site) -> None:
    there.holder("cp-2")
    operator.look()
    assert operator.object["status"]["vip"]["holder"] == "cp-2"
    del there.ports[VIP, 5000]
    assert operator.look()["Available"] == "False"
    assert operator.conditions()["Available"]["reason"] == "Unreachable"


def test_what_only_agents_know(operator: Operator, there: Site) -> None:
    there.agents["cp-2"].values["vip_held"] = 1
    there.agents["cp-3"].values |= {"data_free_bytes": 1e9}
    there.agents["cp-1"].conditions = ["StorageCopying"]
    operator.look()
    found = operator.conditions()
    assert found["SplitVIP"]["message"] == "cp-1, cp-2 all hold the virtual IP"
    assert (found["StorageFilling"]["status"], found["StorageFilling"]["reason"]) == ("True", "DiskFull")
    assert found["RedundancyComplete"]["reason"] == "StorageCopying"
    assert found["CanLoseANode"]["status"] == "False"


def test_without_a_certificate_for_metrics_the_rest_is_known(operator: Operator, there: Site) -> None:
    (there.folder / "metrics.pem").rename(there.folder / "away")
    operator.rounds.the_way = lambda: there.way.__class__(there.way.ca, dial=there.dial)
    found = operator.look()
    assert (found["Available"], found["CertificatesValid"], found["SplitVIP"]) == ("True", "True", "Unknown")
    assert "the Secret has no certificate for metrics" in operator.conditions()["SplitVIP"]["message"]


def test_a_registry_that_lost_its_images_is_not_available(operator: Operator, there: Site) -> None:
    there.lose(canary.REPOSITORY)
    assert operator.look()["Available"] == "False"
    assert operator.conditions()["Available"]["reason"] == "CanaryMissing"


def test_another_authority_is_not_trusted(operator: Operator, there: Site) -> None:
    other = Site(there.folder)
    operator.rounds.the_way = lambda: there.way.__class__(other.authority.certificate, dial=there.dial)
    operator.look()
    found = operator.conditions()
    assert (found["Available"]["status"], found["Available"]["reason"]) == ("False", "NotTrusted")
    assert found["CertificatesValid"]["status"] == "False"


def test_new_workers_are_found_by_their_label(operator: Operator) -> None:
    """With the rights that it has, and no key for the nodes."""
    nodes = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
             for name, labels in (("w-1", {CLIENT: ""}), ("w-2", {}))]  # fmt: skip
    assert operator.server.send("apply", nodes).taken
    try:
        operator.rounds.clients()
        operator.look()
        found = operator.conditions()["ClientNodes"]
        assert (found["status"], found["reason"]) == ("False", "AddressMissing")
        assert found["message"].startswith("w-1 is not configured: its Node has no InternalIP")
        said = "its Node has no InternalIP; see `kubectl get nodes -o wide`"
        assert {note for reason, note in operator.events() if reason == "AddressMissing"} == {
            f"w-1: {said}", f"w-1 is not configured: {said}"
        }  # fmt: skip
    finally:
        assert operator.server.ask("delete", "node", "w-1", "w-2").taken
    operator.rounds.clients()
    operator.look()
    assert operator.conditions()["ClientNodes"]["status"] == "True"


def test_an_object_that_is_not_valid_here_is_not_adopted(operator: Operator) -> None:
    """What the API server takes and the file does not: see DIFFERENT in the battery."""
    bad = put("spec.ssh", {"identityFile": "~nosuchuser/key"})
    assert operator.server.send("apply", [changed(CLUSTER, bad)]).taken
    assert operator.look()["Adopted"] == "True", "files in spec.ssh are the workstation's"


# ---- images ---------------------------------------------------------------------------------------------------------


def test_images_that_the_registry_lacks_are_named(operator: Operator, there: Site) -> None:
    there.push("docker.io/library/nginx", "1")
    there.push("team/app", "v1")
    pods = {
        "there": "nginx:1", "own": f"{VIP}:5000/team/app:v1", "elsewhere": "other.example/x:1", "gone": "redis:7",
        "old": f"{VIP}:5000/team/app:v0",
    }  # fmt: skip
    objects = [named("v1", "Pod", name, "default", spec=spec(image)) for name, image in pods.items()]
    assert operator.server.send("create", objects).taken
    operator.look()
    operator.rounds.images()
    assert operator.look()["ImagesMissing"] == "True"
    assert operator.conditions()["ImagesMissing"]["message"] == (
        "2 images that pods use cannot be pulled again: docker.io/library/redis:7 ('Pod default/gone'), "
        "team/app:v0 ('Pod default/old')"
    )
    assert [reason for reason, _ in operator.events()] == ["NotInRegistry"]
    there.push("docker.io/library/redis", "7")
    there.push("team/app", "v0")
    operator.rounds.images()
    assert operator.look()["ImagesMissing"] == "False"


# ---- plans ----------------------------------------------------------------------------------------------------------

POLICY = {
    "apiVersion": "kubeadm-registry.dev/v1alpha1",
    "kind": "RegistryPolicy",
    "metadata": {"name": "retention"},
    "spec": {"sets": [], "rules": [{"name": "apps", "repositories": ["team/*"], "keep": {"within": "30d"}}]},
}


def plan(operator: Operator, days: float = 0) -> Any:
    """A round of plans after some days; the object."""
    operator.now += days * DAY
    operator.rounds.plans()
    return operator.server.get("regplan", "retention")


def healthy(operator: Operator) -> tuple[str, str]:
    operator.look()
    one = operator.conditions()["RetentionHealthy"]
    return one["status"], one["reason"]


def test_a_plan_is_made_by_the_policy_and_nothing_is_deleted(operator: Operator, there: Site) -> None:
    operator.rounds.plans()
    assert healthy(operator) == ("Unknown", "NoPolicy")
    digest = there.push("team/app", "v1")
    there.push("team/used", "v1")
    pod = named("v1", "Pod", "web", "default", spec=spec(f"{VIP}:5000/team/used:v1"))
    assert operator.server.send("create", [POLICY, pod]).taken
    first = plan(operator)
    assert (first["status"]["deletions"], first["status"]["freed"]) == (0, "0 bytes"), "all of it was first seen now"
    assert first["status"]["approval"] == {"state": "Required"}

    status = plan(operator, days=40)["status"]
    assert [(one["repository"], one["tag"], one["digest"]) for one in status["largest"]] == [("team/app", "v1", digest)]
    assert status["deletions"] == 1
    assert {one["type"]: one["reason"] for one in status["conditions"]}["CarriedOut"] == "NoHelper"
    assert healthy(operator) == ("True", "Planned")
    found = operator.server.get("regp", "retention")["status"]
    assert found["plan"] == status["digest"]
    with there.way.registry(VIP, timeout=10)() as registry:
        assert registry.digest("team/app", "v1") == digest
        assert registry.digest(store.REPOSITORY, "operator-plan") == status["artifact"]
        whole = store.read_operator_plan(registry, there.way.key)
    assert whole is not None
    assert whole.digest == status["digest"]
    assert whole.images[1] == status["kept"]

    with there.way.registry(VIP, timeout=10)() as registry:
        standing = store.read_standing(registry, there.way.key)
        store.STANDING.write(
            registry, there.way.key, standing.with_approval(status["digest"], int(time.time())).to_json()
        )
    assert plan(operator)["status"]["approval"]["state"] == "Approved", "as by `retention approve`"
    with there.way.registry(VIP, timeout=10)() as registry:
        store.STANDING.write(registry, there.way.key, standing.to_json())
    assert plan(operator)["status"]["approval"]["state"] == "Required"

    assert operator.server.ask("annotate", "regplan", "retention", f"{APPROVE}={status['digest']}").taken
    operator.rounds.approvals()
    assert operator.server.get("regplan", "retention")["status"]["approval"] == {
        "state": "Approved", "digest": status["digest"],
    }  # fmt: skip
    there.push("team/app", "v2")
    plan(operator)
    again = plan(operator, days=40)["status"]
    assert again["digest"] != status["digest"]
    assert again["approval"] == {"state": "Outdated", "digest": status["digest"]}


def test_a_mistyped_approval_is_named_and_stops_nothing(operator: Operator, there: Site) -> None:
    """Else the API server would refuse the status, and with it everything that follows in the round."""
    there.push("team/app", "v1")
    assert operator.server.send("create", [POLICY]).taken
    plan(operator)
    assert operator.server.ask("annotate", "regplan", "retention", f"{APPROVE}=sha256:abc,{'x' * 300}").taken
    operator.rounds.approvals()
    status = plan(operator, days=40)["status"]
    assert (status["deletions"], status["approval"]) == (1, {"state": "Required"})
    said = {one["type"]: one for one in status["conditions"]}
    assert (said["ApprovalValid"]["status"], said["ApprovalValid"]["reason"]) == ("False", "NotValid")
    assert "'sha256:abc'" in said["ApprovalValid"]["message"]
    assert said["CarriedOut"]["reason"] == "NoHelper", "the round went on"
    assert operator.server.ask("annotate", "--overwrite", "regplan", "retention", f"{APPROVE}={status['digest']}").taken
    operator.rounds.approvals()
    status = operator.server.get("regplan", "retention")["status"]
    assert status["approval"]["state"] == "Approved"
    assert {one["type"]: one["status"] for one in status["conditions"]}["ApprovalValid"] == "True"


def test_an_etcd_that_was_restored_is_told_by_what_it_remembers(operator: Operator, there: Site) -> None:
    """Its revision goes on here, as after `etcdutl snapshot restore --bump-revision`."""
    there.push("team/app", "v1")
    assert operator.server.send("create", [POLICY]).taken
    backup = plan(operator)["status"]
    assert plan(operator)["status"]["marker"] != backup["marker"]
    operator.rounds.objects.put_status("registryretentionplans", operator.server.get("regplan", "retention"), backup)
    found = plan(operator, days=40)
    assert "digest" not in found["status"]
    assert healthy(operator) == ("False", "ClusterOlder")
    made = next(one for one in found["status"]["conditions"] if one["type"] == "Made")
    approval = made["message"].rpartition(f"{APPROVE}=")[2]
    assert operator.server.ask("annotate", "regplan", "retention", f"{APPROVE}={approval}").taken
    assert plan(operator)["status"]["deletions"] == 1
    assert operator.server.ask("annotate", "regplan", "retention", f"{APPROVE}-").taken
    assert plan(operator)["status"]["deletions"] == 1, "it remembers what it was told since"


def test_nothing_to_delete_while_a_disk_fills_is_told(operator: Operator, there: Site) -> None:
    there.push("team/app", "v1")
    assert operator.server.send("create", [POLICY]).taken
    plan(operator)
    assert "NothingDeletable" not in operator.look()
    there.agents["cp-2"].values["data_free_bytes"] = 10e9
    assert operator.look()["NothingDeletable"] == "True"
    assert operator.conditions()["NothingDeletable"]["reason"] == "PolicyKeepsAll"
    plan(operator, days=40)
    assert operator.look()["NothingDeletable"] == "False"
    assert operator.conditions()["NothingDeletable"]["reason"] == "Deletable"


def test_the_plan_of_a_policy_that_is_gone_is_empty(operator: Operator, there: Site) -> None:
    there.push("team/app", "v1")
    assert operator.server.send("create", [POLICY]).taken
    assert "digest" in plan(operator)["status"]
    assert operator.server.ask("delete", "regp", "retention").taken
    status = plan(operator)["status"]
    assert "digest" not in status
    assert status["conditions"][0]["reason"] == "NoPolicy"


def test_why_there_is_no_plan(operator: Operator, there: Site) -> None:
    there.push("team/app", "v1")
    path = {"apiVersion": "nosuch.example/v1", "resource": "things", "path": ".spec.image"}
    assert operator.server.send("create", [changed(POLICY, put("spec.imagePaths", [path]))]).taken
    found = plan(operator, days=40)
    assert "digest" not in found["status"]
    said = {one["type"]: one for one in found["status"]["conditions"]}
    assert said["CarriedOut"]["reason"] == "NoPlan"
    made = said["Made"]
    assert (made["status"], made["reason"]) == ("False", "UsesIncomplete")
    assert "cannot list things.nosuch.example" in made["message"]
    assert healthy(operator) == ("False", "UsesIncomplete")
    operator.rounds.the_way = lambda: there.way.__class__(there.way.ca, dial=there.dial)
    plan(operator)
    assert healthy(operator) == ("False", "NoCredentials")


def test_a_policy_that_only_the_api_server_takes(operator: Operator) -> None:
    bad = changed(POLICY, put("spec.rules.0.keep", {"tags": ["v[9-0]"]}))
    assert operator.server.send("create", [bad]).taken
    operator.rounds.plans()
    accepted, planned = operator.server.get("regp", "retention")["status"]["conditions"]
    assert (accepted["type"], accepted["status"], accepted["reason"]) == ("Accepted", "False", "Invalid")
    assert (planned["type"], planned["status"], planned["reason"]) == ("RetentionHealthy", "False", "PolicyInvalid")
    assert healthy(operator) == ("False", "PolicyInvalid")


# ---- writes ---------------------------------------------------------------------------------------------------------


def test_nothing_is_written_after_the_lease(operator: Operator) -> None:
    operator.look()
    before = operator.object
    operator.leadership.stop_acting()
    for verb in (
        lambda: operator.rounds.objects.put_status("registryclusters", before, {}),
        lambda: operator.rounds.objects.create("/api/v1/namespaces", {"metadata": {"name": "x"}}),
        lambda: operator.rounds.objects.merge("/api/v1/namespaces/default", {"metadata": {"labels": {"x": "y"}}}),
    ):
        with pytest.raises(Lost):
            verb()
    assert operator.object == before


def test_an_old_look_does_not_overwrite_what_came_after(operator: Operator) -> None:
    """What a leader that was paused between the look at the clock and the request would do."""
    operator.look()
    old = operator.object
    assert operator.server.ask("label", "regc", "registry", "c=d").taken
    with pytest.raises(ConnectionFailed) as caught:
        operator.rounds.objects.put_status("registryclusters", old, {})
    assert caught.value.code == "ObjectChanged"
