"""How often the lab repeats a fault, and what its runs may cost."""

from __future__ import annotations

import pytest

from tests.lab.faults import DEAD_HOST, turns
from tests.lab.reading import WRONG, Reading, Request


@pytest.mark.parametrize(
    ("gaps", "ran", "kept"),
    [
        ((0.4, 0.4, 0.4), 1, True),
        ((0.7, 0.4, 0.4), 3, True),
        ((0.7, 0.7, 0.4), 3, False),
        ((3.9, 0.4, 0.4), 3, True),
        ((0.7, 1.1, 0.4), 3, False),
        ((1.1, 0.4, 1.1), 3, False),
    ],
)
def test_one_slow_run_is_no_median(
    monkeypatch: pytest.MonkeyPatch, gaps: tuple[float, ...], ran: int, kept: bool
) -> None:
    """Two of three are what is asked for, where the first was beyond its bound."""
    monkeypatch.delenv("KUBEADM_REGISTRY_REPEAT", raising=False)
    runs: list[Reading] = []
    for turn in turns(lambda: DEAD_HOST.kept(runs)):
        runs.append(Reading(0.0, gaps[turn]))  # nothing was read in all that time
    assert (len(runs), DEAD_HOST.kept(runs)) == (ran, kept)


def test_none_is_spared_where_many_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEADM_REGISTRY_REPEAT", "6")
    runs = [Reading(0.0, gap) for gap in (0.4, 0.4, 1.1, 0.4, 0.4, 0.4)]
    assert not DEAD_HOST.kept(runs)


def test_wrong_bytes_are_never_borne(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBEADM_REGISTRY_REPEAT", raising=False)
    wrong = Reading(0.0, 0.4, requests=[Request("blob", 0.0, 0.1, WRONG)])
    assert not DEAD_HOST.kept([wrong])
    assert not DEAD_HOST.kept([wrong, Reading(0.0, 0.4), Reading(0.0, 0.4)])
