"""A run as people see it: plain lines in a pipe or a file, with colours and a live line on a terminal."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, TextIO

from kubeadm_registry.engine.report import Action, Meter, Output, encodable
from kubeadm_registry.errors import Error, Problem
from kubeadm_registry.printable import Level, printable
from kubeadm_registry.transport.commands import Ran

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.text import Text

#: Hosts in the live line; of a hundred nobody could read it.
MOST_SHOWN = 5
_INDENT = " " * 6
#: How the lines of a unified diff look on a terminal, by their first character.
_DIFF_STYLES = {"+": "green", "-": "red", "@": "cyan"}
#: With one of these in the environment rich may draw where there is no terminal (its manual, "Terminal detection").
_FORCING = ("FORCE_COLOR", "TTY_COMPATIBLE")

#: A piece of a line: its text, alone or with a style of rich's, which only a terminal shows.
Part = str | tuple[str, str]


def _terminal(out: TextIO | None, *, err: bool = False) -> RichConsole | None:
    """What draws on *out*, or on standard error; None where that is no terminal: plain text needs no rich."""
    stream = sys.stderr if err else out or sys.stdout
    if not (stream.isatty() or any(os.environ.get(name) for name in _FORCING)):
        return None
    from kubeadm_registry.engine.screen import screen  # noqa: PLC0415  a tenth of the start of a run in a pipe

    return screen(out=out, err=err)


def _write(parts: tuple[Part, ...], to: RichConsole | None, out: TextIO) -> None:
    """Write *parts* as one line to the terminal *to*, or else to *out*."""
    if to is None:
        print(printable("".join(part if isinstance(part, str) else part[0] for part in parts)), file=out, flush=True)
    else:
        to.print(_styled(parts))


def _styled(parts: tuple[Part, ...]) -> Text:
    from rich.text import Text  # noqa: PLC0415  as above

    safe = (printable(part) if isinstance(part, str) else (printable(part[0]), part[1]) for part in parts)
    return Text.assemble(*safe)


class Console:
    """For people: what changes, host by host; colours and a live line on a terminal, plain lines in a pipe."""

    def __init__(
        self, *, diffs: bool = False, quiet: bool = False, verbose: bool = False, out: TextIO | None = None
    ) -> None:
        """*diffs*: show what differs, not only that it does. *quiet*: only warnings, errors and the result.

        *verbose*: also each command that ran on a node.
        """
        self._quiet = quiet
        self._verbose = verbose
        self._out = out or sys.stdout
        self._terminal = _terminal(self._out)
        self._output = Output()
        self._diffs = diffs
        self._lock = threading.Lock()
        self._running: dict[str, str] = {}
        self._longest = 12
        encoding = getattr(self._out, "encoding", None)
        spinner = "dots" if encodable("⠋", encoding) else "line"
        live = self._terminal is not None and self._terminal.is_terminal and not quiet
        self._status = self._terminal.status("", spinner=spinner) if self._terminal and live else None
        self._meter = Meter(0.2 if self._terminal and self._terminal.is_terminal else 10)
        self._mark = encodable("✓", encoding) or "ok"

    def phase(self, path: str, summary: str) -> None:
        """A heading. What was in progress is over."""
        with self._lock:
            self._running.pop("sent", None)
        if not self._quiet:
            self._print((f"[{path}]", "bold"), f" {summary}")

    def action(self, action: Action, *, dry_run: bool) -> None:
        """One line, after it the diff if asked for."""
        if self._quiet:
            return
        with self._lock:
            if dry_run or self._diffs or self._status is None:
                self._line(f"  {self._aligned(action.host)} {'would ' if dry_run else ''}{action.title}")
            if self._diffs or dry_run:
                self._show(action.diff)
            if not dry_run:
                self._running[action.host] = action.title
                self._update()

    def done(self, action: Action, seconds: float) -> None:
        """On a terminal: the line, with its time if it was long."""
        with self._lock:
            self._running.pop(action.host, None)
            if self._status is not None:
                took = (f" {seconds:.1f} s" if seconds >= 1 else "", "dim")
                self._line("  ", (self._mark, "green"), f" {self._aligned(action.host)} {action.title}", took)
            self._update()

    def deferred(self, path: str, host: str, reason: str) -> None:
        """One line."""
        if not self._quiet:
            self._print(f"  {self._aligned(host)} later: {reason}")

    def problem(self, problem: Problem) -> None:
        """One line, red unless ignored."""
        mark = ("ignored", "yellow") if problem.ignored else ("problem", "red")
        self._print(f"  {self._aligned(problem.host)} ", mark, f" [{problem.check}] {problem.text}")

    def check(self, host: str, name: str, *, ok: bool) -> None:
        """Good checks are silent."""

    def note(self, text: str, *, host: str = "", level: Level = "info") -> None:
        """One line."""
        if self._quiet and level == "info":
            return
        mark = ("warning:", "yellow") if level == "warning" else ""
        self._print(f"  {self._aligned(host)} " if host else "", mark, " " if mark else "", text)

    def command(self, ran: Ran) -> None:
        """One line if wanted, with the exit status if it is not 0."""
        if self._verbose:
            status = f", exit status {ran.code}" if ran.code else ""
            self._print(
                f"  {self._aligned(ran.host)} ", (f"$ {ran.command}  ({ran.seconds:.2f} s{status})", "dim")
            )  # fmt: skip

    def progress(self, done: int, total: int) -> None:
        """On a terminal the live line; in a pipe a line every ten seconds and at the end."""
        with self._lock:
            if self._quiet or not self._meter.due(done, total):
                return
            text = self._meter.text(done, total)
            if self._status is None:
                self._line(text)
                return
            self._running["sent"] = text
            self._update()

    def error(self, error: Error) -> None:
        """What is wrong, where, and what to do, on standard error."""
        self.close()
        terminal = _terminal(None, err=True)
        _write((("error", "bold red"), f" [{error.code}] {error}"), terminal, sys.stderr)
        if error.hint:
            _write((("hint:", "bold"), f" {error.hint}"), terminal, sys.stderr)

    def result(self, summary: str, **facts: object) -> None:
        """The last line. Raises OSError if it, or anything before it, could not be written."""
        self.close()
        self._print(summary)
        self._output.check()

    def close(self) -> None:
        """Take the live line away."""
        with self._lock:
            self._running.clear()
            if self._status is not None:
                self._status.stop()

    def _aligned(self, host: str) -> str:
        """Return *host* as wide as the longest name so far, so that what follows stands in one column."""
        self._longest = max(self._longest, len(host))
        return host.ljust(self._longest)

    def _print(self, *parts: Part) -> None:
        with self._lock:
            self._line(*parts)

    def _line(self, *parts: Part) -> None:
        self._output.attempt(lambda: _write(parts, self._terminal, self._out))

    def _show(self, diff: str) -> None:
        parts: list[Part] = []
        for number, line in enumerate(printable(diff).splitlines()):
            parts += ["\n" * (number > 0) + _INDENT, (line, _DIFF_STYLES.get(line[:1], ""))]
        self._line(*parts)

    def _update(self) -> None:
        if self._status is None:
            return
        if not self._running:
            self._status.stop()
            return
        shown = [f"{host}: {title}" for host, title in sorted(self._running.items())]
        more = [f"and {len(shown) - MOST_SHOWN} more"] if len(shown) > MOST_SHOWN else []
        self._status.update(_styled(("  ".join([*shown[:MOST_SHOWN], *more]),)))
        self._status.start()
