"""The look at all hosts before anything is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from kubeadm_registry import config
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.changes import File, Steps, Wait
from kubeadm_registry.engine.look import differences, look
from kubeadm_registry.engine.phase import Phase, select
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import CommandTimeout, ConnectionFailed, NotYetKnown
from kubeadm_registry.phases.workflows import INIT
from kubeadm_registry.transport import host as host_module
from kubeadm_registry.transport.host import Host
from tests.unit.fake_cluster import FakeCluster
from tests.unit.fakes import Command
from tests.unit.test_workflow import Recorder

SKIP = ("preflight", "containerd", "verify")
HERE, THERE = "/etc/here", "/etc/there"


def files(*paths: str) -> Phase:
    def steps(_: Cluster, host: Host) -> Steps:
        for path in paths:
            yield File(path, b"hello\n")

    return Phase("-".join(path.rpartition("/")[2] for path in paths), "Files", steps)


def asking(condition: Callable[[Host], str | None]) -> Phase:
    def steps(_: Cluster, host: Host) -> Steps:
        yield Wait("all is well", condition)

    return Phase("asking", "Ask", steps)


@pytest.fixture
def installed(three: FakeCluster) -> FakeCluster:
    run(INIT, three.cluster, Recorder(), skip=SKIP)
    return three


def since(cluster: FakeCluster, begin: dict[str, int]) -> dict[str, list[Command]]:
    return {name: server.log[begin[name] :] for name, server in cluster.servers.items()}


def now(cluster: FakeCluster) -> dict[str, int]:
    return {name: len(server.log) for name, server in cluster.servers.items()}


def test_a_second_run_asks_each_host_each_question_once(installed: FakeCluster) -> None:
    begin, acts = now(installed), installed.acts()
    recorder = Recorder()
    assert run(INIT, installed.cluster, recorder, skip=SKIP) == []
    assert recorder.phases == [path for path, phase in select(INIT, skip=SKIP) if phase.steps is not None]
    assert installed.acts() == acts
    for name, log in since(installed, begin).items():
        # Before it, the secrets are read, and what other runs left is removed; after it, phases tell of what stays.
        swept = next(place for place, command in enumerate(log) if "sweep" in command.argv)
        asked = Counter((command.argv, command.stdin) for command in log[swept:])
        assert [argv for (argv, _), count in asked.items() if count > 1 and argv[0] != "ip"] == [], name


def test_phases_before_the_first_that_differs_are_asked_no_more(installed: FakeCluster) -> None:
    for server in installed.servers.values():
        server.put(HERE, "hello\n")
    installed.servers["cp-3"].put(THERE, "hello\n")
    begin, recorder = now(installed), Recorder()
    actions = run((files(HERE), files(THERE)), installed.cluster, recorder)
    assert sorted(action.host for action in actions) == ["cp-1", "cp-2"]
    assert recorder.phases == ["here", "there"]
    reads = Counter(word for log in since(installed, begin).values() for command in log for word in command.argv)
    assert reads[HERE] == 3
    assert reads[THERE] > 3


@pytest.mark.parametrize(
    "error", [NotYetKnown("nothing answers"), ConnectionFailed("the connection was lost"), ValueError("odd words")]
)
def test_what_cannot_be_told_differs(installed: FakeCluster, error: Exception) -> None:
    def ask(host: Host) -> str | None:
        if host.name == "cp-2":
            raise error
        return None

    for server in installed.servers.values():
        server.put(HERE, "hello\n")
    selected = [("here", files(HERE)), ("asking", asking(ask)), ("again", files(HERE))]
    assert look(selected, installed.cluster).settled == 1


def test_what_cannot_be_read_ahead_is_asked_for_by_itself(installed: FakeCluster) -> None:
    for server in installed.servers.values():
        server.put(HERE, "hello\n")

        def hangs(*_: object) -> str:
            raise CommandTimeout("read-ahead did not exit within 60 s and was killed")

        server.answer("sh", "-c", host_module._READ_MANY, with_=hangs)
    assert look([("here", files(HERE))], installed.cluster).settled == 1


def test_nothing_differs_where_nothing_is_to_be_done(installed: FakeCluster) -> None:
    assert look([], installed.cluster).settled == 0
    assert look([("group", Phase("group", "No steps"))], installed.cluster).settled == 1


def test_a_phase_that_acts_while_it_looks_is_a_bug(installed: FakeCluster) -> None:
    with pytest.raises(AssertionError, match="tried to change cp-"):
        look([("bad", asking(lambda host: host.run("reboot").text))], installed.cluster)


def test_bare_hosts_where_all_would_differ_are_not_looked_at_first() -> None:
    bare = FakeCluster.of(config.SMALLEST, fixed=False)
    asked: list[str] = []
    run((asking(lambda host: asked.append(host.name)),), bare.cluster, Recorder())
    assert sorted(asked) == sorted(bare.servers)


def test_differences_go_on_behind_what_cannot_be_told(installed: FakeCluster) -> None:
    installed.servers["cp-1"].put(HERE, "hello\n")
    secret = installed.cluster.secrets.push_password

    def breaks(host: Host) -> str | None:
        raise CommandTimeout(f"it hangs with {secret}", host=host.name)

    def raises(_: Cluster, host: Host) -> Steps:
        yield File(THERE, b"hello\n")
        raise NotYetKnown("nobody knows", host=host.name)

    selected = select((asking(breaks), Phase("raising", "Raise", raises), files(HERE)))
    acts = installed.acts()
    found = differences(selected, installed.cluster)
    assert installed.acts() == acts
    on = {
        name: [(one.phase, type(one.error).__name__) for one in found if one.host == name] for name in ("cp-1", "cp-2")
    }
    all_of_it = [("asking", "CommandTimeout"), ("raising", "NoneType"), ("raising", "NotYetKnown")]
    assert on == {"cp-1": all_of_it, "cp-2": [*all_of_it, ("here", "NoneType")]}
    assert not any(secret in one.text for one in found)
