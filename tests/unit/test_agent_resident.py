"""The agent stays in memory, or says why it cannot."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from kubeadm_registry.agent.resident import stay
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))  # only the capability counts
print(stay())
print(next(line for line in open("/proc/self/status") if line.startswith("VmLck")), end="")
"""


def locked() -> tuple[str, int]:
    """What it said, and KiB of the process that stay in memory."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=30, check=True)
    said, status = done.stdout.splitlines()
    return said, int(status.split()[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the capability CAP_IPC_LOCK is root's")
def test_all_that_is_used_stays() -> None:
    said, kib = locked()
    assert said == ""
    assert kib > 2000


@pytest.mark.skipif(os.geteuid() == 0, reason="root may lock all it likes")
def test_without_the_capability_it_says_so() -> None:
    assert locked() == (f"mlockall: error {errno.EPERM}", 0)
