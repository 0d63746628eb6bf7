"""An upgrade in memory: node by node, between healthy nodes; killed anywhere it is completed by the next run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kubeadm_registry import __version__, config, paths
from kubeadm_registry.bundle import TOOL
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import agent, drain, garage, health, keepalived
from kubeadm_registry.engine.report import Action
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import ConnectionFailed, PhaseFailed, PreflightFailed
from kubeadm_registry.phases import upgrade as phases
from kubeadm_registry.phases.upgrade import add_resumption, order
from kubeadm_registry.phases.upgrade_plan import RECORDS, overview
from kubeadm_registry.phases.workflows import INIT, NODE, upgrade
from kubeadm_registry.transport.host import Host
from tests.unit.fake_cluster import FakeCluster
from tests.unit.test_workflow import Recorder

#: What other tests run, for the fake hosts know nothing of it; by node as well.
OF_INIT = ("preflight", "verify", "containerd")
KNOWN_HERE = tuple(phase for phase in NODE if phase.name not in OF_INIT)
ELSEWHERE = ("preflight", "verify", *(f"cp-{number}/containerd" for number in (1, 2, 3)))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "HEALTHY_WITHIN", 0.2)
    monkeypatch.setattr(health.lastingly_ill, "__defaults__", (0.0,))
    monkeypatch.setattr(garage, "STABLE", 0.0)
    monkeypatch.setattr(garage, "CONNECTED", 0.0)


def installed(frontend: str = "distribution") -> FakeCluster:
    fake = FakeCluster.of(f"{config.SMALLEST}  frontend: {{type: {frontend}}}\n")
    return installed_on(fake)


def installed_on(fake: FakeCluster) -> FakeCluster:
    """This release is installed, with a bundle that it made."""
    other_version(fake, TOOL, __version__)
    run(INIT, fake.cluster, Recorder(), skip=OF_INIT)
    for server in fake.servers.values():
        server.acts.clear()
    return fake


def newer(fake: FakeCluster, *names: str) -> None:
    """There is another build of these programs; none named: of all."""
    for name in names or tuple(fake.programs):
        fake.another_build(name)
    for server in fake.servers.values():
        fake._furnish(server)


def upgraded(fake: FakeCluster, recorder: Recorder | None = None, *, dry_run: bool = False) -> list[Action]:
    cluster = fake.cluster
    hosts = order(cluster)
    try:
        return run(upgrade(hosts), cluster, recorder or Recorder(), skip=ELSEWHERE, dry_run=dry_run)
    except PhaseFailed as error:
        add_resumption(error, hosts)
        raise


def restarts(fake: FakeCluster) -> dict[str, list[str]]:
    """The acts of systemd by node."""
    verbs = ("start", "restart", "reload", "stop")
    return {
        name: [act for act in server.acts if act.split()[0] in verbs and act.endswith(".service")]
        for name, server in fake.servers.items()
    }


def names(hosts: Sequence[Host]) -> list[str]:
    return [host.name for host in hosts]


def test_all_of_a_node_is_done_before_the_next_and_the_holder_is_last() -> None:
    fake = installed()
    newer(fake)
    recorder = Recorder()
    actions = upgraded(fake, recorder)
    nodes = [action.phase.split("/")[0] for action in actions if action.phase.startswith("cp-")]
    assert list(dict.fromkeys(nodes)) == ["cp-2", "cp-3", "cp-1"], "cp-1 holds the virtual IP"
    assert nodes == sorted(nodes, key=["cp-2", "cp-3", "cp-1"].index), "no node's turn is interrupted by another's"
    assert all(action.host == action.phase.split("/")[0] for action in actions if action.phase.startswith("cp-"))
    staged = [action.phase for action in actions if not action.phase.startswith("cp-")]
    assert set(staged) == {"programs"}
    assert upgraded(fake) == []
    assert run(INIT, fake.cluster, Recorder(), skip=OF_INIT) == [], "init wants the same"


def test_the_virtual_ip_leaves_the_holder_once_and_before_its_services_restart() -> None:
    fake = installed()
    newer(fake)
    assert fake._holder() is fake.servers["cp-1"]
    upgraded(fake)
    found = restarts(fake)
    assert found["cp-1"][:2] == [f"stop {keepalived.UNIT}", f"start {keepalived.UNIT}"]
    assert not any(act.startswith("stop") for name in ("cp-2", "cp-3") for act in found[name])
    assert fake._holder() is fake.servers["cp-2"]
    assert upgraded(fake) == [], "the new holder has nothing to do, so it keeps the address"


@pytest.mark.parametrize("program", ["garage", "distribution", "haproxy"])
def test_the_virtual_ip_stays_where_only_services_below_it_restart(program: str) -> None:
    fake = installed()
    newer(fake, program)
    assert upgraded(fake)
    assert not any(act.startswith("stop") for acts in restarts(fake).values() for act in acts)
    assert fake._holder() is fake.servers["cp-1"]


def test_a_changed_cluster_file_goes_the_same_way() -> None:
    fake = installed()
    text = f"{config.SMALLEST}  frontend: {{type: distribution}}\n  proxy: {{anonymousPull: false}}\n"
    changed = fake.with_file(text)
    changed.fixed = fake.fixed
    actions = upgraded(changed)
    assert list(dict.fromkeys(action.host for action in actions)) == ["cp-2", "cp-3", "cp-1"]
    assert all(acts == [f"reload {unit}" for unit in paths.HAPROXY_UNITS] for acts in restarts(changed).values())


def test_a_dry_run_changes_nothing_and_lists_the_same_changes() -> None:
    fake = installed()
    newer(fake)
    before, acts = fake.snapshot(), fake.acts()
    would = upgraded(fake, dry_run=True)
    assert (fake.snapshot(), fake.acts()) == (before, acts)
    did = upgraded(fake)
    assert {(one.host, one.title) for one in would} == {(one.host, one.title) for one in did}


def test_it_ends_at_a_node_that_does_not_come_back_and_says_how_to_go_on() -> None:
    fake = installed()
    newer(fake)
    fake.servers["cp-3"].broken[garage.UNIT] = "Error: unable to open the metadata database"
    with pytest.raises(PhaseFailed) as caught:
        upgraded(fake)
    error = caught.value
    assert (error.host, error.phase, error.code) == ("cp-3", "cp-3/backend/install", "ServiceFailed")
    assert "unable to open the metadata database" in error.message
    assert "cp-2 is upgraded; cp-1 was not changed." in error.hint
    assert "Fix cp-3, then run `kubeadm-registry upgrade` again: it resumes with cp-3" in error.hint
    assert restarts(fake)["cp-1"] == []

    assert names(order(fake.cluster)) == ["cp-3", "cp-2", "cp-1"], "what is not healthy comes first"
    fake.servers["cp-3"].broken.clear()
    assert upgraded(fake)
    assert upgraded(fake) == []


def test_a_node_that_runs_and_is_not_healthy_stops_it_with_the_evidence() -> None:
    fake = installed()
    newer(fake, "garage")
    cluster = fake.cluster
    hosts = order(cluster)
    fake.servers["cp-2"].on_start = lambda unit: fake.ill.setdefault("cp-2", ["ChainSlow"]) and None
    fake.servers["cp-2"].broken[agent.UNIT] = "E canary: no answer within 0.4 s"
    fake.servers["cp-2"].unit(agent.UNIT).active = "active"
    with pytest.raises(PhaseFailed) as caught:
        run(upgrade(hosts), cluster, Recorder(), skip=ELSEWHERE)
    error = caught.value
    assert (error.host, error.phase, error.code) == ("cp-2", "cp-2/healthy", "NodeNotHealthy")
    assert (
        "timed out after 0 s waiting until all nodes are healthy: cp-2: does not serve reads (level 2, ChainSlow)"
        in (error.message)
    )
    assert f"{agent.UNIT} logged last: E canary: no answer within 0.4 s" in error.message


def test_no_node_is_changed_while_another_is_not_healthy() -> None:
    fake = installed()
    newer(fake)
    fake.ill["cp-3"] = ["StorageDown"]
    assert names(order(fake.cluster)) == ["cp-3", "cp-2", "cp-1"]
    with pytest.raises(PhaseFailed) as caught:
        upgraded(fake)
    assert caught.value.phase == "cp-3/healthy", "it was done first, and is ill nevertheless"
    assert restarts(fake)["cp-1"] == restarts(fake)["cp-2"] == []


def test_two_nodes_that_are_not_healthy_refuse_it_before_anything_is_changed() -> None:
    fake = installed()
    newer(fake)
    fake.ill["cp-3"] = fake.ill["cp-2"] = ["StorageDown"]
    before = fake.snapshot()
    with pytest.raises(PreflightFailed) as caught:
        upgraded(fake)
    (problem,) = caught.value.problems
    assert problem.check == "NodesHealthy"
    assert "cp-2, cp-3 are not healthy" in problem.text
    assert "cp-3: does not serve reads (level 2, StorageDown)" in problem.text
    assert fake.snapshot() == before


def other_version(fake: FakeCluster, name: str, version: str) -> None:
    before = fake.programs[name]
    prefix = before.prefix.replace(f"/{before.version}-", f"/{version}-")
    fake.programs[name] = replace(before, version=version, prefix=prefix)
    for server in fake.servers.values():
        fake._unpack(server, fake.programs[name])
        fake._furnish(server)


@pytest.mark.parametrize("version", ["2.0", "0.9"])
def test_another_major_version_of_the_storage_is_refused_before_anything_is_changed(version: str) -> None:
    fake = installed()
    other_version(fake, "garage", version)
    before = fake.snapshot()
    with pytest.raises(PreflightFailed) as caught:
        upgraded(fake)
    (problem,) = caught.value.problems
    assert (problem.check, problem.mandatory) == ("Versions", True)
    assert f"garage 1.0 (on cp-1) and garage {version} cannot run side by side" in problem.text
    assert fake.snapshot() == before


def test_an_upgrade_can_be_turned_round_by_the_bundle_before() -> None:
    fake = installed()
    old = dict(fake.programs)
    other_version(fake, "garage", "1.1")
    upgraded(fake)
    assert overview(fake.cluster, KNOWN_HERE).current["cp-2"]["garage"] == "1.1"
    fake.programs = old
    for server in fake.servers.values():
        fake._furnish(server)
    assert upgraded(fake)
    assert overview(fake.cluster, KNOWN_HERE).current["cp-2"]["garage"] == "1.0"
    assert upgraded(fake) == []


def test_the_overview_shows_versions_order_and_what_restarts() -> None:
    fake = installed()
    other_version(fake, "keepalived", "1.2")
    found = overview(fake.cluster, KNOWN_HERE)
    assert [turn.node for turn in found.turns] == ["cp-2", "cp-3", "cp-1"]
    assert [dict(turn.verbs) for turn in found.turns] == [{keepalived.UNIT: "restart"}] * 3
    assert [turn.moves_vip for turn in found.turns] == [False, False, True]
    assert found.current["cp-3"]["keepalived"] == "1.0"
    assert found.wanted["keepalived"] == "1.2"
    assert not found.plan.refusals


def test_secrets_that_a_release_adds_are_on_every_node_before_one_uses_them() -> None:
    fake = installed()
    fake.fixed = None
    path = "/etc/kubeadm-registry/secrets.json"
    for server in fake.servers.values():
        document = json.loads(server.content(path))
        del document["retention_key"]
        server.put(path, json.dumps(document), 0o600)
    assert [turn.node for turn in overview(fake.cluster, KNOWN_HERE).turns] == ["cp-2", "cp-3", "cp-1"]
    actions = upgraded(fake)
    assert [action.phase for action in actions[:3]] == ["secrets/store"] * 3
    assert all(action.phase.startswith("cp-") for action in actions[3:])
    assert len({server.content(path) for server in fake.servers.values()}) == 1
    assert upgraded(fake) == []


def test_one_node_has_no_other_to_wait_for() -> None:
    lines = [line for line in config.SMALLEST.splitlines(True) if "cp-2" not in line and "cp-3" not in line]
    fake = installed_on(FakeCluster.of("".join(lines) + "  frontend: {type: distribution}\n"))
    newer(fake)
    cluster, skip = fake.cluster, ("preflight", "verify", "cp-1/containerd")
    assert run(upgrade(order(cluster)), cluster, Recorder(), skip=skip)
    assert run(upgrade(order(fake.cluster)), fake.cluster, Recorder(), skip=skip) == []
    assert not any(act.startswith("stop") for act in restarts(fake)["cp-1"])


@pytest.mark.parametrize("frontend", ["zot", "distribution"])
def test_an_upgrade_killed_at_any_change_is_completed_by_the_next(frontend: str) -> None:
    """On each node, the connection is lost before each of the things that are done there; then upgrade again, twice."""
    whole = installed(frontend)
    newer(whole)
    upgraded(whole)
    wanted = contents(whole)
    counts = {name: len(server.acts) for name, server in whole.servers.items()}
    assert all(count > 10 for count in counts.values())
    wrong = {}
    for name, count in counts.items():
        for number in range(count):
            fake = installed(frontend)
            newer(fake)
            cluster = fake.cluster
            hosts = order(cluster)
            fake.servers[name].cut_at = number
            with pytest.raises(PhaseFailed) as caught:
                run(upgrade(hosts), cluster, Recorder(), skip=ELSEWHERE)
            assert isinstance(caught.value.cause, ConnectionFailed)
            moved = holders(fake)
            upgraded(fake)
            moved += holders(fake)
            if upgraded(fake) != [] or contents(fake) != wanted or len(set(moved)) > 2:
                wrong[name, number] = whole.servers[name].acts[number]
    assert not wrong


def holders(fake: FakeCluster) -> list[str]:
    holder = fake._holder()
    return [] if holder is None else [holder.name]


def contents(fake: FakeCluster) -> object:
    return {
        name: (
            {path: it for path, it in server.tree.items() if not path.endswith("node.pem") and "/started" not in path},
            {unit: state.active for unit, state in server.units.items()},
        )
        for name, server in fake.servers.items()
    }  # fmt: skip


def test_the_records_of_this_release_say_what_they_ask_of_others() -> None:
    assert {one.name for one in RECORDS} >= {"/etc/kubeadm-registry/secrets.json"}
    assert all(one.needs >= 1 for one in RECORDS)


def test_the_hold_on_new_connections_outlasts_the_move() -> None:
    """The kernel's rule ends by itself, and not while the address moves."""
    assert drain.AT_MOST > drain.SHORT + phases.VIP_WITHIN


def test_an_older_release_refuses_a_newer_record_by_name(tmp_path: Path) -> None:
    """As release 0.1 does with what a later one wrote: it names the file, and changes nothing."""
    fake = installed()
    path = "/etc/kubeadm-registry/secrets.json"
    for server in fake.servers.values():
        document = json.loads(server.content(path))
        document["format"] = {"version": 9, "minReader": 9, "minWriter": 9}
        server.put(path, json.dumps(document), 0o600)
    with pytest.raises(Exception, match=f"a newer release wrote {path}: version 9") as caught:
        cluster: Cluster = fake.cluster
        upgraded(fake)
        del cluster
    assert caught.value.code == "NewerFormat"  # type: ignore[attr-defined]
