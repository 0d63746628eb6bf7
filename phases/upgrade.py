"""An upgrade: all of ``init``, one node after another, with a health gate around each; the VIP holder comes last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from kubeadm_registry.cluster import Cluster, leader
from kubeadm_registry.components import agent, compatibility, health, keepalived, running
from kubeadm_registry.components.compatibility import Plan
from kubeadm_registry.components.services import FRONTENDS, frontend, services
from kubeadm_registry.engine.changes import Running, Steps, last_words, unit_path, wait
from kubeadm_registry.engine.phase import Check, Phase, Workflow
from kubeadm_registry.errors import CommandTimeout, Error, PhaseFailed
from kubeadm_registry.phases.agent import AGENT as AGENT_PHASE
from kubeadm_registry.phases.verify import VERIFY
from kubeadm_registry.phases.vip import INSTALL as VIP_INSTALL
from kubeadm_registry.phases.vip import VipLeaves
from kubeadm_registry.transport.host import Host, has_address, side_by_side

#: Seconds that a node has to become healthy after its turn, and that the others have before it.
HEALTHY_WITHIN = 300.0


def order(cluster: Cluster) -> tuple[Host, ...]:
    """The hosts in the order of the upgrade: unhealthy ones first, the VIP holder last."""
    ill = health.lastingly_ill(cluster)
    vip = cluster.spec.vip.address
    holds = dict(zip(cluster.hosts, side_by_side(lambda host: has_address(host, vip), cluster.hosts), strict=True))
    return tuple(sorted(cluster.hosts, key=lambda host: (host.name not in ill, holds[host])))


def plan(cluster: Cluster, hosts: Sequence[Host]) -> Plan:
    """The steps for *hosts*, in this order, or why there are none."""
    current = dict(zip((host.name for host in hosts), versions(cluster, hosts), strict=True))
    used = {name for there in current.values() for name in there}
    wanted = running.relevant(running.wanted(cluster), used)
    found = compatibility.plan(current, wanted, [host.name for host in hosts])
    at_once = dict.fromkeys(chain.from_iterable(side_by_side(lambda host: tuple(_at_once(cluster, host)), hosts)))
    return Plan((), (*found.refusals, *at_once)) if at_once else found


def _at_once(cluster: Cluster, host: Host) -> Iterator[str]:
    """What the file changes that nodes cannot change one after another, with the remedy."""
    wanted, vip = frontend(cluster.spec).SERVICE, cluster.spec.vip
    by_init = "restore the old value, or change it by `init`, which changes all nodes together, before you upgrade"
    for other in (one.SERVICE for one in FRONTENDS.values() if one.SERVICE is not wanted):
        if host.read(unit_path(other.unit)) is not None:
            yield (
                f"spec.frontend.type is {other.name} on the nodes, and {wanted.name} in the file: each has images of "
                f"its own, so the first node to change would have none; {by_init}"
            )
    group = keepalived.group(host)
    if group is not None and group != (vip.address, str(vip.router_id)):
        yield (
            f"spec.vip is {group[0]} (VRRP group {group[1]}) on the nodes, and {vip.address} ({vip.router_id}) in the "
            f"file: the nodes that have changed and those that have not would each have a holder; {by_init}"
        )


def versions(cluster: Cluster, hosts: Sequence[Host]) -> list[dict[str, str]]:
    """The versions of the programs that run on each of *hosts*."""
    return side_by_side(partial(running.versions, cluster), hosts)


def verbs(cluster: Cluster, host: Host, phases: Workflow) -> Iterator[tuple[str, str]]:
    """The units of *host* that start, reload or restart when *phases* are run for it, with the verb."""
    reading = host.as_read_only()
    for phase in phases:
        yield from verbs(cluster, host, phase.phases)
        if any(one.name == host.name for one in phase.on(cluster)):
            for change in phase.changes(cluster, reading):
                if isinstance(change, Running) and (verb := change.verb(reading)) is not None:
                    yield change.unit, verb


# ---- the workflow ----------------------------------------------------------------------------------------------------


def compatible(cluster: Cluster, _: Host) -> Iterator[str]:
    """The wanted versions may run beside those that run now; registry program and virtual IP stay the same."""
    yield from plan(cluster, cluster.hosts).refusals


def installed(cluster: Cluster, _: Host) -> Iterator[str]:
    """The registry is installed, and at most one node is not healthy: that one is upgraded first."""
    if not cluster.vault.made:
        yield "the registry is not installed yet; run `kubeadm-registry init`"
        return
    if len(ill := health.lastingly_ill(cluster)) > 1:
        told = "; ".join(health.problems(health.reports(cluster)))
        needs = "an upgrade needs all nodes but one to be"
        yield f"{', '.join(ill)} are not healthy, and {needs}: {told}; see `kubeadm-registry doctor`"


CHECKS = (
    Check("Versions", compatible, on=leader, mandatory=True),
    Check("NodesHealthy", installed, on=leader),
)
VERSIONS = Phase("versions", "Check that the new versions can run beside the installed ones", checks=CHECKS)


def one_by_one(hosts: Sequence[Host], phases: Workflow) -> Workflow:
    """A phase for each of *hosts*, in this order: *phases* restricted to it, between two looks at the health."""
    return tuple(_node_phase(host.name, phases) for host in hosts)


def _node_phase(name: str, phases: Workflow) -> Phase:
    on = _only(name, lambda cluster: cluster.hosts)
    return Phase(
        name,
        f"Upgrade {name}",
        phases=(
            Phase("ready", "Wait until the other nodes are healthy", _ready, on=on),
            Phase("vip-leaves", "Move the virtual IP to an upgraded node, if it would move anyway", _leave, on=on),
            *(_restricted(phase, name) for phase in phases),
            Phase("healthy", f"Wait until {name} is healthy again", _healthy, on=on),
        ),
    )


def _restricted(phase: Phase, name: str) -> Phase:
    below = tuple(_restricted(one, name) for one in phase.phases)
    return replace(phase, on=_only(name, phase.on), phases=below)


def _only(name: str, on: Callable[[Cluster], Sequence[Host]]) -> Callable[[Cluster], Sequence[Host]]:
    return lambda cluster: [host for host in on(cluster) if host.name == name]


def _ready(cluster: Cluster, host: Host) -> Steps:
    if len(cluster.hosts) > 1:
        yield OthersHealthy(health.Watch(cluster, host.name))


def _leave(cluster: Cluster, host: Host) -> Steps:
    yield leaves(cluster)


def leaves(cluster: Cluster) -> VipLeaves:
    """Move the virtual IP to another node before a restart that would make it fail over."""
    return VipLeaves(cluster, partial(_restarts, cluster))


def _restarts(cluster: Cluster, host: Host) -> str | None:
    """What restarts on *host* upon which the virtual IP moves.

    Other services restart under it: their node's HAProxy passes reads on to other nodes meanwhile.
    """
    found = verbs(cluster, host, (AGENT_PHASE, VIP_INSTALL))
    units = [unit for unit, verb in found if verb == "restart"]
    return f"{' and '.join(units)} will restart" if units else None


def _healthy(cluster: Cluster, host: Host) -> Steps:
    yield Healthy(cluster, health.Watch(cluster))


@dataclass(frozen=True, slots=True)
class OthersHealthy:
    """All other nodes are healthy, so that this one may stop."""

    watch: health.Watch
    title = "wait until the other nodes are healthy"

    def diff(self, host: Host) -> str | None:
        """What is unhealthy on another node."""
        return self.watch.look()

    def apply(self, host: Host) -> None:
        """Wait. Raises Error (NodeNotHealthy)."""
        try:
            wait(host, self.diff, what="the other nodes are healthy", timeout=HEALTHY_WITHIN, interval=0.5)
        except CommandTimeout as error:
            raise Error(
                f"{host.name} is not upgraded while another node is not healthy: {error.message}",
                host=host.name, code="NodeNotHealthy", hint="see `kubeadm-registry status`",
            ) from error  # fmt: skip


@dataclass(frozen=True, slots=True)
class Healthy:
    """The registry is healthy on all nodes again, and this node has caught up."""

    cluster: Cluster
    watch: health.Watch
    title = "wait until all nodes are healthy, and nothing is left to copy"

    def diff(self, host: Host) -> str | None:
        """What is unhealthy."""
        return self.watch.look()

    def apply(self, host: Host) -> None:
        """Wait. Raises Error (NodeNotHealthy) with what the node's services said last."""
        try:
            wait(host, self.diff, what="all nodes are healthy", timeout=HEALTHY_WITHIN, interval=0.5)
        except CommandTimeout as error:
            raise Error(
                f"{host.name} did not become healthy: {error.message}{self._evidence(host)}",
                host=host.name, code="NodeNotHealthy", hint="see `kubeadm-registry status`, and the services' journals",
            ) from error  # fmt: skip

    def _evidence(self, host: Host) -> str:
        """The last log lines of the services that do not run, otherwise those of the agent."""
        units = [unit for one in services(self.cluster.spec) for unit in one.units]
        try:
            down = [unit for unit in units if not host.query("systemctl", "is-active", "--quiet", "--", unit).ok]
            return "".join(f"; {unit} logged last: {last_words(host, unit)}" for unit in down or [agent.UNIT])
        except Error as error:
            return f"; {error.message}"


def add_resumption(error: PhaseFailed, hosts: Sequence[Host], *, may_go_back: bool = True) -> None:
    """Say in the hint of *error* how far the upgrade of *hosts* is, and how to go on, or back if one may."""
    names = [host.name for host in hosts]
    node = error.phase.partition("/")[0]
    hint = f"{error.hint}. " if error.hint else ""
    if node == VERIFY.name:
        error.hint = f"{hint}All nodes are upgraded: see `kubeadm-registry doctor`, then run `kubeadm-registry verify`"
    if node not in names:
        return
    done, left = names[: names.index(node)], names[names.index(node) + 1 :]
    told = [f"{', '.join(done)} {'is' if len(done) == 1 else 'are'} upgraded"] if done else []
    told += [f"{', '.join(left)} {'was' if len(left) == 1 else 'were'} not changed"] if left else []
    state = f"{'; '.join(told)}. " if told else ""
    back = ". To go back, run `upgrade` (`init` of release 0.1) of the earlier release with its bundle"
    error.hint = (
        f"{hint}{state}Fix {node}, then run `kubeadm-registry upgrade` again: it "
        f"resumes with {node}{back if may_go_back else ''}"
    )
