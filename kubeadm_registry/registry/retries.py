"""Trying again, as long as somebody gets on."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from kubeadm_registry.errors import RegistryError
from kubeadm_registry.registry.answers import LEAST

Outcome = TypeVar("Outcome")
#: How often bytes count that were lost and come anew, as after each move of the writer: one that loses all of them each
#: time does not get on.
ANEW: Final = 5


def retry(work: Callable[[], Outcome], seconds: float, *, reached: Callable[[], int] = lambda: 0) -> Outcome:
    """Run *work*, retrying errors that are expected during a writer failover or a network outage.

    Raises RegistryError when it fails otherwise, or for *seconds* in which *reached*, how many bytes it has come, grows
    by less than LEAST. It may fall: what comes after that counts as well, ANEW times. A registry that asks for a pause
    (Retry-After) has it, if it is over by then.
    """
    best, end, pause, anew = reached(), time.monotonic() + seconds, 0.1, ANEW
    while True:
        try:
            return work()
        except RegistryError as error:
            now = reached()
            fell = LEAST <= now < best
            if now >= best + LEAST or (fell and anew):
                best, end, pause, anew = now, time.monotonic() + seconds, 0.1, anew - fell
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
