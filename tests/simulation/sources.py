"""Which sources a schedule is made by: what came of it counts for these only."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: The product's own modules, and the models around them. `test_record` compares this with what `run` imports.
DECIDING = (
    *("conditions", "formats", "heartbeat", "holding", "lease", "model", "moving", "planned", "presence", "rules"),
    *("steering", "timings"),
)
MODELS = (
    *("agent", "disk", "executor", "eyes", "hands", "haproxy", "host", "keepalived", "kernel"),
    *("links", "network", "process", "quick", "systemd", "timeline", "world", "zot"),
)
AROUND = ("faults", "run", "schedule")


def paths(*, around: bool) -> list[Path]:
    """Where they are below the root; with what is *around*: makes the schedules, runs them and looks at them."""
    models = sorted((*MODELS, *AROUND) if around else MODELS)
    agent, simulation = Path("kubeadm_registry/agent"), Path("tests/simulation")
    return [*(agent / f"{one}.py" for one in DECIDING), *(simulation / f"{one}.py" for one in models)]


def digest() -> str:
    """SHA-256 of all of them."""
    found = hashlib.sha256()
    for path in paths(around=True):
        found.update(f"{path}\n".encode() + hashlib.sha256((ROOT / path).read_bytes()).digest())
    return found.hexdigest()
