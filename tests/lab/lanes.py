"""All tests of the lab: first those that need no quiet machine, in lanes side by side, then the others alone.

python -m tests.lab.lanes [PYTEST'S OPTIONS...]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.lab.command import say
from tests.lab.settings import Place

HERE = Path(__file__).parent
#: Files whose tests measure no time and wait for nothing that other work could delay too much. Those of a lane share
#: what they boot, and begin with those that install it anew. No lane waits for another; what is in none runs alone.
LANES: Mapping[str, tuple[str, ...]] = {
    "registry": (
        "init", "images", "push_pull", "rescue", "retention", "retention_units", "runbook", "seed", "tool", "upload",
    ),
    "parts": (
        "bundle_debian", "deltas", "doctor_question", "ending", "engine", "guard", "kubeadm_config", "lab", "mirrors",
        "onefile", "registries", "reset", "trash",
    ),
}  # fmt: skip
#: Bytes of memory for the disks of two labs, their processes, and the tests.
PLENTY = 14 * 2**30
NOTHING_SELECTED = 5
"""The status of pytest."""


def files(lane: str) -> list[Path]:
    """The files of a lane."""
    return [HERE / f"test_{name}.py" for name in LANES[lane]]


def alone() -> list[Path]:
    """The files that are in no lane."""
    taken = {path for lane in LANES for path in files(lane)}
    return [path for path in sorted(HERE.glob("test_*.py")) if path not in taken]


def places() -> dict[str, Place]:
    """Where the labs of each lane are: the first lane has the default, as the tests that run alone."""
    default = Place.default()
    beside = {lane: Place(default.directory.with_name(f"{default.name}-{lane}")) for lane in list(LANES)[1:]}
    return {next(iter(LANES)): default, **beside}


def disks() -> dict[str, str]:
    """Where the labs have their disks: in memory if there is plenty, for the tests wait for them much of the time."""
    found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    return {"KUBEADM_REGISTRY_LAB_DISKS": "memory"} if found and int(found[1]) * 1024 > PLENTY else {}


def main(options: Sequence[str]) -> int:
    """Run everything with *options* of pytest; the status to end with, the worst of all."""
    begin = time.monotonic()
    with ExitStack() as stack:
        running = {}
        for lane, place in places().items():
            output = stack.enter_context(tempfile.TemporaryFile())
            argv = [sys.executable, "-m", "pytest", *options, *map(str, files(lane))]
            environment = {**os.environ, **disks(), "KUBEADM_REGISTRY_LAB": str(place.directory)}
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
            running[lane] = (stack.enter_context(process), output)
        say(f"running {' and '.join(running)} side by side; each shows its output at its end")
        codes = []
        for lane, (process, output) in running.items():
            codes.append(process.wait())
            output.seek(0)
            say(f"{lane} ended with status {codes[-1]}, {(time.monotonic() - begin) / 60:.0f} min after the begin")
            sys.stdout.write(output.read().decode(errors="replace"))
            sys.stdout.flush()
    argv = [sys.executable, "-m", "pytest", *options, *map(str, alone())]
    codes.append(subprocess.run(argv, env={**os.environ, **disks()}, check=False).returncode)
    say(f"all ended {(time.monotonic() - begin) / 60:.0f} min after the begin")
    return max(0 if code == NOTHING_SELECTED else abs(code) for code in codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
