"""The simulator finds each rule that is broken on purpose, or the schedules that pass would mean nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.simulation import world
from tests.simulation.__main__ import first_found, told
from tests.simulation.mutants import MUTANTS, edit
from tests.simulation.run import run
from tests.simulation.schedule import KINDS, ZOT, make

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_found(name: str) -> None:
    mutant = MUTANTS[name]
    with mutant.applied():
        found = first_found(mutant)
        assert found is not None, f"not found in {mutant.seeds} schedules of {mutant.kind!r}: {mutant.text}"
        replayed = run(found, mutant.kind, mutant.frontend, tracing=True)
    assert replayed.finding is not None
    assert replayed.finding.promise == mutant.finds
    assert f"--seed {found} --kind {mutant.kind} --frontend {mutant.frontend}" in told(replayed)
    assert run(found, mutant.kind, mutant.frontend).finding is None, (
        "the rule as it is keeps the promise under the same schedule"
    )


def test_the_page_lists_every_mutant() -> None:
    page = (Path(__file__).parents[2] / "docs/simulation.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)
    assert set(MUTANTS) <= set(rows)


def test_a_mutant_whose_line_is_gone_is_an_error() -> None:
    class Owner:
        def rule(self) -> bool:
            return True

    assert edit(Owner, "rule", "True", "False").made()(Owner()) is False
    with pytest.raises(ValueError, match="not exactly one 'Maybe'"):
        edit(Owner, "rule", "Maybe", "False").made()


def test_no_schedule_begins_in_a_world_that_a_mutant_made() -> None:
    world._warm.cache_clear()
    with MUTANTS["vote-not-on-disk"].applied():
        made = world._warm.cache_info().misses
        for kind in KINDS:
            for seed in range(200):
                plan = make(seed, kind, ZOT)
                world.new_world(plan.names, plan.roster, cold=plan.cold)
        assert world._warm.cache_info().misses == made
