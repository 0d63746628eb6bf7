"""How often the lab repeats a fault, and what its runs may cost."""

from __future__ import annotations

import pytest

from tests.lab.faults import DEAD_HOST, turns
from tests.lab.reading import Reading


@pytest.mark.parametrize(
    ("gaps", "ran", "kept"),
    [
        ((0.4, 0.4, 0.4), 1, True),
        ((0.7, 0.4, 0.4), 3, True),
        ((0.7, 0.7, 0.4), 3, False),
        ((1.1, 0.4, 0.4), 3, False),
    ],
)
def test_one_slow_run_is_no_median(
    monkeypatch: pytest.MonkeyPatch, gaps: tuple[float, ...], ran: int, kept: bool
) -> None:
    monkeypatch.delenv("KUBEADM_REGISTRY_REPEAT", raising=False)
    runs: list[Reading] = []
    for turn in turns(lambda: DEAD_HOST.kept(runs)):
        runs.append(Reading(0.0, gaps[turn]))  # nothing was read in all that time
    assert (len(runs), DEAD_HOST.kept(runs)) == (ran, kept)
