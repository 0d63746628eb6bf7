"""Which tests of the lab run side by side: every one runs, and none twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import lanes


def test_each_file_runs_once() -> None:
    inside = [path for names in (*lanes.LANES.values(), lanes.WAITING) for path in lanes.paths(names)]
    assert all(path.exists() for path in inside), "a file was renamed"
    assert sorted([*inside, *lanes.alone()]) == sorted(lanes.HERE.glob("test_*.py"))


def test_no_lane_uses_the_place_of_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBEADM_REGISTRY_LAB", str(tmp_path / "lab"))
    places = lanes.places()
    assert set(places) == set(lanes.LANES)
    assert len({place.directory for place in places.values()}) == len(places)
    assert places["registry"].directory == tmp_path / "lab"


def test_the_worst_status_counts_and_an_option_that_selects_nothing_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With four files of their own, each in a process."""
    for name, body in {
        "good": "assert True",
        "bad": "assert False",
        "quiet": "assert True",
        "last": "assert True",
    }.items():
        (tmp_path / f"test_{name}.py").write_text(f"def test_{name}():\n    {body}\n")
    monkeypatch.setattr(lanes, "HERE", tmp_path)
    monkeypatch.setattr(lanes, "LANES", {"one": ("good",), "two": ("bad",)})
    monkeypatch.setattr(lanes, "WAITING", ("last",))
    monkeypatch.chdir(tmp_path)
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path))
    assert lanes.main(options) == 1
    assert lanes.main((*options, "-k", "quiet or good")) == 0
    said = capfd.readouterr().out
    assert "test_bad" in said
    assert said.count("1 passed") == 5, "good and quiet in both runs, last in the first"
