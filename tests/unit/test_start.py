"""What is kept out of a start, and that nothing misses it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from kubeadm_registry.cli import start
start.lean()
import {module}
print(*(name for name in ("httpx._main", "invoke", "pygments", "{unwanted}") if sys.modules.get(name)))
"""


@pytest.mark.parametrize("module", ["workflows", "seed", "status", "bundle", "images", "mirrors"])
def test_a_command_starts_without_what_others_import(module: str) -> None:
    script = SCRIPT.format(module=f"kubeadm_registry.cli.{module}", unwanted="kubeadm_registry.agent.model")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_in_other_programs_they_stay_as_they_are() -> None:
    script = (
        "import kubeadm_registry.registry, kubeadm_registry.transport.ssh, sys; print('httpx._main' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"
