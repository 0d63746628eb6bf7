"""Text, tables and colours on a terminal, by rich. It takes a while to import: only what draws with it needs this."""

from __future__ import annotations

from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.text import Text

from kubeadm_registry.disk import naming
from kubeadm_registry.engine.report import STANDARD_OUTPUT
from kubeadm_registry.printable import printable


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
