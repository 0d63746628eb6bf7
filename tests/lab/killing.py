"""A run that is killed while it works, and the next one, which has to complete what was begun."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from tests.lab.command import LabError
from tests.lab.registry import Registry

#: Seconds until the last command of a killed run has ended, and its lock with it.
RELEASED = 60.0


def kill(registry: Registry, seed: int, *arguments: str, stages: int = 1) -> str:
    """Run ``kubeadm-registry`` and kill it at a change that *seed* chooses; says at which, or that it had ended.

    A dry run shows the first of several *stages* only, and the others have about as many changes.
    """
    planned = stages * registry.json(*arguments, "--dry-run", timeout=300, check=False)[-1]["changed"]
    last = random.Random(seed).randint(1, max(planned, 1))
    process = registry.popen(*arguments, "-o", "json")
    assert process.stdout is not None
    seen, where = 0, "it had ended"
    try:
        for line in process.stdout:
            event = json.loads(line)
            seen += event["event"] == "change"
            if seen == last:
                where = f"{event['host']}: {event['phase']}, {event['title']}"
                break
    finally:
        process.kill()
        process.communicate()
    sys.stdout.write(f"\n  {' '.join(arguments[:3])}: killed at change {last} of about {planned}: {where}\n")
    return where


def killed(registry: Registry, given: Sequence[str | Path], line: str) -> None:
    """A run of *given* that is killed when it says *line*."""
    process = registry.popen(*given)
    try:
        assert process.stdout is not None
        assert any(re.search(line, said) for said in process.stdout), "it ended before"
    finally:
        process.kill()
        process.communicate()


def complete(
    run: Callable[[], subprocess.CompletedProcess[str]], *, seconds: float = RELEASED, well: Collection[int] = (0,)
) -> subprocess.CompletedProcess[str]:
    """*run*, again as long as the last command of a killed run still works on some host.

    Raises LabError unless it ends with a status that is among *well*.
    """
    until = time.monotonic() + seconds
    while True:
        result = run()
        if "HostBusy" not in result.stdout + result.stderr:
            break
        if time.monotonic() > until:
            raise LabError(f"the lock of a killed run was not released within {seconds} s: {result.stderr}")
    if result.returncode not in well:
        raise LabError(f"ended with status {result.returncode}:\n{result.stdout}{result.stderr}")
    return result
