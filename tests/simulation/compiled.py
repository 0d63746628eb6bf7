"""The simulation with its modules compiled by mypyc, for long runs: a schedule costs about a third.

python -m tests.simulation.compiled DIRECTORY

DIRECTORY becomes a copy of what a schedule is made by, in which ``python -m tests.simulation`` runs compiled; one of
the same sources, made in the same way, is kept. The copy has the same digest, for that is of the sources, and is
refused if what comes of some schedules is not exactly what comes of them here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.simulation import native, sources

SEEDS = 500  # schedules whose outcome is compared
STAMP = "digest"
COMPILE = """
import sys
from mypyc.build import mypycify
from setuptools import setup
made = mypycify(["--config-file=", *sys.stdin.read().split()], opt_level="2", debug_level="0")
setup(name="simulation", packages=[], ext_modules=made)
"""
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
    made_of, stamp = _made_of(), directory / STAMP
    if stamp.exists() and stamp.read_text() == made_of:
        _copy(directory)  # what is not compiled may have changed
        return
    shutil.rmtree(directory, ignore_errors=True)
    _copy(directory)
    compile_in(directory)
    if outcomes(directory) != outcomes(sources.ROOT):
        raise ValueError(f"what is compiled in {directory} does something else")
    stamp.write_text(made_of)


def compile_in(directory: Path) -> None:
    """Compile what is in *directory*; the sources there stay as they are. Raises CalledProcessError."""
    made = [str(path) for path in sources.paths(around=True)]
    scratch = directory / "rewritten"
    _copy(scratch)
    native.rewrite(scratch, sources.paths(around=True))
    environment = {**os.environ, "CFLAGS": f"{os.environ.get('CFLAGS', '')} -w"}
    argv = [sys.executable, "-c", COMPILE, "build_ext", "--inplace"]
    subprocess.run(argv, cwd=scratch, check=True, env=environment, input="\n".join(made), text=True)
    for place in (".", "kubeadm_registry/agent", "tests/simulation"):
        for library in (scratch / place).glob("*.so"):
            shutil.move(library, directory / place / library.name)
    shutil.rmtree(scratch)


def outcomes(directory: Path) -> str:
    """The digest of what comes of the first schedules with the modules in *directory*."""
    argv = [sys.executable, "-c", OUTCOMES, str(SEEDS)]
    return subprocess.run(argv, cwd=directory, check=True, stdout=subprocess.PIPE, text=True).stdout


def _made_of() -> str:
    """The digest of the sources, and of what compiles them."""
    how = b"".join(Path(module.__file__).read_bytes() for module in (sys.modules[__name__], native) if module.__file__)
    return f"{sources.digest()} {hashlib.sha256(how).hexdigest()}"


def _copy(directory: Path) -> None:
    for name in ("kubeadm_registry", "kubeadm_registry/agent", "tests", "tests/simulation"):
        (directory / name).mkdir(parents=True, exist_ok=True)
        for pattern in ("*.py", "*.json"):
            for path in (sources.ROOT / name).glob(pattern):
                shutil.copy2(path, directory / name)


if __name__ == "__main__":
    build(Path(sys.argv[1]).absolute())
