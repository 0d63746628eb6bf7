"""``python -m kubeadm_registry.executor --config FILE ORDER``: looks whether this node may act."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kubeadm_registry.agent import document
from kubeadm_registry.errors import Error
from kubeadm_registry.retention import settings


def main() -> int:
    """Run; the exit status."""
    parser = argparse.ArgumentParser(prog="kubeadm_registry.executor")
    parser.add_argument("--config", type=Path, required=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--timer", action="store_true")
    what.add_argument("order", nargs="?")
    given = parser.parse_args()
    try:
        found = settings.load(given.config)
    except Error as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    state = document.read(Path(found.agent_state).read_text(encoding="utf-8"))
    role = None if state is None else state["writer"]["role"]
    sys.stdout.write(f"{found.node} is {role or 'without a lease'}\n")
    if given.order:
        settings.write_result(given.order, {"node": found.node, "role": role})
    return 0


if __name__ == "__main__":
    sys.exit(main())
