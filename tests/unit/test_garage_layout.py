"""How long a change of the members waits for the storage, and what it tells it meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import garage, garage_layout
from kubeadm_registry.components.garage_api import Api
from kubeadm_registry.components.garage_layout import STALLED, ClusterLayout, CopiesMade, QuickCopies
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error, NotYetKnown
from kubeadm_registry.phases.members import lost
from kubeadm_registry.phases.workflows import CHANGE_MEMBERS, INIT
from tests.unit.fake_cluster import FakeCluster
from tests.unit.fakes import FakeTransport
from tests.unit.installed import fresh
from tests.unit.test_members import FOUR, THREE, Request, file, planned
from tests.unit.test_workflow import Recorder

REPLACED = {name: at for name, at in FOUR.items() if name != "cp-2"}


class Clock:
    """Time passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    one = Clock()
    monkeypatch.setattr(garage_layout, "time", one)
    yield one


@pytest.fixture
def replacing() -> tuple[FakeCluster, Cluster]:
    """cp-2, which is dead, is to be replaced by cp-4, whose storage runs already."""
    fake = fresh(file(THREE))
    other, cluster, _ = planned(fake, Request(joins="cp-4", leaves="cp-2"), REPLACED)
    cluster.vault.ensure()
    run(INIT, replace(cluster, hosts=cluster.hosts[-1:]), Recorder(), only=("base", "secrets", "backend/install"))
    return other, cluster


def test_the_next_layout_has_the_new_node_and_not_the_old_one(replacing: tuple[FakeCluster, Cluster]) -> None:
    fake, cluster = replacing
    layout = ClusterLayout(cluster, 3)
    assert layout.diff(cluster.hosts[0]) == "storage layout: cp-4 added and cp-2 removed, version 2"
    fake.garage.staged = [{"id": "somebody", "zone": "z", "capacity": 1, "tags": []}]  # of a run that was killed
    layout.apply(cluster.hosts[0])
    assert sorted(role["zone"] for role in fake.garage.roles) == ["cp-1", "cp-3", "cp-4"]
    assert layout.diff(cluster.hosts[0]) is None


def test_without_a_change_other_members_are_an_error(replacing: tuple[FakeCluster, Cluster]) -> None:
    _, cluster = replacing
    with pytest.raises(Error) as caught:
        ClusterLayout(replace(cluster, change=None), 3).diff(cluster.hosts[0])
    assert caught.value.code == "LayoutDiffers"
    assert "`join`" in caught.value.hint


def test_it_waits_until_each_node_has_been_seen_without_work(
    replacing: tuple[FakeCluster, Cluster], clock: Clock
) -> None:
    """Blocks that the tables name are fetched some seconds later; pushes bring new ones all the time."""
    fake, cluster = replacing
    ClusterLayout(cluster, 3).apply(cluster.hosts[0])
    looks = [0, 7, 7, 3, 0, 2, 2, 1, 2, 1, 0, 5, 5]
    fake.garage.copies = [number for number in looks for _ in cluster.hosts]
    copies = CopiesMade(cluster, garage.BLOCK)
    copies.apply(cluster.hosts[0])
    assert fake.garage.copies == [5, 5] * len(cluster.hosts)
    assert clock.now == pytest.approx(100.0 + 10)
    assert copies.diff(cluster.hosts[0]) is None, "though there is work again"


def test_a_storage_that_is_busy_for_a_moment_is_asked_again(
    replacing: tuple[FakeCluster, Cluster], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reset connection in an hour of copies must not end the command."""
    fake, cluster = replacing
    ClusterLayout(cluster, 3).apply(cluster.hosts[0])
    fake.garage.copies = [number for number in (7, 3, 2) for _ in cluster.hosts]
    ask, asked = Api.ask, count()

    def busy(api: Api, endpoint: str, *rest: Any) -> Any:
        if endpoint == "GetClusterLayoutHistory" and next(asked) in (1, 3):
            raise NotYetKnown("Garage does not respond to GetClusterLayoutHistory yet")
        return ask(api, endpoint, *rest)

    monkeypatch.setattr(Api, "ask", busy)
    CopiesMade(cluster, garage.BLOCK).apply(cluster.hosts[0])
    assert fake.garage.copies == []


def test_a_dead_node_is_not_waited_for(replacing: tuple[FakeCluster, Cluster], clock: Clock) -> None:
    fake, cluster = replacing
    ClusterLayout(cluster, 3).apply(cluster.hosts[0])
    fake.garage.dead = {cluster.secrets.node_id("cp-2")}
    assert (CopiesMade(cluster, garage.BLOCK).diff(cluster.hosts[0]) or "").startswith("layout 1 is still in use")
    CopiesMade(cluster, garage.BLOCK).apply(cluster.hosts[0])
    assert not fake.garage.dead
    assert CopiesMade(cluster, garage.BLOCK).diff(cluster.hosts[0]) is None


def test_a_node_that_died_while_it_joined_is_not_waited_for_when_another_joins(clock: Clock) -> None:
    """It has a place in the storage, and no list of members knows of it."""
    fake = fresh(file(THREE))
    other, cluster, _ = planned(fake, Request(joins="cp-5"), {**THREE, "cp-5": "10.0.0.15"})
    cluster.vault.ensure()
    run(INIT, replace(cluster, hosts=cluster.hosts[-1:]), Recorder(), only=("base", "secrets", "backend/install"))
    fake.garage.UpdateClusterLayout({"roles": [{"id": "of cp-4", "zone": "cp-4", "capacity": 1, "tags": []}]})
    fake.garage.ApplyClusterLayout({"version": 2})
    other.garage.dead = {"of cp-4"}
    layout = ClusterLayout(cluster, 3)
    assert layout.diff(cluster.hosts[0]) == "storage layout: cp-5 added and cp-4 removed, version 3"
    layout.apply(cluster.hosts[0])
    CopiesMade(cluster, garage.BLOCK).apply(cluster.hosts[0])
    assert not other.garage.dead
    assert clock.now < 130


@pytest.mark.parametrize("runs", [True, False], ids=["its storage runs", "its storage is dead"])
def test_a_node_that_answers_is_waited_for_if_its_storage_runs(
    replacing: tuple[FakeCluster, Cluster], clock: Clock, runs: bool
) -> None:
    fake, cluster = replacing
    assert cluster.change is not None
    old = FakeTransport("cp-2")
    old.unit(garage.UNIT).active = "active" if runs else "failed"
    fake.garage.hosts = {**fake.garage.hosts, "cp-2": old}
    cluster = replace(cluster, change=replace(cluster.change, retiring=(old.host("10.0.0.12"),)))
    ClusterLayout(cluster, 3).apply(cluster.hosts[0])
    fake.garage.dead = {cluster.secrets.node_id("cp-2")}
    if runs:
        with pytest.raises(Error) as caught:
            CopiesMade(cluster, garage.BLOCK).apply(cluster.hosts[0])
        assert caught.value.code == "CopiesStalled"
        assert fake.garage.dead
    else:
        CopiesMade(cluster, garage.BLOCK).apply(cluster.hosts[0])
        assert not fake.garage.dead
        assert clock.now < 130


def test_blocks_that_no_node_has_are_not_waited_for(replacing: tuple[FakeCluster, Cluster], clock: Clock) -> None:
    """They were lost before, as `recover` told, and nobody has deleted their images yet."""
    fake, cluster = replacing
    ClusterLayout(cluster, 3).apply(cluster.hosts[0])
    fake.garage.failed = 3
    fake.garage.copies = [5] * 20 * len(cluster.hosts)
    CopiesMade(cluster, garage.BLOCK).apply(cluster.hosts[0])
    assert not fake.garage.copies
    assert clock.now < 140
    [told] = lost(cluster, cluster.hosts[0])
    assert told.startswith("no node has 3 blocks")
    assert "run `recover`" in told


def test_blocks_that_cannot_be_got_from_a_disk_are_waited_for(
    replacing: tuple[FakeCluster, Cluster], clock: Clock
) -> None:
    fake, cluster = replacing
    ClusterLayout(cluster, 3).apply(cluster.hosts[0])
    fake.garage.failed, fake.garage.somewhere = 3, 1
    with pytest.raises(Error, match="3 blocks and 0 parts of tables left") as caught:
        CopiesMade(cluster, garage.BLOCK).apply(cluster.hosts[0])
    assert caught.value.code == "CopiesStalled"
    assert "images check" in caught.value.hint


def test_it_ends_when_there_is_no_progress_and_not_before(
    replacing: tuple[FakeCluster, Cluster], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, cluster = replacing
    ClusterLayout(cluster, 3).apply(cluster.hosts[0])
    slowly = count(3000, -1)
    growing = list(range(1, 600))
    looks = growing + [next(slowly) // 2 for _ in range(2000)] + [900] * 2000
    monkeypatch.setattr(fake.garage, "copies", [number for number in looks for _ in cluster.hosts])
    with pytest.raises(Error) as caught:
        CopiesMade(cluster, garage.BLOCK).apply(cluster.hosts[0])
    assert caught.value.code == "CopiesStalled"
    assert "2700 blocks" in caught.value.message
    assert clock.now == pytest.approx(100.0 + 2600 + STALLED, abs=250)


def test_what_is_copied_is_told_in_bytes(replacing: tuple[FakeCluster, Cluster], clock: Clock) -> None:
    """What is left grows while the tables name it; later pushes bring a little. None of that is progress."""
    fake, cluster = replacing
    looks = [0, 2, 9, 9, 6, 7, 2, 0, 1, *[0] * 9]
    fake.garage.copies = [number for number in looks for _ in cluster.hosts]
    told: list[tuple[int, int]] = []
    cluster = replace(cluster, progress=lambda done, total: told.append((done, total)))
    CopiesMade(cluster, garage.BLOCK).apply(cluster.hosts[0])
    each = len(cluster.hosts) * garage.BLOCK
    assert [((total - done) / each, total / each) for done, total in told] == [(2, 2), (9, 9), (6, 9), (2, 9), (0, 9)]


def test_the_reporter_of_a_run_is_told_of_the_copies(replacing: tuple[FakeCluster, Cluster], clock: Clock) -> None:
    fake, cluster = replacing
    ClusterLayout(cluster, 3).apply(cluster.hosts[0])
    fake.garage.dead = {cluster.secrets.node_id("cp-2")}
    looks = [5] * 6 + [3, 2] + [0] * 12  # some of them are those before the change begins
    fake.garage.copies = [number for number in looks for _ in cluster.hosts]
    recorder = Recorder()
    run(CHANGE_MEMBERS, cluster, recorder, only=("move/copies",))
    each = len(cluster.hosts) * garage.BLOCK
    assert [(total - done) / each for done, total in recorder.moved] == [5, 3, 2, 0]


def test_a_new_node_copies_quickly(replacing: tuple[FakeCluster, Cluster]) -> None:
    fake, cluster = replacing
    quick = QuickCopies(cluster)
    assert "cp-4" in (quick.diff(cluster.hosts[0]) or "")
    quick.apply(cluster.hosts[0])
    assert fake.garage.variables == {"resync-worker-count": "4", "resync-tranquility": "0"}
    assert quick.diff(cluster.hosts[0]) is None
