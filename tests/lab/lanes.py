"""All tests of the lab: first those that need no quiet machine, in lanes side by side, then the others alone, and at
last those that only wait, side by side.

python -m tests.lab.lanes [PYTEST'S OPTIONS...]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.lab import machine
from tests.lab.command import say
from tests.lab.settings import Place

HERE = Path(__file__).parent
#: Files whose tests measure no time and wait for nothing that other work could delay too much. Those of a lane share
#: what they boot, and begin with those that install it anew. No lane waits for another; what is in none runs alone.
LANES: Mapping[str, tuple[str, ...]] = {
    "registry": (
        "init", "images", "push_pull", "rescue", "retention", "runbook", "seed", "tool", "upload", "conformance",
    ),
    "parts": (
        "bundle_debian", "deltas", "doctor_question", "ending", "engine", "guard", "kubeadm_config", "lab", "mirrors",
        "onefile", "registries", "retention_units", "reset", "trash",
    ),
}  # fmt: skip
#: Files whose tests have namespaces of their own, where they wait for the kernel's timers nearly all of the time; and
#: how many of these tests wait at a time.
WAITING = ("fence", "handover", "late")
AT_ONCE = 4
NOTHING_SELECTED = 5
"""The status of pytest."""


def paths(names: Sequence[str]) -> list[Path]:
    """The files with these names."""
    return [HERE / f"test_{name}.py" for name in names]


def alone() -> list[Path]:
    """The files that run with nothing beside them."""
    taken = {path for names in (*LANES.values(), WAITING) for path in paths(names)}
    return [path for path in sorted(HERE.glob("test_*.py")) if path not in taken]


def places() -> dict[str, Place]:
    """Where the labs of each lane are: the first lane has the default, as the tests that run alone."""
    default = Place.default()
    beside = {lane: Place(default.directory.with_name(f"{default.name}-{lane}")) for lane in list(LANES)[1:]}
    return {next(iter(LANES)): default, **beside}


def command(files: Sequence[Path], options: Sequence[str]) -> list[str]:
    """What runs the tests of *files* with *options* of pytest."""
    return [sys.executable, "-m", "pytest", *options, *map(str, files)]


def side_by_side(groups: Mapping[str, Sequence[Path]], options: Sequence[str]) -> list[int]:
    """Run the files of each group in a process of its own; their statuses. Each shows its output at its end."""
    begin, where = time.monotonic(), places()
    with ExitStack() as stack:
        running = {}
        for name, files in groups.items():
            output = stack.enter_context(tempfile.TemporaryFile())
            environment = {**os.environ, **machine.disks(), "KUBEADM_REGISTRY_LAB": str(where[name].directory)}
            process = subprocess.Popen(
                command(files, options), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=environment,
            )  # fmt: skip
            running[name] = (stack.enter_context(process), output)
        say(f"running {' and '.join(running)} side by side; each shows its output at its end")
        codes = []
        for name, (process, output) in running.items():
            codes.append(process.wait())
            output.seek(0)
            say(f"{name} ended with status {codes[-1]}, {(time.monotonic() - begin) / 60:.0f} min after the begin")
            sys.stdout.write(output.read().decode(errors="replace"))
            sys.stdout.flush()
    return codes


def main(options: Sequence[str]) -> int:
    """Run everything with *options* of pytest; the status to end with, the worst of all."""
    begin = time.monotonic()
    codes = side_by_side({lane: paths(names) for lane, names in LANES.items()}, options)
    quiet = subprocess.run(command(alone(), options), env={**os.environ, **machine.disks()}, check=False)
    codes.append(quiet.returncode)
    waiting = command(paths(WAITING), (*options, f"--numprocesses={AT_ONCE}", "--dist=worksteal"))
    codes.append(subprocess.run(waiting, check=False).returncode)
    say(f"all ended {(time.monotonic() - begin) / 60:.0f} min after the begin")
    return max(0 if code == NOTHING_SELECTED else abs(code) for code in codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
