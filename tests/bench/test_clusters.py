"""Reading what a large cluster uses: processor time that grows with the pods, and memory that does not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.bench.bundles import MB
from tests.bench.memory import ROOT, told
from tests.bench.pods import IMAGES
from tests.lab.programs import cached
from tests.operator.apiserver import ApiServer, running

PODS = 20_000
#: Seconds of processor time for 10,000 pods; bytes, of which most are the kubernetes client's; and their growth from
#: half of the pods to all.
MOST_SECONDS, MOST_MEMORY, FLAT = 3.0, 120 * MB, 10 * MB
#: Containers of a pod.
_EACH = 3


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """An API server without anything."""
    if missing := [name for name in ("etcd", "kube-apiserver", "kubectl") if not cached(name)]:
        pytest.skip(f"not built yet: {', '.join(missing)}; make test-operator builds them")
    with running() as found:
        yield found


def fill(server: ApiServer, first: int, count: int) -> None:
    """Write pods by two processes."""
    port, half = str(urlsplit(server.url).port), count // 2
    parts = ((first, half), (first + half, count - half))
    writers = [
        subprocess.Popen([sys.executable, "-m", "tests.bench.pods", port, str(begin), str(number)], cwd=ROOT)
        for begin, number in parts
    ]
    assert [writer.wait() for writer in writers] == [0, 0]


def measured(server: ApiServer, pods: int) -> tuple[dict[str, Any], int]:
    """What a fresh process says of *pods*, and the most bytes that it has in memory."""
    printed, memory = told("tests.bench.cluster", server.kubeconfig())
    found: dict[str, Any] = json.loads(printed)
    assert found["images"] == _EACH * pods
    assert found["uses"] == IMAGES
    return found, memory


def test_many_pods(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    fill(server, 0, PODS // 2)
    half, half_memory = measured(server, PODS // 2)
    fill(server, PODS // 2, PODS // 2)
    whole, memory = measured(server, PODS)
    with capsys.disabled():
        for pods, found, most in ((PODS // 2, half, half_memory), (PODS, whole, memory)):
            print(
                f"\n  {pods} pods: {found['cpu']:.2f} s of processor time, {found['seconds']:.1f} s in all, "
                f"{most / MB:.0f} MB"
            )
    assert whole["cpu"] < MOST_SECONDS * PODS / 10_000
    assert memory < MOST_MEMORY
    assert memory < half_memory + FLAT
