"""The agent as it is shipped: one file of always the same bytes, the standard library only, Python 3.9."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kubeadm_registry import __version__, agent
from kubeadm_registry.agent import __main__ as program
from kubeadm_registry.agent.config import Executor, Paths
from kubeadm_registry.components import zipapp
from tests.unit.test_agent_config import smallest

AGENT = sorted(Path(agent.__file__).parent.glob("*.py"))


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the zipapp as the unit does, from elsewhere and with an environment that must not matter."""
    archive = folder / "agent.pyz"
    archive.write_bytes(zipapp.build())
    (folder / "asyncio.py").write_text("raise SystemExit('the wrong module')")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder)}
    argv = [sys.executable, "-I", "-B", str(archive), *arguments]
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_the_same_source_gives_the_same_bytes() -> None:
    first = zipapp.build()
    assert first == zipapp.build()
    assert first.startswith(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert names == sorted(names)
    assert len(names) == len(AGENT) + 2
    assert "kubeadm_registry/agent/daemon.py" in names


def test_it_tells_its_version_and_checks_a_file(tmp_path: Path) -> None:
    assert run(tmp_path, "--version").stdout.strip() == __version__
    file = tmp_path / "agent.json"
    file.write_text(json.dumps(smallest()))
    good = run(tmp_path, "--check", "--config", str(file))
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    file.write_text(json.dumps(smallest() | {"adress": 1}))
    bad = run(tmp_path, "--check", "--config", str(file))
    assert bad.returncode == 2
    assert "adress: unknown key" in bad.stderr
    assert not list(tmp_path.rglob("__pycache__"))


@pytest.mark.parametrize("path", AGENT, ids=lambda path: path.stem)
def test_a_module_is_python_3_9_and_needs_nothing_but_the_standard_library(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an archive has no parent to be relative to"
            names = [node.module or ""]
        else:
            continue
        for name in names:
            own = name.startswith("kubeadm_registry.agent") or name == "kubeadm_registry"
            assert own or name.partition(".")[0] in sys.stdlib_module_names, name
            if name == "kubeadm_registry":
                allowed = {"__version__"} | {f"{one.stem}" for one in AGENT}
                assert isinstance(node, ast.ImportFrom)
                assert {alias.name for alias in node.names} <= allowed


def test_a_file_that_cannot_be_read_still_gives_up_what_an_agent_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, mark = tmp_path / "fit", tmp_path / "writer"
    fit.write_text("1\n")
    mark.write_text("kubeadm-registry-of-nobody.service\n")
    killed = []
    monkeypatch.setattr(program, "Paths", lambda: Paths(fit=str(fit), mark=str(mark)))
    monkeypatch.setattr(program.Processes, "kill", lambda self: killed.append(self.unit))
    assert program.main(["--config", str(tmp_path / "none"), "--close"]) == 2
    assert not fit.exists()
    assert killed == ["kubeadm-registry-of-nobody.service", Executor().unit]
    mark.unlink()
    killed.clear()
    assert program.main(["--config", str(tmp_path / "none"), "--close"]) == 2
    assert killed == [Executor().unit]


def test_a_start_that_fails_is_not_repeated_five_times_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(program.time, "sleep", waits.append)
    (tmp_path / "agent.json").write_text(json.dumps(smallest() | {"heartbeat_key_file": str(tmp_path / "key")}))
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert program.main(["--config", str(tmp_path / "none")]) == 2
    assert waits == [], "people at a terminal do not wait"
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    assert program.main(["--config", str(tmp_path / "none")]) == 2
    assert program.main(["--config", str(tmp_path / "agent.json")]) == 1, "no such key"
    assert len(waits) == 2
    assert all(0 < wait <= program.BREATH for wait in waits)
