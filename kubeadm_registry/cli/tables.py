"""Tables for people, and the times in them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from kubeadm_registry.cli.command import Context
from kubeadm_registry.engine.screen import screen
from kubeadm_registry.printable import counted

#: Columns where there is no terminal: no cell breaks in a pipe or a file.
_WIDE = 400
_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60))


def wide_screen(*, err: bool = False) -> Console:
    """Standard output, or with *err* standard error, without markup; wide where it is no terminal."""
    console = screen(err=err, markup=False)
    if not console.is_terminal:
        console.width = _WIDE
    return console


def columns(*titles: str) -> Table:
    """An empty table with these titles."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def show_rows(table: Table, rows: Sequence[object], empty: str, context: Context) -> None:
    """Print *table*, or that it is *empty* without *rows*."""
    if rows:
        wide_screen().print(table)
    else:
        context.reporter().result(empty)


def size(count: float) -> str:
    """So many bytes, in MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e10 else f"{count / 1e6:.1f} MB"


def moment(seconds: int) -> str:
    """A time (seconds since 1970) in UTC, to the minute."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def ago(seconds: int) -> str:
    """So long ago, in the largest unit that fits."""
    for name, length in _UNITS:
        if seconds >= length:
            return f"{counted(seconds // length, name)} ago"
    return "just now"
