"""Values that cannot be changed once a registry stores images: why, and how to get another one.

``init`` compares them with the registry (``phases/immutable.py``), an API server with the object that it has
(``relations.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

#: Takes the images with it, so it comes last in each remedy.
_ANEW = "`reset --purge-data` with the old file, `init` with the new file, and `seed` again"


@dataclass(frozen=True, slots=True)
class Immutable:
    """A value of the cluster file that stays as it was at the first init: why, and how to get another one."""

    path: str
    why: str
    remedy: str

    @property
    def advice(self) -> str:
        """What to do who has changed it."""
        return f"restore the old value, or run {self.remedy}"


NAME = Immutable("metadata.name", "the cluster CA and its certificates contain it", _ANEW)
MEMBERS = Immutable(
    "spec.nodes", "the storage copies data before a node may come or go",
    "`join`, `leave` or `replace`, which change the members one at a time",
)  # fmt: skip
ADDRESS = Immutable(
    "spec.nodes[].address", "the storage on the other nodes connects to it",
    "`replace NODE NODE` with the new address in the file; of a single node: `reset` with the old file (the images "
    "stay on it), then `init` with the new one",
)  # fmt: skip
DIRECTORY = Immutable(
    "spec.dataDirectory", "the images would stay in the old directory",
    "`reset` with the old file (the images stay on the nodes), move the contents of the directory to the new one "
    "on every node, then `init` with the new file",
)  # fmt: skip
BACKEND = Immutable("spec.backend.type", "no storage can read the data of another one", _ANEW)
COPIES = Immutable(
    "the number of copies", "it follows from the number of spec.nodes: one copy for one node, otherwise three", _ANEW
)
TABLE = (NAME, MEMBERS, ADDRESS, DIRECTORY, BACKEND, COPIES)
"""Everything that SameCluster compares; docs/reference.md shows it."""
