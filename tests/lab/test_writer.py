"""The server of the one writer stands still, in whole or in part: its zot changes nothing once another server writes.

The worst case is made: agents and keepalived do not hear each other, so that another server gets the virtual IP and
becomes the writer, while the storage of all servers goes on hearing each other, so that a write of the old zot would
reach a majority. Somebody pushes to that zot all the time, past gate and proxy. Two writers lose tags, so in the end
each tag is looked for.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from kubeadm_registry import paths
from tests.lab import images
from tests.lab.command import LabError, wait_until
from tests.lab.host import Host
from tests.lab.registry import Registry
from tests.lab.writing import Push, Pushes, behind_the_proxy, tags, through_the_gate

pytest_plugins = ["tests.lab.registry"]
pytestmark = pytest.mark.parametrize("hosts_for_registry", ["zot"], indirect=True)  # others have no one writer

IMAGE = images.image(seed=31)
BEFORE = 1.0
"""Seconds of pushing before anything happens."""
TOGETHER = 4.0
"""Seconds for which another server writes while the old one is as it is."""
AFTER = 3.0
"""Seconds of pushing after the old one is well again."""
AGENT = paths.unit("agent")
DEAF = (
    "add table inet deaf",
    "add chain inet deaf in { type filter hook input priority -300; }",
    "add chain inet deaf out { type filter hook output priority -300; }",
    *(f"add rule inet deaf {way} udp dport {paths.HEARTBEAT_PORT} drop" for way in ("in", "out")),
    *(f"add rule inet deaf {way} meta l4proto 112 drop" for way in ("in", "out")),
    f"add rule inet deaf in tcp dport {paths.INTERNAL_PORT} drop",
)
#: Stands still but for a moment each second and a half: enough for systemd's watchdog, too little for anything else.
STARVE = """while :; do
  pid=$(systemctl show -P MainPID "$1")
  kill -CONT "$pid"; sleep 0.02; kill -STOP "$pid"; sleep 1.5
done"""


@contextmanager
def deaf(host: Host) -> Iterator[None]:
    """No agent and no keepalived hears this one's, and these hear none; all else gets through.

    But the others' proxies do not reach its own: they would go on to send it what is pushed to them, until it closes.
    """
    host.sh("nft", "-f", "-", stdin="\n".join(DEAF) + "\n")
    try:
        yield
    finally:
        host.sh("nft", "delete", "table", "inet", "deaf")


@contextmanager
def stopped(host: Host, service: str) -> Iterator[None]:
    """All processes of a service stand still."""
    host.kill(paths.unit(service), signal.SIGSTOP)
    try:
        yield
    finally:
        host.sh("systemctl", "kill", "--kill-whom=all", "--signal=SIGCONT", paths.unit(service), check=False)


@contextmanager
def agent_stopped_for_good(host: Host) -> Iterator[None]:
    """The agent stands still, and no watchdog ends it: nothing but the kernel is left."""
    with stopped(host, "agent"), unwatched(host):
        yield


@contextmanager
def agent_starved(host: Host) -> Iterator[None]:
    """The agent is hardly ever run."""
    host.sh("systemd-run", "--quiet", "--collect", "--unit=starve", "sh", "-c", STARVE, "-", AGENT)
    try:
        yield
    finally:
        host.sh("systemctl", "stop", "starve")
        host.sh("systemctl", "kill", "--signal=SIGCONT", AGENT, check=False)


@contextmanager
def host_paused(host: Host) -> Iterator[None]:
    """All processes of the host stand still, and go on all at once; its kernel runs."""
    host.pause()
    try:
        yield
    finally:
        host.resume()


@contextmanager
def unwatched(host: Host) -> Iterator[None]:
    """systemd stands still, so that no watchdog bites."""
    os.kill(host.leader, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(host.leader, signal.SIGCONT)


Fault = Callable[[Host], AbstractContextManager[None]]
FAULTS: dict[str, Fault] = {
    "agent-stopped": partial(stopped, service="agent"),  # until systemd's watchdog ends it
    "agent-stopped-for-good": agent_stopped_for_good,
    "agent-starved": agent_starved,
    "garage-stopped": partial(stopped, service="garage"),
    "host-paused": host_paused,
}


@dataclass(frozen=True)
class Course:
    """What happened: pushes to the old writer's zot, pushes through the gate, and the servers that wrote."""

    old: Pushes
    new: Pushes
    host: Host
    heir: str
    first: float
    """When the first push had ended that the new writer accepted: it may have been held for some seconds before."""
    healed: float
    """When nothing was wrong any more: from then on the old one may be elected again."""

    @property
    def late(self) -> list[Push]:
        """Pushes that the old writer's zot accepted though they began when another one had written."""
        return [one for one in self.old.accepted if self.first < one.begun < self.healed]

    @property
    def still(self) -> float:
        """Seconds between the last push that the old one accepted, and the first of the new one."""
        before = [one.ended for one in self.old.accepted if one.ended <= self.first]
        return self.first - max(before)


def writers(registry: Registry, hosts: list[Host]) -> list[Host]:
    """Those of *hosts* whose agent says that it is the one writer."""
    return [host for host in hosts if registry.state(host).get("writer", {}).get("role") == "writer"]


def the_writer(registry: Registry) -> Host:
    """The one server that writes."""
    found: list[Host] = []

    def one() -> bool:
        found[:] = writers(registry, list(registry.servers.values()))
        return len(found) == 1

    wait_until("one writer", one, seconds=60, every=0.3)
    return found[0]


def suffer(registry: Registry, repository: str, *what: Fault) -> Course:
    """Let *what* befall the writer while somebody pushes to it, until another writes, and for some time after."""
    images.push(registry, IMAGE, repository)
    host, begin = the_writer(registry), time.time()
    others = registry.others(host)
    with behind_the_proxy(host, IMAGE, repository, "old") as old:
        time.sleep(BEFORE)
        with ExitStack() as wrong:
            wrong.enter_context(deaf(host))
            for one in what:
                wrong.enter_context(one(host))
            with through_the_gate(registry, others, IMAGE, repository, "new") as new:
                try:
                    wait_until("a push that a new writer accepts", lambda: new.accepted, seconds=60, every=0.01)
                except LabError as error:
                    errors = {one.error for one in new.done}
                    raise LabError(f"{error}: {errors}\n{registry.journals(begin)}") from error
                time.sleep(TOGETHER)
                heirs = writers(registry, others)
                healed = time.monotonic()
        time.sleep(AFTER)
    registry.wait_whole(90)
    assert len(heirs) == 1
    return Course(old, new, host, heirs[0].name, new.accepted[0].ended, healed)


def report(name: str, course: Course) -> None:
    """Show the figures."""
    counts = f"{len(course.old.accepted)} of {len(course.old.done)} accepted there, {len(course.late)} of them late"
    sys.stdout.write(
        f"\n  {name} on {course.host.name}: {counts}; {course.heir} wrote {course.still:.2f} s after the last of them,"
        f" {len(course.new.accepted)} pushes\n"
    )


@pytest.mark.parametrize("name", FAULTS)
def test_the_old_writer_changes_nothing_once_another_writes(registry: Registry, name: str) -> None:
    repository = f"writer/{name}"
    course = suffer(registry, repository, FAULTS[name])
    report(name, course)
    assert course.late == []
    there = tags(registry, repository)
    lost = [one.tag for one in (*course.old.accepted, *course.new.accepted) if one.tag not in there]
    assert lost == [], f"{len(lost)} accepted pushes are lost"


@contextmanager
def no_timer(host: Host) -> Iterator[None]:
    """The kernel's timer is gone, and the agent cannot bring it back."""
    host.sh("nft", "delete", "table", "inet", paths.FENCE_TABLE)
    yield


def test_without_the_timer_two_would_write(registry: Registry) -> None:
    """Else the tests above would show nothing."""
    course = suffer(registry, "writer/no-timer", agent_stopped_for_good, no_timer)
    report("no timer", course)
    assert course.late
