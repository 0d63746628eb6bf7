"""How a command ended."""

from __future__ import annotations

import shlex
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended: its argv, exit status and output, as bytes."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes = b""
    stderr: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether the command ended with status 0."""
        return self.code == 0

    @property
    def text(self) -> str:
        """Standard output without the blanks around it."""
        return self.stdout.decode(errors="replace").strip()

    @property
    def command(self) -> str:
        """The command as a person would type it, cut to one line; a script by its name and arguments."""
        script = self.argv[1:2] == ("-c",) and len(self.argv) > 3
        line = shlex.join(self.argv[3:] if script else self.argv).replace("\n", " ")
        return line if len(line) <= 160 else line[:157] + "..."
