"""Client nodes: hosts that pull from the registry and are no servers of it. Each stands for itself.

What is done on them is a workflow like any other, run once for each client with a ``Cluster`` that has this one host.
So one that fails keeps none of the others from being done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.config.client_list import ClientNode
from kubeadm_registry.engine.phase import Workflow
from kubeadm_registry.engine.report import Action, Reporter
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error, PreflightFailed
from kubeadm_registry.transport.host import Host, Transport, side_by_side

#: Nodes at a time. One that says nothing costs its turn ten seconds, so a few of them must not hold up the others.
AT_ONCE = 32
#: Restarts of containerd at a time, at most, and at most this part of all clients.
RESTARTS = 8
RESTARTED_PART = 4
#: After so many restarts that failed no other client's containerd is restarted.
MOST_FAILURES = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one client: what differed and was changed, or the *error* that kept it from being done."""

    client: ClientNode
    actions: tuple[Action, ...] = ()
    error: Error | None = None

    @property
    def reason(self) -> str:
        """Why it is not done, in words; empty if it is."""
        if isinstance(self.error, PreflightFailed):
            return "; ".join(problem.text for problem in self.error.problems)
        return self.error.message if self.error is not None else ""


class RestartLimiter:
    """Limits concurrent restarts to *at_once*, and allows none after several failures. A context manager."""

    def __init__(self, at_once: int) -> None:
        self._free = threading.BoundedSemaphore(at_once)
        self._lock = threading.Lock()
        self._failed = 0

    def __enter__(self) -> None:
        """Wait for a turn. Raises Error when too many failed."""
        self._free.acquire()
        if self._failed >= MOST_FAILURES:
            self._free.release()
            raise Error(
                f"containerd was not restarted; restarting it failed on {self._failed} other nodes",
                code="TooManyFailed",
                hint="fix the nodes listed with ContainerdRestart or ContainerdPlugin, then run the command again",
            )  # fmt: skip

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._failed += kind is not None
        self._free.release()


def run_each(
    workflow: Workflow,
    cluster: Cluster,
    clients: Sequence[ClientNode],
    reach: Callable[[ClientNode], Transport],
    reporter: Reporter,
    *,
    dry_run: bool = False,
) -> list[Outcome]:
    """Run *workflow* on each of *clients*, AT_ONCE at a time; the outcomes in their order.

    *reach* connects to one and raises Error if it cannot; the connection ends with its work. *cluster* is whose
    registry they use, its hosts do not matter.
    """
    turns = RestartLimiter(max(1, min(RESTARTS, len(clients) // RESTARTED_PART)))

    def one(client: ClientNode) -> Outcome:
        try:
            host = Host(client.name, client.address, reach(client))
            try:
                alone = replace(cluster, hosts=(host,), turn=turns)
                actions = run(workflow, alone, reporter, dry_run=dry_run, headings=False)
            finally:
                host.transport.close()
        except Error as error:
            return Outcome(client, error=error)
        except BrokenPipeError:
            raise  # nobody reads what is told any more, which ends the run; those of a connection are our errors
        except Exception as error:
            # Our mistake, and maybe met on this node alone: the others are not left waiting for it.
            return Outcome(client, error=_bug(error))
        return Outcome(client, tuple(actions))

    def interrupted() -> None:
        reporter.note("interrupted: the nodes that have begun are completed first", level="warning")

    return side_by_side(one, clients, at_most=AT_ONCE, interrupted=interrupted)


def _bug(cause: Exception) -> Error:
    error = Error(
        f"unexpected {type(cause).__name__}: {cause}", code="Bug",
        hint="run the command with --debug and only this node in the list, and report the output",
    )  # fmt: skip
    error.__cause__ = cause
    return error
