"""Carries out a planned move of the virtual IP: for the command, for an upgrade, and before its holder leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import handover
from kubeadm_registry.engine.report import Action, Reporter
from kubeadm_registry.engine.workflow import run, take_locks
from kubeadm_registry.errors import CommandTimeout, Error, PhaseFailed
from kubeadm_registry.phases import vip_move
from kubeadm_registry.phases.vip_move import ARRIVAL, PATIENCE, SERVED, Move
from kubeadm_registry.phases.workflows import move_vip
from kubeadm_registry.transport.host import Host

#: Seconds until the last request has ended by which the gap is measured.
MEASURED = 5.0
#: What happens where a move cannot be planned.
OTHERWISE = "it moves when the requests in flight have ended"
#: Seconds between two looks at who still has a connection to the old holder.
EVERY = 0.5


@dataclass(frozen=True, slots=True)
class Moved:
    """What came of a move. *gap*: seconds in which nobody answered at the VIP; None: not measured.

    *writes_closed*: seconds from the request to the agents until the new holder was seen to take writes, where only one
    node may. *left*: whose connections the old holder still serves.
    """

    actions: Sequence[Action]
    gap: float | None = None
    writes_closed: float = 0.0
    left: Sequence[str] = ()

    @property
    def changed(self) -> int:
        """How many things were done."""
        return len(self.actions)


def move(one: Move, reporter: Reporter, *, dry_run: bool = False, wait: float = 60.0) -> Moved:
    """Carry out *one*, and wait up to *wait* seconds until the old holder serves nobody at the VIP any more.

    What was asked of the agents is withdrawn in any case. Raises PhaseFailed, HostBusy, Error (VipNotMoved).
    """
    workflow = move_vip(one)
    if dry_run or not one.needed:
        return Moved(run(workflow, one.cluster, reporter, dry_run=dry_run))
    watcher = next((host for host in one.cluster.hosts if host.name not in (one.old, one.target)), None)
    if watcher is not None:
        # By then the file is there that it goes by.
        one.before_asking = lambda: _measure(one, watcher)
    # Whoever has them may have asked the agents for another move, which is not to be withdrawn.
    take_locks(one.cluster.everyone)
    try:
        actions = run(workflow, one.cluster, reporter)
    except PhaseFailed as error:
        with suppress(Error):
            if not one.arrived():  # nothing is passed on to a node from which nothing has moved
                one.withdraw()
                one.forget()
        if isinstance(error.cause, CommandTimeout) and error.phase == "arrive":
            raise _stayed(one) from error
        raise
    finally:
        one.withdraw()
    found = None if watcher is None or not one.begun else _measured(watcher)
    left = _drained(one.clients, wait)
    if not left:
        one.forget()
    # A run before this one may have asked, or the address may have been there.
    return Moved(actions, found, one.done - one.begun if one.begun else 0.0, left)


def away(
    cluster: Cluster, holder: Host, reporter: Reporter, *, patience: float = PATIENCE, degraded: bool = False
) -> Sequence[Action]:
    """Move the virtual IP from *holder* to the best other node, if that can be planned within *patience* seconds; else
    say why not: what is done to *holder* next moves it then. *degraded*: also while no node may be lost."""
    try:
        if not vip_move.known(vip_move.look(cluster)):
            return ()
        planned = vip_move.plan(cluster, degraded=degraded, patience=patience, note=reporter.note)
        return move(planned, reporter).actions
    except Error as error:
        reporter.note(
            f"no planned move of the virtual IP: {error.message}; {OTHERWISE}", host=holder.name, level="warning"
        )
        return ()


def _measure(one: Move, watcher: Host) -> None:
    """Let *watcher* measure for how long no node answers. The move does not depend on it, so errors are ignored."""
    with suppress(Error):
        handover.measure(one.cluster, watcher, one.drain_seconds + ARRIVAL + SERVED)


def _measured(watcher: Host) -> float | None:
    """What *watcher* has measured; None if it does not report it."""
    try:
        return handover.measured(watcher, MEASURED)
    except Error:
        return None


def _drained(clients: Callable[[], Sequence[str]], seconds: float) -> Sequence[str]:
    """Wait *seconds* at most until there are no *clients*; who is left."""
    end = time.monotonic() + seconds
    while (left := clients()) and time.monotonic() < end:
        time.sleep(EVERY)
    return left


def _stayed(one: Move) -> Error:
    return Error(
        f"the virtual IP did not move to {one.target} within {one.drain_seconds + ARRIVAL:.0f} s, and "
        "the request has been withdrawn", code="VipNotMoved",
        hint="with zot, uploads in flight have to end first: try again when the large ones are done; else see "
        "`kubeadm-registry status`",
    )  # fmt: skip
