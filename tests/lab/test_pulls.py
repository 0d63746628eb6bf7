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


def pull(registry: Registry, host: Host, reference: str, *options: str) -> None:
    """Ask the door of *host* for a manifest, as a client without a login."""
    where = f"https://{host.address}:5000/v2/{REPOSITORY}/manifests/{reference}"
    registry.client.sh("curl", "-fsSk", "-o", "/dev/null", *options, where)


def test_what_a_client_pulls_is_recorded_where_it_pulled_and_what_we_read_is_not(registry: Registry) -> None:
    registry.wait_whole()
    image = images.image(seed=time.time_ns())
    images.push(registry, image, REPOSITORY, tag="v1")
    one, other = registry.holder(), registry.others(registry.holder())[0]
    since = record(one)["since"]
    registry.cli("images", "check")
    assert REPOSITORY not in record(one)["pulls"]
    pull(registry, one, "v1", "--head")
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


def test_what_it_costs(registry: Registry) -> None:
    """One connection, 2,000 requests: processor time of the recorder for their lines, journalctl included."""
    registry.wait_whole()
    images.push(registry, images.image(seed=time.time_ns()), REPOSITORY, tag="v1")
    host, count = registry.holder(), 2000
    record(host)
    begin = time.time()
    pull(registry, host, f"v1?x=[1-{count}]", "--head")
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
