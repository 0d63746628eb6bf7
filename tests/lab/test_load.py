"""Full load is not a fault: no VIP move, no reset, no failed read and no failed push while both cores are busy.

Runs for KUBEADM_REGISTRY_LOAD_SECONDS, 600 unless told otherwise: by `make soak`.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from kubeadm_registry import paths
from kubeadm_registry.oci import canary
from tests.lab import images
from tests.lab.reading import Object, reading
from tests.lab.registry import Registry

pytest_plugins = ["tests.lab.registry"]

SECONDS = float(os.environ.get("KUBEADM_REGISTRY_LOAD_SECONDS") or 600)
LAYERS = (40_000_000, 40_000_000)
ENDINGS = ("read_resets", "connections_ended", "kills", "fences")
"""What an agent counts of the connections and processes that it ended."""


class Clients:
    """Programs that push or pull one after another until told to stop; what failed is kept."""

    def __init__(self, registry: Registry, directory: Path) -> None:
        self.registry, self.directory = registry, directory
        self.failures: list[str] = []
        self.done = {"push": 0, "pull": 0}
        self.stop = threading.Event()
        trust = directory / "trust"
        trust.mkdir()
        (trust / "ca.crt").write_bytes(registry.ca.read_bytes())
        self.trust = str(trust)
        login = registry.login()
        self.auth = str(directory / "auth.json")
        registry.lab.run(
            "skopeo", "login", "--authfile", self.auth, "--cert-dir", self.trust, "--username", login.username,
            "--password-stdin", f"{registry.vip}:{paths.REGISTRY_PORT}", stdin=login.password,
        )  # fmt: skip

    def name(self, number: int) -> str:
        return f"docker://{self.registry.vip}:{paths.REGISTRY_PORT}/load/client-{number}:latest"

    def push(self, number: int) -> None:
        turn = 0
        while not self.stop.is_set():
            turn += 1
            with tempfile.TemporaryDirectory(dir=self.directory) as scratch:
                what = images.image(LAYERS, seed=time.time_ns())
                layout = what.write_layout(Path(scratch) / "image")
                self._run("push", "--dest-cert-dir", self.trust, f"oci:{layout}:latest", self.name(number))

    def pull(self, number: int) -> None:
        while not self.stop.is_set():
            with tempfile.TemporaryDirectory(dir=self.directory) as scratch:
                self._run("pull", "--src-cert-dir", self.trust, self.name(number), f"dir:{scratch}/image")

    def _run(self, kind: str, *words: str) -> None:
        argv = self.registry.lab.argv("skopeo", "copy", "--quiet", "--insecure-policy", "--authfile", self.auth, *words)
        result = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
        self.done[kind] += 1
        if result.returncode:
            self.failures.append(f"{kind}: {result.stderr.strip()[-300:]}")


@pytest.mark.long
def test_full_load_is_not_a_fault(registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry.wait_whole(90)
    holder = registry.holder()
    before = {host.name: registry.state(host)["done"] for host in registry.servers.values()}
    begun = time.time()
    clients = Clients(registry, tmp_path)
    what = images.image(LAYERS, seed=1)
    for number in (1, 2):
        images.push(registry, what, f"load/client-{number}")
    work = [threading.Thread(target=clients.push, args=(n,)) for n in (1, 2)]
    work += [threading.Thread(target=clients.pull, args=(n,)) for n in (1, 2)]
    seen = Object(canary.REPOSITORY, canary.MANIFEST.digest, canary.LAYER.digest)
    moves = 0
    with reading(registry, seen, period=0.2) as result:
        for thread in work:
            thread.start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            moves += registry.holders() != [holder.name]
            time.sleep(1)
        clients.stop.set()
        for thread in work:
            thread.join(timeout=300)
    after = {host.name: registry.state(host)["done"] for host in registry.servers.values()}
    with capsys.disabled():
        print(f"\n{registry.frontend}, {SECONDS:.0f} s of load: {clients.done}, failed {clients.failures or 'none'}")
        print(f"reads beside it: {result}; VIP away {moves} times")
        for name, values in after.items():
            changed = {key: (before[name].get(key), one) for key, one in values.items() if before[name].get(key) != one}
            print(f"{name}: {changed or 'nothing was ended'}")
        if clients.failures or result.failed or moves:
            print(registry.journals(begun))
    assert clients.done["push"] > 4
    assert not clients.failures
    assert not result.failed
    assert not moves
    ended = {
        name: {key: (before[name][key], values[key]) for key in ENDINGS if before[name][key] != values[key]}
        for name, values in after.items()
    }
    assert not any(ended.values()), ended
