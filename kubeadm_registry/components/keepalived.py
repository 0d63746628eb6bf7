"""keepalived: keeps the virtual IP at a healthy server by VRRP (RFC 5798), unicast."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from kubeadm_registry import paths
from kubeadm_registry.addresses import ip, prefix
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.units import Service, serve
from kubeadm_registry.engine.changes import Directory, File, Steps, Wait
from kubeadm_registry.engine.render import render
from kubeadm_registry.errors import Error
from kubeadm_registry.transport.host import Host, has_address

NAME = "keepalived"
UNIT = paths.unit(NAME)
ETC = f"{paths.ETC}/keepalived"
CONFIG = f"{ETC}/keepalived.conf"
DROP = f"{paths.LIBEXEC}/drop-vip"
SERVICE = Service(
    NAME,
    units=(UNIT,),
    program=NAME,
    reloaded_by=(CONFIG, DROP),  # the script runs before a start and after a stop
)


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
        hint="nodes[].address must be an address of the server itself, not one that a router translates",
    )  # fmt: skip


def holder_last(cluster: Cluster) -> Sequence[Host]:
    """All hosts, the one that has the VIP after the others: where keepalived restarts, the VIP then moves only once."""
    return sorted(cluster.hosts, key=lambda host: has_address(host, cluster.spec.vip.address))


def install(cluster: Cluster, host: Host) -> Steps:
    """Install keepalived's configuration and start it."""
    node, vip = cluster.node(host), cluster.spec.vip
    # Each virtual address and the interface on which this server has its own of that family.
    places = [(address, link(host, own).interface) for own, address in zip(node.addresses, vip.addresses, strict=False)]
    position = [member.name for member in cluster.spec.nodes].index(node.name)
    program = cluster.program(NAME).executable
    config = File(
        CONFIG,
        render(
            "keepalived/keepalived.conf.j2",
            node=node,
            peers=cluster.peers(host),
            places=places,
            fit=paths.FIT,
            alone=paths.ALONE,
            router_id=vip.router_id,
            priority=250 - 2 * position,
        ),
        validate=(program, "--config-test", "--use-file", "{path}"),
    )
    drops = [f"ip address del {prefix(address)} dev {interface} 2>/dev/null || :" for address, interface in places]
    drop = File(
        DROP,
        ("#!/bin/sh\n# Written by kubeadm-registry: takes the virtual IP away from this server.\n"
         + "\n".join(drops) + "\n").encode(),
        mode=0o755,
    )  # fmt: skip
    yield Directory(ETC)
    yield drop
    yield config
    yield from serve(
        SERVICE,
        (config, drop),
        program=program,
        config=CONFIG,
        drop=DROP,
        run=f"{paths.RUN}/keepalived",
    )


def one_holder(cluster: Cluster, host: Host) -> Steps:
    """Wait until exactly one server has the VIP, with all its addresses."""
    yield Wait("exactly one server has the virtual IP", partial(_one_holder, cluster), timeout=30)


def _one_holder(cluster: Cluster, _: Host) -> str | None:
    for address in cluster.spec.vip.addresses:
        holders = [host.name for host in cluster.hosts if has_address(host, address)]
        # A server that does not answer by SSH may have it and serve it; the phase verify reads through it.
        if len(holders) != 1 and (holders or not cluster.absent):
            return f"{', '.join(holders)} have {address}" if holders else f"no server has {address}"
    return None
