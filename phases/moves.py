"""Carries out a planned move of the virtual IP: for the command, for an upgrade, and for the operator."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from kubeadm_registry.components import handover
from kubeadm_registry.engine.report import Reporter
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import CommandTimeout, Error, PhaseFailed
from kubeadm_registry.phases.vip_move import ARRIVAL, SERVED, Move
from kubeadm_registry.phases.workflows import move_vip

#: Seconds between two looks at who still has a connection to the old holder.
EVERY = 0.5


@dataclass(frozen=True, slots=True)
class Moved:
    """What came of a move. *gap*: seconds in which nobody answered at the VIP; None: not measured.

    *writes_closed*: seconds from the request to the agents until the new holder was seen to take writes, where only one
    node may. *left*: connections that the old holder still serves.
    """

    changed: int
    gap: float | None = None
    writes_closed: float = 0.0
    left: int = 0


def move(one: Move, reporter: Reporter, *, dry_run: bool = False, wait: float = 60.0) -> Moved:
    """Carry out *one*, and wait up to *wait* seconds until the old holder serves nobody at the VIP any more.

    What was asked of the agents is withdrawn in any case. Raises PhaseFailed, HostBusy, Error (VipNotMoved).
    """
    workflow = move_vip(one)
    if dry_run or not one.needed:
        return Moved(len(run(workflow, one.cluster, reporter, dry_run=dry_run)))
    watchers = [host for host in one.cluster.hosts if host.name not in (one.old, one.target)]
    patience = one.drain_seconds + ARRIVAL + SERVED
    watching: list[Future[float | None]] = []
    with ThreadPoolExecutor(max_workers=1) as pool:
        # By then the file is there that it goes by.
        one.before_asking = lambda: watching.extend(
            pool.submit(handover.measure, one.cluster, host, patience) for host in watchers[:1]
        )
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
        found = _of(watching)
    left = _drained(one.clients, wait)
    if not left:
        one.forget()
    return Moved(len(actions), found, one.done - one.begun, left)


def _of(watching: list[Future[float | None]]) -> float | None:
    """What was measured: nobody needs it, so it fails nothing."""
    try:
        return watching[0].result() if watching else None
    except Error:
        return None


def _drained(clients: Callable[[], int], seconds: float) -> int:
    """Wait *seconds* at most until there are no *clients*; how many are left."""
    end = time.monotonic() + seconds
    while (left := clients()) and time.monotonic() < end:
        time.sleep(EVERY)
    return left


def _stayed(one: Move) -> Error:
    return Error(
        f"the virtual IP did not move to {one.target} within {one.drain_seconds + ARRIVAL:.0f} s, and is not asked to "
        "any more", code="VipNotMoved",
        hint="with zot, uploads in flight have to end first: try again when the large ones are done; else see "
        "`kubeadm-registry status`",
    )  # fmt: skip
