"""On which interface of a host an address is."""

from __future__ import annotations

import json
from dataclasses import dataclass

from kubeadm_registry.addresses import ip
from kubeadm_registry.errors import Error
from kubeadm_registry.transport.host import Host


@dataclass(frozen=True, slots=True)
class Link:
    """An address of a host as its kernel has it: interface and prefix length."""

    interface: str
    prefix_length: int


def link(host: Host, address: str) -> Link:
    """Where *address* is on *host*. Raises Error if it is on no interface."""
    result = host.query("ip", "-json", "address", "show")
    for entry in json.loads(result.stdout or b"[]"):
        for item in entry.get("addr_info", ()):
            if ip(item.get("local", "")) == ip(address):
                return Link(entry["ifname"], item["prefixlen"])
    raise Error(
        f"no interface has the address {address}", host=host.name, code="AddressMissing",
        hint="set nodes[].address to an address of the node itself, not to one that a router translates",
    )  # fmt: skip
