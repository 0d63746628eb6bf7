"""Workflows: phases in their order, each with the wanted states and the checks that run before anything changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kubeadm_registry.cluster import Cluster, every_node
from kubeadm_registry.engine.changes import Steps
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.transport.host import Host


@dataclass(frozen=True, slots=True)
class Check:
    """A precondition. A healthy host with an installed registry passes it.

    *name* is what --ignore-preflight-errors takes; *probe* yields one sentence for each problem, with its remedy.
    A *mandatory* check cannot be ignored, because the run would destroy data that nobody asked to destroy. A check that
    measures response times runs *alone*, after the others.
    """

    name: str
    probe: Callable[[Cluster, Host], Iterator[str]]
    on: Callable[[Cluster], Sequence[Host]] = every_node
    mandatory: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a workflow: the wanted states of some hosts (*steps*), or a group of *phases*.

    *notices* yields what is not changed although users may expect it; it is called after the steps.
    *gives_up*: if a host fails in this phase, the run continues without it: a warning with these words is shown, and
    further phases with *gives_up* skip the host. Empty: the run fails.
    *one_at_a_time*: the phase restarts what users depend on, so hosts are changed one after another. With
    *first_at_once* a first installation changes them in parallel, since nobody depends on them yet.
    """

    name: str
    summary: str
    steps: Callable[[Cluster, Host], Steps] | None = None
    on: Callable[[Cluster], Sequence[Host]] = every_node
    checks: tuple[Check, ...] = ()
    phases: tuple[Phase, ...] = ()
    one_at_a_time: bool = False
    first_at_once: bool = False
    gives_up: str = ""
    notices: Callable[[Cluster, Host], Iterator[str]] | None = None

    def changes(self, cluster: Cluster, host: Host) -> Steps:
        """The wanted states of *host*; none for a group of phases."""
        return iter(()) if self.steps is None else self.steps(cluster, host)


Workflow = Sequence[Phase]


def leaves(workflow: Workflow, above: str = "") -> Iterator[tuple[str, Phase]]:
    """Every phase with its path (``backend/install``), depth first, a group before its phases."""
    for phase in workflow:
        path = f"{above}{phase.name}"
        yield path, phase
        yield from leaves(phase.phases, f"{path}/")


def select(workflow: Workflow, only: Sequence[str] = (), skip: Sequence[str] = ()) -> list[tuple[str, Phase]]:
    """The phases in *only* (empty: all) and below, without those in *skip* and below. Raises ConfigError."""
    known = list(leaves(workflow))
    for name in (*only, *skip):
        if name not in dict(known):
            paths = ", ".join(path for path, _ in known)
            raise ConfigError(f"unknown phase {name}", hint=f"choose one of: {paths}", code="PhaseUnknown")

    def within(path: str, names: Sequence[str]) -> bool:
        return any(path == name or path.startswith(f"{name}/") for name in names)

    return [(path, phase) for path, phase in known if (not only or within(path, only)) and not within(path, skip)]


def require_checks(workflow: Workflow, names: Sequence[str]) -> None:
    """Raise ConfigError unless each of *names* is a check of *workflow*, or ``all``."""
    known = dict.fromkeys(check.name for _, phase in leaves(workflow) for check in phase.checks)
    unknown = [name for name in names if name not in {*known, "all"}]
    if unknown:
        raise ConfigError(
            f"unknown check {', '.join(unknown)}", hint=f"choose from: {', '.join(known)}", code="CheckUnknown"
        )
