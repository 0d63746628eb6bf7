"""What in a cluster file is right each for itself and not together; looked for beside other mistakes as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kubeadm_registry.addresses import is_ipv6
from kubeadm_registry.config.values import address, label

if TYPE_CHECKING:
    from kubeadm_registry.config import Spec

MOST_NODES = 5
TWO_NODES = "two nodes cannot form a quorum when one fails; use three to five nodes, or one for testing"
NAME_OF_A_NODE = "must not be the name of a node: every node's certificate has the name of the VIP"
IS_THE_VIP = "is the VIP, which must not be a node address"
SAME_FAMILY = "must be of the same address family as nodes[0].address"
OTHER_FAMILY = "must be of the other address family than address"
OTHER_FAMILY_THAN_VIP = "must be of the other address family than vip.address"
SECOND_ADDRESSES = "requires a secondaryAddress on every node"
#: Stands for a value that is wrong in itself: nothing can be said of it here.
_WRONG = ""


class Contradiction(ValueError):
    """Values that do not go together; carries path (from ``spec`` on) and text of each problem."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {text}" for path, text in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Place:
    """A node or the VIP. Each value may be None, not given, or empty, which is wrong in itself."""

    name: str | None
    address: str | None
    secondary_address: str | None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Those that are given and right."""
        return tuple(one for one in (self.address, self.secondary_address) if one)


@dataclass(frozen=True, slots=True)
class Facts:
    """As much of a specification as its parts must agree on."""

    nodes: tuple[Place, ...]
    vip: Place
    mirrors: tuple[str, ...]

    @classmethod
    def of(cls, spec: Spec) -> Facts:
        """Those of a specification whose values are right."""
        nodes = tuple(Place(node.name, node.address, node.secondary_address) for node in spec.nodes)
        return cls(nodes, Place(spec.vip.name, spec.vip.address, spec.vip.secondary_address), spec.mirrors)

    @classmethod
    def in_document(cls, spec: Mapping[str, Any]) -> Facts:
        """Those that can be made out in the specification of a file, whatever else is wrong there."""
        nodes, mirrors = spec.get("nodes"), spec.get("mirrors")
        return cls(
            tuple(map(_place, nodes)) if isinstance(nodes, list) else (),
            _place(spec.get("vip")),
            tuple(one if isinstance(one, str) else _WRONG for one in mirrors) if isinstance(mirrors, list) else (),
        )


def _place(value: object) -> Place:
    if not isinstance(value, Mapping):
        return Place(_WRONG, _WRONG, _WRONG)
    return Place(
        _good(value.get("name"), label),
        _good(value.get("address"), address),
        _good(value.get("secondaryAddress"), address),
    )


def _good(value: object, rule: Callable[[str], str]) -> str | None:
    if value is None:
        return None
    try:
        return rule(value) if isinstance(value, str) else _WRONG
    except ValueError:
        return _WRONG


def contradictions(facts: Facts) -> Iterator[tuple[str, str]]:
    """Each contradiction as path (from ``spec`` on) and text."""
    yield from _of_all_nodes(facts.nodes)
    names: dict[str, int] = {}
    owners: dict[str, str] = {}
    for index, node in enumerate(facts.nodes):
        if node.name and names.setdefault(node.name, index) != index:
            yield f"nodes[{index}].name", f"{node.name} is also the name of nodes[{names[node.name]}]"
        for field, value in (("address", node.address), ("secondaryAddress", node.secondary_address)):
            path = f"nodes[{index}].{field}"
            if value and owners.setdefault(value, path) != path:
                yield path, f"{value} is also {owners[value]}"
            if value and value in facts.vip.addresses:
                yield path, f"{value} {IS_THE_VIP}"
        if _differ(node.address, facts.nodes[0].address):
            yield f"nodes[{index}].address", SAME_FAMILY
        if _same(node.secondary_address, node.address):
            yield f"nodes[{index}].secondaryAddress", OTHER_FAMILY
    yield from _of_the_vip(facts.vip, facts.nodes)
    registries: dict[str, int] = {}
    for index, registry in enumerate(facts.mirrors):
        if registry and registries.setdefault(registry, index) != index:
            yield f"mirrors[{index}]", f"{registry} is also mirrors[{registries[registry]}]"


def _of_all_nodes(nodes: Sequence[Place]) -> Iterator[tuple[str, str]]:
    if len(nodes) == 2:
        yield "nodes", TWO_NODES
    if len(nodes) > MOST_NODES:
        yield "nodes", f"must have at most {MOST_NODES} items (it has {len(nodes)})"


def _of_the_vip(vip: Place, nodes: Sequence[Place]) -> Iterator[tuple[str, str]]:
    if nodes and _differ(vip.address, nodes[0].address):
        yield "vip.address", SAME_FAMILY
    if _same(vip.secondary_address, vip.address):
        yield "vip.secondaryAddress", OTHER_FAMILY_THAN_VIP
    if vip.name and any(node.name == vip.name for node in nodes):
        yield "vip.name", NAME_OF_A_NODE
    if vip.secondary_address and any(node.secondary_address is None for node in nodes):
        yield "vip.secondaryAddress", SECOND_ADDRESSES


def _differ(one: str | None, other: str | None) -> bool:
    return bool(one and other) and is_ipv6(str(one)) != is_ipv6(str(other))


def _same(one: str | None, other: str | None) -> bool:
    return bool(one and other) and is_ipv6(str(one)) == is_ipv6(str(other))
