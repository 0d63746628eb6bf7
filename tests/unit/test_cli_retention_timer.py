"""``retention timer ...`` as people type it: what it puts on the nodes, and where it is refused."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kubeadm_registry import config, members, paths, secrets
from kubeadm_registry.access import session
from kubeadm_registry.cli.main import cli
from kubeadm_registry.components import retention
from kubeadm_registry.custom_resources import installing
from kubeadm_registry.custom_resources.installing import HelperKey
from kubeadm_registry.engine.workflow import run as init
from kubeadm_registry.members import Members
from kubeadm_registry.phases import retention as phase
from kubeadm_registry.phases.workflows import INIT
from kubeadm_registry.retention.policy import SMALLEST as DEFAULT_SETS
from kubeadm_registry.transport.host import Transport
from tests.unit.command_line import lead_to
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.here import here, stub
from tests.unit.test_cli_operator import KUBECONFIG
from tests.unit.test_workflow import Recorder

SMALLEST = f"{DEFAULT_SETS}  sets: [bundle]\n"


@pytest.fixture
def servers(installed: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """Three nodes after init that have no kubelet, with ./cluster.yaml and ./policy.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.yaml").write_text(config.SMALLEST)
    (tmp_path / "policy.yaml").write_text(SMALLEST)
    for server in installed.servers.values():
        server.answer("sh", "-c", phase._KUBELET, "kubelet", *retention.KUBELET)
        server.acts.clear()
    lead_to(installed, monkeypatch)
    return installed


def timer(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ("retention", "timer", *arguments), prog_name="kubeadm-registry")


def enable(*more: str) -> Result:
    return timer("enable", "--policy", "policy.yaml", *more)


def timers(servers: FakeCluster) -> list[tuple[str, bool]]:
    units = [server.unit(retention.TIMER) for server in servers.servers.values()]
    return [(unit.active, unit.enabled) for unit in units]


def test_a_policy_is_stored_and_the_timer_runs_on_every_node(servers: FakeCluster) -> None:
    result = enable()
    assert result.exit_code == 0, result.output
    assert "the timer frees no space: have `kubeadm-registry images collect` run daily" in result.output
    assert timers(servers) == [("active", True)] * 3
    for server in servers.servers.values():
        found = server.tree[retention.POLICY]
        assert (found.mode, found.owner) == (0o640, f"root:{retention.USER}")
        assert server.content(retention.POLICY).decode() == SMALLEST
    assert enable().stdout.splitlines()[-1] == "nothing to do"
    assert init(INIT, servers.cluster, Recorder(), skip=ELSEWHERE) == [], "init leaves it as it is"


def test_a_policy_that_comes_through_a_pipe_is_stored(servers: FakeCluster) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as file:
        file.write(SMALLEST)
    result = timer("enable", "--policy", f"/dev/fd/{read}")
    os.close(read)
    assert result.exit_code == 0, result.output
    assert {server.content(retention.POLICY).decode() for server in servers.servers.values()} == {SMALLEST}


def test_no_policy_file_names_the_option(servers: FakeCluster) -> None:
    Path("policy.yaml").unlink()
    result = enable()
    assert (result.exit_code, timers(servers)) == (2, [("inactive", False)] * 3)
    assert "cannot read policy.yaml: no such file or directory\nhint: pass the file with --policy FILE" in result.output


def test_a_changed_policy_replaces_the_one_before(servers: FakeCluster) -> None:
    enable()
    Path("policy.yaml").write_text(SMALLEST.replace("newest: 10", "newest: 5"))
    result = enable("--diff")
    assert "-      keep: {newest: 10}" in result.stdout
    assert "+      keep: {newest: 5}" in result.stdout
    assert b"newest: 5" in servers.servers["cp-3"].content(retention.POLICY)


def test_a_dry_run_changes_nothing(servers: FakeCluster) -> None:
    result = enable("--dry-run")
    assert result.exit_code == 0, result.output
    assert f"would write {retention.POLICY}" in result.stdout
    assert servers.acts() == []


def test_a_wrong_policy_is_refused_before_any_node_is_contacted(
    servers: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object) -> Transport:
        raise AssertionError("a node was contacted")

    monkeypatch.setattr(session, "reach", nobody)
    Path("policy.yaml").write_text(SMALLEST.replace("newest", "newst"))
    result = enable()
    assert result.exit_code == 2
    assert "did you mean newest" in result.stderr


def test_a_policy_that_the_timer_can_never_apply_is_refused(servers: FakeCluster) -> None:
    Path("policy.yaml").write_text(DEFAULT_SETS)
    result = enable()
    assert result.exit_code == 2
    assert "spec.sets: the timer does not know the images of the set kubeadm" in result.stderr
    assert servers.acts() == []


def test_a_policy_whose_plans_wait_for_an_approval_is_stored_with_a_word(servers: FakeCluster) -> None:
    """Nobody reads the journal of the timer, and its unit ends well."""
    told = "each plan waits for `kubeadm-registry retention approve`"
    assert told in enable().output
    Path("policy.yaml").write_text(f"{SMALLEST}  approval: Automatic\n")
    assert told not in enable().output


def test_a_policy_by_which_the_timer_keeps_everything_is_stored_with_a_word(servers: FakeCluster) -> None:
    """Each node knows its own pulls; `retention plan` asks all of them, and shows what the timer never deletes."""
    assert "pulledWithin" not in enable().output
    Path("policy.yaml").write_text(SMALLEST.replace("newest: 10", "pulledWithin: 60d"))
    assert "the timer knows the pulls of its own node only, so pulledWithin keeps everything" in enable().output


def test_it_is_refused_where_a_kubelet_is_configured(servers: FakeCluster) -> None:
    server = servers.servers["cp-2"]
    server.answer("sh", "-c", phase._KUBELET, with_="/var/lib/kubelet/config.yaml exists\n")
    for ignore in ((), ("--dry-run",)):
        result = enable(*ignore)
        assert result.exit_code == 3
        assert "cp-2" in result.output and "/var/lib/kubelet/config.yaml exists: this node is part of" in result.output
    assert timers(servers) == [("inactive", False)] * 3
    assert servers.acts() == []


def test_it_is_refused_where_there_are_no_units(servers: FakeCluster) -> None:
    del servers.servers["cp-1"].tree[f"{paths.UNITS}/{retention.TIMER}"]
    result = enable()
    assert result.exit_code == 3
    assert "run `kubeadm-registry init` with a bundle that holds kubeadm-registry" in result.output


def test_disable_leaves_the_units_and_no_policy(servers: FakeCluster) -> None:
    enable()
    assert timer("disable", "--dry-run").exit_code == 0
    assert timers(servers) == [("active", True)] * 3
    result = timer("disable")
    assert result.exit_code == 0, result.output
    assert timers(servers) == [("inactive", False)] * 3
    for server in servers.servers.values():
        assert retention.POLICY not in server.tree
        assert f"{paths.UNITS}/{retention.TIMER}" in server.tree
    assert timer("disable").stdout.splitlines()[-1] == "nothing to do"


@pytest.mark.parametrize("what", [("enable", "--policy", "policy.yaml"), ("disable",)], ids=["enable", "disable"])
def test_an_outdated_file_leaves_no_member_with_another_timer(servers: FakeCluster, what: tuple[str, ...]) -> None:
    """The member that it lacks would go on by the policy of before when it holds the lease."""
    enable()
    names = {node.name: node.address for node in servers.config.spec.nodes}
    for server in servers.servers.values():
        server.put(f"{servers.config.spec.data_directory}/garage/meta/cluster_layout", b"a layout")
        server.put(members.PATH, Members(2, {**names, "cp-4": "10.0.0.14"}).render())
        server.acts.clear()
    Path("policy.yaml").write_text(f"{SMALLEST}# another one\n")
    result = timer(*what)
    assert result.exit_code == 3, result.output
    assert "SameCluster" in result.output and "omits cp-4" in result.output
    assert servers.acts() == []


@pytest.mark.parametrize("more", [(), ("--plan-only",)], ids=["with a key", "plan only"])
def test_an_operator_takes_over_from_the_timer(
    servers: FakeCluster, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    Path("admin.conf").write_text(KUBECONFIG)
    running: list[list[tuple[str, bool]]] = []

    def install(*_: object, **__: object) -> str:
        running.append(timers(servers))
        return "pod-a"

    monkeypatch.setattr(installing, "install", install)
    monkeypatch.setattr(installing, "refuse_older", lambda _: None)
    monkeypatch.setattr(installing, "helper_key", lambda _: HelperKey.of(""))
    told = "the timer of retention is disabled"
    enable()
    for noted in (True, False):
        words = ("operator", "install", "--kubeconfig", "admin.conf", *more)
        result = CliRunner().invoke(cli, words, prog_name="kubeadm-registry")
        assert result.exit_code == 0, result.output
        assert (told in result.output) == noted
    assert running == [[("inactive", False)] * 3] * 2, "before it works"
    assert all(retention.POLICY not in server.tree for server in servers.servers.values())


SHOWN = """\
ActiveState=active
NextElapseUSecRealtime=Sat 2026-11-28 03:12:07 UTC
LastTriggerUSec=Fri 2026-11-27 03:20:41 UTC
Result=success
ExecMainStatus=0
Policy=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef  -
"""


def test_status_shows_each_node(servers: FakeCluster) -> None:
    never = "ActiveState=inactive\nNextElapseUSecRealtime=\nLastTriggerUSec=n/a\nResult=success\nExecMainStatus=0\n"
    for name, server in servers.servers.items():
        server.put(secrets.PATH, server.content(secrets.PATH), 0o600)
        server.answer("sh", "-c", retention._TIMER, "timer", with_=SHOWN if name != "cp-3" else never)
    result = timer("status")
    assert result.exit_code == 0, result.output
    first, last = result.stdout.splitlines()[1], result.stdout.splitlines()[3]
    assert first.split("  ")[0] == "cp-1"
    for word in ("enabled", "0123456789ab", "Sat 2026-11-28 03:12:07 UTC", "success (0)"):
        assert word in first
    assert last.split() == ["cp-3", "disabled", "-", "-", "-", "-"]
    told = json.loads(timer("status", "-o", "json").stdout)["nodes"]
    assert told[2] == {"name": "cp-3", "enabled": False, "policy": None, "next": None, "last": None, "result": None}
    assert servers.acts() == []


# ---- the scripts, run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [True, False])
def test_a_kubelet_is_seen_by_its_files_or_its_unit(tmp_path: Path, running: bool) -> None:
    stub(tmp_path / "bin", "systemctl", f"[ $3 = kubelet.service ] && exit {0 if running else 3}")
    host, files = here(tmp_path / "bin"), [str(tmp_path / name) for name in ("config.yaml", "kubelet.conf")]
    said = ["kubelet.service is running"] if running else []
    assert host.query("sh", "-c", phase._KUBELET, "kubelet", *files).text.splitlines() == said
    Path(files[1]).touch()
    assert host.query("sh", "-c", phase._KUBELET, "kubelet", *files).text.splitlines() == [f"{files[1]} exists", *said]


def test_the_timer_is_asked_for_in_one_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(tmp_path / "bin", "systemctl", "case $4 in *.timer) echo ActiveState=active ;; *) echo Result=success ;; esac")
    policy = tmp_path / "policy.yaml"
    monkeypatch.setattr(retention, "POLICY", str(policy))
    host = here(tmp_path / "bin")
    assert retention.timer_state(host) == retention.TimerState(True, "", "", "", "")
    policy.write_bytes(b"a policy")
    assert retention.timer_state(host).policy == hashlib.sha256(b"a policy").hexdigest()
