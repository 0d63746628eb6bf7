"""Lists that the agent keeps on disk for people: bounded, written whole and rarely, and in a thread.

Nothing is decided by them, so a file that is damaged is begun anew, and one that cannot be written costs a complaint.
One that only a newer release may write is left as it is.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Callable, Optional

from kubeadm_registry.agent.document import Entry
from kubeadm_registry.agent.formats import Damaged, Format, Found, Newer

LARGEST = 1 << 20  # bytes of a file that is read


class KeptList:
    """The list under *key* in the JSON file *path*: its newest *most* entries, the newest last.

    *entries* is what is known; ``read`` takes what an earlier life left. *failed* gets a kind and a sentence.
    """

    def __init__(self, path: Path, form: Format, key: str, most: int, failed: Callable[[str, str], None]) -> None:
        self.entries: list[Entry] = []
        self._path = path
        self._format = form
        self._key = key
        self._most = most
        self._failed = failed
        self._found: Optional[Found] = None
        self._owed = False
        self._locked = False
        self._writing: Optional[asyncio.Future[None]] = None

    def read(self) -> None:
        """Take what is on disk. Raises nothing."""
        try:
            with self._path.open("rb") as file:
                found = self._format.parse(file.read(LARGEST))
            listed = found.values.get(self._key, [])
            if not isinstance(listed, list):
                raise Damaged(f"its key {self._key} is not a list")
        except FileNotFoundError:
            return
        except Newer as error:
            self._locked = True
            self._failed(self._key, f"{self._path}: {error}; it is left as it is")
        except (Damaged, OSError) as error:
            self._failed(self._key, f"{self._path}: {error}; a new one is started")
        else:
            self._locked = not self._format.may_write(found)
            self._found = found
            self.entries = list(filter(_is_entry, listed))[-self._most :]

    def add(self, entry: Entry) -> None:
        """Append *entry*, and have the list written soon."""
        self.entries = [*self.entries, entry][-self._most :]
        self._owed = True
        self.flush()

    def flush(self) -> None:
        """Begin to write what is owed to the disk, unless that is going on. To be called now and then: it may fail."""
        if not self._owed or self._locked or self._writing is not None:
            return
        self._owed = False
        values = {**(self._found.values if self._found is not None else {}), self._key: list(self.entries)}
        text = json.dumps(self._format.seal(values, self._found)) + "\n"
        self._writing = asyncio.get_running_loop().run_in_executor(None, self._write, text)
        self._writing.add_done_callback(self._written)

    async def settle(self, seconds: float) -> None:
        """Wait until all is written, *seconds* at most."""
        until = asyncio.get_running_loop().time() + seconds
        for _ in range(2):  # what is being written may be older than what is owed
            self.flush()
            if self._writing is None:
                return
            await asyncio.wait([self._writing], timeout=max(0.0, until - asyncio.get_running_loop().time()))
            await asyncio.sleep(0)  # its end is noted then

    def _written(self, done: asyncio.Future[None]) -> None:
        self._writing = None
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._owed = True
            self._failed(self._key, f"cannot write {self._path}: {error}")

    def _write(self, text: str) -> None:
        new = self._path.with_name(self._path.name + ".new")
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fdatasync(file.fileno())
        new.replace(self._path)


def _is_entry(one: object) -> bool:
    return isinstance(one, dict)
