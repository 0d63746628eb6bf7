"""The simulation with its modules compiled by Cython, for long runs: a schedule costs a third less.

python -m tests.simulation.compiled DIRECTORY

DIRECTORY becomes a copy of what a schedule is made by, in which ``python -m tests.simulation`` runs compiled; one of
the same sources is kept. The copy has the same digest, for that is of the sources, and is refused if what comes of
some schedules is not exactly what comes of them here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.simulation import sources

SEEDS = 150  # schedules whose outcome is compared
#: Cython 3.3 takes no starred list for what it knows to be a float.
INTERPRETED = ("timeline.py",)
STAMP = "digest"
OUTCOMES = """
import hashlib
import sys
from tests.simulation.quick import quick
from tests.simulation.run import run
found = hashlib.sha256()
with quick():
    for seed in range(int(sys.argv[1])):
        one = run(seed, "", "")
        found.update(repr((one.kind, one.events, one.seconds, one.recovery, one.counts, one.finding)).encode())
print(found.hexdigest())
"""


def build(directory: Path) -> None:
    """Make *directory* a compiled copy, in minutes. Raises CalledProcessError, and ValueError if it acts otherwise."""
    digest = sources.digest()
    stamp = directory / STAMP
    if stamp.exists() and stamp.read_text() == digest:
        _copy(directory)  # what is not compiled may have changed
        return
    shutil.rmtree(directory, ignore_errors=True)
    _copy(directory)
    compile_in(directory)
    if outcomes(directory) != outcomes(sources.ROOT):
        raise ValueError(f"what is compiled in {directory} does something else")
    stamp.write_text(digest)


def compile_in(directory: Path) -> None:
    """Compile the copy in *directory*, without the compiler's warnings of Cython's C. Raises CalledProcessError."""
    made = [str(path) for path in sources.paths(around=True) if path.name not in INTERPRETED]
    cython = [sys.executable, "-m", "Cython.Build.Cythonize", "--inplace", "-3", f"--parallel={os.cpu_count() or 1}"]
    environment = {**os.environ, "CFLAGS": f"{os.environ.get('CFLAGS', '')} -w"}
    subprocess.run([*cython, *made], cwd=directory, check=True, env=environment)


def outcomes(directory: Path) -> str:
    """The digest of what comes of the first schedules with the modules in *directory*."""
    argv = [sys.executable, "-c", OUTCOMES, str(SEEDS)]
    return subprocess.run(argv, cwd=directory, check=True, stdout=subprocess.PIPE, text=True).stdout


def _copy(directory: Path) -> None:
    for name in ("kubeadm_registry", "kubeadm_registry/agent", "tests", "tests/simulation"):
        (directory / name).mkdir(parents=True, exist_ok=True)
        for pattern in ("*.py", "*.json"):
            for path in (sources.ROOT / name).glob(pattern):
                shutil.copy2(path, directory / name)


if __name__ == "__main__":
    build(Path(sys.argv[1]).absolute())
