"""``upgrade`` at the command line: what is shown, what is refused, and how it ends."""

from __future__ import annotations

import pytest

from kubeadm_registry import __version__, config, members
from kubeadm_registry.bundle import TOOL
from kubeadm_registry.cli import upgrade as command
from kubeadm_registry.components import agent, health, programs
from kubeadm_registry.members import Members
from kubeadm_registry.phases import upgrade as phases
from kubeadm_registry.phases import workflows
from kubeadm_registry.phases.preflight import PREFLIGHT
from kubeadm_registry.phases.verify import VERIFY
from tests.unit.command_line import Terminal, failed, lines
from tests.unit.fake_cluster import PYTHON, FakeCluster
from tests.unit.test_members import THREE
from tests.unit.test_upgrade import KNOWN_HERE, installed_on, other_version

pytest_plugins = ["tests.unit.command_line"]


@pytest.fixture
def there(run: Terminal, servers: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """This release is installed; the phases that reach outside of the fake hosts are left out."""

    def workflow(hosts: object) -> object:
        known = original(hosts)  # type: ignore[arg-type]
        return tuple(phase for phase in known if phase.name not in (PREFLIGHT.name, VERIFY.name))

    original = workflows.upgrade
    monkeypatch.setattr(workflows, "NODE", KNOWN_HERE)
    monkeypatch.setattr(command.workflows, "upgrade", workflow)
    monkeypatch.setattr(phases, "HEALTHY_WITHIN", 0.2)
    monkeypatch.setattr(health, "PATIENCE", 0.0)
    installed_on(servers)
    record(servers)
    return servers


def record(fake: FakeCluster) -> None:
    """The nodes say that they have the programs of *fake*, which a bundle would say otherwise."""
    for server in fake.servers.values():
        server.put("/opt/kubeadm-registry/programs.json", programs.record(fake.programs))


def test_settings_that_are_changed_are_named(run: Terminal, there: FakeCluster) -> None:
    assert "the cluster file differs" not in run("upgrade").stdout
    run.write(config.SMALLEST + "  proxy: {anonymousPull: false}\n")
    shown = run("upgrade", "--dry-run").stdout
    assert "the cluster file differs from the one applied last in spec.proxy.anonymousPull; each node has" in shown


def test_a_plan_shows_versions_order_and_restarts(run: Terminal, there: FakeCluster) -> None:
    other_version(there, "keepalived", "1.2")
    record(there)
    result = run("upgrade", "plan")
    assert result.exit_code == 0, result.output
    told = [line.split() for line in result.output.splitlines()]
    assert told[0] == ["PROGRAM", "CP-2", "CP-3", "CP-1", "WANTED"]
    assert ["keepalived", "1.0", "1.0", "1.0", "1.2"] in told
    assert "1. cp-2: kubeadm-registry-keepalived.service restarts" in result.output
    assert "3. cp-1 (VIP holder): kubeadm-registry-keepalived.service restarts; the virtual IP moves" in result.output
    assert "going back" in result.output
    assert there.acts() == []


def test_a_plan_as_json(run: Terminal, there: FakeCluster) -> None:
    other_version(there, "garage", "1.1")
    record(there)
    (found,) = lines(run("upgrade", "plan", "-o", "json"))
    assert found["event"] == "result"
    assert found["wanted"]["garage"] == "1.1"
    assert found["current"]["cp-2"]["garage"] == "1.0"
    assert [one["node"] for one in found["order"]] == ["cp-2", "cp-3", "cp-1"]
    assert found["order"][2] == {
        "node": "cp-1", "units": {"kubeadm-registry-garage.service": "restart"}, "holdsVip": True, "movesVip": False,
    }  # fmt: skip
    assert (found["refusals"], found["noWayBack"]) == ([], [])


def test_what_cannot_run_side_by_side_is_refused_with_3(run: Terminal, there: FakeCluster) -> None:
    other_version(there, "garage", "2.0")
    record(there)
    result = run("upgrade", "plan")
    failed(result, 3)
    assert "refused: garage 1.0 (on cp-2) and garage 2.0 cannot run side by side" in result.output
    assert "cp-2: " not in result.output, "there are no turns"
    assert "going back" not in result.output
    result = run("upgrade")
    failed(result, 3)
    assert "cannot run side by side" in result.output
    assert there.acts() == []


@pytest.mark.parametrize("words", [("upgrade",), ("upgrade", "--dry-run"), ("upgrade", "plan")])
def test_what_the_holder_lacks_is_told_by_a_check(run: Terminal, there: FakeCluster, words: tuple[str, ...]) -> None:
    """Whether the virtual IP will move is asked before them, by what would change there."""
    other_version(there, "garage", "1.1")
    record(there)
    there.servers["cp-1"].answer("sh", "-c", agent._PYTHON, "python", "3, 9", PYTHON, with_="False\n")
    result = run(*words)
    failed(result, 3)
    assert "neither this host nor the bundle has Python" in result.output
    assert there.acts() == []


def test_a_bundle_of_another_release_is_refused_with_3(run: Terminal, there: FakeCluster) -> None:
    other_version(there, TOOL, "0.1.0")
    record(there)
    result = run("upgrade", "-o", "json")
    failed(result, 3)
    texts = [str(event.get("message")) for event in lines(result)]
    assert any(f"created by {TOOL} 0.1.0, and this kubeadm-registry is {__version__}" in text for text in texts)


def test_an_upgrade_then_another(run: Terminal, there: FakeCluster) -> None:
    assert run("upgrade").stdout.splitlines()[-1] == "nothing to do"
    other_version(there, "garage", "1.1")
    record(there)
    result = run("upgrade", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "GARAGE" not in result.output and "WANTED" in result.output
    assert "would make" in result.stdout.splitlines()[-1]
    assert there.acts() == []
    result = run("upgrade")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].endswith("changes on 3 nodes")
    assert run("upgrade", "-o", "json").exit_code == 0


def test_it_says_that_it_goes_back_before_it_does(run: Terminal, there: FakeCluster) -> None:
    """./kubeadm-registry-bundle.tar of before an upgrade is taken where no bundle is given."""
    before = dict(there.programs)
    other_version(there, "garage", "1.1")
    record(there)
    assert "go back" not in run("upgrade").output
    there.programs = before
    record(there)
    events = lines(run("upgrade", "-o", "json"))
    told = [event.get("message", "") for event in events]
    (warning,) = [text for text in told if "earlier versions" in text]
    assert warning.startswith("the nodes go back to earlier versions: garage 1.1 -> 1.0; ")
    assert told.index(warning) < [event["event"] for event in events].index("change")


def test_a_dry_run_as_json_has_what_the_plan_has(run: Terminal, there: FakeCluster) -> None:
    other_version(there, "garage", "1.1")
    record(there)
    (planned,) = lines(run("upgrade", "plan", "-o", "json"))
    last = lines(run("upgrade", "--dry-run", "-o", "json"))[-1]
    assert last["dryRun"] is True
    for key in ("current", "wanted", "refusals", "order", "release", "noWayBack"):
        assert last[key] == planned[key], key


def test_where_there_is_no_way_back_it_says_so_before_it_begins(
    run: Terminal, there: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no downgrade" not in run("upgrade").output
    other_version(there, "garage", "1.1")
    record(there)
    original = phases.versions

    def earlier(*arguments: object) -> list[dict[str, str]]:
        return [{**found, "agent": "0.1.0"} for found in original(*arguments)]  # type: ignore[arg-type]

    monkeypatch.setattr(phases, "versions", earlier)
    for server in there.servers.values():
        server.put(members.PATH, Members(2, THREE).render())
    events = lines(run("upgrade", "-o", "json"))
    told = [event.get("message", "").startswith("no downgrade: release 0.1.0 has no member list") for event in events]
    assert told.count(True) == 1
    assert told.index(True) < [event["event"] for event in events].index("change")

    other_version(there, "garage", "1.2")
    record(there)
    there.servers["cp-3"].broken["kubeadm-registry-garage.service"] = "no such table"
    hint = str(lines(run("upgrade", "-o", "json"))[-1]["hint"])
    assert "it resumes with cp-3" in hint
    assert "To go back" not in hint


def test_it_says_how_to_go_on(run: Terminal, there: FakeCluster) -> None:
    other_version(there, "garage", "1.1")
    record(there)
    there.servers["cp-3"].broken["kubeadm-registry-garage.service"] = "no such table"
    result = run("upgrade", "-o", "json")
    failed(result, 1)
    error = lines(result)[-1]
    assert (error["code"], error["host"]) == ("ServiceFailed", "cp-3")
    assert "cp-2 is upgraded; cp-1 was not changed" in error["hint"]
    assert "it resumes with cp-3" in error["hint"]
    assert "To go back, run `upgrade`" in error["hint"]


def test_bare_nodes_are_refused(run: Terminal, servers: FakeCluster) -> None:
    run.write(config.SMALLEST)
    result = run("upgrade", "-o", "json")
    failed(result, 1)
    assert lines(result)[-1]["code"] == "NotInstalled"


def test_an_unknown_check_is_refused_before_anybody_is_asked(run: Terminal, servers: FakeCluster) -> None:
    failed(run("upgrade", "--ignore-preflight-errors", "Prots"), 2)
    assert all(not server.log for server in servers.servers.values())
