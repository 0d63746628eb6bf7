"""A registry alone, on loopback in a network namespace of its own: what stands between it and a client is known.

It keeps its files in memory where the machine allows it, speaks TLS with a certificate of the test, and wants no login.
The kernel counts the bytes that reach its port. A proxy in front of it adds a round trip where one is wanted.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from kubeadm_registry import pki
from kubeadm_registry.bundle import Bundle
from kubeadm_registry.bundle.make import choose, create
from kubeadm_registry.registry import Registry
from tests.lab import programs
from tests.lab.command import LabError, cache, locked, run, say, unwinding, wait_until
from tests.lab.network import Network

ADDRESS, PORT, FAR_PORT = "127.0.0.1", 5000, 5001
ROOT = Path(__file__).parents[2]
_COUNTER = f"""
table inet bench {{
  counter taken {{}}
  chain input {{ type filter hook input priority 0; tcp dport {PORT} counter name taken; }}
}}
"""
_MEMORY = Path("/dev/shm")
_numbers = itertools.count()


class Loopback:
    """A registry of *kind*, ``distribution`` or ``zot``, that lies *milliseconds* of round trip away."""

    def __init__(self, kind: str, directory: Path, milliseconds: float) -> None:
        self.kind = kind
        self.milliseconds = milliseconds
        self.port = FAR_PORT if milliseconds else PORT
        self.network = Network(f"bench-{os.getpid()}-{next(_numbers)}")
        self.data = directory / "data"
        self.ca = directory / "ca.crt"
        self._log = directory / "log"
        ca = pki.make_ca("bench")
        pair = pki.issue(ca, "bench", (ADDRESS, "localhost"))
        for name, text in {"ca.crt": ca.certificate, "tls.crt": pair.certificate, "tls.key": pair.key}.items():
            (directory / name).write_text(text)
        self._argv = {"distribution": _distribution, "zot": _zot}[kind](directory, self.data)
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the registry, and wait until it answers."""
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(self.network.argv(*self._argv), stdout=log, stderr=log)
        wait_until(f"{self.kind} to answer ({self._log})", self._listens, seconds=20, every=0.02)

    def stop(self) -> None:
        """End the registry."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
        self._server = None

    def empty(self) -> None:
        """Let it begin anew without any image."""
        self.stop()
        shutil.rmtree(self.data, ignore_errors=True)
        self.start()

    def connect(self) -> Registry:
        """A client, for a thread in the registry's network; without the round trip."""
        return Registry(ADDRESS, PORT, ca=self.ca.read_text(), timeout=60)

    def taken(self) -> int:
        """Bytes that have reached the registry's port until now, with the headers of IP and TCP."""
        found = json.loads(self.network.run("nft", "-j", "list", "counter", "inet", "bench", "taken"))
        return int(next(one["counter"]["bytes"] for one in found["nftables"] if "counter" in one))

    def _listens(self) -> bool:
        with self.network.entered(), contextlib.suppress(OSError):
            socket.create_connection((ADDRESS, PORT), timeout=1).close()
            return True
        return False


@contextlib.contextmanager
def loopback(kind: str, *, milliseconds: float = 0, where: Path | None = None) -> Iterator[Loopback]:
    """A registry, gone without a trace at the end; *milliseconds* of a round trip are added at its port.

    It keeps its files in memory, or below *where*.
    """
    if where is None and _MEMORY.is_dir():
        where = _MEMORY
    with unwinding(), contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir=where))
        registry = Loopback(kind, Path(directory), milliseconds)
        stack.callback(registry.network.down)  # and all that runs in it
        run("ip", "netns", "add", registry.network.name)
        registry.network.run("ip", "link", "set", "lo", "up")
        registry.network.run("nft", "-f", "-", stdin=_COUNTER)
        stack.callback(registry.stop)
        registry.start()
        if milliseconds:
            argv = [sys.executable, "-m", "tests.bench.far", str(FAR_PORT), str(PORT), str(milliseconds)]
            far = stack.enter_context(subprocess.Popen(registry.network.argv(*argv), cwd=ROOT, stdout=subprocess.PIPE))
            stack.callback(far.kill)
            assert far.stdout is not None
            if far.stdout.readline() != b"ready\n":
                raise LabError("the proxy that adds a round trip does not start")
        yield registry


def _distribution(directory: Path, data: Path) -> list[str | Path]:
    """The command of Distribution 2.8 of Debian 13, as bundles have it, with its own loader and libraries."""
    tree = _tree()
    config = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "http": {
            "addr": f"{ADDRESS}:{PORT}", "secret": "bench", "relativeurls": True,
            "tls": {"certificate": str(directory / "tls.crt"), "key": str(directory / "tls.key")},
        },
        "storage": {
            "filesystem": {"rootdirectory": str(data)}, "cache": {"blobdescriptor": "inmemory"},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
    }  # fmt: skip
    (directory / "config.yml").write_text(yaml.safe_dump(config))
    loader = next((tree / "lib").glob("ld-linux*"))
    program = tree / "bin" / "docker-registry"
    return [loader, "--library-path", tree / "lib", program, "serve", directory / "config.yml"]


def _tree() -> Path:
    """The tree of Distribution, made once and kept."""
    target = cache() / "build" / "bench-distribution"
    with locked(target.with_suffix(".lock")):
        if not target.exists():
            say("making Distribution from Debian's package, half a minute, once")
            with tempfile.TemporaryDirectory(dir=target.parent) as directory:
                file, layer, new = (Path(directory, name) for name in ("bundle.tar", "layer.tar.gz", "tree"))
                create(file, choose(("distribution",), {}, {}))
                with Bundle.open(file) as bundle:
                    bundle.extract(bundle.programs["distribution"], layer)
                with tarfile.open(layer) as archive:
                    archive.extractall(new, filter="data")
                new.rename(target)
    return target


def _zot(directory: Path, data: Path) -> list[str | Path]:
    """The command of the zot that KUBEADM_REGISTRY_ZOT names."""
    binary = programs.zot()
    if binary is None:
        raise LabError("there is no zot: let KUBEADM_REGISTRY_ZOT name one")
    config = {
        "distSpecVersion": "1.1.1",
        "storage": {"rootDirectory": str(data), "dedupe": False, "gc": False},
        "http": {
            "address": ADDRESS, "port": str(PORT),
            "tls": {"cert": str(directory / "tls.crt"), "key": str(directory / "tls.key")},
        },
        "log": {"level": "error"},
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    return [binary, "serve", directory / "config.json"]
