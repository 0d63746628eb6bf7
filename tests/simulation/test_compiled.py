"""The compiled copy is made anew when a source changes, and refused if it acts otherwise. Nothing is compiled here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation import compiled, sources


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where something was compiled, which is not done."""
    found: list[Path] = []
    monkeypatch.setattr(compiled, "SEEDS", 3)
    monkeypatch.setattr(compiled, "compile_in", found.append)
    return found


def test_a_copy_of_the_same_sources_is_kept(tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled.build(tmp_path / "copy")
    assert (tmp_path / "copy/tests/simulation/ran.json").exists(), "what need not run again"
    compiled.build(tmp_path / "copy")
    assert runs == [tmp_path / "copy"]
    monkeypatch.setattr(sources, "digest", lambda: "of others")
    compiled.build(tmp_path / "copy")
    assert runs == [tmp_path / "copy"] * 2


def test_one_that_acts_otherwise_is_refused_each_time(
    tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(directory: Path) -> None:
        runs.append(directory)
        timings = directory / "kubeadm_registry/agent/timings.py"
        timings.write_text(
            timings.read_text()
            .replace("tick: float = 0.05", "tick: float = 0.06")
            .replace("heartbeat_interval: float = 0.1", "heartbeat_interval: float = 0.2")
        )

    monkeypatch.setattr(compiled, "compile_in", spoil)
    for _ in range(2):
        with pytest.raises(ValueError, match="does something else"):
            compiled.build(tmp_path / "copy")
    assert len(runs) == 2
