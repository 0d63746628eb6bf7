"""What Garage's workers say, and what follows from it: whether the storage brings over what a node missed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.agent.config import parse
from kubeadm_registry.agent.document import Left
from kubeadm_registry.agent.garage import (
    ASK_AGAIN,
    BEGINS,
    CALM,
    GENTLE,
    LASTING,
    LONGEST_RETRY,
    MANY,
    QUICK,
    QUIET,
    RETRY,
    Copying,
    Garage,
    Lost,
    Pace,
    lost_in,
    queues_in,
    work_in,
)
from kubeadm_registry.agent.workers import Work
from tests.unit.test_agent_config import smallest

THROTTLED = {"throttled": {"durationSecs": 0.02}}


def worker(name: str, queue: int | None, errors: int | None = None, state: object = "idle") -> dict[str, Any]:
    return {"name": name, "queueLength": queue, "persistentErrors": errors, "state": state}


def resync(number: int, queue: int | None, errors: int | None, state: object) -> dict[str, Any]:
    return worker(f"Block resync worker #{number}", queue, errors, state)


def answer(*workers: dict[str, Any]) -> bytes:
    return json.dumps({"error": {}, "success": {"d0c5": workers}}).encode()


def left(body: bytes) -> Left | None:
    work = work_in(body)
    return None if work is None else work.left


def test_blocks_and_parts_of_tables_count_and_nothing_else() -> None:
    """As Garage 2.3.0 said it while a node with an empty disk came back."""
    body = answer(
        resync(1, 47, 3, THROTTLED), resync(2, None, None, "idle"), worker("version sync", 44),
        worker("block_ref sync", 160), worker("block_ref Merkle", 23), worker("object queue", 5),
        worker("Block scrub worker", None, 7), worker("object GC", 9),
    )  # fmt: skip
    assert left(body) == {"blocks": 47, "tables": 44 + 160}
    assert left(answer(worker("version sync", 0))) == {"blocks": 0, "tables": 0}


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
    assert left(answer(*workers)) == {"blocks": blocks, "tables": 0}


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"success": {}}', b'{"success": {"a": [{}]}}', b'{"success": 1}']
)
def test_another_answer_is_none(body: bytes) -> None:
    assert work_in(body) is None


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


def test_it_copies_quickly_while_something_is_missing_and_nothing_is_slow() -> None:
    pace = Pace()
    assert pace.wanted(copying=False, slow=False, now=0.0) == GENTLE
    assert pace.wanted(copying=True, slow=False, now=1.0) == QUICK
    assert pace.wanted(copying=True, slow=True, now=2.0) == GENTLE
    assert pace.wanted(copying=True, slow=False, now=2.0 + CALM - 0.1) == GENTLE
    assert pace.wanted(copying=True, slow=False, now=2.0 + CALM) == QUICK
    assert pace.wanted(copying=False, slow=False, now=3.0 + CALM) == GENTLE


def test_what_failed_is_tried_again_ever_more_rarely() -> None:
    pace = Pace()
    tried = [now for now in range(200) if pace.retry(3, float(now))]
    assert tried == [0, RETRY, 3 * RETRY, 7 * RETRY, 15 * RETRY]
    late = [now for now in range(200, 20_000) if pace.retry(3, float(now))]
    assert late[-1] - late[-2] == LONGEST_RETRY


def test_a_storage_that_is_back_or_a_success_lets_it_begin_anew() -> None:
    pace = Pace()
    assert [pace.retry(1, now) for now in (0.0, 1.0)] == [True, False]
    pace.again()
    assert [pace.retry(1, now) for now in (1.0, 2.0, 1.0 + RETRY)] == [True, False, True]
    assert not pace.retry(0, 12.0)
    assert pace.retry(1, 13.0)


def failing(*lists: str, error: object = None) -> bytes:
    """An answer of ListBlockErrors: a letter for each block that the nodes a, b, ... failed to get."""
    success = {
        node: [{"blockHash": block, "refcount": 1} for block in one] for node, one in zip("abcde", lists, strict=False)
    }
    return json.dumps({"success": success, "error": error or {}}).encode()


@pytest.mark.parametrize(
    ("lists", "copies", "lost"),
    [
        (("xyz", "xz", "zx"), 3, 2),
        (("xy", "xy", ""), 3, 0),
        (("", "xy", "xy"), 3, 0),
        (("xy", "x", "xy", "xy"), 3, 2),
        (("", "x", "x", "x"), 3, 0),
        (("xy",), 1, 2),
    ],
    ids=["all fail", "the third has them", "this one has them", "of four", "not this one's", "one node"],
)
def test_a_block_is_lost_once_all_nodes_that_keep_it_have_failed(
    lists: tuple[str, ...], copies: int, lost: int
) -> None:
    assert lost_in(failing(*lists), copies, "bcde") == lost


@pytest.mark.parametrize("body", [failing("x", "x", error={"c": "timeout"}), b"{}", b"", failing("", "")])
def test_while_a_node_does_not_say_nothing_is_known(body: bytes) -> None:
    """The last one: of another Garage, whose own id is not among the answers."""
    assert lost_in(body, 3, "ab" if body == failing("", "") else "bc") is None


def seen(blocks: int, failed: int, tables: int = 0) -> Work:
    return Work({"blocks": blocks, "tables": tables}, failed)


def test_nodes_are_asked_where_blocks_that_failed_are_all_that_is_left() -> None:
    lost = Lost(3)
    for work in (seen(0, 0), seen(5, 4), seen(4, 4, tables=1), seen(MANY + 1, MANY + 1)):
        assert not lost.due(work, 0.0)
    asked = [now for now in range(100) if lost.due(seen(4, 4), float(now))]
    assert asked == [0, ASK_AGAIN, 2 * ASK_AGAIN, 3 * ASK_AGAIN]


def test_what_is_lost_is_not_left_and_what_was_mended_is_not_lost() -> None:
    lost = Lost(3)
    assert lost.left(seen(4, 4)) == {"blocks": 4, "tables": 0}, "not known yet"
    lost.count = 3
    assert lost.left(seen(4, 4)) == {"blocks": 1, "tables": 0}
    assert not lost.due(seen(2, 1, tables=1), 1.0)
    assert lost.count == 1
    lost.due(seen(0, 0), 2.0)
    assert lost.count == 0
    assert lost.left(seen(4, 4)) == {"blocks": 4, "tables": 0}


class Admin:
    """An admin interface that takes one token, and has these workers; what it was asked, in the order of time."""

    def __init__(self, token: str, body: bytes) -> None:
        self.token, self.body = token, body
        self.asked: list[tuple[str, object]] = []
        self.refused = 0
        self.errors = b"{}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        assert (length is not None) is head.startswith("POST ")
        body = json.loads(await reader.readexactly(int(length[1]))) if length else None
        right = f"Bearer {self.token}\r\n" in head
        if right:
            self.asked.append((head.split()[1], body))
        self.refused += not right
        answer = self.body if "ListWorkers" in head or "Statistics" in head else b"{}"
        if "ListBlockErrors" in head:
            answer = self.errors
        status = b"200 OK" if right else b"403 Forbidden"
        writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(answer), answer))
        await writer.drain()
        writer.close()


async def until(garage: Garage, true: Callable[[], bool]) -> None:
    """Let *garage* look again and again until *true*."""
    async with asyncio.timeout(10):
        while not true():
            garage.look(slow=False)
            await asyncio.sleep(0.05)


def test_it_sets_the_pace_once_and_reads_a_new_token_when_the_old_one_is_refused(tmp_path: Path) -> None:
    idle, failed = answer(resync(1, 0, 0, "idle")), answer(resync(1, 2, 2, "idle"))
    (token := tmp_path / "token").write_text("first\n")
    told: list[str] = []

    async def played() -> Admin:
        admin = Admin("first", idle)
        async with await asyncio.start_server(admin.serve, "127.0.0.1") as server:
            port = server.sockets[0].getsockname()[1]
            settings = {"unit": "s", "admin_port": port}
            raw = smallest() | {"storage": settings, "garage_admin_token_file": str(token)}
            garage = Garage(parse(raw), lambda kind, text: told.append(text))
            await until(garage, lambda: len(admin.asked) >= 6)
            token.unlink()
            await until(garage, lambda: len(admin.asked) >= 9)
            token.write_text("second\n")
            admin.token, admin.body = "second", failed
            await until(garage, lambda: any("Retry" in path for path, _ in admin.asked))
        return admin

    admin = asyncio.run(played())
    paths = [path for path, _ in admin.asked]
    variables = [body for path, body in admin.asked if "Variable" in path]
    assert {json.dumps(each) for each in variables[: len(GENTLE)]} == {
        json.dumps({"variable": variable, "value": value}) for variable, value in GENTLE.items()
    }
    assert paths.count("/v2/RetryBlockResync?node=self") == 1
    assert ("/v2/RetryBlockResync?node=self", {"all": True}) in admin.asked
    assert {*told} == {"the storage did not tell of its workers: 403"}


def test_it_asks_the_nodes_which_blocks_are_lost_and_does_not_wait_for_these(tmp_path: Path) -> None:
    (token := tmp_path / "token").write_text("first\n")

    async def played() -> Garage:
        admin = Admin("first", answer(resync(1, 2, 2, "idle")))
        admin.errors = failing("xy", "xy", "xyz")
        async with await asyncio.start_server(admin.serve, "127.0.0.1") as server:
            raw = smallest() | {
                "storage": {"unit": "s", "admin_port": server.sockets[0].getsockname()[1]},
                "garage_admin_token_file": str(token),
            }
            for peer, node in zip(raw["peers"], "bc", strict=True):
                peer["garage_node_id"] = node
            garage = Garage(parse(raw), lambda *_: None)
            await until(garage, lambda: garage.lost.count == 2 and garage.copying.left == some(0))
        assert ("/v2/ListBlockErrors?node=*", None) in admin.asked
        return garage

    assert asyncio.run(played()).lost.copies == 3


def books(**blocks: object) -> bytes:
    """An answer of GetNodeStatistics as Garage 2.3 gives it."""
    tables = [
        {"tableName": name, "items": 7, "merkleItems": 9, "merkleQueueLen": 2, "insertQueueLen": 3, "gcQueueLen": 1}
        for name in ("object", "version")
    ]
    stats = {"rcEntries": 40, "resyncQueueLen": 5, "resyncErrors": 6, **blocks}
    node = {"freeform": "Node ID: ...", "tableStats": tables, "blockManagerStats": stats}
    return json.dumps({"success": {"0123": node}, "error": {}}).encode()


def test_what_is_in_the_books_is_counted() -> None:
    assert queues_in(books()) == {"blocks": 40, "errors": 6, "entries": 6, "merkle": 4}


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b'{"success": {}}', b'{"success": {"1": {"freeform": "an older Garage"}}}', books(rcEntries=None)],
)
def test_another_answer_counts_nothing(body: bytes) -> None:
    assert queues_in(body) is None


def test_it_counts_when_it_is_asked_to(tmp_path: Path) -> None:
    (token := tmp_path / "token").write_text("first\n")

    async def played() -> Admin:
        admin = Admin("first", books())
        async with await asyncio.start_server(admin.serve, "127.0.0.1") as server:
            settings = {"unit": "s", "admin_port": server.sockets[0].getsockname()[1]}
            raw = smallest() | {"storage": settings, "garage_admin_token_file": str(token)}
            garage = Garage(parse(raw), lambda *_: None)
            garage.count()
            async with asyncio.timeout(10):
                while garage.queues is None:
                    await asyncio.sleep(0.01)
        return admin

    assert asyncio.run(played()).asked == [("/v2/GetNodeStatistics?node=self", None)]
