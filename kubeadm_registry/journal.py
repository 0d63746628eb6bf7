"""What a seed notes on the machine where it runs, so that the next one goes on inside a blob."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from kubeadm_registry.errors import Error
from kubeadm_registry.locks import locked

#: Seconds that another run may need to end: longer than one that was killed has for what it has in hand.
PATIENCE = 40.0


class Journal:
    """Where the uploads of a run that was killed go on: the small file *path*, written whole at each change.

    A context manager for the length of a run, since two would note over each other: it waits up to *patience* seconds
    for another one, and raises Error. A damaged file is as good as none: the blobs in it begin anew.
    """

    def __init__(self, path: Path, *, patience: float = PATIENCE) -> None:
        self._path = path
        self._patience = patience
        self._guard = threading.Lock()
        self._places: dict[str, str] = {}
        self._alone = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        busy = Error(
            "another seed into this registry runs on this machine", code="SeedBusy",
            hint="wait until it is done, or end it",
        )  # fmt: skip
        lock = self._path.with_name(f"{self._path.name}.lock")
        self._alone.enter_context(locked(lock, busy, deadline=self._patience))
        self._places = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                self._places = {str(key): str(value) for key, value in found.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alone.close()

    def place(self, key: str) -> str:
        """Where the upload *key* goes on; empty if it is not known."""
        with self._guard:
            return self._places.get(key, "")

    def note(self, key: str, place: str) -> None:
        """The upload *key* goes on at *place*, or (empty) is over."""
        with self._guard:
            if self._places.get(key, "") == place:
                return
            self._places[key] = place
            self._places = {key: place for key, place in self._places.items() if place}
            new = self._path.with_name(f"{self._path.name}.new")
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                json.dump(self._places, file)
            new.replace(self._path)
