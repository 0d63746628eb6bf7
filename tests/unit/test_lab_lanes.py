"""Which tests of the lab run side by side: every one runs, and none twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import lanes

ROOT = Path(__file__).parents[2]


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
    """With files of their own. What is in no lane runs in the first one, once the other has ended."""
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    waits = f"wait_until('the first lane', Path({str(begun)!r}).exists, seconds=60)"
    for name, body in {
        "good": f"assert not Path({str(ended)!r}).exists(); Path({str(begun)!r}).touch()",
        "bad": f"{waits}; Path({str(ended)!r}).touch(); assert False",
        "quiet": f"assert Path({str(ended)!r}).exists()",
        "last": "assert True",
    }.items():
        head = "from pathlib import Path\nfrom tests.lab.command import wait_until\n\n\n"
        (tmp_path / f"test_{name}.py").write_text(f"{head}def test_{name}():\n    {body}\n")
    monkeypatch.setattr(lanes, "HERE", tmp_path)
    monkeypatch.setattr(lanes, "LANES", {"one": ("good",), "two": ("bad",)})
    monkeypatch.setattr(lanes, "WAITING", ("last",))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path))
    assert lanes.main(options) == 1
    ended.unlink()
    assert lanes.main((*options, "-k", "good or last")) == 0
    said = capfd.readouterr().out
    assert "test_bad" in said
    assert [said.count(f"{count} passed") for count in (2, 1)] == [1, 3], "good and quiet in one process"
