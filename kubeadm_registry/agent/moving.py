"""A planned move of the VIP: what root asks all agents for, in a file that ends by itself.

The file is JSON: ``to``, the node that is to have the VIP, and ``until``, the end of the request in seconds of the
agent's clock. So whoever asked may be killed: no node stays unfit, or weaker than others, for longer than that.
"""

from __future__ import annotations

from pathlib import Path

from kubeadm_registry.agent.formats import Damaged, Format, Newer

FORMAT = Format("the request to move the virtual IP")
LONGEST = 60.0  # seconds: a request that claims to last longer is none


def asked(path: Path, now: float) -> str:
    """The node to which the VIP is to move, by the file *path* at the time *now*; empty: it may stay."""
    try:
        values = FORMAT.parse(path.read_bytes()).values
        target, until = str(values["to"]), float(values["until"])
    except (OSError, Damaged, Newer, KeyError, TypeError, ValueError):
        return ""
    return target if now < until <= now + LONGEST else ""
