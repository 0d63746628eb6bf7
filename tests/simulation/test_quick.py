"""What is done quickly has the same outcome as what the product's own code does."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from itertools import cycle
from typing import Any
from unittest.mock import patch

import pytest

from kubeadm_registry.agent import rules
from kubeadm_registry.agent.heartbeat import Packet, decode, encode
from kubeadm_registry.agent.model import Answers, LeaseMemory, Memory, Report, Role
from kubeadm_registry.agent.timings import Timings
from tests.simulation import links, world
from tests.simulation.links import KEY
from tests.simulation.quick import MADE_OFTEN, carried, copy, quick
from tests.simulation.run import play, run
from tests.simulation.schedule import DISTRIBUTION, KINDS, ZOT

REPORT = Report(held=12.0, role=Role.WRITER, term=7, epoch=7, vote="b", vote_term=7, fit=True, good=True)


@pytest.mark.parametrize(("kind", "frontend"), list(zip(KINDS, cycle([ZOT, DISTRIBUTION]))))
def test_a_schedule_is_the_same_from_the_start(kind: str, frontend: str) -> None:
    world._warm.cache_clear()
    slow = play(11, kind, frontend, tracing=True)
    world._warm.cache_clear()
    assert slow.trace
    assert slow == run(11, kind, frontend, tracing=True)


def test_a_copy_is_the_same() -> None:
    memory = Memory(started=1.0, lease=LeaseMemory(role=Role.WRITER, term=7))
    for value, changes in (
        (memory, {"last": 5.0, "fit": True}),
        (memory.lease, {"term": 9}),
        (Timings(), {"tick": 0.1}),
    ):
        assert copy(value, **changes) == replace(value, **changes)
        assert hash(copy(memory.lease, term=9)) == hash(replace(memory.lease, term=9))


@pytest.mark.parametrize("kind", MADE_OFTEN)
def test_a_new_value_is_the_same(kind: type[Any]) -> None:
    given = {one.name: object() for one in fields(kind)}
    with quick():
        fast = kind(**given)
        least = {name: given[name] for name in given if not hasattr(kind, name)}
        fast_least = kind(**least)
    assert (fast, fast_least) == (kind(**given), kind(**least))


def test_what_a_peer_reads_is_the_same() -> None:
    with quick():
        for _ in range(2):  # the second time nothing is encoded
            for packet in (
                Packet("a", "b", "0123", 5, (("4567", 3), ("89ab", 4)), 1_795_000_000_123, REPORT),
                Packet("b", "a", "4567", 6, (("", 0),), 1_795_000_000_124, REPORT),
                Packet("b", "c", "4567", 7, (("", 0),), 1_795_000_000_125, replace(REPORT, removed=True)),
            ):
                assert carried(packet) == decode(KEY, encode(KEY, packet))


def test_the_code_under_test_encodes_and_decodes() -> None:
    """A schedule ends badly when heartbeats lose the vote."""

    def without_votes(key: bytes, datagram: bytes) -> Packet:
        packet = decode(key, datagram)
        return replace(packet, report=replace(packet.report, vote="", vote_term=0))

    with patch.object(links, "decode", without_votes):
        finding = run(0, "isolation", ZOT).finding
    assert finding is not None
    assert finding.promise == "one gate after healing"
    assert run(0, "isolation", ZOT).finding is None


def test_all_is_as_before_afterwards() -> None:
    def changed() -> tuple[object, ...]:
        return vars(rules)["replace"], vars(rules)["conditions"], links.carried, vars(Answers)["__init__"]

    before = changed()
    with quick(), quick():
        assert all(one is not other for one, other in zip(changed(), before, strict=True))
    assert changed() == before
    with pytest.raises(FrozenInstanceError):
        Answers(first=0.0).first = 1.0  # type: ignore[misc]
