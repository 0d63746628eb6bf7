"""A round that looks at the members, and has one replaced by another's helper if ``replacement.py`` decides that."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from kubeadm_registry import members
from kubeadm_registry.access import executor
from kubeadm_registry.access import replacing as asking
from kubeadm_registry.access.replacing import Standing, Work
from kubeadm_registry.agent.model import Presence
from kubeadm_registry.components.replacing import UNIT
from kubeadm_registry.config import Node, RegistryCluster, from_object
from kubeadm_registry.errors import ConnectionFailed, Error
from kubeadm_registry.operator import probes, replacement
from kubeadm_registry.operator.conditions import Verdict, failure, rfc3339, seconds_of
from kubeadm_registry.operator.objects import CUSTOM, Object, Objects, annotation
from kubeadm_registry.operator.replacement import Machine, Replace, Seen, Snapshot
from kubeadm_registry.operator.way import Way
from kubeadm_registry.transport.ssh import UNREACHABLE
from kubeadm_registry.upkeep.nodes import addresses

KIND = "NodesInPlace"
#: Why nothing is begun: the last work was killed, by whatever.
ENDED = "ReplacingEnded"
#: Seconds after one that failed.
AGAIN = 600.0
#: Seconds by which one time may differ from look to look: it is told by another clock, and the answer takes a while.
SAME = 30.0
#: Looks, and seconds between them, until a node counts as not whole: pushes and load make some look so for a moment.
LOOKS, APART = 5, 2.0
#: Characters of the message in the record, of which the status takes no more: a failed command tells all of its output.
_LONGEST = 4096
#: Waits that say nothing of the nodes.
_UNKNOWN = frozenset({"HelpersSilent", "AgentsSilent", "NodesUnknown"})
_NO_KEY = Verdict(KIND, None, "NoHelper", "without a key for the nodes the operator does not check whether one is gone")
_CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
_UNHEARD = frozenset({Presence.SILENT.value, Presence.UNHEARD.value})


def concerns(mine: Object, way: Way) -> bool:
    """Whether there is a key for the nodes by the *way*, or was one: what *mine* says by it is no longer known."""
    said = mine.get("status", {}).get("conditions", ())
    return way.helper is not None or any(one["type"] == KIND for one in said)


@dataclass(frozen=True, slots=True)
class Turn:
    """What a round found: the condition, the record for the status of the cluster, None if nothing was ever replaced,
    and what is worth an Event besides: the steps that began since the last round."""

    verdict: Verdict
    report: dict[str, Any] | None = None
    steps: tuple[Verdict, ...] = ()


@dataclass(slots=True)
class Round:
    """A look at the nodes of *cluster*, which the object *mine* describes, at the time *now*, and what follows from it.

    *lead* is called before anything is changed, and raises Lost. *before* is the record of the round before.
    """

    mine: Object
    cluster: RegistryCluster
    way: Way
    objects: Objects
    lead: Callable[[], object]
    now: float
    before: Mapping[str, Any]
    _nodes: dict[str, Node] = field(default_factory=dict)
    """Members, and nodes that are to be."""

    def turn(self) -> Turn:
        """Look, decide, and begin what is to be done. Raises Lost."""
        if self.way.helper is None:
            return Turn(_NO_KEY, dict(self.before) or None)
        try:
            for again in range(LOOKS):
                if again:
                    time.sleep(APART)
                snapshot = self._look()
                decision = replacement.decide(snapshot, self.cluster.spec)
                if not isinstance(decision, replacement.Wait) or decision.reason != "NotWhole":
                    break
            by, work = self._newest(snapshot)
            report = self._report(by, work) or dict(self.before) or None
            done = self._decided(decision, by, work, snapshot)
        except Error as error:
            return Turn(failure(KIND, False, error), dict(self.before) or None)
        return Turn(done.verdict, done.report or report, (*self._steps(by, work), *done.steps))

    def _decided(
        self, decision: Replace | replacement.Wait | None, by: str, work: Work | None, snapshot: Snapshot
    ) -> Turn:
        if decision is None:
            text = "the registry consists of the nodes that spec.nodes lists, and none of them is gone"
            return Turn(Verdict(KIND, True, "AllInPlace", text))
        if isinstance(decision, replacement.Wait):
            status = None if decision.reason in _UNKNOWN else False
            return Turn(Verdict(KIND, status, decision.reason, decision.message))
        failed = work is not None and (work.old, work.new) == (decision.old, decision.new.name) and work.error
        if work is not None and failed and self.now - work.ended < AGAIN:
            text = f"{decision.new.name} did not take the place of {decision.old}, by {by}: {failed['message']}"
            text = "; ".join(filter(None, (text, failed["hint"], "it is retried")))
            return Turn(Verdict(KIND, False, failed["code"], text))
        if names := self._broken(decision, snapshot):
            text = f"{decision.new.name} did not take the place of {decision.old}: {_broken(', '.join(names))}"
            return Turn(Verdict(KIND, False, ENDED, f"{text}; it is retried"))
        self.lead()
        return self._edit(decision) if decision.edits else self._begin(decision)

    def _broken(self, decision: Replace, snapshot: Snapshot) -> list[str]:
        """The members that may do it, if the work ended without a result on each of them lately; else none."""
        works = {one.name: one.standing.work for one in snapshot.members
                 if one.standing is not None and one.name in decision.by}  # fmt: skip
        lately = [name for name, work in works.items()
                  if work is not None and work.broken and (work.old, work.new) == (decision.old, decision.new.name)
                  and self.now - work.began < AGAIN]  # fmt: skip
        return lately if len(lately) == len(works) else []

    def _edit(self, decision: Replace) -> Turn:
        """Write into ``spec.nodes`` what the next round then has done: the object says what the registry is to be."""
        old, new = decision.old, decision.new
        described = new.model_dump(by_alias=True, exclude_none=True, exclude={"ssh"}, mode="json")
        listed = [described if one["name"] == old else one for one in self.mine["spec"]["nodes"]]
        from_object({**self.mine, "spec": {**self.mine["spec"], "nodes": listed}})  # else nobody could read it any more
        metadata = self.mine["metadata"]
        # With the version that was seen: an edit of somebody else's meanwhile is not overwritten.
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "spec": {"nodes": listed}}
        self.objects.merge(f"{CUSTOM}/registryclusters/{metadata['name']}", patch)
        text = f"{old} is gone; spec.nodes lists {new.name} in its place now"
        report = {"old": old, "new": new.name, "cause": "NodeGone", "began": rfc3339(self.now), "result": "Running"}
        return Turn(Verdict(KIND, False, "Replacing", text), report, (Verdict("Replacement", True, "NodeGone", text),))

    def _begin(self, decision: Replace) -> Turn:
        """Have it done by the first member that takes it. Raises Error as the first one does."""
        first: Error | None = None
        for name in decision.by:
            try:
                standing = asking.begin(self._ask(self._nodes[name]), decision.old, decision.new).by_clock(time.time())
            except Error as error:
                first = first or error
                continue
            text = f"{decision.new.name} takes the place of {decision.old} (by {name})"
            return Turn(
                Verdict(KIND, False, "Replacing", text), self._report(name, standing.work),
                (Verdict("Replacement", True, "Begun", text),),
            )  # fmt: skip
        raise first or AssertionError("decide names a member")

    # ---- what is seen -----------------------------------------------------------------------------------------------

    def _look(self) -> Snapshot:
        """Everything that a decision needs, asked side by side. Raises Error (MembersConflict, NewerFormat)."""
        self._nodes = {node.name: node for node in self.cluster.spec.nodes}
        with ThreadPoolExecutor(8, "replacement") as pool:
            found = dict(zip(self._nodes, pool.map(self._standing, self._nodes.values()), strict=True))
            lists = {name: one.members for name, one in found.items() if isinstance(one, Standing) and one.members}
            listed = members.newest(lists)
            if listed is not None:
                more = {name: Node(name=name, address=at) for name, at in listed.nodes.items()
                        if name not in self._nodes}  # fmt: skip
                found.update(zip(more, pool.map(self._standing, more.values()), strict=True))
                self._nodes.update(more)
            names = tuple(listed.nodes) if listed is not None else ()
            seen = list(pool.map(lambda name: self._seen(name, found[name]), names))
        away = [one.name for one in seen if not one.answers]
        return Snapshot(
            self.now, listed, tuple(seen), self._machines(away[0]) if len(away) == 1 else None,
            _away(self.mine, self.now),
            (str(self.before.get("old", "")), str(self.before.get("new", ""))),
            next((f"{name}: {one.advice}" for name, one in found.items() if isinstance(one, Error)), ""),
        )  # fmt: skip

    def _ask(self, node: Node) -> executor.ByHelper:
        found = self.way.node(self.cluster, node)
        assert found is not None  # noqa: S101  without a key there is no round
        return found

    def _standing(self, node: Node) -> Standing | Error:
        try:
            # The clocks of nodes may differ: which work is the last, and when it failed, is judged by this one.
            return asking.look(self._ask(node)).by_clock(time.time())
        except Error as error:
            return error

    def _seen(self, name: str, standing: Standing | Error) -> Seen:
        """*name*, whose helper said *standing*, and its agent."""
        node = self._nodes[name]
        told = standing if isinstance(standing, Standing) else None
        silent = isinstance(standing, ConnectionFailed) and standing.code == UNREACHABLE
        state, why = None, ""
        try:
            state = None if silent else self._ask(node).look().agent
        except Error as error:
            why = error.advice
        if state is None:
            answers = not silent or isinstance(probes.agent(self.way, node.address), probes.Agent)
            return Seen(name, answers or probes.probe(self.way, node.address).serves, standing=told, why=why)
        unheard = {peer: one.get("age") for peer, one in state["peers"].items() if one["presence"] in _UNHEARD}
        generation = (state.get("members") or {}).get("generation")  # an agent of release 0.1 has no such key
        return Seen(name, True, generation, unheard, _trouble(state, unheard), told)

    def _machines(self, old: str) -> tuple[Machine, ...] | None:
        """The Nodes of the control plane, and that of *old*; None if Kubernetes does not tell."""
        try:
            listed = self.objects.get(f"/api/v1/nodes?labelSelector={_CONTROL_PLANE}")
            own = self.objects.get(f"/api/v1/nodes/{old}")
        except ConnectionFailed:
            return None
        items = {one["metadata"]["name"]: one for one in (*(listed or {}).get("items", ()), *([own] if own else []))}
        return tuple(map(_machine, items.values()))

    def _newest(self, snapshot: Snapshot) -> tuple[str, Work | None]:
        """The work that runs, else the one that was begun last, and by whom; none if the record is of a later one.

        One that names no nodes is of a unit that nobody asked for anything.
        """
        found = [(one.name, one.standing.work) for one in snapshot.members
                 if one.standing is not None and one.standing.work is not None and one.standing.work.new]  # fmt: skip
        if not found:
            return "", None
        name, work = max(found, key=lambda one: (one[1].runs, one[1].began, one[0]))
        later = "began" in self.before and seconds_of(self.before["began"]) > work.began + SAME
        return ("", None) if later and not self._same(work) else (name, work)

    def _same(self, work: Work) -> bool:
        """Whether the record is of the replacement that *work* is about."""
        return (self.before.get("old"), self.before.get("new")) == (work.old, work.new)

    def _known(self, by: str, work: Work) -> Mapping[str, Any]:
        """The record, if it is of this very *work* of the member *by*; else nothing."""
        if not self._same(work) or self.before.get("node") != by:
            return {}
        return self.before if abs(seconds_of(self.before["began"]) - work.began) <= SAME else {}

    # ---- what is told -----------------------------------------------------------------------------------------------

    def _report(self, by: str, work: Work | None) -> dict[str, Any] | None:
        """The record of *work*, which the member *by* does or did."""
        if work is None:
            return None
        known = self._known(by, work)
        result = "Running" if work.runs else "Failed" if work.error is not None else "Done" if work.ended else "Ended"
        return {
            "old": work.old, "new": work.new,
            "cause": self.before.get("cause", "SpecChanged") if self._same(work) else "SpecChanged",
            "node": by, "began": known.get("began", rfc3339(work.began)), "result": result,
            **({"step": work.steps[-1]} if work.steps else {}),
            **({"ended": known.get("ended", rfc3339(work.ended))} if work.ended else {}),
            **({"message": _failed(work.error)} if work.error is not None else {}),
        }  # fmt: skip

    def _steps(self, by: str, work: Work | None) -> Iterator[Verdict]:
        """The phases of *work* that began since the round before, and its end."""
        if work is None:
            return
        known = self._known(by, work)
        told = work.steps.index(known["step"]) + 1 if known.get("step") in work.steps else 0
        what = f"{work.new} takes the place of {work.old}"
        tops = [path.partition("/")[0] for path in work.steps]
        for index in range(told, len(tops)):
            if tops[index - 1 : index] != [tops[index]]:
                yield Verdict("Replacement", True, f"Step{tops[index].capitalize()}", f"{what}: {tops[index]}")
        if work.broken and known.get("result") == "Running":
            yield Verdict("Replacement", False, ENDED, f"{what}: {_broken(by)}")
        if work.ended and known.get("result", "Running") == "Running":
            if work.error is None:
                yield Verdict("Replacement", True, "Replaced", f"{work.new} has taken the place of {work.old}")
            else:
                yield Verdict("Replacement", False, work.error["code"], f"{what}: {work.error['message']}")


def _broken(names: str) -> str:
    """What is said of work that was killed on *names*."""
    return f"the work ended without a result; see `journalctl -u {UNIT}` on {names}"


def _failed(error: Mapping[str, Any]) -> str:
    """Why it failed, and what to do: of a message that is too long the beginning and the end, which says more."""
    message, hint = str(error["message"]), f"; {error['hint']}"[: _LONGEST // 2] if error["hint"] else ""
    if len(message) + len(hint) > _LONGEST:
        left = _LONGEST - len(hint) - len(" ... ")
        message = f"{message[: left // 2]} ... {message[left // 2 - left :]}"
    return f"{message}{hint}"


def _trouble(state: Mapping[str, Any], unheard: Mapping[str, Any]) -> str:
    """Why a node with the agent's *state* is not to be relied on. Tables that it cannot compare with a node that is
    away are left all the time, blocks are not; and while images are pushed the condition stays, with nothing left."""
    left = state.get("storage_left")
    copies = left is None or left["blocks"] or (left["tables"] and not unheard)
    if "StorageCopying" in state["conditions"] and copies:
        return "its storage is still copying what it missed"
    if state["level"]:
        return f"it does not serve reads well (level {state['level']})"
    return ""


def _machine(found: Object) -> Machine:
    metadata, status = found["metadata"], found.get("status", {})
    labels = metadata.get("labels") or {}
    ready = next((one for one in status.get("conditions", ()) if one["type"] == "Ready"), None)
    return Machine(
        metadata["name"],
        addresses(found),
        ready is not None and ready["status"] == "True",
        seconds_of(ready["lastTransitionTime"] if ready is not None else metadata["creationTimestamp"]),
        replacement.SPARE in labels and _CONTROL_PLANE in labels,
        annotation(found, replacement.HOST_KEY),
    )  # fmt: skip


def _away(mine: Object, now: float) -> dict[str, float]:
    """Since when nodes are not available, by the status that the rounds of health write; and do not answer in any other
    way, as a node does that is kept out of service: until then all were in place."""
    status = mine.get("status", {})
    placed = next((one for one in status.get("conditions", ()) if one["type"] == KIND), None)
    since = 0.0 if placed is None else now if placed["status"] != "False" else seconds_of(placed["lastTransitionTime"])
    return {
        node["name"]: max(since, seconds_of(one["lastTransitionTime"]))
        for node in status.get("nodes", ())
        for one in node.get("health", ())
        if one["type"] == "Available" and one["status"] != "True"
    }
