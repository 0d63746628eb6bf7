"""What follows from a planned move, of the VIP to a named node or of the lease away from the one writer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from kubeadm_registry.agent.model import Level, Memory, Observation, Report, Role, Settings, true_since

QUIET = 1.5  # seconds without a write in flight: longer than a busy client takes between two requests of an upload


@dataclass(frozen=True)
class Planned:
    """What is to be done for it now."""

    moving: bool  # the VIP is to move, and has not yet
    draining: bool  # the one writer, here, takes no new work
    quiet_since: Optional[float]  # since when no write is in flight there
    gives: bool  # this holder gives up the VIP
    yields: bool  # this node gives up the lease, and asks for none


def moves(seen: Observation, reports: Mapping[str, Report]) -> bool:
    """Whether the VIP is to move to another node, as planned, and has not yet.

    Invariant: only to one that is freshly heard, reads well and is fit, so the VIP is never given up for nothing.
    """
    said = reports.get(seen.moves_to)
    return said is not None and said.good and said.fit and said.level is Level.FIT and not said.vip


def planned(
    memory: Memory, seen: Observation, reports: Mapping[str, Report], *, now: float, settings: Settings
) -> Planned:
    """What is to be done.

    Invariant: the one writer gives up the lease, or the VIP along with it, only when no write has been in flight for
    ``QUIET`` seconds: its frontend is killed then.
    """
    moving, yields = moves(seen, reports), seen.yields and settings.single_writer
    writes = settings.single_writer and memory.lease.role is Role.WRITER
    draining = writes and (yields or (moving and seen.holds_vip))
    quiet_since = true_since(memory.quiet_since, draining and seen.writes == 0, now)
    ends = not draining or (quiet_since is not None and now - quiet_since >= QUIET)
    return Planned(moving, draining, quiet_since, moving and seen.holds_vip and ends, yields and ends)
