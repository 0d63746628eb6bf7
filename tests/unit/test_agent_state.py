"""What the agent's state says to those who read it: status and the gates count storage servers by it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from kubeadm_registry.agent import document, status
from kubeadm_registry.agent.config import parse
from kubeadm_registry.agent.model import Decisions, Level, Memory, PeerMemory, Presence, Report
from kubeadm_registry.agent.peers import Links
from kubeadm_registry.agent.presence import peer
from tests.unit.agent_sample import MOVE
from tests.unit.test_agent_config import smallest

FACTS = status.Facts(
    version="1", instance="i", wall=1.0, now=1.0, holds_vip=False, expires=None, can_destroy=None, seconds={},
    corrections=(), heard=dict.fromkeys(("cp-2", "cp-3"), (0.1, 0.1, 1, 0)), wall_skew={},
    data={"free": 40 << 30, "size": 100 << 30, "free_inodes": 6_000_000, "inodes": 6_553_600, "writable": True},
    storage_left={"blocks": 0, "tables": 0},
    storage_queues={"blocks": 5, "errors": 0, "entries": 0, "merkle": 0}, storage_lost=0,
    data_trend={"since": 1.0, "rate": 0.5, "full": None}, moves=(MOVE,),
)  # fmt: skip


def state(own: Level, levels: dict[str, Level], presence: dict[str, Presence]) -> document.State:
    peers = {name: replace(PeerMemory(), presence=one) for name, one in presence.items()}
    memory = replace(Memory(started=0.0), level=own, peers=peers)
    decided = Decisions(None, None, False, 0, True, Report(), levels)
    return status.state(memory, decided, parse(smallest()), FACTS, status.Counters())


def quorum(own: Level, levels: dict[str, Level], presence: dict[str, Presence]) -> document.Quorum:
    return state(own, levels, presence)["quorum"]


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


def test_a_host_that_died_before_its_agent_was_heard_is_not_said_to_run() -> None:
    """Else nobody may replace it: its kernel said that no agent runs there, and says nothing any more."""
    config = parse(smallest())

    async def made() -> Links:
        return Links(config, b"k" * 32, lambda: None)

    links = asyncio.run(made())
    links.links["cp-2"].away = links.links["cp-3"].away = 10.0
    links.links["cp-3"].inbox.heard = 9.0
    peers = {"cp-2": PeerMemory(), "cp-3": PeerMemory()}
    for now, expected in ((10.2, ("gone", "gone")), (20.0, ("unheard", "silent"))):
        peers = {
            name: peer(one, links.links[name].view, 0.0, 0.0, now, config.timings)[0] for name, one in peers.items()
        }
        facts = replace(FACTS, never=status.never(links, now))
        memory = replace(Memory(started=0.0), peers=peers)
        decided = Decisions(None, None, False, 0, True, Report(), {})
        told = status.state(memory, decided, config, facts, status.Counters())["peers"]
        assert (told["cp-2"]["presence"], told["cp-3"]["presence"]) == expected


# ---- the document, which the command line reads ----------------------------------------------------------------------


def test_what_is_told_is_what_the_document_says_and_can_be_read_again() -> None:
    told = state(Level.FIT, dict.fromkeys(("cp-2", "cp-3"), Level.FIT), FRESH)
    kinds = {"vip": document.Vip, "frontend": document.Process, "writer": document.Writer, "quorum": document.Quorum,
             "members": document.Members, "done": document.Done, "data": document.Data, "storage_left": document.Left,
             "storage_queues": document.Queues, "data_trend": document.Trend}  # fmt: skip
    assert set(told) == set(document.State.__annotations__)
    values: dict[str, Any] = dict(told)
    for key, kind in kinds.items():
        assert set(values[key]) == set(kind.__annotations__), key
    assert all(set(peer) == set(document.Peer.__annotations__) for peer in told["peers"].values())
    assert all(set(move) == set(document.Move.__annotations__) for move in told["moves"])
    assert document.read(json.dumps(document.sealed(told))) == told


def test_an_agent_of_another_release_is_understood() -> None:
    assert document.read('{"time": 5, "fit": true, "hum": [1]}') == {"time": 5, "fit": True, "hum": [1]}
    newer = {"time": 5, "format": {"version": 9, "minReader": 1, "minWriter": 9}}
    assert document.read(json.dumps(newer)) == {"time": 5}


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"time": "5"}', '{"time": 5, "quorum": 3}', '{"time": 5, "conditions": "x"}',
     '{"time": 5, "fit": 1}', '{"time": 5, "clock_off": "0.1"}', '{"time": 5', "[" * 10000,
     '{"time": 5, "format": {"version": 9, "minReader": 9, "minWriter": 9}}'],
)  # fmt: skip
def test_what_is_no_document_is_none(text: str) -> None:
    assert document.read(text) is None


def test_a_term_is_told_to_the_last_digit() -> None:
    """Where a clock was ahead once, the terms after that grow by as many as there are nodes: an alert counts them."""
    told = state(Level.FIT, {}, FRESH)
    told["writer"]["epoch"] = 1_793_023_456_789
    lines = status.metrics(told, 0.1 + 0.2).splitlines()
    assert "kubeadm_registry_agent_epoch 1793023456789" in lines
    assert "kubeadm_registry_agent_cpu_seconds_total 0.3" in lines
