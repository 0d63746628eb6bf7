"""The list of members: how it is written, how it changes, which one counts, and what a request to change it means."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import config, members, secrets
from kubeadm_registry.access import membership, recovery
from kubeadm_registry.access.membership import Request
from kubeadm_registry.access.session import Prompts
from kubeadm_registry.agent.config import Config, Peer, parse
from kubeadm_registry.cluster import Cluster, MembersChange
from kubeadm_registry.components import agent, drain, garage, garage_layout, health, keepalived, zot
from kubeadm_registry.components.garage_layout import ClusterLayout
from kubeadm_registry.config import Node
from kubeadm_registry.containerd import record
from kubeadm_registry.engine import changes, workflow
from kubeadm_registry.engine.phase import leaves
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import ConnectionFailed, Error, PhaseFailed, PreflightFailed
from kubeadm_registry.formats import Damaged
from kubeadm_registry.members import Members
from kubeadm_registry.phases import preflight
from kubeadm_registry.phases.members import ARRIVE, readmitting
from kubeadm_registry.phases.workflows import CHANGE_MEMBERS, INIT
from kubeadm_registry.transport import host as host_module
from kubeadm_registry.transport.host import Host
from kubeadm_registry.transport.ssh import UNREACHABLE
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster, fixed_secrets
from tests.unit.fakes import FakeTransport
from tests.unit.healthy import free
from tests.unit.installed import fresh
from tests.unit.kills import every
from tests.unit.test_workflow import Recorder

pytestmark = pytest.mark.slow

SAMPLE = Path(__file__).parents[1] / "golden" / "formats" / "members.json"
THREE = {"cp-1": "10.0.0.11", "cp-2": "10.0.0.12", "cp-3": "10.0.0.13"}
FOUR = {**THREE, "cp-4": "10.0.0.14"}
FIXED = fixed_secrets(tuple(THREE))


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


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"generation": "2", "nodes": {"a": "b"}}', b'{"generation": 0, "nodes": {"a": "b"}}',
     b'{"generation": 1, "nodes": {}}', b'{"generation": true, "nodes": {"a": "b"}}',
     b'{"generation": 1, "nodes": []}', b'{"generation": 1, "nodes": {"a": {"address": "b"}}}',
     b'{"generation": 1, "nodes": {"a": "b"}, "former": {"c": 1}}',
     b'{"generation": 1, "nodes": {"a": "b"}, "earlier": {"c": "d"}}',
     b'{"generation": 1, "nodes": {"a": "b"}, "earlier": {"c": [1]}}',
     b'{"generation": 1, "nodes": {"a": "b"}, "before": "c"}',
     b'{"generation": 1, "nodes": {"a": "b"}, "before": [1]}'],
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
    assert "half of cp-1, cp-2, cp-3 or more are lost for good, run `recover`" in caught.value.hint


def test_a_change_whose_list_before_has_no_majority_is_given_up_by_recover(three: FakeCluster) -> None:
    """The node that was to be replaced was dead, and another one died: `init` never settles that."""
    given = {name: at for name, at in FOUR.items() if name != "cp-3"}
    other, cluster, _ = planned(three, Request(joins="cp-4", leaves="cp-3"), given)
    run(CHANGE_MEMBERS, cluster, Recorder(), skip=(*SKIP, "settle", "retention", "helper", "runbook", "containerd"))
    left = replace(other, servers={name: server for name, server in other.servers.items() if name != "cp-2"})
    told = refused(left, Request(joins="cp-5", leaves="cp-2"), {**given, "cp-5": "10.0.0.15"})
    assert told.code == "MembersUnsettled"
    there = other.cluster
    away = replace(there, hosts=tuple(host for host in there.hosts if host.name != "cp-2"), absent={"cp-2": "off"})
    other.garage.hosts = left.servers
    run(INIT, away, Recorder(), skip=ELSEWHERE)
    assert refused(left, Request(joins="cp-5", leaves="cp-2"), {**given, "cp-5": "10.0.0.15"}).hint == told.hint
    after = {name: at for name, at in given.items() if name != "cp-2"} | {"cp-5": "10.0.0.15"}
    found = recovery.planned(left.with_file(file(after)).cluster)
    assert (dict(found.members.nodes), found.members.settled) == (after, True)


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


def moves(*lists: dict[str, str]) -> Members:
    """The list after each of *lists* was the members', one after the other."""
    found = Members(1, lists[0])
    for nodes in lists[1:]:
        found = members.parse(found.changed_to(nodes).settle().render())
    return found


def at(address: str) -> dict[str, str]:
    """Four nodes, of which cp-2 is at *address*."""
    return {**FOUR, "cp-2": address}


WITHOUT = {name: address for name, address in FOUR.items() if name != "cp-2"}


@pytest.mark.parametrize(
    "lists",
    [(FOUR, WITHOUT, at("10.0.0.22"), WITHOUT), (FOUR, WITHOUT, at("10.0.0.22"), at("10.0.0.32"))],
    ids=["leaves again", "moves"],
)
def test_each_address_that_a_name_has_left_is_remembered(lists: tuple[dict[str, str], ...]) -> None:
    found = moves(*lists)
    assert found.left == (("cp-2", "10.0.0.12"), ("cp-2", "10.0.0.22"))
    document = json.loads(found.render())
    assert document["former"] == {"cp-2": "10.0.0.22"}, "as every release reads it"
    assert document["earlier"] == {"cp-2": ["10.0.0.12"]}
    assert document["format"] == {"version": 1, "minReader": 1, "minWriter": 1}


def test_an_earlier_address_that_a_member_has_again_is_not_kept_out() -> None:
    left = moves(FOUR, WITHOUT, at("10.0.0.22"), WITHOUT)
    back = left.changed_to({**WITHOUT, "cp-9": "10.0.0.12"})
    assert back.left == (("cp-2", "10.0.0.22"),)
    assert "earlier" not in json.loads(back.render())
    assert left.changed_to({**WITHOUT, "cp-9": "10.0.0.22"}).left == (("cp-2", "10.0.0.12"),)


def test_an_older_release_keeps_the_earlier_addresses_and_may_have_used_one_again() -> None:
    left = json.loads(moves(FOUR, WITHOUT, at("10.0.0.22"), WITHOUT).render())
    for older in ({"nodes": {**WITHOUT, "cp-9": "10.0.0.12"}}, {"former": {**left["former"], "cp-9": "10.0.0.12"}}):
        found = members.parse(json.dumps({**left, **older}).encode())
        assert ("cp-2", "10.0.0.12") not in found.left
        assert "earlier" not in json.loads(found.render())


def test_the_highest_generation_counts_and_of_one_the_settled() -> None:
    old, begun = Members(1, THREE), Members(2, FOUR, before=tuple(THREE))
    assert members.newest({"cp-1": old, "cp-2": begun, "cp-3": old}) == begun
    assert members.newest({"cp-1": begun, "cp-2": begun.settle(), "cp-3": old}) == begun.settle()
    assert members.newest({}) is None


def test_which_list_would_be_undone() -> None:
    old, begun = Members(1, THREE), Members(2, FOUR, before=tuple(THREE))
    other = {"cp-1": "10.0.0.11", "cp-3": "10.0.0.13", "cp-5": "10.0.0.15"}
    undone = [(begun, old), (begun.settle(), begun), (Members(2, other), begun), (begun, Members(2, other))]
    assert all(there.supersedes(mine) for there, mine in undone)
    for there, mine in ((old, begun), (begun, begun.settle()), (begun, begun), (old, old)):
        assert not there.supersedes(mine)


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
    return fresh(file(THREE))


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


def test_one_node_cannot_be_replaced() -> None:
    """Neither is it sent to bring nodes back, or to `recover`, which would find nothing."""
    fake = fresh(file({"cp-1": "10.0.0.11"}))
    error = refused(fake, Request(joins="cp-2", leaves="cp-1"), {"cp-2": "10.0.0.12"})
    assert (error.code, error.exit_code) == ("OneNode", 2)
    assert "skopeo copy" in error.hint


def test_one_node_gets_no_other_address_by_a_replacement() -> None:
    """No node would be left that the storage could be asked at."""
    fake = fresh(file({"cp-1": "10.0.0.11"}))
    moved = Request(joins="cp-1", leaves="cp-1")
    error = refused(fake, moved, {"cp-1": "10.0.0.21"})
    assert error.code == "OneNode"
    assert "`reset` with the old address" in error.hint
    assert planned(fake, moved, {"cp-1": "10.0.0.11"})[2].arriving == ()


def test_one_node_cannot_become_three() -> None:
    fake = fresh(file({"cp-1": "10.0.0.11"}))
    error = refused(fake, Request(joins="cp-2"), THREE)
    assert error.code == "CopiesDiffer"
    assert "on other nodes, three or more, with `init`" in error.hint, "two others are no registry"
    assert "another virtual IP" in error.hint
    assert "skopeo copy" in error.hint


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


@pytest.mark.parametrize(
    ("code", "left", "presence", "outcome"),
    [
        (UNREACHABLE, False, "silent", "goes on"),
        (UNREACHABLE, False, "fresh", "NodeAlive"),
        (UNREACHABLE, False, "gone", "NodeAlive"),
        (UNREACHABLE, True, "fresh", "goes on"),
        ("HostKeyUnknown", False, "fresh", "HostKeyUnknown"),
        ("HostKeyUnknown", True, "fresh", "goes on"),
    ],
    ids=[
        "dead", "its sshd is dead", "its sshd and its agent are dead", "its sshd is dead, and an earlier run is done",
        "not known", "not known, and an earlier run is done with it",
    ],
)  # fmt: skip
def test_a_node_that_leaves_and_does_not_let_us_in(
    three: FakeCluster, monkeypatch: pytest.MonkeyPatch, code: str, left: bool, presence: str, outcome: str
) -> None:
    """It may have the virtual IP while the agent of another node hears it."""
    given = {name: at for name, at in FOUR.items() if name != "cp-2"}
    if left:
        stored = Members(2, given, before=tuple(THREE), former={"cp-2": "10.0.0.12"})
        for server in three.servers.values():
            server.put(members.PATH, stored.render())
    other = three.with_file(file(given))
    state = {"time": 1000.0, "peers": {"cp-2": {"address": "10.0.0.12", "presence": presence}}}
    other.servers["cp-3"].answer("sh", "-c", health._ASK, "health", with_=f"1000.5\n---\n{json.dumps(state)}")

    @contextmanager
    def opened(*_: object, **__: object) -> Iterator[Cluster]:
        yield other.cluster

    def refuse(*_: object) -> Host:
        raise ConnectionFailed("no", host="cp-2", code=code)

    monkeypatch.setattr(membership.session, "cluster", opened)
    monkeypatch.setattr(membership.session, "host", refuse)
    said: list[str] = []
    parsed = config.parse(file(given), "cluster.yaml")
    try:
        with membership.changing(
            parsed, Request(joins="cp-4", leaves="cp-2"), Prompts(), lambda text, **_: said.append(text)
        ) as cluster:
            assert cluster.change is not None
            assert cluster.change.retiring == ()
        assert "treated as lost" in said[0]
        said = ["goes on"]
    except Error as error:
        assert error.code != "NodeAlive" or "the agent of cp-3 hears it" in error.message
        said = [error.code]
    assert said == [outcome]


@pytest.mark.parametrize("left", [True, False], ids=["it had left", "it is a member still"])
@pytest.mark.parametrize("generation", ["another", FIXED.generation], ids=["of another registry", "of this one"])
def test_a_machine_that_is_a_node_of_another_registry_by_now_is_left_as_it_is(
    three: FakeCluster, monkeypatch: pytest.MonkeyPatch, generation: str, left: bool
) -> None:
    given = {name: at for name, at in FOUR.items() if name != "cp-2"}
    machine = three.servers["cp-2"].copy()
    machine.put(secrets.PATH, replace(FIXED, generation=generation).to_json(), 0o600)
    other = (
        changed(three, Request("cp-4", "cp-2"), given) if left else planned(three, Request("cp-4", "cp-2"), given)[0]
    )

    @contextmanager
    def opened(*_: object, **__: object) -> Iterator[Cluster]:
        yield other.cluster

    monkeypatch.setattr(membership.session, "cluster", opened)
    monkeypatch.setattr(membership.session, "host", lambda *_: machine.host("10.0.0.12"))
    said: list[str] = []
    parsed = config.parse(file(given), "cluster.yaml")
    with membership.changing(
        parsed, Request("cp-4", "cp-2"), Prompts(), lambda text, **_: said.append(text)
    ) as cluster:
        assert cluster.change is not None
        assert len(cluster.change.retiring) == (generation != "another")
    assert said == ["it is a node of another registry, and is left as it is"] * (generation == "another")


@pytest.mark.parametrize(
    ("answers", "has", "former", "generation", "outcome"),
    [
        (True, "10.0.0.12", False, FIXED.generation, "NodeAlive"),
        (True, "10.0.0.12", False, "another", "goes on"),
        (True, "10.0.0.22", False, FIXED.generation, "goes on"),
        (True, "", False, "", "goes on"),
        (False, "", False, "", "goes on"),
        (True, "10.0.0.12", True, FIXED.generation, "goes on"),
    ],
    ids=[
        "another machine", "a node of another registry", "the same one, with both", "no node has it now", "it is gone",
        "an earlier run is done",
    ],
)  # fmt: skip
def test_a_node_that_moves_is_one_machine(
    three: FakeCluster, monkeypatch: pytest.MonkeyPatch, answers: bool, has: str, former: bool, generation: str,
    outcome: str,
) -> None:  # fmt: skip
    """Two machines of one name would be one node of the storage."""
    given = {**THREE, "cp-2": "10.0.0.22"}
    if former:
        stored = Members(2, given, before=tuple(THREE), former={"cp-2": "10.0.0.12"})
        for server in three.servers.values():
            server.put(members.PATH, stored.render())
    other = three.with_file(file(given))
    old = FakeTransport("cp-2")
    if has:  # else somebody who is no node
        old.put(members.PATH, Members(1, THREE).render())
        old.put(secrets.PATH, replace(FIXED, generation=generation).to_json(), 0o600)
    old.answer(
        "ip", "-oneline", "address", "show", "-tentative", "to",
        with_=lambda argv, _: f"2: eth0 inet {has}" if has and argv[-1].startswith(has) else "",
    )  # fmt: skip

    @contextmanager
    def opened(*_: object, **__: object) -> Iterator[Cluster]:
        yield other.cluster

    def attempt(_: object, node: Node, __: object) -> Host:
        if not answers:
            raise ConnectionFailed("no", host="cp-2", code=UNREACHABLE)
        return old.host(node.address)

    monkeypatch.setattr(membership.session, "cluster", opened)
    monkeypatch.setattr(membership.session, "attempt", attempt)
    parsed = config.parse(file(given), "cluster.yaml")
    try:
        with membership.changing(parsed, Request("cp-2", "cp-2"), Prompts(), lambda *_, **__: None) as cluster:
            assert cluster.change is not None
            assert cluster.change.retiring == ()
        said = "goes on"
    except Error as error:
        said = error.code
    assert said == outcome
    assert old.closed is (answers and not former)


# What is done


SKIP = (*ELSEWHERE, "uninstall/data", "uninstall/containerd")


def changed(
    fake: FakeCluster, request: Request, given: dict[str, str], retiring: str = "", recorder: Recorder | None = None
) -> FakeCluster:
    """Run the change to its end."""
    old = fake.servers.get(retiring)
    other, cluster, change = planned(fake, request, given)
    if old is not None:
        old.closed, old.cut_at = False, None
        leaving = Host(retiring, change.leaving[retiring].address, old) if retiring in change.leaving else None
        other.garage.hosts = {**other.garage.hosts, retiring: old}
        cluster = replace(cluster, change=replace(change, retiring=(leaving,) if leaving else ()))
    run(CHANGE_MEMBERS, cluster, recorder or Recorder(), skip=SKIP)
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


@pytest.mark.parametrize("request_", [Request("cp-2", "cp-2"), Request(joins="cp-2")], ids=["replace", "join"])
def test_a_member_with_a_new_disk_keeps_name_and_address(three: FakeCluster, request_: Request) -> None:
    whole = set(three.servers["cp-2"].tree)
    three.servers["cp-2"] = FakeTransport("cp-2")
    other, _, _ = planned(three, request_, THREE)
    for one in other.programs.values():
        other._unpack(other.servers["cp-2"], one)
    again = changed(other, request_, THREE)
    assert whole <= set(again.servers["cp-2"].tree)
    assert (listed(again).generation, again.garage.moved) == (1, 1), "the members and the layout are as before"
    assert run(INIT, again.cluster, Recorder(), skip=ELSEWHERE) == []


@pytest.mark.parametrize(
    ("wanted", "given"),
    [(Request(joins="cp-4"), FOUR), (Request("cp-4", "cp-2"), {k: v for k, v in FOUR.items() if k != "cp-2"})],
    ids=["join", "replace"],
)
def test_the_storage_restarts_nowhere_for_a_change_of_members(
    three: FakeCluster, wanted: Request, given: dict[str, str]
) -> None:
    before = {name: server.unit(garage.UNIT).starts for name, server in three.servers.items()}
    after = changed(three, wanted, given)
    assert {name: after.servers[name].unit(garage.UNIT).starts for name in given} == {
        name: before.get(name, 1) for name in given
    }
    assert FOUR["cp-4"] in after.servers["cp-1"].content(garage.CONFIG).decode()
    assert run(INIT, after.cluster, Recorder(), skip=ELSEWHERE) == []


def test_a_new_node_claims_the_virtual_ip_once_all_others_speak_to_it(three: FakeCluster) -> None:
    _, cluster, _ = planned(three, Request(joins="cp-4"), {"cp-4": FOUR["cp-4"], **THREE})
    recorder = Recorder()
    run(CHANGE_MEMBERS, cluster, recorder, skip=SKIP)
    started = [one.host for one in recorder.actions if one.title == f"start {keepalived.UNIT}"]
    assert sorted(started) == sorted(FOUR)
    assert started[-1] == "cp-4"


@pytest.mark.parametrize("given", [FOUR, THREE], ids=["listed still", "not listed"])
def test_a_node_that_did_not_come_to_its_end_leaves_the_storage(three: FakeCluster, given: dict[str, str]) -> None:
    """The run that was to bring it was ended, and it is dead: no list of members has it."""
    three.garage.UpdateClusterLayout({"roles": [{"id": "of cp-4", "zone": "cp-4", "capacity": 1, "tags": []}]})
    three.garage.ApplyClusterLayout({"version": 2})
    before = listed(three)
    _, _, change = planned(three, Request(leaves="cp-4"), given)
    assert {name: node.address for name, node in change.leaving.items()} == dict(given.items() - THREE.items())
    three.garage.dead = {"of cp-4"}
    fake = changed(three, Request(leaves="cp-4"), given)
    assert sorted(role["zone"] for role in fake.garage.roles) == sorted(THREE)
    assert listed(fake) == before
    assert run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE) == []


def test_a_node_that_left_is_kept_out_of_the_others(three: FakeCluster) -> None:
    given = {name: at for name, at in FOUR.items() if name != "cp-2"}
    after = changed(three, Request(joins="cp-4", leaves="cp-2"), given)
    assert all(one["former"] == [{"name": "cp-2", "address": "10.0.0.12"}] for one in agents(after))
    for server in after.servers.values():
        rules = server.content("/etc/kubeadm-registry/guard.nft").decode()
        assert "ip saddr { 10.0.0.12 } tcp dport 3901 drop" in rules
        assert "ip daddr { 10.0.0.12 } tcp dport 3901 reject with tcp reset" in rules


@pytest.mark.parametrize("last", ["leaves again", "moves"])
def test_a_node_is_kept_out_at_each_address_that_it_has_left(three: FakeCluster, last: str) -> None:
    fake = changed(three, Request(joins="cp-4"), FOUR)
    fake = changed(fake, Request(leaves="cp-2"), WITHOUT)
    fake = changed(fake, Request(joins="cp-2"), at("10.0.0.22"))
    if last == "moves":
        fake = changed(fake, Request(joins="cp-2", leaves="cp-2"), at("10.0.0.32"))
    else:
        fake = changed(fake, Request(leaves="cp-2"), WITHOUT)
    wanted = [{"name": "cp-2", "address": address} for address in ("10.0.0.12", "10.0.0.22")]
    assert all(one["former"] == wanted for one in agents(fake))
    for server in fake.servers.values():
        rules = server.content("/etc/kubeadm-registry/guard.nft").decode()
        assert "ip saddr { 10.0.0.12, 10.0.0.22 } tcp dport 3901 drop" in rules
        assert "ip saddr { 10.0.0.12, 10.0.0.22 } tcp sport 3901 drop" in rules
        assert "ip daddr { 10.0.0.12, 10.0.0.22 } tcp dport 3901 reject with tcp reset" in rules
        assert config_of(server).former == tuple(Peer("cp-2", address) for address in ("10.0.0.12", "10.0.0.22"))


def config_of(server: FakeTransport) -> Config:
    """The settings of the agent on *server* as it reads them."""
    return parse(json.loads(server.content(agent.CONFIG)))


def test_a_node_comes_back_to_the_first_address_that_it_has_left(three: FakeCluster) -> None:
    fake = changed(three, Request(joins="cp-4"), FOUR)
    for request, given in (
        (Request(leaves="cp-2"), WITHOUT), (Request(joins="cp-2"), at("10.0.0.22")), (Request(leaves="cp-2"), WITHOUT)
    ):  # fmt: skip
        fake = changed(fake, request, given)
    _, cluster, change = planned(fake, Request(joins="cp-2"), FOUR)
    assert change.former == ("10.0.0.12", "10.0.0.22")
    assert [host.name for host in readmitting(replace(cluster, change=change))] == ["cp-1", "cp-3", "cp-4"]
    back = changed(fake, Request(joins="cp-2"), FOUR)
    assert listed(back).left == (("cp-2", "10.0.0.22"),)


def test_a_node_that_answers_is_uninstalled_when_it_has_left(three: FakeCluster) -> None:
    four = changed(three, Request(joins="cp-4"), FOUR)
    left = four.servers["cp-4"]
    after = changed(four, Request(leaves="cp-4"), FOUR, retiring="cp-4")
    assert listed(after).former == {"cp-4": "10.0.0.14"}
    assert not any(path.startswith("/etc/kubeadm-registry") for path in left.files())
    assert all(unit.active != "active" for name, unit in left.units.items() if name.startswith("kubeadm-registry"))


def left_as_it_is(four: FakeCluster) -> str:
    """Have cp-4 leave, which cannot be uninstalled; the warning about it."""
    recorder = Recorder()
    after = changed(four, Request(leaves="cp-4"), FOUR, retiring="cp-4", recorder=recorder)
    assert listed(after).former == {"cp-4": "10.0.0.14"}
    assert listed(after).settled
    [(host, text)] = [(host, text) for host, text in recorder.notes if "not uninstalled" in text]
    assert host == "cp-4"
    return text


def test_a_node_that_has_left_and_is_a_client_node_by_now_stays_one(three: FakeCluster) -> None:
    """As after `mirrors apply` for it; the command is run again."""
    given = {name: at for name, at in FOUR.items() if name != "cp-2"}
    request = Request("cp-4", "cp-2")
    client = three.servers["cp-2"]
    _, cluster, change = planned(changed(three, request, given, retiring="cp-2"), request, given)
    client.put(record.ORIGINALS, b"{}")
    cluster = replace(cluster, change=replace(change, retiring=(client.host("10.0.0.12"),)))
    assert run(CHANGE_MEMBERS, cluster, Recorder(), skip=SKIP) == []
    [containerd] = [phase for path, phase in leaves(CHANGE_MEMBERS) if path == "uninstall/containerd"]
    assert list(containerd.changes(cluster, client.host())) == []


def test_a_node_that_cannot_be_uninstalled_leaves_as_a_dead_one_does(three: FakeCluster) -> None:
    """Its data disk is broken: nothing can be written there."""
    four = changed(three, Request(joins="cp-4"), FOUR)
    left, kept = four.servers["cp-4"], secrets.kept_path("/var/lib/kubeadm-registry")
    left.answer("sh", "-c", host_module._WRITE, "write", kept, with_=1)
    left.flushed.clear()
    text = left_as_it_is(four)
    assert "phase uninstall/secrets" in text
    assert "switch it off" in text
    assert secrets.PATH in left.tree, "nothing is removed that could not be kept"
    assert left.unit(garage.UNIT).active != "active"
    assert not left.flushed


def test_the_virtual_ip_leaves_a_node_before_that_is_uninstalled(three: FakeCluster) -> None:
    four = changed(three, Request(joins="cp-4"), FOUR)
    left, gone = four.servers["cp-4"], f"stop {keepalived.UNIT}"
    left.acts.clear()
    left.answer(
        "ip", "-oneline", "address", "show", "-tentative", "to",
        with_=lambda *_: "" if gone in left.acts else "2: eth0 inet 10.0.0.10/32",
    )  # fmt: skip
    recorder = Recorder()
    changed(four, Request(leaves="cp-4"), FOUR, retiring="cp-4", recorder=recorder)
    units = [act for act in left.acts if act.split()[0] in ("stop", "start", "disable")]
    assert units[:2] == [gone, f"start {keepalived.UNIT}"]
    assert len(units) > 2
    done = [(one.phase, one.host) for one in recorder.actions]
    assert done.index(("move/vip-leaves", "cp-4")) < done.index(("move/layout", "cp-1"))


def test_a_node_that_nobody_uninstalled_claims_the_virtual_ip_only_once_it_is_configured_anew(
    three: FakeCluster,
) -> None:
    """It was dead when it left. As soon as its agent is fit, its keepalived would not hear the holder."""
    other, cluster, _ = planned(three, Request(joins="cp-4"), FOUR)
    new = other.servers["cp-4"]
    new.put(changes.unit_path(keepalived.UNIT), b"[Service]\n")
    new.put(members.PATH, Members(1, THREE).render())
    new.unit(keepalived.UNIT).active = "active"
    recorder = Recorder()
    run(CHANGE_MEMBERS, cluster, recorder, skip=SKIP)
    acts = [(one.phase, one.title) for one in recorder.actions if one.host == "cp-4"]
    assert acts.index(("arrive/clear", f"stop {keepalived.UNIT}")) < acts.index(("agent", f"start {agent.UNIT}"))
    assert new.unit(keepalived.UNIT).active == "active"
    recorder = Recorder()
    run(ARRIVE.phases[:1], replace(cluster, recorded=listed(other)), recorder)
    assert not recorder.actions, "what an interrupted run has started goes on"


def test_a_node_answers_no_reads_once_the_storage_is_without_it(three: FakeCluster) -> None:
    """Nor after a boot there: copying may take hours."""
    four = changed(three, Request(joins="cp-4"), FOUR)
    left, recorder = four.servers["cp-4"], Recorder()
    changed(four, Request(leaves="cp-4"), FOUR, retiring="cp-4", recorder=recorder)
    done = [(one.phase, one.host) for one in recorder.actions]
    assert done.index(("move/frontend", "cp-4")) < done.index(("move/layout", "cp-1"))
    first = next(one for one in recorder.actions if one.phase == "move/frontend")
    assert first.title == f"stop {zot.UNIT}"
    assert left.unit(zot.UNIT).active != "active"


def test_a_node_that_cannot_give_up_the_virtual_ip_leaves_as_a_dead_one_does(three: FakeCluster) -> None:
    """Its root disk is broken: systemd-run and nft fail there."""
    four = changed(three, Request(joins="cp-4"), FOUR)
    left = four.servers["cp-4"]
    left.answer(
        "ip", "-oneline", "address", "show", "-tentative", "to", with_=lambda *_: "2: eth0 inet 10.0.0.10/32"
    )  # fmt: skip
    left.answer("sh", "-c", drain._HOLD, "hold", with_=1)
    text = left_as_it_is(four)
    assert "phase move/vip-leaves" in text
    assert secrets.PATH in left.tree, "nothing more is done there"


def test_a_node_that_comes_passes_reads_on_before_another_sends_it_any(three: FakeCluster) -> None:
    """HAProxy tries all nodes of its file until an agent says otherwise, and those of the others do not know it yet."""
    recorder = Recorder()
    changed(three, Request(joins="cp-4"), FOUR, recorder=recorder)
    turns = list(dict.fromkeys(one.host for one in recorder.actions if one.phase == "proxy"))
    assert turns == ["cp-4", "cp-1", "cp-2", "cp-3"]


GIB = 2**30


def room(
    fake: FakeCluster,
    request: Request,
    given: dict[str, str],
    gib: float,
    *,
    has: dict[str, float] | None = None,
    alone: bool = False,
) -> dict[str, str]:
    """What the check of the room says by node, where 100 GiB are stored, each disk has *gib* free, and nodes have
    stored what *has* says.

    *alone*: the storage does not know what is stored, for it has no majority.
    """
    other, cluster, _ = planned(fake, request, given)
    for bucket in other.garage.buckets.values():
        bucket["bytes"] = 100 * GIB
    for name, server in other.servers.items():
        size = (has or {}).get(name)
        server.answer("sh", "-c", preflight._FREE, "free", with_=free("/data", gib))
        server.answer("sh", "-c", garage._SIZE, "size", with_=f"{round(size * GIB)}\n" if size else "")
        if alone:
            executable = other.programs["garage"].executable
            server.answer(executable, "-c", garage.CONFIG, "json-api", "GetBucketInfo", with_=1)
    [check] = [one for _, phase in leaves(CHANGE_MEMBERS) for one in phase.checks if one.name == "StorageSpace"]
    found = {host.name: list(check.probe(cluster, host)) for host in check.on(cluster)}
    return {name: text for name, texts in found.items() for text in texts}


def test_a_node_that_comes_needs_room_for_its_part(three: FakeCluster) -> None:
    """75 of 100 GiB; of its disk of 500 GiB 25 are kept."""
    join = Request(joins="cp-4")
    assert room(three, join, FOUR, 101) == {}
    assert room(three, join, FOUR, 99) == {
        "cp-4": "/var/lib/kubeadm-registry must take 75.0 GiB of images, but has 99.0 GiB free on /data, of which "
        "25.0 GiB are reserved for deletions; add disk space, or delete images first"
    }
    assert room(three, join, FOUR, 99, has={"cp-4": 2}) == {}, "a run that was ended copied that, or it is removed"
    everything = room(three, Request(joins="cp-4", leaves="cp-2"), FOUR, 99)
    assert "must take 100.0 GiB" in everything.pop("cp-4")
    assert everything == {}, "the others keep what they have"


def test_those_that_stay_need_room_for_the_part_of_one_that_leaves(three: FakeCluster) -> None:
    four = changed(three, Request(joins="cp-4"), FOUR)
    assert room(four, Request(leaves="cp-4"), FOUR, 51) == {}
    told = room(four, Request(leaves="cp-4"), FOUR, 49)
    assert set(told) == {"cp-1", "cp-2", "cp-3"}
    assert all("must take 25.0 GiB" in text for text in told.values())
    _, cluster, _ = planned(four, Request(leaves="cp-4"), FOUR)
    ClusterLayout(cluster, 3).apply(cluster.hosts[0])
    assert room(four, Request(leaves="cp-4"), FOUR, 49) == {}, "they take it already"


def test_without_a_majority_the_room_is_judged_by_what_one_has(three: FakeCluster) -> None:
    given = {name: at for name, at in FOUR.items() if name != "cp-2"}
    replaced = Request(joins="cp-4", leaves="cp-2")
    told = room(three, replaced, given, 60, has={"cp-1": 40}, alone=True)
    assert list(told) == ["cp-4"]
    assert "must take 40.0 GiB" in told["cp-4"]


def unhealthy(cluster: Cluster, retiring: Host | None = None) -> list[str]:
    """What the check of the nodes that stay says."""
    assert cluster.change is not None
    cluster = replace(cluster, change=replace(cluster.change, retiring=() if retiring is None else (retiring,)))
    [check] = [one for _, phase in leaves(CHANGE_MEMBERS) for one in phase.checks if one.name == "NodesHealthy"]
    return [text for host in check.on(cluster) for text in check.probe(cluster, host)]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is not healthy at the first look is not."""
    monkeypatch.setattr(health, "COPIED_WITHIN", 0.0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "request_",
    [Request(joins="cp-5"), Request(leaves="cp-4"), Request(joins="cp-5", leaves="cp-4")],
    ids=["join", "leave", "replace"],
)
def test_no_data_moves_while_the_storage_of_a_node_that_stays_is_dead(request_: Request) -> None:
    fake = fresh(file(FOUR))
    given = {name: at for name, at in FOUR.items() if name != request_.leaves}
    other, cluster, _ = planned(fake, request_, {**given, "cp-5": "10.0.0.15"} if request_.joins else given)
    fake.servers["cp-2"].unit(garage.UNIT).active = "failed"
    before = other.snapshot()
    with pytest.raises(PreflightFailed) as caught:
        run(CHANGE_MEMBERS, cluster, Recorder(), skip=SKIP)
    [problem] = [one for one in caught.value.problems if one.check == "NodesHealthy"]
    assert "cp-2: does not serve reads" in problem.text
    assert not problem.mandatory
    assert (other.snapshot(), other.garage.moved) == (before, 1)


@pytest.mark.parametrize("name", ["cp-4", "cp-1"])
def test_nobody_joins_while_a_data_disk_is_not_mounted(three: FakeCluster, name: str) -> None:
    """The check of `reset` has the same name, and in a change of members it is for nodes that leave."""
    other, cluster, _ = planned(three, Request(joins="cp-4"), FOUR)
    other.servers[name].unmounted.add("/var/lib/kubeadm-registry")
    selected = [
        (path, replace(phase, checks=tuple(one for one in phase.checks if one.name == "DataMounted")))
        for path, phase in leaves(CHANGE_MEMBERS)
    ]
    with pytest.raises(PreflightFailed) as caught:
        workflow.preflight(selected, cluster, Recorder())
    assert [problem.host for problem in caught.value.problems] == [name]


def test_a_node_may_leave_whose_data_disk_is_not_mounted() -> None:
    fake = fresh(file(FOUR))
    leaving = fake.servers["cp-4"]
    _, cluster, change = planned(fake, Request(leaves="cp-4"), FOUR)
    leaving.unmounted.add("/var/lib/kubeadm-registry")
    cluster = replace(cluster, change=replace(change, retiring=(leaving.host(),)))
    checks = [one for _, phase in leaves(CHANGE_MEMBERS) for one in phase.checks if one.name == "DataMounted"]
    assert [text for one in checks for host in one.on(cluster) for text in one.probe(cluster, host)] == []


@pytest.mark.usefixtures("at_once")
def test_no_data_moves_while_nodes_that_stay_lack_copies() -> None:
    fake = fresh(file(FOUR))
    fake.garage.failed, fake.garage.somewhere = 3, 1
    _, cluster, _ = planned(fake, Request(leaves="cp-4"), FOUR)
    [text] = unhealthy(cluster, fake.servers["cp-4"].host())
    assert "copying what it missed, 1 block and 0 parts of tables are left" in text
    assert "cp-4" not in text


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("answers", [True, False])
def test_the_node_that_leaves_may_be_ill(three: FakeCluster, answers: bool) -> None:
    given = {name: at for name, at in FOUR.items() if name != "cp-2"}
    _, cluster, _ = planned(three, Request(joins="cp-4", leaves="cp-2"), given)
    three.servers["cp-2"].unit(garage.UNIT).active = "failed"
    assert unhealthy(cluster, three.servers["cp-2"].host() if answers else None) == []


@pytest.mark.usefixtures("at_once")
def test_a_run_that_has_moved_data_goes_on_whatever_became_of_the_nodes() -> None:
    """It cannot be undone, and no other change is possible until it is complete."""
    fake = fresh(file(FOUR))
    _, cluster, _ = planned(fake, Request(leaves="cp-4"), FOUR)
    ClusterLayout(cluster, 3).apply(cluster.hosts[0])
    fake.servers["cp-2"].unit(garage.UNIT).active = "failed"
    assert unhealthy(cluster) == []


OLD = "/var/lib/kubeadm-registry/garage"
CLEAR = f"clear {OLD}/meta {OLD}/data"


@pytest.mark.usefixtures("at_once")
def test_a_node_that_stays_is_lost_once_another_has_given_its_data_away() -> None:
    """The storage waits for it, so it has to be there again before anything else can be done."""
    fake, request = fresh(file(FOUR)), Request(leaves="cp-4")
    after, cluster, _ = planned(fake, request, FOUR)
    run(CHANGE_MEMBERS, cluster, Recorder(), only=("move/layout",))
    others = replace(after, servers={**after.servers, "cp-4": fake.servers["cp-4"]})
    _, cluster, _ = planned(others, Request(joins="cp-5", leaves="cp-3"), {**FOUR, "cp-5": "10.0.0.15"})
    with pytest.raises(PreflightFailed) as caught:
        run(CHANGE_MEMBERS, cluster, Recorder(), skip=SKIP)
    [told] = [one.text for one in caught.value.problems if one.check == "StoragePlaces"]
    assert (
        "first complete it: `leave cp-4`, for which cp-3 must be back; if it is lost for good, put a bare host" in told
    )
    bare = {**others.servers, "cp-3": FakeTransport("cp-3")}
    four = replace(others, servers=bare).with_file(file(FOUR))
    for one in four.programs.values():
        four._unpack(bare["cp-3"], one)
    with pytest.raises(PhaseFailed) as failed:
        run(INIT, four.cluster, Recorder(), skip=ELSEWHERE)
    assert failed.value.code == "LayoutDiffers"
    assert set(listed(changed(four, request, FOUR)).nodes) == set(THREE)


def returning(three: FakeCluster) -> FakeCluster:
    """cp-4 joined and left; its data stayed."""
    four = changed(three, Request(joins="cp-4"), FOUR)
    left = four.servers["cp-4"]
    after = changed(four, Request(leaves="cp-4"), FOUR, retiring="cp-4")
    for path in ("meta/db.lmdb/data.mdb", "data/ab/cd/abcd"):
        left.put(f"{OLD}/{path}", "of the time before")
    for one in after.programs.values():
        after._unpack(left, one)
    left.acts.clear()
    after.servers["cp-4"] = left
    return after


def test_what_a_node_stored_before_it_left_does_not_come_back(three: FakeCluster) -> None:
    """The others may have forgotten that it was deleted since."""
    fake = returning(three)
    left = fake.servers["cp-4"]
    key = left.content(f"{OLD}/meta/node_key")
    left.unit(garage.UNIT).active = "active"  # it was switched off when it left
    changed(fake, Request(joins="cp-4"), FOUR)
    assert f"{OLD}/meta/db.lmdb/data.mdb" not in left.tree
    assert f"{OLD}/data/ab/cd/abcd" not in left.tree
    assert left.content(f"{OLD}/meta/node_key") == key
    acts = [act for act in left.acts if act in (CLEAR, f"stop {garage.UNIT}", f"start {garage.UNIT}")]
    assert acts == [f"stop {garage.UNIT}", CLEAR, f"start {garage.UNIT}"]
    assert next(leaves(ARRIVE.phases))[0] == "clear", "while the others keep it out"


@pytest.mark.parametrize("place", ["current layout", "layout before", "no layout is known"])
def test_what_a_node_has_stored_since_it_has_a_role_stays(three: FakeCluster, place: str) -> None:
    """The run before was killed after it had given the node its place in the storage, or the node is leaving still."""
    fake = returning(three)
    other, cluster, _ = planned(fake, Request(joins="cp-4"), FOUR)
    cluster.vault.ensure()
    if place == "current layout":
        ClusterLayout(cluster, 3).apply(cluster.hosts[0])
    elif place == "layout before":
        other.garage.dead = {cluster.secrets.node_id("cp-4")}
    else:
        other.garage.version, other.garage.roles = 0, []
    before = dict(other.servers["cp-4"].tree)
    assert run(CHANGE_MEMBERS, cluster, Recorder(), only=("arrive/clear",)) == []
    assert other.servers["cp-4"].tree == before


def test_a_node_is_not_cleared_while_one_that_stays_does_not_say_whether_it_has_a_role(three: FakeCluster) -> None:
    fake = returning(three)
    fake.servers["cp-2"].unit(garage.UNIT).active = "failed"
    _, cluster, _ = planned(fake, Request(joins="cp-4"), FOUR)
    cluster.vault.ensure()
    with pytest.raises(PhaseFailed, match="does not respond"):
        run(CHANGE_MEMBERS, cluster, Recorder(), only=("arrive/clear",))
    assert fake.servers["cp-4"].acts == []


def test_what_another_registry_stored_on_a_node_that_comes_is_not_touched(three: FakeCluster) -> None:
    fake = returning(three)
    left = fake.servers["cp-4"]
    left.put(f"{OLD}/meta/node_key", b"another")
    del left.tree[secrets.kept_path("/var/lib/kubeadm-registry")]
    _, cluster, _ = planned(fake, Request(joins="cp-4"), FOUR)
    assert run(CHANGE_MEMBERS, cluster, Recorder(), only=("arrive/clear",)) == []
    assert left.acts == []


def test_the_files_of_the_storage_are_removed_and_no_others(tmp_path: Path) -> None:
    """The scripts themselves: nodes' keys, what a link leads to, and what is beside the directories."""
    meta, blocks = tmp_path / "meta", tmp_path / "data"
    outside = tmp_path / "outside" / "file"
    for path in (meta / "db.lmdb" / "data.mdb", meta / "node_key", meta / "node_key.pub", blocks / "ab" / "cd" / "abcd",
                 outside):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (meta / "link").symlink_to(outside.parent)
    (tmp_path / "linked").symlink_to(outside.parent)

    def says(script: str) -> str:
        argv = ["sh", "-c", script, "x", str(meta), str(blocks), str(tmp_path / "none"), str(tmp_path / "linked")]
        return subprocess.run(argv, capture_output=True, check=True, text=True, timeout=30).stdout

    assert says(garage_layout._LOOK)
    assert says(garage_layout._REMOVE) == ""
    assert sorted(path for path in tmp_path.rglob("*") if not path.is_dir()) == [
        meta / "node_key", meta / "node_key.pub", outside,
    ]  # fmt: skip
    assert (tmp_path / "linked").is_symlink()
    assert says(garage_layout._LOOK) == ""


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

    whole = changed(fresh(file(THREE)), request_, given)
    acts = {name: len(server.acts) for name, server in whole.servers.items()}
    assert sum(acts.values()) > 60
    for name, count in acts.items():
        # Of the server that comes fewer: init is tried at each of them.
        for number in range(0, count, every(12 if name == "cp-4" else 4)):
            fake = fresh(file(THREE))
            other, cluster, _ = planned(fake, request_, given)
            other.servers[name].cut_at = number
            with pytest.raises(PhaseFailed):
                run(CHANGE_MEMBERS, cluster, Recorder(), skip=SKIP)
            again = changed(other, request_, given)
            assert listed(again).render() == listed(whole).render(), (name, number)
            assert again.garage.moved == 2, (name, number)
            assert agents(again) == agents(whole), (name, number)
            assert run(INIT, again.cluster, Recorder(), skip=ELSEWHERE) == [], (name, number)
