"""A containerd that pulls images all the time, as a kubelet's does, and notes what became of each pull."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.host import Host
from tests.lab.registry import Registry

CERTS = "/etc/containerd/certs.d"
#: Seconds that one pull may take.
PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class Pull:
    """One pull: the image, when it began (seconds since 1970), how long it took, and what went wrong."""

    name: str
    begin: float
    seconds: float
    error: str


@dataclass
class Pulls:
    """All of them, once the ``with`` has ended."""

    done: list[Pull] = field(default_factory=list)
    struck: float = 0.0
    """When the VIP holder died, if it did."""

    @property
    def failed(self) -> list[Pull]:
        """Those that containerd gave up."""
        return [one for one in self.done if one.error]

    @property
    def lost(self) -> list[Pull]:
        """Those of them that began after the VIP holder died; of the others only their client can get the rest."""
        return [one for one in self.failed if one.begin > self.struck]

    def __str__(self) -> str:
        slowest = max((one.seconds for one in self.done), default=0.0)
        return f"containerd: {len(self.failed)} of {len(self.done)} pulls failed, slowest {slowest:.1f} s"


def configure(registry: Registry) -> None:
    """Give the client's containerd the hosts files of a server."""
    server, client = next(iter(registry.servers.values())), registry.client
    for path in server.sh("find", CERTS, "-type", "f").stdout.split():
        client.sh("mkdir", "-p", str(Path(path).parent))
        client.sh("sh", "-c", 'cat > "$1"', "-", path, stdin=server.sh("cat", path).stdout)


@contextmanager
def pulling(host: Host, names: Sequence[str]) -> Iterator[Pulls]:
    """Pull *names* one after another on *host*, each from nothing, for the length of a ``with``."""
    pulls, ended = Pulls(), threading.Event()

    def go() -> None:
        number = 0
        while not ended.is_set():
            name = names[number % len(names)]
            host.sh("ctr", "images", "rm", "--sync", name, check=False)
            host.sh("ctr", "content", "prune", "references", check=False)
            wall, begin = time.time(), time.monotonic()
            argv = host.sh_argv("ctr", "images", "pull", "--local", "--hosts-dir", CERTS, name)
            try:
                result = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
                error = "" if result.returncode == 0 else (result.stderr.strip() or f"exit {result.returncode}")[-300:]
            except subprocess.TimeoutExpired:
                error = f"not done within {PATIENCE:.0f} s"
            pulls.done.append(Pull(name, wall, time.monotonic() - begin, error))
            number += 1

    worker = threading.Thread(target=go)
    worker.start()
    try:
        yield pulls
    finally:
        ended.set()
        worker.join()
