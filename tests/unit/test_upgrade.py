"""An upgrade in memory: node by node, between healthy nodes; killed anywhere it is completed by the next run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from kubeadm_registry import __version__, config, members, paths, rotation
from kubeadm_registry.bundle import TOOL
from kubeadm_registry.cluster import Cluster, leader
from kubeadm_registry.components import agent, drain, garage, health, keepalived
from kubeadm_registry.engine.phase import Check, Phase, Workflow
from kubeadm_registry.engine.report import Action
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import CommandTimeout, ConnectionFailed, PhaseFailed, PreflightFailed
from kubeadm_registry.phases import upgrade as phases
from kubeadm_registry.phases import vip, vip_move, workflows
from kubeadm_registry.phases.upgrade import add_resumption, order
from kubeadm_registry.phases.upgrade_plan import RECORDS, overview, way_back
from kubeadm_registry.phases.upgrading import carry_out
from kubeadm_registry.phases.workflows import INIT, NODE, PREFLIGHT_ONLY, upgrade
from kubeadm_registry.transport.host import Host
from tests.unit.fake_cluster import PYTHON, FakeBundle, FakeCluster, program
from tests.unit.test_members import THREE
from tests.unit.test_vip_move import World, impatient
from tests.unit.test_workflow import Recorder

pytestmark = pytest.mark.slow

#: What other tests run, for the fake hosts know nothing of it; by node as well.
OF_INIT = ("preflight", "verify", "containerd")
KNOWN_HERE = tuple(phase for phase in NODE if phase.name not in OF_INIT)
ELSEWHERE = ("preflight", "verify", *(f"cp-{number}/containerd" for number in (1, 2, 3)))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "HEALTHY_WITHIN", 0.2)
    monkeypatch.setattr(health, "PATIENCE", 0.0)
    monkeypatch.setattr(garage, "STABLE", 0.0)
    monkeypatch.setattr(garage, "CONNECTED", 0.0)


def installed(frontend: str = "distribution") -> FakeCluster:
    return _made(frontend).copy()


@cache
def _made(frontend: str) -> FakeCluster:
    return installed_on(FakeCluster.of(f"{config.SMALLEST}  frontend: {{type: {frontend}}}\n"))


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


def carried_out(fake: FakeCluster, monkeypatch: pytest.MonkeyPatch, recorder: Recorder | None = None) -> list[Action]:
    """As the command does it."""

    def here(phase: Phase) -> Phase:
        return replace(phase, phases=tuple(one for one in phase.phases if one.name != "containerd"))

    def workflow(hosts: Sequence[Host]) -> Workflow:
        return tuple(here(phase) for phase in upgrade(hosts) if phase.name not in OF_INIT)

    monkeypatch.setattr(workflows, "upgrade", workflow)
    cluster = fake.cluster
    return carry_out(cluster, order(cluster), recorder or Recorder())


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


def world_of(frontend: str, monkeypatch: pytest.MonkeyPatch, *programs: str) -> World:
    """A registry whose agents know of planned moves, with a newer build of *programs*, or of all."""
    fake = installed(frontend)
    newer(fake, *programs)
    world = World(fake)
    for server in fake.servers.values():
        server.prefer("ss", "-Hltn")
        act = server._act

        def acts(what: str, act: Callable[[str], None] = act, name: str = server.name) -> None:
            act(what)
            if what == f"stop {keepalived.UNIT}" and world.holder == name:
                world.holder = "cp-3"

        monkeypatch.setattr(server, "_act", acts)

    impatient(monkeypatch)
    return world


def stops(world: World) -> list[str]:
    """The nodes where keepalived was ended, so that the virtual IP moves."""
    return [name for name, server in world.fake.servers.items() if f"stop {keepalived.UNIT}" in server.acts]


@pytest.mark.parametrize("frontend", ["zot", "distribution"])
def test_the_virtual_ip_leaves_by_one_planned_move_when_the_others_are_done(
    frontend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, recorder = world_of(frontend, monkeypatch), Recorder()
    actions = carried_out(world.fake, monkeypatch, recorder)
    assert [one for one in world.story if one.startswith("ask")] == ["ask cp-3", "ask cp-1"]
    assert world.holder == "cp-2"
    assert stops(world) == []
    phases = list(dict.fromkeys(one.phase.partition("/")[0] for one in actions))
    assert phases == ["programs", "cp-2", "cp-3", "keep", "ask", "reopen", "cp-1"]
    assert len(recorder.actions) == len(actions)
    assert carried_out(world.fake, monkeypatch) == []
    assert world.holder == "cp-2"


@pytest.mark.parametrize("why", ["an agent does not know it", "the VIP stays", "no node may be lost"])
def test_where_it_cannot_be_planned_it_moves_when_clients_have_ended(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world, recorder = world_of("zot", monkeypatch, "keepalived"), Recorder()
    if why == "an agent does not know it":
        monkeypatch.setattr(vip_move, "known", lambda _: False)
    elif why == "the VIP stays":
        world.stuck = True
    else:
        world.agents["cp-3"] = {"conditions": ["ClockOff"]}
    assert carried_out(world.fake, monkeypatch, recorder)
    assert stops(world) == ["cp-1"]
    assert world.holder == "cp-3"
    told = [text for host, text in recorder.notes if "no planned move" in text and host == "cp-1"]
    assert len(told) == (why != "an agent does not know it")
    assert not world.asked, "nothing is asked of the agents any more"
    assert carried_out(world.fake, monkeypatch) == []


def test_a_move_that_is_killed_anywhere_is_completed_by_the_next_upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = world_of("zot", monkeypatch, "keepalived")
    carried_out(whole.fake, monkeypatch)
    acts = [(name, number) for name, server in whole.fake.servers.items() for number, act in enumerate(server.acts)
            if act in ("ask", "begin", "pass nothing on")]  # fmt: skip
    assert len(acts) >= 4
    for name, number in acts:
        world = world_of("zot", monkeypatch, "keepalived")
        cluster = world.fake.cluster
        world.fake.servers[name].cut_at = number
        with pytest.raises((ConnectionFailed, PhaseFailed)):
            carry_out(cluster, order(cluster), Recorder())
        world.expire()
        carried_out(world.fake, monkeypatch)
        assert carried_out(world.fake, monkeypatch) == [], (name, number)
        assert world.holder != "cp-1", (name, number)
        assert contents(world.fake) == contents(whole.fake), (name, number)


def test_checks_do_not_say_that_nothing_was_changed_once_the_other_nodes_are_upgraded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The holder's turn is a run of its own, with the checks of its phases."""
    world = world_of("zot", monkeypatch)

    def later(name: str) -> Check:
        looks: list[str] = []

        def probe(_: Cluster, host: Host) -> Iterator[str]:
            if looks:
                yield "it is off"
            looks.append(host.name)

        return Check(name, probe, on=leader)

    odd = replace(workflows.AGENT, checks=(later("Odd"),))
    monkeypatch.setattr(workflows, "NODE", tuple(odd if one is workflows.AGENT else one for one in NODE))
    monkeypatch.setattr(workflows, "VERSIONS", replace(workflows.VERSIONS, checks=(later("OfAll"),)))
    with pytest.raises(PhaseFailed, match=r"preflight found 1 problem$") as caught:
        carried_out(world.fake, monkeypatch)
    add_resumption(caught.value, world.fake.cluster.hosts)
    assert (caught.value.phase, caught.value.exit_code, caught.value.code) == ("cp-1", 1, "PreflightFailed")
    assert "fix the problems listed above, or pass --ignore-preflight-errors=Odd" in caught.value.hint
    assert world.holder == "cp-2" and restarts(world.fake)["cp-3"]


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


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("type: distribution", "type: zot", "spec.frontend.type is distribution on the nodes, and zot in the file"),
        ("10.0.0.10", "10.0.0.20", "spec.vip is 10.0.0.10 (VRRP group 111) on the nodes, and 10.0.0.20 (121)"),
        ("10.0.0.10", "10.0.0.10, virtualRouterID: 7", "10.0.0.10 (VRRP group 111) on the nodes, and 10.0.0.10 (7)"),
    ],
)
def test_what_all_nodes_must_change_at_once_is_refused(old: str, new: str, told: str) -> None:
    """The first node would have a bucket without images, or a virtual IP of its own, and be waited for in vain."""
    fake = installed()
    text = f"{config.SMALLEST}  frontend: {{type: distribution}}\n"
    fake.programs["zot"] = FakeCluster.of(config.SMALLEST).programs["zot"]
    other = fake.with_file(text.replace(old, new))
    other.fixed, other.bundle = fake.fixed, FakeBundle()
    before = other.snapshot()
    (found,) = overview(other.cluster, KNOWN_HERE).plan.refusals
    assert told in found and "`init`" in found
    with pytest.raises(PreflightFailed) as caught:
        run(upgrade(other.cluster.hosts), other.cluster, Recorder(), skip=ELSEWHERE, ignore=["NodesHealthy"])
    assert [(one.check, one.text) for one in caught.value.problems if not one.ignored] == [("Versions", found)]
    assert other.snapshot() == before
    assert run(INIT, other.cluster, Recorder(), skip=OF_INIT)
    assert overview(other.cluster, KNOWN_HERE).plan.refusals == ()


@pytest.mark.parametrize("workflow", [INIT, None])
def test_a_bundle_without_the_python_that_a_node_needs_is_refused(workflow: Workflow | None) -> None:
    """The storage and the registry of that node would have the new programs, and its agent could not start."""
    fake = installed()
    newer(fake)
    python = ("python", "3, 9", PYTHON)
    fake.servers["cp-3"].answer("sh", "-c", agent._PYTHON, *python, with_="False\n")
    before, skip = fake.snapshot(), OF_INIT if workflow else ELSEWHERE
    with pytest.raises(PreflightFailed) as caught:
        run(workflow or upgrade(order(fake.cluster)), fake.cluster, Recorder(), skip=skip)
    (problem,) = caught.value.problems
    assert (problem.check, problem.host, problem.mandatory) == ("Python", "cp-3", True)
    assert "create a bundle with Python" in problem.text
    assert fake.snapshot() == before
    fake.programs["python"] = program("python")
    for server in fake.servers.values():
        fake._furnish(server)
    fake.servers["cp-3"].answer("sh", "-c", agent._PYTHON, *python, with_="False\n")
    fake.bundle = FakeBundle()
    fake.servers["cp-3"].answer(
        fake.programs["python"].executable, "-I", agent.ARCHIVE, "--check", "--config", "{path}"
    )
    assert run(workflow or upgrade(order(fake.cluster)), fake.cluster, Recorder(), skip=skip)


@pytest.mark.parametrize("workflow", [INIT, None])
def test_a_bundle_without_the_tool_is_refused_where_nodes_have_it(workflow: Workflow | None) -> None:
    """It would take away the units of retention, its timer, the operator's helper and its key."""
    fake = installed()
    newer(fake, "garage")
    del fake.programs[TOOL]
    before, skip = fake.snapshot(), OF_INIT if workflow else ELSEWHERE
    with pytest.raises(PreflightFailed) as caught:
        run(workflow or upgrade(order(fake.cluster)), fake.cluster, Recorder(), skip=skip)
    assert [(one.check, one.host) for one in caught.value.problems] == [
        ("RetentionProgram", name) for name in fake.servers
    ]
    assert f"create a bundle with it (without --with, or with --with ...,{TOOL})" in caught.value.problems[0].text
    assert fake.snapshot() == before


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


def test_where_only_the_last_check_fails_it_says_that_all_nodes_are_upgraded() -> None:
    cause = CommandTimeout("timed out after 30 s waiting until 10.0.0.10 serves the canary image", host="cp-1")
    error = PhaseFailed("verify/pull", cause, host="cp-1")
    add_resumption(error, installed().cluster.hosts)
    assert error.hint == "All nodes are upgraded: see `kubeadm-registry doctor`, then run `kubeadm-registry verify`"


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


def test_a_holder_that_is_not_healthy_gives_the_virtual_ip_up_first_and_it_moves_once_more() -> None:
    fake = installed()
    newer(fake)
    fake.ill["cp-1"] = ["ClockOff"]
    fake.servers["cp-1"].on_start = lambda unit: fake.ill.clear()
    assert names(order(fake.cluster)) == ["cp-1", "cp-2", "cp-3"]
    upgraded(fake)
    stopped = {name: f"stop {keepalived.UNIT}" in acts for name, acts in restarts(fake).items()}
    assert stopped == {"cp-1": True, "cp-2": True, "cp-3": False}


def test_blocks_that_no_node_has_do_not_stop_it() -> None:
    """Nothing will bring them: `recover` named their images, which nobody has deleted yet."""
    fake = installed()
    newer(fake, "garage")
    fake.garage.failed = 3
    assert upgraded(fake)
    assert upgraded(fake) == []


def test_blocks_that_a_node_has_and_others_do_not_get_stop_it() -> None:
    fake = installed()
    newer(fake, "garage")
    fake.garage.failed, fake.garage.somewhere = 3, 1
    with pytest.raises(PhaseFailed, match="copying what it missed, 1 block and 0 parts of tables are left") as caught:
        upgraded(fake)
    assert caught.value.code == "NodeNotHealthy"
    assert not any(restarts(fake).values())


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
    assert problem.text.endswith("; see `kubeadm-registry doctor`")
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


def test_init_refuses_it_as_well_where_it_brings_a_bundle() -> None:
    """It changes the nodes phase by phase, so that two versions would share the data meanwhile."""
    fake = installed()
    other_version(fake, "garage", "2.0")
    other_version(fake, "haproxy", "3.0")
    before = fake.snapshot()
    fake.bundle = FakeBundle()
    with pytest.raises(PreflightFailed) as caught:
        run(INIT, fake.cluster, Recorder(), skip=OF_INIT)
    assert [(one.check, one.host, one.mandatory) for one in caught.value.problems] == [
        ("Versions", name, True) for name in ("cp-1", "cp-2", "cp-3")
    ]
    assert "garage 1.0 (on cp-1) and garage 2.0 cannot run side by side" in caught.value.problems[0].text
    assert fake.snapshot() == before


def test_init_refuses_to_bring_older_programs_back() -> None:
    """./kubeadm-registry-bundle.tar is taken where none is given: after an upgrade it may be the bundle of before."""
    fake = installed()
    old = dict(fake.programs)
    other_version(fake, "garage", "1.10")
    upgraded(fake)
    fake.programs, fake.bundle = old, FakeBundle()
    for server in fake.servers.values():
        fake._furnish(server)
    before = fake.snapshot()
    with pytest.raises(PreflightFailed) as caught:
        run(INIT, fake.cluster, Recorder(), skip=OF_INIT)
    assert {(one.check, one.host, one.mandatory) for one in caught.value.problems} == {
        ("ProgramsOlder", name, False) for name in fake.servers
    }
    assert "garage 1.0 and not 1.10" in caught.value.problems[0].text
    assert fake.snapshot() == before
    assert not any(phase.checks for phase in PREFLIGHT_ONLY), "`preflight` has run them, and knows which to ignore"
    assert run(INIT, fake.cluster, Recorder(), skip=OF_INIT, ignore=["ProgramsOlder"])
    assert run(INIT, fake.cluster, Recorder(), skip=OF_INIT) == []


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


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("{name: registry}", "{name: other}", "cp-1: metadata.name is registry and cannot be changed to"),
        ("  vip:", "  dataDirectory: /srv/x\n  vip:", "cp-1: spec.dataDirectory is /var/lib/kubeadm-reg"),
        ("13}\n", "13}\n    - {name: cp-4, address: 10.0.0.14}\n", "the file adds cp-4"),
    ],
)
def test_the_overview_says_what_upgrade_refuses_for_the_cluster_file(old: str, new: str, told: str) -> None:
    """It listed a restart of all services with the other directory, and what a new node would get."""
    fake = installed()
    for server in fake.servers.values():
        server.put("/var/lib/kubeadm-registry/garage/meta/cluster_layout", b"a layout")
    assert overview(fake.cluster, KNOWN_HERE).plan.refusals == ()
    other = fake.with_file(config.SMALLEST.replace(old, new) + "  frontend: {type: distribution}\n")
    other.fixed = fake.fixed
    (found,) = overview(other.cluster, KNOWN_HERE).plan.refusals
    assert told in found


def test_the_overview_says_what_a_newer_release_has_left() -> None:
    fake = installed()
    record = json.loads(fake.servers["cp-2"].content(members.PATH))
    record["format"] = {"version": 9, "minReader": 1, "minWriter": 9}
    fake.servers["cp-2"].put(members.PATH, json.dumps(record))
    (found,) = overview(fake.cluster, KNOWN_HERE).plan.refusals
    assert found.startswith(f"cp-2: a newer release wrote {members.PATH}")


def test_the_overview_says_when_secrets_that_are_exchanged_end_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = installed()
    monkeypatch.setattr(phases, "versions", lambda *_: [{"agent": "0.1.0"}] * 3)
    assert overview(fake.cluster, KNOWN_HERE).way_back == ()
    secrets = rotation.rotate(fake.cluster.secrets, ["push"])
    for server in fake.servers.values():
        server.put("/etc/kubeadm-registry/secrets.json", secrets.to_json(), 0o600)
    [why] = overview(fake.cluster, KNOWN_HERE).way_back
    assert why.startswith("release 0.1.0 may not change secrets")


def test_a_node_whose_agent_says_nothing_is_of_no_earlier_release(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = installed()
    for server in fake.servers.values():
        server.put(members.PATH, members.Members(2, THREE).render())
    there: dict[str, str] = {"agent": "0.2.0"}
    monkeypatch.setattr(phases, "versions", lambda *_: [there, {}, there])
    found = overview(fake.cluster, KNOWN_HERE)
    assert (found.before, found.way_back) == ("0.2.0", ())
    assert way_back(fake.cluster) == ()


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
    assert drain.AT_MOST > drain.SHORT + vip.VIP_WITHIN


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
