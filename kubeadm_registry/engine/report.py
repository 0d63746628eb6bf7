"""How people and machines see a run: lines on a console, or one JSON object a line."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

import click
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.text import Text

from kubeadm_registry.disk import naming
from kubeadm_registry.errors import ConfigError, Error, Problem
from kubeadm_registry.printable import Level, printable
from kubeadm_registry.transport.commands import Ran

STANDARD_OUTPUT = "standard output"
#: Hosts in the live line; of a hundred nobody could read it.
MOST_SHOWN = 5
_INDENT = " " * 6
#: How the lines of a unified diff look on a terminal, by their first character.
_DIFF_STYLES = {"+": "green", "-": "red", "@": "cyan"}


@dataclass(frozen=True, slots=True)
class Action:
    """Something that differed on a host, and was (or in a dry-run: would be) changed."""

    phase: str
    host: str
    title: str
    diff: str


class Reporter(Protocol):
    """Told of everything that happens in a run, from several threads."""

    def phase(self, path: str, summary: str) -> None:
        """A phase begins."""

    def action(self, action: Action, *, dry_run: bool) -> None:
        """A change begins (dry-run: would be made)."""

    def done(self, action: Action, seconds: float) -> None:
        """A change was made."""

    def deferred(self, path: str, host: str, reason: str) -> None:
        """A dry-run cannot tell more of a phase on a host, for an earlier change creates what it must know."""

    def problem(self, problem: Problem) -> None:
        """A check found something."""

    def check(self, host: str, name: str, *, ok: bool) -> None:
        """A check ended."""

    def note(self, text: str, *, host: str = "", level: Level = "info") -> None:
        """Something worth knowing."""

    def command(self, ran: Ran) -> None:
        """A command ended on a host."""

    def progress(self, done: int, total: int) -> None:
        """*done* of *total* bytes are there; told often, and never of fewer than before."""

    def error(self, error: Error) -> None:
        """The run failed."""

    def result(self, summary: str, **facts: object) -> None:
        """The run ended well; *facts* are for machines."""


class Meter:
    """How fast bytes arrive, and when all will be there; and whether it is time to tell, every *interval* seconds.

    Another total is another work: its bytes and seconds count anew.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._begin: float | None = None
        self._told = 0.0
        self._total = 0

    def due(self, done: int, total: int) -> bool:
        """Whether to tell now: every *interval* seconds, and at the end."""
        now = time.monotonic()
        if self._begin is None or total != self._total:
            self._begin, self._told, self._total = now, now, total
        if now - self._told < self._interval and done < total:
            return False
        self._told = now
        return True

    def rate(self, done: int) -> float:
        """Bytes a second since the first look."""
        seconds = time.monotonic() - (self._begin or time.monotonic())
        return done / seconds if seconds > 0 else 0.0

    def text(self, done: int, total: int) -> str:
        """``12.0 of 204.0 MB, 35.2 MB/s, 5 s left``."""
        rate = self.rate(done)
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        return f"{done / 1e6:.1f} of {total / 1e6:.1f} MB, {rate / 1e6:.1f} MB/s{left}"


class _Screen(RichConsole):
    """What rich writes, without orders to the terminal that stand in texts of others, in cells of tables as well."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as rich will show it; all strings come by here."""
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """As it is; an error says where it was to be written."""
        with naming(STANDARD_OUTPUT):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Let the BrokenPipeError through, for which rich would end the program itself, and no log would say why."""
        raise  # noqa: PLE0704  rich calls this where it has caught it


def screen(*, out: TextIO | None = None, err: bool = False, markup: bool = True) -> RichConsole:
    """Where text for people goes: standard output, *out*, or with *err* standard error; never breaking lines."""
    # Output goes to a person or a log: never break a line at the width that rich guesses for a pipe.
    # No emoji: rich would make one of the ":100:" or ":a:" in an IPv6 address.
    return _Screen(file=out, stderr=err, highlight=False, soft_wrap=True, emoji=False, markup=markup)


def _shown(text: str, encoding: str | None) -> str:
    """Return *text*, or nothing if *encoding* lacks it."""
    try:
        text.encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return ""
    return text


def put(text: str) -> None:
    """Write *text* to standard output as it is: what is for machines, or a file's content.

    In UTF-8, as files are, if the encoding of standard output lacks a character of it.
    """
    with naming(STANDARD_OUTPUT):
        click.echo(_shown(text, sys.stdout.encoding) or text.encode(), nl=False)


def echo(line: str) -> None:
    """Write a line, in which others may have had a hand, to standard output."""
    with naming(STANDARD_OUTPUT):
        click.echo(printable(line))


class _Output:
    """Standard output, or the file *name*, that may fail, as on a full disk: the work goes on, and then it is an error.

    A run that stopped where its words could not be written would leave the servers half changed. That nobody reads any
    more (BrokenPipeError) is raised at once, and then at the end only: what a run that ends has to undo, it says to
    nobody.
    """

    def __init__(self, name: str = STANDARD_OUTPUT) -> None:
        self._name = name
        self._failed: OSError | None = None

    def attempt(self, write: Callable[[], object]) -> None:
        """Have *write* write, unless that failed before."""
        if self._failed is not None:
            return
        try:
            with naming(self._name):
                write()
        except OSError as error:
            self._failed = error
            if isinstance(error, BrokenPipeError):
                raise

    def check(self) -> None:
        """Raise the OSError if anything could not be written."""
        if self._failed is not None:
            raise self._failed


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
        self._out = screen(out=out or sys.stdout)
        self._output = _Output()
        self._diffs = diffs
        self._lock = threading.Lock()
        self._running: dict[str, str] = {}
        self._longest = 12
        encoding = getattr(out or sys.stdout, "encoding", None)
        spinner = "dots" if _shown("⠋", encoding) else "line"
        self._status = self._out.status("", spinner=spinner) if self._out.is_terminal and not quiet else None
        self._meter = Meter(0.2 if self._out.is_terminal else 10)
        self._mark = _shown("✓", encoding) or "ok"

    def phase(self, path: str, summary: str) -> None:
        """A heading. What was in progress is over."""
        with self._lock:
            self._running.pop("sent", None)
        if not self._quiet:
            self._print(f"[bold]\\[{escape(path)}][/bold] {escape(summary)}")

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
                took = f" [dim]{seconds:.1f} s[/dim]" if seconds >= 1 else ""
                self._line(
                    f"  [green]{self._mark}[/green] {self._aligned(action.host)} {escape(action.title)}{took}",
                    markup=True,
                )
            self._update()

    def deferred(self, path: str, host: str, reason: str) -> None:
        """One line."""
        if not self._quiet:
            self._print(f"  {self._aligned(host)} later: {escape(reason)}")

    def problem(self, problem: Problem) -> None:
        """One line, red unless ignored."""
        mark = "[yellow]ignored[/yellow]" if problem.ignored else "[red]problem[/red]"
        self._print(f"  {self._aligned(problem.host)} {mark} \\[{problem.check}] {escape(problem.text)}")

    def check(self, host: str, name: str, *, ok: bool) -> None:
        """Good checks are silent."""

    def note(self, text: str, *, host: str = "", level: Level = "info") -> None:
        """One line."""
        if self._quiet and level == "info":
            return
        mark = "[yellow]warning:[/yellow] " if level == "warning" else ""
        self._print(f"  {self._aligned(host)} {mark}{escape(text)}" if host else f"{mark}{escape(text)}")

    def command(self, ran: Ran) -> None:
        """One line if wanted, with the exit status if it is not 0."""
        if self._verbose:
            status = f", exit status {ran.code}" if ran.code else ""
            self._print(
                f"  {self._aligned(ran.host)} [dim]$ {escape(ran.command)}  ({ran.seconds:.2f} s{status})[/dim]"
            )

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
        stderr = screen(err=True)
        stderr.print(f"[bold red]error[/bold red] \\[{error.code}] {escape(str(error))}")
        if error.hint:
            stderr.print(f"[bold]hint:[/bold] {escape(error.hint)}")

    def result(self, summary: str, **facts: object) -> None:
        """The last line. Raises OSError if it, or anything before it, could not be written."""
        self.close()
        self._print(escape(summary))
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

    def _print(self, markup: str) -> None:
        with self._lock:
            self._line(markup, markup=True)

    def _line(self, text: str, *, markup: bool = False) -> None:
        self._output.attempt(lambda: self._out.print(text, markup=markup))

    def _show(self, diff: str) -> None:
        text = Text()
        for number, line in enumerate(printable(diff).splitlines()):
            text.append("\n" * (number > 0) + _INDENT)
            text.append(line, style=_DIFF_STYLES.get(line[:1], ""))
        self._output.attempt(lambda: self._out.print(text))

    def _update(self) -> None:
        if self._status is None:
            return
        if not self._running:
            self._status.stop()
            return
        shown = [f"{host}: {title}" for host, title in sorted(self._running.items())]
        more = [f"and {len(shown) - MOST_SHOWN} more"] if len(shown) > MOST_SHOWN else []
        self._status.update(Text(printable("  ".join([*shown[:MOST_SHOWN], *more]))))
        self._status.start()


class JsonLines:
    """For machines: one JSON object a line with its ``time`` (RFC 3339), the last one ``result`` or ``error``."""

    def __init__(self, out: TextIO | None = None, *, name: str = STANDARD_OUTPUT, verbose: bool = False) -> None:
        """*name*: what errors call *out*. *verbose*: also each command that ran on a node."""
        self._out = out or sys.stdout
        self._verbose = verbose
        self._output = _Output(name)
        self._lock = threading.Lock()
        self._begin = time.monotonic()
        self._meter = Meter(1)

    def begin(self, arguments: Sequence[str], version: str) -> None:
        """``{"event": "begin", "arguments": [...], "version": ...}``, in a log file only, at the start of each run."""
        self._write(event="begin", arguments=list(arguments), version=version)

    def phase(self, path: str, summary: str) -> None:
        """``{"event": "phase", "phase": ..., "summary": ...}``."""
        self._write(event="phase", phase=path, summary=summary)

    def action(self, action: Action, *, dry_run: bool) -> None:
        """``{"event": "change", "phase": ..., "host": ..., "title": ..., "diff": ..., "dryRun": ...}``."""
        self._write(
            event="change", phase=action.phase, host=action.host, title=action.title, diff=action.diff, dryRun=dry_run
        )

    def done(self, action: Action, seconds: float) -> None:
        """``{"event": "changed", "phase": ..., "host": ..., "title": ..., "seconds": ...}``."""
        self._write(
            event="changed", phase=action.phase, host=action.host, title=action.title, seconds=round(seconds, 3)
        )

    def deferred(self, path: str, host: str, reason: str) -> None:
        """``{"event": "deferred", "phase": ..., "host": ..., "reason": ...}``, in a dry-run."""
        self._write(event="deferred", phase=path, host=host, reason=reason)

    def problem(self, problem: Problem) -> None:
        """``{"event": "check", "host": ..., "check": ..., "ok": false, "ignored": ..., "message": ...}``."""
        self._write(
            event="check",
            host=problem.host,
            check=problem.check,
            ok=False,
            ignored=problem.ignored,
            message=problem.text,
        )

    def check(self, host: str, name: str, *, ok: bool) -> None:
        """``{"event": "check", "host": ..., "check": ..., "ok": true}``, for a check that found no problem."""
        if ok:
            self._write(event="check", host=host, check=name, ok=True)

    def note(self, text: str, *, host: str = "", level: Level = "info") -> None:
        """``{"event": "note", "level": "info" or "warning", "host": ..., "message": ...}``."""
        self._write(event="note", level=level, host=host, message=text)

    def command(self, ran: Ran) -> None:
        """``{"event": "command", "host": ..., "command": ..., "status": ..., "seconds": ...}``, for -v and in logs."""
        if self._verbose:
            self._write(event="command", host=ran.host, command=ran.command, status=ran.code, seconds=ran.seconds)

    def progress(self, done: int, total: int) -> None:
        """``{"event": "progress", "done": ..., "total": ..., "rate": ...}`` every second and at the end, in bytes."""
        if self._meter.due(done, total):
            self._write(event="progress", done=done, total=total, rate=round(self._meter.rate(done)))

    def error(self, error: Error) -> None:
        """``{"event": "error", "code": ..., "message": ..., "hint": ..., "host": ...}``, and ``problems`` of a file.

        These are ``[{"path": "spec.nodes[0].name", "message": ...}, ...]``.
        """
        problems = error.problems if isinstance(error, ConfigError) else ()
        listed = {"problems": [{"path": one.path, "message": one.text} for one in problems]} if problems else {}
        self._write(event="error", code=error.code, message=error.message, hint=error.hint, host=error.host, **listed)
        self._output.check()

    def result(self, summary: str, **facts: object) -> None:
        """``{"event": "result", "ok": true, "summary": ..., "seconds": ..., ...}``, with more for each command.

        Raises OSError if it, or anything before it, could not be written.
        """
        seconds = round(time.monotonic() - self._begin, 3)
        self._write(event="result", ok=True, summary=summary, **facts, seconds=seconds)
        self._output.check()

    def _write(self, **event: object) -> None:
        with self._lock:
            event["time"] = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._output.attempt(lambda: print(json.dumps(event), file=self._out, flush=True))
