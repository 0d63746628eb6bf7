"""A host's kernel as far as it decides: its clocks, and the timer that cuts a writer from its storage."""

from __future__ import annotations

from dataclasses import dataclass

JIFFY = 0.01  # seconds at most: a timer of the packet filter ends with the first tick after its time


class Clock:
    """Seconds since boot, at a rate of the host's own. It stands while a virtual machine is paused."""

    def __init__(self, now: float, rate: float, start: float) -> None:
        self.rate = rate
        self._base = start
        self._mark = now
        self._paused = False

    def at(self, now: float) -> float:
        """What this clock shows at the true time *now*."""
        return self._base if self._paused else self._base + (now - self._mark) * self.rate

    def pause(self, now: float, paused: bool) -> None:
        """Stop, or go on."""
        self._base, self._mark, self._paused = self.at(now), now, paused

    def set_rate(self, now: float, rate: float) -> None:
        """Run at another rate from now on."""
        self._base, self._mark, self.rate = self.at(now), now, rate


@dataclass
class Timer:
    """The three sets of the packet filter. Times are the kernel's own ticks, in seconds."""

    lasts: float
    ticket_lasts: float
    there: bool = True  # False: the rules are gone
    armed: bool = False
    ticket: float = 0.0
    lease: float = 0.0

    def take_ticket(self, now: float) -> bool:
        """From now on a renewal is accepted for a while. Whether there is such a timer."""
        self.ticket = now + self.ticket_lasts + JIFFY
        return self.there

    def renew(self, now: float) -> bool:
        """Arm and prolong; whether a living ticket allowed it."""
        if not self.there or now >= self.ticket:
            return False
        self.armed, self.lease = True, now + self.lasts + JIFFY
        return True

    def disarm(self) -> None:
        """From now on all of zot's traffic passes."""
        self.armed, self.lease = False, 0.0

    def passes_executor(self, now: float) -> bool:
        """Whether a packet of the executor's to HAProxy passes now."""
        return not self.there or now < self.lease

    def passes(self, now: float) -> bool:
        """Whether a packet of zot's to its storage passes now."""
        return not self.there or not self.armed or now < self.lease
