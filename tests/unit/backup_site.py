"""A site for the tests of backup and restore: servers, the registry that they serve, and somebody at a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kubeadm_registry import config, pki, secrets
from kubeadm_registry.access import loading, reach, session
from kubeadm_registry.backup import Contents, Identities, read
from kubeadm_registry.cli import restore as cli_restore
from kubeadm_registry.cli import seed as cli_seed
from kubeadm_registry.cli.main import cli
from kubeadm_registry.components import programs
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.engine.workflow import run as run_workflow
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.transport.host import Transport
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster, authority, fixed_secrets
from tests.unit.fake_images import Repositories, ScopedHandler
from tests.unit.fake_registry import serving
from tests.unit.fakes import FakeTransport
from tests.unit.test_bundle_signing import keygen, public

PAUSE = "registry.k8s.io/pause"
NAMES = ("cp-1", "cp-2", "cp-3")
FIXED = fixed_secrets(NAMES)


class Site:
    """Servers, the registry that they serve, and a folder in which the program is called."""

    def __init__(self, folder: Path, three: FakeCluster, registry: Repositories) -> None:
        self.folder, self.three, self.registry = folder, three, registry
        self.asked: list[str] = []
        self.away: set[str] = set()

    def __call__(self, *arguments: str | Path, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, tuple(map(str, arguments)), input=stdin, prog_name="kubeadm-registry")

    def back_up(self, *arguments: str | Path) -> Path:
        """A backup for the key of this site."""
        path = self.folder / "backup"
        result = self("backup", "-o", path, "--recipients-file", public(self.key), *arguments)
        assert result.exit_code == 0, result.output
        return path

    @property
    def key(self) -> Path:
        path = self.folder / "key"
        return path if path.exists() else keygen(path)

    def install(self) -> None:
        for server in self.three.servers.values():
            server.put(secrets.PATH, FIXED.to_json(), 0o600)
            server.put(programs.RECORD, programs.record(self.three.programs))

    def empty(self) -> None:
        """No image is there but the one by which the registry is looked at."""
        self.registry.store.clear()
        self.registry.image("kubeadm-registry/canary", "v1")

    def lose(self) -> None:
        """All servers are new, and the registry is empty. The programs are there, as a bundle would bring them."""
        self.three = FakeCluster.of(config.SMALLEST)
        self.registry.store.clear()


@pytest.fixture
def site(three: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    for module in (reach, cli_seed):
        monkeypatch.setattr(module, "answers", lambda _address: False)
    (folder / "cluster.yaml").write_text(f"# of the site\n{config.SMALLEST}")
    registry = Repositories()
    registry.image(PAUSE, "3.10")
    registry.image("team/app", "v1", layer=b"app")
    registry.image("kubeadm-registry/canary", "v1")
    site = Site(folder, three, registry)
    site.install()

    def connect(_: RegistryCluster, node: Node, prompts: session.Prompts) -> Transport:
        site.asked.append(node.name)
        if node.name in site.away:
            raise ConnectionFailed("no route to host", host=node.name, code="HostUnreachable", hint="look at it")
        server = site.three.servers[node.name]
        server.closed, server.locked_by = False, None
        return server

    monkeypatch.setattr(session, "reach", connect)
    # Programs come from the fake, which no bundle of a test has, and phases that the fake does not know stay out.
    monkeypatch.setattr(session, "select", lambda *_: site.three.programs)
    monkeypatch.setattr(loading, "with_programs", lambda _, bundles: bundles[0].path)
    monkeypatch.setattr(cli_restore, "run", partial(run_workflow, skip=ELSEWHERE))
    pair = pki.issue(authority(), "cp-1", ("10.0.0.10", "10.0.0.11", "10.0.0.12", "10.0.0.13"))
    with serving(registry, pair, ScopedHandler):
        monkeypatch.setattr(FakeTransport, "dial", lambda _self, _address, _port: ("127.0.0.1", registry.port))
        yield site


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def error(result: Result, code: int) -> dict[str, Any]:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return lines(result)[-1]


def contents_of(site: Site, path: Path) -> Contents:
    return read(path).opened(Identities((site.key,)))
