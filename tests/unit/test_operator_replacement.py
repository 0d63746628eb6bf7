"""When the operator replaces a node: what must hold of each decision, and what it says where it waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import yaml
from hypothesis import find, given, settings
from hypothesis import strategies as st

from kubeadm_registry import config
from kubeadm_registry.access.replacing import Standing, Work
from kubeadm_registry.config import Node, Spec
from kubeadm_registry.config.durations import seconds
from kubeadm_registry.members import Members
from kubeadm_registry.operator.replacement import Machine, Replace, Seen, Snapshot, Wait, decide
from tests.unit.fake_cluster import host_key
from tests.unit.test_members import FOUR, THREE, file

pytestmark = pytest.mark.slow

NOW = 1_795_000_000.0
HOUR = 3600.0
LISTED = Members(4, THREE)
KEY = host_key("cp-4")


@cache
def parsed(text: str) -> Spec:
    return config.parse(text, "cluster.yaml").spec


def spec(nodes: Mapping[str, str] = THREE, *, mode: str = "Automatic", pinned: bool = True) -> Spec:
    found = parsed(file(dict(nodes)) + f"  replacement: {{mode: {mode}}}\n")
    keyed = [node.model_copy(update={"host_key": host_key(node.name) if pinned else None}) for node in found.nodes]
    return found.model_copy(update={"nodes": tuple(keyed)})


def member(name: str, *, gone: str = "", listed: Members = LISTED, **more: Any) -> Seen:
    """A member that is well, and has not heard *gone* for two hours."""
    if name == gone:
        return Seen(name, answers=False)
    silent = {gone: 2 * HOUR} if gone else {}
    return replace(Seen(name, True, listed.generation, silent, "", Standing(True, listed, None)), **more)


def snapshot(*, gone: str = "", listed: Members = LISTED, **more: Any) -> Snapshot:
    machines = [Machine(name, (at,), name != gone, NOW - 2 * HOUR) for name, at in THREE.items()]
    machines.append(Machine("cp-4", ("10.0.0.14",), True, NOW - HOUR, spare=True, host_key=KEY))
    seen = tuple(member(name, gone=gone, listed=listed) for name in listed.nodes)
    away = {gone: NOW - 2 * HOUR} if gone else {}
    return replace(Snapshot(NOW, listed, seen, tuple(machines), away), **more)


def with_member(found: Snapshot, name: str, **more: Any) -> Snapshot:
    return replace(found, members=tuple(replace(one, **more) if one.name == name else one for one in found.members))


def with_machine(found: Snapshot, name: str, **more: Any) -> Snapshot:
    machines = tuple(replace(one, **more) if one.name == name else one for one in found.machines or ())
    return replace(found, machines=machines)


def reason(found: Replace | Wait | None) -> str:
    assert isinstance(found, Wait), found
    return found.reason


SWAPPED = {"cp-1": "10.0.0.11", "cp-3": "10.0.0.13", "cp-4": "10.0.0.14"}
NEW = Node(name="cp-4", address="10.0.0.14", host_key=KEY)


def test_nothing_is_done_while_all_is_well() -> None:
    assert decide(snapshot(), spec()) is None


@pytest.mark.parametrize("gone", ["cp-2", ""], ids=["dead", "alive"])
def test_an_edit_of_the_nodes_is_carried_out(gone: str) -> None:
    found = decide(snapshot(gone=gone), spec(SWAPPED, mode="Propose"))
    assert found == Replace("cp-2", NEW, ("cp-1", "cp-3"))


@pytest.mark.parametrize(
    ("nodes", "expected", "words"),
    [
        (FOUR, "JoinByHand", "kubeadm-registry join cp-4"),
        ({"cp-1": "10.0.0.11", "cp-4": "10.0.0.14", "cp-5": "10.0.0.15"}, "OneAtATime", "one at a time"),
        ({**THREE, "cp-2": "10.0.0.22"}, "AddressChanged", "kubeadm-registry replace cp-2 cp-2"),
    ],
)
def test_what_is_no_replacement_is_left_to_people(nodes: dict[str, str], expected: str, words: str) -> None:
    found = decide(snapshot(), spec(nodes))
    assert reason(found) == expected
    assert isinstance(found, Wait)
    assert words in found.message


def test_a_node_that_leaves_is_left_to_people() -> None:
    found = decide(snapshot(listed=Members(2, FOUR)), spec(THREE))
    assert reason(found) == "LeaveByHand"


def test_a_node_that_is_gone_is_replaced_by_a_spare_machine() -> None:
    found = snapshot(gone="cp-2")
    assert decide(found, spec()) == Replace("cp-2", NEW, ("cp-1", "cp-3"), edits=True)
    proposed = decide(found, spec(mode="Propose"))
    assert reason(proposed) == "Proposed"
    assert isinstance(proposed, Wait)
    assert f"{{name: cp-4, address: 10.0.0.14, hostKey: {KEY}}}" in proposed.message
    without = replace(found, machines=tuple(one for one in found.machines or () if one.name != "cp-2"))
    assert isinstance(decide(without, spec()), Replace), "its Node was deleted"


WORK = Work("cp-2", "cp-4", NOW - 60, ("move",), "Copy the data", runs=True)
AGAINST = {
    "Replacing": lambda s: with_member(s, "cp-3", standing=Standing(True, LISTED, WORK)),
    "HeardByAgents": lambda s: with_member(s, "cp-3", silent={}),
    "AgentsSilent": lambda s: with_member(s, "cp-3", generation=None),
    "NodesUnknown": lambda s: replace(s, machines=None),
    "NodeReady": lambda s: with_machine(s, "cp-2", ready=True),
    "GoneForAWhile": lambda s: replace(s, away={"cp-2": NOW - 60}),
    "SeveralGone": lambda s: with_member(s, "cp-3", answers=False),
    "MembersUnsettled": lambda s: with_member(s, "cp-1", generation=3),
    "NodeUnheard": lambda s: with_member(s, "cp-1", silent={"cp-2": 2 * HOUR, "cp-3": 1.0}),
    "NotWhole": lambda s: with_member(s, "cp-1", trouble="its storage is still copying what it missed"),
    "NoSpare": lambda s: with_machine(s, "cp-4", spare=False),
    "HostKeyMissing": lambda s: with_machine(s, "cp-4", host_key=""),
    "SpareInvalid": lambda s: with_machine(s, "cp-4", addresses=()),
    "ReplacingForbidden": lambda s: replace(s, members=tuple(
        replace(one, standing=Standing(False, LISTED, None)) for one in s.members)),
    "HelpersSilent": lambda s: replace(s, listed=None, members=()),
}  # fmt: skip


@pytest.mark.parametrize("expected", AGAINST)
def test_what_keeps_a_node_that_is_gone_from_being_replaced(expected: str) -> None:
    found = decide(AGAINST[expected](snapshot(gone="cp-2")), spec())
    assert reason(found) == expected
    assert isinstance(found, Wait)
    assert found.message


@pytest.mark.parametrize(
    "later",
    [
        lambda s: replace(s, away={}),
        lambda s: with_machine(s, "cp-2", since=NOW - 60),
        lambda s: with_member(s, "cp-1", silent={"cp-2": 60.0}),
    ],
    ids=["the operator has just started", "Kubernetes", "an agent"],
)
def test_each_of_them_must_have_missed_it_for_so_long(later: Any) -> None:
    assert reason(decide(later(snapshot(gone="cp-2")), spec())) == "GoneForAWhile"
    assert isinstance(decide(with_member(snapshot(gone="cp-2"), "cp-1", silent={"cp-2": None}), spec()), Replace)


@pytest.mark.parametrize("other", ["spare", "ready", "host_key"])
def test_a_machine_is_taken_that_is_all_that_is_asked(other: str) -> None:
    flaw = {"spare": {"spare": False}, "ready": {"ready": False}, "host_key": {}}[other]
    first = Machine("cp-0", ("10.0.0.9", "fd00::9"), True, NOW, spare=True, host_key=KEY)
    found = snapshot(gone="cp-2")
    decided = decide(replace(found, machines=(*(found.machines or ()), replace(first, **flaw))), spec())
    assert isinstance(decided, Replace)
    assert decided.new.name == ("cp-0" if other == "host_key" else "cp-4")
    assert decided.new.address == ("10.0.0.9" if other == "host_key" else "10.0.0.14")


def test_where_nodes_have_two_addresses_the_machine_has_them_too() -> None:
    dual = spec()
    vip = dual.vip.model_copy(update={"secondary_address": "fd00::10"})
    dual = dual.model_copy(update={"vip": vip})
    found = snapshot(gone="cp-2")
    assert reason(decide(found, dual)) == "SpareInvalid"
    both = with_machine(found, "cp-4", addresses=("fd00::14", "10.0.0.14"))
    decided = decide(both, dual)
    assert isinstance(decided, Replace)
    assert decided.new.addresses == ("10.0.0.14", "fd00::14")
    proposed = decide(both, dual.model_copy(update={"replacement": spec(mode="Propose").replacement}))
    assert isinstance(proposed, Wait)
    described = proposed.message.partition(": put ")[2].partition(" in the place")[0]
    assert Node.model_validate(yaml.safe_load(described)) == decided.new, "else the API server refuses it"
    assert decide(both, spec()) == Replace("cp-2", NEW, ("cp-1", "cp-3"), edits=True), "where they have one, it has one"


def test_a_machine_that_has_left_the_registry_is_no_spare() -> None:
    """In spec.nodes it would look like an older file, which is not carried out."""
    left = replace(LISTED, former={"cp-4": "10.0.0.14"})
    found = snapshot(gone="cp-2", listed=left)
    assert reason(decide(found, spec())) == "SpareFormer"
    other = Machine("cp-5", ("10.0.0.15",), True, NOW - HOUR, spare=True, host_key=KEY)
    decided = decide(replace(found, machines=(*(found.machines or ()), other)), spec())
    assert isinstance(decided, Replace)
    assert decided.new.name == "cp-5"


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        ({"addresses": ()}, "its Node has no InternalIP of its own of the virtual IP's family"),
        ({"addresses": ("fd00::14", "10.0.0.11")}, "its Node has no InternalIP of its own of the virtual IP's family"),
        ({"addresses": ("127.0.0.1",)}, "address: must be a unicast address"),
        ({"host_key": "AAAA" * 30000}, "hostKey: must be a public key of its sshd"),
    ],
)
def test_what_a_spare_lacks_is_named(flaw: dict[str, Any], words: str) -> None:
    found = decide(with_machine(snapshot(gone="cp-2"), "cp-4", **flaw), spec())
    assert isinstance(found, Wait)
    assert (found.reason, words in found.message) == ("SpareInvalid", True), found.message
    assert "Value error" not in found.message
    assert len(found.message) < 500


def test_an_edit_without_a_host_key_does_not_begin() -> None:
    found = decide(snapshot(gone="cp-2"), spec(SWAPPED, pinned=False))
    assert reason(found) == "HostKeyMissing"


def test_a_file_that_lists_a_node_again_that_has_left_undoes_nothing() -> None:
    """It is older than the replacement, whoever made that."""
    listed = Members(5, SWAPPED, former={"cp-2": "10.0.0.12"})
    found = decide(snapshot(listed=listed), spec())
    assert reason(found) == "Reverted"
    assert isinstance(found, Wait)
    assert "kubeadm-registry replace cp-4 cp-2" in found.message
    never = Members(5, SWAPPED, former={"cp-7": "10.0.0.17"})
    assert isinstance(decide(snapshot(listed=never), spec()), Replace)


def test_who_was_to_replace_a_node_that_has_left_otherwise_replaces_no_other() -> None:
    """cp-4 failed to take the place of cp-2, and somebody has had cp-5 do it, by the command."""
    now = Members(5, {"cp-1": "10.0.0.11", "cp-3": "10.0.0.13", "cp-5": "10.0.0.15"}, former={"cp-2": "10.0.0.12"})
    found = decide(snapshot(listed=now, record=("cp-2", "cp-4")), spec(SWAPPED))
    assert reason(found) == "Reverted"
    assert isinstance(found, Wait)
    assert "kubeadm-registry replace cp-5 cp-4" in found.message
    assert isinstance(decide(snapshot(listed=now), spec(SWAPPED)), Replace), "somebody asks for that"
    back = spec({"cp-1": "10.0.0.11", "cp-2": "10.0.0.12", "cp-4": "10.0.0.14"})
    assert decide(snapshot(record=("cp-2", "cp-4")), back) == Replace("cp-3", NEW, ("cp-1", "cp-2")), "cp-2 is back"


BROKEN = Work("cp-2", "cp-4", NOW - 600, ("arrive/storage", "move/frontend"))


@pytest.mark.parametrize(
    ("work", "listed", "state", "expected"),
    [
        (BROKEN, LISTED, {"trouble": "level 2"}, True),
        (BROKEN, LISTED, {"generation": None}, True),
        (replace(BROKEN, ended=NOW, error={"message": "", "code": "", "hint": ""}), LISTED, {"trouble": "x"}, True),
        (BROKEN, LISTED, {}, False),
        (replace(BROKEN, steps=("arrive/storage",)), LISTED, {"trouble": "x"}, False),
        (replace(BROKEN, ended=NOW), LISTED, {"trouble": "x"}, False),
        (BROKEN, replace(LISTED, former={"cp-4": "10.0.0.14"}), {"trouble": "x"}, False),
    ],
    ids=["its registry is stopped", "it is uninstalled", "failed", "it is well", "nothing moved", "done", "undone"],
)
def test_an_edit_that_is_taken_back_too_late_is_told(
    work: Work, listed: Members, state: dict[str, Any], expected: bool
) -> None:
    """The node that spec.nodes lists again has given its data away, and no command brings it back but that one."""
    found = with_member(snapshot(listed=listed), "cp-1", standing=Standing(True, listed, work))
    decided = decide(with_member(found, "cp-2", **state), spec())
    if not expected:
        assert decided is None
        return
    assert reason(decided) == "MembersUnsettled"
    assert isinstance(decided, Wait)
    assert "`kubeadm-registry replace cp-2 cp-4`" in decided.message


def test_what_was_begun_goes_on_by_another_member() -> None:
    """The list is the new one; some nodes have the one before."""
    listed = Members(5, SWAPPED, before=tuple(THREE), former={"cp-2": "10.0.0.12"})
    broken = Work(
        "cp-2", "cp-4", NOW - 600, ("members",), ended=NOW - 60, error={"message": "", "code": "", "hint": ""}
    )
    found = snapshot(listed=listed)
    found = with_member(found, "cp-1", standing=Standing(True, listed, broken), trouble="level 2")
    found = with_member(found, "cp-4", standing=None, generation=None, answers=False)
    assert decide(found, spec(SWAPPED)) == Replace("cp-2", NEW, ("cp-3", "cp-1"))
    assert reason(decide(with_member(found, "cp-3", answers=False), spec(SWAPPED))) == "NodeUnreachable"
    assert reason(decide(found, spec(THREE))) == "MembersUnsettled", "nobody asks for it any more"
    joining = Members(5, FOUR, before=tuple(THREE))
    assert reason(decide(snapshot(listed=joining), spec(FOUR))) == "MembersUnsettled"


def test_one_node_is_not_replaced() -> None:
    one = Members(1, {"cp-1": "10.0.0.11"})
    assert reason(decide(snapshot(listed=one), spec({"cp-4": "10.0.0.14"}))) == "OneNode"
    assert decide(snapshot(listed=one, gone="cp-1"), spec(one.nodes)) is None


NAMES = ("cp-1", "cp-2", "cp-3", "cp-4", "cp-5", "cp-6")
ADDRESSES = {name: f"10.0.0.{number}" for number, name in enumerate(NAMES, 11)}


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Snapshot, Spec]:
    """Mostly near to where something is done."""
    rarely, mostly = (lambda: draw(st.integers(0, 24)) == 0), (lambda: draw(st.integers(0, 24)) != 0)
    count = draw(st.sampled_from((1, 3, 3, 3, 4, 5)))
    names = NAMES[:count]
    gone = draw(st.sampled_from(("", *names)))
    swapped = [name for name in names if not (draw(st.booleans()) and name == gone)]
    if len(swapped) < count and mostly():
        swapped.append("cp-6")
    before = names if rarely() else ()
    listed = Members(5 if rarely() else 4, {name: ADDRESSES[name] for name in names}, before)
    work = Work("cp-2", "cp-6", NOW, runs=rarely()) if rarely() else None
    seen = []
    for name in names:
        silent: dict[str, float | None] = {} if not gone or name == gone or draw(st.integers(0, 5)) == 0 else {
            gone: draw(st.sampled_from((2 * HOUR, 2 * HOUR, None, 60.0)))}  # fmt: skip
        if rarely():
            silent[draw(st.sampled_from(names))] = 1.0
        seen.append(Seen(
            name, rarely() if name == gone else mostly(), None if rarely() else 4,
            silent, "copying" if rarely() else "", Standing(mostly(), listed, work) if mostly() else None,
        ))  # fmt: skip
    machines = [Machine(name, (at,), name != gone or rarely(), NOW - 2 * HOUR, spare=mostly(),
                        host_key=host_key(name) if mostly() else "") for name, at in ADDRESSES.items()]  # fmt: skip
    away = {gone: NOW - (60.0 if rarely() else 2 * HOUR)} if gone and mostly() else {}
    found = Snapshot(NOW, listed if mostly() else None, tuple(seen), tuple(machines) if mostly() else None, away)
    sizes_right = len(swapped) in (1, 3, 4, 5)
    wanted = {name: ADDRESSES[name] for name in (swapped if sizes_right else names)}
    return found, spec(wanted, mode=draw(st.sampled_from(("Propose", "Automatic"))), pinned=mostly())


@settings(max_examples=1500, deadline=None)
@given(worlds())
def test_whatever_was_seen_no_replacement_harms(world: tuple[Snapshot, Spec]) -> None:
    found, wanted = world
    done = decide(found, wanted)
    if not isinstance(done, Replace):
        return
    assert found.listed is not None
    members = {one.name: one for one in found.members}
    stay = [one for name, one in members.items() if name != done.old]
    assert done.old in {*members, *found.listed.before}
    assert done.new.host_key
    assert not any(one.standing and one.standing.work and one.standing.work.runs for one in stay)
    assert all(one.answers for one in stay if one.name != done.new.name)
    assert 2 * len(stay) > len(members), "a majority stays"
    for name in done.by:
        standing = members[name].standing
        assert standing is not None
        assert standing.allowed
        assert name not in (done.old, done.new.name)
    if found.listed.before:
        return  # it was begun before, when all of the rest held
    assert all(one.generation == found.listed.generation and not one.trouble for one in stay)
    assert not [name for one in stay for name in one.silent if name != done.old]
    assert len({*wanted_names(wanted)} ^ {*members}) in ((0,) if done.edits else (2,))
    if done.edits:
        assert wanted.replacement.mode == "Automatic"
        assert not members[done.old].answers
        after = seconds(wanted.replacement.after)
        for one in stay:
            age = one.silent[done.old]
            assert age is None or age >= after
        assert NOW - found.away[done.old] >= after
        assert not any(one.ready for one in found.machines or () if one.name == done.old)
        assert any(one.name == done.new.name and one.spare and one.ready for one in found.machines or ())


def wanted_names(wanted: Spec) -> list[str]:
    return [node.name for node in wanted.nodes]


@pytest.mark.parametrize("edits", [True, False])
def test_there_are_worlds_with_replacements_of_both_kinds(edits: bool) -> None:
    def has(world: tuple[Snapshot, Spec]) -> bool:
        done = decide(*world)
        return isinstance(done, Replace) and done.edits is edits

    find(worlds(), has, settings=settings(max_examples=5000, deadline=None))
