"""The file with the keys of the heartbeats, one a line. The first makes them; each is believed that one has made."""

from __future__ import annotations

LEFT = b"left:"
"""Before a key that only nodes which have left may have."""


def parse(content: bytes) -> tuple[list[bytes], list[bytes]]:
    """The keys of members, and those that only nodes which have left may have."""
    lines = content.split()
    left = [line[len(LEFT) :] for line in lines if line.startswith(LEFT)]
    return [line for line in lines if not line.startswith(LEFT)], left
