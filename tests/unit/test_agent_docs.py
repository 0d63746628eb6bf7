"""docs/agent.md names every key with its default, field of the state and condition; docs/monitoring.md every metric."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.agent import status
from kubeadm_registry.agent.config import Config
from tests.unit.agent_sample import every_condition, everything


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
    names = {name for name, _ in keys(Config)}
    assert dict(row for row in table if row[0] in names or "." in row[0]) == dict(keys(Config))


def test_every_field_and_condition_is_told(text: str) -> None:
    state, known = everything(), every_condition()
    assert len(known) > 10
    wanted = set(known) | set(state) | set(state["writer"]) | set(state["quorum"]) | set(state["done"])
    wanted |= set(state["peers"]["b"])
    assert {name for name in wanted if f"`{name}`" not in text} == set()


def test_every_metric_is_told_with_its_kind_and_no_other(root: Path) -> None:
    shown = re.findall(r"^# TYPE kubeadm_registry_agent_(\w+ \w+)$", status.metrics(everything(), 1.0), re.MULTILINE)
    page = (root / "docs/monitoring.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|[^|]*\| (gauge|counter) \|", page, re.MULTILINE)
    told = [f"{name} {kind}" for names, kind in rows for name in re.findall(r"`(\w+)`", names)]
    assert len(told) > 20
    assert sorted(told) == sorted(shown)
