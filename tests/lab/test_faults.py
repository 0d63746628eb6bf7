"""One server fails, in every way that we could think of, while a client reads through the VIP 50 times a second.

Each fault is repeated KUBEADM_REGISTRY_REPEAT times (once; the figures in docs/measurements.md are of 6).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from kubeadm_registry.errors import RegistryError
from tests.lab import faults, images
from tests.lab.command import wait_until
from tests.lab.faults import Bound, Fault, turns
from tests.lab.host import Host
from tests.lab.reading import Object, Reading, reading, summary
from tests.lab.registry import SERVERS, Registry

pytest_plugins = ["tests.lab.registry"]

BEFORE = 0.6
"""Seconds of undisturbed reading before a fault."""
PROBE = images.image(seed=7)
REPOSITORY = "tests/probe"
FAULTS = {fault.name: fault for fault in faults.FAULTS}
HEALED = Bound(worst=1.0)


@pytest.fixture
def probe(registry: Registry) -> Object:
    """What is read all the time: not the object that the agents know and guard."""
    if images.missing(registry, PROBE, REPOSITORY):
        images.push(registry, PROBE, REPOSITORY)
    return Object(REPOSITORY, PROBE.digest, images.digest_of(PROBE.layers[0]))


def suffer(registry: Registry, probe: Object, fault: Fault, host: Host | None = None) -> Reading:
    """Read through the VIP while *fault* befalls *host* (the holder), then undo it. Raises if the VIP did not do right.

    What agents and keepalived said is printed when it cost more than the fault's bound.
    """
    registry.wait_whole(90)
    host = host or registry.holder()
    begin = time.time()
    try:
        with reading(registry, probe) as result:
            time.sleep(BEFORE)
            fault.strike(registry, host)
            result.struck = time.time()
            time.sleep(fault.watched)
        holders = [name for name in registry.holders() if name not in registry.cut_off]
        report(f"{registry.frontend}, {fault} of {host.name}: {result}; the VIP is then on {', '.join(holders)}")
        if fault.bound.exceeded(result):
            report(registry.journals(begin))
    finally:
        fault.heal(registry, host)
    assert len(holders) == 1
    if fault.moves:
        assert holders != [host.name]
    return result


def report(text: str) -> None:
    """Show a figure; pytest keeps it with the test, and shows it at once with -s."""
    sys.stdout.write(f"\n  {text}; load {os.getloadavg()[0]:.1f}\n")


@pytest.mark.parametrize("fault", faults.FAULTS, ids=str)
def test_readers_hardly_notice(registry: Registry, probe: Object, fault: Fault) -> None:
    runs: list[Reading] = []
    for turn in turns(lambda: fault.bound.kept(runs)):
        registry.wait_whole(90)
        holder = registry.holder()
        victim = holder if fault.on == "holder" else registry.others(holder)[turn % 2]
        runs.append(suffer(registry, probe, fault, victim))
    report(f"{registry.frontend}, {fault}: {summary(runs)}")
    assert fault.bound.kept(runs), summary(runs)


@contextmanager
def zone_mates(registry: Registry, *names: str) -> Iterator[None]:
    """Put the storage of the servers *names* into one zone for the length of a ``with``.

    Garage asks a server of its own zone first. Our own layout has a zone for each, so that it is chance whom it asks.
    """
    registry.lay_out({name: "together" if name in names else name for name in SERVERS})
    try:
        yield
    finally:
        registry.lab.restore()
        registry.wait_whole(90)
        registry.lay_out({name: name for name in SERVERS})


@pytest.mark.parametrize(
    "fault", [FAULTS["power-cut"], pytest.param(FAULTS["silent-cut"], marks=pytest.mark.long)], ids=str
)
def test_the_dead_server_is_the_one_that_the_others_storage_asked_first(
    registry: Registry, probe: Object, fault: Fault
) -> None:
    runs: list[Reading] = []
    for _ in turns(lambda: fault.bound.kept(runs)):
        registry.wait_whole(90)
        holder = registry.holder()
        heir = min(
            registry.others(holder), key=lambda host: list(SERVERS).index(host.name)
        )  # by keepalived's priorities
        with zone_mates(registry, holder.name, heir.name):
            runs.append(suffer(registry, probe, fault, holder))
    report(f"{registry.frontend}, {fault} of the zone mate: {summary(runs)}")
    assert fault.bound.kept(runs), summary(runs)


@pytest.mark.long
def test_a_second_fault_soon_after_the_first_was_healed_costs_the_same(registry: Registry, probe: Object) -> None:
    cut = FAULTS["silent-cut"]
    runs: list[Reading] = []
    for _ in turns(lambda: cut.bound.kept(runs)):
        registry.wait_whole(90)
        first = registry.holder()
        cut.strike(registry, first)
        time.sleep(25)  # long enough for TCP to wait a long time before it tries the old connections again
        cut.heal(registry, first)
        healed = time.monotonic()
        wait_until("one holder", lambda: len(registry.holders()) == 1, seconds=20)
        time.sleep(max(0.0, 25 - (time.monotonic() - healed)))
        runs.append(suffer(registry, probe, cut))
    report(f"{registry.frontend}, second silent cut 25 s after the first was healed: {summary(runs)}")
    assert cut.bound.kept(runs), summary(runs)


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_after_a_healed_cut_clients_are_answered_at_once(registry: Registry, probe: Object, family: str) -> None:
    address = registry.vip if family == "IPv4" else registry.vip6
    if not address:
        pytest.skip(f"this lab has no {family}")
    runs: list[Reading] = []
    for _ in turns(lambda: HEALED.kept(runs)):
        registry.wait_whole(90)
        begin = time.time()
        holder = registry.holder()
        holder.cut(silent=True)
        wait_until(
            "the VIP on another server",
            lambda away=holder.name: any(name != away for name in registry.holders()),  # type: ignore[misc]
            seconds=30,
        )
        with reading(registry, probe, address=address) as result:
            time.sleep(BEFORE)
            holder.heal()
            time.sleep(4)
        report(f"{registry.frontend}, healed: {result}")
        if HEALED.exceeded(result):
            report(registry.journals(begin))
        runs.append(result)
        registry.wait_whole(90)
    report(f"{registry.frontend}, cut healed, {family}: {summary(runs)}")
    assert HEALED.kept(runs), summary(runs)


def test_all_frontends_stand_still_for_a_while(registry: Registry, probe: Object) -> None:
    """The VIP stays where it is, for nobody is better, and all goes on by itself."""
    holder = registry.holder()
    begin = time.time()
    with reading(registry, probe) as result:
        time.sleep(BEFORE)
        for host in registry.servers.values():
            host.kill(registry.unit("frontend"), signal.SIGSTOP)
        time.sleep(4)
        for host in registry.servers.values():
            host.sh("systemctl", "kill", "--kill-whom=all", "--signal=SIGCONT", registry.unit("frontend"), check=False)
        resumed = time.time()
        time.sleep(3)
    after = [request for request in result.requests if request.begin > resumed + 2]
    first = min(request.end - resumed for request in result.requests if request.end > resumed and not request.error)
    report(f"{registry.frontend}, all frontends stopped for 4 s: pulls go on {first:.2f} s after; {result}")
    if any(request.error for request in after) or registry.holder() is not holder:
        report(registry.journals(begin))
    assert first <= 2
    assert after
    assert not [request for request in after if request.error]
    assert registry.holder() is holder


FILL = (
    'size=$(df --output=avail -B1 "$1" | tail -n 1); fallocate -l "$size" "$1/filler"; '
    'dd if=/dev/zero of="$1/filler2" bs=64k 2>/dev/null || :'
)


def test_all_disks_are_full(registry: Registry, probe: Object) -> None:
    """Pulls go on, a push is told so by the server, and pushes go on once there is room."""
    image = images.image((8 * 2**20,), seed=time.time_ns())
    try:
        for host in registry.servers.values():
            host.sh("sh", "-c", FILL, "-", "/var/lib/kubeadm-registry", timeout=120)
        begin = time.time()
        with reading(registry, probe, period=0.1) as result:
            with pytest.raises(RegistryError) as refused:
                images.push(registry, image, "tests/full")
            time.sleep(2)
        report(f"{registry.frontend}, all disks full: {result}; push: {refused.value.message[:150]}")
        if result.failed or result.gap > 1:
            report(registry.journals(begin))
    finally:
        for host in registry.servers.values():
            host.sh("sh", "-c", 'rm -f "$1"/filler*', "-", "/var/lib/kubeadm-registry")
    assert not result.failed
    assert result.gap < 3, "of this no process dies: reads are as quick as before, but for a busy machine"
    assert any(f"status {code}" in refused.value.message for code in (500, 502, 503, 507)), refused.value.message
    for host in registry.servers.values():  # each looks at its own disk; the VIP may come to any of them
        wait_until(f"a push through {host.name}", partial(pushed, registry, image, host), seconds=30, every=1)
    assert not images.missing(registry, image, "tests/full")


def pushed(registry: Registry, image: images.Image, host: Host) -> bool:
    """Whether *image* could be pushed through *host*."""
    try:
        images.push(registry, image, "tests/full", address=host.address)
    except RegistryError:
        return False
    return True


@pytest.mark.long
@pytest.mark.parametrize("service", ["frontend", "garage", "agent", "keepalived"])
def test_a_service_that_dies_again_and_again(registry: Registry, probe: Object, service: str) -> None:
    """Nothing gives up starting it, and readers are served by whoever is well."""
    host = registry.holder()
    with reading(registry, probe) as result:
        for _ in range(10):
            host.kill(registry.unit(service))
            time.sleep(1)
    report(f"{registry.frontend}, {service} killed every second: {result}")
    registry.wait_whole(60)
    assert result.gap < 2


def test_exactly_one_server_has_the_vip_while_an_agent_is_gone(registry: Registry) -> None:
    holder = registry.holder()
    faults.agent_kept_down(registry, holder)
    try:
        wait_until("one other holder", lambda: registry.holders() not in ([], [holder.name]), seconds=30)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            holders = registry.holders()
            assert len(holders) == 1
            assert holders != [holder.name]
            assert holder.sh("systemctl", "show", "--property=MainPID", registry.unit("agent")).stdout == "MainPID=0\n"
    finally:
        faults.agent_back(registry, holder)
