"""What a healthy bare server answers to the checks of ``phases/preflight.py``; tests spoil one answer each."""

from __future__ import annotations

import json
import time

from kubeadm_registry.components import data, links
from kubeadm_registry.containerd import survey
from kubeadm_registry.phases import preflight
from tests.unit.fake_cluster import FakeCluster
from tests.unit.fakes import FakeTransport

DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"\n'
#: A containerd without a configuration of its own.
CONTAINERD = """\
LoadState=loaded
ActiveState=active
KillMode=process
InvocationID=1
ExecStart={ path=/usr/bin/containerd ; argv[]=/usr/bin/containerd ; ignore_errors=no }
Environment=
--
--
/usr/bin/containerd
containerd containerd.io 2.1.4 75cb2b7193e4e490e9fbdc236c0e811ccaba3376
"""
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
    server.answer("nft", "--check", "--file", "-")
    server.answer("ss", "-Hltunp", with_=SSHD)
    server.answer("cat", "--", *preflight._PORT_RANGE, with_="32768\t60999\n\n")
    server.answer("sh", "-c", preflight._INOTIFY, "inotify", with_="128\n23\n")
    server.answer("sh", "-c", preflight._PROC, "proc", with_="rw,nosuid,nodev,noexec,relatime 0 0\n")
    server.answer("sh", "-c", links.BLOCKED, "blocked")
    server.answer("sh", "-c", links.TOO_LARGE, "mtu")
    server.answer("sh", "-c", preflight._FREE, "free", with_=free("/", 200))
    server.answer("sh", "-c", data._KIND, "kind", with_="xfs\n")
    server.answer("date", "+%s.%N", with_=lambda *_: f"{time.time():.9f}\n")
    server.answer("sh", "-c", preflight._TIME, "time", with_="NTPSynchronized=yes\nrunning systemd-timesyncd\n")
    server.answer("sh", "-c", survey._ASK, "ask", survey.UNIT, with_=CONTAINERD)
    server.answer("sh", "-c", survey._SHOW, "show")
    server.answer("sh", "-c", survey._FIXED, "fixed")
    server.answer("systemctl", "is-active", "--", survey._EMBEDDED[0][1], with_="inactive\n" * len(survey._EMBEDDED))
    server.answer("sh", "-c", survey.FROM_ROOT, "dump", with_="version = 3\n")


def without_containerd(server: FakeTransport) -> None:
    server.answer("sh", "-c", survey._ASK, "ask", survey.UNIT)
    server.answer("sh", "-c", survey._SHOW, "show")


def neighbour(address: str) -> str:
    """What the kernel says of somebody who answered."""
    return json.dumps([{"dst": address, "dev": "eth0", "lladdr": "52:54:00:12:34:56", "state": ["REACHABLE"]}])
