"""What an API server checks of several fields together, and of an object that changes.

The first half repeats ``contradictions.py``; a test sends the same objects to both. The second half is what ``init``
compares with the registry (``immutable.py``), as far as the object that is there tells it. Each constant is metadata of
the field that it is named after.
"""

from __future__ import annotations

from kubeadm_registry.config.contradictions import (
    IS_THE_VIP,
    NAME_OF_A_NODE,
    OTHER_FAMILY,
    OTHER_FAMILY_THAN_VIP,
    SAME_FAMILY,
    SECOND_ADDRESSES,
    TWO_NODES,
)
from kubeadm_registry.config.immutable import ADDRESS, BACKEND, COPIES, DIRECTORY, Immutable
from kubeadm_registry.config.rules import OnServer, Rule, other_family, same_family, same_ip
from kubeadm_registry.config.values import parts_of

MOST_MIRRORS = 64


def _stays(what: Immutable, same: str = "self == oldSelf") -> Rule:
    return Rule(same, f"cannot be changed in place; {what.why}; {what.advice}")


def _addresses(nodes: str) -> str:
    """CEL for all addresses of *nodes*."""
    return (
        f"({nodes}.map(n, n.address) + {nodes}.filter(n, has(n.secondaryAddress)).map(n, n.secondaryAddress))"
        ".filter(a, isIP(a))"
    )


def _none(found: str, text: str) -> Rule:
    """The list of texts *found* (CEL) is empty; the message names its first one, then says *text*."""
    return Rule(f"size({found}) == 0", f"{found}[0] + ' {text}'", computed=True)


def _of_both_families(text: str) -> OnServer:
    """A second address is of the other family; *text* is the message."""
    other = other_family("self.secondaryAddress", "self.address")
    return OnServer(Rule(f"!has(self.secondaryAddress) || {other}", text, field=".secondaryAddress"))


_TWICE = f"[{_addresses('self')}.map(a, string(ip(a)))].map(all, all.filter(a, !all.exists_one(b, a == b)))[0]"
_VIPS = "([self.vip.address] + (has(self.vip.secondaryAddress) ? [self.vip.secondaryAddress] : []))"
_VIP_NODES = f"{_addresses('self.nodes')}.filter(a, {_VIPS}.exists(v, {same_ip('a', 'v')}))"

NODES = OnServer(
    Rule("size(self) != 2", TWO_NODES),
    _none(_TWICE, "is the address of a node twice"),
    Rule(f"self.all(n, {same_family('n.address', 'self[0].address')})", f"the address of every node {SAME_FAMILY}"),
    Rule(
        "size(oldSelf) < 3 || size(self) >= 3",
        f"a registry of three or more nodes keeps at least three; {COPIES.why}; {COPIES.advice}",
    ),
    Rule(
        "size(oldSelf) > 1 || size(self) == 1",
        f"a registry of one node cannot grow; {COPIES.why}; {COPIES.advice}",
    ),
    Rule(
        "size(oldSelf.filter(o, !self.exists(n, n.name == o.name))) <= 1",
        "nodes are replaced or removed one at a time: the storage copies their data to the others first",
    ),
    **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
)
NODE = _of_both_families(OTHER_FAMILY)
NODE_ADDRESS = OnServer(_stays(ADDRESS, f"self == oldSelf || {same_ip('self', 'oldSelf')}"))
VIP = _of_both_families(OTHER_FAMILY_THAN_VIP)
SPEC = OnServer(
    Rule(same_family("self.vip.address", "self.nodes[0].address"), SAME_FAMILY, field=".vip.address"),
    Rule(
        "!has(self.vip.secondaryAddress) || self.nodes.all(n, has(n.secondaryAddress))",
        SECOND_ADDRESSES,
        field=".vip.secondaryAddress",
    ),
    Rule("!has(self.vip.name) || !self.nodes.exists(n, n.name == self.vip.name)", NAME_OF_A_NODE, field=".vip.name"),
    _none(_VIP_NODES, IS_THE_VIP),
)
BACKEND_TYPE = OnServer(_stays(BACKEND))
DATA_DIRECTORY = OnServer(_stays(DIRECTORY, f"{parts_of('self')} == {parts_of('oldSelf')}"))
#: Each host once; the order is of no meaning.
MIRRORS = OnServer(**{"x-kubernetes-list-type": "set"})
