"""What a healthy bare server answers to the checks of ``phases/preflight.py``; tests spoil one answer each."""

from __future__ import annotations

import json
import time

from kubeadm_registry.phases import preflight
from tests.unit.fake_cluster import FakeCluster
from tests.unit.fakes import FakeTransport

DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"\n'
SSHD = 'tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=411,fd=3))\n'


def free(mount: str, gib: float) -> str:
    """df's line of a file system with *gib* GiB of room."""
    return f"/dev/sda1 {500 * 2**30} 0 {round(gib * 2**30)} 1% {mount}\n"


def healthy(fake: FakeCluster) -> FakeCluster:
    """Give every server of *fake* good answers."""
    for server in fake.servers.values():
        answer_all(server)
        for address in fake.config.spec.vip.addresses:
            server.answer("ip", "neigh", "flush", "to", address)
            server.answer("bash", "-c", preflight._KNOCK, "knock", address, with_=1)
    return fake


def answer_all(server: FakeTransport) -> None:
    server.put("/etc/os-release", DEBIAN)
    server.answer("uname", "-m", with_="x86_64\n")
    server.answer("sh", "-c", preflight._MISSING, "tools", *preflight.TOOLS)
    server.answer("sh", "-c", preflight._DIAG_DESTROY, with_="CONFIG_INET_DIAG_DESTROY=y\n")
    server.answer("ss", "-Hltunp", with_=SSHD)
    server.answer("sh", "-c", preflight._FREE, "free", with_=free("/", 200))
    server.answer("date", "+%s.%N", with_=lambda *_: f"{time.time():.9f}\n")


def neighbour(address: str) -> str:
    """What the kernel says of somebody who answered."""
    return json.dumps([{"dst": address, "dev": "eth0", "lladdr": "52:54:00:12:34:56", "state": ["REACHABLE"]}])
