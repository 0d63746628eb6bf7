"""Standard input, output and error: there in every process, also where whoever started it closed them."""

from __future__ import annotations

import io
import os
import sys

#: How each descriptor is opened if it is closed, as in GNU's programs: what is written to a closed standard output must
#: fail as it would, and not vanish; standard input has an end; nobody reads complaints of a closed standard error.
_MODES = (os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)


def complete() -> None:
    """Open those of the three that are closed, and have standard output take every character.

    Else the next file or connection would get the number, and a child would read from it or write its output there; and
    a run would break off at what a terminal of another encoding than UTF-8 cannot show, such as words of a node.
    """
    for descriptor, mode in enumerate(_MODES):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free, which is this one.
            os.open(os.devnull, mode)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  a descriptor, for as long as the program runs
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as Python does with standard error
