"""Retention as people run it: plan, approve, run, look into the trash, undo; with pins and a pause."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import click.testing
import pytest
from click.testing import CliRunner, Result

from kubeadm_registry import members
from kubeadm_registry.access import executor
from kubeadm_registry.agent import document
from kubeadm_registry.cli import retention_records
from kubeadm_registry.cli.main import cli
from kubeadm_registry.components import pulls as recorder
from kubeadm_registry.executor import checks
from kubeadm_registry.retention import Plan, Reason, Repository, Seen, Tag, policy
from kubeadm_registry.retention.ledger import Ledger
from kubeadm_registry.upkeep import planning, running, store
from tests.unit.fake_cluster import FakeCluster, fixed_secrets
from tests.unit.fake_executor import FakeExecutor
from tests.unit.fake_images import Repositories
from tests.unit.fake_registry import connector
from tests.unit.image_site import NAMES

pytest_plugins = ["tests.unit.image_site"]

START = 1_795_000_000
TAGS = ("v1", "v2", "v3")
DAY = 86400
KEY = fixed_secrets(NAMES).retention_key
POLICY = """\
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryPolicy
metadata: {name: retention}
spec:
  sets: []
  rules:
    - {name: apps, repositories: ["app"], keep: {newest: 1}}
"""


class Site:
    """A registry with three images of one repository, of which v3 is the newest."""

    def __init__(self, servers: FakeCluster, registry: Repositories, folder: Path) -> None:
        self.servers, self.registry, self.folder = servers, registry, folder
        self.day = 0.0
        self.executor = FakeExecutor(servers, connector(registry), self.now, lease="cp-2")
        self.policy()
        seen = {registry.image("app", tag, layer=tag.encode()).digest: 10 * DAY * number + START
                for number, tag in enumerate(TAGS)}  # fmt: skip
        tags = {tag: Tag(digest, seen[digest]) for tag, digest in registry.store["app"].tags.items()}
        known = Repository(tags, {digest: Seen(when) for digest, when in seen.items()})
        with connector(registry)() as at:
            store.write(at, fixed_secrets(NAMES).retention_key, Ledger(START, {"app": known}))
        self.at(40)

    def now(self) -> float:
        return START + self.day * DAY

    def at(self, day: float) -> None:
        """Set the nodes' clocks."""
        self.day = day
        for name in NAMES:
            self.servers.servers[name].answer("date", "+%s", with_=f"{int(self.now())}\n")

    def policy(self, more: str = "") -> None:
        (self.folder / "policy.yaml").write_text(POLICY + more)

    def run(self, *arguments: str) -> Result:
        group = "images" if arguments[0] in ("pin", "unpin", "pins") else "retention"
        return CliRunner().invoke(cli, (group, *arguments), prog_name="kubeadm-registry")

    def good(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.good(*arguments, "-o", "json").splitlines()[-1])
        return found

    def failure(self, *arguments: str) -> tuple[str, int]:
        result = self.run(*arguments, "-o", "json")
        assert result.exit_code, result.output
        return str(json.loads(result.stdout.splitlines()[-1])["code"]), result.exit_code

    def tags(self) -> list[str]:
        return sorted(tag for tag in self.registry.store["app"].tags if not tag.startswith("trash-"))

    def plan(self) -> str:
        """Make a plan; its digest."""
        return str(self.json("plan", "--no-cluster")["digest"])


@pytest.fixture
def site(three: FakeCluster, fake: Repositories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(executor, "INTERVAL", 0.0)
    return Site(three, fake, tmp_path)


def test_a_plan_waits_for_its_approval(site: Site) -> None:
    result = site.run("run", "--no-cluster")
    assert result.exit_code == 0, result.output
    assert "is not approved, so it is not carried out" in result.output
    assert site.tags() == ["v1", "v2", "v3"]
    digest = site.plan()
    assert "approved plan" in site.good("approve", digest[:19])
    assert "2 to the trash" in site.good("run", "--no-cluster")
    assert site.tags() == ["v3"]


@pytest.mark.parametrize("first", ["cp-1", "cp-2"])
def test_two_commands_do_not_write_pins_over_each_other(
    site: Site, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """The second one waits for the first, and for anything else that works on the nodes.

    The first one's file may have the nodes in another order, or another of them is out of its reach.
    """
    server = site.servers.servers[first]
    server.holder = "root@workstation pid 7"
    moments = iter(range(100))
    monkeypatch.setattr(retention_records.time, "monotonic", lambda: float(next(moments) * 10))
    monkeypatch.setattr(retention_records.time, "sleep", lambda _: None)
    assert site.failure("pin", "10.0.0.10:5000/app:v1", "--reason", "mine")[0] == "HostBusy"
    server.holder = None
    site.good("pin", "10.0.0.10:5000/app:v1", "--reason", "mine")


def test_an_approval_is_for_what_was_read_and_for_once(site: Site) -> None:
    site.good("approve", site.plan())
    site.registry.image("app", "v4", layer=b"v4")
    assert site.plan()  # a newer plan, which would delete v3 as well
    site.at(50)
    assert "2 to the trash" in site.good("run", "--no-cluster"), "v3 was in no plan that somebody read"
    assert site.tags() == ["v3", "v4"]
    assert "is not approved" in site.run("run", "--no-cluster").output
    assert site.tags() == ["v3", "v4"]


def test_a_plan_that_is_rejected_does_not_run(site: Site) -> None:
    digest = site.plan()
    site.good("approve", digest)
    site.good("reject", digest)
    assert "is not approved" in site.run("run", "--no-cluster").output
    assert site.tags() == ["v1", "v2", "v3"]


def test_what_is_to_be_approved_is_shown_beside_the_json(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = site.plan()
    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda _self: True)
    result = site.run("approve", digest, "-o", "json")
    assert [json.loads(line)["code"] for line in result.stdout.splitlines()] == ["Aborted"], "nobody answered"
    assert "delete app:v1" in result.stderr
    assert "Approve the deletion of 2 images? [y/N]" in result.stderr


@pytest.mark.parametrize("digest", ["sha256:abc", "", "v1", "0" * 64])
def test_an_unknown_plan_cannot_be_approved(site: Site, digest: str) -> None:
    site.plan()
    assert site.failure("approve", digest) == ("PlanUnknown", 2)


def publish(site: Site) -> Plan:
    """The plan as the operator makes it and keeps it; the one before is kept no more."""
    rules = policy.load(site.folder / "policy.yaml")
    made = planning.look(connector(site.registry), KEY, rules, int(site.now()), sets={}).plan(rules)
    assert isinstance(made, Plan)
    with connector(site.registry)() as registry:
        assert running.publish(registry, KEY, made) == registry.digest(store.REPOSITORY, "operator-plan")
    return made


def test_a_plan_that_was_made_is_shown_by_its_digest(site: Site) -> None:
    by_command = site.plan()
    site.registry.image("app", "v4", layer=b"v4")
    made = publish(site)
    assert made.digest != by_command
    for digest in (made.digest, made.digest[7:19].upper()):
        assert site.json("plan", "--digest", digest) == made.to_dict(), "with what stays, and why"
    assert [one["tag"] for one in site.json("plan", "--digest", by_command)["deletions"]] == ["v1", "v2"]
    text = site.good("plan", "--digest", made.digest, "--all")
    assert "delete app:v2  " in text
    assert text.splitlines()[-1] == (
        f"plan {made.digest}: deletes 3 of 5 images, frees 0.0 MB; made 2026-12-28 11:06 UTC by the policy retention"
    )
    assert site.tags() == ["v1", "v2", "v3", "v4"]


def test_the_plan_of_the_operator_can_be_approved_too(site: Site) -> None:
    made = publish(site)
    assert "approved plan" in site.good("approve", made.digest)
    assert "2 to the trash" in site.good("run", "--no-cluster")


def test_of_two_plans_that_delete_the_same_the_newer_one_is_shown(site: Site) -> None:
    digest = site.plan()
    site.at(41)
    assert publish(site).digest == digest
    assert site.json("plan", "--digest", digest)["made"] == "2026-12-29T11:06:40Z"
    site.at(42)
    assert site.plan() == digest
    assert site.json("plan", "--digest", digest)["made"] == "2026-12-30T11:06:40Z"


def test_who_may_push_can_damage_the_plan_of_the_operator_and_no_other(site: Site) -> None:
    digest = site.plan()
    site.registry.image("app", "v4", layer=b"v4")
    made = publish(site)
    with connector(site.registry)() as registry:
        store.OPERATOR_PLAN.write(registry, "another key", made.pieces())
    assert site.failure("plan", "--digest", made.digest) == ("PlanDamaged", 1)
    assert site.json("plan", "--digest", digest)["digest"] == digest
    assert "approved plan" in site.good("approve", digest)
    assert site.json("plan", "--digest", publish(site).digest)["digest"] == made.digest, "it is written again"


@pytest.mark.parametrize("digest", ["sha256:0123456789ab", "4f53", "", "sha256:" + "g" * 64])
def test_a_plan_that_is_not_kept_is_not_shown(site: Site, digest: str) -> None:
    publish(site)
    assert site.failure("plan", "--digest", digest) == ("PlanUnknown", 2)


@pytest.mark.parametrize(
    "more", [("--no-cluster",), ("--policy", "other.yaml"), ("--in-use", "x"), ("--accept", "UsesShrank=1")]
)
def test_a_plan_is_made_or_shown(site: Site, more: tuple[str, ...]) -> None:
    assert site.failure("plan", "--digest", "0" * 64, *more) == ("UsageInvalid", 2)


def test_without_approvals_a_small_plan_runs_by_itself(site: Site) -> None:
    site.policy("  approval: Automatic\n")
    assert "would delete app:v1" in site.good("run", "--no-cluster", "--dry-run")
    assert site.tags() == ["v1", "v2", "v3"]
    assert "2 to the trash" in site.good("run", "--no-cluster")
    assert site.tags() == ["v3"]
    assert "nothing to do" in site.good("run", "--no-cluster")


def takes_long(site: Site) -> None:
    """Let each image take a quarter of an hour."""
    site.executor.tell = lambda _: site.at(site.day + 1 / 96)


def test_what_there_is_no_time_for_is_done_by_another_plan_at_once(site: Site) -> None:
    site.good("approve", site.plan())
    takes_long(site)
    output = site.run("run", "--no-cluster").output
    assert "1 to the trash, 0 restored, 0 deleted permanently, 1 left for the next run; making another plan" in output
    assert site.tags() == ["v3"]
    runs = site.json("history")["runs"]
    assert [(one["deleted"], one.get("left")) for one in runs] == [(1, 1), (1, None)]
    assert len({one["order"] for one in runs}) == 2
    assert "nothing to do" in site.good("run", "--no-cluster"), "the approval was for both, and is used up"


def deleted(site: Site) -> None:
    site.policy("  approval: Automatic\n")
    site.good("run", "--no-cluster")
    assert site.tags() == ["v3"]


def test_the_trash_is_listed_and_undone_by_name(site: Site) -> None:
    deleted(site)
    assert [list(one["tags"]) for one in site.json("trash")["images"]] == [["v1"], ["v2"]]
    head, first, _ = site.good("trash").splitlines()
    assert head.split() == ["IMAGE", "DIGEST", "DELETED", "SIZE", "WHY"]
    assert first.startswith("app:v1")
    assert "just now" in first
    assert "1 restored" in site.good("undo", "app:v1")
    assert site.tags() == ["v1", "v3"]
    assert site.failure("undo", "app:v1") == ("TrashUnknown", 2)
    assert "1 restored" in site.good("undo", "--all")
    assert "the trash is empty" in site.good("trash")


@pytest.mark.parametrize("host", ["10.0.0.10:5000", "registry:5000"])
def test_names_may_begin_with_what_the_registry_is_called(site: Site, host: str) -> None:
    """A name without a dot is read as a part of the repository otherwise, and the pin keeps nothing."""
    cluster = site.folder / "cluster.yaml"
    cluster.write_text(cluster.read_text().replace("vip: {", "vip: {name: registry, "))
    site.good("pin", f"{host}/app:v1", "--reason", "a customer runs it")
    assert [one["name"] for one in site.json("pins")["pins"]] == ["app:v1"]
    site.policy("  approval: Automatic\n")
    site.good("run", "--no-cluster")
    assert site.tags() == ["v1", "v3"]
    site.good("unpin", f"{host}/app:v1")
    assert "1 restored" in site.good("undo", f"{host}/app:v2")


def test_a_plan_is_undone_as_a_whole(site: Site) -> None:
    site.policy("  approval: Automatic\n")
    digest = site.plan()
    site.good("run", "--no-cluster")
    assert site.failure("undo", "--plan", "0" * 12) == ("TrashUnknown", 2)
    assert "2 restored" in site.good("undo", "--plan", digest[:19])
    assert site.tags() == ["v1", "v2", "v3"]


@pytest.mark.parametrize("arguments", [(), ("app:v1", "--all"), ("--all", "--plan", "x")])
def test_undo_wants_to_know_what(site: Site, arguments: tuple[str, ...]) -> None:
    assert site.failure("undo", *arguments) == ("UsageInvalid", 2)


def test_what_is_in_use_again_comes_back_and_the_rest_goes_for_good(site: Site) -> None:
    v2 = site.registry.store["app"].tags["v2"]
    deleted(site)
    site.at(48)
    (site.folder / "used.txt").write_text("10.0.0.10:5000/app:v1\n")
    assert "1 restored, 1 deleted permanently" in site.good("run", "--in-use", "used.txt")
    assert site.tags() == ["v1", "v3"]
    assert v2 not in site.registry.store["app"].manifests


def test_pulls_through_a_member_that_the_file_does_not_list_may_be_any(site: Site) -> None:
    """As after a `join` from another copy of the file: it may have served every pull of an image."""
    asked(site, day=40)
    policy = site.folder / "policy.yaml"
    policy.write_text(policy.read_text().replace("newest: 1", "newest: 1, pulledWithin: 5d"))
    assert "pulls are not known" not in site.run("plan", "--no-cluster").output
    addresses = {host.name: host.address for host in site.servers.cluster.hosts}
    for server in site.servers.servers.values():
        server.put(members.PATH, members.Members(2, {**addresses, "cp-4": "10.0.0.14"}).render())
    assert "3 of 4 nodes can be asked" in site.run("plan", "--no-cluster").output


def asked(site: Site, *names: str, day: float) -> None:
    """A client asked cp-3 on *day* for *names*, which were not there."""
    missed = {"10.0.0.77": {name: int(START + day * DAY) for name in names}}
    record = json.dumps({"since": START, "pulls": {}, "missed": missed})
    read = int(site.now())
    for name in NAMES:
        content = record if name == "cp-3" else json.dumps({"since": START, "pulls": {}})
        site.servers.servers[name].answer(
            "runuser", "-u", recorder.USER, "--", with_=f'{read}\n{content}\n{{"read": {read}}}\n'
        )


def test_what_a_node_asks_for_in_vain_comes_back_once(site: Site) -> None:
    deleted(site)
    asked(site, "app:v1", "app:v9", "no/such:v1", "UPPER/..:x", day=40.5)
    site.at(41)
    assert "1 restored" in site.good("run", "--no-cluster")
    assert site.tags() == ["v1", "v3"]
    [line] = [line for run in site.json("history")["runs"] for line in run["said"] if "restored" in line]
    assert line == "restored app:v1: used by a pull by 10.0.0.77 as 'app:v1'"
    # It is in use for spec.workloadGrace from then on, and then it goes again. It was there, so nobody missed it.
    site.at(47)
    assert "1 deleted permanently" in site.good("run", "--no-cluster"), "v2, which nobody asked for"
    assert site.tags() == ["v1", "v3"]
    site.at(49)
    assert "1 to the trash" in site.good("run", "--no-cluster")
    # A crawler asks for it all the same: that it did before.
    asked(site, "app:v1", day=49.5)
    site.at(50)
    assert "nothing to do" in site.good("run", "--no-cluster")
    assert site.tags() == ["v3"]
    site.at(57)
    assert "1 deleted permanently" in site.good("run", "--no-cluster")


def test_what_was_missed_before_it_was_deleted_or_means_another_image_now_stays_in_the_trash(site: Site) -> None:
    asked(site, "app:v1", "app:v2", day=39)
    deleted(site)
    site.at(41)
    assert "nothing to do" in site.good("run", "--no-cluster")
    asked(site, "app:v2", day=41)
    site.registry.image("app", "v2", layer=b"another v2")
    assert "0 restored" in site.good("run", "--no-cluster")
    assert ["v2"] in [list(one["tags"]) for one in site.json("trash")["images"]]


def test_nodes_are_asked_only_where_something_is_in_the_trash_or_the_policy_goes_by_pulls(site: Site) -> None:
    def heard() -> int:
        return sum(recorder.USER in one.argv for server in site.servers.servers.values() for one in server.log)

    asked(site, day=40)
    site.good("plan", "--no-cluster")
    assert heard() == 0
    deleted(site)
    before = heard()
    result = site.run("plan", "--no-cluster")
    assert heard() == before + 3
    assert "pulls are not known" not in result.output


def test_the_history_has_a_line_for_each_run(site: Site) -> None:
    assert "retention has not run yet" in site.good("history")
    deleted(site)
    site.good("undo", "--all")
    runs = site.json("history")["runs"]
    assert [(one["deleted"], one["restored"], one["node"]) for one in runs] == [(2, 0, "cp-2"), (0, 2, "cp-2")]
    assert len(site.good("history").splitlines()) == 3


def test_a_pause_stops_deletions_and_not_restoring(site: Site) -> None:
    deleted(site)
    site.good("pause", "--reason", "somebody looks for a bug")
    site.registry.image("app", "v4", layer=b"v4")
    site.good("plan", "--no-cluster")
    site.at(60)
    assert site.failure("run", "--no-cluster") == ("OrderRefused", 1)
    assert "somebody looks for a bug" in site.run("run", "--no-cluster").output
    assert "v3" in site.tags()
    site.good("undo", "app:v1")
    assert "v1" in site.tags()
    site.good("resume")
    site.good("run", "--no-cluster")
    assert site.tags() == ["v4"]


def test_nothing_is_deleted_while_the_registry_is_not_whole_and_what_is_used_comes_back(site: Site) -> None:
    deleted(site)
    site.registry.image("app", "v4", layer=b"v4")
    site.good("plan", "--no-cluster")
    site.executor.doubted = (Reason("RegistryNotWhole", "1 of 3 nodes are not heard", "wait"),)
    site.at(60)
    (site.folder / "used.txt").write_text("10.0.0.10:5000/app:v1\n")
    assert site.failure("run", "--in-use", "used.txt") == ("OrderRefused", 1)
    assert site.tags() == ["v1", "v3", "v4"], "v3 would go, and v2 for good"
    assert [list(one["tags"]) for one in site.json("trash")["images"]] == [["v2"]]
    assert "1 of 3 nodes are not heard" in site.json("history")["runs"][-1]["error"]
    site.good("undo", "app:v2")
    site.executor.doubted = ()
    site.good("run", "--in-use", "used.txt")
    assert site.tags() == ["v1", "v4"]


STATE = (Path(__file__).parents[1] / "golden" / "formats" / "agent-state.json").read_text()


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({}, "", ""),
        ({"conditions": ["StorageCopying", "ProxyPartial"]}, "", ""),
        ({"quorum": {"nodes": 3, "heard": 2}}, "RegistryNotWhole", "1 of 3 nodes are not heard"),
        ({"conditions": ["StoragePartial"]}, "RegistryNotWhole", "does not reach all others"),
        ({"conditions": ["StorageDown"]}, "RegistryNotWhole", "does not respond"),
        ({"conditions": ["ClockOff"]}, "ClockDoubtful", "the clock of this node"),
    ],
)
def test_the_agent_of_the_node_says_whether_the_registry_is_whole(
    change: dict[str, Any], code: str, words: str
) -> None:
    found = list(checks.doubts(document.read(json.dumps({**json.loads(STATE), **change}))))
    assert [one.code for one in found] == [code] * bool(code)
    assert all(words in one.message for one in found)


def test_an_agent_that_says_nothing_is_a_doubt() -> None:
    assert [one.code for one in checks.doubts(None)] == ["RegistryNotWhole"]


def test_a_pin_keeps_an_image_until_it_ends(site: Site) -> None:
    site.policy("  approval: Automatic\n")
    site.good("pin", "app:v1", "--reason", "a customer runs it", "--until", "30d")
    site.good("pin", "app:v2", "--reason", "for now")
    assert "a customer runs it" in site.good("pins")
    site.good("run", "--no-cluster")
    assert site.tags() == ["v1", "v2", "v3"]
    site.good("unpin", "app:v2")
    assert site.failure("unpin", "app:v2") == ("PinUnknown", 2)
    site.good("run", "--no-cluster")
    assert site.tags() == ["v1", "v3"]
    site.at(71)
    site.good("run", "--no-cluster")
    assert site.tags() == ["v3"]


def test_a_pin_of_what_is_not_there_says_so(site: Site) -> None:
    site.registry.image("docker.io/library/nginx", "1.29", layer=b"nginx")
    digest = site.registry.store["app"].tags["v1"]
    deleted(site)
    assert site.tags() == ["v3"]
    for name, there in (
        ("app:v3", True), ("app:v1", True), (f"app@{digest}", True), ("nginx:1.29", True),
        ("app:v4", False), ("apps:v3", False), (f"app@sha256:{'0' * 64}", False),
    ):  # fmt: skip
        result = site.run("pin", name, "--reason", "x")
        assert result.exit_code == 0, result.output
        assert ("is not in the registry" in result.output) != there, name
    site.registry.refuse["HEAD", "app/manifests/v9"] = [403]
    assert site.good("pin", "app:v9", "--reason", "x").splitlines() == ["pinned app:v9"]


def test_a_cluster_file_that_comes_through_a_pipe_is_read_once(site: Site) -> None:
    text = Path("cluster.yaml").read_bytes()
    for arguments in (("pin", "app:v1", "--reason", "x"), ("unpin", "app:v1")):
        read, write = os.pipe()
        with os.fdopen(write, "wb") as file:
            file.write(text)
        site.good(*arguments, "-f", f"/dev/fd/{read}")
        os.close(read)


@pytest.mark.parametrize("until", ["soon", "2027-13-01", "0d", "9999-12-31", "9999999d", "2020-01-01"])
def test_the_end_of_a_pin_must_be_a_time(site: Site, until: str) -> None:
    assert site.failure("pin", "app:v1", "--reason", "x", "--until", until) == ("UsageInvalid", 2)
    assert site.failure("pin", "app", "--reason", "x") == ("UsageInvalid", 2)


def test_without_a_lease_nothing_is_written_and_a_plan_is_still_shown(site: Site) -> None:
    site.executor.lease = None
    result = site.run("plan", "--no-cluster")
    assert result.exit_code == 0
    assert "this plan cannot be approved: no node holds the lease" in result.output
    for arguments in (("run", "--no-cluster"), ("undo", "--all"), ("pause", "--reason", "x"), ("trash",)):
        assert site.failure(*arguments)[0] == "NoExecutor"


@pytest.mark.parametrize(
    ("record", "tag"), [("--trash", "trash"), ("--standing", "standing"), ("--history", "history")]
)
def test_a_damaged_record_can_be_begun_anew(site: Site, record: str, tag: str) -> None:
    deleted(site)
    site.good("pin", "app:v3", "--reason", "x")
    store_of = site.registry.store["kubeadm-registry/retention"]
    store_of.tags[tag] = store_of.tags["ledger"]  # somebody has put another record in its place
    asks = {"trash": ("trash",), "standing": ("pause", "--reason", "x"), "history": ("history",)}[tag]
    code, _ = site.failure(*asks)
    assert code == f"{tag.title()}Damaged"
    site.good("forget", record, "--yes")
    site.good(*asks)


def test_a_pause_outlives_the_record_of_pins(site: Site) -> None:
    """`recover` has paused it, and an operator's orders are forgotten that way once its cluster is gone."""
    site.good("pin", "app:v1", "--reason", "x")
    site.good("pause", "--reason", "the registry was recovered")
    assert "retention stays paused: the registry was recovered" in site.run("forget", "--standing", "--yes").output
    assert site.json("pins")["pins"] == []
    site.good("approve", site.plan())
    assert site.failure("run", "--no-cluster")[0] == "OrderRefused"
    assert site.tags() == ["v1", "v2", "v3"]
    site.good("resume")
    assert "2 to the trash" in site.good("run", "--no-cluster")
