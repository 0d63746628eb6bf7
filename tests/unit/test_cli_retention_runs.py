"""Retention as people run it: plan, approve, run, look into the trash, undo; with pins and a pause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kubeadm_registry.access import executor
from kubeadm_registry.cli import desk
from kubeadm_registry.cli.main import cli
from kubeadm_registry.retention import Repository, Seen, Tag
from kubeadm_registry.retention.ledger import Ledger
from kubeadm_registry.upkeep import store
from tests.unit.fake_cluster import FakeCluster, fixed_secrets
from tests.unit.fake_executor import FakeExecutor
from tests.unit.fake_images import Repositories
from tests.unit.fake_registry import connector
from tests.unit.test_cli_images import NAMES, fake, pair  # noqa: F401  fixtures

START = 1_795_000_000
TAGS = ("v1", "v2", "v3")
DAY = 86400
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
def site(three: FakeCluster, fake: Repositories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:  # noqa: F811
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


def test_two_commands_do_not_write_pins_over_each_other(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one waits for the first, and for anything else that works on the nodes."""
    server = site.servers.servers["cp-1"]
    server.holder = "root@workstation pid 7"
    moments = iter(range(100))
    monkeypatch.setattr(desk.time, "monotonic", lambda: float(next(moments) * 10))
    monkeypatch.setattr(desk.time, "sleep", lambda _: None)
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


@pytest.mark.parametrize("digest", ["sha256:abc", "", "v1", "0" * 64])
def test_an_unknown_plan_cannot_be_approved(site: Site, digest: str) -> None:
    site.plan()
    assert site.failure("approve", digest) == ("PlanUnknown", 2)


def test_without_approvals_a_small_plan_runs_by_itself(site: Site) -> None:
    site.policy("  approval: Automatic\n")
    assert "would delete app:v1" in site.good("run", "--no-cluster", "--dry-run")
    assert site.tags() == ["v1", "v2", "v3"]
    assert "2 to the trash" in site.good("run", "--no-cluster")
    assert site.tags() == ["v3"]
    assert "nothing to do" in site.good("run", "--no-cluster")


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
    assert "1 restored, 1 deleted for good" in site.good("run", "--in-use", "used.txt")
    assert site.tags() == ["v1", "v3"]
    assert v2 not in site.registry.store["app"].manifests


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


@pytest.mark.parametrize("until", ["soon", "2027-13-01", "0d", "9999-12-31", "9999999d"])
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
