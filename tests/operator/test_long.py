"""What takes long: no API server for an hour, and ten minutes at rest. `make test-operator-long` runs it.

KUBEADM_REGISTRY_AWAY and KUBEADM_REGISTRY_REST are seconds (3600, 600), KUBEADM_REGISTRY_PODS how many pods there are
in the cluster meanwhile (50,000).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from kubeadm_registry.errors import Error
from kubeadm_registry.operator.leadership import Lost
from kubeadm_registry.operator.way import Way
from tests.lab.command import wait_until
from tests.operator.apiserver import ApiServer
from tests.operator.battery import changed, put
from tests.operator.conftest import ROOT
from tests.operator.helpers import helpers
from tests.operator.replicas import OBJECTS, Replica, holder, replica
from tests.operator.site import VIP, Node, Site
from tests.operator.test_leading import page
from tests.operator.test_rounds import DAY, POLICY, Operator, operator, plan, there  # noqa: F401  fixtures
from tests.operator.workloads import named, spec

AWAY = float(os.environ.get("KUBEADM_REGISTRY_AWAY", "3600"))
REST = float(os.environ.get("KUBEADM_REGISTRY_REST", "600"))
PODS = int(os.environ.get("KUBEADM_REGISTRY_PODS", "50000"))
#: What the operator may use at rest: bytes, and shares of a core.
MEMORY, CORE = 150_000_000, 0.05
#: Seconds until a replica that has just started has read all pods.
SETTLES = 120.0
#: How many images the registry has, and what the operator does.
IMAGES = 100
ROUNDS = ("health", "images", "plans", "approvals", "space", "replacement", "certificates", "clients")
TICK = os.sysconf("SC_CLK_TCK")

pytestmark = pytest.mark.long


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
    """Seconds of a core that the process and what it ran have used, and its bytes in memory (proc(5))."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return sum(map(int, words[11:15])) / TICK, pages * os.sysconf("SC_PAGESIZE")


def ended(one: Replica) -> dict[str, float]:
    """When the last round of each kind ended well."""
    found = re.findall(r'round_ended_seconds\{round="(.*)"\} (\S+)', page(one, "metrics"))
    return {kind: float(when) for kind, when in found}


def test_at_rest_the_operator_needs_little(
    adopted: ApiServer,
    there: Site,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Health and replacement are looked at as often as by default. Each other round comes at least once in the time:
    plans much more often than by default, which is once an hour."""
    often = str(min(300.0, REST / 2))
    for number in range(IMAGES):
        there.push(f"team/app-{number}", "v1")
    assert adopted.send("apply", [*OBJECTS, POLICY]).taken
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.pods", str(adopted.port), "0", str(PODS)], cwd=ROOT, check=False
    )
    assert done.returncode == 0
    with helpers(there), replica(
        adopted, tmp_path, "one", site=there,
        HEALTH_SECONDS="30", IMAGES_SECONDS=often, PLANS_SECONDS=often, SPACE_SECONDS=often, CERTIFICATES_SECONDS=often,
        LEASE_SECONDS="15",
    ) as one:  # fmt: skip
        wait_until("it to lead", lambda: holder(adopted) == "one", seconds=60)
        wait_until("the first rounds to end", lambda: set(ROUNDS) <= ended(one).keys(), seconds=SETTLES)
        time.sleep(min(SETTLES, REST))
        started, begun, (before, _) = time.time(), time.monotonic(), used(one.process.pid)
        most = 0
        while time.monotonic() - begun < REST:
            assert one.is_running
            most = max(most, used(one.process.pid)[1])
            time.sleep(1.0)
        share = (used(one.process.pid)[0] - before) / (time.monotonic() - begun)
        last = ended(one)
        text = page(one, "metrics")
    sys.stdout.write(f"\n  {PODS} pods, {REST:.0f} s at rest: {most / 1e6:.0f} MB at most, {share:.1%} of a core\n")
    assert "errors_total" not in text, one.log
    assert min(last.values()) > started, "each has done a round meanwhile"
    assert most < MEMORY
    assert share < CORE
