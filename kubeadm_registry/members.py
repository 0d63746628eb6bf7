"""The list of members: which nodes the registry consists of and who votes, and how that may change.

The list has a *generation*, which grows with each change. Until all nodes have the new list, a decision of the agents
also needs more than half of the previous list (``before``). Any two majorities then share a node, and what one of them
has promised binds the other (docs/agent.md, "The lease"). A node that left stays in the list as *former*: if it is
switched on again, the others reject its storage and tell its agent that it is not a member.

The list is a JSON file, the same on every node. A node that missed a change has an older one; the highest generation
counts. A registry of release 0.1 has no file, which means generation 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kubeadm_registry import paths
from kubeadm_registry.errors import Error
from kubeadm_registry.formats import Damaged, Format, Found, joined, kept, split

PATH = f"{paths.ETC}/members.json"
FORMAT = Format(PATH)
FIRST = 1
"""The generation of a registry whose members never changed."""
SIZES = (1, 3, 4, 5)
#: The key of what is there only where a name has left more than one address.
_EARLIER = "earlier"


@dataclass(frozen=True, slots=True)
class Members:
    """A list of members. *nodes* has the address of each node by its name."""

    generation: int
    nodes: Mapping[str, str]
    before: tuple[str, ...] = ()
    """The names in the previous list, until all nodes have this one; then empty."""
    former: Mapping[str, str] = field(default_factory=dict)
    """Nodes that left, with their last address. A member with a new address is here with its previous one."""
    earlier: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further addresses that they had, the oldest first: ``former`` has one for each name, in every release."""
    found: Found | None = field(default=None, compare=False, repr=False)
    """What a newer release has added to the file."""

    @property
    def settled(self) -> bool:
        """Whether no change is under way."""
        return not self.before

    @property
    def left(self) -> tuple[tuple[str, str], ...]:
        """Name and address of each node that left, also its earlier addresses, the oldest first: these are excluded."""
        earlier = ((name, at) for name, several in self.earlier.items() for at in several)
        return (*earlier, *self.former.items())

    def supersedes(self, other: Members) -> bool:
        """Whether *other* must not replace this list. Of two lists of one generation, the settled one is newer."""
        if self.generation != other.generation:
            return self.generation > other.generation
        return self.nodes != other.nodes or (self.settled and not other.settled)

    def render(self) -> bytes:
        """The content of the file. Raises NewerFormat if this release may not write it."""
        return FORMAT.render(kept(self.values(), self.found), self.found)

    def values(self) -> dict[str, Any]:
        """The list as JSON, without values that only newer releases know."""
        return {
            "generation": self.generation,
            "nodes": dict(sorted(self.nodes.items())),
            "before": sorted(self.before),
            "former": dict(sorted(self.former.items())),
            **({_EARLIER: {name: list(at) for name, at in sorted(self.earlier.items())}} if self.earlier else {}),
        }

    def settle(self) -> Members:
        """The same list, which now decides without the previous one."""
        return replace(self, before=())

    def changed_to(self, nodes: Mapping[str, str]) -> Members:
        """The next list, with *nodes*; this one if they are the same. Raises Error (MembersUnsettled)."""
        if dict(nodes) == dict(self.nodes):
            return self
        if not self.settled:
            raise Error(
                f"the change to {', '.join(sorted(self.nodes))} (generation {self.generation}) is not finished",
                hint="finish it first: run `init` with the cluster file that lists these nodes, then continue; if half "
                f"of {', '.join(sorted(self.before))} or more are lost for good, run `recover`",
                code="MembersUnsettled",
            )
        return replace(self.without(nodes), before=tuple(self.nodes))

    def without(self, nodes: Mapping[str, str]) -> Members:
        """The next list, with *nodes*, which decides alone: for a registry that stores nothing yet."""
        gone = {**self.former, **{name: at for name, at in self.nodes.items() if nodes.get(name) != at}}
        # An address that a member uses now is not excluded, whoever had it before.
        taken = set(nodes.values())
        former = {name: at for name, at in gone.items() if at not in taken}
        earlier = [(name, at) for name, at in self.left if at not in taken and former.get(name) != at]
        return Members(self.generation + 1, dict(nodes), (), former, _by_name(earlier), self.found)


def parse(content: bytes) -> Members:
    """The list in the file's *content*. Raises Damaged, NewerFormat."""
    return of(FORMAT.parse(content))


def of(found: Found) -> Members:
    """The list that was *found*, as JSON has it. Raises Damaged."""
    values = found.values
    try:
        members = Members(
            _whole(values["generation"]),
            _addresses(values["nodes"]),
            _names(values.get("before", [])),
            _addresses(values.get("former", {})),
            found=replace(found, values={key: value for key, value in values.items() if key != _EARLIER}),
        )
        # A release that does not know these addresses keeps them also where a node has come to one of them.
        known = {*members.nodes.values(), *members.former.values()}
        earlier = [(name, at) for name, several in values.get(_EARLIER, {}).items() for at in _names(several)]
        members = replace(members, earlier=_by_name([one for one in earlier if one[1] not in known]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Damaged(f"not a valid member list: {error!r}") from error
    if members.generation < FIRST or not members.nodes:
        raise Damaged("no members or no generation")
    return members


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _addresses(value: Any) -> dict[str, str]:
    if not all(isinstance(address, str) for address in value.values()):
        raise ValueError(f"{value!r} has an address that is not text")
    return dict(value)


def _by_name(pairs: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """The addresses of each name, in the order of *pairs*."""
    return {name: tuple(at for other, at in pairs if other == name) for name, _ in pairs}


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{value!r} is not a list of texts")
    return tuple(value)


def newest(found: Mapping[str, Members]) -> Members | None:
    """The newest of the lists *found* on nodes; None if no node has one. Raises Error (MembersConflict).

    Lists of one generation have the same nodes; of these, a settled one is newer. Values that a newer release has added
    on some of the nodes are kept.
    """
    best: tuple[str, Members] | None = None
    for name, one in found.items():
        if best is None or one.generation > best[1].generation:
            best = name, one
        elif one.generation == best[1].generation:
            if one.nodes != best[1].nodes:
                raise Error(
                    f"{best[0]} and {name} have different member lists of generation {one.generation}",
                    hint=f"compare {PATH} on the nodes; copy the correct file to the other node",
                    code="MembersConflict",
                )
            if one.settled and not best[1].settled:
                best = name, one
    if best is None:
        return None
    newest_of_all = best[1]
    others = [one.found for one in found.values() if one.generation == newest_of_all.generation]
    return replace(newest_of_all, found=_together(newest_of_all, [one for one in others if one is not None]))


def _together(members: Members, several: Sequence[Found]) -> Found | None:
    """What newer releases have added to the list of *members*, by the *several* files of it; the latest one's word."""
    together = members.found
    for one in sorted(several, key=lambda one: int(one.stamp["version"])):
        if together is not None:
            added = split(one.values, members.values())[1]
            together = Found({**together.values, **added}, joined(together.stamp, one.stamp))
    return together


def outvoted(members: Sequence[str], present: Sequence[str]) -> bool:
    """Whether the nodes *present* are not more than half of *members*: then nothing may be decided."""
    return 2 * len(set(members) & set(present)) <= len(members)


def kept_path(data_directory: str) -> str:
    """Where ``reset`` leaves the list when it leaves the data."""
    return f"{data_directory}/members.json"
