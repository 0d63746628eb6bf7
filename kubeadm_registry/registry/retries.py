"""Trying again, as long as somebody gets on."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from kubeadm_registry.errors import RegistryError
from kubeadm_registry.registry.answers import LEAST

Outcome = TypeVar("Outcome")


def retry(work: Callable[[], Outcome], seconds: float, *, reached: Callable[[], int] = lambda: 0) -> Outcome:
    """Run *work*, retrying errors that are expected during a writer failover or a network outage.

    Raises RegistryError when it fails otherwise, or for *seconds* in which *reached*, how many bytes it has come, grows
    by less than LEAST. A registry that asks for a pause (Retry-After) has it, if it is over by then.
    """
    best, end, pause = reached(), time.monotonic() + seconds, 0.1
    while True:
        try:
            return work()
        except RegistryError as error:
            if reached() >= best + LEAST:
                best, end, pause = reached(), time.monotonic() + seconds, 0.1
            wait = max(pause, error.wait)
            left = end - time.monotonic()
            if not error.temporary or left <= 0:
                raise
            if error.wait > left:
                error.hint = (
                    error.hint or f"wait {error.wait:.0f} seconds, as the registry requests, then run the command again"
                )
                raise
        time.sleep(wait)
        pause = min(2.0, 2 * pause)


def seconds_to_wait(told: str) -> float:
    """The pause that a ``Retry-After`` header asks for: seconds, or until a date; 0 if it is neither."""
    if re.fullmatch(r"[0-9]{1,9}", told):
        return float(told)
    try:
        until = parsedate_to_datetime(told)
    except (ValueError, OverflowError):  # of a time zone of many digits
        return 0.0
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
