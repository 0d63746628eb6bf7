"""README as a script: its console blocks, and the machines on which their commands are typed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.lab.command import LabError, run

#: A prompt: the machine, and `#` where one is root. What stands below a command until the next is what it prints.
_PROMPT = re.compile(r"([a-z0-9-]+)[#$] (.*)")
#: Runs the command ``$2`` in the home directory; exported variables go from one to the next by the file ``$1``.
_SHELL = """\
home=$PWD
test ! -e "$1" || . "$1"
PWD=$home
set -o pipefail
eval "$2" || exit
export -p > "$1"
"""


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the page, where it is typed, and the lines that the page shows below it."""

    machine: str
    text: str
    prints: tuple[str, ...]


def section(page: str, title: str) -> str:
    """What is below the heading *title* of a page, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ [A-Z]|\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def blocks(text: str, language: str) -> list[str]:
    """The code blocks in *language*."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[Command]:
    """The commands of all console blocks, in the order of the page."""
    for block in blocks(text, "console"):
        found: list[tuple[str, str, list[str]]] = []
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if prompt := _PROMPT.fullmatch(line):
                found.append((prompt[1], prompt[2], []))
            else:
                found[-1][2].append(line)
        yield from (Command(machine, text, tuple(prints)) for machine, text, prints in found)


def said(prints: Sequence[str], output: str) -> list[str]:
    """The lines of *prints* that *output* lacks. A capital that stands alone is any number, an ellipsis any text."""
    lines = output.splitlines()

    def pattern(line: str) -> str:
        escaped = re.escape(line).replace(re.escape("..."), ".*")
        return re.sub(r"\b[A-Z]\b", r"[0-9.]+", escaped)

    return [line for line in prints if not any(re.fullmatch(pattern(line), one.rstrip()) for one in lines)]


class Shell(Protocol):
    """Runs a command as root, in the home directory; what it printed."""

    def __call__(self, command: str) -> str: ...


@dataclass
class Reader:
    """Somebody who types the commands. *values*: what a name or an address of the page is here."""

    machines: Mapping[str, Shell]
    values: Mapping[str, str]
    printed: dict[str, str] = field(default_factory=dict)
    """What the last command printed that begins with these two words."""

    def here(self, text: str) -> str:
        """*text* of the page with the values of this place."""
        names = "|".join(map(re.escape, sorted(self.values, key=len, reverse=True)))
        return re.sub(rf"(?<![\w.])(?:{names})(?!\w|\.\d)", lambda found: self.values[found[0]], text)

    def type(self, command: Command) -> None:
        """Run *command*; LabError if it fails or does not print what the page shows."""
        text = self.here(command.text)
        output = self.machines[command.machine](text)
        self.printed[" ".join(text.split()[:2])] = output
        if missing := said([self.here(line) for line in command.prints], output):
            raise LabError(f"`{text}` did not print {missing}, but:\n{output[-3000:]}")


def shell(argv: Sequence[str | Path], state: str) -> Shell:
    """A shell that *argv* starts; *state* is the file there that takes variables from one command to the next."""

    def typed(command: str) -> str:
        return run(*argv, "bash", "-c", _SHELL, "bash", state, command, timeout=900, shown=command).stdout

    return typed
