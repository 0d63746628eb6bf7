"""Records that several releases read and write, with the errors of this library.

The rules are those of ``agent.formats``, which the node agent can import as well. A record of a newer release that must
not be read or written here is an Error with the code ``NewerFormat``. Damaged stays a ValueError: only the caller knows
what to do about a damaged file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubeadm_registry.agent import formats as rules
from kubeadm_registry.agent.formats import KEY, Damaged, Found, joined, split
from kubeadm_registry.errors import Error

__all__ = ["HINT", "KEY", "Damaged", "Format", "Found", "NewerFormat", "joined", "kept", "split"]

HINT = "use a newer kubeadm-registry"


class NewerFormat(Error):
    """A newer release made a record in a way that this one cannot read, or must not write."""

    code = "NewerFormat"

    def __init__(self, message: str, *, host: str = "") -> None:
        super().__init__(message, hint=HINT, host=host)


@dataclass(frozen=True)
class Format(rules.Format):
    """One kind of record, called *name* in messages: a path, or what it is."""

    def open(self, document: object) -> Found:
        """The record in *document*. Raises Damaged, NewerFormat."""
        try:
            return super().open(document)
        except rules.Newer as error:
            raise NewerFormat(str(error)) from error

    def over(self, content: bytes | None) -> Found | None:
        """The record in the *content* that is to be written over; None if there is none, or it is damaged.

        Raises NewerFormat if this release may not write it.
        """
        try:
            found = None if content is None else self.parse(content)
        except Damaged:
            return None
        self.seal({}, found)
        return found

    def seal(self, values: Mapping[str, Any], found: Found | None = None) -> dict[str, Any]:
        """The document to write for *values* in place of *found*. Raises NewerFormat."""
        try:
            return super().seal(values, found)
        except rules.Newer as error:
            raise NewerFormat(str(error)) from error

    def render(self, values: Mapping[str, Any], found: Found | None = None) -> bytes:
        """The content of a file with *values*, in place of *found*; ``format`` comes first. Raises NewerFormat."""
        return (json.dumps(self.seal(values, found), indent=1) + "\n").encode()


def kept(values: Mapping[str, Any], found: Found | None) -> dict[str, Any]:
    """*values*, with those of the record that was *found* whose keys are not among them: a newer release knows them."""
    return {**values, **(split(found.values, values)[1] if found is not None else {})}
