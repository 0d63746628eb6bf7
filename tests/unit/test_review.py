"""docs/review.md: each finding has its line, and the tests and decisions that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

FINDINGS = {"A": 13, "B": 23, "C": 32, "D": 8, "F": 16}
NAMED = re.compile(r"((?:tests/[\w/]+|test_\w+)\.py)?(?:::(test_\w+))?")


def rows(root: Path) -> list[str]:
    return [line for line in (root / "docs/review.md").read_text().splitlines() if re.match(r"\| [A-DF]\d", line)]


def test_every_finding_has_its_line(root: Path) -> None:
    told = {line.split()[1] for line in rows(root)}
    assert {f"{part}{number}" for part, most in FINDINGS.items() for number in range(1, most + 1)} - told == set()


def test_every_test_that_is_named_is_there(root: Path) -> None:
    missing = []
    for line in rows(root):
        path = None
        for file, test in NAMED.findall(line):
            if file:
                path = root / file if "/" in file else next(root.glob(f"tests/*/{file}"), root / file)
            if path is not None and (not path.exists() or (test and f"def {test}(" not in path.read_text())):
                missing.append(f"{path.relative_to(root)}::{test}")
    assert missing == []


def test_every_decision_that_is_named_is_there(root: Path) -> None:
    named = [name for line in rows(root) for name in re.findall(r"\(decisions/([\w-]+\.md)\)", line)]
    assert named
    assert all((root / "docs/decisions" / name).exists() for name in named)
