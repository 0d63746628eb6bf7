"""What a workflow consists of: phases, one after another, with what should be so and what must be so before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kubeadm_registry.cluster import Cluster, every_node
from kubeadm_registry.engine.changes import Steps
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.transport.host import Host


@dataclass(frozen=True, slots=True)
class Check:
    """A precondition. A healthy host on which the registry is installed passes it.

    *name* is what --ignore-preflight-errors takes; *probe* yields one sentence with its remedy for each problem.
    A *mandatory* one cannot be ignored: going on would destroy what nobody asked to destroy. One that measures how long
    an answer takes is asked *alone*, after the others.
    """

    name: str
    probe: Callable[[Cluster, Host], Iterator[str]]
    on: Callable[[Cluster], Sequence[Host]] = every_node
    mandatory: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a workflow: what should be so on which hosts, or phases below it.

    *notices* tells of what stays as it is although somebody may expect otherwise; it is asked after the steps.
    *gives_up*: a host that fails here is left as it is and warned of, with these words, and further phases that give up
    hosts leave it out; the run goes on. Empty: the run fails.
    *one_at_a_time*: what users depend on is restarted here, so the next host waits until this one is done; with
    *first_at_once* not in a first installation, when nobody depends on it yet and no host asks about another.
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
    """Every phase with its path (``backend/install``), depth first, those with sub-phases before these."""
    for phase in workflow:
        path = f"{above}{phase.name}"
        yield path, phase
        yield from leaves(phase.phases, f"{path}/")


def select(workflow: Workflow, only: Sequence[str] = (), skip: Sequence[str] = ()) -> list[tuple[str, Phase]]:
    """The phases named by *only* (all if empty) with those below them, without *skip*. Raises ConfigError."""
    known = list(leaves(workflow))
    for name in (*only, *skip):
        if name not in dict(known):
            paths = ", ".join(path for path, _ in known)
            raise ConfigError(f"unknown phase {name}", hint=f"choose one of: {paths}", code="PhaseUnknown")

    def within(path: str, names: Sequence[str]) -> bool:
        return any(path == name or path.startswith(f"{name}/") for name in names)

    return [(path, phase) for path, phase in known if (not only or within(path, only)) and not within(path, skip)]


def require_checks(workflow: Workflow, names: Sequence[str]) -> None:
    """Each of *names* is a check of *workflow*, or ``all``. Raises ConfigError."""
    known = dict.fromkeys(check.name for _, phase in leaves(workflow) for check in phase.checks)
    unknown = [name for name in names if name not in {*known, "all"}]
    if unknown:
        raise ConfigError(
            f"unknown check {', '.join(unknown)}", hint=f"choose from: {', '.join(known)}", code="CheckUnknown"
        )
