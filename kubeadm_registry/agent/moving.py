"""What root asks an agent for, in a file that ends by itself: a planned move of the VIP, or of the lease only.

The file is JSON: ``to``, the node that is to have the VIP, ``yields``, whether the one writer is to give the lease up
where it is, and ``until``, the end of the request in seconds of the agent's clock. So whoever asked may be killed: no
node stays unfit, weaker than others, or closed for writes, for longer than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kubeadm_registry.agent.formats import Damaged, Format, Newer

FORMAT = Format("the request to move the virtual IP")
LONGEST = 60.0  # seconds: a request that claims to last longer is none


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    to: str = ""  # the node to which the VIP is to move; empty: it may stay
    yields: bool = False  # the one writer ends what is in flight, and gives up the lease; the VIP stays


NOTHING = Request()


def asked(path: Path, now: float) -> Request:
    """What the file *path* asks for at the time *now*."""
    try:
        values = FORMAT.parse(path.read_bytes()).values
        found, until = Request(str(values["to"]), values.get("yields") is True), float(values["until"])
    except (OSError, Damaged, Newer, KeyError, TypeError, ValueError):
        return NOTHING
    return found if now < until <= now + LONGEST else NOTHING


def told(request: Request) -> str:
    """The sentence for the log."""
    words = [f"the VIP is to move to {request.to}"] if request.to else []
    words += ["the one writer is to give up the lease"] if request.yields else []
    return ", and ".join(words) or "VIP and lease may stay"
