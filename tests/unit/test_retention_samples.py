"""Trash, orders, pins and history as the first release that has them writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.formats import Damaged
from kubeadm_registry.retention.history import History, Run
from kubeadm_registry.retention.order import Caller, Order, Restore
from kubeadm_registry.retention.standing import Pin, Spent, Standing
from kubeadm_registry.retention.trash import Trash, Trashed

FOLDER = Path(__file__).parents[1] / "golden" / "formats"
IMAGE = Trashed(
    "team/app", f"sha256:{'a' * 64}", {"v1": 1_790_000_000, "v1.0": 1_790_000_000}, (f"sha256:{'b' * 64}",),
    1_795_000_000, f"sha256:{'c' * 64}", "ci", "kept by no part of the rule and used by nothing", 1000, complete=True,
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A record: its *sample*, what it was made from, and how it is read."""

    sample: str
    value: Any
    parse: Callable[[bytes], Any]


KINDS = (
    Kind("retention-trash.json", Trash({IMAGE.key: IMAGE}), Trash.parse),
    Kind(
        "retention-standing.json",
        Standing((Pin("team/app:v1", "asked for", 1_795_000_000, 1_796_000_000),), {IMAGE.plan: 7}, 5, "why"),
        Standing.parse,
    ),
    Kind("retention-spent.json", Spent({IMAGE.plan: 7}, {"a-lease": 3}, 604800, 1_795_000_000, 604000), Spent.parse),
    Kind(
        "retention-history.json",
        History((Run(IMAGE.plan, IMAGE.plan, "retention", "h1", 1, 2, 3, 4, 5, 6, "an error", ("deleted x",)),)),
        History.parse,
    ),
    Kind(
        "retention-history-left.json",
        History((Run(IMAGE.plan, IMAGE.plan, "retention", "h1", 1, 2, 3, 4, 5, 6, "", ("deleted x",), 7),)),
        History.parse,
    ),
    Kind(
        "retention-order.json",
        Order(
            1_795_000_000, "retention", IMAGE.plan, True, 86400, 604800, 20, ("bundle",), (IMAGE,),
            (Restore(IMAGE, "used by Pod default/web"),), (IMAGE,), (IMAGE,), {"team/app": ("left",)},
        ),
        Order.parse,
    ),
)  # fmt: skip


@pytest.fixture(params=KINDS, ids=lambda kind: str(kind.sample))
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def test_the_sample_is_read_and_written_as_it_is(kind: Kind) -> None:
    content = (FOLDER / kind.sample).read_bytes()
    assert kind.parse(content) == kind.value
    assert kind.value.to_json() == content


def test_what_a_newer_release_says_of_an_image_in_an_order_is_kept() -> None:
    document = json.loads((FOLDER / "retention-order.json").read_text())
    document["delete"][0]["ofANewerRelease"] = {"deep": [1]}
    assert json.loads(Order.parse(json.dumps(document).encode()).to_json()) == document


def test_an_order_of_an_operator_says_who_gives_it_and_what_approval_it_spends() -> None:
    content = (FOLDER / "retention-order-of-an-operator.json").read_bytes()
    order = Order.parse(content)
    assert order.caller == Caller("7d2c1c5e-0000-4000-8000-000000000001", 7)
    assert order.approval == "sha256:" + "1" * 64
    assert order.to_json() == content
    assert Order.parse((FOLDER / "retention-order.json").read_bytes()).caller is None


@pytest.mark.parametrize("value", [{}, {"lease": "x"}, {"lease": 1, "epoch": 1}, {"lease": "x", "epoch": "1"}, 5])
def test_a_caller_that_is_not_understood_is_damage(value: object) -> None:
    document = json.loads((FOLDER / "retention-order-of-an-operator.json").read_text())
    with pytest.raises(Damaged):
        Order.parse(json.dumps({**document, "caller": value}).encode())


def test_standing_keeps_who_gave_orders() -> None:
    spent = Spent().called(Caller("a", 3)).called(Caller("b", 1)).called(Caller("a", 4))
    assert Standing(callers={"a": 2, "c": 9}).after(spent).callers == {"a": 4, "b": 1, "c": 9}, "an earlier release's"
    assert Spent.parse(spent.to_json()) == spent


def test_a_window_that_is_shorter_than_before_counts_a_day_later() -> None:
    now, week, day = 1_795_000_000, 7 * 86400, 86400
    spent = Spent().asked(week, now)
    assert (spent.window, spent.shorter) == (week, 0)
    asked = spent.asked(60, now + 5)
    assert (asked.window, asked.shorter) == (week, now + 5)
    assert asked.asked(61, now + 5 + day - 1) == asked, "one that is less short does not count from anew"
    shortest = asked.asked(0, now + 5 + day + 1)
    assert (shortest.window, shortest.shorter) == (week, now + 5 + day + 1), "a still shorter one waits for a day again"
    assert asked.asked(week, now + 6) == spent, "it was asked for once"
    later = asked.asked(60, now + 5 + day)
    assert (later.window, later.shorter) == (60, 0)
    assert later.asked(week, now + 6 + day).window == week, "a longer one counts at once"


def test_an_approval_is_spent_as_it_was_given_and_another_one_is_not() -> None:
    said = Standing().with_approval("sha256:p", 100)
    spent = Spent({"sha256:gone": 5}).spending("sha256:p", said)
    assert spent.approvals == {"sha256:p": 100}, "what nobody approves any more is forgotten"
    assert said.after(spent).approved == {}
    assert said.with_approval("sha256:p", 101).after(spent).approved == {"sha256:p": 101}
