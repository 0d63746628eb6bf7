"""What observations mean, how conditions keep their times, and what of a change is worth an Event."""

from __future__ import annotations

import json
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kubeadm_registry import config, pki
from kubeadm_registry.access import questions
from kubeadm_registry.access.executor import ByHelper
from kubeadm_registry.access.replacing import Standing
from kubeadm_registry.agent import status as agents
from kubeadm_registry.custom_resources.plans import PlanStatus
from kubeadm_registry.errors import ConfigError, ConnectionFailed, Error, RegistryError
from kubeadm_registry.members import Members
from kubeadm_registry.operator import health, images, looking, plans, way
from kubeadm_registry.operator.conditions import BAD, Verdict, changes, merged
from kubeadm_registry.operator.figures import Figures
from kubeadm_registry.operator.health import Seen
from kubeadm_registry.operator.probes import Agent, Probe, agent, parsed
from kubeadm_registry.operator.rounds import Rounds
from kubeadm_registry.operator.watching import Changes
from kubeadm_registry.operator.way import Way
from kubeadm_registry.retention import Plan, Reason, Refused, Use, policy
from kubeadm_registry.retention.pulls import Pulls
from kubeadm_registry.retention.record import Deletion
from kubeadm_registry.upkeep.clusters import ClusterReport
from tests.unit.agent_sample import every_condition, everything

CLUSTER = config.parse(config.SMALLEST, "x")
NOW = datetime(2030, 1, 1, tzinfo=UTC)
ENDS = NOW + timedelta(days=300)
DIGEST = "sha256:" + "a" * 64
NODES = {node.name: node.address for node in CLUSTER.spec.nodes}
VALUES = {"vip_held": 0.0, "fit": 1.0, "data_free_bytes": 50e9, "data_size_bytes": 100e9}


def seen(
    name: str, *, reason: str = "", agent: Agent | str | None = None, ends: datetime = ENDS, **values: Any
) -> Seen:
    probe = Probe(reason, "why" if reason else "", "" if reason == "Unreachable" else name,
                  None if reason == "Unreachable" else ends)  # fmt: skip
    return Seen(name, probe, Agent(frozenset(), {**VALUES, **values}) if agent is None else agent)


LATE = NOW + timedelta(days=3000)


def judged(*nodes: Seen, vip: Probe | None = None, authority: datetime = LATE) -> dict[str, Verdict]:
    found = nodes or (seen("cp-1", vip_held=1.0), seen("cp-2"), seen("cp-3"))
    return {
        one.kind: one for one in health.of_cluster(CLUSTER, vip or Probe(node="cp-1", ends=ENDS), found, authority, NOW)
    }


@pytest.mark.parametrize("content", ["", "x", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"])
def test_a_secret_without_a_certificate_is_told(tmp_path: Path, content: str) -> None:
    """Else each look would fail before it says anything, and the status would stay as it was."""
    (tmp_path / way.CA).write_text(content)
    with pytest.raises(ConfigError, match=way.CA) as caught:
        way.read(tmp_path)
    assert caught.value.code == "NoCredentials"
    (tmp_path / way.CA).write_text(pki.make_ca("x").certificate)
    assert way.read(tmp_path).login is None


def test_all_is_well() -> None:
    found = judged()
    assert all(one.good for one in found.values())
    assert found["SplitVIP"].message == "cp-1 holds it"
    assert found["CertificatesValid"].message.startswith("the certificate of cp-1 expires first, on 2030-10-28")


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([seen("a", vip_held=1.0), seen("b", vip_held=1.0)], {"SplitVIP": (True, "TwoHolders")}),
        ([seen("a", data_free_bytes=14e9)], {"StorageFilling": (True, "DiskFills")}),
        ([seen("a", data_free_bytes=1e9)], {"StorageFilling": (True, "DiskFull")}),
        ([seen("a"), seen("b", data_writable=0.0)],
         {"RedundancyComplete": (False, "DiskUnwritable"), "CanLoseANode": (False, "DiskUnwritable")}),
        ([seen("a"), seen("b", data_free_inodes=99.0, data_inodes=10_000.0)],
         {"RedundancyComplete": (False, "InodesExhausted"), "CanLoseANode": (False, "InodesExhausted")}),
        ([seen("a", data_writable=1.0, data_free_inodes=0.0, data_inodes=0.0)], {}),
        ([seen("a", data_full_seconds=NOW.timestamp() + 6 * 86400)], {"StorageFilling": (True, "FullSoon")}),
        ([seen("a", data_full_seconds=NOW.timestamp() - 5)], {"StorageFilling": (True, "FullSoon")}),
        ([seen("a", data_full_seconds=NOW.timestamp() + 8 * 86400)], {}),
        ([seen("a", data_free_bytes=14e9), seen("b", agent="no response")], {"StorageFilling": (True, "DiskFills")}),
        ([seen("a"), seen("b", agent="no response")],
         {"StorageFilling": (None, "AgentsSilent"), "SplitVIP": (None, "AgentsSilent"),
          "RedundancyComplete": (None, "AgentsSilent"), "CanLoseANode": (None, "AgentsSilent"),
          "Degraded": (None, "AgentsSilent")}),
        ([seen("a"), seen("b", reason="Unreachable", agent="no response")],
         {"Degraded": (True, "Unreachable"), "RedundancyComplete": (False, "NodeUnreachable"),
          "CanLoseANode": (False, "NodeNotServing"), "CertificatesValid": (None, "NoCertificate")}),
        ([seen("a", agent=Agent(frozenset({"StorageCopying"}), VALUES))],
         {"RedundancyComplete": (False, "StorageCopying"), "Degraded": (True, "AgentReports")}),
        ([seen("a"), seen("b", agent=Agent(frozenset(), VALUES, frozenset({"c"})))],
         {"CanLoseANode": (False, "PeerSilent"), "RedundancyComplete": (True, "AllCopied")}),
        ([seen("a", agent=Agent(frozenset({"MembersDiffer"}), VALUES)), seen("b", agent="no response")],
         {"CanLoseANode": (False, "MembersDiffer"), "RedundancyComplete": (None, "AgentsSilent")}),
        ([seen("a", storage_lost_blocks=2.0)],
         {"Degraded": (True, "BlocksLost"), "RedundancyComplete": (True, "AllCopied"),
          "CanLoseANode": (True, "Redundant")}),
        ([seen("a", storage_lost_blocks=0.0)], {"Degraded": (False, "AllServe")}),
        ([seen("a", ends=NOW + timedelta(days=20))], {"CertificatesValid": (True, "EndsSoon")}),
        ([seen("a", ends=NOW - timedelta(days=1))], {"CertificatesValid": (False, "Expired")}),
        ([seen("a", reason="CredentialsRefused")],
         {"Degraded": (True, "CredentialsRefused"), "CanLoseANode": (None, "CredentialsRefused")}),
    ],
)  # fmt: skip
def test_what_is_wrong(nodes: list[Seen], expected: dict[str, tuple[bool | None, str]]) -> None:
    found = judged(*nodes)
    assert {kind: (found[kind].status, found[kind].reason) for kind in expected} == expected


@pytest.mark.parametrize(
    ("vip", "status"),
    [(Probe("Unreachable", "no response"), False), (Probe("CredentialsRefused", "401"), None), (Probe(), True)],
)
def test_the_registry_is_available_if_the_virtual_ip_serves(vip: Probe, status: bool | None) -> None:
    assert judged(vip=vip)["Available"].status is status


def test_an_authority_that_ended_is_all_that_counts() -> None:
    assert judged(authority=NOW - timedelta(days=1))["CertificatesValid"].reason == "AuthorityEnded"
    assert judged(authority=NOW + timedelta(days=300))["CertificatesValid"].reason == "AuthorityEndsSoon"


def test_metrics_are_read_as_agents_write_them() -> None:
    found = parsed(agents.metrics(everything(), 1.5))
    assert found.conditions == set(every_condition())
    assert found.holds_vip
    assert (found.values["data_free_bytes"], found.values["data_size_bytes"]) == (1, 2)
    assert {"fit", "level"} <= found.values.keys()
    assert not found.unheard


def test_an_agent_says_whom_it_does_not_hear() -> None:
    said = everything()
    said["peers"]["b"]["level"] = 3
    assert parsed(agents.metrics(said, 1.5)).unheard == {"b"}


# ---- conditions -----------------------------------------------------------------------------------------------------


def test_the_time_of_a_condition_is_that_of_its_status() -> None:
    first = merged(None, [Verdict("Degraded", False, "Healthy", "a")], 0, 1)
    assert first[0]["lastTransitionTime"] == "1970-01-01T00:00:00Z"
    other = merged(first, [Verdict("Degraded", False, "Other", "b")], 60, 2)
    assert (other[0]["lastTransitionTime"], other[0]["message"]) == ("1970-01-01T00:00:00Z", "b")
    assert merged(other, [Verdict("Degraded", None, "x", "")], 60, 2)[0]["lastTransitionTime"] == "1970-01-01T00:01:00Z"


def test_no_condition_has_a_time_that_is_to_come() -> None:
    """As an operator wrote it whose clock was a year ahead. From then on it would be true in a year."""
    ahead = merged(None, [Verdict("Available", False, "Unreachable", "no response")], 365 * 86400, 1)
    for now, expected in ((60, "1970-01-01T00:01:00Z"), (90, "1970-01-01T00:01:00Z")):
        ahead = merged(ahead, [Verdict("Available", False, "Unreachable", "no response")], now, 1)
        assert ahead[0]["lastTransitionTime"] == expected


def test_what_was_not_looked_at_stays() -> None:
    first = merged(None, [Verdict("A", True, "x", ""), Verdict("B", True, "x", "")], 0, 1)
    again = merged(first, [Verdict("B", False, "y", "")], 60, 2)
    assert again[0] == first[0]
    assert again[1]["status"] == "False"


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (None, Verdict("Available", True, "Serving", ""), False),
        (None, Verdict("Available", False, "Unreachable", ""), True),
        (None, Verdict("Available", None, "NotLookedYet", ""), False),
        (None, Verdict("Degraded", True, "Unreachable", ""), True),
        (None, Verdict("Degraded", False, "Healthy", ""), False),
        (Verdict("Degraded", False, "Healthy", ""), Verdict("Degraded", True, "x", ""), True),
        (Verdict("Degraded", True, "x", "a"), Verdict("Degraded", True, "x", "b"), False),
        (Verdict("Degraded", True, "x", ""), Verdict("Degraded", True, "y", ""), True),
        (Verdict("Degraded", True, "x", ""), Verdict("Degraded", False, "Healthy", ""), True),
    ],
)
def test_a_change_is_one_of_status_or_reason(before: Verdict | None, now: Verdict, told: bool) -> None:
    old = merged(None, [before], 0, 1) if before else None
    assert list(changes(old, [now])) == ([now] if told else [])


def test_what_is_good() -> None:
    assert Verdict("Available", True, "", "").good
    assert not Verdict("Available", None, "", "").good
    assert {Verdict(kind, False, "", "").good for kind in BAD} == {True}


# ---- the rest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "place"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("10.0.0.10:5000/team/app:v1", "team/app:v1"),
        ("other.example/x:1", None),
        ("10.0.0.99:5000/team/app:v1", None),
        ("Not a name", None),
    ],
)
def test_where_a_node_looks_for_an_image(reference: str, place: str | None) -> None:
    found = images.place_of(CLUSTER, reference)
    assert (str(found) if found else None) == place


def test_a_pod_may_name_the_registry_by_an_ipv6_address() -> None:
    cluster = config.parse(config.SMALLEST.replace("10.0.0.1", "fd00::1") + '  mirrors: ["*"]\n', "x")
    assert str(images.place_of(cluster, "[fd00::10]:5000/team/app")) == "team/app:latest"
    assert images.place_of(cluster, "[fd00::99]:5000/team/app:v1") is None, "docs/containerd.md"


@pytest.mark.parametrize("status", [500, 400, 404])
def test_a_name_that_the_registry_has_no_place_for_hides_no_missing_image(status: int) -> None:
    """Whoever may create pods may name anything; Distribution answers 500 to names of more than 255 characters."""
    long, lacking, there = "10.0.0.10:5000/" + "a" * 300 + ":v1", "10.0.0.10:5000/b:v1", "10.0.0.10:5000/c:v1"

    class Asked:
        def digest(self, repository: str, _: str) -> str | None:
            if len(repository) > 255 and status != 404:
                raise RegistryError("name invalid", status=status, temporary=status == 500)
            return DIGEST if repository == "c" else None

    report = ClusterReport("u", "v1.36.3", tuple(Use(name, users=("Pod x/y",)) for name in (long, lacking, there)))
    found = images.verdict(CLUSTER, lambda: nullcontext(Asked()), report)  # type: ignore[arg-type]
    assert (found.status, found.reason) == (True, "NotInRegistry")
    assert found.message.startswith("2 images")
    assert "b:v1 ('Pod x/y')" in found.message


def test_a_registry_that_does_not_answer_is_not_one_that_lacks_images() -> None:
    class Away:
        def digest(self, *_: str) -> str | None:
            raise RegistryError("status 403", status=403)

    report = ClusterReport("u", "v1.36.3", (Use("10.0.0.10:5000/b:v1"),))
    found = images.verdict(CLUSTER, lambda: nullcontext(Away()), report)  # type: ignore[arg-type]
    assert (found.status, found.reason) == (None, "RegistryNotAsked")


@pytest.mark.parametrize(
    ("listed", "since"),
    [
        (Members(2, NODES), 5),
        (None, 5),
        (Members(2, {**NODES, "cp-4": "10.0.0.14"}), None),
        (Members(2, {**NODES, "cp-4": "10.0.0.14"}, ("cp-1", "cp-2", "cp-3")), None),
    ],
    ids=["listed", "release 0.1", "not listed", "joining"],
)
def test_pulls_through_a_node_that_is_not_listed_may_be_any(
    listed: Members | None, since: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(content: bytes, _: float) -> bytes:
        told = json.loads(content)["verb"] == "replacing"
        return questions.answer(Standing(False, listed, None).values() if told else Pulls(5, {}).to_dict())

    monkeypatch.setattr(Way, "nodes", lambda *_: [ByHelper(name, ask) for name in NODES])
    assert looking.pulls(CLUSTER, Way("ca")).since == since


def test_pulls_are_not_known_where_a_node_cannot_be_asked_who_is_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(content: bytes, _: float) -> bytes:
        if json.loads(content)["verb"] == "replacing":
            raise ConnectionFailed("no route to host")
        return questions.answer(Pulls(5, {}).to_dict())

    monkeypatch.setattr(Way, "nodes", lambda *_: [ByHelper(name, ask) for name in NODES])
    assert looking.pulls(CLUSTER, Way("ca")).since is None


def test_a_refused_plan_says_every_reason() -> None:
    made = Refused((Reason("UsesIncomplete", "cannot list Pods", "fix it"), Reason("SetMissing", "no set", "remove")))
    verdict = plans.healthy(made)
    assert (verdict.status, verdict.reason) == (False, "UsesIncomplete")
    assert verdict.message == "cannot list Pods; no set [SetMissing]; fix it"
    rules = policy.parse(policy.SMALLEST, "x")
    found = plans.status(made, rules, 3, {}, approved=(), now=0)
    assert found.keys() == {"policyGeneration", "conditions"}


@pytest.mark.parametrize(
    ("asked", "approved", "needs", "state"),
    [
        ("Required", (), False, "Required"),
        ("Automatic", (), False, "NotRequired"),
        ("Automatic", (), True, "Required"),
        ("Automatic", ("sha256:other",), True, "Outdated"),
        ("Required", ("sha256:this",), True, "Approved"),
        ("Required", ("UsesShrank=3", "sha256:this"), False, "Approved"),
        ("Required", ("UsesShrank=3",), False, "Required"),
    ],
)
def test_an_approval_names_the_plan(asked: str, approved: tuple[str, ...], needs: bool, state: str) -> None:
    plan = {"digest": "sha256:this", "needsApproval": ["x"] if needs else []}
    assert plans.approval(plan, asked, approved)["state"] == state


def test_approvals_are_read_from_the_annotation() -> None:
    assert plans.approvals(None) == ()
    assert plans.approvals({"metadata": {}}) == ()
    annotated = {"metadata": {"annotations": {plans.APPROVE: f"{DIGEST}, sha256:a, UsesShrank=3,"}}}
    assert plans.approvals(annotated) == (DIGEST, "UsesShrank=3")


def test_why_there_is_no_plan_is_told_with_the_annotation_that_overrules_it() -> None:
    reason = Reason("ClusterOlder", "it went back", "pass --accept ClusterOlder=9", approval="ClusterOlder=9")
    verdict = plans.healthy(Refused((reason,)))
    assert verdict.reason == "ClusterOlder"
    assert verdict.message.endswith("annotate the plan: kubeadm-registry.dev/approve=ClusterOlder=9")
    assert "--accept" not in verdict.message


@pytest.mark.parametrize(
    ("deletable", "filling", "status", "reason"),
    [
        (0, True, True, "PolicyKeepsAll"),
        (2, True, False, "Deletable"),
        (0, False, False, "EnoughSpace"),
        (0, None, None, "DiskUnknown"),
        (None, True, None, "NoPlan"),
    ],
)
def test_nothing_to_delete_while_a_disk_fills_is_a_condition_of_its_own(
    deletable: int | None, filling: bool | None, status: bool | None, reason: str
) -> None:
    verdict = plans.stuck(deletable, filling)
    assert (verdict.kind, verdict.status, verdict.reason) == ("NothingDeletable", status, reason)
    assert verdict.good is (status is False)


def test_an_approval_is_for_one_run_until_it_is_written_again() -> None:
    annotated: dict[str, Any] = {"metadata": {"annotations": {plans.APPROVE: f"{DIGEST},UsesShrank=3"}}, "status": {}}
    assert plans.unused(annotated) == (DIGEST, "UsesShrank=3")
    annotated["status"] = plans.spent(annotated["status"], [DIGEST])
    assert plans.unused(annotated) == ("UsesShrank=3",)
    assert plans.used(annotated) == {"usedApprovals": [DIGEST]}
    annotated["metadata"]["annotations"] = {}
    assert plans.used(annotated) == {}, "whoever writes it again means it"
    assert plans.spent({}, []) == {}
    assert plans.spent({"usedApprovals": [DIGEST, "UsesShrank=3"]}, [], [DIGEST]) == {"usedApprovals": ["UsesShrank=3"]}
    assert plans.spent({"usedApprovals": [DIGEST], "digest": DIGEST}, [], [DIGEST]) == {"digest": DIGEST}


def test_an_empty_plan() -> None:
    rules = policy.parse(policy.SMALLEST, "x")
    found = plans.status(Plan("retention", 0, (), ()), rules, 1, {}, approved=(), now=0)
    assert (found["deletions"], found["freed"], found["largest"]) == (0, "0 bytes", [])


def test_a_plan_shows_names_that_are_longer_than_clients_take() -> None:
    """Who pushes such a name must not keep the plan from being shown, and with it from being carried out."""
    rules = policy.parse(policy.SMALLEST, "x")
    one = Deletion("team/" + "a" * 300, "t" * 200, DIGEST, "NotKept", "ci", "too old", 9, 9, 9)
    found = PlanStatus.model_validate_json(json.dumps(plans.status(
        Plan("retention", 0, (one,), ()), rules, 1, {}, approved=(), now=0
    )))  # fmt: skip
    assert found.largest is not None
    assert found.largest[0].repository.startswith("team/aaa")


@pytest.mark.parametrize(("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "2 kB"), (5e7, "50.0 MB"),
                                             (1.84e10, "18.4 GB"), (2e12, "2.0 TB"), (2e15, "2000.0 TB")])  # fmt: skip
def test_sizes(count: float, text: str) -> None:
    assert plans.size(count) == text


def test_only_what_people_change_wakes() -> None:
    changed = Changes()

    def event(kind: str, generation: int, **more: Any) -> dict[str, Any]:
        return {"type": kind, "object": {"metadata": {"uid": "u", "generation": generation, **more}, "status": {}}}

    assert changed.is_new(event("ADDED", 1))
    assert not changed.is_new(event("MODIFIED", 1)), "a status"
    assert changed.is_new(event("MODIFIED", 2))
    assert changed.is_new(event("MODIFIED", 2, annotations={plans.APPROVE: "sha256:a"}))
    assert changed.is_new(event("DELETED", 2))
    assert changed.is_new(event("ADDED", 2))


@pytest.mark.parametrize(
    ("days", "expected"), [(1, "connection refused"), (-1, "expired"), (None, "not a certificate")]
)
def test_a_certificate_that_reads_no_metrics_any_more_is_named(
    tmp_path: Path, days: int | None, expected: str
) -> None:  # fmt: skip
    """It ends three years after `operator install`, and agents say of it in their own words what is in a TLS alert."""
    authority, file = pki.make_ca("registry"), tmp_path / "metrics.pem"
    lifetime = timedelta(days=days or 0)
    pair = pki.issue(authority, "operator", [], unit=pki.METRICS_UNIT, lifetime=lifetime)
    file.write_text(pair.certificate + pair.key if days else "")
    closed = Way(authority.certificate, metrics=file, dial=lambda *_: ("127.0.0.1", 1))
    said = agent(closed, "10.0.0.11")
    assert isinstance(said, str)
    assert expected in said
    assert ("run `kubeadm-registry operator install`" in said) is (days != 1)


def test_metrics_of_the_operator() -> None:
    figures = Figures()
    figures.set("leader", 1)
    figures.replace("condition", {(("type", "A"), ("status", "True")): 1})
    figures.replace("condition", {(("type", "A"), ("status", "False")): 1})
    figures.add("errors_total", round="plans")
    figures.add("errors_total", round="plans")
    lines = [line for line in figures.text().splitlines() if not line.startswith("#")]
    assert lines == [
        'kubeadm_registry_operator_condition{type="A",status="False"} 1',
        'kubeadm_registry_operator_errors_total{round="plans"} 2',
        "kubeadm_registry_operator_leader 1",
    ]


def test_what_is_so_of_the_registry_is_exported_while_a_second_object_is_told_that_it_is_one() -> None:
    """For an alert to last, all the time: the look that comes next takes seconds."""
    document = CLUSTER.model_dump(by_alias=True, exclude_none=True, mode="json")
    found = [{**document, "metadata": {"name": name, "generation": 1}} for name in ("registry", "second")]
    objects: Any = SimpleNamespace(list=lambda _: found, put_status=lambda *_: False)
    figures = Figures()
    figures.set("condition", 1, type="ImagesMissing", status="True")
    before = figures.text()

    def way() -> Way:
        raise Error("the look begins")

    with pytest.raises(Error, match="the look begins"):
        Rounds("here", objects, cast(Any, None), way, figures, cast(Any, None)).health()
    assert figures.text() == before
