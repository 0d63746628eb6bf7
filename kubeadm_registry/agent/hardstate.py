"""What a node has promised and must not forget, on disk: the highest term that it let write, its members' generation.

Of two majorities one server at least is in both, and that server makes the terms of successive writers grow. An agent
that forgot the term in a power cut would let a candidate of before write with a lower one.

The file has two records of fixed length. A new state is written over the older of the two, in place, so it needs no
room on a full disk, and a power cut in the middle of it leaves the other one. Each is a line of JSON with a checksum.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Callable, Optional

from kubeadm_registry.agent.formats import Found, Newer
from kubeadm_registry.agent.model import HardState
from kubeadm_registry.agent.promised import FORMAT, NEW, RECORD, checksum, decode

RECORDS = 2
UNKNOWN = HardState(generation=-1, epoch=-1)
"""Nothing is known to be on disk: no vote may be said."""


class Unreadable(ValueError):
    """The file cannot be relied on; the text says why, and what to do."""


def encode(state: HardState, found: Optional[Found] = None) -> bytes:
    """The record for *state* in place of *found*. Raises ValueError if that may not be, or is too much."""
    known = {"generation": state.generation, "epoch": state.epoch}
    said = FORMAT.seal({**(found.values if found is not None else {}), **known}, found)
    text = json.dumps({**said, "sha256": checksum(said)}, sort_keys=True).encode()
    if len(text) >= RECORD:
        raise ValueError(f"a record of {len(text)} bytes, and {RECORD - 1} is the most")
    return text.ljust(RECORD - 1) + b"\n"


def _state(found: Found) -> HardState:
    return HardState(int(found.values.get("generation", 0)), int(found.values.get("epoch", 0)))


class HardStateFile:
    """The state in the file *path*. *changed* is called in the loop when more is on disk; *failed* gets a complaint."""

    def __init__(self, path: Path, changed: Callable[[], None], failed: Callable[[str, str], None]) -> None:
        self.kept = UNKNOWN
        """What is known to be on disk."""
        self._path = path
        self._changed = changed
        self._failed = failed
        self._slot = 0  # the record to write next
        self._found: Optional[Found] = None
        self._writing: Optional[asyncio.Future[None]] = None
        self._again = 0.0

    def read(self) -> HardState:
        """What an earlier life left there. Raises OSError, Unreadable; then no vote can be given.

        An agent that was killed may have written what was not yet on disk; it comes there first.
        """
        try:
            return self.take(self.content())
        except FileNotFoundError:
            self.kept = HardState()
            return self.kept

    def content(self) -> bytes:
        """The file, which is on disk then. Raises OSError."""
        handle = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(handle)
            return os.pread(handle, RECORD * RECORDS, 0)
        finally:
            os.close(handle)

    def take(self, content: bytes) -> HardState:
        """Go on from the *content* of the file. Raises Unreadable."""
        try:
            records = [decode(content[at : at + RECORD]) for at in range(0, RECORD * RECORDS, RECORD)]
        except Newer as error:
            raise Unreadable(f"{self._path}: {error}: use a newer kubeadm-registry") from error
        whole = [(_state(found), found) for found in records if found is not None]
        if not whole:
            raise Unreadable(
                f"{self._path} is damaged, so this node does not vote or write; "
                "if the clocks of all nodes are right, stop the agent, remove the file and start the agent"
            )
        _, self._found = max(whole, key=lambda one: (one[0].generation, one[0].epoch))
        self._slot = 1 - records.index(self._found)
        self.kept = HardState(max(one.generation for one, _ in whole), max(one.epoch for one, _ in whole))
        return self.kept

    def want(self, state: HardState, now: float) -> None:
        """See that at least *state* comes to the disk, in a thread: a slow disk must not hold the agent up."""
        if self.kept == UNKNOWN or self._writing is not None or now < self._again:
            return
        wanted = HardState(max(state.generation, self.kept.generation), max(state.epoch, self.kept.epoch))
        if wanted != self.kept:
            loop = asyncio.get_running_loop()
            self._writing = loop.run_in_executor(None, self.write, wanted)
            self._writing.add_done_callback(lambda done: self._written(done, wanted, now))

    def _written(self, done: asyncio.Future[None], wanted: HardState, now: float) -> None:
        self._writing = None
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._again = now + 1.0
            self._failed("hardstate", f"cannot keep what it has promised, so it gives no new vote: {error}")
        elif not done.cancelled():
            self.kept = wanted
            self._changed()

    def write(self, state: HardState) -> None:
        """Have *state* on disk. Raises OSError, ValueError."""
        record = encode(state, self._found)
        if not self._path.exists():
            self._begin(record)
            return
        handle = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.pwrite(handle, record, self._slot * RECORD) != RECORD:
                raise OSError(f"{self._path}: only a part was written")
            os.fdatasync(handle)
        finally:
            os.close(handle)
        self._slot = 1 - self._slot

    def _begin(self, record: bytes) -> None:
        """Have the file with its first *record* on disk: an empty one would take this node's vote for good."""
        beside = self._path.with_name(f"{self._path.name}{NEW}")
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if os.write(handle, record.ljust(RECORD * RECORDS)) != RECORD * RECORDS:
                raise OSError(f"{beside}: only a part was written")
            os.fsync(handle)
        finally:
            os.close(handle)
        beside.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._slot = 1
