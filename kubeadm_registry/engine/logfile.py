"""A run that is shown and kept: the log file has every event as JSON, and each command that ran on a node."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kubeadm_registry.engine.report import Action, JsonLines, Reporter
from kubeadm_registry.errors import Error, Problem
from kubeadm_registry.printable import Level
from kubeadm_registry.transport.commands import Ran


class Logged:
    """A Reporter that passes everything to *shown*, and to the *log*.

    A log that cannot be written, as on a full disk, ends no run in the middle: ``result`` raises OSError then. The log
    comes first, for it has what happened also where nobody reads what is shown.
    """

    def __init__(self, shown: Reporter, log: JsonLines) -> None:
        self._shown = shown
        self._log = log

    def phase(self, path: str, summary: str) -> None:
        """See Reporter."""
        self._log.phase(path, summary)
        self._shown.phase(path, summary)

    def action(self, action: Action, *, dry_run: bool) -> None:
        """See Reporter."""
        self._log.action(action, dry_run=dry_run)
        self._shown.action(action, dry_run=dry_run)

    def done(self, action: Action, seconds: float) -> None:
        """See Reporter."""
        self._log.done(action, seconds)
        self._shown.done(action, seconds)

    def deferred(self, path: str, host: str, reason: str) -> None:
        """See Reporter."""
        self._log.deferred(path, host, reason)
        self._shown.deferred(path, host, reason)

    def problem(self, problem: Problem) -> None:
        """See Reporter."""
        self._log.problem(problem)
        self._shown.problem(problem)

    def check(self, host: str, name: str, *, ok: bool) -> None:
        """See Reporter."""
        self._log.check(host, name, ok=ok)
        self._shown.check(host, name, ok=ok)

    def note(self, text: str, *, host: str = "", level: Level = "info") -> None:
        """See Reporter."""
        self._log.note(text, host=host, level=level)
        self._shown.note(text, host=host, level=level)

    def command(self, ran: Ran) -> None:
        """See Reporter."""
        self._log.command(ran)
        self._shown.command(ran)

    def progress(self, done: int, total: int) -> None:
        """See Reporter."""
        self._log.progress(done, total)
        self._shown.progress(done, total)

    def error(self, error: Error) -> None:
        """See Reporter."""
        try:
            self._shown.error(error)
        finally:
            self._log.error(error)

    def result(self, summary: str, **facts: object) -> None:
        """See Reporter."""
        self._shown.result(summary, **facts)
        self._log.result(summary, **facts)


@contextmanager
def log_to(path: Path, arguments: Sequence[str], version: str) -> Iterator[JsonLines]:
    """The log in the file *path*, to which the events of a run are appended; a new one is for its owner alone.

    It begins with the *arguments* of the program and its *version*. Raises OSError.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    file = os.fdopen(descriptor, "w", encoding="utf-8")
    try:
        log = JsonLines(file, name=str(path), verbose=True)
        log.begin(arguments, version)
        yield log
    finally:
        with suppress(OSError):  # of what was not written before: the result told, and an error must stay the last word
            file.close()
