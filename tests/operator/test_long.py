"""What takes long: no API server for an hour, and ten minutes at rest. `make test-operator-long` runs it.

KUBEADM_REGISTRY_AWAY and KUBEADM_REGISTRY_REST are seconds (3600, 600), KUBEADM_REGISTRY_PODS how many pods there are
in the cluster meanwhile (50,000).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.access.executor import Progress, Seen
from kubeadm_registry.errors import Error
from kubeadm_registry.operator.leadership import Lost
from kubeadm_registry.operator.way import Way
from tests.lab.command import wait_until
from tests.operator.apiserver import ApiServer
from tests.operator.battery import changed, put
from tests.operator.conftest import ROOT
from tests.operator.replicas import OBJECTS, holder, replica
from tests.operator.site import VIP, Site
from tests.operator.test_rounds import DAY, POLICY, Operator, operator, plan, there  # noqa: F401  fixtures
from tests.operator.workloads import named, spec

AWAY = float(os.environ.get("KUBEADM_REGISTRY_AWAY", "3600"))
REST = float(os.environ.get("KUBEADM_REGISTRY_REST", "600"))
PODS = int(os.environ.get("KUBEADM_REGISTRY_PODS", "50000"))
#: What the operator may use at rest: bytes, and shares of a core.
MEMORY, CORE = 150_000_000, 0.05
#: Seconds until a replica that has just started has read all pods.
SETTLES = 120.0
TICK = os.sysconf("SC_CLK_TCK")

pytestmark = pytest.mark.long


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


def test_while_the_api_server_is_away_nobody_is_told_to_delete(
    operator: Operator,  # noqa: F811
    there: Site,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node()
    monkeypatch.setattr(Way, "nodes", lambda *_: [node])
    digest = there.push("team/used", "v1")
    there.push("team/app", "v1")
    pod = named("v1", "Pod", "web", "default", spec=spec(f"{VIP}:5000/team/used:v1"))
    policy = changed(POLICY, put("spec.approval", "Automatic"))
    assert operator.server.send("create", [policy, pod]).taken
    plan(operator)
    operator.now += 40 * DAY
    begun, rounds = time.monotonic(), 0
    with operator.server.away():
        while time.monotonic() - begun < AWAY:
            for each in (operator.rounds.health, operator.rounds.images, operator.rounds.plans, operator.rounds.space):
                with suppress(Error, Lost, OSError):
                    each()
            rounds += 1
            operator.now += 60
            assert node.orders == [], "nobody knows what is in use"
    wait_until("the API server to answer", lambda: operator.server.ask("get", "--raw=/readyz").taken, seconds=120)
    assert operator.leadership.attempt(), "nobody else has taken the lease"
    sys.stdout.write(f"\n  {rounds} rounds in {AWAY:.0f} s without an API server: no order\n")
    found = plan(operator)["status"]
    assert [one["repository"] for one in found["largest"]] == ["team/app"], "what is used stays"
    assert len(node.orders) == 1
    assert digest.encode() not in node.orders[0]


def used(pid: int) -> tuple[float, int]:
    """Seconds of a core that the process has used, and its bytes in memory (proc(5))."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return (int(words[11]) + int(words[12])) / TICK, pages * os.sysconf("SC_PAGESIZE")


def test_at_rest_the_operator_needs_little(adopted: ApiServer, tmp_path: Path) -> None:
    assert adopted.send("apply", list(OBJECTS)).taken
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.pods", str(adopted.port), "0", str(PODS)], cwd=ROOT, check=False
    )
    assert done.returncode == 0
    with replica(adopted, tmp_path, "one", HEALTH_SECONDS="30") as one:
        wait_until("it to lead", lambda: holder(adopted) == "one", seconds=60)
        time.sleep(min(SETTLES, REST))
        begun, (before, _) = time.monotonic(), used(one.process.pid)
        most = 0
        while time.monotonic() - begun < REST:
            most = max(most, used(one.process.pid)[1])
            time.sleep(1.0)
        share = (used(one.process.pid)[0] - before) / (time.monotonic() - begun)
    sys.stdout.write(f"\n  {PODS} pods, {REST:.0f} s at rest: {most / 1e6:.0f} MB at most, {share:.1%} of a core\n")
    assert most < MEMORY
    assert share < CORE
