"""The executor's place on a node: what init puts there with and without the tool, the timer, and what reset removes."""

from __future__ import annotations

from collections.abc import Mapping

from kubeadm_registry import config, paths
from kubeadm_registry.bundle import TOOL, Program
from kubeadm_registry.bundle.tool import MODULE
from kubeadm_registry.components import pulls, retention
from kubeadm_registry.components.executor_files import Settings
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.phases.workflows import INIT, RESET
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.fakes import UNITS
from tests.unit.test_workflow import Recorder

ORDER = "0123456789abcdef" * 4
UNIT_FILES = {f"{UNITS}/{name}" for name in (retention.TEMPLATE, retention.DAILY, retention.TIMER)}


def init(fake: FakeCluster) -> Recorder:
    recorder = Recorder()
    run(INIT, fake.cluster, recorder, skip=ELSEWHERE)
    return recorder


def without_tool(programs: Mapping[str, Program]) -> dict[str, Program]:
    return {name: one for name, one in programs.items() if name != TOOL}


def unit_files(fake: FakeCluster) -> list[set[str]]:
    return [UNIT_FILES & {*server.tree} for server in fake.servers.values()]


def test_the_executor_is_told_of_its_own_node(installed: FakeCluster) -> None:
    for name, server in installed.servers.items():
        found = Settings.parse(server.content(retention.CONFIG))
        assert found.node == name
        assert found.registry == f"https://{installed.config.spec.node(name).address}:5000"
        assert (found.username, found.password) == ("retention", "the-retention-password")


def test_the_executor_is_told_of_the_pause_image() -> None:
    fake = FakeCluster.of(f"{config.SMALLEST}  containerd: {{sandboxImage: 10.0.0.10:5000/infra/pause:1}}\n")
    init(fake)
    for server in fake.servers.values():
        assert Settings.parse(server.content(retention.CONFIG)).sandbox_image == "10.0.0.10:5000/infra/pause:1"


def test_nothing_runs_after_init(installed: FakeCluster) -> None:
    for server in installed.servers.values():
        assert not [name for name, unit in server.units.items() if "retention" in name and unit.active != "inactive"]
        assert not server.unit(retention.TIMER).enabled
    assert run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE) == []


def test_a_bundle_without_the_tool_is_noted_once_and_installs_the_rest(three: FakeCluster) -> None:
    three.programs = without_tool(three.programs)
    recorder = init(three)
    [(host, note)] = [told for told in recorder.notes if "retention" in told[1]]
    assert host == "cp-1"
    assert note.startswith("retention cannot run on the nodes: they have no program kubeadm-registry; ")
    assert unit_files(three) == [set()] * 3
    assert all(retention.CONFIG in server.tree for server in three.servers.values())
    assert run(INIT, three.cluster, Recorder(), skip=ELSEWHERE) == []


def test_with_an_older_bundle_no_unit_of_the_newer_one_stays(installed: FakeCluster) -> None:
    server = installed.servers["cp-2"]
    server.unit(retention.unit(ORDER)).active = "activating"
    installed.programs = without_tool(installed.programs)
    run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE, ignore=["RetentionProgram"])
    assert unit_files(installed) == [set()] * 3
    assert retention.unit(ORDER) not in server.units
    assert run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE) == []


def test_the_timer_and_no_order_reads_the_record_of_pulls_of_its_node(installed: FakeCluster) -> None:
    server = installed.servers["cp-1"]
    units = {name: server.content(f"{UNITS}/{name}").decode() for name in (retention.DAILY, retention.TEMPLATE)}
    assert [f"SupplementaryGroups={pulls.USER}\n" in text for text in units.values()] == [True, False]
    assert "StateDirectoryMode=0750\n" in server.content(f"{UNITS}/{pulls.UNIT}").decode()


def test_the_timer_runs_while_there_is_a_policy(installed: FakeCluster) -> None:
    server = installed.servers["cp-1"]
    server.put(retention.POLICY, "a policy")
    init(installed)
    states = [
        (one.unit(retention.TIMER).active, one.unit(retention.TIMER).enabled) for one in installed.servers.values()
    ]
    assert states == [("active", True), ("inactive", False), ("inactive", False)]
    server.reboot()
    assert server.unit(retention.TIMER).active == "active"


def test_a_changed_unit_file_is_read_by_systemd(installed: FakeCluster) -> None:
    """Of instances that it knows, as a failed one; others it reads when they are started."""
    server = installed.servers["cp-3"]
    failed = server.unit(retention.unit(ORDER))
    failed.active, failed.loaded = "failed", b"of before"
    init(installed)
    assert failed.loaded == server.content(f"{UNITS}/{retention.TEMPLATE}")
    assert run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE) == []


def test_another_build_of_the_tool_leaves_the_one_that_runs(installed: FakeCluster) -> None:
    server = installed.servers["cp-2"]
    running = server.unit(retention.unit(ORDER))
    running.active = "activating"
    before, after = installed.another_build(TOOL)
    init(installed)
    assert after.prefix in server.content(f"{UNITS}/{retention.TEMPLATE}").decode()
    assert f"{before.prefix}/{MODULE}" in server.tree
    assert running.active == "activating"


def test_reset_ends_what_runs_and_leaves_nothing(installed: FakeCluster) -> None:
    for server in installed.servers.values():
        server.put(retention.POLICY, "a policy")
        server.put(f"{paths.RETENTION_STATE}/{ORDER}.json", "{}", 0o600)
    init(installed)
    busy = installed.servers["cp-2"]
    busy.unit(retention.unit(ORDER)).active = "activating"
    run(RESET, installed.cluster, Recorder(), skip=("containerd",))
    for server in installed.servers.values():
        assert not [path for path in server.tree if "retention" in path]
        assert not [name for name, unit in server.units.items() if "retention" in name and unit.active != "inactive"]
        assert server.users == {"root": {"root"}}
    acts = busy.acts
    ended = next(number for number, act in enumerate(acts) if act.startswith(f"stop {retention.INSTANCES}"))
    assert acts.index(f"stop {retention.TIMER}") < ended < acts.index("stop kubeadm-registry-haproxy@1.service")
    assert run(RESET, installed.cluster, Recorder(), skip=("containerd",)) == []


def test_the_unit_of_an_order_is_named_by_it() -> None:
    assert retention.unit(ORDER) == f"kubeadm-registry-retention@{ORDER}.service"
    assert len(retention.unit(ORDER)) < 256, "what systemd takes for a name"
