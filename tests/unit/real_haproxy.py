"""A real HAProxy on loopback with the configuration that a server gets, before a frontend that notes what arrives."""

from __future__ import annotations

import os
import secrets
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kubeadm_registry import paths, pki
from kubeadm_registry.components import haproxy
from kubeadm_registry.engine.changes import File
from kubeadm_registry.secrets import basic
from tests.lab.programs import there
from tests.unit.fake_cluster import FakeCluster

PUSH = {"Authorization": f"Basic {basic('push', 'the-push-password')}"}


def program() -> str:
    """HAProxy; skips where there is none. `make unit` fetches one; KUBEADM_REGISTRY_HAPROXY names another."""
    found = there("haproxy")
    if found is None:
        pytest.skip("there is no haproxy here: run `make unit`, or name one in KUBEADM_REGISTRY_HAPROXY")
    return found


class _Frontend(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    arrived: list[str]
    fields: list[Mapping[str, str]]

    def _answer(self) -> None:
        self.arrived.append(f"{self.command} {self.path}")
        self.fields.append({name.lower(): value for name, value in self.headers.items()})
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        written = self.command in ("POST", "PATCH")
        self.send_response(202 if written else 404 if self.path.startswith("/v2/absent/") else 200)
        if self.command == "POST":
            self.send_header("Location", self.path.rstrip("/") + "/one")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def handle(self) -> None:
        with suppress(ConnectionError):  # HAProxy ends what it does not need
            super().handle()

    do_GET = do_HEAD = do_OPTIONS = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass
class Node:
    """One server's HAProxy."""

    name: str
    address: str
    """The server's; loopback addresses stand for those of the golden case."""
    loopback: str
    folder: Path
    process: subprocess.Popen[bytes]
    arrived: list[str] = field(default_factory=list)
    """What has come to the frontend: method and path."""
    fields: list[Mapping[str, str]] = field(default_factory=list)
    """The headers with which it came, their names in lower case."""

    @property
    def log(self) -> str:
        """What HAProxy said."""
        return (self.folder / "stderr").read_text()

    def tell(self, *commands: str) -> str:
        """Say *commands* to the runtime socket."""
        with socket.socket(socket.AF_UNIX) as runtime:
            runtime.settimeout(5)
            runtime.connect(str(self.folder / "run" / "1.sock"))
            runtime.sendall((";".join(commands) + "\n").encode())
            answer = b""
            while piece := runtime.recv(65536):
                answer += piece
        return answer.decode()

    def open_gate(self, epoch: int = 4) -> None:
        """What the agent of the one writer does."""
        self.tell(
            f"set map {self.folder}/etc/haproxy/state.map epoch {epoch}",
            "set server gate/open state ready", "set server writer/local state ready",
        )  # fmt: skip

    def connect(self, *, source: str = "", port: int = paths.REGISTRY_PORT, tls: ssl.SSLContext | None = None,
                timeout: float = 15) -> ssl.SSLSocket:  # fmt: skip
        """A connection with TLS."""
        plain = socket.create_connection((self.address, port), timeout, (source, 0) if source else None)
        return (tls or self.client()).wrap_socket(plain, server_hostname=self.name)

    def client(self) -> ssl.SSLContext:
        """What a client trusts: the cluster's authority."""
        return ssl.create_default_context(cafile=str(self.folder / "etc" / "ca.crt"))

    def ask(self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"", *,
            source: str = "", timeout: float = 15) -> Answer:  # fmt: skip
        """Send *target* as it stands, which a client's library would have mended, and read the answer to its end."""
        began = time.monotonic()
        fields = {"Host": self.address, "Connection": "close", **(headers or {})}
        if body or method in ("POST", "PUT", "PATCH"):
            fields.setdefault("Content-Length", str(len(body)))
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
        with self.connect(source=source, timeout=timeout) as connection:
            connection.sendall(head.encode() + body)
            data = b""
            with suppress(ConnectionError):
                while piece := connection.recv(65536):
                    data += piece
        head_, _, content = data.partition(b"\r\n\r\n")
        lines = head_.decode().split("\r\n")
        status = int(lines[0].split()[1]) if len(lines[0].split()) > 1 else 0
        found = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines[1:])}
        return Answer(status, found, content, time.monotonic() - began)


@dataclass(frozen=True)
class Answer:
    """What came back; status 0 if nothing did."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


@contextmanager
def nodes(cluster: str, *names: str, instead: Mapping[str, str] | None = None) -> Iterator[list[Node]]:
    """The HAProxy of each of *names*, servers of the file *cluster*, whose addresses must begin with 10.0.0.

    *instead*: what its configuration has in place of what. In place of that network there is one on loopback, and in
    place of 127.0.0 each server has a network of its own.
    """
    executable = program()
    fake = FakeCluster.of(cluster)
    with ExitStack() as stack:
        second, third = _networks(stack)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kr")))  # short: a socket's path is
        made = []
        for number, name in enumerate(names, 1):
            own = f"127.{second + number}.{third}."
            # All are on loopback here, also the clients.
            networks = {paths.LOOPBACK_NETWORK: f"{own}0/24", "10.0.0.": f"127.{second}.{third}.", "127.0.0.": own}
            arrived: list[str] = []
            fields: list[Mapping[str, str]] = []
            front = ThreadingHTTPServer(
                (f"{networks['127.0.0.']}1", paths.FRONTEND_PORT),
                type("Own", (_Frontend,), {"arrived": arrived, "fields": fields}),
            )
            stack.callback(front.server_close)
            threading.Thread(target=front.serve_forever, daemon=True).start()
            stack.callback(front.shutdown)
            _write(fake, name, folder / name, {**networks, **(instead or {})})
            with (folder / name / "stderr").open("wb") as said:
                process = subprocess.Popen(
                    [executable, "-db", "-f", folder / name / "etc/haproxy/haproxy.cfg"],
                    stdout=said, stderr=said, env={**os.environ, "INSTANCE": "1"},
                )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            host = fake.servers[name].host(fake.config.spec.node(name).address)
            address = host.address.replace("10.0.0.", networks["10.0.0."])
            made.append(Node(name, address, f"{networks['127.0.0.']}1", folder / name, process, arrived, fields))
        for one in made:
            _wait(one)
        yield made


def _networks(stack: ExitStack) -> tuple[int, int]:
    """The second and third numbers of addresses in 127 that no other test of this machine uses until *stack* ends."""
    claim = stack.enter_context(socket.socket(socket.AF_UNIX))
    while True:
        second, third = 8 * secrets.randbelow(24), secrets.randbelow(250)  # 127.0 to 127.191: clients come from above
        with suppress(OSError):
            claim.bind(f"\0kubeadm-registry-tests/127.{second}.{third}")  # abstract: it goes with its process
            return second, third


def _write(fake: FakeCluster, name: str, folder: Path, instead: dict[str, str]) -> None:
    """What the phase writes for HAProxy, with other paths, addresses and times."""
    cluster = fake.cluster
    host = next(one for one in cluster.hosts if one.name == name)
    (folder / "run").mkdir(parents=True)
    places = {paths.ETC: f"{folder}/etc", haproxy.RUN: f"{folder}/run", **instead}
    for step in (
        *haproxy.identity(cluster, host),
        *haproxy.install(cluster, host, single_writer=fake.config.spec.frontend.type == "zot"),
    ):
        if isinstance(step, File) and step.path.startswith(paths.ETC):
            text = step.content.decode()
            for old, new in places.items():
                text = text.replace(old, new)
            target = Path(step.path.replace(paths.ETC, places[paths.ETC]))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    authority = pki.Pair(cluster.secrets.ca_certificate, cluster.secrets.ca_key)
    pair = pki.issue(authority, name, (name,))
    Path(f"{folder}/etc/haproxy/node.pem").write_text(pair.certificate + pair.key)


def _wait(node: Node) -> None:
    end = time.monotonic() + 15
    while True:
        try:
            node.tell("show info")
            return
        except OSError as error:
            if node.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"HAProxy does not run: {node.log}") from error
            time.sleep(0.02)
