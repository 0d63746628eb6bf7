"""Who may carry out retention: one process, on the server that holds the lease, under its term, and nobody after it."""

from __future__ import annotations

import http.client
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from kubeadm_registry import paths
from kubeadm_registry.components import agent
from tests.lab import images
from tests.lab.command import wait_until
from tests.lab.executing import Answer, Executor
from tests.lab.host import Host
from tests.lab.registry import Registry
from tests.lab.test_writer import FAULTS, deaf, the_writer
from tests.lab.writing import manifest

pytest_plugins = ["tests.lab.registry"]

IMAGE = images.image(seed=61)
REPOSITORY = "retained/app"
TOGETHER = 4.0
"""Seconds for which another server holds the lease while the old one is as it is."""
UNIT = paths.RETENTION_UNIT.replace("@.", "@lab.")


@pytest.fixture
def whole(registry: Registry) -> Iterator[Registry]:
    """A registry with IMAGE, which is whole before and after."""
    registry.wait_whole()
    images.push(registry, IMAGE, REPOSITORY)
    yield registry
    registry.wait_whole(90)


def term(registry: Registry, host: Host) -> int:
    """The term under which *host* holds the lease, by its agent; 0 if it does not."""
    writer = registry.state(host).get("writer", {})
    return int(writer["epoch"]) if writer.get("role") == "writer" else 0


def put(executor: Executor, tag: str, *terms: object) -> Answer:
    return executor.ask("PUT", f"/v2/{REPOSITORY}/manifests/{tag}", *terms, body=manifest(IMAGE, tag).decode())


def test_it_writes_at_the_holder_of_the_lease_and_under_its_term_only(whole: Registry) -> None:
    holder = the_writer(whole)
    assert whole.holders() == [holder.name]
    now = term(whole, holder)
    here = Executor(whole, holder)
    for address in (paths.LOOPBACK, holder.address):
        assert put(Executor(whole, holder, address=address), "trash-v1", now).status == 201
    found = here.ask("GET", f"/v2/{REPOSITORY}/manifests/trash-v1")
    assert found.status == 200
    digest = images.digest_of(found.said.encode())
    for terms in ((), (now + 1,), (now - 1,), (0,), (now, now), (f"{now},{now}",)):
        answer = here.ask("DELETE", f"/v2/{REPOSITORY}/manifests/{digest}", *terms)
        assert (answer.status, "the term has changed" in answer.said) == (409, True), terms
    elsewhere = (
        Executor(whole, whole.client, address=holder.address, root=True),
        Executor(whole, whole.client, address=whole.vip, root=True),
        *(Executor(whole, other, root=True) for other in whole.others(holder)),
        Executor(whole, whole.others(holder)[0], address=holder.address, root=True),
    )
    for one in elsewhere:
        answer = put(one, "other", now)
        assert (answer.status, "no executor here" in answer.said) == (503, True)
    for host, address in ((whole.others(holder)[0], paths.LOOPBACK), (holder, whole.others(holder)[0].address)):
        answer = put(Executor(whole, host, address=address), "other", now)
        assert answer.status == 0, "the kernel lets its user open no connection there"
    assert here.ask("DELETE", f"/v2/{REPOSITORY}/manifests/{digest}", now).status == 202
    assert here.ask("GET", f"/v2/{REPOSITORY}/manifests/{digest}").status == 404


@pytest.fixture
def service(whole: Registry) -> Iterator[Host]:
    """The holder of the lease, on which a unit of retention runs: a process and its child."""
    holder = the_writer(whole)
    lines = ("[Service]", f"Slice={paths.SLICE}", f"User={paths.user(paths.RETENTION_NAME)}",
             "ExecStart=/bin/sh -c 'sleep 999 & sleep 999'", "")  # fmt: skip
    file = f"/run/systemd/system/{UNIT}"
    holder.sh("tee", file, stdin="\n".join(lines))
    holder.sh("systemctl", "daemon-reload")

    def begun() -> str:
        holder.sh("systemctl", "start", UNIT)
        return lives(holder)

    # An agent that has just taken the lease again may end what was started a moment before.
    wait_until("its processes", begun, seconds=60, every=1.0)
    yield holder
    holder.sh("systemctl", "stop", UNIT, check=False)
    holder.sh("systemctl", "reset-failed", UNIT, check=False)
    holder.sh("rm", file)
    holder.sh("systemctl", "daemon-reload")


@pytest.mark.parametrize("act", ["stop", "kill --signal=SIGKILL", "reload"])
def test_its_processes_and_its_term_end_with_the_lease(whole: Registry, service: Host, act: str) -> None:
    """An agent that leaves, dies or is executed anew: no process of the old term lives, and the next has another."""
    before = term(whole, service)
    assert lives(service)
    # An agent is executed anew only where its configuration has changed, or its program.
    service.sh("cp", "-a", agent.CONFIG, f"{agent.CONFIG}.before")
    if act == "reload":
        service.sh("sed", "-i", '1s/{/{"metrics_anonymous": true,/', agent.CONFIG)
    service.sh("systemctl", *act.split(), paths.unit("agent"))

    def ended() -> bool:
        others = [term(whole, other) for other in whole.others(service)]
        still = lives(service)
        assert not still or max(others) <= before, "another term has begun"
        return not still

    try:
        wait_until("the end of its processes", ended, seconds=20, every=0.05)
    finally:
        service.sh("mv", f"{agent.CONFIG}.before", agent.CONFIG)
        service.sh("systemctl", "reload-or-restart", paths.unit("agent"))
    wait_until("another term", lambda: term(whole, the_writer(whole)) > before, seconds=60)
    holder = the_writer(whole)
    executor = Executor(whole, holder)
    assert put(executor, "later", before).status == 409
    # The frontend of the new term may still be starting where it was asked last.
    wait_until("an order of that term", lambda: put(executor, "later", term(whole, holder)).status == 201, seconds=20)


def lives(host: Host) -> str:
    """The processes of retention's user there."""
    return host.sh("pgrep", "-u", paths.user(paths.RETENTION_NAME), check=False).stdout


@pytest.mark.parametrize(
    "name",
    [
        "agent-stopped",
        pytest.param("agent-stopped-for-good", marks=pytest.mark.long),
        pytest.param("agent-starved", marks=pytest.mark.long),
        "host-paused",
    ],
)
def test_it_changes_nothing_once_another_term_has_begun(whole: Registry, name: str) -> None:
    """It pushes all the time, from outside of what the agent could end: the kernel and the term alone are left."""
    host = the_writer(whole)
    others = whole.others(host)
    before = term(whole, host)
    executors = {other.name: Executor(whole, other) for other in others}
    first: list[float] = []

    def succeeded() -> bool:
        for other in others:
            if (now := term(whole, other)) > before:
                answer = put(executors[other.name], f"{name}-new", now)
                if answer.status == 201:
                    first.append(answer.begun)
        return bool(first)

    with Executor(whole, host).pushes(IMAGE, REPOSITORY, name, before) as old:
        time.sleep(1.0)
        with ExitStack() as wrong:
            wrong.enter_context(deaf(host))
            wrong.enter_context(FAULTS[name](host))
            wait_until("another holder of the lease that its executor writes at", succeeded, seconds=60, every=0.02)
            time.sleep(TOGETHER)
        time.sleep(3.0)
    late = [one for one in old.accepted if one.begun > first[0]]
    finished = [one for one in old.accepted if one.begun <= first[0] < one.ended]
    still = first[0] - max(one.ended for one in old.accepted if one.ended <= first[0])
    sys.stdout.write(
        f"\n  {whole.frontend}, {name}: {len(old.accepted)} of {len(old.done)} accepted, {len(late)} of them late, "
        f"{len(finished)} begun before and ended after; the successor wrote {still:.2f} s after the last\n"
    )
    assert late == []
    assert finished == []


def moves_the_vip(registry: Registry, host: Host) -> None:
    """keepalived is killed, and the address goes elsewhere."""
    host.sh("systemctl", "stop", paths.unit("keepalived"))
    wait_until("another holder", lambda: registry.holders() not in ([], [host.name]), seconds=30)


def loses_its_agent(registry: Registry, host: Host) -> None:
    """The agent is killed, and with it the lease goes."""
    host.sh("systemctl", "kill", "--signal=SIGKILL", paths.unit("agent"))
    wait_until("no lease there", lambda: not term(registry, host), seconds=30)


@pytest.mark.parametrize("hosts_for_registry", ["distribution"], indirect=True)
@pytest.mark.parametrize("what", [moves_the_vip, loses_its_agent])
def test_a_push_in_flight_outlives_the_lease(whole: Registry, what: Callable[[Registry, Host], None]) -> None:
    """With Distribution, through the server whose lease goes: nothing but the executor is ended."""
    holder = the_writer(whole)
    before = whole.invocations()
    login = whole.login("push")
    content = images.image((2**20,), seed=62).layers[0]
    digest = images.digest_of(content)
    with whole.lab.network():
        line = http.client.HTTPSConnection(holder.address, paths.REGISTRY_PORT, timeout=30, context=whole.tls())
        head = {"Authorization": f"Basic {login.encoded}"}
        line.request("POST", f"/v2/{REPOSITORY}/blobs/uploads/", headers=head)
        begun = line.getresponse()
        begun.read()
        place = str(begun.headers["Location"])
        line.putrequest("PUT", f"{place}{'&' if '?' in place else '?'}digest={digest}")
        for name, value in {**head, "Content-Length": str(len(content))}.items():
            line.putheader(name, value)
        line.endheaders(content[: len(content) // 2])
    try:
        what(whole, holder)
        line.send(content[len(content) // 2 :])
        answer = line.getresponse()
        answer.read()
        assert answer.status == 201
    finally:
        line.close()
        holder.sh("systemctl", "start", paths.unit("keepalived"))
    whole.wait_whole(60)
    after = whole.invocations()
    changed = {name.split()[1] for name, run in after.items() if before.get(name) != run}
    assert changed <= {paths.unit("keepalived"), paths.unit("agent")}
