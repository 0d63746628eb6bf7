"""Pulls are recorded by the proxies' lines in the journal of real servers, and what may be lacking is said."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest

from kubeadm_registry.components import pulls
from tests.lab import images
from tests.lab.command import wait_until
from tests.lab.host import Host
from tests.lab.registry import Registry

pytest_plugins = ["tests.lab.registry"]
#: Run by `make day-two`.
pytestmark = pytest.mark.long

REPOSITORY = "pulls/image"
POLICY = """
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryPolicy
spec:
  grace: 1m
  sets: []
  rules:
    - {name: all, repositories: ["**"], keep: {pulledWithin: 30d}}
"""


def say(text: str) -> None:
    """Show a figure."""
    sys.stdout.write(f"\n  {text}\n")


def record(host: Host) -> dict[str, Any]:
    """What *host* has recorded, up to now: a recorder that is ended reads what is new."""
    host.sh("systemctl", "restart", pulls.UNIT)
    found: dict[str, Any] = json.loads(host.sh("cat", pulls.RECORD).stdout)
    return found


#: Asks host ``1`` for path ``3`` by method ``2`` and one connection, ``4`` times; prints the last status.
ASK = """
import http.client, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
host, method, path, count = sys.argv[1:]
wire = http.client.HTTPSConnection(host, 5000, context=context, timeout=30)
for number in range(int(count)):
    wire.request(method, path)
    answer = wire.getresponse()
    answer.read()
print(answer.status)
"""


def ask(registry: Registry, host: str, path: str, *, method: str = "GET", count: int = 1) -> str:
    """The status that a client without a login gets for *path* below /v2/ by the address *host*."""
    return registry.client.sh("python3", "-c", ASK, host, method, f"/v2/{path}", str(count), timeout=120).stdout.strip()


def pull(registry: Registry, host: Host, reference: str, *, method: str = "GET", count: int = 1) -> None:
    """Ask the door of *host* for a manifest."""
    assert ask(registry, host.address, f"{REPOSITORY}/manifests/{reference}", method=method, count=count) == "200"


def test_what_a_client_pulls_is_recorded_where_it_pulled_and_what_we_read_is_not(registry: Registry) -> None:
    registry.wait_whole()
    image = images.image(seed=time.time_ns())
    images.push(registry, image, REPOSITORY, tag="v1")
    one, other = registry.holder(), registry.others(registry.holder())[0]
    since = record(one)["since"]
    registry.cli("images", "check")
    assert REPOSITORY not in record(one)["pulls"]
    pull(registry, one, "v1", method="HEAD")
    pull(registry, one, image.digest)
    pull(registry, other, "v1")
    today = int(time.time()) // 86400
    assert record(one)["pulls"][REPOSITORY] == {"v1": today, image.digest: today}
    assert record(other)["pulls"][REPOSITORY] == {"v1": today}
    assert record(one)["since"] == since, "a recorder that was restarted lacks nothing"
    (registry.directory / "policy.yaml").write_text(POLICY)
    plan = registry.cli("retention", "plan", "--policy", "policy.yaml", "--no-cluster", "-o", "json")
    assert "pulls are not known" not in plan.stdout + plan.stderr
    assert "pulls are recorded for a shorter time" in plan.stdout


AGAIN_IN = "pulls/again"
AGAIN = """
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryPolicy
metadata: {name: again}
spec:
  approval: Automatic
  maximumShare: 100
  grace: 1m
  sets: []
  rules:
    - {name: again, repositories: ["pulls/again"], keep: {newest: 1}}
"""


def test_what_a_client_asks_for_in_vain_comes_back_from_the_trash(registry: Registry) -> None:
    registry.wait_whole()
    (registry.directory / "again.yaml").write_text(AGAIN)
    run = ("retention", "run", "--policy", "again.yaml", "--no-cluster")
    versions = [images.image(seed=time.time_ns() + number) for number in range(3)]
    for number, version in enumerate(versions):
        images.push(registry, version, AGAIN_IN, tag=f"v{number}")
        registry.cli("retention", "plan", "--policy", "again.yaml", "--no-cluster")

    def asks(tag: str) -> str:
        """The status that a client gets by the virtual IP."""
        return ask(registry, registry.vip, f"{AGAIN_IN}/manifests/{tag}")

    def both_are_gone() -> bool:
        registry.cli(*run)
        waiting = [one for one in registry.json("retention", "trash")[-1]["images"] if one["repository"] == AGAIN_IN]
        return len(waiting) == 2

    wait_until("what is older than a minute to go", both_are_gone, seconds=180, every=10)
    assert [asks(tag) for tag in ("v0", "v0", "v7", "v2")] == ["404", "404", "404", "200"]
    for host in registry.servers.values():
        record(host)  # up to now
    assert "1 restored" in registry.cli(*run).stdout
    assert [asks(tag) for tag in ("v0", "v1")] == ["200", "404"]
    [line] = [line for line in registry.json("retention", "history")[-1]["runs"][-1]["said"] if "restored" in line]
    assert "used by a pull by " in line
    assert "nothing to do" in registry.cli(*run).stdout, "it stays, since it is in use"
    # As the timer of retention may read it.
    folder = pulls.RECORD.rpartition("/")[0]
    for host in registry.servers.values():
        assert host.sh("stat", "-c", "%G %a", folder, pulls.RECORD, pulls.POSITION).stdout.splitlines() == [
            f"{pulls.USER} 750", f"{pulls.USER} 640", f"{pulls.USER} 640",
        ]  # fmt: skip


def test_nothing_is_deleted_while_a_node_is_away(registry: Registry) -> None:
    registry.wait_whole()
    (registry.directory / "again.yaml").write_text(AGAIN)
    run = ("retention", "run", "--policy", "again.yaml", "--no-cluster")
    for tag in ("w0", "w1"):
        images.push(registry, images.image(seed=time.time_ns()), AGAIN_IN, tag=tag)
        registry.cli("retention", "plan", "--policy", "again.yaml", "--no-cluster")

    def in_trash() -> bool:
        return any("w0" in one["tags"] for one in registry.json("retention", "trash")[-1]["images"])

    def refused() -> bool:
        result = registry.cli(*run, check=False)
        assert not in_trash(), result.stdout
        return "1 of 3 nodes are not heard" in result.stdout + result.stderr

    victim = registry.others(registry.holder())[0]
    victim.power_cut()
    try:
        wait_until("an order that would delete to be refused", refused, seconds=300, every=5)
    finally:
        victim.power_on()
    registry.wait_whole(90)
    registry.cli(*run)
    assert in_trash()
    registry.wait_copied()


def test_what_it_costs(registry: Registry) -> None:
    """One connection, 2,000 requests: processor time of the recorder for their lines, journalctl included."""
    registry.wait_whole()
    images.push(registry, images.image(seed=time.time_ns()), REPOSITORY, tag="v1")
    host, count = registry.holder(), 2000
    record(host)
    begin = time.time()
    pull(registry, host, "v1", method="HEAD", count=count)
    lines = int(host.sh("sh", "-c", f"journalctl -q -o cat --since=@{begin:.0f} {LOGGED} | wc -l").stdout)
    assert lines >= count
    before = cpu(host)
    host.sh("systemctl", "kill", "--signal=TERM", pulls.UNIT)
    wait_until("the recorder has read them", lambda: pid(host) == "0", seconds=30, every=0.05)
    say(f"{registry.frontend}: {(cpu(host) - before) / lines * 1e6:.0f} us a line, {lines} lines")
    host.sh("systemctl", "start", pulls.UNIT)
    memory = int(host.sh("systemctl", "show", "-P", "MemoryCurrent", pulls.UNIT).stdout)
    say(f"{registry.frontend}: {memory / 1e6:.1f} MB")


LOGGED = "_SYSTEMD_UNIT=kubeadm-registry-haproxy@1.service _SYSTEMD_UNIT=kubeadm-registry-haproxy@2.service"


def pid(host: Host) -> str:
    return host.sh("systemctl", "show", "-P", "MainPID", pulls.UNIT).stdout.strip()


def cpu(host: Host) -> float:
    return int(host.sh("systemctl", "show", "-P", "CPUUsageNSec", pulls.UNIT).stdout) / 1e9


def test_after_a_power_cut_the_record_of_that_node_begins_anew(registry: Registry) -> None:
    registry.wait_whole()
    images.push(registry, images.image(seed=time.time_ns()), REPOSITORY, tag="v1")
    victim = registry.others(registry.holder())[0]
    pull(registry, victim, "v1")
    before = record(victim)
    victim.power_cut()
    moment = time.time()
    victim.power_on()
    registry.wait_whole(90)
    after = record(victim)
    assert before["since"] < moment <= after["since"]
    assert after["pulls"][REPOSITORY]["v1"] == before["pulls"][REPOSITORY]["v1"]
    registry.wait_copied()
