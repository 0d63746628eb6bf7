"""What the services need of the kernel: a loopback address, routes with quickack, nftables rules by user.

The rules have a unit of its own, which follows the firewalls that flush the whole ruleset when they start, stop or
reload (Debian's nftables.service does). Address and routes have to stay meanwhile. The agent sees all other flushes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kubeadm_registry import paths
from kubeadm_registry.addresses import family
from kubeadm_registry.agent.timings import Timings
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import agent
from kubeadm_registry.components.units import Service, serve
from kubeadm_registry.engine.changes import File, Steps
from kubeadm_registry.engine.render import render
from kubeadm_registry.transport.host import Host

if TYPE_CHECKING:
    from kubeadm_registry.components.services import Frontend

NAME = "network"
UNIT = paths.unit(NAME)
SCRIPT = f"{paths.LIBEXEC}/network"
GUARD_UNIT = paths.unit("guard")
SERVICE = Service(NAME, units=(UNIT,), reloaded_by=(SCRIPT,))
GUARD = Service("guard", units=(GUARD_UNIT,), reloaded_by=(paths.GUARD,))


@dataclass(frozen=True, slots=True)
class FirewallRules:
    """The nftables rules are loaded: they are missing after a flush, as by ``kubeadm reset``."""

    title = f"load {paths.GUARD}"

    def diff(self, host: Host) -> str | None:
        """Which table is missing, or None."""
        there = host.query("nft", "list", "tables", "inet").text.splitlines()
        missing = [table for table in paths.TABLES if f"table inet {table}" not in there]
        return f"nft table inet {missing[0]}: loaded (it is missing)" if missing else None

    def apply(self, host: Host) -> None:
        """Reload the unit that loads them: no rule is missing meanwhile."""
        host.run("systemctl", "reload", "--", GUARD_UNIT)


@dataclass(frozen=True, slots=True)
class Routes:
    """Address, routes and rules of the script are there: ``ip link set down``, ``ip address flush`` and a restart of
    systemd-networkd take them away."""

    title = f"reload {UNIT}"

    def diff(self, host: Host) -> str | None:
        """What is missing, or None. The script itself says it; one of an earlier release says nothing."""
        missing = host.query(SCRIPT, "missing").text.splitlines()
        return "\n".join(f"{one}: made (it is missing)" for one in missing) or None

    def apply(self, host: Host) -> None:
        """Reload the unit, which has the script make them."""
        host.run("systemctl", "reload", "--", UNIT)


@dataclass(frozen=True, slots=True)
class NoFirewallRules:
    """A table of the rules is removed. Their unit leaves them when it stops, since it stops with other firewalls."""

    table: str

    @property
    def title(self) -> str:
        """What apply does."""
        return f"remove the nft table {self.table}"

    def diff(self, host: Host) -> str | None:
        """That the table is there, or None."""
        there = host.query("nft", "list", "table", "inet", self.table).ok
        return f"nft table inet {self.table}: removed" if there else None

    def apply(self, host: Host) -> None:
        """Delete the table."""
        host.run("nft", "delete", "table", "inet", self.table)


def listeners(services: Sequence[Service]) -> Iterator[tuple[int, str]]:
    """Each loopback port of the *services*, the outermost first, with the user that listens there."""
    for service in reversed(services):
        for port in service.ports:
            if port.local:
                yield port.number, service.user


def guarded(services: Sequence[Service]) -> Iterator[tuple[int, list[str]]]:
    """Each loopback port of the *services*, in the same order, with the users that may connect to it besides root."""
    for port, _ in listeners(services):
        yield port, [other.user for other in services if port in other.calls]


def exposed(services: Sequence[Service], protocol: str = "tcp") -> list[int]:
    """The ports of the *services* on the nodes' addresses, by number."""
    ports = (port for service in services for port in service.ports)
    return sorted(port.number for port in ports if port.protocol == protocol and not port.local)


def fence(frontend: Frontend) -> dict[str, object]:
    """What the rules of the kernel's timer need; no ``frontend`` if it may write anywhere at any time."""
    timings = Timings()
    return {
        "address": paths.S3_ADDRESS,
        "port": paths.FENCE_PORT,
        "agent": agent.USER,
        "frontend": frontend.SERVICE.user if frontend.SINGLE_WRITER else "",
        "executor": paths.user(paths.RETENTION_NAME),
        "executor_source": paths.EXECUTOR_SOURCE,
        "ticket_ms": round(timings.ticket * 1000),
        "timer_ms": round(timings.timer * 1000),
        "mark": round(timings.timer * 10),
    }


def rules(cluster: Cluster, host: Host, services: Sequence[Service], frontend: Frontend) -> bytes:
    """The nft rules of this node."""
    node = cluster.node(host)
    return render(
        "guard/guard.nft.j2",
        table=paths.PREFIX,
        guarded=list(guarded(services)),
        listeners=list(listeners(services)),
        s3_port=paths.S3_PORT,
        registry_port=paths.REGISTRY_PORT,
        frontend_port=paths.FRONTEND_PORT,
        loopback_network=paths.LOOPBACK_NETWORK,
        router_id=cluster.spec.vip.router_id,
        family=family(node.address),
        peers=[peer.address for peer in cluster.peers(host)],
        former=sorted(at for _, at in cluster.members.left if family(at) == family(node.address)),
        rpc_port=paths.RPC_PORT,
        fence_table=paths.FENCE_TABLE,
        fence=fence(frontend),
        ending_table=paths.ENDING_TABLE,
        ending_mark=hex(paths.ENDING_MARK),
        vips=[(family(vip), vip) for vip in cluster.spec.vip.addresses],
    )


#: Stands for the first of our users in rules that are only tried: these may not be there yet.
_ANY_USER = 60000


def trial(cluster: Cluster, host: Host, services: Sequence[Service], frontend: Frontend) -> bytes:
    """The same rules with numbers in place of our users."""
    numbers: dict[str, str] = {table: table for table in paths.TABLES}

    def number(found: re.Match[str]) -> str:
        return numbers.setdefault(found[0], str(_ANY_USER + len(numbers)))

    text = rules(cluster, host, services, frontend).decode()
    return re.sub(rf"{paths.PREFIX}-[a-z]+", number, text).encode()


def install(cluster: Cluster, host: Host, services: Sequence[Service], frontend: Frontend) -> Steps:
    """Install the nft rules and the script, with the units that apply them now and at each boot; see that they are so.

    The users that the rules name exist before: nft resolves them when it loads the file.
    """
    guard = File(paths.GUARD, rules(cluster, host, services, frontend))
    script = File(
        SCRIPT,
        render(
            "network/network.sh.j2",
            s3_address=paths.S3_ADDRESS,
            rpc_table=paths.RPC_TABLE,
            rpc_port=paths.RPC_PORT,
            own=cluster.node(host).address,
            peers=[peer.address for peer in cluster.peers(host)],
        ),
        mode=0o755,
    )
    yield guard
    yield from serve(GUARD, (guard,), guard=paths.GUARD)
    yield FirewallRules()
    yield script
    yield from serve(SERVICE, (script,), script=SCRIPT)
    yield Routes()


def admitting(content: bytes, addresses: Collection[str]) -> bytes:
    """The guard's file *content* without the rules that keep *addresses* out as those of nodes that have left."""

    def line(found: re.Match[str]) -> str:
        left = [one for one in found[2].split(", ") if one not in addresses]
        return f"{found[1]}{', '.join(left)}{found[3]}" if left else ""

    rule = rf"(?m)^(\s*ip6? [sd]addr \{{ )([^}}]*)( \}} tcp [sd]port {paths.RPC_PORT} .*\n)"
    return re.sub(rule, line, content.decode()).encode()
