"""Clocks that are wrong: no look at the registry writes a time into the ledger that is not the nodes'."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from kubeadm_registry import config
from kubeadm_registry.access.executor import Seen
from kubeadm_registry.errors import ConnectionFailed, Error, RegistryError
from kubeadm_registry.operator import clocks
from kubeadm_registry.operator.way import Way
from kubeadm_registry.retention import Use, policy
from kubeadm_registry.retention.ledger import Ledger
from kubeadm_registry.upkeep import planning, store
from tests.unit.fake_registry import connector
from tests.unit.test_cli_retention_runs import DAY
from tests.unit.test_operator_carrying import AUTOMATIC, KEY
from tests.unit.test_operator_plans import Turns, turns  # noqa: F401  fixture

pytest_plugins = ["tests.unit.image_site"]

CLUSTER = config.parse(config.SMALLEST, "x")
NOW = 1_795_000_000.0


def ledger(turns: Turns) -> Ledger:  # noqa: F811
    with connector(turns.site.registry)() as registry:
        return store.read(registry, KEY)


@pytest.mark.parametrize("off", [-40 * DAY, -61, 61, 40 * DAY])
def test_an_operator_with_a_wrong_clock_plans_and_writes_nothing(turns: Turns, off: float) -> None:  # noqa: F811
    """It would make a new image weeks old, or have workloads be gone for long."""
    turns.policy(AUTOMATIC)
    turns.report = replace(turns.report, uses=(Use("app:v1"),))
    turns.round()
    turns.report = replace(turns.report, uses=())
    turns.site.registry.image("app", "v0", layer=b"new")
    before = ledger(turns)
    turns.rounds.clock = lambda: turns.site.now() + off
    turns.round()
    assert ledger(turns) == before
    assert turns.conditions()["Made"] == ("False", "ClockDoubtful")
    assert turns.conditions("registrypolicies")["RetentionHealthy"] == ("False", "ClockDoubtful")
    [said] = [one["message"] for one in turns.plan["status"]["conditions"] if one["type"] == "Made"]
    assert f"{abs(off):.0f} seconds {'ahead of' if off > 0 else 'behind'} those of the nodes" in said
    assert "set the clock of the machine" in said
    turns.rounds.clock = turns.site.now
    turns.round()
    assert turns.conditions()["Made"] == ("True", "Planned")
    assert turns.site.tags() == ["v0", "v1"], "the newest, and what was in use until now"


def test_half_a_minute_is_none(turns: Turns) -> None:  # noqa: F811
    turns.rounds.clock = lambda: turns.site.now() + 30
    turns.round()
    assert turns.conditions()["Made"] == ("True", "Planned")


def test_the_ledger_takes_no_time_before_its_own(turns: Turns) -> None:  # noqa: F811
    """Whoever looks: the timer has the clock of its node."""
    turns.site.registry.image("app", "v0", layer=b"new")
    before, rules = ledger(turns), policy.load(turns.site.folder / "policy.yaml")
    with pytest.raises(Error, match="the ledger was written 61 seconds from now") as caught:
        planning.look(connector(turns.site.registry), KEY, rules, before.written - 61, sets={})
    assert caught.value.code == "ClockDoubtful"
    assert "retention forget --ledger" in caught.value.hint
    assert ledger(turns) == before
    planning.look(connector(turns.site.registry), KEY, rules, before.written - 60, sets={})


# ---- whose clock is asked ------------------------------------------------------------------------------------------


@dataclass
class Helper:
    """Says by how many seconds the clock of its node is off; None: its agent does not run."""

    name: str
    off: float | None = 0.0
    away: bool = False

    def look(self) -> Seen:
        if self.away:
            raise ConnectionFailed("no route to host", host=self.name)
        return Seen((), None if self.off is None else {"time": NOW + self.off})


def compare(
    monkeypatch: pytest.MonkeyPatch, helpers: list[Helper] | None, dates: float | None = None, now: float = NOW
) -> None:
    """Compare a clock with those of *helpers*, and of registries that are so many seconds off; None: none answers."""

    def tell() -> float:
        if dates is None:
            raise RegistryError("connection refused", code="RegistryUnreachable")
        return NOW + dates

    monkeypatch.setattr(Way, "nodes", lambda *_: helpers)
    monkeypatch.setattr(Way, "registry", lambda *_, **__: lambda: nullcontext(SimpleNamespace(time=tell)))
    clocks.compare_clocks(CLUSTER, Way("ca"), lambda: now)


@pytest.mark.parametrize(
    ("helpers", "dates"),
    [
        ([Helper("cp-1", 40 * DAY), Helper("cp-2"), Helper("cp-3")], None),
        ([Helper("cp-1", away=True), Helper("cp-2"), Helper("cp-3")], None),
        ([Helper("cp-1", off=None), Helper("cp-2", away=True), Helper("cp-3", 40 * DAY)], 0.0),
        (None, 0.0),
    ],
    ids=["one is wrong", "one is away", "registries", "no key for helpers"],
)
def test_the_median_of_the_nodes_counts(
    monkeypatch: pytest.MonkeyPatch, helpers: list[Helper] | None, dates: float | None
) -> None:
    compare(monkeypatch, helpers, dates)
    for off in (-DAY, DAY):
        with pytest.raises(Error, match=f"{DAY} seconds (ahead of|behind) those of the nodes") as caught:
            compare(monkeypatch, helpers, dates, NOW + off)
        assert caught.value.code == "ClockDoubtful"


def test_two_that_disagree_leave_it_open_which_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Error) as caught:
        compare(monkeypatch, [Helper("cp-1", away=True), Helper("cp-2"), Helper("cp-3", 40 * DAY)])
    assert caught.value.code == "ClockDoubtful"


def test_nodes_of_which_none_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RegistryError, match="connection refused"):
        compare(monkeypatch, [Helper(name, away=True) for name in ("cp-1", "cp-2", "cp-3")])


@pytest.mark.parametrize("date", ["", "yesterday", f"Fri, 01 Jan 2000 00:00:00 +{'9' * 20}"])
def test_an_answer_without_a_time(turns: Turns, monkeypatch: pytest.MonkeyPatch, date: str) -> None:  # noqa: F811
    with connector(turns.site.registry)() as registry:
        assert abs(registry.time() - time.time()) < 60
        answer = registry.send("GET", "/v2/")
        answer.headers["Date"] = date
        monkeypatch.setattr(registry, "send", lambda *_: answer)
        with pytest.raises(RegistryError, match="has no valid Date"):
            registry.time()
