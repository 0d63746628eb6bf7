"""What `status` says of real servers: where blocks are, what moved and why, and that while one loses its power."""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
from typing import Any

import pytest

from kubeadm_registry.components.garage import ADMIN_TOKEN
from tests.lab import images
from tests.lab.command import wait_until
from tests.lab.faults import BLOCKS
from tests.lab.registry import Registry

pytest_plugins = ["tests.lab.registry"]
#: Run by `make day-two`.
pytestmark = pytest.mark.long

SIZES = (3 * 2**20, 64 * 1024, 2000)
"""Of the layers: several blocks of the storage, one block, and one that the storage keeps in its tables."""


COUNT = """
import http.client, sys, time
token = open(sys.argv[1]).read().strip()
begin = time.monotonic()
for _ in range(50):
    wire = http.client.HTTPConnection("127.0.0.1", 3903)
    wire.request("GET", "/v2/GetNodeStatistics?node=self", headers={"Authorization": f"Bearer {token}"})
    assert wire.getresponse().read()
print((time.monotonic() - begin) / 50)
"""
"""Asks Garage what the agent asks every ten seconds, fifty times; the seconds for one."""


def say(text: str) -> None:
    """Show a figure."""
    sys.stdout.write(f"\n  {text}\n")


def status(registry: Registry, *arguments: str, code: int = 0) -> dict[str, Any]:
    """What `status` says, which ends with *code*."""
    result = registry.cli("status", *arguments, "-o", "json", check=False)
    assert result.returncode == code, result.stdout + result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_each_node_says_what_it_counts_and_what_it_costs_to_ask(registry: Registry) -> None:
    registry.wait_whole()

    def counted() -> bool:
        return all("errors" in node.get("toHeal", {}) for node in status(registry)["nodes"])

    wait_until("the agents count", counted, seconds=30)
    for node in status(registry)["nodes"]:
        assert node["toHeal"] == {"blocks": 0, "bytes": 0, "tables": 0, "errors": 0, "entries": 0}
        assert 0 < node["disk"]["free"] <= node["disk"]["size"]
        assert node["clockOff"] < 0.5
    host = registry.holder()
    ticks = 100

    def cpu(unit: str) -> float:
        pid = host.sh("systemctl", "show", "-P", "MainPID", registry.unit(unit)).stdout.strip()
        fields = host.sh("cat", f"/proc/{pid}/stat").stdout.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    before, begin = {name: cpu(name) for name in ("agent", "garage")}, time.monotonic()
    time.sleep(20)
    seconds = time.monotonic() - begin
    shares = ", ".join(f"{name} {(cpu(name) - used) / seconds:.1%}" for name, used in before.items())
    begin = time.monotonic()
    status(registry)
    asked = float(host.sh("python3", "-c", COUNT, ADMIN_TOKEN).stdout)
    say(f"{registry.frontend}: to count takes Garage {asked * 1000:.2f} ms")
    say(f"{registry.frontend}: idle, of a core: {shares}; status took {time.monotonic() - begin:.1f} s")


def test_where_the_blocks_of_an_image_are_is_seen_on_the_disks(registry: Registry) -> None:
    image = images.image(SIZES, seed=time.time_ns())
    images.push(registry, image, "status/image")
    registry.wait_copied()
    begin = time.monotonic()
    found = status(registry, "--images")
    say(f"{registry.frontend}: status --images of {len(found['images'])} images took {time.monotonic() - begin:.1f} s")
    [told] = [one for one in found["images"] if one["name"].startswith("status/image")]
    assert (sorted(told["complete"]), told["copies"], told["missing"]) == (sorted(registry.servers), 3, {})
    assert told["size"] >= 3 * 2**20 + 64 * 1024
    [*_, victim] = registry.servers.values()
    listed = victim.sh("find", BLOCKS, "-type", "f", "-size", "1024k").stdout.split()
    assert listed
    try:
        for path in listed:
            victim.sh("mv", path, f"{path}.away")
        found = status(registry, "--images", code=5)
    finally:
        for path in listed:
            victim.sh("mv", f"{path}.away", path)
    [told] = [one for one in found["images"] if one["name"].startswith("status/image")]
    assert victim.name not in told["complete"]
    assert (told["copies"], told["missing"]) == (2, {victim.name: 3 * 2**20})
    assert found["conditions"][-1]["reason"] == "CopiesMissing"
    assert status(registry, "--images")["conditions"][-1]["status"] == "True"


def test_a_holder_that_loses_its_power_is_a_failover_with_cause_and_length(registry: Registry) -> None:
    registry.wait_whole()
    victim = registry.holder()
    watch = registry.popen("status", "--watch", "1", "-o", "json")
    rounds: list[dict[str, Any]] = []
    assert watch.stdout is not None

    def read() -> dict[str, Any]:
        assert watch.stdout is not None
        rounds.append(json.loads(watch.stdout.readline()))
        return rounds[-1]

    try:
        assert read()["vip"]["holder"] == victim.name
        begin = time.time()
        victim.power_cut()
        wait_until("another holder", lambda: read()["vip"]["holder"] not in (None, victim.name), seconds=60, every=0)
        time.sleep(5)  # the lease follows
        watch.send_signal(signal.SIGINT)
        rest, errors = watch.communicate(timeout=30)
    finally:
        watch.kill()
    rounds += [json.loads(line) for line in rest.splitlines()]
    assert (watch.returncode, errors) == (5, "")
    assert max(time_of(after) - time_of(before) for before, after in itertools.pairwise(rounds)) <= 5
    found = status(registry, code=5)
    of_vip, of_lease = (
        next(one for one in found["failovers"] if one["what"] == what and time_of(one) >= begin - 2)
        for what in ("vip", "lease")
    )
    say(f"{registry.frontend}: without the VIP {of_vip['seconds']} s, the lease {of_lease['seconds']} s")
    assert (of_vip["from"], of_vip["to"]) == (victim.name, found["vip"]["holder"])
    assert of_vip["cause"].startswith(f"no heartbeat of {victim.name} for ")
    assert 0.2 <= of_vip["seconds"] <= 2
    assert of_lease["from"] == victim.name and of_lease["seconds"] >= of_vip["seconds"]
    victim.power_on()
    registry.wait_whole(90)
    registry.wait_copied()
    moved = status(registry, code=0)["failovers"]
    assert next(one for one in moved if one["what"] == "vip")["to"] == registry.holder().name


def time_of(told: dict[str, Any]) -> float:
    """The moment in seconds since 1970."""
    return time.mktime(time.strptime(told["time"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone


def test_a_planned_stop_of_the_agent_is_told_as_one(registry: Registry) -> None:
    registry.wait_whole()
    holder = registry.holder()
    try:
        holder.sh("systemctl", "stop", registry.unit("agent"))
        wait_until("another holder", lambda: registry.holders() not in ([], [holder.name]), seconds=20)
        found = status(registry, code=5)
        newest = next(one for one in found["failovers"] if one["what"] == "vip")
        assert (newest["from"], newest["cause"]) == (holder.name, f"the agent of {holder.name} stopped")
    finally:
        holder.sh("systemctl", "start", registry.unit("agent"))
    registry.wait_whole()
