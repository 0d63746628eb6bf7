"""Two runs at once: what another one did to the list of members before this one had the locks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from kubeadm_registry import members
from kubeadm_registry.access.membership import Request
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import PreflightFailed
from kubeadm_registry.members import Members
from kubeadm_registry.phases.workflows import CHANGE_MEMBERS, INIT, RESET, upgrade
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.installed import fresh
from tests.unit.test_members import FOUR, SKIP, THREE, file, listed, planned
from tests.unit.test_workflow import Recorder


@pytest.fixture
def three() -> FakeCluster:
    return fresh(file(THREE))


def meanwhile(fake: FakeCluster, work: Callable[[], object]) -> None:
    """*work* is refused, as the members have changed since it began; it does nothing on the servers of *fake*."""
    before, acts = fake.snapshot(), fake.acts()
    with pytest.raises(PreflightFailed) as caught:
        work()
    problems = [problem for problem in caught.value.problems if not problem.ignored]
    assert {problem.check for problem in problems} == {"SameMembers"}
    assert all(problem.text.endswith("run the command again") for problem in problems)
    assert (fake.snapshot(), fake.acts()) == (before, acts)


@pytest.mark.parametrize(
    ("there", "goes_on"),
    [
        (Members(2, FOUR, before=tuple(THREE)), True),
        (Members(2, FOUR), False),
        (Members(2, {**THREE, "cp-5": "10.0.0.15"}, before=tuple(THREE)), False),
        (Members(3, {**THREE, "cp-5": "10.0.0.15"}), False),
    ],
    ids=["the same is begun", "the same is done", "another one is begun", "another one is done"],
)
def test_what_another_run_did_before_this_one_had_the_locks(three: FakeCluster, there: Members, goes_on: bool) -> None:
    other, cluster, _ = planned(three, Request(joins="cp-4"), FOUR)
    for name in THREE:
        other.servers[name].put(members.PATH, there.render())
    if goes_on:
        run(CHANGE_MEMBERS, cluster, Recorder(), skip=SKIP)
        assert listed(other).settled
        return
    meanwhile(other, lambda: run(CHANGE_MEMBERS, cluster, Recorder(), skip=SKIP, ignore=("all",)))


def test_reset_with_a_file_of_before_a_join_names_who_is_left(three: FakeCluster) -> None:
    """It would serve the virtual IP, or what is left of it, while all is thought to be gone."""
    for server in three.servers.values():
        server.put(members.PATH, Members(2, FOUR).render())
    recorder = Recorder()
    run(RESET, three.cluster, recorder, skip=("data", "containerd"))
    [(host, text)] = recorder.notes
    assert (host, text.partition(";")[0]) == ("cp-1", "not in the cluster file, so not uninstalled: cp-4")


def test_a_list_that_was_settled_meanwhile_is_not_brought_back(three: FakeCluster) -> None:
    """`init` and `upgrade` read it while a change was under way, and waited."""
    settled = Members(2, THREE, former={"cp-4": "10.0.0.14"})
    for server in three.servers.values():
        server.put(members.PATH, replace(settled, before=tuple(FOUR)).render())
    cluster = three.cluster
    for server in three.servers.values():
        server.put(members.PATH, settled.render())
    elsewhere = ("preflight", "versions", "verify", *(f"{name}/containerd" for name in THREE))
    meanwhile(three, lambda: run(INIT, cluster, Recorder(), skip=ELSEWHERE))
    meanwhile(three, lambda: run(upgrade(cluster.hosts), cluster, Recorder(), skip=elsewhere))
