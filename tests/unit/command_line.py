"""Fixtures of somebody at a terminal: runs the program in a folder, with or without nodes that can be reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kubeadm_registry import config, paths
from kubeadm_registry.access import session
from kubeadm_registry.cli.main import cli
from kubeadm_registry.components import programs
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.transport.host import Transport
from tests.unit.fake_cluster import FakeCluster


class Terminal:
    """Somebody at a terminal: a folder, a home, and the program."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(cli, arguments, input=stdin, env=env, prog_name="kubeadm-registry")

    def write(self, text: str, name: str = "cluster.yaml") -> str:
        (self.folder / name).write_text(text)
        return name


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    folder, home = tmp_path / "here", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return Terminal(folder)


@pytest.fixture
def servers(run: Terminal, three: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """Three servers with the programs on them, which ./cluster.yaml leads to."""
    run.write(config.SMALLEST)
    for server in three.servers.values():
        server.put(f"{paths.OPT}/programs.json", programs.record(three.programs))
    lead_to(three, monkeypatch)
    return three


def lead_to(fake: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have commands reach the servers of *fake*, each time by a new connection."""

    def reach(_: RegistryCluster, node: Node, prompts: session.Prompts) -> Transport:
        server = fake.servers[node.name]
        server.closed, server.locked_by = False, None
        return server

    monkeypatch.setattr(session, "reach", reach)


def lines(result: Result) -> list[dict[str, Any]]:
    """The JSON objects of the output, one a line."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def failed(result: Result, code: int) -> None:
    """It ended with *code*, said why on standard error, and showed no traceback."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stderr or result.stdout


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was asked for: no server may be, when the file or the command line is wrong."""
    asked: list[str] = []

    def reach(_: RegistryCluster, node: Node, prompts: session.Prompts) -> Transport:
        asked.append(node.name)
        raise ConnectionFailed("this is a test")

    monkeypatch.setattr(session, "reach", reach)
    return asked
