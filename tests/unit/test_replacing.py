"""A node puts another one in the place of one, asked by its helper: who may ask for what, and whatever ends it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import config, members, pki
from kubeadm_registry.access import membership, questions
from kubeadm_registry.access import replacing as asking
from kubeadm_registry.access.executor import ByHelper, OnHost
from kubeadm_registry.access.membership import Request
from kubeadm_registry.access.session import Note
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import helper, programs, replacing
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.engine.changes import File
from kubeadm_registry.engine.phase import Workflow
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error, PhaseFailed, PreflightFailed
from kubeadm_registry.helper import replace as unit
from kubeadm_registry.helper.__main__ import answered
from kubeadm_registry.members import Members
from kubeadm_registry.phases.helper import FORBID, HELPER, allow
from kubeadm_registry.phases.workflows import CHANGE_MEMBERS, INIT, RESET
from kubeadm_registry.transport.host import Host
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster, host_key
from tests.unit.fakes import FakeTransport, Link
from tests.unit.kills import every
from tests.unit.test_members import FOUR, THREE, file, listed
from tests.unit.test_workflow import Recorder

PRIVATE, PUBLIC = pki.ssh_key()
OPERATOR = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOperator"
KEYS = "/root/.ssh/authorized_keys"
THEIRS = "# mine\nssh-rsa AAAA admin@desk"
NEW = Node(name="cp-4", address="10.0.0.14", host_key=host_key("cp-4"))


@cache
def begun() -> FakeCluster:
    """An installed registry whose nodes may log in to each other; root had a key of somebody's before."""
    fake = FakeCluster.of(file(THREE))
    for server in fake.servers.values():
        server.put(KEYS, THEIRS, 0o600)
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    run(allow(OPERATOR, PRIVATE), fake.cluster, Recorder())
    return fake


class Site:
    """Three nodes whose helpers answer, and cp-4, a bare machine; units are started by ``turn``."""

    def __init__(self) -> None:
        self.fake = begun().copy()
        self.all = dict(self.fake.servers)
        self.dead: set[str] = set()
        self.states: dict[str, str] = {}
        for name in self.all:
            self.systemd(name)

    def systemd(self, name: str) -> None:
        """What it says of the unit of *name*."""
        server = self.all[name]
        server.answer("systemctl", "start", "--no-block", "--", replacing.UNIT,
                      with_=lambda *_: self.states.update({name: "activating"}) or "")  # fmt: skip
        server.answer("systemctl", "show", "--property=ActiveState", "--value", "--", replacing.UNIT,
                      with_=lambda *_: self.states.get(name, "inactive"))  # fmt: skip

    def host(self, name: str) -> Host:
        return Host(name, "", self.all[name])

    def node(self, name: str) -> ByHelper:
        return ByHelper(name, lambda content, _: answered(content, OnHost(self.host(name))))

    def begin(self, name: str, old: str = "cp-2", new: Node = NEW) -> asking.Standing:
        return asking.begin(self.node(name), old, new)

    def turn(self, name: str) -> asking.Standing:
        """systemd runs the unit of *name*; how it is then."""
        unit.work(self.host(name), self.opened)
        self.states[name] = "inactive"
        return asking.look(self.node(name))

    @contextmanager
    def opened(self, given: RegistryCluster, request: Request, note: Note) -> Iterator[Cluster]:
        """What SSH would: a connection to each node that is there."""
        after = membership.wanted(given, request)
        self.fake = self.fake.with_file(file({node.name: node.address for node in after.spec.nodes}))
        for name, server in self.fake.servers.items():
            if name not in self.all:
                self.all[name] = server
                self.systemd(name)
                server.put(KEYS, "", 0o600)
                for one in self.fake.programs.values():
                    self.fake._unpack(server, one)
        cluster, change = membership.planned(replace(self.fake.cluster, config=after), given, request)
        left = [Host(name, node.address, self.all[name]) for name, node in change.leaving.items()]
        self.fake.garage.hosts = {**self.fake.servers, **{host.name: self.all[host.name] for host in left}}
        retiring = tuple(host for host in left if host.name not in self.dead)
        skip = ("uninstall/data", "uninstall/containerd", *ELSEWHERE)
        unit.SKIP = skip
        yield replace(cluster, change=replace(change, retiring=retiring))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(unit, "SKIP", unit.SKIP)
    return Site()


def refused(code: str, ask: Callable[[], object]) -> Error:
    with pytest.raises(Error) as caught:
        ask()
    assert caught.value.code == code, caught.value
    assert caught.value.hint
    return caught.value


# The way to the other nodes


def test_the_key_is_roots_alone_and_good_from_the_nodes_alone(site: Site) -> None:
    for server in site.fake.servers.values():
        assert server.tree[replacing.ETC].mode == 0o700
        key = server.files()[replacing.KEY]
        assert (key.mode, key.owner, key.content.decode()) == (0o600, "root:root", PRIVATE)
        line = f'from="10.0.0.11,10.0.0.12,10.0.0.13" {PUBLIC} kubeadm-registry replacing'
        assert server.content(KEYS).decode() == f"{THEIRS}\n{line}\n"
        assert server.files()[KEYS].mode == 0o600
    assert run(allow(OPERATOR, PRIVATE), site.fake.cluster, Recorder()) == []
    assert run(INIT, site.fake.cluster, Recorder(), skip=ELSEWHERE) == []


def test_no_diff_shows_the_key(site: Site) -> None:
    [change] = [one for one in replacing.install(site.fake.cluster, site.fake.cluster.hosts[0], pki.ssh_key()[0])
                if isinstance(one, File) and one.path == replacing.KEY]  # fmt: skip
    assert change.diff(site.fake.cluster.hosts[0]) == f"{replacing.KEY}: changed secret, {len(change.content)} bytes"


def test_the_group_of_the_user_may_have_a_blank_in_its_name(site: Site) -> None:
    """As that of the users from Active Directory."""
    fake = with_admin(site)
    for server in fake.servers.values():
        server.groups |= {"domain users"}
        server.answer("id", "-gn", "--", "admin", with_="domain users\n")
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    for server in fake.servers.values():
        assert server.files()[ADMINS].owner == "admin:domain users"


@pytest.mark.parametrize("workflow", [FORBID, RESET, allow(OPERATOR)], ids=["uninstall", "reset", "not any more"])
def test_nothing_of_it_stays_and_other_keys_do(site: Site, workflow: Workflow) -> None:
    run(workflow, site.fake.cluster, Recorder(), skip=("containerd", "data") if workflow is RESET else ())
    for server in site.fake.servers.values():
        assert server.content(KEYS).decode() == f"{THEIRS}\n"
        assert not [path for path in server.tree if "replac" in path]


def test_authorized_keys_that_are_a_link_stay_one() -> None:
    server = FakeTransport()
    server.put("/srv/keys/root", THEIRS, 0o600)
    server.put(KEYS, "")
    server.tree[KEYS] = Link("/srv/keys/root")
    for wanted, content in (("from=x ssh-ed25519 A kubeadm-registry replacing", True), ("", False)):
        change = replacing.Authorized("root", wanted)
        assert change.diff(server.host())
        change.apply(server.host())
        assert change.diff(server.host()) is None
        assert isinstance(server.tree[KEYS], Link)
        assert (b"replacing" in server.content("/srv/keys/root")) is content


@pytest.mark.parametrize("text", [THEIRS, "ssh-rsa AAAA one\r\nssh-rsa AAAA two\r\n", ""])
def test_authorized_keys_without_a_line_of_ours_are_left_alone(text: str) -> None:
    server = FakeTransport()
    server.put(KEYS, text, 0o600)
    assert replacing.Authorized("root").diff(server.host()) is None


def test_a_removal_that_ends_in_the_middle_is_completed(site: Site) -> None:
    host = site.fake.cluster.hosts[0]
    next(iter(replacing.remove(site.fake.cluster, host))).apply(host)
    run(FORBID, site.fake.cluster, Recorder())
    assert not [path for path in site.all["cp-1"].tree if "replac" in path]


def test_a_node_that_was_away_when_it_was_removed_does_not_bring_it_back(site: Site) -> None:
    run(allow(OPERATOR), replace(site.fake.cluster, hosts=site.fake.cluster.hosts[:2]), Recorder())
    assert replacing.KEY in site.all["cp-3"].tree
    run(INIT, site.fake.cluster, Recorder(), skip=ELSEWHERE)
    for server in site.all.values():
        assert not [path for path in server.tree if "replac" in path]
        assert server.content(KEYS).decode() == f"{THEIRS}\n"


def test_a_node_that_was_made_anew_gets_the_key_of_the_others(site: Site) -> None:
    run(FORBID, replace(site.fake.cluster, hosts=site.fake.cluster.hosts[2:]), Recorder())
    run(INIT, site.fake.cluster, Recorder(), skip=ELSEWHERE)
    assert site.all["cp-3"].content(replacing.KEY).decode() == PRIVATE


def test_a_node_that_was_made_anew_has_no_key_removed_while_another_is_away(site: Site) -> None:
    hosts = site.fake.cluster.hosts
    run(FORBID, replace(site.fake.cluster, hosts=hosts[2:]), Recorder())
    run((HELPER,), replace(site.fake.cluster, hosts=(hosts[0], hosts[2])), Recorder())
    assert site.all["cp-1"].content(replacing.KEY).decode() == PRIVATE
    assert PUBLIC in site.all["cp-1"].content(KEYS).decode()


ADMIN = "  ssh: {user: admin}\n"
ADMINS = "/nonexistent/.ssh/authorized_keys"


def with_admin(site: Site) -> FakeCluster:
    """The same nodes, to which the workstation comes as another user from now on."""
    for server in site.all.values():
        server.users["admin"] = {"admin"}
        server.groups.add("admin")
    return site.fake.with_file(file(THREE) + ADMIN)


def test_another_user_gets_the_line_and_the_former_one_loses_it(site: Site) -> None:
    fake = with_admin(site)
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    for server in fake.servers.values():
        assert server.content(KEYS).decode() == f"{THEIRS}\n"
        assert PUBLIC in server.content(ADMINS).decode()
        assert server.files()[replacing.USERS].mode == 0o600
    assert run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE) == []
    run(INIT, site.fake.cluster, Recorder(), skip=ELSEWHERE)
    for server in fake.servers.values():
        assert (server.content(ADMINS), PUBLIC in server.content(KEYS).decode()) == (b"", True)


@pytest.mark.parametrize("workflow", [FORBID, RESET, allow(OPERATOR)], ids=["uninstall", "reset", "not any more"])
def test_nobodys_line_stays_when_the_user_changed_before_a_removal(site: Site, workflow: Workflow) -> None:
    fake = with_admin(site)
    cluster = fake.cluster
    for host in cluster.hosts[:1]:
        run(INIT, replace(cluster, hosts=(host,)), Recorder(), only=("helper",))
    run(workflow, fake.cluster, Recorder(), skip=("containerd", "data") if workflow is RESET else ())
    for server in fake.servers.values():
        assert server.content(KEYS).decode() == f"{THEIRS}\n"
        assert ADMINS not in server.tree or server.content(ADMINS) == b""
        assert not [path for path in server.tree if "replac" in path]


def test_a_node_that_leaves_keeps_no_line_of_a_former_user(site: Site) -> None:
    site.begin("cp-1")
    with_admin(site)
    left = site.all["cp-2"]
    left.put(replacing.USERS, replacing.NOTED.render({"users": ["admin", "root"]}), 0o600)
    left.put(ADMINS, left.content(KEYS), 0o600)
    done = site.turn("cp-1").work
    assert done is not None
    assert done.error is None, done.error
    assert (left.content(KEYS).decode(), left.content(ADMINS).decode()) == (f"{THEIRS}\n", f"{THEIRS}\n")


def test_a_change_of_the_user_that_is_killed_anywhere_is_completed_by_the_next_run(site: Site) -> None:
    fake, number, server = with_admin(site), 0, site.all["cp-1"]
    while True:
        run((HELPER,), site.fake.cluster, Recorder())
        cluster = fake.cluster
        server.cut_at = len(server.acts) + number
        try:
            run((HELPER,), cluster, Recorder())
        except PhaseFailed:
            run(FORBID, fake.cluster, Recorder())
            lines = [server.content(path) for path in (KEYS, ADMINS) if path in server.tree]
            assert not any(PUBLIC.encode() in content for content in lines), number
            run(allow(OPERATOR, PRIVATE), site.fake.cluster, Recorder())
            number += 1
        else:
            break
    assert number > 4


def test_a_former_user_who_is_gone_does_not_stop_a_removal(site: Site) -> None:
    server = site.all["cp-1"]
    server.put(replacing.USERS, replacing.NOTED.render({"users": ["gone", "root"]}), 0o600)
    run(FORBID, site.fake.cluster, Recorder())
    assert not [path for path in server.tree if "replac" in path]


def test_a_record_of_users_that_is_damaged_is_said(site: Site) -> None:
    for damaged in (b"", b'{"users": "root"}', b'{"users": [7]}'):
        site.all["cp-1"].put(replacing.USERS, damaged, 0o600)
        with pytest.raises(PhaseFailed) as caught:
            run(FORBID, site.fake.cluster, Recorder())
        assert caught.value.code == "ReplacingDamaged"


def test_nodes_know_each_other_by_their_host_keys_and_no_file_of_the_workstation() -> None:
    ssh = "  ssh: {user: root, identityFile: /home/me/id, knownHostsFile: /home/me/known}\n"
    fake = FakeCluster.of(file(THREE) + ssh)
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    run(allow(OPERATOR, PRIVATE), fake.cluster, Recorder())
    for server in fake.servers.values():
        name, found = helper.read_settings(server.content(helper.NODE), "x")
        assert name == server.name
        assert {node.name: node.host_key for node in found.spec.nodes} == {name: host_key(name) for name in THREE}
        assert b"/home/me" not in server.content(helper.NODE)
    away = replace(fake.cluster, hosts=fake.cluster.hosts[:2])
    assert run(allow(OPERATOR, PRIVATE), away, Recorder()) == [], "cp-3 is known from before"


# What may be asked


def test_a_node_that_may_not_says_so(site: Site) -> None:
    run(allow(OPERATOR), site.fake.cluster, Recorder())
    assert not asking.look(site.node("cp-1")).allowed
    assert "--replace-nodes" in refused("ReplacingForbidden", lambda: site.begin("cp-1")).hint
    assert replacing.REQUEST not in site.all["cp-1"].tree


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("cp-9", NEW, "NodeUnknown"),
        ("cp-2", NEW.model_copy(update={"host_key": None}), "HostKeyMissing"),
        ("cp-2", NEW.model_copy(update={"name": "cp-3"}), "MembersDiffer"),
        ("cp-2", NEW.model_copy(update={"address": "10.0.0.13"}), "MembersDiffer"),
        ("cp-2", NEW.model_copy(update={"name": "cp-3", "address": "10.0.0.13"}), "MembersDiffer"),
        ("cp-2", NEW.model_copy(update={"host_key": "x"}), "QuestionInvalid"),
        ("cp-2", NEW.model_copy(update={"name": "cp-4; reboot"}), "QuestionInvalid"),
    ],
)
def test_what_does_not_fit_the_members_is_not_begun(site: Site, old: str, new: Node, code: str) -> None:
    refused(code, lambda: site.begin("cp-1", old, new))
    assert replacing.REQUEST not in site.all["cp-1"].tree
    assert not site.states


@pytest.mark.parametrize("asked", [{}, {"old": 7, "new": {}}, {"old": "cp-2", "new": "cp-4"}, {"old": "cp-2"}])
def test_a_question_that_is_none_is_refused(site: Site, asked: dict[str, Any]) -> None:
    said = json.loads(answered(questions.question("replace", **asked), OnHost(site.host("cp-1"))))
    assert said["error"]["code"] == "QuestionInvalid"


def test_another_change_is_finished_first(site: Site) -> None:
    site.all["cp-1"].put(members.PATH, Members(2, FOUR, before=tuple(THREE)).render())
    other = Node(name="cp-5", address="10.0.0.15", host_key=host_key("cp-5"))
    assert "not finished" in refused("MembersDiffer", lambda: site.begin("cp-1", "cp-2", other)).message


def test_what_runs_already_is_not_begun_again(site: Site) -> None:
    first = site.begin("cp-1").work
    assert first is not None
    assert first.runs
    assert site.begin("cp-1").work == first
    other = Node(name="cp-5", address="10.0.0.15", host_key=host_key("cp-5"))
    refused("ReplacingBusy", lambda: site.begin("cp-1", "cp-3", other))


# What is done


def check_replaced(site: Site) -> None:
    found = listed(site.fake)
    assert (set(found.nodes), found.before, dict(found.former)) == (
        {"cp-1", "cp-3", "cp-4"}, (), {"cp-2": "10.0.0.12"},
    )  # fmt: skip
    line = f'from="10.0.0.11,10.0.0.14,10.0.0.13" {PUBLIC} kubeadm-registry replacing'
    for server in site.fake.servers.values():
        assert server.content(KEYS).decode().splitlines()[-1] == line
        assert server.content(replacing.KEY).decode() == PRIVATE
        _, known = helper.read_settings(server.content(helper.NODE), "x")
        assert [(node.name, node.host_key) for node in known.spec.nodes] == [
            (name, host_key(name)) for name in ("cp-1", "cp-4", "cp-3")
        ]
    assert run(INIT, site.fake.cluster, Recorder(), skip=ELSEWHERE) == []
    assert site.fake.garage.moved == 2


@pytest.mark.parametrize("dead", [True, False], ids=["dead", "alive"])
def test_a_node_is_replaced_and_the_new_one_may_replace_others(site: Site, dead: bool) -> None:
    site.dead = {"cp-2"} if dead else set()
    begun = site.begin("cp-1").work
    assert begun is not None
    assert (begun.runs, begun.old, begun.new, begun.ended) == (True, "cp-2", "cp-4", 0.0)
    done = site.turn("cp-1").work
    assert done is not None
    assert (done.runs, done.error) == (False, None), done.error
    assert done.ended >= done.began >= begun.began
    assert done.steps[-1] == "runbook"
    assert {"arrive/storage", "move/copies", "members", "settle/agents"} <= set(done.steps)
    check_replaced(site)
    left = site.all["cp-2"]
    assert (replacing.KEY in left.tree) is dead
    assert left.content(KEYS).decode().startswith(f"{THEIRS}\n")
    if not dead:
        assert left.content(KEYS).decode() == f"{THEIRS}\n"
    assert asking.look(site.node("cp-4")).allowed


@pytest.mark.parametrize("workflow", [allow(OPERATOR, PRIVATE), FORBID], ids=["install", "uninstall"])
def test_the_cluster_file_of_before_is_refused(site: Site, workflow: Workflow) -> None:
    """It would let in a node that has left, and forget the one that came."""
    site.begin("cp-1")
    site.turn("cp-1")
    old = replace(site.fake, config=config.parse(file(THREE), "cluster.yaml"), servers={n: site.all[n] for n in THREE})
    site.all["cp-1"].put(f"{old.config.spec.data_directory}/garage/meta/cluster_layout", b"it stores images")
    before, acts = old.snapshot(), old.acts()
    with pytest.raises(PreflightFailed) as caught:
        run(workflow, old.cluster, Recorder())
    [problem] = [one for one in caught.value.problems if one.check == "SameCluster"]
    assert "adds cp-2 and omits cp-4" in problem.text
    assert (old.snapshot(), old.acts()) == (before, acts)


@pytest.mark.slow
def test_whatever_ends_it_another_node_completes_it(site: Site) -> None:
    """The connection to a node breaks after each thing that is done there; then another member is asked."""
    site.dead = {"cp-2"}
    site.begin("cp-1")
    before = {name: len(server.acts) for name, server in site.all.items()}
    site.turn("cp-1")
    acts = {name: len(server.acts) - before.get(name, 0) for name, server in site.fake.servers.items()}
    whole = listed(site.fake).render()
    assert acts["cp-3"] > 10
    for name, count in acts.items():
        for number in range(0, count, every(24 if name == "cp-4" else 7)):
            one = Site()
            one.dead = {"cp-2"}
            one.begin("cp-3")
            opened = one.opened

            @contextmanager
            def cut(
                given: RegistryCluster, request: Request, note: Note, *, one: Site = one, opened: Any = opened,
                name: str = name, number: int = number,
            ) -> Iterator[Cluster]:  # fmt: skip
                with opened(given, request, note) as cluster:
                    one.all[name].cut_at = len(one.all[name].acts) + number
                    yield cluster

            here = one.host("cp-3")
            if name == "cp-3":  # its own node dies: nothing is left of the work but what was begun
                here = Host("cp-3", "", replace_transport(one, "cp-3"))
            unit.work(here, cut)
            for server in one.all.values():
                server.closed, server.cut_at = False, None
            one.states.clear()
            assert one.begin("cp-1").work is not None, (name, number)
            done = one.turn("cp-1").work
            assert done is not None
            assert done.error is None, (name, number, done.error)
            assert listed(one.fake).render() == whole, (name, number)
            check_replaced(one)


def replace_transport(site: Site, name: str) -> Any:
    """A node whose own files are still there for what runs on it, when its connection breaks."""
    other = FakeCluster.of(file(THREE)).servers[name]
    other.tree = dict(site.all[name].tree)
    return other


def test_a_node_with_another_cluster_file_gives_it_to_nobody(site: Site) -> None:
    """It was away when the file changed."""
    parsed = config.parse(file(THREE) + "  mirrors: [docker.io]\n", "cluster.yaml")
    host = site.fake.cluster.hosts[0]
    site.all["cp-1"].put(helper.NODE, helper.settings(replace(site.fake.cluster, config=parsed), host), 0o600)
    site.dead = {"cp-2"}
    site.begin("cp-1")
    acts = {name: len(server.acts) for name, server in site.all.items() if name != "cp-1"}
    done = site.turn("cp-1").work
    assert done is not None
    assert done.error is not None
    assert done.error["code"] == "SettingsDiffer"
    assert acts == {name: len(site.all[name].acts) for name in acts}
    site.begin("cp-3")
    again = site.turn("cp-3").work
    assert again is not None
    assert again.error is not None, "cp-1 lacks what the others have"
    assert again.error["code"] == "SettingsDiffer"


def test_nodes_in_the_middle_of_an_upgrade_give_nobody_their_programs(site: Site) -> None:
    record = site.all["cp-3"].content(programs.RECORD)
    site.all["cp-3"].put(programs.RECORD, record.replace(b'"version": "1.0"', b'"version": "1.1"'))
    site.dead = {"cp-2"}
    site.begin("cp-1")
    done = site.turn("cp-1").work
    assert done is not None
    assert done.error is not None
    assert done.error["code"] == "SettingsDiffer"
    assert "upgrade" in done.error["hint"]


def test_a_bug_is_told_and_not_begun_again_at_once(site: Site) -> None:
    site.begin("cp-1")

    def broken(*_: object) -> Any:
        raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError):
        unit.work(site.host("cp-1"), broken)
    done = asking.look(site.node("cp-1")).work
    assert done is not None
    assert done.ended
    assert done.error is not None
    assert done.error["code"] == "ReplacingFailed"


@pytest.mark.parametrize("content", [b"", b'{"old": "cp-2"}', b'{"old": "cp-2", "new": {"name": "cp-4"}}'])
def test_a_request_that_is_damaged_is_told_and_asking_again_writes_it_anew(site: Site, content: bytes) -> None:
    site.begin("cp-1")
    site.all["cp-1"].put(replacing.REQUEST, content, 0o600)
    done = site.turn("cp-1").work
    assert done is not None
    assert done.error is not None
    assert (done.old, done.new, done.error["code"]) == ("cp-2", "cp-4", "RequestDamaged")
    site.begin("cp-1")
    again = site.turn("cp-1").work
    assert again is not None
    assert again.error is None, again.error


def test_a_node_that_leaves_lets_the_others_in_until_it_is_no_member() -> None:
    """One that was uninstalled in half is reached again by whoever completes it."""
    names = [phase.name for phase in CHANGE_MEMBERS]
    assert names.index("uninstall") < names.index("members") < names.index("settle") < names.index("forget")


def test_a_node_on_which_somebody_works_is_left_alone(site: Site) -> None:
    site.dead = {"cp-2"}
    site.all["cp-3"].holder = "root@workstation pid 7"
    site.begin("cp-1")
    done = site.turn("cp-1").work
    assert done is not None
    assert done.error is not None
    assert done.error["code"] == "HostBusy"
    assert members.parse(site.all["cp-3"].content(members.PATH)).nodes == THREE


FORMATS = Path(__file__).parents[1] / "golden" / "formats"


def test_what_is_stored_is_as_the_first_release_with_it_wrote_it(site: Site) -> None:
    asked = replacing.REQUESTED.parse((FORMATS / "replacing-request.json").read_bytes()).values
    assert (asked["old"], Node.model_validate(asked["new"])) == ("cp-2", NEW)
    site.all["cp-1"].put(replacing.WORK, (FORMATS / "replacing-work.json").read_bytes(), 0o600)
    assert asking.look(site.node("cp-1")).work == asking.Work(
        "cp-2", "cp-4", 1795000000.5, ("programs", "arrive", "arrive/admit"),
        "Let them in again where they had left before", 1795000060.0,
        {"message": "locked by another run: root@cp-9", "code": "HostBusy", "hint": "wait until it is done"},
    )  # fmt: skip
    content = replacing.WORKED.render(asking.look(site.node("cp-1")).work.values())  # type: ignore[union-attr]
    assert content == (FORMATS / "replacing-work.json").read_bytes()
    for damaged in (b"", b"[]", b'{"old": "cp-2"}', b'{"old": "cp-2", "new": "cp-4", "began": "soon"}'):
        site.all["cp-1"].put(replacing.WORK, damaged, 0o600)
        assert asking.look(site.node("cp-1")).work is None
