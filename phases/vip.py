"""The virtual IP."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kubeadm_registry.cluster import Cluster, arriving, holder_last, leader
from kubeadm_registry.components import drain
from kubeadm_registry.components.services import vip_manager
from kubeadm_registry.engine.changes import Steps, Wait, wait
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.phases.immutable import OF_MEMBERS
from kubeadm_registry.transport.host import Host, has_address

#: Seconds in which another node takes the virtual IP that one gives up.
VIP_WITHIN = 15.0


def install(cluster: Cluster, host: Host) -> Steps:
    """Install the VIP manager."""
    return vip_manager(cluster.spec).install(cluster, host)


def one_holder(cluster: Cluster, host: Host) -> Steps:
    """Wait until exactly one node holds the VIP, with all its addresses."""
    yield Wait("exactly one node holds the virtual IP", partial(_one_holder, cluster), timeout=30)


def _one_holder(cluster: Cluster, _: Host) -> str | None:
    for address in cluster.spec.vip.addresses:
        holders = [host.name for host in cluster.hosts if has_address(host, address)]
        # A server that does not answer by SSH may have it and serve it; the phase verify reads through it.
        if len(holders) != 1 and (holders or not cluster.absent):
            return f"{', '.join(holders)} hold {address}" if holders else f"no node holds {address}"
    return None


@dataclass(frozen=True, slots=True)
class VipLeaves:
    """The virtual IP is on another host before a disruptive step. *because* returns why it must leave, or None."""

    cluster: Cluster
    because: Callable[[Host], str | None]
    title = "move the virtual IP to another node"

    def diff(self, host: Host) -> str | None:
        """That it is here, and why it leaves."""
        vip = self.cluster.spec.vip.address
        if not self._others(host) or not has_address(host, vip):
            return None
        reason = self.because(host)
        return f"{vip}: leaves {host.name}: {reason}" if reason else None

    def apply(self, host: Host) -> None:
        """Let clients end, then end the VIP manager in order: another node has the address within a second.

        It is started again at once, and waits behind the new holder; by the phase ``vip`` if the run dies before that.
        Also if no other node takes the address: this one has it back then.
        """
        unit = vip_manager(self.cluster.spec).SERVICE.unit
        try:
            with drain.drained(self.cluster, host):
                host.run("systemctl", "stop", "--", unit, timeout=30)
                wait(host, self._elsewhere, what="another node has the virtual IP", timeout=VIP_WITHIN, interval=0.1)
        finally:
            host.run("systemctl", "start", "--", unit, timeout=30)

    def _others(self, host: Host) -> list[Host]:
        return [one for one in self.cluster.hosts if one.name != host.name]

    def _elsewhere(self, host: Host) -> str | None:
        vip = self.cluster.spec.vip.address
        return None if any(has_address(one, vip) for one in self._others(host)) else "no other node has it"


def _arriving_last(cluster: Cluster) -> Sequence[Host]:
    """The holder after the others, then new nodes: before it speaks to them they would take the address as well."""
    new = arriving(cluster)
    return sorted(holder_last(cluster), key=lambda host: host in new)


INSTALL = Phase(
    "install",
    "Install and start keepalived",
    install,
    on=_arriving_last,
    checks=OF_MEMBERS,
    one_at_a_time=True,
    first_at_once=True,
)
HOLDER = Phase("holder", "Wait until exactly one node holds the virtual IP", one_holder, on=leader)
VIP = Phase("vip", "Assign the virtual IP to a healthy node", phases=(INSTALL, HOLDER))
