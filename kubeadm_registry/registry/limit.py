"""How fast bytes may go out, all connections together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: Bytes a write, without a limit.
CHUNK = 2**18


class Limit:
    """At most *rate* bytes a second, shared by all threads that ask; 0 is no limit.

    What is asked for goes out when what was asked for before has taken its time: no burst after a pause.
    """

    def __init__(
        self, rate: int = 0, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free = 0.0
        self.chunk = min(CHUNK, max(1024, rate // 16)) if rate else CHUNK
        """The most bytes to ask for at a time: a sixteenth of a second's."""

    def wait(self, size: int) -> None:
        """Return when *size* bytes may go out."""
        if not self._rate:
            return
        with self._lock:
            now = self._clock()
            turn = max(now, self._free)
            self._free = turn + size / self._rate
        if turn > now:
            self._sleep(turn - now)
