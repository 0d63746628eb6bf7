"""Sentences to stderr for the journal, at transitions only, and no flood of them."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections import deque
from pathlib import Path

from kubeadm_registry.agent.clock import clock

SAME = 1.0  # seconds between two of the same kind
BURST, WINDOW = 40, 10.0  # sentences in so many seconds


class Log:
    """Writes one sentence a line. Of too many the last of each kind is said later: the log ends with what is so."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._recent: deque[float] = deque(maxlen=BURST)
        self._waiting: dict[str, tuple[str, int]] = {}
        self._dropped = 0
        self._prefix = "JOURNAL_STREAM" in os.environ

    def __call__(self, kind: str, text: str, *, level: int = 5) -> None:
        """Say *text*, or soon. *kind* names what it is about; *level* is syslog's (4 warning, 5 notice)."""
        now = clock()
        full = len(self._recent) == BURST and now - self._recent[0] < WINDOW
        if full or now - self._last.get(kind, -SAME) < SAME:
            self._dropped += kind in self._waiting
            self._waiting[kind] = (text, level)
            return
        self._waiting.pop(kind, None)
        self._last[kind] = now
        self._recent.append(now)
        if self._dropped:
            text += f" ({self._dropped} messages were left out)"
            self._dropped = 0
        with contextlib.suppress(OSError):  # without a journal the agent works all the same
            sys.stderr.write(f"{f'<{level}>' if self._prefix else ''}{text}\n")
            sys.stderr.flush()

    def flush(self) -> None:
        """Say what had to wait."""
        for kind, (text, level) in tuple(self._waiting.items()):
            self(kind, text, level=level)


def described(error: BaseException) -> str:
    """*error* and where it came from, in a line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
