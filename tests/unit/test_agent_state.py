"""What the agent's state says to those who read it: status and the gates count storage servers by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kubeadm_registry.agent import status
from kubeadm_registry.agent.config import parse
from kubeadm_registry.agent.model import Decisions, Level, Memory, PeerMemory, Presence, Report
from tests.unit.test_agent_config import smallest

FACTS = status.Facts(
    version="1", instance="i", wall=1.0, now=1.0, holds_vip=False, expires=None, can_destroy=None, seconds={},
    corrections=(), heard=dict.fromkeys(("cp-2", "cp-3"), (0.1, 0.1, 1, 0)), wall_skew={},
)  # fmt: skip


def quorum(own: Level, levels: dict[str, Level], presence: dict[str, Presence]) -> dict[str, Any]:
    peers = {name: replace(PeerMemory(), presence=one) for name, one in presence.items()}
    memory = replace(Memory(started=0.0), level=own, peers=peers)
    decided = Decisions(None, None, False, 0, True, Report(), levels)
    found: dict[str, Any] = status.state(memory, decided, parse(smallest()), FACTS, status.Counters())["quorum"]
    return found


FRESH = dict.fromkeys(("cp-2", "cp-3"), Presence.FRESH)


@pytest.mark.parametrize(
    ("own", "second", "third", "counted"),
    [
        (Level.FIT, Level.FIT, Level.FIT, 3),
        (Level.CHAIN, Level.CHAIN, Level.CHAIN, 3),  # slow storage is there
        (Level.FIT, Level.FIT, Level.PROCESS, 2),
        (Level.FIT, Level.SILENT, Level.PROCESS, 1),
        (Level.PROCESS, Level.FIT, Level.CHAIN, 2),
        (Level.PROCESS, Level.PROCESS, Level.PROCESS, 0),
    ],
)
def test_a_storage_server_counts_while_its_processes_run(own: Level, second: Level, third: Level, counted: int) -> None:
    assert quorum(own, {"cp-2": second, "cp-3": third}, FRESH)["storage"] == counted


@pytest.mark.parametrize("presence", [one for one in Presence if one is not Presence.FRESH])
def test_one_that_is_not_heard_does_not_count(presence: Presence) -> None:
    levels = dict.fromkeys(("cp-2", "cp-3"), Level.FIT)
    found = quorum(Level.FIT, levels, {"cp-2": Presence.FRESH, "cp-3": presence})
    assert found == {"nodes": 3, "heard": 2, "majority": True, "storage": 2}
    assert quorum(Level.FIT, levels, dict.fromkeys(("cp-2", "cp-3"), presence))["majority"] is False


def test_one_of_which_no_level_is_known_does_not_count() -> None:
    assert quorum(Level.FIT, {"cp-2": Level.FIT}, FRESH)["storage"] == 2
