"""What a person sees while the lab's programs are built."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import programs
from tests.lab.command import LabError, build

LOG = """\
    Updating crates.io index
   Compiling libc v0.2.180
   Compiling serde v1.0.228
"""


def test_a_build_of_cargo_says_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    log.write_text(LOG)
    programs._tell(programs.PROGRAMS["garage"], log, 200.0)
    assert capsys.readouterr().err == "lab: garage: crate 2 of 284 after 3 min (7 to 10 minutes in all)\n"


def test_other_builds_say_nothing_meanwhile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    log.write_text("go: downloading\n")
    programs._tell(programs.PROGRAMS["crane"], log, 200.0)
    assert capsys.readouterr().err == ""


def test_progress_is_asked_for_while_a_build_runs(tmp_path: Path) -> None:
    asked: list[float] = []
    ready = tmp_path / "ready"

    def progress(seconds: float) -> None:
        asked.append(seconds)
        ready.touch()

    script = 'until [ -e "$1" ]; do sleep 0.02; done'
    build("sh", "-c", script, "-", ready, log=tmp_path / "log", progress=progress, every=0.05)
    assert asked
    assert asked == sorted(asked)
    with pytest.raises(LabError, match=r"ended with status 3(.|\n)*oh no"):
        build("sh", "-c", "echo oh no; exit 3", log=tmp_path / "log")
