"""How the free space of the data disk went in the last days, and when it will be used up if that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from kubeadm_registry.agent.document import Entry, Trend
from kubeadm_registry.agent.formats import Format

FORMAT = Format("the history of the data disk")
KEY = "samples"
EVERY = 3600.0  # seconds from one sample to the next
MOST = 7 * 24 + 1  # samples: a week
LEAST = 24 * 3600.0  # seconds that a history spans before anything follows from it
FARTHEST = 10 * 365 * 86400.0  # seconds: what is later is not said


def due(samples: Sequence[Entry], wall: float) -> bool:
    """Whether a sample is to be taken at *wall*, seconds since 1970; also where the clock was set back."""
    return not samples or not 0 <= wall - _number(samples[-1], "time") < EVERY


def sample(free: int, wall: float) -> Entry:
    """The entry for *free* bytes at *wall*."""
    return {"time": round(wall), "free": free}


def trend(samples: Sequence[Entry], free: int, wall: float) -> Optional[Trend]:
    """What follows from *samples* and what is *free* now; None while there is no day of them.

    The rate is the mean over all of them, a week at most: what was pushed and what was deleted, together. One that was
    taken before that, as after a boot with a clock years behind, would make it vanish.
    """
    oldest = max(0.0, wall - MOST * EVERY)
    known = [one for one in samples if oldest < _number(one, "time") <= wall and _number(one, "free") >= 0]
    if not known:
        return None
    first = min(known, key=lambda one: _number(one, "time"))
    span = wall - _number(first, "time")
    if span < LEAST:
        return None
    rate = (_number(first, "free") - free) / span
    left = free / rate if rate > 0 else FARTHEST
    return {
        "since": _number(first, "time"),
        "rate": round(rate, 1),
        "full": None if left >= FARTHEST else round(wall + left),
    }


def _number(entry: Entry, key: str) -> float:
    """The number under *key*; -1 where a damaged or foreign file has something else."""
    value: Any = entry.get(key)
    return float(value) if type(value) in (int, float) else -1.0
