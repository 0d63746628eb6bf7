"""The operator's rounds of plans: what they write to the API server, and what of that people's annotations change."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from kubeadm_registry.access import executor
from kubeadm_registry.custom_resources.plans import PlanStatus, PolicyStatus
from kubeadm_registry.custom_resources.status import ClusterStatus
from kubeadm_registry.errors import CommandTimeout, ConnectionFailed, Error, RegistryError
from kubeadm_registry.operator import carrying, looking, probes
from kubeadm_registry.operator.conditions import Verdict, seconds_of
from kubeadm_registry.operator.figures import Figures
from kubeadm_registry.operator.health import Seen
from kubeadm_registry.operator.plans import APPROVE
from kubeadm_registry.operator.probes import Probe
from kubeadm_registry.operator.rounds import Rounds
from kubeadm_registry.operator.way import Way
from kubeadm_registry.operator.work import Worker
from kubeadm_registry.registry import Login
from kubeadm_registry.retention import policy
from kubeadm_registry.retention.order import Caller
from kubeadm_registry.retention.pulls import Pulls
from kubeadm_registry.retention.uses import failed_list
from kubeadm_registry.upkeep import clusters, planning, running, store
from kubeadm_registry.upkeep.clusters import ClusterReport
from kubeadm_registry.upkeep.running import Prepared
from tests.unit.fake_cluster import FakeCluster
from tests.unit.fake_images import Repositories
from tests.unit.fake_registry import connector
from tests.unit.image_site import NAMES
from tests.unit.test_cli_retention_runs import DAY, Site, takes_long
from tests.unit.test_operator_carrying import AUTOMATIC, KEY, Operator

pytest_plugins = ["tests.unit.image_site"]

pytestmark = pytest.mark.slow

STATUSES: dict[str, type[BaseModel]] = {
    "registryclusters": ClusterStatus,
    "registrypolicies": PolicyStatus,
    "registryretentionplans": PlanStatus,
}


@dataclass
class Objects:
    """The API server: what it holds by kind, and the schemas of the statuses."""

    held: dict[str, dict[str, Any]]
    events: list[dict[str, Any]] = field(default_factory=list)

    def list(self, plural: str) -> list[dict[str, Any]]:
        return [_copy(self.held[plural])] if plural in self.held else []

    def get(self, path: str) -> dict[str, Any] | None:
        plural, name = path.split("/")[-2:]
        found = self.held.get(plural)
        return _copy(found) if found is not None and found["metadata"]["name"] == name else None

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if body["kind"] == "Event":
            self.events.append(body)
            return body
        self.held[path.rpartition("/")[2]] = {**body, "metadata": {**body["metadata"], "uid": "p", "generation": 1}}
        return _copy(self.held[path.rpartition("/")[2]])

    def put_status(self, plural: str, found: dict[str, Any], status: dict[str, Any]) -> bool:
        if found.get("status") == status:
            return False
        held = self.held[plural]
        if found != held:
            raise ConnectionFailed("changed at the same time", code="ObjectChanged")
        try:
            STATUSES[plural].model_validate_json(json.dumps(status))
        except ValidationError as error:
            raise ConnectionFailed(f"the API server refuses it: {error}", code="ClusterRefused") from error
        held["status"] = _copy(status)
        return True


def _copy(found: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(found))
    return copied


class Turns:
    """Rounds of an operator by the *operator*'s site."""

    def __init__(self, operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.operator, self.site = operator, operator.site
        document = self.site.servers.cluster.config.model_dump(by_alias=True, exclude_none=True, mode="json")
        meta = {"name": "registry", "uid": "u", "generation": 1}
        self.objects = Objects({"registryclusters": {**document, "metadata": meta}})
        self.policy()
        self.woken = 0
        self.report = ClusterReport("the-cluster", "v1.36.3", revision="100")
        way = Way("ca", Login("push", "x"), KEY, helper=(Path("key"), Path("hosts")))
        monkeypatch.setattr(Way, "nodes", lambda *_: operator.nodes())
        monkeypatch.setattr(Way, "registry", lambda *_, **__: connector(self.site.registry))
        monkeypatch.setattr(clusters, "read", lambda *_, **__: self.report)
        api = SimpleNamespace(server="https://10.0.0.9:6443")
        self.rounds = Rounds(
            "here", self.objects, (api, api), lambda: way, Figures(), lambda: Caller("uid-1", 1),  # type: ignore[arg-type]
            wake_plans=self.wake, clock=self.site.now,
        )  # fmt: skip

    def wake(self) -> None:
        self.woken += 1

    def policy(self, more: str = "", generation: int = 1) -> None:
        """Write the policy, with *more* in its spec."""
        self.site.policy(more)
        document = yaml.safe_load((self.site.folder / "policy.yaml").read_text())
        document["metadata"] |= {"uid": "r", "generation": generation}
        self.objects.held["registrypolicies"] = document

    def round(self) -> dict[str, Any]:
        """A round of plans, then one of approvals as the event about the plan wakes it; the status of the plan."""
        self.rounds.plans()
        self.rounds.approvals()
        found: dict[str, Any] = self.plan["status"]
        return found

    @property
    def plan(self) -> dict[str, Any]:
        return self.objects.held["registryretentionplans"]

    def annotate(self, text: str | None) -> None:
        self.plan["metadata"]["annotations"] = {} if text is None else {APPROVE: text}

    def conditions(self, plural: str = "registryretentionplans") -> dict[str, tuple[str, str]]:
        found = self.objects.held[plural]["status"]["conditions"]
        return {one["type"]: (one["status"], one["reason"]) for one in found}


@pytest.fixture
def turns(three: FakeCluster, fake: Repositories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Turns:
    monkeypatch.setattr(executor, "INTERVAL", 0.0)
    return Turns(Operator(Site(three, fake, tmp_path)), monkeypatch)


# ---- what an annotation may have -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", ["sha256:abc", "sha256:" + "A" * 64, "sha256:" + "0" * 65, "ClusterOlder", "yes, please", "x" * 300],
    ids=["short", "upper", "long", "bare", "words", "longer than the status holds"],
)  # fmt: skip
def test_a_mistyped_approval_is_named_and_stops_nothing(turns: Turns, wrong: str) -> None:
    digest = turns.round()["digest"]
    turns.annotate(wrong)
    turns.rounds.approvals()
    status = turns.round()
    assert status["approval"] == {"state": "Required"}
    assert turns.conditions()["ApprovalValid"] == ("False", "NotValid")
    [said] = [one["message"] for one in status["conditions"] if one["type"] == "ApprovalValid"]
    assert wrong.split(",", maxsplit=1)[0][:60] in said
    assert [one["reason"] for one in turns.objects.events].count("NotValid") == 1
    assert turns.site.tags() == ["v1", "v2", "v3"]
    turns.annotate(f"{wrong},{digest}")
    turns.round()
    assert turns.site.tags() == ["v3"], "what is valid beside it counts"
    assert turns.plan["status"]["usedApprovals"] == [digest]
    turns.annotate(None)
    turns.round()
    assert turns.conditions()["ApprovalValid"] == ("True", "Valid")


def test_an_approval_that_the_status_has_no_place_for_is_none(turns: Turns) -> None:
    """Else it would never be spent."""
    digest = turns.round()["digest"]
    turns.annotate(",".join([*(f"Some={number}" for number in range(32)), digest]))
    turns.round()
    assert turns.conditions()["ApprovalValid"] == ("False", "NotValid")
    assert turns.site.tags() == ["v1", "v2", "v3"]


def test_without_a_wrong_approval_there_is_no_such_condition(turns: Turns) -> None:
    turns.round()
    assert "ApprovalValid" not in turns.conditions()


def test_an_approval_that_was_withdrawn_in_the_last_moment_is_not_carried_out(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = turns.round()["digest"]
    turns.annotate(f"{digest},UsesShrank=3")
    prepare = carrying.prepare

    def withdrawn(*words: Any, **values: Any) -> Prepared:
        turns.annotate("UsesShrank=3")
        return prepare(*words, **values)

    with monkeypatch.context() as patch:
        patch.setattr(carrying, "prepare", withdrawn)
        turns.rounds.plans()
    assert turns.site.tags() == ["v1", "v2", "v3"]
    assert turns.woken == 1
    assert turns.round()["approval"] == {"state": "Required"}
    assert turns.conditions()["CarriedOut"] == ("Unknown", "ApprovalRequired")
    turns.annotate(digest)
    turns.round()
    assert turns.site.tags() == ["v3"]


def test_the_pause_image_of_the_registry_cluster_stays(turns: Turns) -> None:
    turns.policy(AUTOMATIC)
    turns.objects.held["registryclusters"]["spec"]["containerd"] = {"sandboxImage": "10.0.0.10:5000/app:v1"}
    turns.round()
    assert turns.site.tags() == ["v1", "v3"]


def test_a_plan_has_as_many_images_as_the_command_says(turns: Turns) -> None:
    """Those of the registry's own, as its records, are in neither."""
    turns.round()
    [healthy] = [
        one["message"]
        for one in turns.objects.held["registrypolicies"]["status"]["conditions"]
        if one["type"] == "RetentionHealthy"
    ]
    status = turns.objects.held["registryretentionplans"]["status"]
    told = f"deletes 2 of {2 + status['kept']} images"
    assert healthy.startswith(f"the plan {told} and frees ")
    assert f"plan {status['digest']}: {told}, frees " in turns.site.good("plan", "--digest", status["digest"])


def test_a_path_that_finds_no_image_is_told_by_a_condition_of_the_policy(turns: Turns) -> None:
    """A mistyped one: what only those objects name is not kept, and nobody reads the warnings of a command."""
    turns.round()
    assert "ImagePathsMatch" not in turns.conditions("registrypolicies")
    right, wrong = turns.report, "argoproj.io/v1alpha1/workflows .spec.tempaltes[*].image"
    turns.report = replace(right, unmatched=(wrong,))
    turns.round()
    assert turns.conditions("registrypolicies")["ImagePathsMatch"] == ("False", "NothingFound")
    [event] = [one for one in turns.objects.events if one["reason"] == "NothingFound"]
    assert (event["type"], event["regarding"]["kind"]) == ("Warning", "RegistryPolicy")
    assert wrong in event["note"]
    turns.report = replace(right, problems=(failed_list("Pods", "403 Forbidden"),))
    turns.round()
    assert turns.conditions("registrypolicies")["ImagePathsMatch"] == ("False", "NothingFound"), "not all was read"
    turns.report = right
    turns.round()
    assert turns.conditions("registrypolicies")["ImagePathsMatch"] == ("True", "Match")


def test_pulls_that_are_not_known_are_told_by_a_condition_of_the_policy(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy deletes nothing until then, be it for years."""
    known = [Pulls(None, {})]
    monkeypatch.setattr(looking, "pulls", lambda *_: known[-1])
    turns.round()
    assert "PullsKnown" not in turns.conditions("registrypolicies"), "no rule asks for them"
    [rule] = turns.objects.held["registrypolicies"]["spec"]["rules"]
    rule["keep"] = {"pulledWithin": "30d"}
    turns.round()
    assert turns.conditions("registrypolicies")["PullsKnown"] == ("False", "NotOfAllNodes")
    assert [one["type"] for one in turns.objects.events if one["reason"] == "NotOfAllNodes"] == ["Warning"]
    known.append(Pulls(0, {}))
    turns.round()
    assert turns.conditions("registrypolicies")["PullsKnown"] == ("True", "Known")


def test_a_rule_that_decides_for_nothing_is_told_by_a_condition_of_the_policy(turns: Turns) -> None:
    """It has what the registry is called in front, or another rule before it: its images would stay for ever."""
    turns.round()
    assert "RulesMatch" not in turns.conditions("registrypolicies")
    before = turns.objects.held["registrypolicies"]["spec"]["rules"]
    mistaken = {"name": "mine", "repositories": ["10.0.0.10:5000/app"], "keep": {"newest": 1}}
    turns.objects.held["registrypolicies"]["spec"]["rules"] = [*before, mistaken]
    turns.round()
    assert turns.conditions("registrypolicies")["RulesMatch"] == ("False", "NothingFound")
    [event] = [one for one in turns.objects.events if one["reason"] == "NothingFound"]
    assert event["note"] == "the rule mine decides for no repository: 10.0.0.10:5000/app"
    turns.objects.held["registrypolicies"]["spec"]["rules"] = before
    turns.round()
    assert turns.conditions("registrypolicies")["RulesMatch"] == ("True", "Match")


def test_an_object_that_cannot_be_read_does_not_count_as_a_second_one(turns: Turns) -> None:
    """The guard lets only a second one go."""
    turns.objects.held["registryclusters"]["spec"]["ofANewerRelease"] = 1
    turns.rounds.health()
    assert turns.conditions("registryclusters")["Adopted"] == ("False", "Invalid")


def test_a_policy_that_cannot_be_read_has_no_plan(turns: Turns) -> None:
    """An API server takes a range that goes backwards. Who approves the plan of before would wait in vain."""
    digest = turns.round()["digest"]
    assert turns.conditions("registrypolicies")["RetentionHealthy"] == ("True", "Planned")
    spec = turns.objects.held["registrypolicies"]["spec"]
    keep = spec["rules"][0]["keep"]
    spec["rules"][0]["keep"] = {"tags": ["v[9-0]"]}
    turns.annotate(digest)
    status = turns.round()
    assert "digest" not in status and "approval" not in status
    assert turns.conditions()["Made"] == ("False", "PolicyInvalid")
    assert turns.conditions("registrypolicies")["Accepted"] == ("False", "Invalid")
    assert turns.conditions("registrypolicies")["RetentionHealthy"] == ("False", "PolicyInvalid")
    spec["rules"][0]["keep"] = keep
    assert turns.round()["digest"] == digest
    assert turns.site.tags() == ["v3"], "the approval stands"


def test_of_an_object_that_cannot_be_read_nothing_is_said_that_nobody_looks_at(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a downgrade: the registry may fail meanwhile."""
    ends = datetime(2040, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(probes, "authority_ends", lambda _: ends)
    seen = [Seen(name, Probe(node=name, ends=ends), "no response") for name in ("cp-1", "cp-2", "cp-3")]
    monkeypatch.setattr(looking, "look", lambda *_: (Probe(node="cp-1", ends=ends), seen))
    turns.rounds._tell(Verdict("NodesInPlace", True, "AllInPlace", "they are"))
    turns.rounds._tell(Verdict("SpaceFreed", True, "Freed", "then"))
    turns.rounds._tell(Verdict("ImagesMissing", False, "AllThere", "all are"))
    turns.round()
    turns.rounds.health()
    valid = turns.conditions("registryclusters")
    assert {valid[kind][0] for kind in ("Available", "RetentionHealthy", "NodesInPlace", "Adopted")} == {"True"}
    turns.objects.held["registryclusters"]["spec"]["ofANewerRelease"] = 1
    turns.round()
    turns.rounds.health()
    found = dict.fromkeys(valid, ("Unknown", "Invalid")) | {"Adopted": ("False", "Invalid")}
    found |= {"RetentionHealthy": ("False", "NotAdopted"), "SpaceFreed": ("True", "Freed")}
    assert turns.conditions("registryclusters") == found
    del turns.objects.held["registryclusters"]["spec"]["ofANewerRelease"]
    turns.round()
    turns.rounds.health()
    assert turns.conditions("registryclusters") == valid


def test_of_plans_that_wait_only_what_they_delete_is_remembered_and_of_others_nothing(turns: Turns) -> None:
    """A plan has a reason for each image that stays, and there may be 100,000 of them."""
    digest = turns.round()["digest"]
    assert turns.round()["digest"] == digest
    assert {key: {tag for _, tag, _ in one} for key, one in turns.rounds._shown.items()} == {digest: {"v1", "v2"}}
    turns.site.registry.image("app", "v4", layer=b"v4")
    later = turns.round()["digest"]
    assert list(turns.rounds._shown) == [digest, later]
    turns.annotate(digest)
    turns.round()
    assert turns.site.tags() == ["v3", "v4"], "v3 was in no plan that somebody read"
    turns.policy(AUTOMATIC, generation=2)
    turns.rounds._shown.clear()
    turns.site.at(50)
    turns.round()
    assert turns.site.tags() == ["v4"]
    assert turns.rounds._shown == {}


def test_a_condition_is_so_since_it_was_found(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not since the round began, which may have been an hour before."""

    def takes_long(*words: Any) -> Any:
        turns.site.at(turns.site.day + 0.03)
        return read(*words)

    read = planning.reading.read
    monkeypatch.setattr(planning.reading, "read", takes_long)
    began = turns.site.now()
    turns.round()
    for plural in ("registrypolicies", "registryretentionplans"):
        for one in turns.objects.held[plural]["status"]["conditions"]:
            assert seconds_of(one["lastTransitionTime"]) > began + 2000, one["type"]


def test_a_node_that_was_replaced_leaves_the_metrics(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = datetime(2040, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(probes, "authority_ends", lambda _: ends)
    for last in ("cp-3", "cp-4"):
        seen = [Seen(name, Probe(node=name, ends=ends), "no response") for name in ("cp-1", "cp-2", last)]
        monkeypatch.setattr(looking, "look", lambda *_, seen=seen: (Probe(node="cp-1", ends=ends), seen))
        turns.rounds.health()
        page = turns.rounds.figures.text()
        assert re.findall(r'node_serves\{node="(.*)"\} 1', page) == ["cp-1", "cp-2", last]


def test_an_operator_that_was_down_for_a_week_plans_again(turns: Turns) -> None:
    turns.round()
    turns.site.at(turns.site.day + 7)
    turns.round()
    assert turns.conditions()["Made"] == ("True", "Planned")


def test_the_silence_of_another_cluster_stops_the_plans_until_it_is_approved(turns: Turns) -> None:
    turns.policy(AUTOMATIC)
    with connector(turns.site.registry)() as registry:
        when = int(turns.site.now()) - 2 * DAY
        store.write(registry, KEY, store.read(registry, KEY).reported("other", "other:6443", (), when, kept=DAY))
    for _ in range(2):
        turns.round()
        assert turns.conditions()["Made"] == ("False", "ClusterSilent")
        assert turns.conditions("registrypolicies")["RetentionHealthy"] == ("False", "ClusterSilent")
    assert turns.site.tags() == ["v1", "v2", "v3"]
    [said] = [one["message"] for one in turns.plan["status"]["conditions"] if one["type"] == "Made"]
    assert "`kubeadm-registry retention forget other:6443`" in said
    [approval] = re.findall(rf"annotate the plan: {re.escape(APPROVE)}=(\S+)$", said)
    turns.annotate(approval)
    turns.rounds.approvals()
    assert turns.woken == 1
    turns.round()
    assert turns.site.tags() == ["v3"]
    assert turns.plan["status"]["usedApprovals"] == [approval]
    turns.round()
    assert turns.conditions()["Made"] == ("False", "ClusterSilent"), "it was for one run"


# ---- what an approval is for ----------------------------------------------------------------------------------------


def undo(turns: Turns) -> None:
    """Restore what is in the trash, so that the plan is the same as before."""
    if "trash-" in "".join(turns.site.registry.store["app"].tags):
        turns.site.good("undo", "--all")


class Ends:
    """Ends the operator, or breaks the API server, at the write with that *number*, and at all that follow."""

    def __init__(self, number: int, error: BaseException, *, after: bool) -> None:
        self.number, self.error, self.after, self.writes = number, error, after, 0

    def __call__(self, write: Callable[..., Any], *words: Any) -> Any:
        self.writes += 1
        if self.writes > self.number:
            if self.after and self.writes == self.number + 1:
                write(*words)
            raise self.error
        return write(*words)


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after it"])
@pytest.mark.parametrize("ended", [True, False], ids=["operator ended", "API server gone"])
def test_a_round_that_ends_at_any_write_leaves_no_approval_by_which_something_has_gone(
    turns: Turns, monkeypatch: pytest.MonkeyPatch, after: bool, ended: bool
) -> None:
    """Else what `retention undo` brings back would go again by it."""
    error = Stopped() if ended else ConnectionFailed("no route to host", code="HostUnreachable")
    put, start, went = Objects.put_status, executor.ByHelper.start, []
    for number in itertools.count():
        digest = turns.round()["digest"]
        for text in (None, digest):
            turns.annotate(text)
            turns.rounds.approvals()
        ends = Ends(number, error, after=after)
        with monkeypatch.context() as patch:
            patch.setattr(Objects, "put_status", lambda *words, ends=ends: ends(put, *words))
            patch.setattr(executor.ByHelper, "start", lambda *words, ends=ends: ends(start, *words))
            with suppress(Stopped, ConnectionFailed):
                turns.rounds.plans()
        went.append(turns.site.tags() == ["v3"])
        undo(turns)
        assert turns.site.tags() == ["v1", "v2", "v3"]
        turns.round()
        turns.round()
        if went[-1]:
            assert turns.site.tags() == ["v1", "v2", "v3"], number
            assert turns.conditions()["CarriedOut"] == ("Unknown", "ApprovalRequired")
        undo(turns)
        if ends.writes <= number:
            break
    assert went[0] is False
    assert went.count(True) >= 2


def test_a_run_that_takes_longer_than_it_is_waited_for_has_used_the_approval(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns.annotate(turns.round()["digest"])

    def still_runs(*_: Any) -> None:
        raise CommandTimeout("it still runs after 3600 s")

    with monkeypatch.context() as patch:
        patch.setattr(executor, "_wait", still_runs)
        turns.round()
    assert turns.conditions()["CarriedOut"] == ("Unknown", "StillRuns")
    assert turns.site.tags() == ["v3"]
    undo(turns)
    turns.round()
    assert turns.site.tags() == ["v1", "v2", "v3"]


def test_an_approval_stands_where_nothing_could_be_begun(turns: Turns) -> None:
    turns.rounds.compare = lambda *_: None  # so that there is a plan where no node can be asked for its clock
    digest = turns.round()["digest"]
    turns.annotate(digest)
    turns.operator.away = NAMES
    turns.round()
    assert turns.conditions()["CarriedOut"] == ("False", "HostUnreachable")
    turns.operator.away = ()
    turns.site.executor.lease = None
    turns.round()
    assert turns.conditions()["CarriedOut"] == ("False", "NoExecutor")
    assert "usedApprovals" not in turns.plan["status"]
    turns.site.executor.lease = "cp-2"
    turns.round()
    assert turns.site.tags() == ["v3"]
    assert turns.plan["status"]["usedApprovals"] == [digest]


@pytest.mark.parametrize("code", ["NoExecutor", "ToolMissing"])
def test_an_approval_stands_where_a_run_could_not_begin(
    turns: Turns, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """The lease moves at that moment, or the node lacks the program."""

    def start(*_: Any) -> None:
        raise Error("it cannot begin here", code=code)

    digest = turns.round()["digest"]
    turns.annotate(digest)
    with monkeypatch.context() as patch:
        patch.setattr(executor.ByHelper, "start", start)
        turns.round()
    assert turns.conditions()["CarriedOut"] == ("False", code)
    turns.round()
    assert turns.site.tags() == ["v3"]


@pytest.mark.parametrize("outdated", [False, True], ids=["of this plan", "of an earlier one"])
def test_an_approval_stands_after_a_run_that_was_refused_or_had_no_time(
    turns: Turns, monkeypatch: pytest.MonkeyPatch, outdated: bool
) -> None:
    def start(*words: Any) -> None:
        turns.rounds.approvals()  # by the event about what was written just before
        begin(*words)

    begin = executor.ByHelper.start
    monkeypatch.setattr(executor.ByHelper, "start", start)
    digest = turns.round()["digest"]
    if outdated:
        turns.site.registry.image("app", "v4", layer=b"v4")
        turns.round()
    left = {"v3", "v4"} if outdated else {"v3"}
    turns.annotate(digest)
    turns.site.good("pause", "--reason", "wait")
    turns.round()
    assert turns.conditions()["CarriedOut"] == ("False", "OrderRefused")
    woken = turns.woken
    turns.round()
    assert turns.woken == woken, "it is tried again with the next plan, not at once"
    turns.site.good("resume")
    takes_long(turns.site)
    turns.round()
    assert turns.conditions()["CarriedOut"] == ("True", "Unfinished")
    assert {*turns.site.tags()} > left
    turns.round()
    assert {*turns.site.tags()} == left
    assert turns.plan["status"]["usedApprovals"] == [digest]


def test_an_approval_that_is_removed_and_written_again_is_another_one(turns: Turns) -> None:
    """With no plan in between: an approval wakes the round of plans, and its removal need not."""
    digest = turns.round()["digest"]
    turns.annotate(digest)
    turns.round()
    assert turns.site.tags() == ["v3"]
    undo(turns)
    turns.round()
    assert turns.site.tags() == ["v1", "v2", "v3"]
    woken = turns.woken
    for text in (None, digest):
        turns.annotate(text)
        turns.rounds.approvals()
    assert turns.woken > woken
    turns.round()
    assert turns.site.tags() == ["v3"]


def test_an_approval_that_was_used_is_used_when_the_policy_was_gone_in_between(turns: Turns) -> None:
    turns.annotate(turns.round()["digest"])
    turns.round()
    assert turns.site.tags() == ["v3"]
    written = turns.objects.held.pop("registrypolicies")
    turns.round()
    undo(turns)
    turns.objects.held["registrypolicies"] = written
    assert turns.round()["approval"]["state"] == "Required"
    assert turns.site.tags() == ["v1", "v2", "v3"]


# ---- the whole plan -------------------------------------------------------------------------------------------------


def test_the_whole_plan_is_in_the_registry_before_it_is_shown_or_carried_out(turns: Turns) -> None:
    turns.policy(AUTOMATIC)
    status = turns.round()
    assert turns.site.tags() == ["v3"], "it was carried out"
    assert turns.conditions()["Published"] == ("True", "Published")
    with connector(turns.site.registry)() as registry:
        assert registry.digest(store.REPOSITORY, "operator-plan") == status["artifact"]
        whole = store.read_operator_plan(registry, KEY)
    assert whole is not None
    assert whole.digest == status["digest"]
    assert [one.tag for one in whole.deletions] == ["v1", "v2"]
    [kept] = [one for one in whole.kept if one.repository == "app"]
    assert (kept.tags, kept.cause) == (("v3",), "Rule"), "with what stays, and why"
    assert turns.site.json("plan", "--digest", status["digest"])["digest"] == status["digest"]


def test_nodes_of_an_earlier_release_do_not_take_it_and_the_plan_runs_all_the_same(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise RegistryError("push operator-plan: 403, all but the tag ledger is written by retention only", status=403)

    monkeypatch.setattr(running, "publish", refuse)
    turns.policy(AUTOMATIC)
    status = turns.round()
    assert turns.conditions()["Published"] == ("False", "RegistryError")
    [said] = [one["message"] for one in turns.plan["status"]["conditions"] if one["type"] == "Published"]
    assert said.endswith("by retention only; the nodes have an earlier release: run `kubeadm-registry upgrade`")
    assert "artifact" not in status
    assert status["approval"] == {"state": "NotRequired"}
    assert turns.site.tags() == ["v3"]


def test_where_there_is_no_plan_none_is_published(turns: Turns) -> None:
    assert "artifact" in turns.round()
    turns.report = replace(turns.report, problems=(failed_list("pods", "refused"),))
    assert "artifact" not in turns.round()
    assert turns.conditions()["Published"] == ("Unknown", "NoPlan")
    turns.report = replace(turns.report, problems=())
    assert "artifact" in turns.round()
    del turns.objects.held["registrypolicies"]
    assert "artifact" not in turns.round()
    assert turns.conditions()["Published"] == ("Unknown", "NoPlan")


def test_plans_that_only_wait_do_not_fill_the_registry(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "MANY_RECORDS", 4)
    records = turns.site.registry.store[store.REPOSITORY]
    counts = []
    for _ in range(7):
        status = turns.round()
        counts.append(len(records.manifests))
        assert turns.conditions()["CarriedOut"] == ("Unknown", "ApprovalRequired")
    assert max(counts) <= len(records.tags) + 4 + 2, "as many as are let be, and what a round replaces"
    assert counts[-1] > min(counts[3:]), "not after each plan"
    assert status["artifact"] in records.manifests
    assert turns.site.tags() == ["v1", "v2", "v3"]


def test_a_replica_that_leads_no_more_publishes_nothing(turns: Turns) -> None:
    def lost() -> Caller:
        raise Stopped

    turns.rounds.caller = lost
    with pytest.raises(Stopped):
        turns.rounds.plans()
    with connector(turns.site.registry)() as registry:
        assert store.read_operator_plan(registry, KEY) is None


# ---- an etcd that was restored --------------------------------------------------------------------------------------


def test_an_etcd_that_was_restored_is_told_by_what_it_remembers(turns: Turns) -> None:
    """Its revision tells nothing where it was raised, as by `etcdutl snapshot restore --bump-revision`."""
    turns.policy(AUTOMATIC)
    turns.round()
    backup = _copy(turns.plan)
    turns.round()
    turns.site.registry.image("app", "v4", layer=b"v4")
    turns.site.at(60)
    turns.report = replace(turns.report, revision="1000000100")
    turns.objects.held["registryretentionplans"] = _copy(backup)
    assert "digest" not in turns.round()
    assert turns.conditions()["Made"] == ("False", "ClusterOlder")
    assert turns.site.tags() == ["v3", "v4"]
    [said] = [one["message"] for one in turns.plan["status"]["conditions"] if one["type"] == "Made"]
    turns.round()
    assert turns.conditions()["Made"] == ("False", "ClusterOlder"), "nobody has looked"
    turns.annotate(said.rpartition(f"{APPROVE}=")[2])
    turns.round()
    assert turns.conditions()["Made"] == ("True", "Planned")
    assert turns.site.tags() == ["v4"]
    turns.annotate(None)
    turns.round()
    assert turns.conditions()["Made"] == ("True", "Planned"), "it remembers what it was told since"


def test_an_object_that_was_made_anew_remembers_nothing(turns: Turns) -> None:
    turns.round()
    del turns.objects.held["registryretentionplans"]
    turns.round()
    assert turns.conditions()["Made"] == ("False", "ClusterOlder")


def test_a_policy_that_comes_back_finds_what_was_remembered(turns: Turns) -> None:
    turns.round()
    assert "operator_plan_made_seconds 1" in turns.rounds.figures.text()
    written = turns.objects.held.pop("registrypolicies")
    turns.round()
    assert turns.conditions()["Made"] == ("False", "NoPolicy")
    assert "operator_plan_made_seconds 1" not in turns.rounds.figures.text(), "it would be an old one for ever"
    turns.objects.held["registrypolicies"] = written
    turns.round()
    assert turns.conditions()["Made"] == ("True", "Planned")


class Stopped(Exception):
    """Stands for the end of the operator."""


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after it"])
def test_an_operator_that_ends_anywhere_is_no_restored_etcd(
    turns: Turns, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Neither is one that ends there again and again."""
    turns.round()
    put, write = Objects.put_status, store.write
    for stops in range(7):
        left = iter(range(stops))

        def once(work: Callable[..., Any], left: Iterator[int], *words: Any) -> Any:
            if next(left, None) is None:
                if after:
                    work(*words)
                raise Stopped
            return work(*words)

        with monkeypatch.context() as patch:
            patch.setattr(Objects, "put_status", lambda *words, left=left: once(put, left, *words))
            patch.setattr(store, "write", lambda *words, left=left: once(write, left, *words))
            for _ in range(2):
                with suppress(Stopped):
                    turns.round()
        turns.round()
        assert turns.conditions()["Made"] == ("True", "Planned"), stops
        turns.site.at(turns.site.day + 1)
    marker = turns.plan["status"]["marker"]
    assert marker["newest"] == marker["confirmed"]


def test_a_command_that_looks_meanwhile_does_not_make_it_forget(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    turns.round()
    plain = planning.reading.read

    def looks(*words: Any) -> Any:
        found = plain(*words)
        if not begun:
            begun.append(True)
            turns.site.at(turns.site.day + 1)
            rules = policy.load(turns.site.folder / "policy.yaml")
            said = {"by the command": replace(turns.report, marker=None)}
            planning.look(connector(turns.site.registry), KEY, rules, int(turns.site.now()), reports=said, sets={})
        return found

    begun: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(planning.reading, "read", looks)
        turns.round()
    assert begun
    turns.round()
    assert turns.conditions()["Made"] == ("True", "Planned")


# ---- a round that fails ---------------------------------------------------------------------------------------------


def once(work: Callable[[], None], failed: Callable[[Exception], None]) -> bool:
    """A round as its worker does it."""

    async def turn() -> bool:
        return Worker("plans", work, 10, Figures(), failed)._once()

    return asyncio.run(turn())


@pytest.mark.parametrize(
    ("error", "code"),
    [(RegistryError("no answer", code="RegistryDown"), "RegistryDown"), (KeyError("x"), "OperatorFailed"),
     (OSError("broken"), "OperatorFailed")],
)  # fmt: skip
def test_a_round_that_fails_is_told_by_its_condition(
    turns: Turns, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    turns.round()
    assert turns.conditions("registrypolicies")["RetentionHealthy"] == ("True", "Planned")

    def fails(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "get", fails)
        assert not once(turns.rounds.plans, turns.rounds.plans_failed)
    assert turns.rounds._found["RetentionHealthy"].reason == code
    assert turns.conditions("registrypolicies")["RetentionHealthy"] == ("False", code)
    with monkeypatch.context() as patch:
        patch.setattr(clusters, "running", fails)
        assert not once(turns.rounds.images, lambda error: turns.rounds.failed("ImagesMissing", error))
    said = turns.rounds._found["ImagesMissing"]
    assert (said.status, said.reason) == (None, code)
    assert once(turns.rounds.plans, turns.rounds.plans_failed)
    assert turns.rounds._found["RetentionHealthy"].reason == "Planned"
    assert turns.conditions("registrypolicies")["RetentionHealthy"] == ("True", "Planned")


def test_an_object_that_changed_meanwhile_is_no_failure(turns: Turns) -> None:
    turns.round()
    turns.rounds.plans_failed(Error("changed at the same time", code="ObjectChanged"))
    assert turns.rounds._found["RetentionHealthy"].reason == "Planned"
