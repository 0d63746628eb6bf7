"""How much memory a command of ours has at most: python -m tests.bench.memory MODULE ARGUMENT...

It runs the module in this process and prints, as its last line, the bytes. The kernel's figure for a process that
somebody else starts (ru_maxrss) would count what its parent had before the program began.
"""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def peak(*argv: str | Path, within: Sequence[str] = ()) -> int:
    """The most bytes in memory of ``python -m ARGV``, which must end well; *within* is a command to run it by."""
    return told(*argv, within=within)[1]


def told(*argv: str | Path, within: Sequence[str] = ()) -> tuple[str, int]:
    """What ``python -m ARGV`` prints, and the most bytes in its memory, as ``peak`` has them."""
    command = [*within, sys.executable, "-m", "tests.bench.memory", *map(str, argv)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-500:]}{done.stderr[-2000:]}"
    *lines, most = done.stdout.splitlines()
    return "\n".join(lines), int(most)


def main() -> None:
    """Run the module that the arguments name, and print the peak."""
    sys.argv = sys.argv[1:]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    finally:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        assert found is not None
        print(int(found[1]) * 1024, flush=True)


if __name__ == "__main__":
    main()
