"""All tests of the lab: first those that need no quiet machine, in lanes side by side, then the others alone, by the
process of the first lane and on what it has installed, and at last those that only wait, side by side.

python -m tests.lab.lanes [PYTEST'S OPTIONS...]
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.lab import machine, quiet
from tests.lab.command import say
from tests.lab.settings import Place

HERE = Path(__file__).parent
#: Files whose tests measure no time and wait for nothing that other work could delay too much. Those of a lane share
#: what they boot. The first lane waits for the others at its end, before what is in none; no lane waits otherwise.
LANES: Mapping[str, tuple[str, ...]] = {
    "registry": (
        "images", "push_pull", "rescue", "retention", "runbook", "seed", "tool", "upload", "conformance",
    ),
    "nodes": ("init", "retention_units", "reset", "ending", "guard"),
    "parts": (
        "engine", "bundle_debian", "deltas", "doctor_question", "kubeadm_config", "lab", "mirrors", "onefile",
        "registries", "trash",
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
    """The files that run with nothing beside them, in the first lane."""
    taken = {path for names in (*LANES.values(), WAITING) for path in paths(names)}
    return [path for path in sorted(HERE.glob("test_*.py")) if path not in taken]


def places() -> dict[str, Place]:
    """Where the labs of each lane are: the first lane has the default."""
    default = Place.default()
    beside = {lane: Place(default.directory.with_name(f"{default.name}-{lane}")) for lane in list(LANES)[1:]}
    return {next(iter(LANES)): default, **beside}


def command(files: Sequence[Path], options: Sequence[str]) -> list[str]:
    """What runs the tests of *files* with *options* of pytest."""
    return [sys.executable, "-m", "pytest", "-p", quiet.__name__, *options, *map(str, files)]


def side_by_side(options: Sequence[str]) -> list[int]:
    """Run each lane in a process of its own, the first one with what runs alone behind it; their statuses.

    Each shows its output at its end.
    """
    begin, where = time.monotonic(), places()
    first, *others = LANES
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = {}

        def start(lane: str, files: Sequence[Path], own: Mapping[str, str], *descriptors: int) -> None:
            output = stack.enter_context(tempfile.TemporaryFile())
            place = {"KUBEADM_REGISTRY_LAB": str(where[lane].directory)}
            process = subprocess.Popen(
                command(files, options), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, **machine.disks(), **place, **own}, pass_fds=descriptors,
            )  # fmt: skip
            running[lane] = (stack.enter_context(process), output)

        with (folder / "beside").open("w") as beside:  # locked until the last that has it open has ended
            fcntl.flock(beside, fcntl.LOCK_EX)
            for lane in others:
                start(lane, paths(LANES[lane]), {}, beside.fileno())
        start(first, [*paths(LANES[first]), *alone()], quiet.environment(folder / "beside", alone()))
        say(f"running {' and '.join(LANES)} side by side; each shows its output at its end")
        codes = []
        for lane, (process, output) in running.items():
            codes.append(process.wait())
            output.seek(0)
            say(f"{lane} ended with status {codes[-1]}, {(time.monotonic() - begin) / 60:.0f} min after the begin")
            sys.stdout.write(output.read().decode(errors="replace"))
            sys.stdout.flush()
    return codes


def main(options: Sequence[str]) -> int:
    """Run everything with *options* of pytest; the status to end with, the worst of all."""
    begin = time.monotonic()
    codes = side_by_side(options)
    waiting = command(paths(WAITING), (*options, f"--numprocesses={AT_ONCE}", "--dist=worksteal"))
    codes.append(subprocess.run(waiting, check=False).returncode)
    say(f"all ended {(time.monotonic() - begin) / 60:.0f} min after the begin")
    return max(0 if code == NOTHING_SELECTED else abs(code) for code in codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
