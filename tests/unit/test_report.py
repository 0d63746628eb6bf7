"""How a run is shown: lines for people, objects for machines, and nothing that a terminal would trip over."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.engine.console import Console
from kubeadm_registry.engine.logfile import Logged, log_to
from kubeadm_registry.engine.report import Action, JsonLines, Meter, Reporter
from kubeadm_registry.errors import Error, Problem
from kubeadm_registry.transport.commands import Ran

RAN = Ran("cp-1", "systemctl start x", 3, 1.5)
ACTION = Action("proxy", "cp-1", "write /etc/a", "--- /dev/null\n+++ /etc/a\n+[red]not markup[/red]")
#: What rich would make an emoji, markup or a link of.
AWKWARD = "fd00:a:100::1 [bold]x[/bold] :smile: [link=y] 'z'"


class Screen(io.StringIO):
    """A terminal, as far as rich looks."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    return io.StringIO()


def everything(reporter: Reporter, text: str = AWKWARD) -> None:
    action = Action(text, text, text, text)
    reporter.phase(text, text)
    reporter.action(action, dry_run=False)
    reporter.done(action, 2.0)
    reporter.action(action, dry_run=True)
    reporter.deferred(text, text, text)
    reporter.problem(Problem(text, text, text))
    reporter.problem(Problem(text, text, text, ignored=True))
    reporter.check(text, text, ok=True)
    reporter.note(text)
    reporter.note(text, host=text)
    reporter.command(Ran(text, text, 1, 2.0))
    reporter.result(text, changed=1)


# ---- Console --------------------------------------------------------------------------------------------------------


def test_a_run_in_a_pipe_is_one_line_a_change(plain: io.StringIO) -> None:
    console = Console(out=plain)
    console.phase("proxy", "Install HAProxy")
    console.action(ACTION, dry_run=False)
    console.done(ACTION, 3.0)
    console.result("1 change on 1 node")
    assert plain.getvalue() == ("[proxy] Install HAProxy\n  cp-1         write /etc/a\n1 change on 1 node\n")


def test_diffs_are_shown_if_asked_for(plain: io.StringIO) -> None:
    Console(diffs=True, out=plain).action(ACTION, dry_run=False)
    assert plain.getvalue().splitlines()[-1] == "      +[red]not markup[/red]"


def test_a_diff_stands_below_its_change_and_has_a_colour_for_each_kind_of_line(plain: io.StringIO) -> None:
    screen = Screen()
    action = Action("proxy", "cp-1", "write /etc/a", "--- /etc/a\n+++ /etc/a\n@@ -1 +1 @@\n-old\n+new\n same")
    Console(diffs=True, out=screen).action(action, dry_run=False)
    shown = screen.getvalue()
    assert shown.index("write /etc/a") < shown.index("old") < shown.index("new")
    for line, colour in (("-old", "31"), ("+new", "32"), ("@@ -1 +1 @@", "36")):
        assert f"\x1b[{colour}m{line}\x1b[0m" in shown
    assert "      " + " same" in shown


@pytest.mark.parametrize(("encoding", "mark"), [("utf-8", "✓"), ("ascii", "ok"), ("latin-1", "ok")])
def test_a_terminal_that_cannot_show_the_mark_gets_a_word(plain: io.StringIO, encoding: str, mark: str) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    raw = io.BytesIO()
    console = Console(out=Terminal(raw, encoding=encoding, write_through=True))
    console.done(ACTION, 0.0)
    assert f"{mark}\x1b[0m cp-1" in raw.getvalue().decode(encoding)
    console.action(ACTION, dry_run=False)  # with the live line
    console.close()
    assert "cp-1: write /etc/a" in raw.getvalue().decode(encoding)


def test_quiet_shows_warnings_problems_and_the_result(plain: io.StringIO) -> None:
    console = Console(quiet=True, out=plain)
    everything(console)
    console.note("cold", host="cp-1", level="warning")
    console.command(RAN)
    shown = plain.getvalue().splitlines()
    assert [line.split()[-1] for line in shown[:2]] == [AWKWARD.rsplit(maxsplit=1)[-1]] * 2, "the problems"
    assert shown[-2] == AWKWARD, "the result"
    assert shown[-1].endswith("warning: cold")
    assert len(shown) == 4


def test_each_command_is_shown_if_wanted(plain: io.StringIO) -> None:
    Console(out=plain).command(RAN)
    assert plain.getvalue() == ""
    Console(verbose=True, out=plain).command(RAN)
    assert plain.getvalue() == "  cp-1         $ systemctl start x  (1.50 s, exit status 3)\n"


def test_names_of_any_length_keep_what_follows_in_one_column(plain: io.StringIO) -> None:
    console = Console(out=plain)
    for host in ("control-plane-1.example", "cp-2"):
        console.note("here", host=host)
    first, second = plain.getvalue().splitlines()
    assert first.index("here") == second.index("here")


def test_a_dry_run_shows_them_always_and_says_would(plain: io.StringIO) -> None:
    Console(out=plain).action(ACTION, dry_run=True)
    assert plain.getvalue().splitlines()[0] == "  cp-1         would write /etc/a"
    assert "+++ /etc/a" in plain.getvalue()


def test_what_other_programs_say_is_shown_as_it_is(plain: io.StringIO) -> None:
    everything(Console(diffs=True, out=plain))
    shown = plain.getvalue()
    assert len(re.findall(re.escape(AWKWARD), shown)) >= 12
    assert not re.search(r"[^\x00-\x7f]", shown), "no emoji, no markup"


def test_long_lines_are_never_broken(plain: io.StringIO) -> None:
    long = "word " * 100 + "end"
    everything(Console(diffs=True, out=plain), long)
    assert all("end" in line for line in plain.getvalue().splitlines())


def test_problems_are_marked_as_ignored_or_not(plain: io.StringIO) -> None:
    console = Console(out=plain)
    console.problem(Problem("Ports", "cp-1", "port 5000 is taken"))
    console.problem(Problem("Clock", "cp-2", "it is late", ignored=True))
    assert plain.getvalue() == (
        "  cp-1         problem [Ports] port 5000 is taken\n  cp-2         ignored [Clock] it is late\n"
    )


def test_an_error_goes_to_standard_error_with_code_host_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    Console().error(Error(AWKWARD, hint=f"try {AWKWARD}", host="cp-1", code="Odd"))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"error [Odd] cp-1: {AWKWARD}\nhint: try {AWKWARD}\n"


def test_an_error_without_a_remedy_has_no_line_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    Console().error(Error("it broke"))
    assert capsys.readouterr().err == "error [Failed] it broke\n"


HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


@pytest.mark.parametrize("end", ["result", "error", "close"])
def test_on_a_terminal_the_cursor_comes_back_however_a_run_ends(
    plain: io.StringIO, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen()
    console = Console(out=screen)
    console.action(ACTION, dry_run=False)
    assert HIDE in screen.getvalue(), "the live line is there"
    if end == "result":
        console.result("done")
    elif end == "error":
        console.error(Error("it broke"))
    else:
        console.close()
    assert screen.getvalue().rindex(SHOW) > screen.getvalue().rindex(HIDE)


def test_on_a_terminal_a_change_is_told_when_it_is_done(plain: io.StringIO) -> None:
    screen = Screen()
    console = Console(out=screen)
    console.action(ACTION, dry_run=False)
    console.done(ACTION, 2.34)
    console.close()
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "✓ cp-1         write /etc/a 2.3 s" in seen


# ---- JsonLines ------------------------------------------------------------------------------------------------------


def objects(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def without_time(out: io.StringIO) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.items() if key != "time"} for one in objects(out)]


KINDS = ["phase", "change", "changed", "change", "deferred", "check", "check", "check", "note", "note", "result"]


def test_every_event_is_an_object_on_a_line_of_its_own(plain: io.StringIO) -> None:
    everything(JsonLines(plain), "a\nb\u2028ü")
    found = objects(plain)
    assert [one["event"] for one in found] == KINDS
    assert all(datetime.fromisoformat(one.pop("time")).tzinfo for one in found)
    assert found[1] == {
        "event": "change", "phase": "a\nb\u2028ü", "host": "a\nb\u2028ü", "title": "a\nb\u2028ü", "diff": "a\nb\u2028ü",
        "dryRun": False,
    }  # fmt: skip
    assert [one["ok"] for one in found if one["event"] == "check"] == [False, False, True]
    assert found[-1]["seconds"] >= 0


def test_the_level_of_a_note_and_each_command_if_wanted(plain: io.StringIO) -> None:
    JsonLines(plain).command(RAN)
    reporter = JsonLines(plain, verbose=True)
    reporter.note("cold", host="cp-1", level="warning")
    reporter.note("warm")
    reporter.command(RAN)
    assert without_time(plain) == [
        {"event": "note", "level": "warning", "host": "cp-1", "message": "cold"},
        {"event": "note", "level": "info", "host": "", "message": "warm"},
        {"event": "command", "host": "cp-1", "command": "systemctl start x", "status": 3, "seconds": 1.5},
    ]


def test_a_log_has_everything_that_is_shown_and_belongs_to_its_owner(plain: io.StringIO, tmp_path: Path) -> None:
    path = tmp_path / "log"
    for arguments in (["init"], ["init", "--dry-run"]):
        with log_to(path, arguments, "0.1.0") as log:
            everything(Logged(Console(out=plain), log))
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    half = len(kept) // 2
    assert [one["event"] for one in kept[:half]] == ["begin", *KINDS[:-1], "command", "result"]
    assert [one["event"] for one in kept[half:]] == [one["event"] for one in kept[:half]]
    assert [one["arguments"] for one in kept if one["event"] == "begin"] == [["init"], ["init", "--dry-run"]]
    assert path.stat().st_mode & 0o777 == 0o600
    alone = io.StringIO()
    everything(Console(out=alone))
    assert plain.getvalue() == 2 * alone.getvalue()


def test_a_log_that_cannot_be_written_is_an_error_of_its_own_at_the_end(plain: io.StringIO) -> None:
    with log_to(Path("/dev/full"), [], "0.1.0") as log:
        reporter = Logged(Console(out=plain), log)
        reporter.note("going on")
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            reporter.result("done")
    assert plain.getvalue().splitlines() == ["going on", "done"]


def test_a_failed_check_is_told_once(plain: io.StringIO) -> None:
    reporter = JsonLines(plain)
    reporter.problem(Problem("Ports", "cp-1", "taken"))
    reporter.check("cp-1", "Ports", ok=False)
    assert without_time(plain) == [
        {"event": "check", "host": "cp-1", "check": "Ports", "ok": False, "ignored": False, "message": "taken"}
    ]


def test_an_error_is_the_last_object(plain: io.StringIO) -> None:
    JsonLines(plain).error(Error("it broke", hint="mend it", host="cp-1", code="Odd"))
    assert without_time(plain) == [
        {"event": "error", "code": "Odd", "message": "it broke", "hint": "mend it", "host": "cp-1"}
    ]


@pytest.mark.parametrize("kind", [Console, JsonLines])
def test_lines_of_many_threads_are_whole(kind: type, plain: io.StringIO) -> None:
    reporter = kind(out=plain)
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(lambda n: reporter.note(f"<{n}>" + "x" * 500, host=f"cp-{n}"), range(200)))
    lines = plain.getvalue().splitlines()
    assert len(lines) == 200
    assert len({re.search(r"<\d+>x{500}", line)[0] for line in lines}) == 200  # type: ignore[index]


@pytest.mark.parametrize("kind", [Console, JsonLines])
def test_a_run_whose_words_cannot_be_written_goes_on_and_ends_as_an_error(kind: type[Console | JsonLines]) -> None:
    """A log on a full disk must not leave the servers half changed."""
    with contextlib.suppress(OSError), Path("/dev/full").open("w") as full:
        reporter = kind(out=full)
        reporter.phase("vip", "Make the VIP")
        reporter.action(Action("vip", "cp-1", "write /etc/x", "+x"), dry_run=True)
        reporter.done(Action("vip", "cp-1", "write /etc/x", "+x"), 0.1)
        reporter.note("done")
        with pytest.raises(OSError, match="No space left on device: 'standard output'"):
            reporter.result("1 thing changed", changed=1)


def test_another_total_is_another_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("kubeadm_registry.engine.report.time.monotonic", lambda: now)
    meter = Meter(10)
    assert not meter.due(0, 1_000_000)
    now = 110.0
    assert meter.text(1_000_000, 1_000_000) == "1.0 of 1.0 MB, 0.1 MB/s"
    assert not meter.due(0, 4_000_000)
    now = 112.0
    assert meter.due(4_000_000, 4_000_000)
    assert meter.text(4_000_000, 4_000_000) == "4.0 of 4.0 MB, 2.0 MB/s"


@pytest.mark.parametrize("kind", [Console, JsonLines])
def test_a_reader_that_has_gone_ends_the_run(kind: type[Console | JsonLines]) -> None:
    """And nothing that is said while it ends, as when pushes are opened again, hinders that."""
    reading, writing = os.pipe()
    os.close(reading)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "w", buffering=1) as out:
        reporter = kind(out=out)
        with pytest.raises(BrokenPipeError):
            reporter.note("hello")
        reporter.note("opening pushes again")
        with pytest.raises(BrokenPipeError):
            reporter.result("done")
