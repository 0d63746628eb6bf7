"""The limit of the rate at which bytes go out, with a clock of the test."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as some

from kubeadm_registry.cli.main import cli
from kubeadm_registry.cli.seed import Rate
from kubeadm_registry.registry import Limit


class Clock:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def limit(rate: int) -> tuple[Limit, Clock]:
    clock = Clock()
    return Limit(rate, clock=clock, sleep=clock.sleep), clock


def test_no_limit_waits_for_nothing() -> None:
    free, clock = limit(0)
    free.wait(10**12)
    free.wait(10**12)
    assert clock.slept == []


def test_each_waits_for_those_before() -> None:
    limited, clock = limit(1000)
    for _ in range(4):
        limited.wait(500)
    assert clock.slept == pytest.approx([0.5, 0.5, 0.5]), "the first one is free to go"


def test_a_pause_is_not_made_up_for() -> None:
    limited, clock = limit(1000)
    limited.wait(500)
    clock.now += 60
    begin = clock.now
    for _ in range(11):
        limited.wait(100)
    assert clock.now - begin == pytest.approx(1.0)


@given(rate=some.integers(100_000, 10**9), sizes=some.lists(some.integers(1, 10**6), min_size=1, max_size=50))
def test_no_more_than_the_rate_goes_out_however_it_is_asked_for(rate: int, sizes: list[int]) -> None:
    limited, clock = limit(rate)
    begin = clock.now
    for size in sizes:
        limited.wait(size)
    assert sum(sizes[:-1]) <= rate * (clock.now - begin) + 1e-3 * rate
    assert clock.now - begin == pytest.approx(sum(sizes[:-1]) / rate, abs=1e-3)


def test_a_slow_rate_goes_in_small_writes() -> None:
    assert limit(0)[0].chunk == limit(10**9)[0].chunk == 2**18
    assert limit(160_000)[0].chunk == 10_000


@pytest.mark.parametrize(
    ("text", "rate"),
    [("0", 0), ("100000", 100_000), ("2500k", 2_500_000), ("50M", 50_000_000), ("1.5G", 1_500_000_000)],
)
def test_how_a_rate_is_written(text: str, rate: int) -> None:
    assert Rate().convert(text, None, None) == rate


@pytest.mark.parametrize("text", ["", "fast", "-1M", "50MB", "50m", "1e9", "99k", "1"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(click.UsageError):
        Rate().convert(text, None, None)
    assert CliRunner().invoke(cli, ["seed", "--limit-rate", text]).exit_code == 2


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_another_registry_has_a_port_that_exists(port: str) -> None:
    """Python takes more, and connects to the port of its lower 16 bits."""
    result = CliRunner().invoke(cli, ["seed", "--to", f"registry.example:{port}/mirror"])
    assert (result.exit_code, "is not a registry" in result.output) == (2, True)
