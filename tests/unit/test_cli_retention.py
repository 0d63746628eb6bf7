"""``retention ...`` as people type it: what is planned, what is refused, and what is remembered in between."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kubeadm_registry import config
from kubeadm_registry.cli import retention, terminal
from kubeadm_registry.cli.main import cli
from kubeadm_registry.formats import KEY
from kubeadm_registry.retention import grouped
from kubeadm_registry.retention.ledger import Ledger
from kubeadm_registry.retention.uses import failed_list
from kubeadm_registry.upkeep import store
from kubeadm_registry.upkeep.clusters import ClusterReport
from tests.unit.fake_cluster import FakeCluster, fixed_secrets
from tests.unit.fake_executor import FakeExecutor
from tests.unit.fake_images import Repositories
from tests.unit.fake_registry import connector
from tests.unit.image_site import NAMES

pytest_plugins = ["tests.unit.image_site"]

START = 1_795_000_000
DAY = 86400
POLICY = """\
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryPolicy
metadata: {name: retention}
spec:
  sets: []
  rules:
    - {name: apps, repositories: ["app"], keep: {within: 30d}}
"""


class Site:
    def __init__(self, servers: FakeCluster, registry: Repositories, folder: Path) -> None:
        self.servers = servers
        self.registry = registry
        self.folder = folder
        (folder / "policy.yaml").write_text(POLICY)
        self.day = 0.0
        FakeExecutor(servers, connector(registry), lambda: START + self.day * DAY, lease=NAMES[0])
        self.at(0)

    def at(self, day: float, *others: float) -> None:
        """Set the nodes' clocks."""
        self.day = day
        for name, when in zip(NAMES, (day, day, *others, day), strict=False):
            self.servers.servers[name].answer("date", "+%s", with_=f"{START + int(when * DAY)}\n")

    def plan(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli, ("retention", "plan", *arguments), prog_name="kubeadm-registry")

    def json(self, *arguments: str) -> dict[str, Any]:
        result = self.plan("--no-cluster", "-o", "json", *arguments)
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return found

    def ledger(self) -> Ledger:
        with connector(self.registry)() as registry:
            return store.read(registry, fixed_secrets(NAMES).retention_key)


@pytest.fixture
def site(three: FakeCluster, fake: Repositories, tmp_path: Path) -> Site:
    return Site(three, fake, tmp_path)


def names(found: dict[str, Any]) -> list[str]:
    return [f"{one['repository']}:{one['tag']}" for one in found["deletions"]]


def test_what_a_plan_sees_for_the_first_time_was_first_seen_now(site: Site) -> None:
    assert names(site.json()) == []
    site.at(29)
    assert names(site.json()) == []
    site.registry.image("app", "v2", layer=b"new")
    site.at(31)
    found = site.json()
    assert names(found) == ["app:v1"]
    assert found["deletions"][0]["rule"] == "apps"
    assert found[KEY]["version"] == 1
    assert "v1" in site.registry.store["app"].tags, "nothing was deleted"
    assert site.ledger().repositories["app"].tags["v2"].first_seen == START + 31 * DAY


def test_for_people(site: Site) -> None:
    assert (
        site.plan("--no-cluster")
        .stdout.splitlines()[-1]
        .endswith("deletes 0 of 2 images, frees 0.0 MB; nothing was deleted")
    )
    site.at(40)
    result = site.plan("--no-cluster")
    assert result.exit_code == 0, result.output
    head, row, deletion, last = result.stdout.splitlines()
    assert head.split() == ["REPOSITORY", "KEPT", "DELETED", "FREED"]
    assert row.split() == ["app", "0", "1", "0.0", "MB"]
    assert deletion.startswith("delete app:v1  ")
    assert "first seen 40 days ago" in deletion
    assert re.match(r"plan sha256:[0-9a-f]{64}: ", last), "it can be copied to the annotation"
    assert "deletes 1 of 2 images" in last


@pytest.mark.parametrize("name", ["10.0.0.10:5000/app:v1", "app:v1"], ids=["as pods name it", "as `images list` does"])
def test_what_is_in_use_stays(site: Site, name: str) -> None:
    site.json()
    site.at(40)
    (site.folder / "used.txt").write_text(f"{name}\n")
    found = site.json("--in-use", "used.txt")
    assert names(found) == []
    [kept] = [one for one in found["kept"] if one["repository"] == "app"]
    assert kept["cause"] == "InUse"
    assert "used.txt" in kept["why"]


def test_what_a_controller_in_a_manifest_is_told_of_stays(site: Site) -> None:
    """As for a cluster that is asked: its pods come and go, and no object names their image in between."""
    site.json()
    site.at(40)
    (site.folder / "used.yaml").write_text("image: other:v1\nargs: [--worker-image=10.0.0.10:5000/app:v1]\n")
    assert names(site.json("--in-use", "used.yaml")) == []


@pytest.mark.parametrize("name", ["10.0.0.10:5000/app:v1", "registry.example/app:v1"])
def test_the_pause_image_of_the_cluster_file_stays(site: Site, name: str) -> None:
    site.json()
    site.at(40)
    (site.folder / "cluster.yaml").write_text(f"{config.SMALLEST}  containerd: {{sandboxImage: '{name}'}}\n")
    found = site.json()
    assert names(found) == []
    assert [one["why"] for one in found["kept"] if one["repository"] == "app"] == [f"used by set pause as '{name}'"]
    assert "WorkloadsUnknown" in site.plan().output, "it does not say what clusters use"


def test_the_pause_images_of_containerd_stay_whatever_the_sets(site: Site) -> None:
    (site.folder / "policy.yaml").write_text(POLICY.replace('"app"', '"registry.k8s.io/*"'))
    site.registry.image("registry.k8s.io/pause", "0.1", layer=b"old")
    site.json()
    site.at(40)
    assert names(site.json()) == ["registry.k8s.io/pause:0.1"]


def cluster(
    monkeypatch: pytest.MonkeyPatch, *uses: str, uid: str = "the-uid", version: str = "v1.33.1", revision: str = ""
) -> None:
    """Let the cluster of every kubeconfig say that it has *uses*; the real one is asked in tests/operator."""
    found = ClusterReport(uid, version, grouped((one, "", "Pod default/web") for one in uses), revision=revision)
    monkeypatch.setattr(retention, "_report", lambda _kubeconfig, _rules: (f"{uid}.example:6443", found))


def test_clusters_are_asked_when_everybody_else_has_been_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a passphrase, say: an order is good for ten minutes, and what pods use is no older than it."""
    connected, asked = terminal.registry, list[str]()

    def registry(*words: Any) -> Any:
        assert not asked
        site.at(40 + 1 / 24)
        return connected(*words)

    def report(_kubeconfig: Path, _rules: object) -> tuple[str, ClusterReport]:
        asked.append("what it uses")
        return "a.example:6443", ClusterReport("the-uid", "v1.33.1", grouped([("app:v1", "", "Pod default/web")]))

    site.json()
    monkeypatch.setattr(terminal, "registry", registry)
    monkeypatch.setattr(retention, "_report", report)
    assert names(site.json("--kubeconfig", "admin.conf")) == []
    assert asked
    assert site.ledger().clusters["the-uid"].reported == START + 40 * DAY + 3600


def test_two_clusters_whose_servers_have_the_same_address_are_two(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind two proxies, or tunnels."""

    def report(kubeconfig: Path, _rules: object) -> tuple[str, ClusterReport]:
        uses = grouped([(f"app:{kubeconfig.stem}", "", "Pod default/web")])
        return "127.0.0.1:6443", ClusterReport(f"uid of {kubeconfig.stem}", "v1.33.1", uses)

    site.registry.image("app", "v2", layer=b"other")
    site.json()
    site.at(40)
    monkeypatch.setattr(retention, "_report", report)
    assert names(site.json("--kubeconfig", "v1.conf", "--kubeconfig", "v2.conf")) == []
    clusters = site.ledger().clusters
    assert {uid: one.name for uid, one in clusters.items()} == {
        "uid of v1": "127.0.0.1:6443", "uid of v2": "127.0.0.1:6443 (v2.conf)",
    }  # fmt: skip


def test_what_a_cluster_uses_stays_also_when_it_is_silent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.json()
    site.at(40)
    cluster(monkeypatch, "10.0.0.10:5000/app:v1")
    assert names(site.json("--kubeconfig", "admin.conf")) == []
    site.at(41)
    assert names(site.json()) == []
    assert "cluster the-uid.example:6443 reported 1 day ago; what it used then is kept" in site.plan().stdout
    site.at(100)
    assert names(accepting(site)) == [], "it said so 60 days ago, and nothing since"
    cluster(monkeypatch, "10.0.0.10:5000/other:v1")
    assert names(site.json("--kubeconfig", "admin.conf")) == [], "a week is left"
    site.at(108)
    assert names(site.json("--kubeconfig", "admin.conf")) == ["app:v1"]


def accepting(site: Site) -> dict[str, Any]:
    """A plan in spite of the cluster that is silent, as the hint says."""
    result = site.plan()
    assert result.exit_code == 1
    assert "ClusterSilent" in result.stdout
    assert "what it used then is kept" not in result.stdout, "the reason says more"
    [option] = re.findall(r"pass (--accept) (ClusterSilent=[0-9]+)", result.stdout)
    assert "what it used then is kept" in site.plan(*option).stdout
    return site.json(*option)


def test_what_a_silent_cluster_began_to_use_is_not_known(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have come with the nodes that pull tomorrow; nobody but the cluster can say."""
    site.json()
    site.at(40)
    cluster(monkeypatch, "10.0.0.10:5000/other:v1")
    assert names(site.json("--kubeconfig", "admin.conf")) == ["app:v1"]
    site.at(41)
    assert names(site.json()) == ["app:v1"]
    site.at(42)
    result = site.plan("--no-cluster")
    assert result.exit_code == 1
    [said] = [line for line in result.stdout.splitlines() if "ClusterSilent" in line]
    assert "the cluster the-uid.example:6443 reported last at 2026-12-28 11:06 UTC, 2 days ago" in said
    assert "`kubeadm-registry retention forget the-uid.example:6443`" in said
    cluster(monkeypatch, "10.0.0.10:5000/other:v1", uid="another")
    assert "ClusterSilent" in site.plan("--kubeconfig", "admin.conf").stdout, "the other one says nothing about it"
    assert names(accepting(site)) == ["app:v1"]
    site.at(60)
    cluster(monkeypatch, "10.0.0.10:5000/other:v1")
    assert "another.example:6443 reported last" in site.plan("--kubeconfig", "admin.conf").stdout
    assert "the-uid.example:6443 reported last" not in site.plan("--kubeconfig", "admin.conf").stdout, "it has just now"


def test_a_cluster_whose_etcd_was_restored_gives_no_plan_until_it_is_accepted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.json()
    site.at(40)
    cluster(monkeypatch, "10.0.0.10:5000/app:v1", revision="9000")
    site.json("--kubeconfig", "admin.conf")
    site.at(60)
    for revision in ("8000", "8999"):
        cluster(monkeypatch, "10.0.0.10:5000/other:v1", revision=revision)
        result = site.plan("--kubeconfig", "admin.conf")
        assert result.exit_code == 1
        assert "ClusterOlder" in result.stdout
        assert "--accept ClusterOlder=9000" in result.stdout
    [known] = site.ledger().clusters.values()
    assert (known.revision, [use.reference for use in known.uses]) == (9000, ["10.0.0.10:5000/app:v1"])
    assert "ClusterOlder" in site.plan("--kubeconfig", "admin.conf", "--accept", "ClusterOlder=8999").stdout
    site.json("--kubeconfig", "admin.conf", "--accept", "ClusterOlder=9000")
    site.json("--kubeconfig", "admin.conf")
    [known] = site.ledger().clusters.values()
    assert known.revision == 8999


@pytest.mark.parametrize(("before", "after"), [("9", "9"), ("9", "10"), ("", "5"), ("9", ""), ("9", "of another kind")])
def test_a_revision_that_did_not_fall_is_no_reason(
    site: Site, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    site.json()
    for revision in (before, after):
        cluster(monkeypatch, "10.0.0.10:5000/app:v1", revision=revision)
        site.json("--kubeconfig", "admin.conf")


def test_far_fewer_uses_are_a_reason_until_they_are_accepted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking again does not make it right."""
    site.json()
    site.at(40)
    many = [f"10.0.0.10:5000/app:v{number}" for number in range(50)]
    cluster(monkeypatch, *many)
    site.json("--kubeconfig", "admin.conf")
    site.at(60)
    cluster(monkeypatch, *many[:3])
    for _ in range(2):
        result = site.plan("--kubeconfig", "admin.conf")
        assert result.exit_code == 1
        assert "UsesShrank" in result.stdout
        assert "--accept UsesShrank=3" in result.stdout
    assert "UsesShrank" in site.plan("--kubeconfig", "admin.conf", "--accept", "UsesShrank=4").stdout
    assert site.ledger().in_use == 50
    site.json("--kubeconfig", "admin.conf", "--accept", "UsesShrank=3")
    site.json("--kubeconfig", "admin.conf")
    cluster(monkeypatch, *many)
    site.json("--kubeconfig", "admin.conf")
    cluster(monkeypatch, *many[:3])
    assert site.plan("--kubeconfig", "admin.conf").exit_code == 1
    cluster(monkeypatch, *many[:49])
    site.json("--kubeconfig", "admin.conf")
    assert site.ledger().in_use is None, "as many as before, nearly"


def test_a_cluster_is_asked_by_the_paths_of_the_policy(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    path = '{apiVersion: argoproj.io/v1alpha1, resource: workflows, path: ".spec.image"}'
    (site.folder / "policy.yaml").write_text(f"{POLICY}  imagePaths: [{path}]\n")
    asked = []

    def read(_api: object, *, paths: list[tuple[str, str]]) -> ClusterReport:
        asked.extend(paths)
        return ClusterReport("uid", "v1.33.1", unmatched=("argoproj.io/v1alpha1/workflows .spec.image",))

    monkeypatch.setattr(retention.clusters, "read", read)
    (site.folder / "admin.conf").write_text(
        "clusters: [{name: a, cluster: {server: 'https://a.example:6443'}}]\n"
        "contexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {token: t}}]\n"
        "current-context: a\n"
    )
    result = site.plan("--kubeconfig", "admin.conf")
    assert result.exit_code == 0, result.output
    assert asked == [("argoproj.io/v1alpha1/workflows", ".spec.image")]
    assert "spec.imagePaths finds no image: argoproj.io/v1alpha1/workflows .spec.image" in result.output


def test_a_rule_that_decides_for_no_repository_is_told(site: Site) -> None:
    assert "decides for no repository" not in site.plan("--no-cluster").output
    rule = "{name: mine, repositories: ['10.0.0.10:5000/app'], keep: {newest: 1}}"
    (site.folder / "policy.yaml").write_text(f"{POLICY}    - {rule}\n")
    result = site.plan("--no-cluster")
    assert result.exit_code == 0, result.output
    assert "the rule mine decides for no repository: 10.0.0.10:5000/app" in result.output


def test_a_cluster_of_which_not_all_is_known_is_a_reason_for_no_plan(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.json()
    site.at(40)
    found = ClusterReport("the-uid", "v1.33.1", (), (failed_list("Pods", "403 Forbidden"),))
    monkeypatch.setattr(retention, "_report", lambda _kubeconfig, _rules: ("a.example:6443", found))
    result = site.plan("--kubeconfig", "admin.conf")
    assert result.exit_code == 1
    assert "cannot list Pods: 403 Forbidden" in result.stdout
    assert site.ledger().clusters == {}, "what it did not say whole is not remembered"


def test_the_images_of_the_version_that_runs_are_those_of_the_set_kubeadm(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site.folder / "policy.yaml").write_text(POLICY.replace("sets: []", "sets: [kubeadm]").replace('["app"]', '["**"]'))
    cluster(monkeypatch)
    site.json("--kubeconfig", "admin.conf")
    site.at(40)
    assert names(site.json("--kubeconfig", "admin.conf")) == ["app:v1"]
    cluster(monkeypatch, version="v9.9.9")
    assert "SetMissing" in site.plan("--kubeconfig", "admin.conf").stdout


def test_without_a_word_about_what_is_in_use_there_is_no_plan(site: Site) -> None:
    result = site.plan("-o", "json")
    assert result.exit_code == 1, "the nodes were asked"
    assert json.loads(result.stdout.splitlines()[-1])["code"] == "WorkloadsUnknown"


def test_a_set_that_is_not_known_is_a_reason_for_no_plan(site: Site) -> None:
    (site.folder / "policy.yaml").write_text(POLICY.replace("sets: []", "sets: [kubeadm]"))
    result = site.plan("--no-cluster", "-o", "json")
    assert result.exit_code == 1
    *problems, error = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["check"] for one in problems if one["event"] == "check"] == ["SetMissing"]
    assert error["code"] == "PlanRefused"


def test_the_images_of_kubeadm_are_a_set_where_the_version_is_known(site: Site) -> None:
    policy = POLICY.replace("sets: []", "sets: [kubeadm, bundle]").replace('["app"]', '["**"]')
    (site.folder / "policy.yaml").write_text(policy)
    (site.folder / "cluster.yaml").write_text(
        (site.folder / "cluster.yaml").read_text() + "  kubernetes: {version: v1.33.1}\n"
    )
    site.json()
    site.at(40)
    found = site.json()
    assert names(found) == ["app:v1"]
    assert {one["cause"] for one in found["kept"] if one["repository"] == "registry.k8s.io/pause"} == {"InUse"}


def test_one_wrong_clock_does_not_count(site: Site) -> None:
    site.json()
    site.at(1, 4000)
    assert site.ledger().written == START
    assert names(site.json()) == []
    assert site.ledger().written == START + DAY


def test_clocks_that_went_back_are_a_reason_for_no_plan(site: Site) -> None:
    site.at(10)
    site.json()
    site.at(0)
    before = site.ledger()
    result = site.plan("--no-cluster", "-o", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout.splitlines()[-1])["code"] == "ClockDoubtful"
    assert site.ledger() == before, "a wrong time is not written"


def test_a_ledger_that_somebody_else_wrote_is_not_believed(site: Site) -> None:
    site.json()
    with connector(site.registry)() as registry:
        store.write(registry, "another key", Ledger())
    result = site.plan("--no-cluster", "-o", "json")
    assert result.exit_code == 1
    error = json.loads(result.stdout.splitlines()[-1])
    assert error["code"] == "LedgerDamaged"
    assert "retention forget --ledger" in error["hint"]
    forget = CliRunner().invoke(cli, ("retention", "forget", "--ledger", "--yes"), prog_name="kubeadm-registry")
    assert forget.exit_code == 0, forget.output
    assert names(site.json()) == []


def test_forgetting_a_cluster(site: Site) -> None:
    site.json()
    with connector(site.registry)() as registry:
        key = fixed_secrets(NAMES).retention_key
        ledger = site.ledger().reported("the-uid", "prod", (), START, kept=DAY)
        store.write(registry, key, ledger)

    def forget(name: str) -> Result:
        return CliRunner().invoke(cli, ("retention", "forget", name, "--yes"), prog_name="kubeadm-registry")

    unknown = forget("stage")
    assert unknown.exit_code == 2
    assert "prod (the-uid)" in unknown.stderr
    site.at(3)
    assert "`kubeadm-registry retention forget prod`" in site.plan().stdout
    assert forget("prod").exit_code == 0
    assert "ClusterSilent" not in site.plan("--no-cluster").stdout
    assert site.ledger().clusters == {}
    both = CliRunner().invoke(cli, ("retention", "forget"), prog_name="kubeadm-registry")
    assert both.exit_code == 2
