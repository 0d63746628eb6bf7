"""keepalived: keeps the virtual IP on a healthy node by VRRP (RFC 5798), unicast."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from kubeadm_registry import paths
from kubeadm_registry.addresses import prefix
from kubeadm_registry.agent import inotify
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import agent
from kubeadm_registry.components.links import link
from kubeadm_registry.components.units import Service, serve
from kubeadm_registry.engine.changes import Directory, File, Steps
from kubeadm_registry.engine.render import render
from kubeadm_registry.transport.host import Host

NAME = "keepalived"
UNIT = paths.unit(NAME)
ETC = f"{paths.ETC}/keepalived"
CONFIG = f"{ETC}/keepalived.conf"
DROP = f"{paths.LIBEXEC}/drop-vip"
INOTIFY = f"{paths.LIBEXEC}/inotify.py"
SERVICE = Service(
    NAME,
    units=(UNIT,),
    program=NAME,
    reloaded_by=(CONFIG, DROP),  # the script runs before a start and after a stop
)

_GROUP = re.compile(r"^ *virtual_router_id (\d+)$.*^ *virtual_ipaddress \{\n *([^/\s]+)/", re.MULTILINE | re.DOTALL)


def group(host: Host) -> tuple[str, str] | None:
    """The virtual IP that *host* is configured with, and its VRRP group; None if it is not."""
    found = _GROUP.search((host.read(CONFIG) or b"").decode(errors="replace"))
    return (found[2], found[1]) if found else None


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
            behind=paths.BEHIND,
            router_id=vip.router_id,
            priority=250 - 2 * position,  # of five nodes, all within what ``behind`` takes off
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
    yield File(INOTIFY, Path(inotify.__file__).read_bytes())  # read at each start: nothing restarts for it
    yield config
    yield from serve(
        SERVICE,
        (config, drop),
        program=program,
        config=CONFIG,
        drop=DROP,
        python=agent.python(cluster, host),
        inotify=INOTIFY,
        watched=posixpath.dirname(paths.FIT),
        run=f"{paths.RUN}/keepalived",
    )
