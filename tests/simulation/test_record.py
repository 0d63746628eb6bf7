"""A long run is recorded block by block, and goes on where it was interrupted."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation import __main__, record, sources
from tests.simulation.record import RAN, Ran, Record
from tests.simulation.summary import Row, Summary

LOADED = """
import sys
from tests.simulation import run
for name in sys.modules:
    print(name)
"""


def block(schedules: int, *broken: tuple[int, str, str]) -> Summary:
    return Summary({"frozen": Row(schedules, openings=3, recovery=0.25)}, list(broken))


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    monkeypatch.setattr(record, "BLOCK", 4)
    monkeypatch.setattr(record, "RAN", tmp_path / "ran.json")
    return Record(tmp_path / "new", "frozen")


def test_what_is_written_is_read(book: Record) -> None:
    assert book.read() == ({}, 0)
    book.write(0, block(4))
    book.write(4, block(4, (5, "frozen", "one store: two")))
    assert book.read() == ({0: block(4), 4: block(4, (5, "frozen", "one store: two"))}, 0)
    assert Record(book.directory, "chaos").read() == ({}, 0), "of another kind"
    assert {path.suffix for path in book.directory.iterdir()} == {".json"}


@pytest.mark.parametrize(
    "change",
    [
        {"sources": "others"},
        {"format": 2},
        {"rows": {}},
        {"rows": 3},
        {"broken": [[1]]},
        {"seeds": [0, 2]},
        {"seeds": None},
    ],
    ids=str,
)
def test_a_file_that_does_not_count_is_left_out(book: Record, change: dict[str, object]) -> None:
    book.write(0, block(4))
    book.write(4, block(4))
    (path, _) = sorted(book.directory.iterdir())
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert book.read() == ({4: block(4)}, 1)


@pytest.mark.parametrize("content", [b"", b'{"format": 1', b"[]", b"\xff"])
def test_a_damaged_file_is_left_out(book: Record, content: bytes) -> None:
    book.write(0, block(4))
    next(book.directory.iterdir()).write_bytes(content)
    assert book.read() == ({}, 1)
    book.write(0, block(4))
    assert book.read() == ({0: block(4)}, 0), "the block has run again"


def test_a_run_that_was_interrupted_goes_on(
    book: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[range] = []

    def chunk(kind: str, frontend: str, seeds: range) -> tuple[int, Summary]:
        ran.append(seeds)
        if seeds.start == 8 and len(ran) == 3:
            raise KeyboardInterrupt
        return seeds.start, block(len(seeds))

    monkeypatch.setattr(__main__, "chunk", chunk)
    arguments = ["--count", "12", "--kind", "frozen", "--processes", "1", "--into", str(book.directory)]
    assert __main__.main(arguments) == 0
    assert "| all | 8 |" in capsys.readouterr().out
    assert __main__.main(arguments) == 0
    assert ran == [range(0, 4), range(4, 8), range(8, 12), range(8, 12)]
    shown = capsys.readouterr().out
    assert "8 recorded, 4 to run; files left out: 0" in shown
    assert "| all | 12 |" in shown


def test_what_broke_before_the_interrupt_still_counts(book: Record, capsys: pytest.CaptureFixture[str]) -> None:
    book.write(0, block(4, (2, "frozen", "one store: two")))
    arguments = ["--count", "4", "--kind", "frozen", "--processes", "1", "--into", str(book.directory)]
    assert __main__.main(arguments) == 1
    assert "BROKEN seed 2 frozen: one store: two" in capsys.readouterr().out


def test_only_whole_blocks_are_recorded(book: Record, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        __main__.main(["--count", "6", "--into", str(book.directory)])
    assert "whole blocks of 4 seeds" in capsys.readouterr().err


@pytest.fixture
def all_kinds(book: Record) -> Record:
    """What ran of all kinds: the first two blocks, and the fourth."""
    book = Record(book.directory, "")
    for first in (0, 4, 12):
        book.write(first, block(4))
    return book


def test_what_ran_without_a_gap_is_published_and_need_not_run_again(
    all_kinds: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    into = ["--into", str(all_kinds.directory)]
    assert __main__.main([*into, "--publish"]) == 0
    assert "8 schedules from seed 0 on, 8 of them new" in capsys.readouterr().out
    for path in all_kinds.directory.iterdir():
        path.unlink()  # another machine
    ran: list[range] = []

    def chunk(kind: str, frontend: str, seeds: range) -> tuple[int, Summary]:
        ran.append(seeds)
        return seeds.start, block(len(seeds), (13, "frozen", "one store: two")) if seeds.start == 12 else block(4)

    monkeypatch.setattr(__main__, "chunk", chunk)
    assert __main__.main([*into, "--count", "16", "--processes", "1"]) == 1
    assert ran == [range(8, 12), range(12, 16)]
    assert "| all | 16 |" in capsys.readouterr().out
    assert __main__.main([*into, "--publish"]) == 1, "one broke"
    published = Ran.read(record.RAN)
    assert (published.seeds, published.summary.broken) == (16, [(13, "frozen", "one store: two")])
    assert published.summary.total() == Row(16, openings=12, recovery=0.25)


def test_what_other_sources_did_does_not_count(all_kinds: Record, capsys: pytest.CaptureFixture[str]) -> None:
    Ran("others", 4, "", block(4)).write(record.RAN, datetime.date(2026, 1, 2))
    assert __main__.main(["--into", str(all_kinds.directory), "--publish"]) == 0
    assert Ran.read(record.RAN).digest == sources.digest()
    assert "8 schedules from seed 0 on, 8 of them new" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"format": 2}, {"seeds": 12}, {"rows": {}}], ids=str)
def test_a_published_file_that_is_not_right_is_refused(book: Record, change: dict[str, object]) -> None:
    Ran(book.digest, 8, "", block(8)).write(record.RAN, datetime.date(2026, 1, 2))
    record.RAN.write_text(json.dumps({**json.loads(record.RAN.read_text()), **change}))
    with pytest.raises(ValueError, match=r"counted|format"):
        __main__.main(["--into", str(book.directory), "--publish"])


def test_the_documentation_shows_what_ran() -> None:
    ran = Ran.read(RAN)
    shown = (sources.ROOT / "docs/simulation.md").read_text()
    assert ran.summary.table() in shown
    seeds = f"Seeds 0 to {ran.seeds - 1:,}, until {ran.until}"
    now = f"{seeds}, by the present sources" if ran.digest == sources.digest() else f"{seeds}, by earlier sources"
    assert now in shown


def test_all_modules_that_a_schedule_is_made_by_are_in_the_digest() -> None:
    argv = [sys.executable, "-c", LOADED]
    loaded = subprocess.run(argv, cwd=sources.ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    packages = ("kubeadm_registry.agent.", "tests.simulation.")
    named = {str(path.with_suffix("")).replace("/", ".") for path in sources.paths(around=True)}
    assert named == {name for name in loaded if name.startswith(packages)}
