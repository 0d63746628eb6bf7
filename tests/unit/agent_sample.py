"""A state of the agent in which nothing is left out: every field, every metric, every condition."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from kubeadm_registry.agent import conditions, rules, status
from kubeadm_registry.agent.config import parse
from kubeadm_registry.agent.document import Move, State
from kubeadm_registry.agent.model import Memory
from tests.unit.test_agent_config import smallest
from tests.unit.test_agent_rules import ANY, well

PEERS = ("b", "c")


MOVE: Move = {
    "time": 1900000000.123, "what": "vip", "here": True, "why": "no heartbeat of b for 0.6 s", "other": "b",
    "seconds": 0.61, "exact": True,
}  # fmt: skip


def every_condition() -> tuple[str, ...]:
    """The names of all conditions."""
    return tuple(re.findall(r'^        "([A-Z][A-Za-z]+)": ', Path(conditions.__file__).read_text(), re.MULTILINE))


def everything() -> State:
    """The state of an agent that has a single writer, storage, a canary image and two peers."""
    raw = smallest() | {"storage": {"unit": "s"}, "writer": "single", "fence": {}}
    raw["frontend"] |= dict.fromkeys(("runtime_config", "writer_config", "standby_config"), "x")
    raw["canary"] = dict.fromkeys(("manifest", "blob"), f"sha256:{'0' * 64}") | {"repository": "r"}
    raw["peers"] = [{"name": name, "address": f"10.0.0.{index}"} for index, name in enumerate(PEERS, 2)]
    memory, decided = rules.decide(Memory(started=0.0), well(5.0), 5.0, ANY)
    facts = status.Facts(
        version="1", instance="i", wall=1.0, now=1.0, holds_vip=True, expires=1.0, can_destroy=True,
        seconds=dict.fromkeys(("frontend", "storage", "manifest", "blob"), 0.1), corrections=(1, 1),
        heard=dict.fromkeys(PEERS, (0.1, 0.1, 1, 1)), wall_skew={}, guarded=True,
        ca_expires=1.0,
        data={"free": 1, "size": 2, "free_inodes": 3, "inodes": 4, "writable": True},
        storage_left={"blocks": 3, "tables": 4},
        storage_queues={"blocks": 5, "errors": 6, "entries": 7, "merkle": 8}, storage_lost=2,
        data_trend={"since": 1.0, "rate": 0.5, "full": 9.0}, moves=(MOVE,),
    )  # fmt: skip
    decided = replace(decided, conditions=every_condition())
    memory = replace(memory, clock_off=0.01)
    return status.state(memory, decided, parse(raw), facts, status.Counters(kills={"frontend": 1}))
