"""The records of what containerd's files were and what we made of them: their form, and nothing that asks a host.

``originals.json`` says of each file with which mode and owner it was there, and the digest of what it was; null where
there was none. ``written.json`` says which keys we set and what the file's digest was after that. Release 0.1 wrote
both without ``format``, and the first one without digests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints, ValidationError

from kubeadm_registry import paths
from kubeadm_registry.containerd.settings import Edit
from kubeadm_registry.formats import Damaged, Format, Found

DIRECTORY = f"{paths.ETC}/backup/containerd"
ORIGINALS = f"{DIRECTORY}/originals.json"
WRITTEN = f"{DIRECTORY}/written.json"

_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Path = Annotated[str, StringConstraints(pattern=r"^/[^\x00]*$")]


class _Object(BaseModel):
    """A JSON object: the keys that a newer release has put in it stay in it."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)


class _Record(_Object):
    """A whole file."""

    _found: Found | None = PrivateAttr(None)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """From the file's content. Raises Damaged, NewerFormat."""
        found = _FORMATS[cls].parse(content)
        try:
            record = cls.model_validate(found.values)
        except ValidationError as error:
            first = error.errors()[0]
            text = "is missing" if first["type"] == "missing" else first["msg"][0].lower() + first["msg"][1:]
            raise Damaged(f"{'.'.join(str(key) for key in first['loc'])}: {text}") from error
        record._found = found
        return record

    def render(self) -> bytes:
        """The file's content. Raises NewerFormat if a newer release wrote it and this one must not."""
        return _FORMATS[type(self)].render(self.model_dump(mode="json", by_alias=True), self._found)


class Original(_Object):
    """A file before us. *sha256* is None in what 0.1 wrote."""

    mode: Annotated[str, StringConstraints(pattern=r"^[0-7]{1,4}$")]
    owner: Annotated[str, StringConstraints(pattern=r"^[^:\s]+:[^:\s]+$")]
    sha256: _Digest | None = None


class Originals(_Record):
    """What was there before: file -> how it was (None: no file), and the directories that were not there."""

    files: dict[_Path, Original | None] = {}
    directories: tuple[_Path, ...] = ()


class _Edit(_Object):
    file: _Path
    table: tuple[str, ...]
    key: str
    new: str | int
    old: str | None = None
    opens: bool = False
    former: tuple[str | int, ...] = ()

    def edit(self) -> Edit:
        return Edit(self.file, self.table, self.key, self.new, self.old, self.opens, self.former)


class Written(_Object):
    """What we made of one file: the digest of all of it, and our edits. *edited*: by somebody else in between."""

    sha256: _Digest
    edits: tuple[_Edit, ...]
    #: Unknown counts as edited: then our keys are taken out, and nothing else is touched.
    edited: bool = True

    @property
    def undoable(self) -> tuple[Edit, ...]:
        """Our edits, in the order in which they were made."""
        return tuple(item.edit() for item in self.edits)


class Record(_Record):
    """All that we wrote: file -> Written, and the directories in which our hosts files lie."""

    files: dict[_Path, Written] = {}
    hosts_directories: tuple[_Path, ...] = Field((), alias="hostsDirectories")

    def with_file(
        self, path: str, edits: Sequence[Edit], *, original: str | None, before: str | None, after: str
    ) -> Self:
        """The record once *path* has become another by *edits*; the three are digests, None for no file."""
        new = [_Edit.model_validate(_values(item)) for item in edits]
        entry = self.files.get(path)
        if before == original or entry is None:
            written = Written(sha256=after, edits=tuple(new), edited=before != original)
        else:
            known = {(item.table, item.key): item for item in entry.edits}
            for item in new:
                first = known.get((item.table, item.key), item)
                ours = (*first.former, first.new)
                # The way back leads to the last state that was not ours: the value, and whether it had the header.
                old, opens = (first.old, first.opens or item.opens) if item.old in ours else (item.old, item.opens)
                former = tuple(one for one in dict.fromkeys(ours) if one != item.new)
                kept = {"file": item.file, "new": item.new, "old": old, "opens": opens, "former": former}
                known[item.table, item.key] = first.model_copy(update=kept)
            edited = entry.edited or before != entry.sha256
            update: Mapping[str, Any] = {"sha256": after, "edits": tuple(known.values()), "edited": edited}
            written = entry.model_copy(update=update)
        return self.model_copy(update={"files": {**self.files, path: written}})


def _values(item: Edit) -> dict[str, Any]:
    return {name: getattr(item, name) for name in ("file", "table", "key", "new", "old", "opens", "former")}


_FORMATS = {Originals: Format(ORIGINALS, version=2), Record: Format(WRITTEN)}
FORMATS = tuple(_FORMATS.values())
"""Of what is kept on a host."""
