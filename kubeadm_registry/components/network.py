"""What the services need of the kernel: a loopback address, routes that acknowledge at once, a guard by user."""

from __future__ import annotations

from dataclasses import dataclass

from kubeadm_registry import paths
from kubeadm_registry.changes import File, Steps
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import agent, garage, haproxy
from kubeadm_registry.components.units import serve
from kubeadm_registry.host import Host
from kubeadm_registry.render import render

NAME = "network"
UNIT = paths.unit(NAME)
SCRIPT = f"{paths.LIBEXEC}/network"
GUARD = f"{paths.ETC}/guard.nft"


@dataclass(frozen=True, slots=True)
class Guarded:
    """The guard's rules are loaded: a flushed firewall, as after ``kubeadm reset``, lacks them, and no unit notices."""

    @property
    def title(self) -> str:
        """What apply does."""
        return f"load {GUARD}"

    def diff(self, host: Host) -> str | None:
        """That the table is missing, or None."""
        there = host.query("nft", "list", "table", "inet", paths.PREFIX).ok
        return None if there else f"nft table inet {paths.PREFIX}: is loaded (it is not there)"

    def apply(self, host: Host) -> None:
        """Let the unit load them: a reload, in which nothing is missing that services need."""
        host.run("systemctl", "reload", "--", UNIT)


def install(cluster: Cluster, host: Host) -> Steps:
    """Install the script, the nft rules and the unit that applies both, now and at each boot; see that they are so.

    The users that the rules name exist before: nft resolves them when it loads the file.
    """
    frontend_user = paths.user(cluster.spec.frontend.type)
    guard = File(
        GUARD,
        render(
            "network/guard.nft.j2",
            table=paths.PREFIX,
            frontend_port=paths.FRONTEND_PORT,
            s3_port=paths.S3_PORT,
            admin_port=paths.ADMIN_PORT,
            frontend_users=(haproxy.USER, agent.USER),
            storage_users=(frontend_user, garage.USER, agent.USER),
        ),
    )
    script = File(
        SCRIPT,
        render(
            "network/network.sh.j2",
            table=paths.PREFIX,
            s3_address=paths.S3_ADDRESS,
            rpc_table=paths.RPC_TABLE,
            rpc_port=paths.RPC_PORT,
            peers=[peer.address for peer in cluster.peers(host)],
            guard=GUARD,
        ),
        mode=0o755,
    )
    yield guard
    yield script
    yield from serve(UNIT, (guard, script), reloads=(GUARD, SCRIPT), script=SCRIPT)
    yield Guarded()
