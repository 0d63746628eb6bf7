"""What came of blocks of seeds, a file for each, so that a long run can be interrupted and go on."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.simulation import sources
from tests.simulation.summary import Row, Summary

FORMAT = 1
BLOCK = 100  # seeds: what an interrupt loses of each process


class Record:
    """The files in *directory* for schedules of *kind*, or of all kinds if that is empty."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self.kind = kind
        self.digest = sources.digest()

    def write(self, first: int, summary: Summary) -> None:
        """Record the block that begins with the seed *first*; its file is whole, or not there."""
        document = {
            **self._head(first),
            "rows": {kind: asdict(row) for kind, row in summary.rows.items()},
            "broken": summary.broken,
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"{self._name()}-{first:09}.json"
        part = path.with_suffix(".part")
        with part.open("w") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

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
        rows = {kind: Row(**row) for kind, row in document["rows"].items()}
        summary = Summary(rows, [(int(seed), str(kind), str(text)) for seed, kind, text in document["broken"]])
        if summary.total().schedules != BLOCK:
            raise ValueError("not all seeds are counted")
        return first, summary
