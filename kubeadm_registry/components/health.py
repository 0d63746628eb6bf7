"""Whether nodes are well enough for one of them to be changed, or have come back: by what their agents report."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from kubeadm_registry import formats, paths
from kubeadm_registry.agent import document
from kubeadm_registry.agent.document import State
from kubeadm_registry.agent.formats import Damaged, Newer
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.services import backend
from kubeadm_registry.engine.changes import STARTED
from kubeadm_registry.errors import Error
from kubeadm_registry.printable import counted
from kubeadm_registry.transport.host import Host, side_by_side

#: Seconds. An agent writes its state every second; one that is silent for longer is not believed.
STALE_AFTER = 5.0
#: Seconds for which a node must have run after its latest start or reload of a service before its agent is believed:
#: what it reports until then may be of the moment before.
SETTLED = 4.0
#: The same for what its storage has left to copy: tables are compared first, and the blocks found so wait for 4 s.
COMPARED = 12.0
#: Seconds for which a node must be ill to be taken for it, and between two looks.
PATIENCE, APART = 20.0, 1.0
#: The same for nodes that may have copies to make still: that ends by itself.
COPIED_WITHIN = 60.0
#: The node's clock, then what its agent reports.
_STATE = 'date +%s.%N; cat -- "$1" 2>/dev/null || :'
#: What the agents of the other nodes report because of a node that is away: they are healthy nevertheless.
OF_OTHERS = frozenset({"StoragePartial", "StorageCopying", "MembersDiffer"})

#: ``$1`` the agent's state, ``$2`` the directory with a record of each service's latest start. On who records the pulls
#: no pull and no push depends.
_ASK = """
date +%s.%N
find "$2" -type f ! -name '*-pulls.service' -printf '%T@\\n' 2>/dev/null | sort -n | tail -n 1
echo ---
cat -- "$1" 2>/dev/null || :
"""


@dataclass(frozen=True, slots=True)
class Report:
    """What the agent of a node reports; *state* is None where nothing that counts is reported, and *trouble* says why.

    An agent of another release may lack keys.
    """

    node: str
    state: Mapping[str, Any] | None
    trouble: str = ""
    runs: float = COMPARED
    """Seconds from the latest start of a service on the node to the report."""


def report(host: Host) -> Report:
    """Ask *host*. One that does not answer is a report as well."""
    try:
        answer = host.live.query("sh", "-c", _ASK, "health", paths.AGENT_STATE, STARTED, timeout=15)
        told, _, text = answer.stdout.decode(errors="replace").partition("---\n")
        now, started = (*map(float, told.split()), 0.0)[:2]
    except (Error, ValueError) as error:
        return Report(host.name, None, f"cannot be asked: {error}")
    state = document.read(text)
    if state is None:
        return Report(host.name, None, _nothing_in(text))
    moment = float(state["time"])
    if abs(now - moment) >= STALE_AFTER:  # either way: a clock may have been set back
        return Report(host.name, None, f"its agent last reported {now - moment:.0f} s ago")
    if moment < started + SETTLED:
        return Report(host.name, None, "its services have just been started; waiting for a later report of its agent")
    return Report(host.name, state, runs=moment - started)


def _nothing_in(text: str) -> str:
    """Why there is no state in what an agent wrote."""
    try:
        document.FORMAT.parse(text)
    except Newer as error:
        return f"{error}; {formats.HINT}"
    except Damaged:
        pass
    return "its agent reports no state"


def state(host: Host) -> State | None:
    """What the agent of *host* says, also soon after a start; None if it says nothing, or nothing new.

    Raises ConnectionFailed.
    """
    now, _, text = host.query("sh", "-c", _STATE, "state", paths.AGENT_STATE, timeout=15).text.partition("\n")
    return fresh(text, float(now))


def fresh(text: str, now: float) -> State | None:
    """What an agent wrote, as of *now* at its node; None if it is silent, or wrote nothing that can be read.

    Either way: where the clock went back, a dead agent's last words are of the future.
    """
    found = document.read(text)
    return found if found is not None and abs(now - float(found["time"])) < STALE_AFTER else None


def reports(cluster: Cluster) -> list[Report]:
    """Ask all nodes, side by side. Blocks that no node has are left nowhere: nothing will bring them."""
    away = (Report(name, None, why) for name, why in cluster.absent.items())
    found = [*side_by_side(report, cluster.hosts), *away]
    never = lost(cluster, {one.node: one.state for one in found})
    return [replace(one, state=_without(one.state, never.get(one.node, 0))) for one in found]


def lost(cluster: Cluster, states: Mapping[str, Mapping[str, Any] | None]) -> Mapping[str, int]:
    """How many of the blocks that are left by the *states* of agents no node has, by node; the others have none.

    The nodes are asked for them where blocks that it failed to get are all that a node has left.
    """

    def failing(state: Mapping[str, Any]) -> bool:
        left, queues = state.get("storage_left") or {}, state.get("storage_queues") or {}
        return not left.get("tables") and 0 < left.get("blocks", 0) <= queues.get("errors", 0)

    if any(state is not None and failing(state) for state in states.values()):
        with suppress(Error):
            # Its agent has found some of them out and does not count these as left.
            known = {name: (state or {}).get("storage_lost") or 0 for name, state in states.items()}
            found = backend(cluster.spec).lost(cluster)
            return {name: max(0, count - known.get(name, 0)) for name, count in found.items()}
    return {}


def _without(state: Mapping[str, Any] | None, never: int) -> Mapping[str, Any] | None:
    if state is None or not never:
        return state
    left = state["storage_left"]
    return {**state, "storage_left": {**left, "blocks": max(0, left["blocks"] - never)}}


def ill(found: Sequence[Report]) -> list[str]:
    """The nodes that are not healthy by their own reports, whatever these say because of others."""
    return [one.node for one in found if any(_node(one, [one], 1, 0, OF_OTHERS))]


def lastingly_ill(cluster: Cluster) -> list[str]:
    """The nodes that are not healthy at any look within PATIENCE: load makes some look so for a moment."""
    end = time.monotonic() + PATIENCE
    left = ill(reports(cluster))
    while left and time.monotonic() < end:
        time.sleep(APART)
        now = ill(reports(cluster))
        left = [node for node in left if node in now]
    return left


def uncompared(found: Sequence[Report]) -> list[str]:
    """Why nodes may not know all objects that the storage has, in sentences; blocks that they lack do not count."""
    told = []
    for one in found:
        left = one.state.get("storage_left") if one.state is not None else None
        tables = left["tables"] if left is not None else 0
        if one.state is None:
            told.append(f"{one.node}: {one.trouble}")
        elif left is None:
            told.append(f"{one.node}: its storage has not reported yet which tables it has to compare")
        elif tables or one.runs < COMPARED:
            told.append(f"{one.node}: its storage compares tables, {counted(tables, 'part')} left")
    return told


def problems(found: Sequence[Report]) -> list[str]:
    """Why the registry is not healthy on all nodes, in sentences that begin with a node's name; empty: it is.

    Healthy is: every agent reports, reads the canary image through its own registry and storage, hears all others, and
    sees the storage on all nodes with nothing left to copy; one node has the virtual IP, and one the lease.
    """
    return [text for texts in by_node(found).values() for text in texts] or of_all(found)


def by_node(found: Sequence[Report], *, but: str = "", leaves: bool = False) -> dict[str, list[str]]:
    """What of that each node reports, by its name; the state of *but* does not count, and it is not among them.

    What the others report because *but* is away is no problem of theirs; nor, if it *leaves*, because they do not reach
    it, though what they miss counts while it is well.
    """
    judged = [one for one in found if one.node != but]
    away = but in ill(found)
    ignored = OF_OTHERS if away else OF_OTHERS - {"StorageCopying"} if leaves else frozenset[str]()
    needed = len(found) - (away or leaves)
    return {one.node: list(_node(one, judged, len(found), needed, ignored)) for one in judged}


def of_all(found: Sequence[Report]) -> list[str]:
    """What is wrong with the registry as a whole: who has the virtual IP, and the lease."""
    states = {one.node: one.state for one in found if one.state is not None}
    return [*_held(states), *_leased(states)]


def _node(one: Report, judged: Sequence[Report], nodes: int, needed: int, ignored: Collection[str]) -> Iterator[str]:
    """*needed* of all *nodes* must be reached by the storage; the conditions *ignored* are no problem of this node."""
    state = one.state
    if state is None:
        yield f"{one.node}: {one.trouble}"
        return
    conditions = [name for name in state.get("conditions", ()) if name not in ignored]
    left = state.get("storage_left")
    if "StorageCopying" in conditions and (left is None or any(left.values()) or one.runs < COMPARED):
        # While images are pushed the condition stays, for there are new blocks at most looks. Where nothing is left for
        # a moment, what the node missed has come.
        left = left or {"blocks": 0, "tables": 0}
        what = f"{counted(left['blocks'], 'block')} and {counted(left['tables'], 'part')} of tables"
        yield f"{one.node}: its storage is copying what it missed, {what} are left"
    if not state.get("fit") or state.get("level"):
        yield f"{one.node}: does not serve reads (level {state.get('level')}, {_words(conditions)})"
    elif others := [name for name in conditions if name != "StorageCopying"]:
        yield f"{one.node}: its agent reports {_words(others)}"
    reached = (state.get("quorum") or {}).get("storage", 0)
    if reached < needed:
        yield f"{one.node}: its storage reaches {reached} of {nodes} nodes"
    yield from _unheard(one.node, state, [other.node for other in judged if other.node != one.node])


def _words(conditions: Collection[str]) -> str:
    return ", ".join(conditions) or "no condition"


def _unheard(node: str, state: Mapping[str, Any], others: Sequence[str]) -> Iterator[str]:
    peers = state.get("peers") or {}
    for other in others:
        presence = peers[other]["presence"] if other in peers else "unknown"
        if presence != "fresh":
            yield f"{node}: does not hear the agent of {other} ({presence})"


@dataclass
class Watch:
    """Looks until each node was healthy at one look; *but* one of them, which may leave (*leaves*, see ``by_node``).

    Load makes nodes look ill for a moment.

    A node that was healthy once has what it missed, for it says so only when all has been compared; but not one that is
    silent since, or does not serve.
    """

    cluster: Cluster
    but: str = ""
    leaves: bool = False
    _well: set[str] = field(default_factory=set)
    _done: bool = False

    def look(self) -> str | None:
        """Ask all nodes: None once it is so, also later; else what is not well still."""
        if self._done:
            return None
        found = reports(self.cluster)
        told = by_node(found, but=self.but, leaves=self.leaves)
        self._well |= {node for node, texts in told.items() if not texts}
        self._well -= {one.node for one in found if one.state is None or not one.state.get("fit", True)}
        left = [text for node, texts in told.items() if node not in self._well for text in texts]
        if not left and not self.but:
            left = of_all(found)
        self._done = not left
        return "; ".join(left) or None


def unready(cluster: Cluster, but: str, *, leaves: bool) -> str | None:
    """What is not well on the nodes other than *but*, unless each of them is healthy at one look within COPIED_WITHIN.

    For *leaves* see ``by_node``.
    """
    watch, end = Watch(cluster, but, leaves), time.monotonic() + COPIED_WITHIN
    while (told := watch.look()) is not None and time.monotonic() < end:
        time.sleep(APART)
    return told


def _held(states: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    holders = [node for node, state in states.items() if (state.get("vip") or {}).get("held")]
    if len(holders) != 1:
        yield f"{', '.join(holders) or 'no node'}: holds the virtual IP, and exactly one node must"


def _leased(states: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Agents of releases that had no lease report no role."""
    roles = {node: (state.get("writer") or {}).get("role") for node, state in states.items()}
    holders = [node for node, role in roles.items() if role == "writer"]
    if len(holders) != 1 and any(role is not None for role in roles.values()):
        yield f"{', '.join(holders) or 'no node'}: has the lease, and exactly one node must"
