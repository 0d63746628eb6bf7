"""What came of blocks of seeds, a file for each, so that a long run can be interrupted and go on.

What has run from seed 0 on is put into one file of the project, `ran.json`, so that it counts on every machine.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.simulation import sources
from tests.simulation.summary import Row, Summary

FORMAT = 1
BLOCK = 100  # seeds: what an interrupt loses of each process
RAN = Path(__file__).with_name("ran.json")


class Record:
    """The files in *directory* for schedules of *kind*, or of all kinds if that is empty."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self.kind = kind
        self.digest = sources.digest()

    def write(self, first: int, summary: Summary) -> None:
        """Record the block that begins with the seed *first*; its file is whole, or not there."""
        self.directory.mkdir(parents=True, exist_ok=True)
        _write(self.directory / f"{self._name()}-{first:09}.json", {**self._head(first), **_document(summary)})

    def read(self) -> tuple[dict[int, Summary], int]:
        """What is recorded by first seeds, and how many files do not count: of other sources, or not to be read."""
        found: dict[int, Summary] = {}
        left_out = 0
        for path in sorted(self.directory.glob(f"{self._name()}-*.json")):
            try:
                first, summary = self._block(json.loads(path.read_bytes()))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                left_out += 1
            else:
                found[first] = summary
        return found, left_out

    def _name(self) -> str:
        return self.kind or "all"

    def _head(self, first: int) -> dict[str, Any]:
        return {"format": FORMAT, "sources": self.digest, "kind": self.kind, "seeds": [first, first + BLOCK - 1]}

    def _block(self, document: dict[str, Any]) -> tuple[int, Summary]:
        """The first seed, and what came of the block. Raises ValueError and others."""
        first = document["seeds"][0]
        if {key: document[key] for key in self._head(first)} != self._head(first):
            raise ValueError("of other sources, or in another format")
        summary = _summary(document)
        if summary.total().schedules != BLOCK:
            raise ValueError("not all seeds are counted")
        return first, summary


@dataclass
class Ran:
    """All schedules of the seeds 0 to *seeds* - 1, made by the sources with *digest*, ended on the day *until*."""

    digest: str
    seeds: int = 0
    until: str = ""
    summary: Summary = field(default_factory=Summary)

    @classmethod
    def read(cls, path: Path) -> Ran:
        """What the project's file says. Raises OSError, ValueError and others if it cannot be read."""
        document = json.loads(path.read_bytes())
        if document["format"] != FORMAT:
            raise ValueError(f"{path}: another format")
        ran = cls(document["sources"], document["seeds"], document["until"], _summary(document))
        if ran.summary.total().schedules != ran.seeds:
            raise ValueError(f"{path}: not all seeds are counted")
        return ran

    def go_on(self, blocks: Mapping[int, Summary]) -> int:
        """Count those of *blocks*, by first seeds, that follow without a gap, and say how many they are."""
        before = self.seeds
        while self.seeds in blocks:
            self.summary.merge(blocks[self.seeds])
            self.seeds += BLOCK
        return (self.seeds - before) // BLOCK

    def write(self, path: Path, today: datetime.date) -> None:
        """Say what has run until *today*; the file is whole, or as before."""
        self.until = today.isoformat()
        head = {"format": FORMAT, "sources": self.digest, "seeds": self.seeds, "until": self.until}
        _write(path, {**head, **_document(self.summary)})


def _document(summary: Summary) -> dict[str, Any]:
    return {"rows": {kind: asdict(row) for kind, row in sorted(summary.rows.items())}, "broken": summary.broken}


def _summary(document: dict[str, Any]) -> Summary:
    rows = {kind: Row(**row) for kind, row in document["rows"].items()}
    return Summary(rows, [(int(seed), str(kind), str(text)) for seed, kind, text in document["broken"]])


def _write(path: Path, document: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    with part.open("w") as file:
        json.dump(document, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
