"""Half of the nodes or more are lost: what the others become, what is refused, and what a killed run leaves."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace

import pytest

from kubeadm_registry import pki
from kubeadm_registry.access import recovery, session
from kubeadm_registry.access.session import Prompts
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import agent, garage, garage_layout, health, helper, links, replacing, s3
from kubeadm_registry.components.garage_layout import ClusterLayout, CopiesMade
from kubeadm_registry.components.services import backend, frontend
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import ConnectionFailed, Error, PhaseFailed
from kubeadm_registry.members import Members
from kubeadm_registry.phases import renewal
from kubeadm_registry.phases.helper import allow
from kubeadm_registry.phases.renewal import Renewal
from kubeadm_registry.phases.workflows import INIT, RECOVER, renew_blobs
from kubeadm_registry.transport.host import Host, Transport
from kubeadm_registry.transport.ssh import UNREACHABLE
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.fakes import FakeTransport
from tests.unit.installed import fresh
from tests.unit.kills import every
from tests.unit.test_garage_layout import Clock
from tests.unit.test_members import FOUR, THREE, agents, file, listed
from tests.unit.test_workflow import Recorder

pytestmark = pytest.mark.slow

LEFT = {"cp-1": "10.0.0.11"}
OTHERS = {**LEFT, "cp-8": "10.0.0.18", "cp-9": "10.0.0.19"}
MIXED = {"cp-2": "10.0.0.12", **LEFT, "cp-9": "10.0.0.19"}
"""One lost node comes back bare, as the first of the file; another one comes in place of the other."""


def installed(nodes: dict[str, str] = THREE) -> FakeCluster:
    return fresh(file(nodes))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(garage_layout, "time", one)
    return one


def after(fake: FakeCluster, given: dict[str, str], left: tuple[str, ...] = ("cp-1",)) -> FakeCluster:
    """The servers of *given*: those that are *left* as they are, and bare ones for all others."""
    kept = {name: server for name, server in fake.servers.items() if name in left}
    return again(replace(fake, servers=kept), given)


def again(fake: FakeCluster, given: dict[str, str]) -> FakeCluster:
    """The same servers with another file."""
    known = set(fake.servers)
    other = fake.with_file(file(given))
    other.garage.given_up = True
    for name in other.servers.keys() - known:
        for one in other.programs.values():
            other._unpack(other.servers[name], one)
    return other


def recovered(fake: FakeCluster) -> FakeCluster:
    """*fake* after a run to its end."""
    cluster = recovery.planned(fake.cluster)
    run(INIT if cluster.change is None else RECOVER, cluster, Recorder(), skip=ELSEWHERE)
    return fake


# What is planned


def test_two_of_three_are_lost_and_others_come() -> None:
    cluster = recovery.planned(after(installed(), OTHERS).cluster)
    assert cluster.change is not None
    assert (cluster.change.arriving, cluster.change.lost) == (("cp-8", "cp-9"), True)
    assert {name: one.address for name, one in cluster.change.leaving.items()} == {
        "cp-2": "10.0.0.12", "cp-3": "10.0.0.13",
    }  # fmt: skip
    found = cluster.members
    assert (found.generation, dict(found.nodes), found.before) == (3, OTHERS, ())
    assert found.former == {"cp-2": "10.0.0.12", "cp-3": "10.0.0.13"}
    said = recovery.given_up(cluster)
    assert "everything that is not on cp-1 will be lost permanently" in said
    assert "cp-2 (10.0.0.12), cp-3 (10.0.0.13) will be excluded" in said


def test_bare_nodes_under_the_old_names_change_no_members() -> None:
    cluster = recovery.planned(after(installed(), THREE).cluster)
    assert cluster.change is not None
    assert (cluster.change.arriving, dict(cluster.change.leaving)) == (("cp-2", "cp-3"), {})
    assert cluster.members.generation == 1
    assert "will be excluded" not in recovery.given_up(cluster)


def test_where_nothing_is_lost_nothing_changes() -> None:
    fake = installed()
    assert recovery.planned(fake.cluster).change is None
    one_lost = after(fake, THREE, left=("cp-1", "cp-3"))
    cluster = recovery.planned(one_lost.cluster)
    assert (cluster.change, recovery.given_up(cluster)) == (None, "")


@pytest.mark.parametrize(("lost", "code"), [(("cp-3", "cp-4"), ""), (("cp-4",), "MajorityLeft")])
def test_half_of_four_is_too_little_and_three_are_not(lost: tuple[str, ...], code: str) -> None:
    left = {name: at for name, at in FOUR.items() if name not in lost}
    fake = after(installed(FOUR), {**left, "cp-9": "10.0.0.19"}, left=tuple(left))
    if not code:
        cluster = recovery.planned(fake.cluster)
        assert cluster.change is not None and cluster.change.arriving == ("cp-9",)
        return
    with pytest.raises(Error) as caught:
        recovery.planned(fake.cluster)
    assert caught.value.code == code
    assert "`replace`" in caught.value.hint


def test_a_change_that_was_under_way_is_given_up_with_the_nodes() -> None:
    """cp-2 and cp-3 were lost in the middle of a replacement."""
    fake = installed()
    begun = Members(1, THREE).changed_to({**LEFT, "cp-3": "10.0.0.13", "cp-4": "10.0.0.14"})
    fake.servers["cp-1"].put("/etc/kubeadm-registry/members.json", begun.render())
    cluster = recovery.planned(after(fake, OTHERS).cluster)
    assert cluster.change is not None
    assert sorted(cluster.change.leaving) == ["cp-2", "cp-3", "cp-4"]
    assert (cluster.members.generation, cluster.members.before) == (4, ())


def test_lost_nodes_that_were_given_a_newer_list_learn_that_they_have_left() -> None:
    """`leave cp-4` was killed when cp-2 and cp-3 had the list, which cp-1 never got."""
    begun = Members(1, FOUR).changed_to(THREE)
    cluster = recovery.planned(after(installed(FOUR), OTHERS).cluster)
    assert cluster.members.generation > begun.generation, "a later list alone says so"


def test_a_registry_of_the_first_release_has_no_list() -> None:
    fake = after(installed(), OTHERS)
    del fake.servers["cp-1"].tree["/etc/kubeadm-registry/members.json"]
    cluster = recovery.planned(fake.cluster)
    assert cluster.change is not None
    assert sorted(cluster.change.leaving) == ["cp-2", "cp-3"]
    assert (cluster.members.generation, sorted(cluster.members.former)) == (3, ["cp-2", "cp-3"])


def test_bare_nodes_alone_are_no_registry() -> None:
    with pytest.raises(Error) as caught:
        recovery.planned(FakeCluster.of(file(THREE)).cluster)
    assert caught.value.code == "NothingLeft"
    assert "`restore`" in caught.value.hint


def test_a_node_with_a_registry_that_is_no_member_is_refused() -> None:
    fake = after(installed(), OTHERS)
    fake.servers["cp-9"].put(agent.CONFIG, b"{}")
    with pytest.raises(Error) as caught:
        recovery.planned(fake.cluster)
    assert caught.value.code == "MembersDiffer"
    assert "cp-9" in caught.value.message


def test_one_node_cannot_be_made_of_three() -> None:
    with pytest.raises(Error) as caught:
        recovery.planned(after(installed(), LEFT).cluster)
    assert caught.value.code == "CopiesDiffer"
    assert caught.value.hint.startswith("list three nodes or more in the cluster file")


# Whether the lost nodes are dead


def judged(
    monkeypatch: pytest.MonkeyPatch, *, ssh: str = UNREACHABLE, silent: bool = True, presence: str = "silent",
    given: dict[str, str] = OTHERS, begun: bool = False,
) -> Error | None:  # fmt: skip
    """What stands against a run, where cp-2 and cp-3 answer by SSH with the error *ssh* (none: they let us in).

    *begun*: an earlier one was killed when it had stored the list.
    """
    fake = after(installed(), given)
    if begun:
        run(RECOVER, recovery.planned(fake.cluster), Recorder(), only=("base", "secrets", "members"))
        fake = again(fake, given)
    cluster = recovery.planned(fake.cluster)
    asked: list[str] = []

    def reach(_: RegistryCluster, node: Node, __: Prompts) -> Transport:
        asked.append(node.address)
        if ssh:
            raise ConnectionFailed("no", code=ssh)
        return FakeTransport(node.name)

    monkeypatch.setattr(session, "reach", reach)
    lost = {"cp-2": "10.0.0.12", "cp-3": "10.0.0.13"}
    shut = "".join(f"{at} 5445\n" for at in lost.values()) if silent else "10.0.0.13 5445\n"
    left = fake.servers["cp-1"]
    left.answer("sh", "-c", links.BLOCKED, "blocked", with_=shut)
    peers = {name: {"address": at, "presence": presence} for name, at in lost.items()}
    state = {"time": 1000.0, "peers": peers}
    left.answer("sh", "-c", health._ASK, "health", with_=f"1000.5\n---\n{json.dumps(state)}")
    assert cluster.change is not None
    try:
        recovery.require_dead(cluster, cluster.change, Prompts())
    except Error as error:
        return error
    assert sorted(asked) == sorted(set(lost.values()) - set(given.values()))
    return None


def test_nodes_that_answer_nobody_are_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judged(monkeypatch) is None
    assert judged(monkeypatch, presence="unheard") is None


@pytest.mark.parametrize(
    ("given", "words"),
    [({"ssh": ""}, "it answers SSH"), ({"ssh": "HostKeyUnknown"}, "it answers SSH"),
     ({"silent": False}, "it answers cp-1 at TCP port 5445"), ({"presence": "fresh"}, "the agent of cp-1 hears it"),
     ({"presence": "gone"}, "the agent of cp-1 hears it")],
)  # fmt: skip
def test_a_lost_node_that_answers_anybody_is_alive(
    given: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = judged(monkeypatch, **given)  # type: ignore[arg-type]
    assert error is not None
    assert (error.code, words in error.message) == ("NodeAlive", True), error.message


def test_a_lost_node_that_comes_back_once_the_others_have_a_list_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the file of before every other command is refused, so nobody is told to bring it back."""
    error = judged(monkeypatch, ssh="", begun=True)
    assert error is not None
    assert (error.code, "switch it off" in error.hint, "bring the node back" in error.hint) == (
        "NodeAlive",
        True,
        False,
    )


def test_an_address_that_another_node_has_now_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**LEFT, "cp-8": "10.0.0.12", "cp-9": "10.0.0.13"}
    assert judged(monkeypatch, ssh="", silent=False, presence="fresh", given=given) is None


# What is done


@pytest.mark.parametrize("given", [OTHERS, MIXED, THREE], ids=["others", "one comes back", "both come back"])
def test_what_is_left_becomes_a_whole_registry(given: dict[str, str]) -> None:
    fake = recovered(after(installed(), given))
    found = listed(fake)
    assert (dict(found.nodes), found.before) == (given, ())
    assert {one["generation"] for one in agents(fake)} == {1 if given == THREE else 3}
    assert {role["zone"] for role in fake.garage.roles} == set(given)
    assert run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE) == []
    assert recovery.planned(fake.cluster).change is None
    kept_out = sorted(set(THREE) - set(given))
    assert all([one["name"] for one in found.get("former", ())] == kept_out for found in agents(fake))
    for server in fake.servers.values():
        rules = server.content("/etc/kubeadm-registry/guard.nft").decode()
        assert all(f"{THREE[name]}" in rules for name in kept_out)


def test_the_lost_nodes_are_kept_out_before_the_storage_moves() -> None:
    fake = after(installed(), OTHERS)
    left = fake.servers["cp-1"]
    left.acts.clear()
    recovered(fake)
    order = [next(n for n, act in enumerate(left.acts) if words in act)
             for words in ("members.json", "guard.nft", "garage ApplyClusterLayout", "agent.json")]  # fmt: skip
    assert order == sorted(order)


def test_a_dry_run_touches_nothing() -> None:
    fake = after(installed(), OTHERS)
    before = fake.snapshot()
    actions = run(RECOVER, recovery.planned(fake.cluster), Recorder(), skip=ELSEWHERE, dry_run=True)
    assert any("cp-8, cp-9 added and cp-2, cp-3 removed" in action.diff for action in actions)
    assert fake.snapshot() == before
    assert fake.garage.version == 1


@pytest.mark.parametrize("given", [OTHERS, MIXED], ids=["others", "one comes back"])
def test_a_run_that_is_killed_anywhere_is_completed_by_the_next(given: dict[str, str]) -> None:
    def begin() -> FakeCluster:
        return after(installed(), given)

    whole = recovered(begin())
    acts = {name: len(server.acts) for name, server in whole.servers.items()}
    assert sum(acts.values()) > 100
    for name, count in acts.items():
        for number in range(0, count, every(3 if name == "cp-1" else 16)):
            fake = begin()
            cluster = recovery.planned(fake.cluster)
            fake.servers[name].cut_at = number
            with pytest.raises(PhaseFailed):
                run(RECOVER, cluster, Recorder(), skip=ELSEWHERE)
            done = recovered(again(fake, given))
            assert listed(done).render() == listed(whole).render(), (name, number)
            assert done.garage.moved == 2, (name, number)
            assert agents(done) == agents(whole), (name, number)
            assert run(INIT, done.cluster, Recorder(), skip=ELSEWHERE) == [], (name, number)


def test_until_the_agents_have_the_new_list_lost_nodes_are_looked_for_again() -> None:
    """A run was killed when the nodes had the list, and the agent that is left still voted with cp-2 and cp-3."""
    fake = after(installed(), OTHERS)
    cluster = recovery.planned(fake.cluster)
    run(RECOVER, cluster, Recorder(), only=("base", "secrets", "members"))
    change = recovery.planned(again(fake, OTHERS).cluster).change
    assert change is not None
    assert sorted(change.leaving) == ["cp-2", "cp-3"]


def test_an_agent_that_still_votes_with_lost_nodes_when_the_new_ones_have_theirs() -> None:
    fake = after(installed(), OTHERS)
    old = fake.servers["cp-1"].content(agent.CONFIG)
    recovered(fake)
    fake.servers["cp-1"].put(agent.CONFIG, old)
    change = recovery.planned(fake.cluster).change
    assert change is not None
    assert (change.arriving, sorted(change.leaving)) == ((), ["cp-2", "cp-3"])
    assert recovery.planned(recovered(fake).cluster).change is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"peers": 1}', b'{"peers": [{"name": "cp-2"}]}', b"\xff"])
def test_an_agent_whose_file_is_damaged_votes_with_nobody(content: bytes) -> None:
    fake = after(installed(), OTHERS)
    fake.servers["cp-1"].put(agent.CONFIG, content)
    change = recovery.planned(fake.cluster).change
    assert change is not None
    assert (change.arriving, sorted(change.leaving)) == (("cp-8", "cp-9"), ["cp-2", "cp-3"])


@pytest.mark.parametrize("given", [OTHERS, THREE], ids=["others", "both come back"])
def test_the_keys_of_the_helper_come_to_the_new_nodes_wherever_a_run_is_killed(given: dict[str, str]) -> None:
    public, private = "ssh-ed25519 AAAA", pki.ssh_key()[0]

    def begin() -> FakeCluster:
        fake = installed()
        run(allow(public, private), fake.cluster, Recorder())
        return after(fake, given)

    def keys(fake: FakeCluster) -> list[tuple[bytes, bytes]]:
        return [(one.content(helper.KEYS), one.content(replacing.KEY)) for one in fake.servers.values()]

    wanted = [(helper.key_line(public), private.encode())] * 3
    whole = begin()
    new = next(name for name in given if name not in LEFT)
    assert keys(recovered(whole)) == wanted
    acts = whole.servers[new].acts
    voting = max(number for number, act in enumerate(acts) if "agent.json" in act)
    for number in sorted({*range(0, len(acts), every(16)), voting + 1}):
        fake = begin()
        cluster = recovery.planned(fake.cluster)
        fake.servers[new].cut_at = number
        with pytest.raises(PhaseFailed):
            run(RECOVER, cluster, Recorder(), skip=ELSEWHERE)
        assert keys(recovered(again(fake, given))) == wanted, number


# The copies


def ready(given: dict[str, str] = OTHERS) -> tuple[FakeCluster, Cluster]:
    """All storages run, and the layout is the new one."""
    fake = after(installed(), given)
    cluster = recovery.planned(fake.cluster)
    run(RECOVER, cluster, Recorder(), only=("base", "secrets", "members", "network", "arrive"))
    ClusterLayout(cluster, 3).apply(cluster.hosts[0])
    return fake, cluster


def test_the_layout_of_before_is_given_up(clock: Clock) -> None:
    fake, cluster = ready()
    fake.garage.dead = {cluster.secrets.node_id("cp-1")}  # what it waits for is not the word of the lost ones alone
    copies = CopiesMade(cluster, garage.BLOCK)
    copies.apply(cluster.hosts[0])
    assert not fake.garage.dead
    assert copies.diff(cluster.hosts[0]) is None
    asked = [act for server in fake.servers.values() for act in server.acts if "LaunchRepair" in act]
    assert len(asked) == 3


def test_it_ends_when_no_node_has_had_work_for_a_while(clock: Clock) -> None:
    """One that was seen idle may get work from another, which still sends it the tables."""
    fake, cluster = ready()
    looks = [0] * 5 + [7, 3] + [0] * 9 + [5]
    fake.garage.copies = [number for number in looks for _ in cluster.hosts]
    CopiesMade(cluster, garage.BLOCK).apply(cluster.hosts[0])
    assert fake.garage.copies == [5] * len(cluster.hosts)


def test_blocks_that_no_node_has_are_not_waited_for(clock: Clock) -> None:
    fake, cluster = ready()
    fake.garage.failed = 12
    fake.garage.copies = [number for number in (14, 12, 3) for _ in cluster.hosts]
    CopiesMade(cluster, garage.BLOCK).apply(cluster.hosts[0])
    assert clock.now < 120


# Blobs that a bundle brings again


@pytest.mark.parametrize(("kind", "restarts"), [("distribution", 1), ("zot", 0)])
def test_blobs_that_cannot_be_read_are_forgotten(kind: str, restarts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """zot remembers no blob; Distribution does, and restarts node by node, whatever a run before has deleted."""
    fake = FakeCluster.of(file(THREE).replace("spec:\n", f"spec:\n  frontend: {{type: {kind}}}\n"))
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    there, deleted = {"one", "two"}, list[str]()

    def delete(_: Cluster, host: Host, __: str, keys: Collection[str], **___: object) -> frozenset[str]:
        deleted.extend(f"{host.name} {key}" for key in sorted(keys))
        there.difference_update(keys)
        return frozenset(keys)

    storage = backend(fake.config.spec)
    monkeypatch.setattr(storage, "blocks", lambda _, __, keys: [{key: 5} if key in there else None for key in keys])
    monkeypatch.setattr(storage, "lacking", lambda _, __, wanted: frozenset(wanted))
    monkeypatch.setattr(s3, "delete", delete)
    monkeypatch.setattr(renewal, "serves", lambda *_: None)
    unit = frontend(fake.config.spec).SERVICE.unit
    for keys in (frozenset({"one", "two"}), frozenset[str]()):
        before = {name: server.unit(unit).starts for name, server in fake.servers.items()}
        run(renew_blobs(Renewal(keys)), fake.cluster, Recorder())
        after_it = {name: server.unit(unit).starts for name, server in fake.servers.items()}
        assert after_it == {name: count + restarts for name, count in before.items()}
    assert deleted == ["cp-1 one", "cp-1 two"]
