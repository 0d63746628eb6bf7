"""Who begins: what the machine did just before, and what it has in its caches by then, is everybody's in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

One = TypeVar("One")


def in_turn(everybody: Sequence[One], number: int) -> list[One]:
    """*everybody* in the order of the round *number*: another one begins each time."""
    begin = number % len(everybody)
    return [*everybody[begin:], *everybody[:begin]]
