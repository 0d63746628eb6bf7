"""At which changes tests kill a run: at some of them, or at each in `make kills`."""

from __future__ import annotations

import os

AT_EACH = bool(os.environ.get("KUBEADM_REGISTRY_KILLS"))


def every(usual: int) -> int:
    """The distance from one change at which a run is killed to the next: *usual*, or 1."""
    return 1 if AT_EACH else usual
