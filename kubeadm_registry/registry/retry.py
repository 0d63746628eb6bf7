"""Trying again, as long as somebody gets on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from kubeadm_registry.errors import RegistryError

Outcome = TypeVar("Outcome")


def patiently(work: Callable[[], Outcome], seconds: float, *, reached: Callable[[], int] = lambda: 0) -> Outcome:
    """Do *work*, again while it fails as a registry does whose writer moves, or a network that breaks.

    Raises RegistryError when it fails otherwise, or for *seconds* in which *reached*, how far it has come, is no more
    than before.
    """
    best, end, pause = reached(), time.monotonic() + seconds, 0.1
    while True:
        try:
            return work()
        except RegistryError as error:
            if reached() > best:
                best, end, pause = reached(), time.monotonic() + seconds, 0.1
            if not error.temporary or time.monotonic() >= end:
                raise
        time.sleep(pause)
        pause = min(2.0, 2 * pause)
