"""How people and machines see a run: lines on a console, or one JSON object a line."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TextIO

import click

from kubeadm_registry.disk import naming
from kubeadm_registry.errors import ConfigError, Error, Problem
from kubeadm_registry.printable import Level, printable
from kubeadm_registry.transport.commands import Ran

STANDARD_OUTPUT = "standard output"


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


class Silent:
    """A Reporter that tells nobody; for those that tell of little."""

    def phase(self, path: str, summary: str) -> None:
        """See Reporter."""

    def action(self, action: Action, *, dry_run: bool) -> None:
        """See Reporter."""

    def done(self, action: Action, seconds: float) -> None:
        """See Reporter."""

    def deferred(self, path: str, host: str, reason: str) -> None:
        """See Reporter."""

    def problem(self, problem: Problem) -> None:
        """See Reporter."""

    def check(self, host: str, name: str, *, ok: bool) -> None:
        """See Reporter."""

    def note(self, text: str, *, host: str = "", level: Level = "info") -> None:
        """See Reporter."""

    def command(self, ran: Ran) -> None:
        """See Reporter."""

    def progress(self, done: int, total: int) -> None:
        """See Reporter."""

    def error(self, error: Error) -> None:
        """See Reporter."""

    def result(self, summary: str, **facts: object) -> None:
        """See Reporter."""


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


def encodable(text: str, encoding: str | None) -> str:
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
        click.echo(encodable(text, sys.stdout.encoding) or text.encode(), nl=False)


def echo(line: str) -> None:
    """Write a line, in which others may have had a hand, to standard output."""
    with naming(STANDARD_OUTPUT):
        click.echo(printable(line))


class Output:
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


class JsonLines:
    """For machines: one JSON object a line with its ``time`` (RFC 3339), the last one ``result`` or ``error``."""

    def __init__(self, out: TextIO | None = None, *, name: str = STANDARD_OUTPUT, verbose: bool = False) -> None:
        """*name*: what errors call *out*. *verbose*: also each command that ran on a node."""
        self._out = out or sys.stdout
        self._verbose = verbose
        self._output = Output(name)
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
