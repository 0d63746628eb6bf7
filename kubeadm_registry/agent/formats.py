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
_VERSION, _READER, _WRITER = "version", "minReader", "minWriter"


class Damaged(ValueError):
    """The content is not a record; the text says why."""


class Newer(ValueError):
    """A newer release made the record, and this one must not read it, or not write it; the text says which."""


@dataclass(frozen=True)
class Found:
    """A record as it was read: its *values* without the key ``format``, and what that key said."""

    values: dict[str, Any]
    stamp: dict[str, Any] = field(default_factory=dict)


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
        stamp = document.get(KEY, {})
        if not isinstance(stamp, dict):
            raise Damaged(f"its key {KEY} is not a JSON object")
        for key in (_VERSION, _READER, _WRITER):
            if type(stamp.get(key, 1)) is not int or stamp.get(key, 1) < 1:
                raise Damaged(f"{KEY}.{key} is not a positive whole number")
        found = Found(values, stamp)
        self._refuse(found, _READER, "read")
        return found

    def may_write(self, found: Optional[Found]) -> bool:
        """Whether this release may write a record that was *found* (None: it writes a new one)."""
        return found is None or found.stamp.get(_WRITER, 1) <= self.version

    def seal(self, values: Mapping[str, Any], found: Optional[Found] = None) -> dict[str, Any]:
        """The document to write for *values*, the caller's keys and those that it kept.

        *found* is the record that it replaces: what that asks of readers and writers stays asked. Raises Newer if this
        release may not write it.
        """
        stamp = {} if found is None else found.stamp
        if found is not None:
            self._refuse(found, _WRITER, "write")
        asked = {_VERSION: self.version, _READER: self.min_reader, _WRITER: self.min_writer}
        return {KEY: {**stamp, **{key: max(value, stamp.get(key, 1)) for key, value in asked.items()}}, **values}

    def _refuse(self, found: Found, key: str, verb: str) -> None:
        least = found.stamp.get(key, 1)
        if least > self.version:
            raise Newer(
                f"a newer release wrote {self.name}: version {least} of its format is needed to {verb} it, "
                f"and this release has version {self.version}"
            )


def split(values: Mapping[str, Any], known: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of *values* that are *known*, and the others, which must be kept. For a record and each object in it."""
    return (
        {key: value for key, value in values.items() if key in known},
        {key: value for key, value in values.items() if key not in known},
    )
