"""Modules of ours that a host's own Python runs from their source: nothing has to be on the host before."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

from kubeadm_registry import paths

#: Runs the Python source ``$2`` with the arguments behind it, by the host's Python or that of a bundle, below ``$1``.
#: Nothing newer than 3.9 is needed, which is what the agent needs as well.
RUN = """
programs=$1; shift
for python in "$(command -v python3)" "$programs"/python/*/bin/python3; do
  "$python" -I -c 'import json, sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null && exec "$python" -I -c "$@"
done
echo "there is no Python 3.9 or newer" >&2
exit 127
"""


@cache
def source(module: ModuleType) -> str:
    """What the host's Python runs."""
    return Path(str(module.__file__)).read_text(encoding="utf-8")


def command(module: ModuleType, *words: str) -> tuple[str, ...]:
    """The command that runs *module*, which imports nothing of ours, with the arguments *words*."""
    return ("sh", "-c", RUN, module.__name__.rpartition(".")[2], paths.PROGRAMS, source(module), *words)
