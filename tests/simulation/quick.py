"""The rules copy large frozen values at each step, and ``dataclasses.replace`` is slow; this does the same by the dict.

Half of the time of a schedule went there. `test_models` compares the two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar
from unittest.mock import patch

from kubeadm_registry.agent import lease, rules

T = TypeVar("T")


def copy(value: T, /, **changes: Any) -> T:
    """``dataclasses.replace`` for classes without slots, InitVar and ``__post_init__``, as those of the rules are."""
    new = object.__new__(type(value))
    new.__dict__.update(value.__dict__)
    new.__dict__.update(changes)
    return new


@contextlib.contextmanager
def quick_copies() -> Iterator[None]:
    """Let rules and lease copy so meanwhile."""
    with patch.object(rules, "replace", copy), patch.object(lease, "replace", copy):
        yield
