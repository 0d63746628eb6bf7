"""Rounds of work, each kind in a thread of its own: when woken, and after some time in any case."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from kubeadm_registry.errors import Error
from kubeadm_registry.operator.figures import Figures

#: Seconds after a round that failed.
AGAIN = 10.0
log = logging.getLogger("kubeadm_registry.operator")


class Worker:
    """Does the round *work*, called *name*, every *seconds*, and soon after ``wake``.

    Handlers of events only wake: what happened in between is never missed, because each round reads everything anew.
    *failed* hears of what has ended a round.
    """

    def __init__(
        self, name: str, work: Callable[[], None], seconds: float, figures: Figures,
        failed: Callable[[Exception], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.name = name
        self._work = work
        self._seconds = seconds
        self._figures = figures
        self._failed = failed
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Begin the next round now, or when the present one ends."""
        self._woken.set()

    async def run(self) -> None:
        """Do rounds for ever. Raises Lost."""
        # Not waited for at the end: a round may be in the middle of reading a large cluster.
        thread = ThreadPoolExecutor(1, self.name)
        while True:
            self._woken.clear()
            good = await asyncio.get_running_loop().run_in_executor(thread, self._once)
            try:
                await asyncio.wait_for(self._woken.wait(), self._seconds if good else min(AGAIN, self._seconds))
            except TimeoutError:
                continue

    def _once(self) -> bool:
        began = time.monotonic()
        try:
            self._work()
        except (Error, OSError) as error:
            log.error("%s: %s", self.name, error)
            self._failed(error)
        except Exception as error:  # a bug in one round must not end the others
            log.exception("%s failed", self.name)
            self._failed(error)
        else:
            self._figures.ended(self.name, began)
            return True
        self._figures.add("errors_total", round=self.name)
        return False
