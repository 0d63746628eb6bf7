"""What a rule found: what is wrong where, what that means, what shows it, and which command fixes it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning"]
#: Lines of evidence in a finding; more of them say the same.
MOST_EVIDENCE = 6
WORKSTATION = "workstation"
PROGRAM = "kubeadm-registry "


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding: its stable *code*, how grave it is, and in *meaning* what it does to users, in a sentence.

    An error breaks something now, or takes away that a node may be lost; a warning will, or may, later.
    """

    code: str
    severity: Severity
    meaning: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command line, and *where* it is run: the name of a node, or WORKSTATION."""

    where: str
    line: str

    def with_file(self, file: Path) -> Command:
        """The same for the registry of the cluster file *file*, if it is one of this program."""
        line, mark, why = self.line.partition("  # ")
        if not line.startswith(PROGRAM):
            return self
        return Command(self.where, f"{line} -f {shlex.quote(str(file))}{mark}{why}")

    def __str__(self) -> str:
        return f"{self.where}{'$' if self.where == WORKSTATION else '#'} {self.line}"


def here(line: str) -> Command:
    """``kubeadm-registry`` with the arguments *line*, on the workstation."""
    return Command(WORKSTATION, f"{PROGRAM}{line}")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong on *node*; empty: with the registry as a whole."""

    kind: Kind
    node: str
    message: str
    """What is wrong, in one clause, without the name of the node."""
    evidence: Sequence[str]
    """What shows it: lines as they were read, each behind the file or command that it is from."""
    fix: Sequence[Command]
    subject: str = ""
    """The unit that it is about, if it is about one."""
    explains: frozenset[str] = field(default_factory=frozenset)
    """The units, paths and codes on the same node of which other findings follow from this one; EVERYTHING: all."""
    symptom: bool = False
    """Whether it only says that something does not work, which an error elsewhere may be the cause of."""

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "code": self.kind.code,
            "severity": self.kind.severity,
            "node": self.node or None,
            "message": self.message,
            "meaning": self.kind.meaning,
            "evidence": list(self.evidence),
            "fix": [{"on": one.where, "command": one.line} for one in self.fix],
        }


#: In ``Finding.explains``: whatever else is found on that node.
EVERYTHING = "*"


def limited(lines: Sequence[str]) -> list[str]:
    """The first MOST_EVIDENCE of *lines*, and how many more there are."""
    more = len(lines) - MOST_EVIDENCE
    return [*lines[:MOST_EVIDENCE], *([f"... and {more} more"] if more > 0 else [])]
