"""The preview of an upgrade, for `upgrade plan`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kubeadm_registry import members, secrets
from kubeadm_registry.access import collecting
from kubeadm_registry.agent import document, moves, moving, promised, pulls, trend
from kubeadm_registry.bundle.programs import numbers
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import compatibility, executor_files, helper, programs, replacing, running
from kubeadm_registry.components.compatibility import AGENT, Plan, Record
from kubeadm_registry.containerd import record
from kubeadm_registry.engine.memory import remembering
from kubeadm_registry.engine.phase import Workflow
from kubeadm_registry.images import brought, seeded
from kubeadm_registry.members import FIRST
from kubeadm_registry.phases import upgrade
from kubeadm_registry.phases.agent import AGENT as AGENT_PHASE
from kubeadm_registry.retention import history, ledger, order, standing, trash
from kubeadm_registry.retention import record as plan
from kubeadm_registry.transport.host import Host, has_address, side_by_side

#: All that lies on a node or in the registry; the files of a workstation and messages are not among them.
_FORMATS = (
    secrets.FORMAT, programs.FORMAT, members.FORMAT, *record.FORMATS, seeded.FORMAT, brought.FORMAT,
    plan.FORMAT, ledger.FORMAT, history.FORMAT, trash.FORMAT, standing.FORMAT, standing.SPENT, order.FORMAT,
    executor_files.FORMAT, executor_files.RESULT, helper.SETTINGS, helper.REQUEST, helper.RESULT, collecting.NOTED,
    replacing.REQUESTED, replacing.WORKED, replacing.NOTED,
    promised.FORMAT, document.FORMAT, moving.FORMAT, moves.FORMAT, trend.FORMAT, pulls.RECORD, pulls.POSITION,
)  # fmt: skip
RECORDS = tuple(Record(one.name, max(one.min_reader, one.min_writer)) for one in _FORMATS)
"""What this release writes to nodes and registry, and an earlier one would have to read and write."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The changes on one node: *verbs* by unit (``start``, ``reload``, ``restart``)."""

    node: str
    verbs: tuple[tuple[str, str], ...]
    holds_vip: bool
    moves_vip: bool


@dataclass(frozen=True, slots=True)
class Overview:
    """What an upgrade would do, for people: the versions that run and are *wanted*, the *plan*, the *turns* in order.

    A plan with refusals has no turns. *way_back*: why the release that runs cannot take over again afterwards; empty:
    it can.
    """

    current: dict[str, dict[str, str]]
    wanted: dict[str, str]
    plan: Plan
    turns: tuple[Turn, ...]
    before: str
    way_back: tuple[str, ...]


def overview(cluster: Cluster, phases: Workflow) -> Overview:
    """Look at all nodes; *phases* are those that each node goes through. Nothing is changed."""
    cluster = remembering(cluster.for_dry_run())
    hosts = upgrade.order(cluster)
    current = dict(zip((host.name for host in hosts), upgrade.versions(cluster, hosts), strict=True))
    wanted = running.wanted(cluster)
    before = _release(current.values())
    found = upgrade.plan(cluster, hosts)
    if refused := tuple(_refused(cluster)):
        found = Plan((), (*found.refusals, *refused))
    turns = [] if found.refusals else side_by_side(lambda host: _turn(cluster, host, phases), hosts)
    return Overview(current, wanted, found, tuple(turns), before, tuple(_way_back(cluster, before)))


def _refused(cluster: Cluster) -> Iterator[str]:
    """What other checks find that nobody can ignore."""
    for check in AGENT_PHASE.checks:
        for host in check.on(cluster):
            yield from (f"{host.name}: {text}" for text in check.probe(cluster, host))


def way_back(cluster: Cluster) -> tuple[str, ...]:
    """Why the release that runs cannot take over again after an upgrade; empty: it can. Nothing is changed."""
    return tuple(_way_back(cluster, _release(upgrade.versions(cluster, cluster.hosts))))


def _release(current: Iterable[Mapping[str, str]]) -> str:
    """The oldest release whose agent runs, by the versions of the programs on each node; empty if none is known."""
    known = (there[AGENT] for there in current if AGENT in there)
    return min(known, key=numbers, default="")


def _way_back(cluster: Cluster, before: str) -> Iterator[str]:
    yield from compatibility.way_back(before, RECORDS)
    if not before or numbers(before)[:2] >= (0, 2):
        return
    if cluster.members.generation > FIRST:
        yield f"release {before} has no member list: with it no node accepts pushes after members changed"
    if cluster.vault.preview().exchanging:
        yield f"release {before} may not change secrets while some are exchanged: complete that first"


def _turn(cluster: Cluster, host: Host, phases: Workflow) -> Turn:
    verbs = tuple(dict(upgrade.verbs(cluster, host, phases)).items())
    holds = has_address(host, cluster.spec.vip.address)
    return Turn(host.name, verbs, holds, upgrade.leaves(cluster).diff(host) is not None)
