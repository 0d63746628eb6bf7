"""Lengths of time in files: ``90d``, ``12h``, ``30m``."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from kubeadm_registry.config.rules import OnServer, matching

DURATION = re.compile(r"([1-9][0-9]{0,4})([mhd])")
_TEXT = "must be a duration in days, hours or minutes, such as 90d, 12h or 30m"
_SECONDS = {"m": 60, "h": 3600, "d": 86400}


def seconds(duration: str) -> int:
    """The seconds of ``90d``, ``12h`` or ``30m``."""
    found = DURATION.fullmatch(duration)
    assert found is not None, duration  # noqa: S101  the models let nothing else in
    return int(found[1]) * _SECONDS[found[2]]


def _with_unit(value: object) -> object:
    if isinstance(value, int):  # which in quotes would be no duration either
        raise ValueError(_TEXT)
    return value


def _duration(value: str) -> str:
    if DURATION.fullmatch(value) is None:
        raise ValueError(_TEXT)
    return value


Duration = Annotated[
    str,
    BeforeValidator(_with_unit),
    AfterValidator(_duration),
    OnServer(matching(DURATION.pattern, _TEXT), maxLength=len("99999d")),
]
