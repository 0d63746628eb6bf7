"""A registry of three nodes on loopback: real Distribution or zot with TLS, and agents that serve metrics of real form.

Nodes have addresses of which this host has none; ``dial`` leads to the ports on loopback where they answer.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from kubeadm_registry import config, paths, pki
from kubeadm_registry.access.executor import Progress, Seen
from kubeadm_registry.errors import RegistryError
from kubeadm_registry.oci import canary
from kubeadm_registry.operator.way import Way
from kubeadm_registry.registry import Api, Login, push_blob
from kubeadm_registry.retention.pulls import Pulls
from tests.lab import programs, standalone
from tests.lab.command import wait_until
from tests.operator.apiserver import free_port

SPEC = config.parse(config.SMALLEST, "x").spec
VIP = SPEC.vip.address
ADDRESSES = {node.name: node.address for node in SPEC.nodes}
HEALTHY = {"fit": 1.0, "level": 0.0, "vip_held": 0.0, "data_free_bytes": 60e9, "data_size_bytes": 100e9}
#: Seconds until a registry answers.
_START = 30.0


@dataclass
class Agent:
    """What an agent says: *values* and *conditions*."""

    values: dict[str, float] = field(default_factory=lambda: dict(HEALTHY))
    conditions: list[str] = field(default_factory=list)

    def text(self) -> str:
        """As ``agent.status.metrics`` writes it (compared in tests/unit/test_operator_health.py)."""
        lines = [f"kubeadm_registry_agent_{name} {value:.15g}" for name, value in self.values.items()]
        lines += [f'kubeadm_registry_agent_condition{{name="{name}"}} 1' for name in self.conditions]
        return "\n".join(lines) + "\n"


@dataclass
class Node:
    """A node that holds the lease, and notes which orders it is given."""

    name: str = "cp-1"
    orders: list[bytes] = field(default_factory=list)

    def look(self) -> Seen:
        return Seen((), {"writer": {"role": "writer", "term": 1}})

    def start(self, content: bytes) -> None:
        self.orders.append(content)

    def progress(self, _: str) -> Progress:
        run = {"order": "o", "plan": "p", "policy": "retention", "node": "cp-1", "began": 1, "ended": 2, "deleted": 1,
               "restored": 0, "purged": 0, "skipped": 0, "error": "", "said": []}  # fmt: skip
        said: dict[str, Any] = {"invocation": str(len(self.orders)), "run": run} if self.orders else {}
        return Progress("inactive", "success", 0, "", said)

    def stop(self, _: str) -> None: ...

    def pulls(self) -> Pulls:
        return Pulls(None, {})


class Site:
    """The nodes by name; *ports* leads from (address, port) to where it is on loopback."""

    def __init__(self, folder: Path, frontend: str = "distribution") -> None:
        self.folder = folder
        self.frontend = frontend
        self.authority = pki.make_ca("registry")
        self.agents = {name: Agent() for name in ADDRESSES}
        self.ports: dict[tuple[str, int], int] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        metrics = pki.issue(self.authority, "metrics", [], unit=pki.METRICS_UNIT)
        (folder / "metrics.pem").write_text(metrics.certificate + metrics.key)

    @property
    def way(self) -> Way:
        """The way to it."""
        login = Login("push", "password")
        return Way(self.authority.certificate, login, "key of the ledger", self.folder / "metrics.pem", dial=self.dial)

    @property
    def secret(self) -> Path:
        """The directory with what the operator's Secret has, without a key for helpers."""
        folder, way = self.folder / "secret", self.way
        assert way.login is not None
        files = {"ca.crt": way.ca, "username": way.login.user, "password": way.login.password, "retention-key": way.key,
                 "metrics.pem": (self.folder / "metrics.pem").read_text()}  # fmt: skip
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
        return folder

    @property
    def dialled(self) -> str:
        """``ports`` for dialled.py."""
        return json.dumps([[*place, at] for place, at in self.ports.items()])

    def dial(self, address: str, port: int) -> tuple[str, int]:
        """Where *address* answers; at a port that nothing uses if it does not."""
        return "127.0.0.1", self.ports.get((address, port), 1)

    def holder(self, name: str) -> None:
        """Let that node hold the virtual IP."""
        self.ports[VIP, paths.REGISTRY_PORT] = self.ports[ADDRESSES[name], paths.REGISTRY_PORT]
        for each, agent in self.agents.items():
            agent.values["vip_held"] = float(each == name)

    def start(self, name: str, stack: contextlib.ExitStack) -> None:
        """Start the registry and the agent of a node."""
        certificate, key = self._certificate(name)
        port = free_port()
        file = self.folder / f"{name}.yaml"
        place = self.folder / "storage", port, certificate, key
        if self.frontend == "zot":
            binary, settings = programs.zot(), standalone.zot(*place, shared=True)
        else:
            binary, settings = programs.program("registry"), standalone.distribution(*place)
        assert binary is not None, "the fixture asks for it"
        file.write_text(yaml.safe_dump(settings))
        log = stack.enter_context((self.folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "--", binary, "serve", file], stdout=log, stderr=subprocess.STDOUT
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        self._processes[name] = process
        self.ports[ADDRESSES[name], paths.REGISTRY_PORT] = port
        wait_until(f"the registry of {name}", lambda: self._answers(name), seconds=_START)
        self.ports[ADDRESSES[name], paths.AGENT_PORT] = stack.enter_context(self._agent(name, certificate, key))

    def lose(self, repository: str) -> None:
        """The storage loses all of *repository*."""
        below = "docker/registry/v2/repositories" if self.frontend == "distribution" else ""
        shutil.rmtree(self.folder / "storage" / below / repository)

    def kill(self, name: str) -> None:
        """The node loses its power: neither its registry nor its agent answers."""
        self._processes[name].kill()
        self._processes[name].wait()
        for port in (paths.REGISTRY_PORT, paths.AGENT_PORT):
            self.ports.pop((ADDRESSES[name], port), None)

    def push(self, repository: str, tag: str, *, own: bool = True) -> str:
        """Push a small image to *repository*, one of its *own* or the canary's; its digest."""
        manifest = json.loads(canary.MANIFEST.content)
        content = json.dumps({**manifest, "annotations": {"is": f"{repository}:{tag}"}}).encode() if own else b""
        with self.way.registry(ADDRESSES["cp-1"], timeout=10)() as registry:
            put(registry, repository, tag, content)
            digest = registry.digest(repository, tag)
        assert digest is not None
        return digest

    def _certificate(self, name: str) -> tuple[Path, Path]:
        pair = pki.issue(self.authority, name, [ADDRESSES[name], VIP], lifetime=timedelta(days=365))
        files = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        for file, text in zip(files, (pair.certificate, pair.key), strict=True):
            file.write_text(text)
        return files

    def _answers(self, name: str) -> bool:
        try:
            with self.way.registry(ADDRESSES[name], timeout=5)() as registry:
                registry.ping()
        except RegistryError:
            return False
        return True

    @contextlib.contextmanager
    def _agent(self, name: str, certificate: Path, key: Path) -> Iterator[int]:
        """Serves what ``agents[name]`` says to whoever has a certificate, as an agent does; gives its port."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(cadata=self.authority.certificate)
        context.verify_mode = ssl.CERT_REQUIRED
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self.agents[name]))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, agent: Agent, *arguments: Any) -> None:
        self._agent = agent
        super().__init__(*arguments)

    def do_GET(self) -> None:
        body = self._agent.text().encode()
        self.send_response(200 if self.path == "/metrics" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def put(registry: Api, repository: str, tag: str, content: bytes = b"") -> None:
    """The canary image as *repository*:*tag*, with another manifest of the same if *content* is given."""
    for blob in (canary.LAYER, canary.CONFIG):
        push_blob(registry, repository, blob.digest, blob.content)
    registry.push_manifest(repository, tag, content or canary.MANIFEST.content, canary.MANIFEST_TYPE)


@contextlib.contextmanager
def site(folder: Path, frontend: str = "distribution") -> Iterator[Site]:
    """Three nodes that serve the canary image, cp-1 with the virtual IP."""
    with contextlib.ExitStack() as stack:
        found = Site(folder, frontend)
        for name in ADDRESSES:
            found.start(name, stack)
        found.push(canary.REPOSITORY, canary.TAG, own=False)
        found.holder("cp-1")
        yield found
