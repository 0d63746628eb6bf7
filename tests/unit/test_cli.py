"""The command line: exit codes, help, JSON lines, and what it does before and after the engine."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from cryptography import x509
from cryptography.x509.oid import NameOID

from kubeadm_registry import __version__, config, paths, pki, secrets
from kubeadm_registry.access import session
from kubeadm_registry.bundle import make
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import Program
from kubeadm_registry.cli.main import cli
from kubeadm_registry.cluster import retiring
from kubeadm_registry.components import garage, programs
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.engine.phase import Workflow, leaves
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.phases.workflows import CHANGE_MEMBERS, INIT, RESET
from kubeadm_registry.transport.host import Transport
from tests.unit.bundle_files import image, script, write_layout
from tests.unit.command_line import Terminal, failed, lines
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.fakes import Dir, Link
from tests.unit.healthy import healthy, without_containerd

pytest_plugins = ["tests.unit.command_line"]

#: Phases that the fake servers have no answers for.
SKIP = ("--skip-phases", ",".join(ELSEWHERE))
CHECKS = tuple(check.name for _, phase in leaves(INIT) for check in phase.checks)


# ---- exit code 2: nothing is contacted ------------------------------------------------------------------------------


def test_seed_needs_a_registry_and_a_bundle_with_images(run: Terminal, servers: FakeCluster, tmp_path: Path) -> None:
    result = run("seed", "-o", "json")
    failed(result, 2)
    assert lines(result)[-1]["code"] == "BundleMissing"
    write_layout(tmp_path / "layout", image("registry.k8s.io/pause:3.10"))
    result = run("seed", "--bundle", str(tmp_path / "layout"), "-o", "json")
    failed(result, 1)
    assert lines(result)[-1]["code"] == "NotInstalled"


WRONG = {
    "no such command": ("inti",),
    "no such option": ("init", "--dry"),
    "a format that is none": ("init", "-o", "yaml"),
    "a phase that is none": ("init", "phase", "backnd"),
    "phases to skip that are none": ("init", "--skip-phases", "vip,backnd"),
    "a check that is none": ("init", "--ignore-preflight-errors", "Prots"),
    "a check of preflight that is none": ("preflight", "--ignore-preflight-errors", "Prots"),
    "a role that is none": ("credentials", "--role", "root"),
    "a bundle that is not there": ("init", "--bundle", "nowhere.tar"),
    "a node that is none": ("config", "kubeadm", "--node", "cp-9"),
    "programs and no programs": ("bundle", "create", "--images-only", "--with", "garage"),
    "a platform that is none": ("bundle", "create", "--images-only", "--platform", "linux"),
    "a program that is no pair": ("bundle", "create", "-o", "x.tar", "--program", "garage"),
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG)
def test_a_wrong_command_line_ends_with_2_and_contacts_nobody(
    run: Terminal, unreachable: list[str], arguments: tuple[str, ...]
) -> None:
    run.write(config.SMALLEST)
    failed(run(*arguments), 2)
    assert unreachable == []
    assert [path.name for path in run.folder.iterdir()] == ["cluster.yaml"]


@pytest.mark.parametrize("command", [("init",), ("mirrors", "apply", "--nodes", "workers.txt")])
def test_a_sudo_password_that_is_no_text(
    run: Terminal, servers: FakeCluster, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    run("init", *SKIP)
    run.write("10.0.0.21\n", "workers.txt")
    monkeypatch.setenv(terminal.SUDO_PASSWORD, os.fsdecode(b"geh\xe4im"))
    result = run(*command)
    failed(result, 2)
    assert f"{terminal.SUDO_PASSWORD} is not UTF-8 text" in result.stderr


@pytest.mark.parametrize("password", ["let me in\n", "let me in\nreboot"])
def test_a_sudo_password_of_two_lines(
    run: Terminal, unreachable: list[str], monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    """As from a file: sudo reads the first, and the shell of root ran the second."""
    run.write(config.SMALLEST)
    monkeypatch.setenv(terminal.SUDO_PASSWORD, password)
    result = run("init", *SKIP)
    failed(result, 2)
    assert f"[SudoPasswordInvalid] {terminal.SUDO_PASSWORD} contains a line break" in result.stderr
    assert "let me in" not in result.stderr
    assert unreachable == []


def test_a_wrong_command_line_as_json(run: Terminal) -> None:
    result = run("init", "--bogus", "-o", "json")
    failed(result, 2)
    (error,) = lines(result)
    assert (error["event"], error["code"]) == ("error", "UsageInvalid")
    assert "--bogus" in error["message"]


@pytest.mark.parametrize("command", ["init", "preflight", "verify", "reset", "status", "credentials", "ca"])
def test_a_wrong_file_ends_with_2_and_contacts_nobody(run: Terminal, unreachable: list[str], command: str) -> None:
    run.write(config.SMALLEST.replace("nodes", "nods").replace("vip: {address: 10.0.0.10}", "vip: {adress: 10.0.0.10}"))
    result = run(command)
    failed(result, 2)
    for words in ("spec.nods: unknown key, did you mean nodes?", "spec.nodes: is missing", "spec.vip.adress"):
        assert words in result.stderr
    assert unreachable == []


def test_without_a_file_the_error_shows_the_smallest_one(run: Terminal) -> None:
    result = run("init")
    failed(result, 2)
    assert config.SMALLEST in result.stderr
    assert "hint: create ./cluster.yaml with your addresses" in result.stderr
    shown = result.stderr[result.stderr.index("apiVersion") : result.stderr.index("hint:")]
    run.write(shown)
    assert run("config", "validate").exit_code == 0, "what the error shows is a good file"


def test_a_file_that_is_named_and_not_there(run: Terminal) -> None:
    result = run("init", "-f", "other.yaml")
    failed(result, 2)
    assert "other.yaml" in result.stderr


def test_unknown_names_list_those_that_are_known(run: Terminal, unreachable: list[str]) -> None:
    run.write(config.SMALLEST)
    assert "backend/form" in run("init", "phase", "backnd").stderr
    assert "VipUnused" in run("init", "--ignore-preflight-errors", "Prots").stderr


def test_a_wrong_file_as_json(run: Terminal) -> None:
    run.write("spec: {}")
    result = run("init", "-o", "json")
    failed(result, 2)
    [event] = lines(result)
    assert (event["event"], event["code"], event["host"]) == ("error", "ConfigInvalid", "")
    assert "spec.nodes: is missing" in event["message"]
    assert set(event) == {"event", "code", "message", "hint", "host", "problems", "time"}
    assert {"path": "spec.nodes", "message": "is missing"} in event["problems"]
    assert result.stderr == ""


# ---- exit codes 3, 4 and 1 ------------------------------------------------------------------------------------------


def test_a_failed_check_ends_with_3_and_changes_nothing(run: Terminal, servers: FakeCluster) -> None:
    healthy(servers).servers["cp-2"].answer("uname", "-m", with_="riscv64")
    servers.servers["cp-3"].put("/etc/os-release", "ID=alpine\n")
    result = run("init", "--skip-phases", "containerd,verify")
    failed(result, 3)
    assert "cp-2" in result.stdout
    assert "[Architecture] architecture riscv64" in result.stdout
    assert "[OperatingSystem] alpine" in result.stdout, "all problems on all servers at once"
    assert "--ignore-preflight-errors=Architecture,OperatingSystem" in result.stderr
    assert servers.acts() == []
    ignoring = run("init", "--skip-phases", "containerd,verify", "--ignore-preflight-errors",
                   "Architecture, OperatingSystem")  # fmt: skip
    assert ignoring.exit_code == 0, ignoring.output
    assert "ignored [Architecture]" in ignoring.stdout


def test_a_failed_check_as_json(run: Terminal, servers: FakeCluster) -> None:
    healthy(servers).servers["cp-2"].answer("uname", "-m", with_="riscv64")
    result = run("init", "--skip-phases", "containerd,verify", "-o", "json")
    failed(result, 3)
    checks = [event for event in lines(result) if event["event"] == "check"]
    assert {(event["host"], event["check"]) for event in checks if event["ok"]} >= {
        ("cp-1", "Ports"),
        ("cp-1", "Clock"),
        ("cp-3", "TimeSync"),
    }
    [bad] = [event for event in checks if not event["ok"]]
    assert (bad["host"], bad["check"], bad["ignored"]) == ("cp-2", "Architecture", False)
    assert bad["message"].startswith("architecture riscv64 is not supported")
    assert lines(result)[-1]["code"] == "PreflightFailed"


@pytest.mark.parametrize("command", ["init", "preflight", "credentials"])
def test_a_server_that_cannot_be_reached_ends_with_4(run: Terminal, command: str) -> None:
    (run.folder.parent / "home" / ".ssh").mkdir()
    (run.folder.parent / "home" / ".ssh" / "config").write_text("Host *\n  ProxyCommand false\n")
    run.write(config.SMALLEST.replace("10.0.0.", "192.0.2."))
    result = run(command, "-o", "json")
    failed(result, 4)
    notes, error = lines(result)[:-1], lines(result)[-1]
    assert error["event"] == "error"
    assert [*(note["host"] for note in notes), error["host"]] == ["cp-2", "cp-3", "cp-1"], "each one is told"


def cut_off(servers: FakeCluster, monkeypatch: pytest.MonkeyPatch, away: dict[str, str]) -> None:
    """Each server in *away* does not let itself be reached, for the reason given there."""
    reach = session.reach

    def refuse(config: RegistryCluster, node: Node, prompts: session.Prompts) -> Transport:
        if node.name in away:
            raise ConnectionFailed(f"cannot reach {node.address}: timed out", host=node.name, code=away[node.name])
        return reach(config, node, prompts)

    for name in away:
        servers.servers[name].unit(garage.UNIT).active = "inactive"
    monkeypatch.setattr(session, "reach", refuse)


def test_without_one_server_init_goes_on_with_the_others_and_says_what_is_owed(
    run: Terminal, installed: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(installed.servers["cp-1"].acts)
    with monkeypatch.context() as context:
        cut_off(installed, context, {"cp-1": "HostUnreachable"})
        result = run("init", *SKIP)
        assert result.exit_code == 5, result.output
        assert "cannot reach 10.0.0.11: timed out; continuing without it" in result.stdout
        assert "anything changed since this node was last reachable; run init again" in result.stdout
        assert result.stdout.splitlines()[-1] == "nothing to do"
        run.write(config.SMALLEST + "  proxy: {anonymousPull: false}\n")
        owed = lines(run("init", *SKIP, "-o", "json"))[-1]
        assert owed["changed"] > 0
        assert owed["owed"] == {"cp-1": {"reason": "cannot reach 10.0.0.11: timed out", "phases": ["proxy", "runbook"]}}
    assert len(installed.servers["cp-1"].acts) == before, "it was left alone"
    installed.servers["cp-1"].unit(garage.UNIT).active = "active"
    made_up = run("init", *SKIP)
    assert (made_up.exit_code, made_up.stdout.splitlines()[-1]) == (0, "5 changes on 1 node"), made_up.output


@pytest.mark.parametrize(
    "away",
    [
        {"cp-1": "HostUnreachable", "cp-3": "HostUnreachable"},
        {"cp-2": "HostKeyChanged"},
        {"cp-2": "AuthenticationFailed"},
    ],
    ids=["too many", "a stranger", "no way in"],
)
def test_init_does_not_go_on_without_a_majority_or_past_a_server_that_answers(
    run: Terminal, installed: FakeCluster, monkeypatch: pytest.MonkeyPatch, away: dict[str, str]
) -> None:
    cut_off(installed, monkeypatch, away)
    acts = installed.acts()
    failed(run("init", *SKIP), 4)
    assert installed.acts() == acts


def test_a_first_init_needs_every_server(run: Terminal, servers: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off(servers, monkeypatch, {"cp-3": "HostUnreachable"})
    failed(run("init", *SKIP), 4)
    assert servers.acts() == []


def test_a_failure_names_phase_change_host_and_remedy(run: Terminal, servers: FakeCluster) -> None:
    servers.servers["cp-2"].broken[paths.unit("garage")] = "cannot open the database"
    result = run("init", *SKIP)
    failed(result, 1)
    unit = paths.unit("garage")
    assert f"error [ServiceFailed] cp-2: phase backend/install, start {unit}: " in result.stderr
    assert "cannot open the database" in result.stderr
    assert f"hint: see: journalctl -u {unit}" in result.stderr


def test_a_server_at_which_somebody_else_works(run: Terminal, servers: FakeCluster) -> None:
    servers.servers["cp-3"].holder = "ann@laptop pid 7"
    result = run("init", *SKIP, "-o", "json")
    failed(result, 1)
    error = lines(result)[-1]
    assert (error["code"], error["host"]) == ("HostBusy", "cp-3")
    assert "ann@laptop pid 7" in error["message"]
    assert servers.acts() == []


def test_programs_that_nobody_has(run: Terminal, servers: FakeCluster) -> None:
    for server in servers.servers.values():
        del server.tree[f"{paths.OPT}/programs.json"]
    result = run("init", *SKIP)
    failed(result, 1)
    assert "[ProgramMissing]" in result.stderr
    assert "kubeadm-registry bundle create --with garage" in result.stderr
    assert servers.acts() == []


def test_a_bug_is_told_as_one_and_only_debug_shows_where(run: Terminal, servers: FakeCluster) -> None:
    servers.servers["cp-1"].answer("uname", "-m", with_=lambda *_: 1 // 0)
    result = run("preflight")
    failed(result, 1)
    assert "[Bug] unexpected " in result.stderr
    assert "--debug" in result.stderr
    shown = run("preflight", "--debug", "--log-file", "log")
    assert shown.exit_code == 1
    assert json.loads((run.folder / "log").read_text().splitlines()[-1])["code"] == "Bug"
    assert not isinstance(shown.exception, SystemExit), "the traceback goes to whoever asked for it"


def test_debug_shows_where_an_ordinary_error_comes_from(run: Terminal) -> None:
    result = run("init", "--debug")
    assert isinstance(result.exception, Exception)
    assert type(result.exception).__name__ == "ConfigError"
    assert "no cluster file" in result.stderr


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(run: Terminal, servers: FakeCluster) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    servers.servers["cp-1"].answer("uname", "-m", with_=interrupted)
    result = run("preflight")
    failed(result, 130)
    assert "run the command again; it resumes where it stopped" in result.stderr


# ---- init -----------------------------------------------------------------------------------------------------------


def test_init_then_init_again(run: Terminal, servers: FakeCluster) -> None:
    first = run("init", *SKIP)
    assert first.exit_code == 0, first.output
    assert first.stderr == ""
    acts = servers.acts()
    assert first.stdout.splitlines()[-1].endswith("changes on 3 nodes")
    second = run("init", *SKIP)
    assert (second.exit_code, second.stdout.splitlines()[-1]) == (0, "nothing to do")
    assert servers.acts() == acts


@pytest.mark.parametrize(("words", "level"), [(("init",), "info"), (("join", "cp-3"), "warning")])
def test_settings_that_are_changed_are_named_before_anything_is(
    run: Terminal, servers: FakeCluster, words: tuple[str, ...], level: str
) -> None:
    assert run("init", *SKIP).exit_code == 0
    run.write(config.SMALLEST + "  proxy: {anonymousPull: false}\n")
    events = lines(run(*words, "--dry-run", "-o", "json"))
    notes = [one for one in events if one["event"] == "note" and "cluster file" in one["message"]]
    assert [(one["level"], one["message"]) for one in notes] == [
        (level, "the cluster file differs from the one applied last in spec.proxy.anonymousPull; each node has that "
         "one as /etc/kubeadm-registry/cluster.yaml")
    ]  # fmt: skip


def test_init_as_json_lines(run: Terminal, servers: FakeCluster) -> None:
    events = lines(run("init", *SKIP, "-o", "json"))
    shapes = {
        "check": {"event", "host", "check", "ok", "time"},
        "phase": {"event", "phase", "summary", "time"},
        "change": {"event", "phase", "host", "title", "diff", "dryRun", "time"},
        "changed": {"event", "phase", "host", "title", "seconds", "time"},
        "result": {"event", "ok", "summary", "changed", "dryRun", "owed", "seconds", "time"},
    }
    assert {event["event"] for event in events} == set(shapes)
    for event in events:
        assert set(event) == shapes[event["event"]], event
    result = events[-1]
    changes = [event for event in events if event["event"] == "change"]
    assert (result["event"], result["ok"], result["changed"], result["dryRun"]) == ("result", True, len(changes), False)
    assert {event["host"] for event in changes} == {"cp-1", "cp-2", "cp-3"}
    assert lines(run("init", *SKIP, "-o", "json"))[-1]["changed"] == 0


def test_a_log_file_has_each_command_and_an_error_too(run: Terminal, servers: FakeCluster) -> None:
    env = {"KUBEADM_REGISTRY_LOG_FILE": str(run.folder / "log")}
    assert run("init", *SKIP, env=env).exit_code == 0
    assert run("init", "--skip-phases", "none", "--log-file", str(run.folder / "log")).exit_code == 2
    kept = [json.loads(line) for line in (run.folder / "log").read_text().splitlines()]
    assert [one["event"] for one in kept if one["event"] in ("begin", "result", "error")] == [
        "begin", "result", "begin", "error",
    ]  # fmt: skip
    assert kept[-1]["code"] == "PhaseUnknown"


def test_a_full_log_file_hides_no_error(run: Terminal) -> None:
    result = run("init", "-f", "none.yaml", "--log-file", "/dev/full", "-o", "json")
    assert result.exit_code == 2
    assert [one["code"] for one in lines(result)] == ["ConfigUnreadable"]
    (run.folder / "cluster.yaml").write_text(config.SMALLEST)
    result = run("config", "validate", "--log-file", "/dev/full", "-o", "json")
    assert result.exit_code == 1
    assert lines(result)[-1]["message"] == "/dev/full: no space left on device"


def test_a_log_file_that_cannot_be_opened(run: Terminal, unreachable: list[str]) -> None:
    failed = run("init", "--log-file", str(run.folder), "-o", "json")
    assert failed.exit_code == 1
    assert lines(failed)[-1]["code"] == "PathUnusable"
    assert not unreachable


def test_no_secret_is_shown(run: Terminal, servers: FakeCluster) -> None:
    shown = run("init", *SKIP, "--diff").output + run("init", *SKIP, "-o", "json", "--dry-run").output
    [held] = {server.content(secrets.PATH) for server in servers.servers.values()}
    assert "secretkey" in shown, "the configurations are shown"
    for name, value in json.loads(held).items():
        values = value.values() if isinstance(value, dict) else [value]
        if name not in ("generation", "made", "ca_certificate", "s3_key_id", "format"):
            assert not [one for one in values if one in shown], name


def test_a_dry_run_shows_what_differs_and_touches_nothing(run: Terminal, servers: FakeCluster) -> None:
    before = servers.snapshot()
    result = run("init", *SKIP, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "would write /etc/kubeadm-registry/haproxy/haproxy.cfg" in result.stdout
    assert "+frontend public" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("changes on 3 nodes")
    assert (servers.snapshot(), servers.acts()) == (before, [])
    assert not any(server.locked_by for server in servers.servers.values())


def test_one_phase_with_those_below_it(run: Terminal, servers: FakeCluster) -> None:
    assert run("init", "phase", "base").exit_code == 0
    events = lines(run("init", "phase", "secrets", "-o", "json"))
    assert [event["phase"] for event in events if event["event"] == "phase"] == [
        "secrets/store",
        "secrets/certificates",
    ]
    assert run("init", "phase", "secrets/store").stdout.splitlines()[-1] == "nothing to do"


@pytest.mark.parametrize(
    "arguments",
    [
        ("init", "--dry-run", "phase", "base"),
        ("init", "phase", "--dry-run", "base"),
        ("init", "phase", "base", "--dry-run"),
        ("init", "--dry-run", "phase", "base", "--diff"),
    ],
)
def test_a_dry_run_is_one_wherever_the_option_stands(
    run: Terminal, servers: FakeCluster, arguments: tuple[str, ...]
) -> None:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "would make" in result.stdout
    assert servers.acts() == []


def test_every_option_before_the_phase_counts(run: Terminal, servers: FakeCluster) -> None:
    (run.folder / "cluster.yaml").rename(run.folder / "mine.yaml")
    events = lines(run("init", "-f", "mine.yaml", "-o", "json", "--skip-phases", "secrets/certificates", "--dry-run",
                       "phase", "secrets"))  # fmt: skip
    assert [event["phase"] for event in events if event["event"] == "phase"] == ["secrets/store"]
    assert events[-1]["dryRun"] is True


def test_preflight_says_how_many_are_ready(run: Terminal, servers: FakeCluster) -> None:
    healthy(servers)
    result = run("preflight", "-o", "json")
    assert result.exit_code == 0, result.output
    events = lines(result)
    assert {event["event"] for event in events} == {"check", "phase", "result"}
    assert {event["check"] for event in events if event["event"] == "check"} == {*CHECKS}
    assert (events[-1]["summary"], events[-1]["problems"]) == ("all 3 nodes are ready for init", 0)
    assert servers.acts() == []


def test_preflight_may_check_without_staging_anything(run: Terminal, servers: FakeCluster) -> None:
    """On nodes that have no programs, and without a bundle that has them."""
    healthy(servers)
    for server in servers.servers.values():
        del server.tree[f"{paths.OPT}/programs.json"]
    failed(run("preflight"), 1)
    events = lines(run("preflight", "--checks-only", "-o", "json"))
    assert {event["event"] for event in events} == {"check", "result"}
    assert {event["check"] for event in events if event["event"] == "check"} == {*CHECKS}
    assert events[-1]["summary"] == "all checks passed on 3 nodes"
    assert servers.acts() == []


# ---- reset ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(run: Terminal, servers: FakeCluster) -> FakeCluster:
    assert run("init", *SKIP).exit_code == 0
    for server in servers.servers.values():
        without_containerd(server)
        server.put("/var/lib/kubeadm-registry/garage/data/block", b"a layer", 0o600)
    return servers


def test_reset_keeps_the_images_and_a_later_init_finds_them(run: Terminal, installed: FakeCluster) -> None:
    before = installed.servers["cp-1"].content(secrets.PATH)
    result = run("reset", "--yes")
    assert result.exit_code == 0, result.output
    for server in installed.servers.values():
        left = {path for path in server.files() if path != "/etc/os-release"}
        assert left == {
            "/var/lib/kubeadm-registry/garage/data/block",
            "/var/lib/kubeadm-registry/garage/meta/node_key",
            "/var/lib/kubeadm-registry/garage/meta/node_key.pub",
            "/var/lib/kubeadm-registry/members.json",
            "/var/lib/kubeadm-registry/secrets.json",
        }
        assert server.files()["/var/lib/kubeadm-registry/secrets.json"].mode == 0o600
        assert set(server.users) == {"root"}
        assert not [name for name, unit in server.units.items() if unit.active == "active" or unit.enabled]
    assert run("reset", "--yes").stdout.splitlines()[-1] == "nothing to do"
    for server in installed.servers.values():
        for program in installed.programs.values():
            installed._unpack(server, program)
        server.put(f"{paths.OPT}/programs.json", programs.record(installed.programs))
    again = run("init", *SKIP)
    assert again.exit_code == 0, again.output
    assert installed.servers["cp-3"].content(secrets.PATH) == before, "the same cluster lives on"


def test_only_purge_data_deletes_images_and_only_ours(run: Terminal, installed: FakeCluster) -> None:
    installed.servers["cp-2"].put("/var/lib/kubeadm-registry/of the user", b"x")
    assert run("reset", "--yes", "--purge-data").exit_code == 0
    for name, server in installed.servers.items():
        left = [path for path in server.tree if path.startswith("/var/lib/")]
        folder = "/var/lib/kubeadm-registry"
        assert left == ([folder, f"{folder}/of the user"] if name == "cp-2" else [])


def test_a_data_directory_that_was_there_keeps_its_owner_and_mode(run: Terminal, servers: FakeCluster) -> None:
    run.write(config.SMALLEST + "  dataDirectory: /srv\n")
    for server in servers.servers.values():
        server.users["ann"], server.groups = {"ann"}, server.groups | {"ann"}
        server.tree["/srv"] = Dir(0o2775, "ann:ann")
        server.put("/srv/of ann", b"x")
    assert run("init", *SKIP).exit_code == 0
    assert {server.tree["/srv"] for server in servers.servers.values()} == {Dir(0o2775, "ann:ann")}
    for server in servers.servers.values():
        without_containerd(server)
    assert run("reset", "--yes").exit_code == 0
    assert {server.tree["/srv"] for server in servers.servers.values()} == {Dir(0o2775, "ann:ann")}
    assert servers.servers["cp-1"].files()["/srv/secrets.json"].mode == 0o600


@pytest.mark.parametrize("purge", [(), ("--purge-data",)], ids=["keep", "purge"])
def test_reset_with_another_data_directory_is_refused_before_anything_is_touched(
    run: Terminal, installed: FakeCluster, purge: tuple[str, ...]
) -> None:
    """It would put the secrets where nobody looks for them, or leave what was to be purged."""
    run.write(config.SMALLEST + "  dataDirectory: /srv/registry\n")
    before = installed.snapshot()
    result = run("reset", "--yes", *purge)
    failed(result, 3)
    assert "the images are in /var/lib/kubeadm-registry, not in /srv/registry" in result.stdout
    assert "--ignore-preflight-errors" not in result.stderr, "nobody can ask for this"
    assert installed.snapshot() == before


def test_reset_puts_no_secrets_below_the_mount_point_of_a_disk_that_is_not_there(
    run: Terminal, installed: FakeCluster
) -> None:
    """Once the disk is mounted nobody would find them, and its images cannot be read without."""
    installed.servers["cp-2"].unmounted.add("/var/lib/kubeadm-registry")
    before = installed.snapshot()
    result = run("reset", "--yes")
    failed(result, 3)
    assert "/var/lib/kubeadm-registry is in /etc/fstab and is not mounted" in result.stdout
    assert installed.snapshot() == before


def test_reset_removes_no_directory_that_the_images_are_in(run: Terminal, installed: FakeCluster) -> None:
    server = installed.servers["cp-2"]
    for path in [path for path in server.tree if path.startswith("/var/lib/kubeadm-registry")]:
        server.tree[path.replace("/var/lib/", "/opt/kubeadm-registry/")] = server.tree.pop(path)
    server.tree["/var/lib/kubeadm-registry"] = Link("/opt/kubeadm-registry/kubeadm-registry")
    before = installed.snapshot()
    result = run("reset", "--yes")
    failed(result, 3)
    assert "the images are in /opt/kubeadm-registry/kubeadm-registry, which reset removes" in result.stdout
    assert installed.snapshot() == before


@pytest.mark.parametrize("name", ["garage", "zot"])
def test_reset_leaves_what_it_did_not_put_into_the_data_directory(
    run: Terminal, servers: FakeCluster, name: str
) -> None:
    """A cluster file may name a directory of somebody who runs the same programs, and reset may come before init."""
    run.write(config.SMALLEST + "  dataDirectory: /srv\n")
    for server in servers.servers.values():
        without_containerd(server)
        server.put(f"/srv/{name}/meta/node_key", b"of another storage")
    result = run("reset", "--yes", "--purge-data")
    assert result.exit_code == 0, result.output
    for server in servers.servers.values():
        assert server.content(f"/srv/{name}/meta/node_key") == b"of another storage"
    assert f"/srv/{name} contains files that this registry did not create" in result.stdout


def test_a_purge_that_was_cut_off_is_made_up(run: Terminal, installed: FakeCluster) -> None:
    """Files go in no order: the key by which the storage is known as ours may be the first to go."""
    assert run("reset", "--yes").exit_code == 0
    for server in installed.servers.values():
        del server.tree["/var/lib/kubeadm-registry/garage/meta/node_key"]
    assert run("reset", "--yes", "--purge-data").exit_code == 0
    assert not any("kubeadm-registry" in path for server in installed.servers.values() for path in server.tree)


def test_a_dry_run_of_reset_touches_nothing(run: Terminal, installed: FakeCluster) -> None:
    before = installed.snapshot()
    result = run("reset", "--dry-run", "--purge-data")
    assert result.exit_code == 0, result.output
    assert "would remove /var/lib/kubeadm-registry/garage" in result.stdout
    assert installed.snapshot() == before


def test_reset_asks_at_a_terminal_and_no_changes_nothing(run: Terminal) -> None:
    """In earnest, for a terminal is what decides: nobody is contacted before the answer."""
    run.write(config.SMALLEST)
    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "kubeadm_registry", "reset", "--purge-data"],
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, b"n\n")
    said, _ = program.communicate(timeout=60)
    os.close(ours)
    assert program.returncode == 1
    assert b"Remove the registry AND ALL ITS IMAGES from cp-1, cp-2, cp-3? [y/N]" in said
    assert b"[Aborted] aborted; nothing was changed" in said


def test_an_interrupt_before_a_command_begins_is_told_in_the_same_words(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    program = Program("kubeadm-registry", commands={"slow": click.Command("slow", callback=interrupted)})
    with pytest.raises(SystemExit) as ended:
        program.main(["slow"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.strip().startswith("error [Aborted] aborted; nothing was changed")


# ---- credentials and ca ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["push", "pull"])
def test_credentials(run: Terminal, installed: FakeCluster, role: str) -> None:
    password = json.loads(installed.servers["cp-1"].content(secrets.PATH))[f"{role}_password"]
    result = run("credentials", "--role", role)
    assert result.stdout == f"username: {role}\npassword: {password}\n"
    assert lines(run("credentials", "--role", role, "-o", "json")) == [{"username": role, "password": password}]
    assert all(server.closed for server in installed.servers.values())


def test_a_certificate_for_metrics(run: Terminal, installed: FakeCluster) -> None:
    before = installed.acts()
    said = run("credentials", "--role", "metrics").stdout
    assert said.index("BEGIN CERTIFICATE") < said.index("PRIVATE KEY")
    certificate = x509.load_pem_x509_certificate(said.encode())
    assert pki.is_of(run("ca").stdout, certificate)
    [unit] = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    assert unit.value == "registry-metrics"
    assert sorted(lines(run("credentials", "--role", "metrics", "-o", "json"))[0]) == ["certificate", "key"]
    assert installed.acts() == before


def test_ca(run: Terminal, installed: FakeCluster) -> None:
    certificate = json.loads(installed.servers["cp-1"].content(secrets.PATH))["ca_certificate"]
    assert run("ca").stdout == certificate
    assert lines(run("ca", "-o", "json")) == [{"ca": certificate}]


@pytest.mark.parametrize("command", ["credentials", "ca"])
def test_before_init_there_is_nothing_to_show(run: Terminal, servers: FakeCluster, command: str) -> None:
    result = run(command)
    failed(result, 1)
    assert "[NotInstalled]" in result.stderr


# ---- what needs no server -------------------------------------------------------------------------------------------


def test_the_defaults_are_a_good_file(run: Terminal) -> None:
    shown = run("config", "print-defaults").stdout
    run.write(shown)
    result = run("config", "validate")
    assert (result.exit_code, result.stdout) == (0, "cluster.yaml is valid: 3 nodes, zot\n")
    assert lines(run("config", "print-defaults", "-o", "json")) == [yaml.safe_load(shown)]


def test_one_server_is_told_not_to_be_highly_available(run: Terminal) -> None:
    run.write("".join(line for line in config.SMALLEST.splitlines(True) if "cp-2" not in line and "cp-3" not in line))
    assert "a single node is not highly available" in run("config", "validate").stdout


def test_an_ipv6_address_alone_is_no_name_for_every_client(run: Terminal) -> None:
    file = run.folder / "cluster.yaml"
    text = config.SMALLEST.replace("10.0.0.", "fd00::")
    file.write_text(text)
    assert "spec.vip.name is not set" in run("config", "validate").stdout
    file.write_text(text.replace("address: fd00::10}", "address: 'fd00::10', name: registry.example.org}"))
    result = run("config", "validate")
    assert result.exit_code == 0, result.output
    assert "warning" not in result.stdout


def test_kubeadm_configuration(run: Terminal) -> None:
    run.write(config.SMALLEST)
    result = run("config", "kubeadm", "--node", "cp-2")
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["warning", "warning"]
    text = result.stdout
    kinds = [document["kind"] for document in yaml.safe_load_all(text)]
    assert kinds == ["InitConfiguration", "ClusterConfiguration", "JoinConfiguration"]
    assert "10.0.0.12" in text
    assert json.loads(run("config", "kubeadm", "--node", "cp-2", "-o", "json").stdout) == {
        "node": "cp-2",
        "config": text,
    }


def test_a_bundle_is_made_verified_and_looked_into(run: Terminal) -> None:
    script(run.folder / "garage")
    made = run("bundle", "create", "-o", "x.tar", "--with", "garage", "--program", "garage=./garage")
    assert made.exit_code == 0, made.output
    assert made.stdout.splitlines()[-1].startswith("x.tar: ")
    assert run("bundle", "verify", "x.tar").exit_code == 0
    told = run("bundle", "inspect", "x.tar").stdout
    [shown] = lines(run("bundle", "inspect", "x.tar", "-o", "json"))
    assert "program  garage" in told
    assert f"{shown['programs'][0]['digest']}  file: garage, compared with nothing: the user's own file\n" in told
    assert [program["name"] for program in shown["programs"]] == ["garage"]
    damaged = bytearray((run.folder / "x.tar").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (run.folder / "x.tar").write_bytes(damaged)
    failed(run("bundle", "verify", "x.tar"), 1)


def test_a_bundle_of_images_alone(run: Terminal, tmp_path: Path) -> None:
    write_layout(tmp_path / "layout.tar", image("registry.k8s.io/pause:3.10"))
    made = run("bundle", "create", "-o", "x.tar", "--images-only", "--images-from", str(tmp_path / "layout.tar"))
    assert made.exit_code == 0, made.output
    assert made.stdout.splitlines()[-1].endswith("MB, 1 image")
    [shown] = lines(run("bundle", "inspect", "x.tar", "-o", "json"))
    assert (shown["programs"], len(shown["images"])) == ([], 1)


@pytest.mark.parametrize("words", [("--version",), ("version",), ("completion", "bash")])
def test_what_a_command_does_not_need_is_not_imported(words: tuple[str, ...]) -> None:
    """A start costs ten times as much with everything; a shell asks for completions at each TAB."""
    script = (
        "import sys\nfrom kubeadm_registry.cli.main import cli\n"
        "try: cli.main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "large = {'paramiko', 'pydantic', 'httpx', 'cryptography', 'kubernetes', 'msgspec'}\n"
        "sys.stderr.write(' '.join(large & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_version_of_kubernetes_means_its_images_and_containerds(
    run: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(make, "images_from", lambda names, paths, referrers: asked.extend(names) or [])
    run("bundle", "create", "-o", "x.tar", "--images-only", "--kubernetes-version", "v1.36.3", "--image", "nginx")
    assert {"registry.k8s.io/kube-proxy:v1.36.3", "registry.k8s.io/pause:3.8", "nginx"} <= set(asked)
    failed(run("bundle", "create", "--images-only", "--kubernetes-version", "1.99.0"), 2)


# ---- help and completion --------------------------------------------------------------------------------------------


def commands(group: click.Command, *above: str) -> list[tuple[str, ...]]:
    """Every command and group, by its words."""
    found = [above]
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            found += commands(command, *above, name)
    return found


@pytest.mark.parametrize("words", commands(cli), ids=" ".join)
def test_every_command_has_help(run: Terminal, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for option in ("-h", "--help"):
        result = run(*words, option)
        assert result.exit_code == 0
        assert f"Usage: {' '.join(('kubeadm-registry', *words))}" in result.stdout
        assert not re.search(r"[^.]\.\.(\s|$)", result.stdout), "no sentence ends twice"
        assert not [line for line in result.stdout.splitlines() if len(line) > 80], "a table or an example is too wide"


@pytest.mark.parametrize(
    ("words", "workflow"),
    [(("init",), INIT), (("init", "phase"), INIT), (("reset",), RESET)],
    ids=["init", "init phase", "reset"],
)
def test_help_ends_with_the_phases_as_they_are(run: Terminal, words: tuple[str, ...], workflow: Workflow) -> None:
    shown = run(*words, "--help").stdout
    table = shown[shown.index("Phases, in order:") :].splitlines()[1:]
    expected = [(path, phase.summary) for path, phase in leaves(workflow)]
    for (path, summary), line in zip(expected, table, strict=False):
        assert line.split() == [*path.split(), *summary.split()]


@pytest.mark.parametrize(
    ("words", "head"),
    [
        (("certs", "renew"), "Phases without --ca:"),
        (("credentials", "rotate"), "Phases for push, pull and retention:"),
    ],
    ids=["certs renew", "credentials rotate"],
)
def test_help_says_when_the_phases_hold(run: Terminal, words: tuple[str, ...], head: str) -> None:
    shown = run(*words, "--help").stdout
    assert [line.strip() for line in shown.splitlines() if line.strip().startswith("Phases")] == [head]


def test_help_of_join_has_all_phases_but_those_on_nodes_that_leave(run: Terminal) -> None:
    shown = run("join", "--help").stdout
    table = shown[shown.index("Phases, in order:") : shown.index("Options:")].splitlines()[1:]
    listed = [line.split()[0] for line in table if line.strip()]
    of_leaving = {path for path, phase in leaves(CHANGE_MEMBERS) if phase.on is retiring} | {"uninstall"}
    assert listed == [path for path, _ in leaves(CHANGE_MEMBERS) if path not in of_leaving]
    assert "--purge-data" not in shown


def groups(group: click.Command, *above: str) -> list[tuple[str, ...]]:
    """The words of each command that has commands below it."""
    if not isinstance(group, click.Group):
        return []
    return [above, *(one for name, child in group.commands.items() for one in groups(child, *above, name))]


@pytest.mark.parametrize("words", groups(cli), ids=" ".join)
def test_each_command_has_a_line_of_help_that_80_columns_show_whole(
    run: Terminal, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(*words, "--help").stdout
    listed = shown[shown.index("Commands:\n") :].splitlines()[1:]
    group: click.Command = cli
    for word in words:
        assert isinstance(group, click.Group)
        group = group.commands[word]
    assert isinstance(group, click.Group)
    for (name, command), line in zip(sorted(group.commands.items()), listed, strict=True):
        assert command.short_help, "a sentence of the help would be cut"
        assert line.split(maxsplit=1) == [name, command.short_help]


def test_help_names_every_exit_code(run: Terminal) -> None:
    shown = " ".join(run("--help").stdout.split())
    told = (
        "0 done, or nothing",
        "1 failed",
        "2 invalid file",
        "3 preflight",
        "4 a node is unreachable",
        "5 done, but degraded",
    )
    assert not [words for words in told if words not in shown]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed(run: Terminal, shell: str) -> None:
    shown = run("completion", shell)
    assert shown.exit_code == 0, shown.output
    assert f"_KUBEADM_REGISTRY_COMPLETE={shell}_complete" in shown.stdout


def test_version_is_a_command_too(run: Terminal) -> None:
    assert run("version").stdout == f"kubeadm-registry {__version__}\n"
    assert lines(run("version", "-o", "json")) == [{"version": __version__}]


def test_version(run: Terminal) -> None:
    assert run("--version").stdout == f"kubeadm-registry, version {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_for_shells(run: Terminal, shell: str) -> None:
    result = run(env={"_KUBEADM_REGISTRY_COMPLETE": f"{shell}_source"})
    assert "_KUBEADM_REGISTRY_COMPLETE" in result.stdout


def test_completion_knows_commands(run: Terminal) -> None:
    asked = {
        "_KUBEADM_REGISTRY_COMPLETE": "bash_complete",
        "COMP_WORDS": "kubeadm-registry bundle ver",
        "COMP_CWORD": "2",
    }
    assert run(env=asked).stdout.split() == ["plain,verify"]


def test_a_reader_that_goes_away_is_no_bug(run: Terminal) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "kubeadm_registry", "config", "print-defaults"],
        stdout=write, stderr=subprocess.PIPE, timeout=60, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_log_ends_with_the_reader_that_went_away(run: Terminal, output: str) -> None:
    run.write(config.SMALLEST)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "kubeadm_registry", "config", "validate", "--log-file", "log", "-o", output],
        stdout=write, stderr=subprocess.PIPE, timeout=60, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")
    kept = [json.loads(line) for line in (run.folder / "log").read_text().splitlines()]
    assert [one["event"] for one in kept] == ["begin", "error"]
    assert kept[-1]["message"] == "standard output was closed before the command was done"


@pytest.mark.parametrize("name", ["k3s", "rke2", "talos", "cri-o"])
def test_mirrors_for_other_runtimes_are_printed_and_nothing_is_changed(
    run: Terminal, installed: FakeCluster, name: str
) -> None:
    before = installed.acts()
    text = run("mirrors", "print", "--for", name).stdout
    assert "10.0.0.10:5000" in text
    assert lines(run("mirrors", "print", "--for", name, "-o", "json")) == [{"text": text}]
    assert installed.acts() == before


@pytest.mark.parametrize("words", [("join", ""), ("leave", ""), ("replace", "cp-3", ""), ("replace", "", "cp-3")])
def test_a_name_of_a_node_that_is_empty_means_no_other_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cluster.yaml").write_text(config.SMALLEST)
    result = CliRunner().invoke(cli, [*words, "-o", "json"], prog_name="kubeadm-registry")
    assert (result.exit_code, json.loads(result.stdout.splitlines()[-1])["code"]) == (2, "NodeUnknown")
