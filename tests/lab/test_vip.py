"""The virtual IP has an address of each family: both are on one server, and serve there, whatever befalls it."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kubeadm_registry import paths
from kubeadm_registry.oci import canary
from tests.lab.command import wait_until
from tests.lab.faults import DEAD_HOST, turns
from tests.lab.host import Host
from tests.lab.reading import Object, Reading, reading, summary
from tests.lab.registry import Registry

pytest_plugins = ["tests.lab.registry"]

#: Run by `make day-two`.
pytestmark = pytest.mark.long
CANARY = Object(canary.REPOSITORY, canary.MANIFEST.digest, canary.LAYER.digest)


@pytest.fixture
def both(registry: Registry) -> Iterator[Registry]:
    """A registry whose VIP has an address of each family; whole before and after."""
    if not registry.vip6:
        pytest.skip("this lab has one family")
    registry.wait_whole()
    yield registry
    registry.wait_whole()


def signalled(host: Host, number: signal.Signals) -> None:
    """Send a signal to keepalived and its child."""
    host.sh("systemctl", "kill", f"--signal={number.name}", "--kill-whom=all", paths.unit("keepalived"))


def test_an_address_that_two_servers_had_serves_where_it_is_left(both: Registry) -> None:
    """A server that hardly runs keeps the addresses while another one takes them, and answers who asks for them.

    The kernel's doubt about such an address (duplicate address detection) would make it useless for good.
    """
    holder = both.holder()
    signalled(holder, signal.SIGSTOP)
    try:
        wait_until("a second holder", lambda: len(both.holders()) == 2, seconds=30)
        wait_until("both addresses there", lambda: len(both.holders(both.vip6)) == 2, seconds=10)
        time.sleep(2)  # the doubt comes within a second
    finally:
        signalled(holder, signal.SIGCONT)
    wait_until("one holder", lambda: len(both.holders()) == 1, seconds=30)
    both.wait_whole(60)
    for address in (both.vip, str(both.vip6)):
        with reading(both, CANARY, address=address) as seen:
            time.sleep(1)
        assert not seen.failed, f"{address}: {seen}"


@contextmanager
def filtered(host: Host, rule: str) -> Iterator[None]:
    """Somebody's packet filter on *host* drops what *rule* names, for the length of a ``with``."""
    table = f"table inet site {{ chain in {{ type filter hook input priority 5; {rule} drop; }}; }}"
    host.sh("nft", "-f", "-", stdin=table)
    try:
        yield
    finally:
        host.sh("nft", "delete", "table", "inet", "site")


def test_a_node_that_gets_no_adverts_leaves_the_addresses_to_the_holder(both: Registry) -> None:
    """VRRP is dropped on the way to it, and all else passes."""
    holder = both.holder()
    deaf = both.others(holder)[0]
    with filtered(deaf, "meta l4proto 112"):
        wait_until("a second holder", lambda: len(both.holders()) == 2, seconds=20, every=0.05)
        begin = time.monotonic()
        wait_until("one holder again", lambda: both.holders() == [holder.name], seconds=10, every=0.05)
        sys.stdout.write(f"\n  {both.frontend}: two holders for {time.monotonic() - begin:.1f} s\n")
        assert "AdvertsLost" in both.state(deaf)["conditions"]
        with reading(both, CANARY) as seen:
            time.sleep(4)
        assert not seen.failed, seen
        assert both.holders() == [holder.name]
    both.wait_whole(90)


def test_a_node_that_loses_packets_does_not_take_the_addresses_from_one_that_is_well(both: Registry) -> None:
    """It has the higher priority, and misses three adverts in a row every few seconds.

    On a busy machine the holder itself may not be well for a moment, and gives them up by itself; then once more.
    """
    lossy, *_, last = both.servers.values()
    for attempt in range(3):
        if both.holder() is not last:
            both.cli("vip", "move", last.name)
        both.wait_whole(60)
        # For two seconds a new holder is as weak as the others: it may have taken them from one that lives.
        wait_until("a holder that is stronger", lambda: "1" not in last.sh("cat", paths.BEHIND).stdout, seconds=10)
        begin, looks, taken, stayed = time.time(), 0, 0, True
        with filtered(lossy, "numgen random mod 100 < 25"):
            while stayed and time.time() < begin + 30:
                holders = both.holders()
                looks, taken, stayed = looks + 1, taken + (lossy.name in holders), last.name in holders
                time.sleep(0.1)
        journals = both.journals(begin)
        own = [line for line in journals.splitlines() if f" {last.name} " in line]
        well = not any(re.search(r" is fit, level [1-9]", line) for line in own)
        assert not (well and any("higher priority" in line for line in own)), journals
        sys.stdout.write(
            f"\n  {both.frontend}: a quarter of packets lost ({attempt + 1}): two holders in {taken} of {looks} looks"
        )
        if stayed:
            break
    else:
        pytest.fail(f"{last.name} gave the addresses up each time:\n{journals}")
    wait_until("one holder", lambda: both.holders() == [last.name], seconds=10)
    both.wait_whole(60)


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_an_address_that_somebody_deletes_is_served_again(both: Registry, family: str) -> None:
    holder = both.holder()
    address = both.vip if family == "IPv4" else both.vip6
    begin = time.monotonic()
    holder.sh("ip", "address", "del", f"{address}/{32 if family == 'IPv4' else 128}", "dev", "eth0")
    wait_until("the address", lambda: not both.flaws(), seconds=60, every=0.1)
    sys.stdout.write(f"\n  {both.frontend}: {family} deleted, whole {time.monotonic() - begin:.1f} s later\n")


def test_clients_of_ipv6_follow_when_the_holder_loses_its_power(both: Registry) -> None:
    runs: list[Reading] = []
    for _ in turns(lambda: DEAD_HOST.kept(runs)):
        holder = both.holder()
        try:
            with reading(both, CANARY, address=str(both.vip6)) as seen:
                time.sleep(0.6)
                holder.power_cut()
                time.sleep(3)
        finally:
            holder.power_on()
            both.wait_whole(90)
        runs.append(seen)
    sys.stdout.write(f"\n  {both.frontend}: power cut, through {both.vip6}: {summary(runs)}\n")
    assert DEAD_HOST.kept(runs), summary(runs)
