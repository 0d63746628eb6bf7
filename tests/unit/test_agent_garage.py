"""What Garage's workers say, and what follows from it: whether the storage brings over what a node missed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kubeadm_registry.agent.document import Left
from kubeadm_registry.agent.garage import BEGINS, LASTING, QUIET, Copying, left_in

THROTTLED = {"throttled": {"durationSecs": 0.02}}


def worker(name: str, queue: int | None, errors: int | None = None, state: object = "idle") -> dict[str, Any]:
    return {"name": name, "queueLength": queue, "persistentErrors": errors, "state": state}


def resync(number: int, queue: int | None, errors: int | None, state: object) -> dict[str, Any]:
    return worker(f"Block resync worker #{number}", queue, errors, state)


def answer(*workers: dict[str, Any]) -> bytes:
    return json.dumps({"error": {}, "success": {"d0c5": workers}}).encode()


def test_blocks_and_parts_of_tables_count_and_nothing_else() -> None:
    """As Garage 2.3.0 said it while a node with an empty disk came back."""
    body = answer(
        resync(1, 47, 3, THROTTLED), resync(2, None, None, "idle"), worker("version sync", 44),
        worker("block_ref sync", 160), worker("block_ref Merkle", 23), worker("object queue", 5),
        worker("Block scrub worker", None, 7), worker("object GC", 9),
    )  # fmt: skip
    assert left_in(body) == {"blocks": 47, "tables": 44 + 160}
    assert left_in(answer(worker("version sync", 0))) == {"blocks": 0, "tables": 0}


@pytest.mark.parametrize(
    ("workers", "blocks"),
    [
        ([resync(1, 21, 0, "idle")], 0),
        ([resync(1, 21, 4, "idle")], 4),
        ([resync(1, 21, 4, "busy")], 21),
        ([resync(1, 21, 0, THROTTLED), resync(2, 23, 0, "busy")], 23),
        ([resync(1, 23, 0, "idle"), resync(2, 5, 0, "busy")], 5),
        ([resync(1, 9, 2, "idle"), resync(2, 7, 0, "idle")], 0),
    ],
    ids=["for later", "failed", "now", "one queue", "one that became idle before", "what has come meanwhile"],
)
def test_blocks_for_later_do_not_count(workers: list[dict[str, Any]], blocks: int) -> None:
    """As after a deletion, whose blocks Garage keeps in the queue for ten minutes with its worker idle."""
    assert left_in(answer(*workers)) == {"blocks": blocks, "tables": 0}


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"success": {}}', b'{"success": {"a": [{}]}}', b'{"success": 1}']
)
def test_another_answer_is_none(body: bytes) -> None:
    assert left_in(body) is None


def some(blocks: int | None) -> Left | None:
    return None if blocks is None else {"blocks": blocks, "tables": 0}


def played(*looks: int | None) -> list[bool]:
    """Whether it copies after each of *looks*, one a second."""
    copying, found = Copying(), []
    for now, left in enumerate(looks):
        copying.take(some(left), float(now))
        found.append(copying.now)
    return found


def test_work_that_is_soon_done_does_not_count() -> None:
    assert not any(played(0, 5, 0, 3, 0, 9, 1, 0, 0))


def test_work_that_lasts_counts_until_nothing_was_left_for_a_while() -> None:
    busy = int(LASTING) + 1
    found = played(*[7] * busy, *[0] * int(QUIET + 2))
    assert found[: busy - 1] == [False] * (busy - 1)
    assert found[busy - 1 : busy + int(QUIET) - 1] == [True] * int(QUIET)
    assert not found[-1]


def test_a_pause_between_tables_and_blocks_ends_nothing() -> None:
    assert all(played(*[7] * 3, *[0] * 8, *[7] * 2, *[0] * 8)[2:])


def test_a_comparison_of_the_tables_counts_until_nothing_comes_of_it() -> None:
    """A node with an empty disk has nothing to do before it is compared with the others."""
    copying = Copying()
    copying.take(some(0), 100.0)
    copying.begin(100.5)
    assert copying.now
    copying.take(some(0), 101.0)
    assert copying.now
    copying.take(some(0), 100.5 + BEGINS)
    assert not copying.now
    copying.begin(200.0)
    copying.take(some(500), 202.0)
    copying.take(some(0), 204.0)
    assert copying.now, "now there was work"
    copying.take(some(0), 202.0 + QUIET)
    assert not copying.now


def test_no_answer_changes_nothing() -> None:
    assert played(7, 7, 7, None, None)[-1]
    assert not any(played(None, None))
    copying = Copying()
    copying.take(None, 1.0)
    assert copying.left is None
