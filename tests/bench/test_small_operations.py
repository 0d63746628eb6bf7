"""Small operations through the whole chain, by the VIP: HAProxy, frontend, three Garages.

Prints medians with and without quick acknowledgements, as a ratio of one run, and holds them to what is promised.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest

from kubeadm_registry import paths
from kubeadm_registry.oci import canary
from kubeadm_registry.registry import push_blob
from tests.lab import images
from tests.lab.registry import Registry

pytest_plugins = ["tests.lab.registry"]

ROUNDS = 40
#: Milliseconds, median, idle.
MANIFEST_GET = 15.0
MANIFEST_PUT = {"zot": 120.0, "distribution": 40.0}


def medians(registry: Registry) -> dict[str, float]:
    """The median time of each operation in milliseconds, from this machine, each on a connection kept open."""
    with registry.lab.network(), images.client(registry, role="push") as client:
        name, manifest = "bench/small", canary.MANIFEST
        for blob in (canary.LAYER, canary.CONFIG):
            push_blob(client, name, blob.digest, blob.content)
        times: dict[str, list[float]] = {}

        def measure(what: str, operation: Callable[[], object]) -> None:
            begin = time.perf_counter()
            operation()
            times.setdefault(what, []).append((time.perf_counter() - begin) * 1000)

        for number in range(ROUNDS):
            tag = f"t{number}"
            measure("manifest PUT", lambda: client.push_manifest(name, tag, manifest.content, manifest.media_type))  # noqa: B023
            measure("manifest GET", lambda: client.manifest(name, manifest.digest))
            measure("blob GET 128 KiB", lambda: client.blob(name, canary.LAYER.digest))
    return {what: statistics.median(values) for what, values in times.items()}


def without_quick_acknowledgements(registry: Registry) -> None:
    """Take the quick routes away, nothing else."""
    for host in registry.servers.values():
        host.sh("sh", "-c", "while ip rule del priority $1 2>/dev/null; do :; done", "-", str(paths.RPC_TABLE))
        address = paths.S3_ADDRESS
        host.sh("ip", "route", "replace", "local", address, "dev", "lo", "table", "local", "proto", "static", "scope",
                "host", "src", address)  # fmt: skip


def test_small_operations(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    quick = medians(registry)
    try:
        without_quick_acknowledgements(registry)
        slow = medians(registry)
    finally:
        for host in registry.servers.values():
            host.sh("systemctl", "restart", paths.unit("network"))
    with capsys.disabled():
        print(f"\n{registry.frontend}, medians of {ROUNDS}, milliseconds")
        for what, value in quick.items():
            print(f"  {what:<18} {value:7.1f}   without quick acknowledgements {slow[what]:7.1f}   "
                  f"ratio {slow[what] / value:5.1f}")  # fmt: skip
    assert quick["manifest GET"] < MANIFEST_GET
    assert quick["manifest PUT"] < MANIFEST_PUT[registry.frontend]
