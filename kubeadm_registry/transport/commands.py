"""What ran on which host: one record of Python's logging for each command, for whoever wants to follow or keep it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kubeadm_registry.result import Result

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that ended on *host*, as a person would type it, with its exit status. No argument is a secret."""

    host: str
    command: str
    code: int
    seconds: float


def ran(host: str, result: Result, seconds: float) -> None:
    """Record how a command ended."""
    if LOG.isEnabledFor(logging.DEBUG):
        LOG.debug("%s", Ran(host, result.command, result.code, round(seconds, 3)))


class _Handler(logging.Handler):
    def __init__(self, tell: Callable[[Ran], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple) and record.args and isinstance(record.args[0], Ran):
            self._tell(record.args[0])


@contextmanager
def told(tell: Callable[[Ran], None]) -> Iterator[None]:
    """Pass each command that ends meanwhile to *tell*, which is called by the threads that wait for the hosts."""
    handler, level = _Handler(tell), LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.DEBUG)
    propagates, LOG.propagate = LOG.propagate, False
    try:
        yield
    finally:
        LOG.propagate = propagates
        LOG.setLevel(level)
        LOG.removeHandler(handler)
