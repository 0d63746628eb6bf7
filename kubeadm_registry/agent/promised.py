"""A record of what a node has promised (``hardstate``): how it is read. Imports nothing that takes long."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Optional

from kubeadm_registry.agent.formats import Format, Found, Newer

RECORD = 512  # bytes: one sector, which disks write whole or not at all
NEW = ".new"
"""Ends the name of the file that becomes the one of promises when it is whole."""
FORMAT = Format("what this node has promised")


def decode(record: bytes) -> Optional[Found]:
    """What *record* says; None if it is blank or was not written whole. Raises Newer."""
    try:
        said: dict[str, Any] = json.loads(record)
        return FORMAT.open(said) if said.pop("sha256") == checksum(said) else None
    except Newer:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def checksum(said: dict[str, Any]) -> str:
    """Of a record without its checksum, hex."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
