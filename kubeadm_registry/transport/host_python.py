"""Modules of ours that a host's own Python runs from their source: nothing has to be on the host before."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

from kubeadm_registry import paths

#: What Python starts with, before the source that is its first argument: no Python older than 3.9, which is what the
#: agent needs as well, and none without its library, such as Debian's python3-minimal (status 127, as if it were not
#: there; 126 says that it cannot be started). To ask it first would be a second start of Python, which takes longer
#: than most of what it is asked for.
_BEGIN = """import sys
try:
    import json
except ImportError:
    sys.exit(127)
if sys.version_info < (3, 9):
    sys.exit(127)
exec(compile(sys.argv.pop(1), "<kubeadm-registry>", "exec"))"""

#: Runs the Python source ``$2`` with the arguments behind it, by the host's Python or that of a bundle, below ``$1``.
RUN = f"""
programs=$1; shift
for python in "$(command -v python3)" "$programs"/python/*/bin/python3; do
  [ -x "$python" ] || continue
  "$python" -I -S -c '{_BEGIN}' "$@"
  status=$?
  case $status in 126|127) ;; *) exit "$status" ;; esac
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
