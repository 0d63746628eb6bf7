"""What restarts the one writer's registry, or its storage, waits until no write is in flight there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import paths
from kubeadm_registry.components import garage, handover, zot
from kubeadm_registry.engine import changes
from kubeadm_registry.engine.changes import unit_path
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import NotYetKnown, PhaseFailed
from kubeadm_registry.phases import pausing
from kubeadm_registry.phases.workflows import INIT
from kubeadm_registry.transport.host import Host
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.fakes import FakeTransport
from tests.unit.installed import fresh
from tests.unit.test_agent_phase import outdated, says
from tests.unit.test_members import THREE, file
from tests.unit.test_workflow import Recorder

PAUSE, RESUME = "pause writes", "resume writes"
DISTRIBUTION = (Path(__file__).parents[1] / "golden" / "ipv4-distribution" / "cluster.yaml").read_text()
OF = {"the registry": (zot.SERVICE.unit, zot.WRITER_CONFIG), "the storage": (garage.UNIT, garage.CONFIG)}


@pytest.fixture
def nodes() -> FakeCluster:
    """Three nodes after init; cp-1 has the virtual IP and the lease."""
    return fresh(file(THREE))


def init(fake: FakeCluster, *, dry_run: bool = False) -> list[tuple[str, str]]:
    recorder = Recorder()
    run(INIT, fake.cluster, recorder, skip=ELSEWHERE, dry_run=dry_run)
    told = {PAUSE, RESUME, *(f"start {unit}" for unit, _ in OF.values())}
    return [(one.host, one.title) for one in recorder.actions if one.title in told]


@pytest.mark.parametrize("what", OF)
def test_writes_wait_while_the_writer_restarts(nodes: FakeCluster, what: str) -> None:
    unit, path = OF[what]
    for server in nodes.servers.values():
        outdated(server, unit, path)
    told = init(nodes, dry_run=True)
    done = init(nodes)
    assert sorted(done) == sorted(told)
    at_writer = [title for host, title in done if host == "cp-1"]
    assert at_writer == [PAUSE, f"start {unit}", RESUME]
    assert {title for host, title in done if host != "cp-1"} == {f"start {unit}"}
    assert paths.MOVE not in nodes.servers["cp-1"].tree
    assert init(nodes) == []


def test_nothing_waits_where_another_node_writes(nodes: FakeCluster) -> None:
    outdated(nodes.servers["cp-2"], *OF["the registry"])
    assert init(nodes) == [("cp-2", f"start {zot.SERVICE.unit}")]


def test_nothing_waits_where_nobody_writes(nodes: FakeCluster) -> None:
    says(nodes.servers["cp-1"])
    outdated(nodes.servers["cp-1"], *OF["the registry"])
    assert init(nodes) == [("cp-1", f"start {zot.SERVICE.unit}")]


def test_nothing_waits_where_all_may_write() -> None:
    fake = fresh(DISTRIBUTION)
    for server in fake.servers.values():
        outdated(server, *OF["the storage"])
    assert {title for _, title in init(fake)} == {f"start {garage.UNIT}"}


def ends_its_registry(nodes: FakeCluster, server: FakeTransport) -> None:
    """Have the agent, when it is asked to give the lease up, kill the registry, which systemd starts again."""

    def asked(argv: tuple[str, ...], _: bytes) -> int:
        server._start(zot.SERVICE.unit)
        return nodes._asked(server, argv)

    server.answer("sh", "-c", handover._ASK, "ask", with_=asked, act="ask")


def test_a_registry_that_ends_with_the_lease_starts_by_the_unit_that_a_run_that_died_has_written(
    nodes: FakeCluster,
) -> None:
    server = nodes.servers["cp-1"]
    ends_its_registry(nodes, server)
    unit = server.unit(zot.SERVICE.unit)
    assert unit.loaded is not None
    unit.loaded = unit.loaded.replace(b"RestartSec=200ms", b"RestartSec=100ms")
    outdated(server, zot.SERVICE.unit, unit_path(zot.SERVICE.unit))
    started: list[bytes | None] = []
    server.on_start = lambda name: started.append(unit.loaded) if name == zot.SERVICE.unit else None
    init(nodes)
    assert started
    assert started[-1] == server.content(unit_path(zot.SERVICE.unit))


def test_no_file_is_changed_while_the_registry_that_ended_with_the_lease_starts(nodes: FakeCluster) -> None:
    server = nodes.servers["cp-1"]
    outdated(server, *OF["the registry"])
    looks: list[str] = []

    def shown(argv: tuple[str, ...], _: bytes) -> bytes:
        text = server._unit_state(argv[4:], b"")
        if paths.MOVE in server.tree and len(looks) < 3:
            looks.append(argv[4])
            return text.replace(b"ActiveState=active", b"ActiveState=activating")
        return text

    server.answer("sh", "-c", changes._UNIT, "unit", zot.SERVICE.unit, with_=shown)
    before = len(server.acts)
    init(nodes)
    assert len(looks) == 3
    assert f"restart {zot.SERVICE.unit}" in server.acts[before:]


@pytest.mark.parametrize("what", OF)
def test_no_write_waits_for_a_restart_that_may_not_be(
    nodes: FakeCluster, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another storage is down, perhaps for longer than writes can wait."""
    server = nodes.servers["cp-1"]
    outdated(server, *OF[what])
    monkeypatch.setattr(garage, "gate", lambda _: lambda _: "cp-3: 2 of 3 storage nodes are up")
    waits = changes.wait

    def briefly(host: Host, condition: changes.Condition, **words: Any) -> None:
        waits(host, condition, **{**words, "timeout": 0.0})

    for module in (changes, pausing):
        monkeypatch.setattr(module, "wait", briefly)
    with pytest.raises(PhaseFailed, match=f"until {OF[what][0]} may restart: cp-3"):
        init(nodes)
    assert "ask" not in server.acts
    assert paths.MOVE not in server.tree


def test_a_storage_that_can_be_asked_when_its_files_are_mended_is_restarted(
    nodes: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = nodes.servers["cp-1"]
    outdated(server, *OF["the storage"])
    server.put(garage.RPC_SECRET, b"damaged")

    def asked(host: Host) -> None:
        if server.content(garage.RPC_SECRET) == b"damaged":
            raise NotYetKnown("Garage does not respond to GetClusterLayout yet", host=host.name)

    monkeypatch.setattr(garage, "gate", lambda _: asked)
    assert init(nodes) == [("cp-1", PAUSE), ("cp-1", f"start {garage.UNIT}"), ("cp-1", RESUME)]
