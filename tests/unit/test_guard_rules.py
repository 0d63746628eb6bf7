"""The guard's rules in a real kernel: who answers on the services' loopback ports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kubeadm_registry import config, paths
from kubeadm_registry.engine.changes import File
from kubeadm_registry.phases import network
from tests.unit.fake_cluster import FakeCluster

#: Users of the services, which this machine does not have, and one that is not the registry's.
USERS = {paths.user(name): 64000 + n for n, name in enumerate(("haproxy", "agent", "zot", "distribution", "garage"))}
USERS[paths.user(paths.RETENTION_NAME)] = 64010
NOBODY = 65534

#: In a network of its own: as the user ``$3`` wait at ``$1:$2`` for who comes as root, and say what that one got.
ANSWER = """
import os, socket, subprocess, sys
address, port, user = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run(["ip", "address", "replace", "127.0.0.39/32", "dev", "lo"], check=True)
subprocess.run(["nft", "-f", sys.argv[4]], check=True, env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"})
ready, told = os.pipe()
child = os.fork()
if not child:
    os.setuid(user)
    with socket.create_server((address, port)) as listener:
        os.write(told, b"1")
        listener.accept()[0].sendall(b"answer")
    os._exit(0)
os.read(ready, 1)
try:
    with socket.create_connection((address, port), 1) as wire:
        print(wire.recv(6).decode())
except OSError:
    print("nothing")
finally:
    os.kill(child, 9)
"""

DOORS = {
    ("zot", "frontend"): (paths.LOOPBACK, paths.FRONTEND_PORT, "zot"),
    ("distribution", "frontend"): (paths.LOOPBACK, paths.FRONTEND_PORT, "distribution"),
    ("zot", "storage"): (paths.S3_ADDRESS, paths.S3_PORT, "garage"),
    ("zot", "admin"): (paths.LOOPBACK, paths.ADMIN_PORT, "garage"),
}


@pytest.mark.skipif(
    (os.geteuid() != 0 or not shutil.which("nft", path="/usr/sbin:/sbin")) and "CI" not in os.environ,
    reason="needs root and nft",
)
@pytest.mark.parametrize("door", DOORS, ids=" ".join)
def test_nobody_answers_in_place_of_a_service(door: tuple[str, str], tmp_path: Path) -> None:
    """As on a port that is free for as long as the service is restarted."""
    frontend, _ = door
    cluster = FakeCluster.of(f"{config.SMALLEST}  frontend: {{type: {frontend}}}\n").cluster
    steps = network.install(cluster, cluster.leader)
    text = next(one.content.decode() for one in steps if isinstance(one, File) and one.path == paths.GUARD)
    rules = tmp_path / "guard.nft"
    rules.write_text(re.sub(rf"{paths.PREFIX}-\w+", lambda found: str(USERS.get(found[0], found[0])), text))

    def answer(user: int) -> str:
        address, port, _ = DOORS[door]
        command = ["unshare", "--net", sys.executable, "-I", "-c", ANSWER, address, str(port), str(user), str(rules)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert answer(USERS[paths.user(DOORS[door][2])]) == "answer"
    assert [answer(user) for user in (NOBODY, USERS[paths.user("haproxy")])] == ["nothing"] * 2
