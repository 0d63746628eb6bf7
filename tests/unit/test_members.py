"""The list of members: how it is written, how it changes, which one counts, and what a request to change it means."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import config, members
from kubeadm_registry.access import membership
from kubeadm_registry.access.membership import Request
from kubeadm_registry.cluster import Cluster, MembersChange
from kubeadm_registry.components import agent
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error, PhaseFailed
from kubeadm_registry.formats import Damaged, NewerFormat
from kubeadm_registry.members import Members
from kubeadm_registry.phases.workflows import CHANGE_MEMBERS, INIT
from kubeadm_registry.transport.host import Host
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.test_workflow import Recorder

SAMPLE = Path(__file__).parents[1] / "golden" / "formats" / "members.json"
THREE = {"cp-1": "10.0.0.11", "cp-2": "10.0.0.12", "cp-3": "10.0.0.13"}
FOUR = {**THREE, "cp-4": "10.0.0.14"}


def file(nodes: dict[str, str]) -> str:
    """A cluster file with *nodes*."""
    lines = "".join(f"    - {{name: {name}, address: {at}}}\n" for name, at in nodes.items())
    head, _, rest = config.SMALLEST.partition("  nodes:\n")
    return f"{head}  nodes:\n{lines}{rest[rest.index('  vip:') :]}"


# The list


def test_what_the_first_release_with_a_list_wrote_is_read_and_written_back() -> None:
    found = members.parse(SAMPLE.read_bytes())
    assert (found.generation, found.before) == (3, ("cp-1", "cp-2", "cp-3"))
    assert found.nodes == {"cp-1": "10.0.0.11", "cp-3": "10.0.0.13", "cp-4": "10.0.0.14"}
    assert found.former == {"cp-2": "10.0.0.12"}
    assert not found.settled
    assert found.render() == SAMPLE.read_bytes()


def test_a_key_of_a_newer_release_is_kept() -> None:
    document = {**json.loads(SAMPLE.read_bytes()), "zones": {"cp-1": "a"}}
    found = members.parse(json.dumps(document).encode())
    for one in (found, found.settle(), found.settle().changed_to(FOUR)):
        assert json.loads(one.render())["zones"] == {"cp-1": "a"}


@pytest.mark.parametrize("key", ["generation", "nodes"])
def test_a_key_that_is_missing_is_named(key: str) -> None:
    document = json.loads(SAMPLE.read_bytes())
    del document[key]
    with pytest.raises(Damaged, match=key):
        members.parse(json.dumps(document).encode())


def test_a_format_that_asks_for_a_newer_release_is_not_read() -> None:
    document = json.loads(SAMPLE.read_bytes())
    document["format"]["minReader"] = 2
    with pytest.raises(NewerFormat):
        members.parse(json.dumps(document).encode())


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"generation": "2", "nodes": {"a": "b"}}', b'{"generation": 0, "nodes": {"a": "b"}}',
     b'{"generation": 1, "nodes": {}}', b'{"generation": true, "nodes": {"a": "b"}}',
     b'{"generation": 1, "nodes": []}'],
)  # fmt: skip
def test_what_is_no_list_is_damaged(content: bytes) -> None:
    with pytest.raises(Damaged):
        members.parse(content)


def test_a_change_raises_the_generation_and_remembers_both_lists() -> None:
    changed = Members(4, THREE).changed_to({"cp-1": "10.0.0.11", "cp-3": "10.0.0.13", "cp-4": "10.0.0.14"})
    assert (changed.generation, set(changed.before), changed.former) == (5, set(THREE), {"cp-2": "10.0.0.12"})
    assert changed.settle().settled


def test_the_same_nodes_are_no_change() -> None:
    one = Members(4, THREE, before=("cp-1",), former={"old": "10.0.0.19"})
    assert one.changed_to(dict(THREE)) is one


def test_a_second_change_waits_for_the_first() -> None:
    with pytest.raises(Error) as caught:
        Members(2, FOUR, before=tuple(THREE)).changed_to(THREE)
    assert caught.value.code == "MembersUnsettled"
    assert "init" in caught.value.hint


def test_an_address_that_a_member_has_again_is_not_kept_out() -> None:
    """The new node got the address of the old one; or the old one is back."""
    replaced = Members(1, THREE).changed_to({"cp-1": "10.0.0.11", "cp-3": "10.0.0.13", "new": "10.0.0.12"})
    assert replaced.former == {}
    left = Members(1, FOUR).changed_to(THREE)
    assert left.former == {"cp-4": "10.0.0.14"}
    assert left.settle().changed_to(FOUR).former == {}


def test_a_node_with_another_address_is_kept_out_at_the_old_one() -> None:
    moved = Members(1, THREE).changed_to({**THREE, "cp-2": "10.0.0.22"})
    assert moved.former == {"cp-2": "10.0.0.12"}


def test_the_highest_generation_counts_and_of_one_the_settled() -> None:
    old, begun = Members(1, THREE), Members(2, FOUR, before=tuple(THREE))
    assert members.newest({"cp-1": old, "cp-2": begun, "cp-3": old}) == begun
    assert members.newest({"cp-1": begun, "cp-2": begun.settle(), "cp-3": old}) == begun.settle()
    assert members.newest({}) is None


def test_two_lists_of_one_generation_are_refused() -> None:
    with pytest.raises(Error) as caught:
        members.newest({"cp-1": Members(2, THREE), "cp-2": Members(2, FOUR)})
    assert caught.value.code == "MembersConflict"
    assert "cp-1 and cp-2" in caught.value.message


@pytest.mark.parametrize(
    ("names", "present", "expected"),
    [("abc", "ab", False), ("abc", "a", True), ("abcd", "ab", True), ("abcd", "abc", False), ("a", "a", False)],
)
def test_half_of_the_members_decide_nothing(names: str, present: str, expected: bool) -> None:
    assert members.outvoted(tuple(names), tuple(present)) is expected


# What is asked for


def planned(fake: FakeCluster, request: Request, given: dict[str, str]) -> tuple[FakeCluster, Cluster, MembersChange]:
    """The servers after *request* with the cluster file of *given*, the cluster, and who comes and goes."""
    parsed = config.parse(file(given), "cluster.yaml")
    after = membership.wanted(parsed, request)
    other = fake.with_file(file({node.name: node.address for node in after.spec.nodes}))
    for name, server in other.servers.items():
        if name not in fake.servers:
            for one in other.programs.values():
                other._unpack(server, one)
    cluster, change = membership.planned(other.cluster, parsed, request)
    return other, cluster, change


@pytest.fixture
def three() -> FakeCluster:
    fake = FakeCluster.of(file(THREE))
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    return fake


def refused(fake: FakeCluster, request: Request, given: dict[str, str]) -> Error:
    with pytest.raises(Error) as caught:
        planned(fake, request, given)
    assert caught.value.hint
    return caught.value


def test_who_joins(three: FakeCluster) -> None:
    _, cluster, change = planned(three, Request(joins="cp-4"), FOUR)
    assert (change.arriving, dict(change.leaving)) == (("cp-4",), {})
    assert (cluster.members.generation, set(cluster.members.before)) == (2, set(THREE))


@pytest.mark.parametrize("both", [True, False], ids=["listed still", "not listed"])
def test_who_is_replaced(three: FakeCluster, both: bool) -> None:
    given = FOUR if both else {name: at for name, at in FOUR.items() if name != "cp-2"}
    _, cluster, change = planned(three, Request(joins="cp-4", leaves="cp-2"), given)
    assert change.arriving == ("cp-4",)
    assert {name: node.address for name, node in change.leaving.items()} == {"cp-2": "10.0.0.12"}
    assert set(cluster.members.nodes) == {"cp-1", "cp-3", "cp-4"}


def test_a_node_that_the_file_does_not_list_cannot_join(three: FakeCluster) -> None:
    error = refused(three, Request(joins="cp-4"), THREE)
    assert (error.code, error.exit_code) == ("NodeUnknown", 2)
    assert "`join cp-4`" in error.hint


def test_three_nodes_cannot_become_two(three: FakeCluster) -> None:
    error = refused(three, Request(leaves="cp-2"), THREE)
    assert (error.code, error.exit_code) == ("TooFewNodes", 2)


def test_one_node_cannot_become_three() -> None:
    fake = FakeCluster.of(file({"cp-1": "10.0.0.11"}))
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    error = refused(fake, Request(joins="cp-2"), THREE)
    assert error.code == "CopiesDiffer"
    assert "images copy" in error.hint


def test_a_change_of_another_node_besides_is_refused(three: FakeCluster) -> None:
    error = refused(three, Request(joins="cp-4"), {**FOUR, "cp-5": "10.0.0.15"})
    assert error.code == "MembersDiffer"
    assert "adds cp-5" in error.message
    moved = {**FOUR, "cp-3": "10.0.0.33"}
    assert refused(three, Request(joins="cp-4"), moved).code == "MembersDiffer"


def test_a_node_that_is_no_member_cannot_leave(three: FakeCluster) -> None:
    error = refused(three, Request(leaves="cp-9"), THREE)
    assert error.code == "NodeUnknown"
    assert "cp-1, cp-2, cp-3" in error.message


def test_bare_servers_have_no_members() -> None:
    assert refused(FakeCluster.of(file(THREE)), Request(joins="cp-4"), FOUR).code == "NotInstalled"


def test_a_registry_of_the_first_release_has_no_list(three: FakeCluster) -> None:
    for server in three.servers.values():
        del server.tree[members.PATH]
    _, cluster, change = planned(three, Request(joins="cp-4"), FOUR)
    assert change.arriving == ("cp-4",)
    assert (cluster.members.generation, set(cluster.members.before)) == (2, set(THREE))


def test_less_than_half_of_the_members_change_nothing(three: FakeCluster) -> None:
    _, cluster, _ = planned(three, Request(joins="cp-4"), FOUR)
    few = replace(cluster, recorded=Members(1, THREE), hosts=(cluster.hosts[0], cluster.hosts[3]), change=None)
    with pytest.raises(Error) as caught:
        membership.planned(few, cluster.config, Request(joins="cp-4"))
    assert caught.value.code == "NoMajority"


# What is done


SKIP = (*ELSEWHERE, "uninstall/data", "uninstall/containerd")


def changed(fake: FakeCluster, request: Request, given: dict[str, str], retiring: str = "") -> FakeCluster:
    """Run the change to its end."""
    old = fake.servers.get(retiring)
    other, cluster, change = planned(fake, request, given)
    if old is not None:
        old.closed, old.cut_at = False, None
        leaving = Host(retiring, change.leaving[retiring].address, old) if retiring in change.leaving else None
        other.garage.hosts = {**other.garage.hosts, retiring: old}
        cluster = replace(cluster, change=replace(change, retiring=(leaving,) if leaving else ()))
    run(CHANGE_MEMBERS, cluster, Recorder(), skip=SKIP)
    other.garage.hosts = other.servers
    return other


def listed(fake: FakeCluster) -> Members:
    """The list that all servers have."""
    found = {name: members.parse(server.content(members.PATH)) for name, server in fake.servers.items()}
    assert len({one.render() for one in found.values()}) == 1
    return next(iter(found.values()))


def agents(fake: FakeCluster) -> list[dict[str, Any]]:
    """The settings of all agents, without the keys of nodes that are made at random."""
    found = [json.loads(server.content(agent.CONFIG)) for server in fake.servers.values()]
    for one in found:
        for peer in one["peers"]:
            del peer["garage_node_id"]
    return found


def test_a_node_joins_and_the_new_list_decides_alone(three: FakeCluster) -> None:
    four = changed(three, Request(joins="cp-4"), FOUR)
    found = listed(four)
    assert (found.generation, dict(found.nodes), found.before) == (2, FOUR, ())
    assert [(one["generation"], one.get("members_before")) for one in agents(four)] == [(2, None)] * 4
    assert len(four.garage.roles) == 4
    assert run(INIT, four.cluster, Recorder(), skip=ELSEWHERE) == []


def test_a_node_that_left_is_kept_out_of_the_others(three: FakeCluster) -> None:
    given = {name: at for name, at in FOUR.items() if name != "cp-2"}
    after = changed(three, Request(joins="cp-4", leaves="cp-2"), given)
    assert all(one["former"] == [{"name": "cp-2", "address": "10.0.0.12"}] for one in agents(after))
    for server in after.servers.values():
        rules = server.content("/etc/kubeadm-registry/guard.nft").decode()
        assert "ip saddr { 10.0.0.12 } tcp dport 3901 drop" in rules
        assert "ip daddr { 10.0.0.12 } tcp dport 3901 reject with tcp reset" in rules


def test_a_node_that_answers_is_uninstalled_when_it_has_left(three: FakeCluster) -> None:
    four = changed(three, Request(joins="cp-4"), FOUR)
    left = four.servers["cp-4"]
    after = changed(four, Request(leaves="cp-4"), FOUR, retiring="cp-4")
    assert listed(after).former == {"cp-4": "10.0.0.14"}
    assert not any(path.startswith("/etc/kubeadm-registry") for path in left.files())
    assert all(unit.active != "active" for name, unit in left.units.items() if name.startswith("kubeadm-registry"))


def test_a_dry_run_of_a_change_touches_nothing(three: FakeCluster) -> None:
    other, cluster, _ = planned(three, Request(joins="cp-4"), FOUR)
    before = other.snapshot()
    actions = run(CHANGE_MEMBERS, cluster, Recorder(), skip=SKIP, dry_run=True)
    assert any("cp-4 added" in action.diff for action in actions)
    assert other.snapshot() == before
    assert other.garage.version == 1


@pytest.mark.parametrize(
    "request_", [Request(joins="cp-4"), Request(joins="cp-4", leaves="cp-2")], ids=["join", "replace"]
)
def test_a_change_that_is_killed_anywhere_is_completed_by_the_next_run(request_: Request) -> None:
    """It ends after each thing that it does on any server; the same command again completes it, and moves data once."""
    given = FOUR if not request_.leaves else {name: at for name, at in FOUR.items() if name != "cp-2"}

    def begin() -> FakeCluster:
        fake = FakeCluster.of(file(THREE))
        run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
        for server in fake.servers.values():
            server.acts.clear()
        return fake

    whole = changed(begin(), request_, given)
    acts = {name: len(server.acts) for name, server in whole.servers.items()}
    assert sum(acts.values()) > 60
    for name, count in acts.items():
        # Of the server that comes fewer: init is tried at each of them.
        for number in range(0, count, 12 if name == "cp-4" else 4):
            fake = begin()
            other, cluster, _ = planned(fake, request_, given)
            other.servers[name].cut_at = number
            with pytest.raises(PhaseFailed):
                run(CHANGE_MEMBERS, cluster, Recorder(), skip=SKIP)
            again = changed(other, request_, given)
            assert listed(again).render() == listed(whole).render(), (name, number)
            assert again.garage.moved == 2, (name, number)
            assert agents(again) == agents(whole), (name, number)
            assert run(INIT, again.cluster, Recorder(), skip=ELSEWHERE) == [], (name, number)
