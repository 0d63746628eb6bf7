"""What a seed notes: where uploads go on, by one run at a time."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

import pytest

from kubeadm_registry.errors import Error
from kubeadm_registry.images.journal import Journal


def test_what_one_run_notes_the_next_one_finds(tmp_path: Path) -> None:
    path = tmp_path / "state" / "seed.json"
    with Journal(path) as journal:
        journal.note("a", "/uploads/1")
        journal.note("b", "/uploads/2")
        journal.note("b", "")
    with Journal(path) as journal:
        assert (journal.place("a"), journal.place("b")) == ("/uploads/1", "")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["{", "[]", "\xff", ""])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "seed.json"
    path.write_bytes(content.encode("latin-1"))
    with Journal(path) as journal:
        assert journal.place("a") == ""
        journal.note("a", "/uploads/1")
    with Journal(path) as journal:
        assert journal.place("a") == "/uploads/1"


def test_the_journal_of_release_0_1_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "seed.json"
    path.write_text(json.dumps({"a": "/uploads/1", "format": "/uploads/2"}))
    with Journal(path) as journal:
        assert journal.place("a") == "", "a key of that name means a newer one"
    path.write_text(json.dumps({"a": "/uploads/1"}))
    with Journal(path) as journal:
        assert journal.place("a") == "/uploads/1"
        journal.note("b", "/uploads/2")
    with Journal(path) as journal:
        assert (journal.place("a"), journal.place("b")) == ("/uploads/1", "/uploads/2")


@pytest.mark.parametrize("key", ["minReader", "minWriter"])
def test_a_journal_of_a_newer_release_stays_as_it_is(tmp_path: Path, key: str) -> None:
    path = tmp_path / "seed.json"
    content = json.dumps({"format": {"version": 9, key: 9}, "uploads": {}})
    path.write_text(content)
    for _ in range(2):  # the lock is free again
        with pytest.raises(Error, match=r"a newer release wrote .*seed\.json") as caught, Journal(path, patience=0.2):
            pass
        assert (caught.value.code, caught.value.hint) == ("NewerFormat", "use a newer kubeadm-registry")
    assert path.read_text() == content


def test_another_run_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "seed.json"
    with Journal(path), pytest.raises(Error) as refused, Journal(path, patience=0.2):
        pass
    assert refused.value.code == "SeedBusy"
    with contextlib.ExitStack() as first:
        journal = first.enter_context(Journal(path))

        def end() -> None:
            journal.note("a", "/uploads/1")
            first.close()

        ending = threading.Timer(0.3, end)
        ending.start()
        with Journal(path) as second:
            assert second.place("a") == "/uploads/1", "what the first one noted last"
        ending.join()


def test_which_bundles_were_proven_is_kept_beside_the_uploads(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        assert not journal.proven("sha256:1")
        journal.note("a", "/there")
        for number in range(200):
            journal.prove(f"sha256:{number}", proven=True)
        journal.prove("sha256:150", proven=False)
    with Journal(tmp_path / "journal") as journal:
        assert journal.place("a") == "/there"
        assert journal.proven("sha256:199")
        assert not journal.proven("sha256:150")
        assert not journal.proven("sha256:1"), "the oldest are forgotten"


def test_a_proof_after_the_run_keeps_what_another_run_noted_since(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path, patience=0.2) as ours:
        ours.note("a", "/ours")
    with Journal(path) as other:
        other.note("a", "/other")
        ours.conclude("sha256:1", proven=True)
        assert not other.proven("sha256:1"), "the file is the other run's now"
        other.note("b", "/other")
    with Journal(path) as after:
        assert (after.place("a"), after.place("b"), after.proven("sha256:1")) == ("/other", "/other", False)
    ours.conclude("sha256:1", proven=True)
    with Journal(path) as after:
        assert (after.place("a"), after.place("b"), after.proven("sha256:1")) == ("/other", "/other", True)


@pytest.mark.parametrize("said", ["7", '"x"', "[3, null]", "{}"])
def test_odd_notes_of_proofs_are_none(tmp_path: Path, said: str) -> None:
    stamp = '{"version": 2, "minReader": 1, "minWriter": 2}'
    (tmp_path / "journal").write_text(f'{{"format": {stamp}, "uploads": {{}}, "proven": {said}}}')
    with Journal(tmp_path / "journal") as journal:
        assert not journal.proven("x")
        journal.prove("x", proven=True)
        assert journal.proven("x")
