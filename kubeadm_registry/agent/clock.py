"""The one clock of the agent."""

from __future__ import annotations

import time


def clock() -> float:
    """Seconds that never step, and go on while the machine is suspended: a lease must not outlast a sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
