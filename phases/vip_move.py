"""A planned move of the virtual IP to a named node, which breaks no connection.

The agents are asked for it by a file that ends by itself. Who has a connection to the old holder keeps it, for the new
one passes on what belongs to it (``components/handover.py``). With zot the one writer goes along: the agents hold new
work, what was begun ends, then the lease passes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from kubeadm_registry.agent.document import State
from kubeadm_registry.agent.moving import Request
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import handover, health
from kubeadm_registry.engine.changes import Steps, Wait
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.errors import ConfigError, Error
from kubeadm_registry.phases.verify import serves
from kubeadm_registry.transport.host import Host, has_address, side_by_side

#: Seconds for the agents to have read what they are asked for, for the VIP to move, and for the new holder to serve.
HEARD, ARRIVAL, SERVED = 5.0, 10.0, 20.0
#: Seconds in which what hinders a move may pass, and between two looks.
PATIENCE, AGAIN = 30.0, 0.5
#: Seconds that the uploads which are in flight have to end, with one writer. New ones are held meanwhile, for 60 s.
DRAIN = 30.0
#: Conditions of an agent that say nothing about whether its node should have the VIP.
_HARMLESS = frozenset({"NoCanary", "CanaryMissing", "StorageCopying", "WriterClosing"})
#: A node that answers late serves nevertheless, and under full load all of them may.
_SLOW, _CHAIN = "ChainSlow", 1


@dataclass(frozen=True, slots=True)
class Standing:
    """Who has the VIP, and what the agents say of themselves; None: nothing, or nothing new."""

    holders: tuple[str, ...]
    agents: Mapping[str, State | None]


def look(cluster: Cluster) -> Standing:
    """Ask every node. Raises ConnectionFailed."""
    vip = cluster.spec.vip.address

    def ask(host: Host) -> tuple[bool, State | None]:
        return has_address(host, vip), health.state(host)

    answers = dict(zip((host.name for host in cluster.hosts), side_by_side(ask, cluster.hosts), strict=True))
    states = {name: state for name, (_, state) in answers.items()}
    never = health.lost(cluster, states)
    return Standing(
        tuple(name for name, (holds, _) in answers.items() if holds),
        {name: _without(state, never.get(name, 0)) for name, state in states.items()},
    )


def _without(state: State | None, never: int) -> State | None:
    """*state* of a node that will *never* get so many blocks, for no node has them: it does not copy these."""
    left = state.get("storage_left") if state is not None else None
    if state is None or left is None or not never or left["tables"] or left["blocks"] > never:
        return state
    return {**state, "conditions": [one for one in state["conditions"] if one != "StorageCopying"]}


def known(standing: Standing) -> bool:
    """Whether every agent reports and knows of planned moves: those of release 0.1 do not."""
    return all(state is not None and "moves_to" in state.get("vip", {}) for state in standing.agents.values())


def unfit(standing: Standing, name: str, *, may_be_slow: bool = False) -> str | None:
    """Why the node *name* should not have the VIP; None if it may. *may_be_slow*: late answers are no reason."""
    state = standing.agents.get(name)
    if state is None:
        return "its agent does not report"
    slow = may_be_slow and _SLOW in state["conditions"] and state["level"] == _CHAIN
    wrong = [one for one in state["conditions"] if one not in _HARMLESS and not (slow and one == _SLOW)]
    if not state["fit"] or (not slow and (state["level"] or not state.get("good", True))):
        return f"it does not serve reads well (level {state['level']}{''.join(f', {one}' for one in wrong)})"
    return f"its agent reports {', '.join(wrong)}" if wrong else None


def wanting(standing: Standing, nodes: Sequence[str]) -> Iterator[str]:
    """Why none of *nodes*, all of the cluster, may be lost now, and so none should be prepared for it."""
    for name in nodes:
        state = standing.agents.get(name)
        if state is None:
            yield f"{name} does not report"
        elif (flaw := unfit(standing, name, may_be_slow=True)) is not None:
            yield f"{name} is not healthy: {flaw}"
        elif state["quorum"]["storage"] < len(nodes):
            yield f"{name} reaches {state['quorum']['storage']} of {len(nodes)} storage nodes"
        elif "StorageCopying" in state["conditions"]:
            yield f"{name} is still copying what it missed"


def choose(standing: Standing, nodes: Sequence[str], holder: str, wanted: str | None) -> str:
    """The node that is to have the VIP: the one *wanted*, else the first other one of *nodes* that is healthy.

    Raises Error (NodeUnfit).
    """
    others = [name for name in nodes if name != holder]
    flaws = {name: unfit(standing, name) for name in ([wanted] if wanted is not None else others)}
    for name, flaw in flaws.items():
        if flaw is None or name == holder:
            return name
    told = "; ".join(f"{name}: {flaw}" for name, flaw in flaws.items())
    raise Error(
        f"no node can take the virtual IP: {told}" if wanted is None else f"{wanted} cannot take it: {flaws[wanted]}",
        code="NodeUnfit", hint="see `kubeadm-registry status`; the virtual IP stays where it is",
    )  # fmt: skip


def require_name(nodes: Sequence[str], wanted: str | None) -> None:
    """*wanted* is one of several *nodes*. Raises ConfigError; contacts nothing."""
    if wanted is not None and wanted not in nodes:
        raise ConfigError(f"there is no node {wanted}", hint=f"choose one of: {', '.join(nodes)}", code="NodeUnknown")
    if len(nodes) < 2:
        raise ConfigError(
            "there is only one node, so the virtual IP cannot move", code="OneNode",
            hint="stop the node when no client needs the registry",
        )  # fmt: skip


def plan(
    cluster: Cluster, wanted: str | None = None, *, degraded: bool = False, patience: float = PATIENCE,
    note: Callable[[str], None] = lambda _: None,
) -> Move:  # fmt: skip
    """The move of the VIP to the node *wanted*, or to the best other one. *degraded*: also while no node may be lost.

    What hinders it may pass within *patience* seconds, as when a busy node answers late, or a large push was not yet
    copied everywhere; *note* is told that this is waited for. Raises ConfigError
    (NodeUnknown, OneNode), Error (VipUnclear, NodeUnfit, NotRedundant).
    """
    require_name([node.name for node in cluster.spec.nodes], wanted)
    end, told = time.monotonic() + patience, False
    while True:
        try:
            return _plan(cluster, look(cluster), wanted, degraded=degraded)
        except Error as error:
            if time.monotonic() >= end:
                raise
            if not told:
                note(f"{error.message}; waiting up to {patience:.0f} s")
                told = True
        time.sleep(AGAIN)


def _plan(cluster: Cluster, standing: Standing, wanted: str | None, *, degraded: bool) -> Move:
    nodes = [node.name for node in cluster.spec.nodes]
    if len(standing.holders) != 1:
        raise Error(
            f"{', '.join(standing.holders) or 'no reachable node'} holds the virtual IP", code="VipUnclear",
            hint="wait until `kubeadm-registry status` names one holder",
        )  # fmt: skip
    [holder] = standing.holders
    target = choose(standing, nodes, holder, wanted)
    obstacles = [] if degraded or target == holder else list(wanting(standing, nodes))
    if obstacles:
        raise Error(
            f"no node may be lost now: {'; '.join(obstacles)}", code="NotRedundant",
            hint="wait until `kubeadm-registry status` exits with 0, or pass --degraded to move it anyway",
        )  # fmt: skip
    return Move(cluster, holder, target)


@dataclass
class Move:
    """One planned move of the VIP from the node *old* to *target*; the same one where it is there already."""

    cluster: Cluster
    old: str
    target: str
    drain_seconds: float = DRAIN
    reads: Callable[[Cluster, str, Host], str | None] = serves
    """What is wrong with reads at an address, as a host sees it."""
    reopened: set[str] = field(default_factory=set)
    """The nodes that were made to open their own connections to the VIP anew."""
    before_asking: Callable[[], None] = lambda: None
    """Called when all others have been asked, before the holder is."""
    begun: float = 0.0
    """When the holder was asked, by this machine's clock, and when writes were open at the new one; 0: not yet."""
    done: float = 0.0

    @property
    def needed(self) -> bool:
        """Whether the VIP is elsewhere as far as this run knows."""
        return self.old != self.target

    def host(self, name: str) -> Host:
        """The host of the node *name*."""
        return next(host for host in self.cluster.hosts if host.name == name)

    def arrived(self) -> bool:
        """Whether the target has all addresses of the VIP."""
        return all(has_address(self.host(self.target), address) for address in self.cluster.spec.vip.addresses)

    def _both(self, cluster: Cluster) -> Sequence[Host]:
        return [host for host in cluster.hosts if self.needed and host.name in (self.old, self.target)]

    def _holder_last(self, cluster: Cluster) -> Sequence[Host]:
        others = [host for host in cluster.hosts if host.name not in (self.old, self.target)]
        return [*others, *(host for host in cluster.hosts if self.needed and host.name == self.old)]

    def _target(self, cluster: Cluster) -> Sequence[Host]:
        return [host for host in cluster.hosts if host.name == self.target]

    # ---- the phases, as workflows.py lists them ---------------------------------------------------------------------

    @property
    def keep(self) -> Phase:
        """Existing connections are kept."""
        return Phase("keep", "Keep existing connections on the old holder", self._keep, on=self._both)

    @property
    def ask(self) -> Phase:
        """All agents but the target's give way to it; the holder's gives the VIP up."""
        return Phase("ask", "Request the move from the agents", self._ask, on=self._holder_last, one_at_a_time=True)

    @property
    def arrive(self) -> Phase:
        """The target holds the VIP."""
        return Phase("arrive", "Wait until the new holder has the virtual IP", self._arrive, on=self._target)

    @property
    def reopen(self) -> Phase:
        """Clients on the two nodes themselves reconnect."""
        return Phase("reopen", "Reset the two nodes' own connections", self._reopen, on=self._both)

    @property
    def serve(self) -> Phase:
        """Reads and writes are served at the VIP."""
        return Phase("serve", "Wait until reads and writes are served there", self._serve, on=self._target)

    def _keep(self, _: Cluster, host: Host) -> Steps:
        yield _Kept(self)

    def _ask(self, _: Cluster, host: Host) -> Steps:
        yield _Asked(self)

    def _arrive(self, _: Cluster, host: Host) -> Steps:
        yield Wait(f"{self.target} holds the virtual IP", self._missing, timeout=self.drain_seconds + ARRIVAL)

    def _missing(self, _: Host) -> str | None:
        return None if self.arrived() else f"{self.target} does not have it"

    def _reopen(self, _: Cluster, host: Host) -> Steps:
        if host.name == self.old:
            for other in self.cluster.hosts:
                yield _Straight(self, other)
        yield _Reopened(self)

    def _serve(self, _: Cluster, host: Host) -> Steps:
        vip = self.cluster.spec.vip.address
        yield Wait("writes are open", self._closed, timeout=SERVED)
        yield Wait(f"{vip} serves the canary image", lambda one: self.reads(self.cluster, vip, one), timeout=SERVED)

    def _closed(self, host: Host) -> str | None:
        """None if the new holder takes writes; where only one node may, it has to have the lease."""
        state = health.state(host)
        if state is None:
            return "its agent does not report"
        writer = state["writer"]
        if writer["mode"] != "single":
            self.done = self.begun
        elif writer["role"] != "writer":
            return f"its lease is at {writer['role']}"
        self.done = self.done or time.monotonic()
        return None

    # ---- afterwards -------------------------------------------------------------------------------------------------

    def withdraw(self) -> None:
        """The agents are asked for it no longer. Where that cannot be said, it ends by itself."""

        def tell(host: Host) -> None:
            with suppress(Error):
                handover.withdraw(host)

        side_by_side(tell, self.cluster.hosts)

    def clients(self) -> list[str]:
        """Whose connections of before other nodes than the target still serve, without those that nobody uses.

        Those of the target itself have been opened anew, and nothing reaches their old ends any more.
        """
        vips = self.cluster.spec.vip.addresses
        own = self.cluster.node(self.host(self.target)).addresses

        def served(host: Host) -> list[str]:
            if any(handover.clients(host, vip, but=own) for vip in vips):
                handover.close_idle(self.cluster, host)
            return [client for vip in vips for client in handover.clients(host, vip, but=own)]

        others = [host for host in self.cluster.hosts if host.name != self.target]
        return [client.replace(" . ", " port ") for found in side_by_side(served, others) for client in found]

    def forget(self) -> None:
        """Nobody needs any more what was passed on."""
        side_by_side(handover.end, self.cluster.hosts)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What clients have begun with the old holder goes on there."""

    move: Move
    title = "keep connections"

    def diff(self, host: Host) -> str | None:
        move = self.move
        if host.name == move.target:
            there = handover.passes_on(move.cluster, host, move.host(move.old))
            what = f"forwards packets of existing connections to {move.old}"
        else:
            there, what = handover.stays(move.cluster, host), "keeps serving its existing connections"
        return None if there else f"{what}, for {handover.LONGEST // 60} minutes at most"

    def apply(self, host: Host) -> None:
        move = self.move
        if host.name == move.target:
            handover.pass_on(move.cluster, host, move.host(move.old))
        else:
            handover.stay(move.cluster, host)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The agent of a node gives way to the target."""

    move: Move
    title = "ask the agent"

    def diff(self, host: Host) -> str | None:
        move = self.move
        if move.arrived() or (handover.asked(host) == Request(move.target) and _heeds(host) == move.target):
            return None
        what = "gives the virtual IP up to" if host.name == move.old else "leaves the virtual IP to"
        return f"its agent {what} {move.target}, for {move.drain_seconds + ARRIVAL:.0f} s at most"

    def apply(self, host: Host) -> None:
        move = self.move
        if host.name == move.old:
            move.before_asking()
            move.begun = time.monotonic()
        handover.ask(host, move.target, round(move.drain_seconds + ARRIVAL))
        waiting = Wait("its agent has read the request", self.diff, timeout=HEARD)
        waiting.apply(host)


def _heeds(host: Host) -> str | None:
    """The node to which the VIP is to move, by what the agent of *host* says."""
    state = health.state(host)
    return None if state is None else state["vip"].get("moves_to")


@dataclass(frozen=True, slots=True)
class _Straight:
    """The node *other*, which had the VIP before or never, passes nothing on: the target knows where all belongs."""

    move: Move
    other: Host
    title = "stop forwarding"

    def diff(self, _: Host) -> str | None:
        move = self.move
        if self.other.name == move.target or not handover.passes_on(move.cluster, self.other):
            return None
        return f"{self.other.name} stops forwarding connections"

    def apply(self, _: Host) -> None:
        handover.pass_no_more(self.other)


@dataclass(frozen=True, slots=True)
class _Reopened:
    """No connection that a node itself has to the VIP leads to where the VIP was."""

    move: Move
    title = "reconnect own clients"

    def diff(self, host: Host) -> str | None:
        return None if host.name in self.move.reopened else "its own connections to the virtual IP are reset"

    def apply(self, host: Host) -> None:
        handover.reopen_own(self.move.cluster, host)
        self.move.reopened.add(host.name)
