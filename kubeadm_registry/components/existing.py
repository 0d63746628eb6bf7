"""What a server was set up with, as its storage's configuration has it: some of that cannot be changed afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Existing:
    """The storage of a server as its configuration has it: the file is there from the first init to reset."""

    backend: str
    data_directory: str
    copies: int
    members: Mapping[str, str]
    """The address of each server by its id (``Secrets.node_id``)."""
