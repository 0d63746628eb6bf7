"""Values of the records of retention, each of the type that it must have. All raise TypeError."""

from __future__ import annotations

from typing import Any


def text(value: object) -> str:
    """*value*, a text."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def number(value: object) -> int:
    """*value*, a whole number."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is not an integer")
    return value


def optional(value: object) -> int | None:
    """*value*, a whole number or nothing."""
    return None if value is None else number(value)


def items(value: object) -> list[Any]:
    """*value*, a list."""
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


def texts(value: object) -> tuple[str, ...]:
    """*value*, a list of texts."""
    return tuple(map(text, items(value)))
