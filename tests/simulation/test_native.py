"""What is written out for mypyc is, as Python, what ``dataclass`` and ``replace`` make."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.simulation import native

SOURCE = '''"""A module with data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Point:
    """Frozen, with a default."""

    x: int
    y: int = 2

    def moved(self, by: int) -> Point:
        return replace(self, x=self.x + by)


@dataclass
class Trace:
    """With a default that each has for itself."""

    name: str
    points: list[Point] = field(default_factory=list)
'''


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The module as it is, and as it is rewritten."""
    plain, written = tmp_path / "plain.py", tmp_path / "written.py"
    for path in (plain, written):
        path.write_text(SOURCE)
    native.rewrite(tmp_path, [Path("written.py")])
    assert "dataclass(" not in written.read_text()
    made = []
    for path in (plain, written):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, path.stem, module)  # where dataclass looks for it
        spec.loader.exec_module(module)
        made.append(module)
    return made[0], made[1]


def test_values_are_compared_hashed_and_shown_alike(both: tuple[Any, Any]) -> None:
    for made in both:
        assert made.Point(1) == made.Point(1, 2) != made.Point(1, 3)
        assert made.Point(1) != (1, 2)
        assert len({made.Point(1), made.Point(1, 2)}) == 1
        assert repr(made.Trace("a", [made.Point(1)])) == "Trace(name='a', points=[Point(x=1, y=2)])"


def test_a_copy_has_what_is_changed_and_all_else(both: tuple[Any, Any]) -> None:
    for made in both:
        assert made.Point(1, 7).moved(2) == made.Point(3, 7)
    assert not dataclasses.is_dataclass(both[1].Point)


def test_none_shares_a_default(both: tuple[Any, Any]) -> None:
    for made in both:
        made.Trace("a").points.append(made.Point(1))
        assert made.Trace("b").points == []
