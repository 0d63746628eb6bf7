"""Whether a node of the registry is to be replaced now, by which machine, or why not: a function of what was seen.

What holds of every ``Replace``, whatever was seen (``tests/unit/test_operator_replacement.py``):

- more than half of the members stay, each of them answers, serves, hears all the others, and copies nothing;
- nobody replaces a node at that time, and no other change of the members is under way;
- the new machine is known by its SSH host key;
- a node that nobody took out of ``spec.nodes`` has been silent for all other agents, and for the operator, for the time
  that ``spec.replacement`` says; what Kubernetes says of it is asked besides, and decides nothing alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from kubeadm_registry.access.replacing import Standing
from kubeadm_registry.config import Node, Spec
from kubeadm_registry.config.durations import seconds
from kubeadm_registry.config.explain import explain
from kubeadm_registry.members import Members

SPARE = "kubeadm-registry.dev/spare"
"""Label of a Kubernetes Node: this machine may take the place of a node that is gone."""
HOST_KEY = "kubeadm-registry.dev/ssh-host-key"
"""Annotation of such a Node: the key that its sshd shows."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A member as it was found.

    *answers*: its helper, its agent or its registry did. *generation* is that of its agent's list of members, None if
    the agent says nothing. *silent* are the members that its agent does not hear, with the seconds since when, None if
    it never heard them. *trouble*: why it is not to be relied on; empty if it is. *standing* is what its helper says of
    replacements. *why* says why its agent could not be asked; empty if that is not known.
    """

    name: str
    answers: bool
    generation: int | None = None
    silent: Mapping[str, float | None] = field(default_factory=dict)
    trouble: str = ""
    standing: Standing | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """A Node of Kubernetes: whether it is *ready*, and since when that is so (seconds since 1970).

    *spare*: it has the label, and is of the control plane. *host_key* is that of its annotation, empty if it has none.
    """

    name: str
    addresses: tuple[str, ...]
    ready: bool
    since: float
    spare: bool = False
    host_key: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was seen at the time *now*, seconds since 1970.

    *listed* is the newest list of members, None if no node told one; *why* says what kept the first from it. *machines*
    None: Kubernetes did not tell. *away*: since when nodes do not serve, by the operator's own looks. *record*: the old
    and the new node of the replacement that the operator knows of last; empty if there was none.
    """

    now: float
    listed: Members | None
    members: tuple[Seen, ...]
    machines: tuple[Machine, ...] | None = None
    away: Mapping[str, float] = field(default_factory=dict)
    record: tuple[str, str] = ("", "")
    why: str = ""


@dataclass(frozen=True, slots=True)
class Replace:
    """Put *new* in the place of *old*, by one of the members *by*. *edits*: ``spec.nodes`` does not say so yet."""

    old: str
    new: Node
    by: tuple[str, ...]
    edits: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is to be done now: *reason* is a word for programs, *message* says why, and what a person can do."""

    reason: str
    message: str


def decide(snapshot: Snapshot, spec: Spec) -> Replace | Wait | None:
    """What is to be done about the nodes of *spec*; None: every member is there, and they are those of *spec*."""
    listed = snapshot.listed
    if listed is None:
        because = f": {snapshot.why}" if snapshot.why else ""
        return Wait("HelpersSilent", f"no node reports which nodes the registry consists of{because}")
    for one in snapshot.members:
        work = one.standing.work if one.standing is not None else None
        if work is not None and work.runs:
            step = work.step or "it begins"
            return Wait("Replacing", f"{work.new} takes the place of {work.old}: {step} (by {one.name})")
    if not listed.settled:
        return _completed(snapshot, spec, listed)
    if dict(listed.nodes) == {node.name: node.address for node in spec.nodes}:
        return _gone(snapshot, spec, listed) or next(_taken_back(snapshot, listed), None)
    return _edited(snapshot, spec, listed)


def _edited(snapshot: Snapshot, spec: Spec, listed: Members) -> Replace | Wait:
    """The members are not those of *spec*: whether that is one replacement, and can be done now."""
    wanted = {node.name: node.address for node in spec.nodes}
    come, go = sorted(wanted.keys() - listed.nodes.keys()), sorted(listed.nodes.keys() - wanted.keys())
    moved = sorted(name for name, at in wanted.items() if listed.nodes.get(name, at) != at)
    by_hand = next(_by_hand(listed, moved, come, go), None) or next(_overtaken(snapshot, listed, come[0], go[0]), None)
    if by_hand is not None:
        return by_hand
    return next(_against(snapshot, listed, go[0]), None) or _by(snapshot, go[0], spec.node(come[0]))


def _by_hand(listed: Members, moved: Sequence[str], come: Sequence[str], go: Sequence[str]) -> Iterator[Wait]:
    """What is left to people: addresses change, nodes come, or go, in ``spec.nodes``."""
    if moved:
        command = f"kubeadm-registry replace {moved[0]} {moved[0]}"
        yield Wait("AddressChanged", f"{moved[0]} has another address in spec.nodes: run `{command}`")
    elif len(come) > 1 or len(go) > 1:
        what = f"spec.nodes adds {', '.join(come) or 'none'} and omits {', '.join(go) or 'none'}"
        yield Wait("OneAtATime", f"{what}: nodes are replaced one at a time")
    elif not go:
        yield Wait("JoinByHand", f"spec.nodes adds {come[0]}: run `kubeadm-registry join {come[0]}`")
    elif not come:
        yield Wait("LeaveByHand", f"spec.nodes omits {go[0]}: run `kubeadm-registry leave {go[0]}`")
    elif come[0] in listed.former:
        # Nobody wants this who applies an older file, or has replaced a node without the operator.
        yield Wait(
            "Reverted",
            f"spec.nodes lists {come[0]}, which has left the registry, and omits {go[0]}: bring spec.nodes up to date. "
            f"If {come[0]} is to come back, run `kubeadm-registry replace {go[0]} {come[0]}`",
        )


def _overtaken(snapshot: Snapshot, listed: Members, come: str, go: str) -> Iterator[Wait]:
    """*come* was to take the place of a node that has left by now without it: nobody asked for that of *go*."""
    old, new = snapshot.record
    if new == come and old not in listed.nodes:
        yield Wait(
            "Reverted",
            f"spec.nodes lists {come} in the place of {old}, which has left the registry otherwise, and omits {go}: "
            f"bring spec.nodes up to date. If {come} is to take the place of {go}, run "
            f"`kubeadm-registry replace {go} {come}`",
        )


def _completed(snapshot: Snapshot, spec: Spec, listed: Members) -> Replace | Wait:
    """A change of the members was begun, and nobody works on it: if it is one that *spec* asks for, it goes on."""
    come, go = sorted(listed.nodes.keys() - set(listed.before)), sorted(set(listed.before) - listed.nodes.keys())
    wanted = {node.name: node.address for node in spec.nodes}
    if len(come) != 1 or len(go) != 1 or dict(listed.nodes) != wanted:
        return Wait("MembersUnsettled", "another change of the members is not finished: run `kubeadm-registry init` "
                    f"with the cluster file that lists {', '.join(sorted(listed.nodes))}")  # fmt: skip
    away = _away(snapshot, {*go, *come})
    return away or _by(snapshot, go[0], spec.node(come[0]))


def _gone(snapshot: Snapshot, spec: Spec, listed: Members) -> Replace | Wait | None:
    """The members are those of *spec*: whether one of them is gone, and which machine may take its place."""
    away = [one.name for one in snapshot.members if not one.answers]
    if not away or not spec.highly_available:
        return None
    if len(away) > 1:
        return Wait("SeveralGone", f"{', '.join(away)} do not answer: bring all but one of them back")
    old = away[0]
    why = next(_not_gone(snapshot, spec, old), None) or next(_against(snapshot, listed, old), None)
    if why is not None:
        return why
    new = _spare(snapshot, spec, listed, old)
    if isinstance(new, Wait):
        return new
    if spec.replacement.mode == "Propose":
        second = f"secondaryAddress: {new.secondary_address}, " if new.secondary_address is not None else ""
        return Wait("Proposed", f"{old} is gone, and {new.name} can take its place: put {{name: {new.name}, address: "
                    f"{new.address}, {second}hostKey: {new.host_key}}} in the place of {old} in spec.nodes, or run "
                    f"`kubeadm-registry replace {old} {new.name}`")  # fmt: skip
    found = _by(snapshot, old, new)
    return found if isinstance(found, Wait) else Replace(old, new, found.by, edits=True)


def _taken_back(snapshot: Snapshot, listed: Members) -> Iterator[Wait]:
    """A node of *listed* is not well, and an edit that was taken back has had its data moved: nobody completes that."""
    ill = {one.name for one in snapshot.members if one.generation is None or one.trouble}
    for one in snapshot.members:
        work = one.standing.work if one.standing is not None else None
        if work is None or work.old not in ill or work.new in {*listed.nodes, *listed.former}:
            continue
        if (work.broken or work.error is not None) and any(step.startswith("move/") for step in work.steps):
            yield Wait(
                "MembersUnsettled",
                f"{work.new} was about to take the place of {work.old}, which spec.nodes lists again and which may "
                f"have given its data away: put {work.new} back into spec.nodes, or run "
                f"`kubeadm-registry replace {work.old} {work.new}`",
            )


def _not_gone(snapshot: Snapshot, spec: Spec, old: str) -> Iterator[Wait]:
    """Why *old*, which does not answer, does not count as gone yet."""
    others = [one for one in snapshot.members if one.name != old and one.generation is not None]
    silent = f"{old} does not answer"
    for one in others:
        if old not in one.silent:
            yield Wait("HeardByAgents", f"{silent}, and the agent of {one.name} hears it")
    if 2 * len(others) <= len(snapshot.members):
        not_asked = "; ".join(f"{one.name}: {one.why}" for one in snapshot.members if one.name != old and one.why)
        because = f" ({not_asked})" if not_asked else ""
        yield Wait("AgentsSilent", f"{silent}, and too few agents say whether they hear it{because}")
    if snapshot.machines is None:
        yield Wait("NodesUnknown", f"{silent}, and Kubernetes does not report the state of its Node")
    machine = next((one for one in snapshot.machines or () if one.name == old), None)
    if machine is not None and machine.ready:
        yield Wait("NodeReady", f"{silent}, and Kubernetes says that it is Ready: run `kubeadm-registry doctor`")
    heard = [snapshot.now - age for one in others if (age := one.silent.get(old)) is not None]
    since = max(snapshot.away.get(old, snapshot.now), machine.since if machine is not None else 0.0, *heard, 0.0)
    if snapshot.now - since < seconds(spec.replacement.after):
        yield Wait("GoneForAWhile", f"{old} is gone, not yet for {spec.replacement.after}")


def _spare(snapshot: Snapshot, spec: Spec, listed: Members, old: str) -> Node | Wait:
    """The machine that may take the place of *old*: the first by name."""
    taken = {*listed.nodes.values(), spec.vip.address}
    spares = [one for one in sorted(snapshot.machines or (), key=lambda one: one.name)
              if one.spare and one.ready and one.name not in listed.nodes]  # fmt: skip
    back = [one.name for one in spares if one.name in listed.former]
    # In spec.nodes it would look like an older file, which nobody carries out.
    spares = [one for one in spares if one.name not in listed.former]
    if back and not spares:
        return Wait("SpareFormer", f"{old} is gone, and {back[0]} has left the registry before: run "
                    f"`kubeadm-registry replace {old} {back[0]}`")  # fmt: skip
    for one in spares:
        if not one.host_key:
            return Wait(
                "HostKeyMissing", f"{old} is gone, and no SSH host key is set for {one.name}: {annotate(one.name)}"
            )
        first, second = (_of_family(one.addresses, like, taken)
                         for like in (spec.vip.address, spec.vip.secondary_address))  # fmt: skip
        values = {"name": one.name, "address": first, "secondaryAddress": second, "hostKey": one.host_key}
        why = f"{old} is gone, and {one.name} cannot take its place"
        if first is None or (second is None and spec.vip.secondary_address is not None):
            other = "the other" if first is not None else "the virtual IP's"
            return Wait("SpareInvalid", f"{why}: its Node has no InternalIP of its own of {other} family")
        try:
            return Node.model_validate(values)
        except ValidationError as error:
            return Wait("SpareInvalid", f"{why}: {next(explain(error, Node))}")
    return Wait("NoSpare", f"{old} is gone, and no machine can take its place: it needs a control-plane Node that is "
                f"Ready and has the label {SPARE}")  # fmt: skip


def annotate(name: str) -> str:
    """The command that tells the SSH host key of the Node *name*."""
    return f"kubectl annotate node {name} {HOST_KEY}='ssh-ed25519 AAAA...'"


def _of_family(addresses: Sequence[str], like: str | None, taken: Collection[str]) -> str | None:
    return next((at for at in addresses if like and (":" in at) is (":" in like) and at not in taken), None)


def _against(snapshot: Snapshot, listed: Members, old: str) -> Iterator[Wait]:
    """Why the members are not such that *old* can be taken out of them."""
    others = [one for one in snapshot.members if one.name != old]
    if 2 * len(others) <= len(snapshot.members):
        yield Wait("OneNode", "the only node of a registry cannot be replaced: install another, and copy the images")
    if (away := _away(snapshot, {old})) is not None:
        yield away
    for one in others:
        if one.generation is None:
            yield Wait("AgentsSilent", f"the agent of {one.name} reports nothing{f': {one.why}' if one.why else ''}")
        elif one.generation != listed.generation or (one.standing is not None and one.standing.members != listed):
            yield Wait("MembersUnsettled", f"{one.name} has another list of members: run `kubeadm-registry init`")
        elif unheard := sorted(one.silent.keys() - {old}):
            yield Wait("NodeUnheard", f"the agent of {one.name} does not hear {unheard[0]}")
        elif one.trouble:
            yield Wait("NotWhole", f"{one.name}: {one.trouble}")


def _away(snapshot: Snapshot, but: set[str]) -> Wait | None:
    """A member other than *but* does not answer: all of them take part in a change."""
    away = [one.name for one in snapshot.members if not one.answers and one.name not in but]
    return Wait("NodeUnreachable", f"{', '.join(away)} cannot be reached") if away else None


def _by(snapshot: Snapshot, old: str, new: Node) -> Replace | Wait:
    """By whom *new* is put in the place of *old*: by members that may, those first that have not failed with it."""
    command = f"`kubeadm-registry replace {old} {new.name}`"
    if new.host_key is None:
        return Wait("HostKeyMissing", f"spec.nodes has no hostKey (SSH host key) for {new.name}: "
                    f"set it, or run {command}")  # fmt: skip
    may = [one for one in snapshot.members if one.name not in (old, new.name) and one.standing is not None
           and one.standing.allowed]  # fmt: skip
    if not may:
        return Wait("ReplacingForbidden", f"{new.name} is to take the place of {old}, and the nodes may not do that: "
                    f"run `kubeadm-registry operator install --replace-nodes`, or {command}")  # fmt: skip
    return Replace(old, new, tuple(one.name for one in sorted(may, key=_failed)))


def _failed(one: Seen) -> float:
    """When the last work there failed, or began that ended without a result, which is 0 where none did."""
    work = one.standing.work if one.standing is not None else None
    if work is None or (work.ended and work.error is None):
        return 0.0
    return work.ended or work.began
