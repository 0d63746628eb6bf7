"""The one queue of events. Time passes only from event to event, so an hour without events costs nothing."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

Action = Callable[..., None]


class Timeline:
    """Events in the order of their true time (seconds), those of the same moment in the order of their planning.

    *watch* is called after each event. Everything in here can be pickled: actions are methods of objects.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.watch: Callable[[], None] | None = None
        self.done = False
        self.events = 0
        self._queue: list[tuple[float, int, Action, tuple[Any, ...]]] = []
        self._planned = 0
        self._ends: list[float] = []

    def at(self, when: float, action: Action, *arguments: Any) -> None:
        """Plan *action* for *when*, or for now if that has passed."""
        self._planned += 1
        heapq.heappush(self._queue, (max(when, self.now), self._planned, action, arguments))

    def after(self, delay: float, action: Action, *arguments: Any) -> None:
        """Plan *action* for *delay* seconds from now."""
        self._planned += 1
        heapq.heappush(self._queue, (self.now + delay, self._planned, action, arguments))

    def run(self, until: float) -> None:
        """Let the events until then happen.

        An event may call this again, for a process that stands still in the middle of what it does: the others go on
        meanwhile. Such a standstill within another ends with it at the latest, since it lies above it on the stack.
        """
        until = min([until, *self._ends])
        self._ends.append(until)
        queue, watch = self._queue, self.watch
        try:
            while not self.done and queue and queue[0][0] <= until:
                self.now, _, action, arguments = heapq.heappop(queue)
                self.events += 1
                action(*arguments)
                if watch is not None:
                    watch()
        finally:
            self._ends.pop()
        if not self.done:
            self.now = max(self.now, until)
