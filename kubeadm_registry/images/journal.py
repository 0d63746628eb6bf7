"""What a seed notes on the machine where it runs, so that the next one goes on inside a blob."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kubeadm_registry.disk import naming
from kubeadm_registry.errors import Error
from kubeadm_registry.formats import KEY, Format, Found, split
from kubeadm_registry.locks import locked

FORMAT = Format("the journal of a seed", version=2, min_writer=2)
#: Seconds that another run may need to end: longer than one that was killed has for what it has in hand.
PATIENCE = 40.0
_UPLOADS, _PROVEN = "uploads", "proven"
#: Bundles that are remembered.
_MOST = 99


class Journal:
    """Where the uploads of a run that was killed go on: the small file *path*, written whole at each change.

    A context manager for the length of a run, since two would note over each other: it waits up to *patience* seconds
    for another one, and raises Error (SeedBusy). A damaged file is as good as none: the blobs in it begin anew. A file
    that only a newer release may read or write raises NewerFormat.
    """

    def __init__(self, path: Path, *, patience: float = PATIENCE) -> None:
        self._path = path
        self._patience = patience
        self._guard = threading.Lock()
        self._format = replace(FORMAT, name=str(path))
        self._found: Found | None = None
        self._kept: dict[str, Any] = {}
        self._uploads: dict[str, Any] = {}
        self._alone = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        busy = Error(
            "another seed into this registry is running on this host", code="SeedBusy",
            hint="wait until it is done, or stop it",
        )  # fmt: skip
        lock = self._path.with_name(f"{self._path.name}.lock")
        self._alone.enter_context(locked(lock, busy, deadline=self._patience))
        try:
            self._read()
        except BaseException:
            self._alone.close()
            raise
        return self

    def _read(self) -> None:
        self._found, self._kept, self._uploads = None, {}, {}
        try:
            document = json.loads(self._path.read_bytes())
            found = self._format.open(document)
        except (OSError, ValueError, RecursionError):
            return
        # Release 0.1 had the uploads at the top.
        uploads = found.values if KEY not in document else found.values.get(_UPLOADS, {})
        if not isinstance(uploads, dict):
            return
        self._format.seal({}, found)  # raises NewerFormat
        self._found, self._uploads = found, dict(uploads)
        if KEY in document:
            _, self._kept = split(found.values, (_UPLOADS,))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alone.close()

    def proven(self, bundle: str) -> bool:
        """Whether all images of *bundle*, the digest of its index, were there and read at all places."""
        with self._guard:
            return bundle in self._proven()

    def prove(self, bundle: str, *, proven: bool) -> None:
        """Note that it is so, or no longer known."""
        with self._guard:
            others = [one for one in self._proven() if one != bundle]
            now = [*others[-_MOST:], bundle] if proven else others
            if now != self._proven():
                self._kept[_PROVEN] = now
                self._write()

    def conclude(self, bundle: str, *, proven: bool) -> None:
        """Prove outside a run. Where another run has begun by now nothing is noted: that one looks for itself.

        Raises NewerFormat.
        """
        try:
            with self:
                self.prove(bundle, proven=proven)
        except Error as error:
            if error.code != "SeedBusy":
                raise

    def _proven(self) -> list[str]:
        said = self._kept.get(_PROVEN)
        return [one for one in said if isinstance(one, str)] if isinstance(said, list) else []

    def place(self, key: str) -> str:
        """Where the upload *key* goes on; empty if it is not known."""
        with self._guard:
            place = self._uploads.get(key)
            return place if isinstance(place, str) else ""

    def note(self, key: str, place: str) -> None:
        """The upload *key* goes on at *place*, or (empty) is over."""
        with self._guard:
            if self._uploads.get(key, "") == place:
                return
            if place:
                self._uploads[key] = place
            else:
                del self._uploads[key]
            self._write()

    def _write(self) -> None:
        content = self._format.render({**self._kept, _UPLOADS: self._uploads}, self._found)
        new = self._path.with_name(f"{self._path.name}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with naming(new), os.fdopen(descriptor, "wb") as file:
            file.write(content)
        new.replace(self._path)
