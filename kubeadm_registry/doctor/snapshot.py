"""Everything that the rules may know: what each node said, and what preflight, init and status make of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kubeadm_registry import paths
from kubeadm_registry.agent.model import Level, Presence
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.doctor.facts import Facts, Unit
from kubeadm_registry.engine.look import Difference
from kubeadm_registry.errors import Error, Problem
from kubeadm_registry.status import NodeStatus, condition, unlisted


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """One node. Without *facts* it did not answer, and ``status.trouble`` says why."""

    name: str
    address: str
    status: NodeStatus
    earlier: NodeStatus
    """The same, some seconds before: what an agent reports for a moment only is no finding."""
    facts: Facts | None = None
    stores: bool = False
    """Whether its storage may have stored something: it has the layout on its disk."""
    made: bool = False
    """Whether it has the storage's configuration."""
    problems: Sequence[Problem] = ()
    """What the checks of preflight found."""
    differences: Sequence[Difference] = ()
    """What init would change."""

    @property
    def installed(self) -> bool:
        """Whether anything of the registry is on it beside the programs, which ``preflight`` uploads."""
        return self.facts is not None and bool(self.facts.tree - {paths.PROGRAMS})

    @property
    def conditions(self) -> set[str]:
        """What its agent reports now, and did some seconds ago."""
        both = [set(one.agent.get("conditions", ())) if one.agent else set() for one in (self.earlier, self.status)]
        return both[0] & both[1]

    @property
    def lost(self) -> int:
        """Blocks that it should have and no node has, as its agent reports now, and did some seconds ago."""
        return min((one.agent.get("storage_lost") or 0) if one.agent else 0 for one in (self.earlier, self.status))

    @property
    def silent(self) -> bool:
        """Whether it answers, and its agent has told nothing both times."""
        return self.facts is not None and self.status.agent is None and self.earlier.agent is None

    def hears(self, name: str) -> bool | None:
        """Whether its agent hears the node *name*, once at least; None if it does not tell."""
        told = [
            peer.get("presence") == Presence.FRESH.value
            for one in (self.earlier, self.status)
            if one.agent is not None and (peer := one.agent.get("peers", {}).get(name)) is not None
        ]
        return any(told) if told else None

    def peer(self, name: str) -> Mapping[str, Any]:
        """What its agent tells of the node *name*."""
        agent = self.status.agent or self.earlier.agent
        return {} if agent is None else dict(agent.get("peers", {}).get(name, {}))

    def unit(self, name: str) -> Unit | None:
        """What systemd says of a unit, if the node answered."""
        return None if self.facts is None else self.facts.units.get(name)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The registry at a moment. *judged* is what ``status`` says, *judged_earlier* what it said some seconds before."""

    config: RegistryCluster
    nodes: Sequence[NodeSnapshot]
    judged: Mapping[str, Any]
    judged_earlier: Mapping[str, Any]
    made: bool = True
    """Whether it was ever installed: a node that answers has secrets, configuration or data."""
    secrets_error: Error | None = None
    """Why the nodes' secrets cannot be read or do not match."""
    moment: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def answering(self) -> Iterator[tuple[NodeSnapshot, Facts]]:
        """The nodes that answered."""
        return ((one, one.facts) for one in self.nodes if one.facts is not None)

    @property
    def unreachable(self) -> list[NodeSnapshot]:
        """The nodes that did not."""
        return [one for one in self.nodes if one.facts is None]

    @property
    def unlisted(self) -> Mapping[str, str]:
        """Nodes of the registry that the cluster file does not list, with their addresses."""
        return unlisted(self.config, [*(one.earlier for one in self.nodes), *(one.status for one in self.nodes)])

    def heard_by(self, name: str) -> list[str]:
        """The nodes whose agents hear the node *name*."""
        return [one.name for one in self.nodes if one.hears(name)]

    @property
    def holders(self) -> list[str]:
        """The nodes that held the virtual IP at both moments: one that moves is on two nodes, one at a time."""
        vip = self.config.spec.vip.address
        return [one.name for one in self.nodes if vip in one.status.vip and vip in one.earlier.vip]

    @property
    def held(self) -> bool:
        """Whether a node held the virtual IP at one of the two moments at least."""
        vip = self.config.spec.vip.address
        return any(vip in (*one.status.vip, *one.earlier.vip) for one in self.nodes)

    @property
    def serving(self) -> bool:
        """Whether the registry answers at the virtual IP.

        As ``status`` has it at one of the two moments; where that does not know who holds it, somebody answers for the
        address, and the agents hear that a node which SSH does not reach, or which the file does not list, is fit.
        """
        said = {condition(one, "Available") for one in (self.judged, self.judged_earlier)}
        if said != {"Unknown"}:
            return "True" in said
        answered = any(found for _, facts in self.answering for found in facts.answers.values())
        others = (*(one.name for one in self.unreachable), *self.unlisted)
        fit = any(one.peer(name).get("level") == Level.FIT for name in others for one in self.nodes)
        return answered and fit
