"""docs/agent.md names every key with its default, every metric, every field of the state and every condition."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.agent import conditions, rules, status
from kubeadm_registry.agent.config import Config, parse
from kubeadm_registry.agent.model import Memory
from tests.unit.test_agent_config import smallest
from tests.unit.test_agent_rules import ANY, well


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    return (root / "docs/agent.md").read_text()


def shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "empty"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else "empty"


def keys(kind: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """Every key with its default as the page shows it."""
    hints = typing.get_type_hints(kind)
    for one in fields(kind):
        hint = hints[one.name]
        inner = typing.get_args(hint)[0] if typing.get_origin(hint) in (typing.Union, tuple) else hint
        path = before + one.name + ("[]" if typing.get_origin(hint) is tuple and is_dataclass(inner) else "")
        if is_dataclass(inner):
            if one.default is None:
                yield path, "none"
            yield from keys(inner, f"{path}.")
        elif one.default is MISSING:
            yield path, "required"
        else:
            yield path, shown(one.default)


def test_every_key_is_told_with_its_default_and_no_other(text: str) -> None:
    table = re.findall(r"^\| `([a-z_.\[\]]+)` \| ([^|]*?) \| ", text, re.MULTILINE)
    told = [row for row in table if row[1] not in ("", "`peer`", "`process`", "`probe`", "`proxy`", "`name`")]
    names = {name for name, _ in keys(Config)}
    assert dict(row for row in told if row[0] in names or "." in row[0]) == dict(keys(Config))


def test_every_metric_field_and_condition_is_told(text: str) -> None:
    raw = smallest() | {"storage": {"unit": "s"}}
    raw["canary"] = dict.fromkeys(("manifest", "blob"), f"sha256:{'0' * 64}") | {"repository": "r"}
    raw["peers"] = [{"name": "b", "address": "10.0.0.2"}, {"name": "c", "address": "10.0.0.3"}]
    config = parse(raw)
    memory, decided = rules.decide(Memory(started=0.0), well(5.0), 5.0, ANY)
    known = re.findall(r'^        "([A-Z][A-Za-z]+)": ', Path(conditions.__file__).read_text(), re.MULTILINE)
    assert len(known) > 10
    facts = status.Facts(
        version="1", instance="i", wall=1.0, now=1.0, holds_vip=True, expires=1.0, can_destroy=True,
        seconds=dict.fromkeys(("frontend", "storage", "manifest", "blob"), 0.1), corrections=(1, 1),
        heard=dict.fromkeys(("b", "c"), (0.1, 0.1, 1, 1)), wall_skew={},
        ca_expires=1.0, data={"free": 1, "size": 1},
    )  # fmt: skip
    decided = replace(decided, conditions=tuple(known))
    state = status.state(memory, decided, config, facts, status.Counters(kills={"frontend": 1}))
    names = {line.split()[2] for line in status.metrics(state, 1.0).splitlines() if line.startswith("# TYPE")}
    wanted = {name.removeprefix("kubeadm_registry_agent_") for name in names} | set(known) | set(state)
    wanted |= set(state["writer"]) | set(state["quorum"]) | set(state["done"]) | set(state["peers"]["b"])
    assert {name for name in wanted if f"`{name}`" not in text} == set()
