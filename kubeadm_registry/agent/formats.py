"""Records that several releases read and write: what may be read, what may be written, and what is kept.

A record is a JSON object. Its key ``format`` says which version of the record's format it has, and the lowest versions
that may read and write it: ``{"version": 2, "minReader": 1, "minWriter": 1}``. A record without it has version 1, as
release 0.1 wrote all of them.

* Below ``minReader`` a release refuses the record; below ``minWriter`` it reads it and never writes it.
* Otherwise a release keeps the keys that it does not know, and writes them back.
* A key that a release misses has a default; that is for the caller, who knows the keys.

So a release that adds a key which others may ignore raises ``version`` only. If a writer that does not know the key
would spoil the record, it raises ``minWriter``; if a reader would misunderstand it, ``minReader``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Union

KEY = "format"
_VERSION, _READER, _WRITER = _VERSIONS = ("version", "minReader", "minWriter")


class Damaged(ValueError):
    """The content is not a record; the text says why."""


class Newer(ValueError):
    """A newer release made the record, and this one must not read it, or not write it; the text says which."""


@dataclass(frozen=True)
class Found:
    """A record as it was read: its *values* without the key ``format``, and in *stamp* what that key said."""

    values: dict[str, Any]
    stamp: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(_VERSIONS, 1))


@dataclass(frozen=True)
class Format:
    """One kind of record, called *name* in messages, as this release knows it.

    *version* is what it writes, *min_reader* and *min_writer* what it asks of others.
    """

    name: str
    version: int = 1
    min_reader: int = 1
    min_writer: int = 1

    def parse(self, content: Union[bytes, str]) -> Found:
        """The record in the JSON text *content*. Raises Damaged, Newer."""
        try:
            return self.open(json.loads(content))
        except RecursionError as error:
            raise Damaged("it is nested too deeply") from error
        except (Damaged, Newer):
            raise
        except ValueError as error:
            raise Damaged(f"it is not JSON: {error}") from error

    def open(self, document: object) -> Found:
        """The record in *document*, as a JSON parser returned it. Raises Damaged, Newer."""
        if not isinstance(document, dict):
            raise Damaged("it is not a JSON object")
        values = {key: value for key, value in document.items() if key != KEY}
        said = document.get(KEY, {})
        if not isinstance(said, dict):
            raise Damaged(f"its key {KEY} is not a JSON object")
        stamp = {**dict.fromkeys(_VERSIONS, 1), **said}
        for key in _VERSIONS:
            if type(stamp[key]) is not int or stamp[key] < 1:
                raise Damaged(f"{KEY}.{key} is not a positive whole number")
        self._refuse(stamp, _READER, "read")
        return Found(values, stamp)

    def may_write(self, found: Optional[Found]) -> bool:
        """Whether this release may write a record that was *found* (None: it writes a new one)."""
        return found is None or bool(found.stamp[_WRITER] <= self.version)

    def stamp(self, found: Optional[Found] = None) -> dict[str, Any]:
        """What the key ``format`` says when this release writes in place of *found*: what that asked stays asked."""
        own = {_VERSION: self.version, _READER: self.min_reader, _WRITER: self.min_writer}
        return own if found is None else joined(found.stamp, own)

    def seal(self, values: Mapping[str, Any], found: Optional[Found] = None) -> dict[str, Any]:
        """The document to write for *values*, the caller's keys and those that it kept, in place of *found*.

        Raises Newer if this release may not write it.
        """
        if found is not None:
            self._refuse(found.stamp, _WRITER, "write")
        return {KEY: self.stamp(found), **values}

    def _refuse(self, stamp: Mapping[str, Any], key: str, verb: str) -> None:
        if stamp[key] > self.version:
            raise Newer(
                f"a newer release wrote {self.name}: version {stamp[key]} of its format is needed to {verb} it, "
                f"and this release has version {self.version}"
            )


def joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What two stamps ask together: the highest of each version."""
    return {**one, **other, **{key: max(one[key], other[key]) for key in _VERSIONS}}


def split(values: Mapping[str, Any], known: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of *values* that are *known*, and the others, which must be kept. For a record and each object in it."""
    return (
        {key: value for key, value in values.items() if key in known},
        {key: value for key, value in values.items() if key not in known},
    )
