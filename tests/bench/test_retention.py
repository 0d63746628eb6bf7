"""A plan for the largest registry that is promised: its time and memory, and that both grow with its size."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.bench.bundles import MB
from tests.bench.memory import told

TAGS, REPOSITORIES, PODS = 100_000, 2_000, 50_000
#: Seconds of processor time, so that other work on the machine does not count; and bytes, with the registry itself.
MOST_SECONDS, MOST_MEMORY = 10, 500 * MB
#: Twice the size may take so many times as much, with noise from run to run.
LINEAR = 2.5


def measured(part: float) -> tuple[dict[str, Any], int]:
    """What a fresh process says of a plan for *part* of that registry, and the most bytes that it has in memory."""
    sizes = [str(int(size * part)) for size in (TAGS, REPOSITORIES, PODS)]
    printed, memory = told("tests.bench.retention", *sizes)
    found: dict[str, Any] = json.loads(printed)
    return found, memory


def test_plan(capsys: pytest.CaptureFixture[str]) -> None:
    half, half_memory = measured(0.5)
    whole, memory = measured(1)
    with capsys.disabled():
        for found, most in ((half, half_memory), (whole, memory)):
            print(
                f"\n  {found['manifests']} manifests: {found['cpu']:.1f} s of processor time, {found['seconds']:.1f} s "
                f"in all, {most / MB:.0f} MB; {found['deletions']} deletions, {found['kept']} images kept"
            )
    assert whole["deletions"] > 0
    assert whole["kept"] > 0
    assert whole["cpu"] < MOST_SECONDS
    assert memory < MOST_MEMORY
    assert whole["cpu"] < LINEAR * half["cpu"]
    assert memory < LINEAR * half_memory
