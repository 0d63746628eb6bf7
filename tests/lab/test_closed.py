"""What other firewalls, floods and a cut between two servers do to what keeps strangers and second writers out."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

from kubeadm_registry import paths
from kubeadm_registry.oci import canary
from tests.lab import images
from tests.lab.command import wait_until
from tests.lab.reading import Object, reading
from tests.lab.registry import Registry
from tests.lab.test_push_pull import reaches
from tests.lab.web import ask

pytest_plugins = ["tests.lab.registry"]

IMAGE = images.image(seed=501)
KNOWN = Object(canary.REPOSITORY, canary.MANIFEST.digest, canary.LAYER.digest)


@pytest.fixture
def whole(registry: Registry) -> Iterator[Registry]:
    """A registry that is whole before and after."""
    registry.wait_whole()
    yield registry
    registry.wait_whole()


@pytest.mark.parametrize("agent", ["runs", "is away"])
def test_another_firewall_takes_the_guard_away_for_a_moment_only(whole: Registry, agent: str) -> None:
    """nftables.service flushes all rules when it starts, stops or reloads; its unit brings ours along, or the agent."""
    host = whole.others(whole.holder())[0]
    before = whole.invocations([host])
    acts = [f"systemctl {verb} nftables" for verb in ("start", "reload", "restart")]
    acts += ["systemctl stop nftables", "nft flush ruleset"]
    if agent == "is away":
        # It alone sees that a unit starts which did not run before, or that none has to do with it.
        host.sh("systemctl", "start", "nftables")
        host.sh("systemctl", "restart", paths.unit("guard"))
        host.sh("systemctl", "stop", paths.unit("agent"))
        acts = [*acts[1:3], "systemctl stop nftables && systemctl start nftables"]
    try:
        for act in acts:
            host.sh("sh", "-c", act)
            wait_until(f"the guard after {act}", lambda: host.sh(*TABLE, check=False).returncode == 0, seconds=15)
            assert not reaches(host, "nobody", paths.LOOPBACK, paths.FRONTEND_PORT), act
    finally:
        host.sh("systemctl", "stop", "nftables")
        host.sh("systemctl", "start", paths.unit("agent"))
        host.sh("systemctl", "restart", paths.unit("guard"))
    changed = {name.split()[1] for name, run in whole.invocations([host]).items() if before.get(name) != run}
    assert changed <= {paths.unit("guard"), *([paths.unit("agent")] if agent == "is away" else [])}
    whole.wait_whole()
    if agent == "runs":
        assert whole.state(host)["done"]["guard_losses"] >= 1
    (found,) = (one for one in whole.json("status", check=False)[-1]["conditions"] if one["type"] == "LoopbackGuarded")
    assert found["status"] == "True"


TABLE = ("nft", "list", "table", "inet", paths.PREFIX)


def test_a_holder_that_cannot_become_the_writer_gives_the_virtual_ip_up(whole: Registry) -> None:
    """Its loopback rules are gone and cannot be loaded, so any of its users could push without a login."""
    if whole.frontend != "zot":
        pytest.skip("Distribution is written anywhere")
    host, begin = whole.holder(), time.monotonic()
    host.sh("mv", paths.GUARD, "/root/guard")
    try:
        host.sh("nft", "delete", "table", "inet", paths.PREFIX)
        wait_until("another holder", lambda: whole.holders() not in ([], [host.name]), seconds=90)
        moved = time.monotonic() - begin
        images.push(whole, IMAGE, "tests/unguarded")
        sys.stdout.write(
            f"\n  the virtual IP moved after {moved:.1f} s, a push ended {time.monotonic() - begin:.1f} s\n"
        )
    finally:
        host.sh("mv", "/root/guard", paths.GUARD)
        host.sh("systemctl", "restart", paths.unit("guard"))
    assert moved > 55
    assert not images.missing(whole, IMAGE, "tests/unguarded")


def test_a_write_that_cannot_reach_the_writer_is_answered(whole: Registry) -> None:
    """The writer and one other server do not hear each other; the third hears both."""
    if whole.frontend != "zot":
        pytest.skip("Distribution is written anywhere")
    writer = whole.holder()
    cut, third = whole.others(writer)
    push = whole.login("push")
    target = "/v2/tests/held/blobs/uploads/"
    wait_until("a writer", lambda: whole.state(writer)["writer"]["role"] == "writer", seconds=60)
    whole.lab.cut_link(writer.name, cut.name)
    try:
        wait_until("no writer there", lambda: whole.state(cut)["writes_go_to"] == [], seconds=30)
        began = time.monotonic()
        answer = ask(whole, "POST", target, login=push, address=cut.address, body=b"", timeout=30)
        took = time.monotonic() - began
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert took < 30, "it is held for 15 s"
        assert ask(whole, "POST", target, login=push, address=third.address, body=b"").status == 202
    finally:
        whole.lab.heal_links()
    sys.stdout.write(f"\n  cut off from the writer: 503 after {took:.1f} s\n")


#: Opens as many connections to ``$1``:``$2`` as it may, up to ``$3``, and keeps them for ``$4`` seconds; from ``$5``.
FLOOD = textwrap.dedent("""
    import resource, socket, sys, time
    address, port, count, seconds = sys.argv[1], *map(int, sys.argv[2:5])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kept, end = [], time.monotonic() + seconds
    for _ in range(count):
        one = socket.socket()
        one.setblocking(False)
        one.bind((sys.argv[5], 0))
        one.connect_ex((address, port))
        kept.append(one)
    print(len(kept), flush=True)
    time.sleep(max(0, end - time.monotonic()))
""")


# Twelve thousand connections at once are a load of their own: it needs a machine that has nothing else to do.
@pytest.mark.long
def test_a_client_that_opens_connections_and_says_nothing_disturbs_nobody(whole: Registry) -> None:
    holder = whole.holder()
    flooding = whole.lab.address(150)  # an address of its own, since the bound is for each
    where = ("address", "add", f"{flooding}/32", "dev", "lo")
    whole.client.sh("ip", *where)
    words = (whole.vip, str(paths.REGISTRY_PORT), "12000", "8", flooding)
    try:
        with reading(whole, KNOWN) as seen:
            opened = whole.client.sh("python3", "-c", FLOOD, *words, timeout=60)
    finally:
        whole.client.sh("ip", "address", "del", *where[2:])
    sys.stdout.write(f"\n  {whole.frontend}: {opened.stdout.strip()} connections of one client; another one: {seen}\n")
    assert int(opened.stdout) == 12000
    assert not seen.failed
    assert whole.holder() is holder
