"""A node that answers leaves or is replaced, and the run is killed: the same command again completes it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import pytest

from kubeadm_registry import config, members, paths, pki
from kubeadm_registry.access import membership
from kubeadm_registry.access.membership import Request
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import keepalived, replacing
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error, PreflightFailed
from kubeadm_registry.phases.helper import allow
from kubeadm_registry.phases.workflows import CHANGE_MEMBERS, INIT
from kubeadm_registry.result import Result
from kubeadm_registry.transport.host import Host
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.fakes import FakeTransport
from tests.unit.installed import fresh
from tests.unit.kills import AT_EACH, every
from tests.unit.test_members import FOUR, SKIP, THREE, agents, file, listed
from tests.unit.test_workflow import Recorder

pytestmark = pytest.mark.slow

PRIVATE = pki.ssh_key()[0]
KEYS = "/root/.ssh/authorized_keys"
LEAVE = Request(leaves="cp-2")
REPLACE = Request(joins="cp-4", leaves="cp-2")


class Killed(BaseException):
    """The process of a run has ended, so nothing of it handles this."""


@cache
def begun(text: str) -> FakeCluster:
    """An installed registry whose nodes may log in to each other."""
    fake = fresh(text)
    run(allow("ssh-ed25519 AAAA", PRIVATE), fake.cluster, Recorder())
    return fake


@dataclass
class Room:
    """A registry whose nodes may log in to each other, and cp-2, which leaves it with the virtual IP."""

    request: Request
    fake: FakeCluster = field(init=False)
    old: FakeTransport = field(init=False)

    def __post_init__(self) -> None:
        self.fake = begun(file(THREE if self.request.joins else FOUR)).copy()
        self.old = self.fake.servers["cp-2"]
        unit = self.old.unit(keepalived.UNIT)
        starts = unit.starts
        self.old.answer(
            "ip", "-oneline", "address", "show", "-tentative", "to",
            with_=lambda *_: "2: eth0 inet 10.0.0.10/32" if (unit.active, unit.starts) == ("active", starts) else "",
        )  # fmt: skip
        for server in self.fake.servers.values():
            server.acts.clear()

    @property
    def servers(self) -> dict[str, FakeTransport]:
        return {**self.fake.servers, "cp-2": self.old}

    def open(self) -> Cluster:
        """What a run begins with: all nodes answer."""
        parsed = config.parse(file({name: at for name, at in FOUR.items() if name != "cp-2"}), "cluster.yaml")
        known = set(self.fake.servers)
        self.fake = self.fake.with_file(file({one.name: one.address for one in parsed.spec.nodes}))
        for name in self.fake.servers.keys() - known:
            for one in self.fake.programs.values():
                self.fake._unpack(self.fake.servers[name], one)
        cluster, change = membership.planned(self.fake.cluster, parsed, self.request)
        self.fake.garage.hosts = self.servers
        retiring = tuple(Host(name, node.address, self.old) for name, node in change.leaving.items())
        return replace(cluster, change=replace(change, retiring=retiring))

    def kill(self, name: str, number: int) -> None:
        """Run until before the act *number* of the server *name*: nothing more is done anywhere."""
        cluster, over = self.open(), threading.Event()

        def asked(server: FakeTransport, argv: Sequence[str], **given: Any) -> Result:
            if over.is_set():
                raise Killed
            return FakeTransport.run(server, argv, **given)

        def acts(server: FakeTransport, what: str) -> None:
            if over.is_set() or (server is self.servers[name] and len(server.acts) >= number):
                over.set()
                raise Killed
            FakeTransport._act(server, what)

        with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
            for server in self.servers.values():
                patched.setattr(server, "run", partial(asked, server))
                patched.setattr(server, "_act", partial(acts, server))
            run(CHANGE_MEMBERS, cluster, Recorder(), skip=SKIP)

    def refused(self, request: Request) -> str:
        """What is said to *request*, with all nodes in the file: it is refused and does nothing. Empty: it is done."""
        parsed, before = config.parse(file(FOUR), "cluster.yaml"), {n: len(s.acts) for n, s in self.servers.items()}
        fake = replace(self.fake, servers=self.servers).with_file(file(FOUR))
        try:
            with self.old.forgetting():
                cluster, change = membership.planned(fake.cluster, parsed, request)
                run(CHANGE_MEMBERS, replace(cluster, change=change), Recorder(), skip=SKIP)
        except (Error, PreflightFailed) as error:
            assert before == {name: len(server.acts) for name, server in self.servers.items()}
            problems = error.problems if isinstance(error, PreflightFailed) else ()
            return "; ".join(problem.text for problem in problems) or f"{error.code}: {error.message}"
        assert listed(fake).nodes == FOUR
        return ""

    def finish(self) -> None:
        """Run to the end."""
        run(CHANGE_MEMBERS, self.open(), Recorder(), skip=SKIP)
        self.fake.garage.hosts = self.fake.servers

    def check(self, whole: Room) -> None:
        """It is as *whole*, and cp-2 has nothing of it any more."""
        assert listed(self.fake).render() == listed(whole.fake).render()
        assert self.fake.garage.moved == 2
        assert agents(self.fake) == agents(whole.fake)
        assert not [path for path in self.old.files() if path.startswith((paths.ETC, paths.OPT, paths.UNITS))]
        assert not [name for name, unit in self.old.units.items() if unit.active == "active"]
        assert replacing._MARK not in self.old.content(KEYS).decode()
        assert run(INIT, self.fake.cluster, Recorder(), skip=ELSEWHERE) == []


def kills(whole: Room, offset: int, usual: int = 30) -> Sequence[tuple[str, int]]:
    """Some acts, each by server and number: from *offset* on every so many, and all by which cp-2 gives away the VIP
    and the key of the others."""
    acts = [(name, number) for name, server in whole.servers.items() for number in range(len(server.acts))]
    given = [("cp-2", n) for n, act in enumerate(whole.old.acts) if keepalived.UNIT in act or KEYS in act]
    return list(dict.fromkeys([*acts[0 if AT_EACH else offset :: every(usual)], *given]))


@pytest.mark.parametrize(("request_", "offset"), [(LEAVE, 0), (REPLACE, 10)], ids=["leave", "replace"])
def test_killed_anywhere_it_is_completed_by_the_next_run(request_: Request, offset: int) -> None:
    whole = Room(request_)
    whole.finish()
    whole.check(whole)
    for name, number in kills(whole, offset):
        room = Room(request_)
        try:
            room.kill(name, number)
            room.finish()
            room.check(whole)
        except Exception as error:
            error.add_note(f"killed at act {number} of {name}: {whole.servers[name].acts[number]}")
            raise


@pytest.mark.parametrize(
    ("request_", "offset"), [(LEAVE, 5), (REPLACE, 15)], ids=["join, after leave", "join, after replace"]
)
def test_killed_anywhere_another_command_is_refused_until_it_is_completed(request_: Request, offset: int) -> None:
    """Before it has touched the storage nothing has begun; once a node has the new list alone, all decide by that."""
    whole, said = Room(request_), set()
    whole.finish()
    for name, number in kills(whole, offset, usual=50):
        room = Room(request_)
        room.kill(name, number)
        lists = [
            members.parse(one.content(members.PATH)) for one in room.fake.servers.values() if members.PATH in one.tree
        ]
        if any(one.generation > 1 and one.settled for one in lists):
            continue
        moved = room.fake.garage.moved > 1
        told = room.refused(Request(joins=request_.joins or "cp-2"))
        stopped = told.startswith("cp-2: does not serve reads")
        try:
            assert bool(told) is moved or stopped
            if told:
                # The run has stopped the registry there, and gone no further: whoever joins is told of an ill node.
                said |= set() if stopped else {told.partition(":")[0] if told.startswith("Members") else told}
                room.finish()
                room.check(whole)
        except AssertionError as error:
            error.add_note(f"killed at act {number} of {name}: {whole.servers[name].acts[number]}")
            raise
    leaving = "cp-2 is leaving: an earlier run has moved its data to the others; first complete it: "
    assert said == {"MembersUnsettled", f"{leaving}`{request_.words}`"}
