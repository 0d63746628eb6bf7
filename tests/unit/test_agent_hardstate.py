"""What a node has promised: on disk whole or not at all, never less than before, and readable by the next release."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.agent.formats import Found
from kubeadm_registry.agent.hardstate import RECORDS, UNKNOWN, HardStateFile, Unreadable, encode
from kubeadm_registry.agent.model import HardState
from kubeadm_registry.agent.promised import RECORD, checksum


def at(path: Path, complaints: list[str] | None = None) -> HardStateFile:
    said = complaints if complaints is not None else []
    return HardStateFile(path, lambda: None, lambda _, text: said.append(text))


def test_what_was_promised_outlives_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "hardstate"
    one = at(path)
    assert one.read() == HardState()
    for epoch in (7, 9, 12):
        one.write(HardState(1, epoch))
        assert at(path).read() == HardState(1, epoch)
    assert path.stat().st_size == RECORD * RECORDS
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_record_that_was_not_written_whole_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "hardstate"
    one = at(path)
    one.read()
    one.write(HardState(1, 5))
    before = path.read_bytes()
    one.write(HardState(2, 6))
    after = path.read_bytes()
    changed = [index for index in range(len(after)) if after[index] != before[index]]
    for cut in range(changed[0], changed[-1] + 1, 7):
        path.write_bytes(after[:cut] + before[cut:])
        assert at(path).read() in (HardState(1, 5), HardState(2, 6))
    path.write_bytes(after[: changed[0]] + bytes(RECORD) + after[changed[0] + RECORD :])
    again = at(path)
    assert again.read() == HardState(1, 5)
    again.write(HardState(2, 8))
    assert at(path).read() == HardState(2, 8)


def test_what_a_killed_agent_had_written_is_on_disk_before_it_is_relied_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was in memory only: a power cut would forget it, after votes of that term were said."""
    path = tmp_path / "hardstate"
    one = at(path)
    one.read()
    one.write(HardState(1, 5))
    calls: list[str] = []
    fsync, pread = os.fsync, os.pread
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("fsync") or fsync(handle))
    monkeypatch.setattr(os, "pread", lambda *arguments: calls.append("read") or pread(*arguments))
    assert at(path).read() == HardState(1, 5)
    assert calls == ["fsync", "read"]


def test_neither_number_falls(tmp_path: Path) -> None:
    path = tmp_path / "hardstate"

    async def run() -> None:
        one = at(path)
        one.read()
        for state in (HardState(3, 5), HardState(2, 9), HardState(1, 1)):
            one.want(state, 0.0)
            while one._writing is not None:
                await asyncio.sleep(0.001)
        assert one.kept == HardState(3, 9)

    asyncio.run(run())
    assert at(path).read() == HardState(3, 9)


def test_nothing_is_known_to_be_on_disk_while_it_cannot_be_written(tmp_path: Path) -> None:
    complaints: list[str] = []

    async def run() -> None:
        one = at(tmp_path / "none" / "hardstate", complaints)
        one.read()
        one.want(HardState(1, 5), 0.0)
        while not complaints:
            await asyncio.sleep(0.001)
        assert one.kept == HardState()
        one.want(HardState(1, 5), 0.5)
        assert one._writing is None, "not again at once"

    asyncio.run(run())
    assert "gives no new vote" in complaints[0]


def test_a_file_that_cannot_be_relied_on_gives_no_vote(tmp_path: Path) -> None:
    path = tmp_path / "hardstate"
    path.write_bytes(b"rubbish".ljust(RECORD * RECORDS))
    one = at(path)
    with pytest.raises(Unreadable, match="damaged"):
        one.read()
    assert one.kept == UNKNOWN
    one.want(HardState(1, 5), 0.0)
    assert path.read_bytes().startswith(b"rubbish")


@pytest.fixture
def frozen(root: Path, tmp_path: Path) -> Path:
    """The file as 0.1 writes it, twice written."""
    path = tmp_path / "hardstate"
    path.write_bytes((root / "tests/golden/formats/0.1/hardstate").read_bytes())
    return path


def change(path: Path, how: Callable[[dict[str, Any]], object]) -> None:
    """Let both records be as another release would have written them."""
    records = []
    for start in range(0, RECORD * RECORDS, RECORD):
        said = json.loads(path.read_bytes()[start : start + RECORD])
        del said["sha256"]
        how(said)
        records.append(json.dumps({**said, "sha256": checksum(said)}).encode().ljust(RECORD))
    path.write_bytes(b"".join(records))


def test_the_file_of_0_1_is_read(frozen: Path) -> None:
    assert at(frozen).read() == HardState(2, 1_800_000_000_004)


def test_what_a_newer_release_adds_is_kept(frozen: Path) -> None:
    change(frozen, lambda said: said.update(later=[1], format={"version": 2, "minReader": 1, "minWriter": 1}))
    one = at(frozen)
    assert one.read() == HardState(2, 1_800_000_000_004)
    one.write(HardState(2, 1_800_000_000_007))
    assert frozen.read_bytes().count(b'"later": [1]') == 2
    assert at(frozen).read() == HardState(2, 1_800_000_000_007)


@pytest.mark.parametrize("key", ["format", "generation", "epoch"])
def test_one_key_less_is_nothing_promised(frozen: Path, key: str) -> None:
    change(frozen, lambda said: said.pop(key))
    found = at(frozen).read()
    assert found == HardState(0 if key == "generation" else 2, 0 if key == "epoch" else 1_800_000_000_004)


def test_what_a_newer_release_forbids_to_read_is_refused_by_name(frozen: Path) -> None:
    change(frozen, lambda said: said.update(format={"version": 3, "minReader": 2, "minWriter": 2}))
    with pytest.raises(Unreadable, match="use a newer kubeadm-registry"):
        at(frozen).read()


def test_what_a_newer_release_forbids_to_write_is_read_and_never_written(frozen: Path) -> None:
    change(frozen, lambda said: said.update(format={"version": 3, "minReader": 1, "minWriter": 2}))
    before = frozen.read_bytes()
    one = at(frozen)
    assert one.read() == HardState(2, 1_800_000_000_004)
    with pytest.raises(ValueError, match="needed to write it"):
        one.write(HardState(2, 1_800_000_000_007))
    assert frozen.read_bytes() == before


def test_a_record_has_its_length() -> None:
    assert len(encode(HardState(2**31, 2**62))) == RECORD
    with pytest.raises(ValueError, match="511 is the most"):
        encode(HardState(1, 1), Found({"later": "x" * RECORD}))


@pytest.mark.parametrize("ends", ["write", "fsync", "replace"])
def test_a_first_write_that_ends_anywhere_takes_no_vote_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Killed, without power, or on a full disk: the next one begins as the first did."""
    path = tmp_path / "hardstate"
    one = at(path)
    one.read()

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path if ends == "replace" else os, ends, fail)
        with pytest.raises(OSError, match="no space"):
            one.write(HardState(1, 5))
    assert at(path).read() == HardState()
    one.write(HardState(1, 5))
    assert at(path).read() == HardState(1, 5)
    one.write(HardState(1, 6))
    assert at(path).read() == HardState(1, 6)
    assert [file.name for file in tmp_path.iterdir()] == ["hardstate"]
