"""The engine: what it compares, changes, refuses and tells."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from kubeadm_registry import config, paths
from kubeadm_registry.cluster import Cluster, leader
from kubeadm_registry.engine.changes import RECORD_START, Change, File, Running, Steps
from kubeadm_registry.engine.phase import Check, Phase, leaves, select
from kubeadm_registry.engine.report import Action
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import (
    CommandFailed,
    ConfigError,
    ConnectionFailed,
    Error,
    HostBusy,
    NotYetKnown,
    PhaseFailed,
    PreflightFailed,
    Problem,
)
from kubeadm_registry.phases import containerd, reset
from kubeadm_registry.phases.workflows import INIT, RESET
from kubeadm_registry.transport.host import Host
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.fakes import UNITS, FakeTransport

pytestmark = pytest.mark.slow

ONE = config.SMALLEST.replace("    - {name: cp-2, address: 10.0.0.12}\n    - {name: cp-3, address: 10.0.0.13}\n", "")
MOTD = "/etc/motd"


@dataclass
class Recorder:
    """A Reporter that remembers."""

    phases: list[str] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    finished: list[Action] = field(default_factory=list)
    later: list[tuple[str, str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    checks: list[tuple[str, str, bool]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    dry: set[bool] = field(default_factory=set)
    moved: list[tuple[int, int]] = field(default_factory=list)

    def phase(self, path: str, summary: str) -> None:
        self.phases.append(path)

    def action(self, action: Action, *, dry_run: bool) -> None:
        self.actions.append(action)
        self.dry.add(dry_run)

    def done(self, action: Action, seconds: float) -> None:
        assert seconds >= 0
        self.finished.append(action)

    def deferred(self, path: str, host: str, reason: str) -> None:
        self.later.append((path, host, reason))

    def problem(self, problem: Problem) -> None:
        self.problems.append(problem)

    def check(self, host: str, name: str, *, ok: bool) -> None:
        self.checks.append((host, name, ok))

    def note(self, text: str, *, host: str = "", level: str = "info") -> None:
        self.notes.append((host, text))

    def progress(self, done: int, total: int) -> None:
        self.moved.append((done, total))

    def error(self, error: Error) -> None:
        raise AssertionError("the engine raises, it does not print")

    def result(self, summary: str, **facts: object) -> None:
        raise AssertionError("the command line says how it ended")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def yields(*changes: Change) -> Callable[[Cluster, Host], Steps]:
    return lambda cluster, host: iter(changes)


def motd(text: bytes = b"hello\n") -> Phase:
    return Phase("motd", "Greet", yields(File(MOTD, text)))


@dataclass(frozen=True)
class Odd:
    """A change made of functions."""

    asks: Callable[[Host], str | None]
    acts: Callable[[Host], object] = lambda host: None
    title: str = "do something odd"

    def diff(self, host: Host) -> str | None:
        return self.asks(host)

    def apply(self, host: Host) -> None:
        self.acts(host)


def raising(error: Exception) -> Callable[..., Any]:
    def raise_it(*_: object) -> Any:
        raise error

    return raise_it


# ---- compare, then change ---------------------------------------------------------------------------------------


def test_what_differs_is_reported_and_changed_and_a_second_run_does_nothing(
    three: FakeCluster, recorder: Recorder
) -> None:
    three.servers["cp-2"].put(MOTD, "old\n")
    actions = run((motd(),), three.cluster, recorder)
    assert sorted((action.host, action.title, action.diff) for action in actions) == [
        ("cp-1", f"write {MOTD}", f"--- /dev/null\n+++ {MOTD}\n@@ -0,0 +1 @@\n+hello"),
        ("cp-2", f"write {MOTD}", f"--- {MOTD}\n+++ {MOTD}\n@@ -1 +1 @@\n-old\n+hello"),
        ("cp-3", f"write {MOTD}", f"--- /dev/null\n+++ {MOTD}\n@@ -0,0 +1 @@\n+hello"),
    ]
    assert {action.phase for action in actions} == {"motd"}
    assert recorder.actions == recorder.finished == actions
    assert recorder.dry == {False}
    assert all(server.content(MOTD) == b"hello\n" for server in three.servers.values())
    flushed = ("/etc/kubeadm-registry", "/opt/kubeadm-registry", "/var/lib/kubeadm-registry")
    assert all(server.flushed == [flushed] for server in three.servers.values()), "it outlives a power cut"

    before = three.acts()
    assert run((motd(),), three.cluster, Recorder()) == []
    assert three.acts() == before
    assert all(server.flushed == [flushed] for server in three.servers.values())


def test_a_step_reads_what_the_one_before_it_wrote(three: FakeCluster, recorder: Recorder) -> None:
    def copy(_: Cluster, host: Host) -> Steps:
        yield File(MOTD, b"hello\n")
        yield File("/etc/copy", host.read(MOTD) or b"nothing")

    run((Phase("copy", "Copy", copy),), three.cluster, recorder)
    assert three.servers["cp-3"].content("/etc/copy") == b"hello\n"


def test_a_dry_run_tells_everything_and_touches_nothing(three: FakeCluster, recorder: Recorder) -> None:
    before = three.snapshot()
    actions = run((motd(),), three.cluster, recorder, dry_run=True)
    assert len(actions) == 3
    assert recorder.actions == actions
    assert recorder.finished == []
    assert recorder.dry == {True}
    assert three.snapshot() == before
    assert three.acts() == []
    assert [server.locked_by for server in three.servers.values()] == [None] * 3, "it need not wait for another run"


@pytest.mark.parametrize(
    "acts",
    [
        lambda host: host.run("systemctl", "daemon-reload"),
        lambda host: host.write(MOTD, b""),
        lambda host: host.upload(None, MOTD),
    ],
)
@pytest.mark.parametrize("early", [True, False])
def test_a_dry_run_refuses_what_a_phase_does_outside_of_a_change(
    three: FakeCluster, recorder: Recorder, acts: Callable[[Host], None], early: bool
) -> None:
    def steps(_: Cluster, host: Host) -> Steps:
        if early:
            acts(host)
        yield Odd(acts)

    with pytest.raises(AssertionError, match="tried to change cp-1 outside of a Change"):
        run((Phase("bad", "Bad", steps),), three.cluster, recorder, dry_run=True)
    assert three.acts() == []


def test_a_change_that_does_not_help_is_an_error(three: FakeCluster, recorder: Recorder) -> None:
    stubborn = Phase("stubborn", "Stubborn", yields(Odd(lambda _: "it is blue")), on=leader)
    with pytest.raises(PhaseFailed) as caught:
        run((stubborn,), three.cluster, recorder)
    assert caught.value.code == "NotConverged"
    assert str(caught.value) == (
        "cp-1: phase stubborn, do something odd: still differs after it was applied: it is blue"
    )
    assert recorder.finished == []


def test_an_error_is_wrapped_once_with_phase_host_and_change(three: FakeCluster, recorder: Recorder) -> None:
    three.servers["cp-1"].answer("make-it-so", with_=3, act="make it so")
    bad = Phase("bad", "Bad", yields(Odd(lambda _: "no", lambda host: host.run("make-it-so"))), on=leader)
    with pytest.raises(PhaseFailed) as caught:
        run((Phase("above", "Above", phases=(bad,)),), three.cluster, recorder)
    error = caught.value
    assert (error.phase, error.host, error.change) == ("above/bad", "cp-1", "do something odd")
    assert isinstance(error.cause, CommandFailed)
    assert error.__cause__ is error.cause
    assert error.code == "CommandFailed"
    assert error.message == "phase above/bad, do something odd: make-it-so failed with exit status 3: it failed"


# ---- interruptions ----------------------------------------------------------------------------------------------

RECORDER = File(RECORD_START, b"#!/bin/sh\n", mode=0o755)


def service(text: bytes, *, reloads: Sequence[str] = ()) -> Phase:
    settings = File("/etc/kubeadm-registry/x.conf", text)
    unit = File(
        f"{UNITS}/x.service",
        f"[Service]\nExecStartPre=+{RECORD_START} %n {settings.path} {UNITS}/x.service\n"
        f"ExecReload=+{RECORD_START} %n {settings.path} {UNITS}/x.service\n[Install]\n".encode(),
    )
    running = Running("x.service", (settings, unit), reloads=reloads)
    return Phase("service", "Serve", yields(settings, unit, running))


@pytest.fixture
def one() -> FakeCluster:
    """One server on which a service runs with the settings b"1"."""
    fake = FakeCluster.of(ONE)
    server = fake.servers["cp-1"]
    for file in (RECORDER, File("/etc/kubeadm-registry/x.conf", b"")):
        server.put(file.path, file.content, file.mode)
    run((service(b"1"),), fake.cluster, Recorder())
    assert server.unit("x.service").starts == 1
    server.acts.clear()
    return fake


def test_a_restart_that_an_interruption_swallowed_is_made_up(one: FakeCluster, recorder: Recorder) -> None:
    server, cluster = one.servers["cp-1"], one.cluster
    server.cut_at = 1
    with pytest.raises(PhaseFailed) as caught:
        run((service(b"2"),), cluster, recorder)
    assert isinstance(caught.value.cause, ConnectionFailed)
    assert server.acts == ["write /etc/kubeadm-registry/x.conf, mode 644, owner root:root"]

    actions = run((service(b"2"),), one.cluster, Recorder())
    assert [action.diff for action in actions] == [
        "x.service: restarts, because it runs with earlier versions of /etc/kubeadm-registry/x.conf"
    ]
    assert server.acts[1:] == ["restart x.service"]
    assert run((service(b"2"),), one.cluster, Recorder()) == []


def test_a_reload_that_an_interruption_swallowed_is_made_up(one: FakeCluster, recorder: Recorder) -> None:
    server = one.servers["cp-1"]
    server.put("/etc/kubeadm-registry/x.conf", b"2")
    run((service(b"2", reloads=("/etc/kubeadm-registry/x.conf",)),), one.cluster, recorder)
    assert server.acts == ["reload x.service"]
    assert run((service(b"2"),), one.cluster, Recorder()) == []


def test_a_reboot_in_between_needs_no_restart(one: FakeCluster, recorder: Recorder) -> None:
    server = one.servers["cp-1"]
    server.put("/etc/kubeadm-registry/x.conf", b"2")
    server.reboot()
    assert run((service(b"2"),), one.cluster, recorder) == []


def everything(fake: FakeCluster) -> list[Action]:
    return run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)


@pytest.mark.parametrize("frontend", ["zot", "distribution"])
@pytest.mark.parametrize("installed", [True, False], ids=["programs there", "programs from a bundle"])
def test_init_done_twice_does_nothing_the_second_time(frontend: str, installed: bool) -> None:
    fake = FakeCluster.of(f"{config.SMALLEST}  frontend: {{type: {frontend}}}\n", installed=installed)
    assert len(everything(fake)) > 100
    before, acts = fake.snapshot(), fake.acts()
    assert everything(fake) == []
    assert run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE, dry_run=True) == []
    assert fake.snapshot() == before
    assert fake.acts() == acts


def test_init_brings_the_guard_back_after_the_firewall_was_flushed(three: FakeCluster) -> None:
    everything(three)
    three.flush_firewall(three.servers["cp-2"])
    (action,) = everything(three)
    assert (action.host, action.title) == ("cp-2", "load /etc/kubeadm-registry/guard.nft")
    assert three.servers["cp-2"].acts[-1] == "reload kubeadm-registry-guard.service"
    assert everything(three) == []


def test_init_makes_the_routes_again_that_an_interface_lost(three: FakeCluster) -> None:
    everything(three)
    three.lose_routes(three.servers["cp-2"])
    (action,) = everything(three)
    assert (action.host, action.title) == ("cp-2", "reload kubeadm-registry-network.service")
    assert action.diff == "route to 10.0.0.12 in table 3901: made (it is missing)"
    assert three.servers["cp-2"].acts[-1] == "reload kubeadm-registry-network.service"
    assert everything(three) == []


@pytest.mark.parametrize("reboots", [True, False], ids=["power cut", "lost connection"])
def test_init_interrupted_at_any_act_is_made_up_by_the_next(reboots: bool) -> None:
    """It ends after each of the things that init does on a server; then init again, and once more."""
    whole = FakeCluster.of(ONE)
    everything(whole)
    acts = whole.servers["cp-1"].acts
    assert len(acts) > 50
    differences = {}
    for number in range(len(acts)):
        fake = FakeCluster.of(ONE)
        cluster = fake.cluster
        fake.servers["cp-1"].cut_at = number
        with pytest.raises(PhaseFailed):
            run(INIT, cluster, Recorder(), skip=ELSEWHERE)
        if reboots:
            fake.servers["cp-1"].reboot()
        everything(fake)
        if everything(fake) != [] or contents(fake) != contents(whole):
            differences[number] = acts[number]
    assert not differences


def test_a_first_init_that_loses_one_of_three_nodes_is_made_up_by_the_next() -> None:
    """Of the services that are not there yet, all nodes install each at once."""

    def units(fake: FakeCluster) -> dict[str, dict[str, str]]:
        return {name: {it: unit.active for it, unit in one.units.items()} for name, one in fake.servers.items()}

    whole = FakeCluster.of(config.SMALLEST, fixed=False)
    everything(whole)
    count = len(whole.servers["cp-2"].acts)
    assert count > 50
    for number in range(0, count, 7):
        fake = FakeCluster.of(config.SMALLEST, fixed=False)
        cluster = fake.cluster
        fake.servers["cp-2"].cut_at = number
        with pytest.raises(PhaseFailed) as caught:
            run(INIT, cluster, Recorder(), skip=ELSEWHERE)
        assert caught.value.host == "cp-2"
        everything(fake)
        assert everything(fake) == [], f"{number}: {whole.servers['cp-2'].acts[number]}"
        assert units(fake) == units(whole)


def contents(fake: FakeCluster) -> object:
    """All of the tree that must be equal however often it took; certificates are made anew."""
    server = fake.servers["cp-1"]
    return (
        {path: node for path, node in server.tree.items() if not path.endswith("node.pem") and "/started" not in path},
        server.users,
        {name: unit.active for name, unit in server.units.items()},
        fake.garage.roles, fake.garage.keys, fake.garage.buckets,
    )  # fmt: skip


def test_reset_leaves_data_and_secrets_and_nothing_else(three: FakeCluster) -> None:
    everything(three)
    secrets = three.servers["cp-1"].content("/etc/kubeadm-registry/secrets.json")
    run(RESET, three.cluster, Recorder(), skip=("containerd", "data"))
    assert run(RESET, three.cluster, Recorder(), skip=("containerd", "data")) == []
    for server in three.servers.values():
        assert not server.host().query("nft", "list", "table", "inet", paths.PREFIX).ok
        left = {path for path in server.files() if "kubeadm-registry" in path}
        assert left and {path.rpartition("/kubeadm-registry")[0] for path in left} == {"/var/lib"}
        assert server.content("/var/lib/kubeadm-registry/secrets.json") == secrets
        assert server.users == {"root": {"root"}}
    run(RESET, three.cluster, Recorder(), skip=("containerd",))
    assert not any("kubeadm-registry" in path for server in three.servers.values() for path in server.files())


# ---- what is not known yet --------------------------------------------------------------------------------------


def patient(_: Cluster, host: Host) -> Steps:
    yield File(MOTD, b"hello\n")
    yield Odd(raising(NotYetKnown("the colour is known once it is painted")))
    yield File("/etc/never", b"")


def test_a_dry_run_says_later_and_goes_on(three: FakeCluster, recorder: Recorder) -> None:
    other = Phase("other", "Other", yields(File("/etc/other", b"")), on=leader)
    actions = run((Phase("patient", "Patient", patient), other), three.cluster, recorder, dry_run=True)
    assert sorted(recorder.later) == [
        ("patient", name, "the colour is known once it is painted") for name in ("cp-1", "cp-2", "cp-3")
    ]
    assert sorted((action.phase, action.host) for action in actions) == [
        ("other", "cp-1"), ("patient", "cp-1"), ("patient", "cp-2"), ("patient", "cp-3"),
    ]  # fmt: skip


def test_a_real_run_fails_there(three: FakeCluster, recorder: Recorder) -> None:
    with pytest.raises(PhaseFailed, match="the colour is known once it is painted") as caught:
        run((Phase("patient", "Patient", patient, on=leader),), three.cluster, recorder)
    assert caught.value.code == "NotYetKnown"
    assert recorder.later == []


def test_a_dry_run_of_init_on_bare_servers_shows_what_it_can(three: FakeCluster, recorder: Recorder) -> None:
    three.fixed = None
    before = three.snapshot()
    actions = run(INIT, three.cluster, recorder, skip=ELSEWHERE, dry_run=True)
    assert three.snapshot() == before
    assert {action.host for action in actions} == {"cp-1", "cp-2", "cp-3"}
    assert any('"secretkey": <secret>' in action.diff for action in actions)
    assert {path for path, _, _ in recorder.later} == {"backend/install", "backend/form"}, recorder.later


# ---- checks -----------------------------------------------------------------------------------------------------


def finds(*texts: str) -> Callable[[Cluster, Host], Iterator[str]]:
    return lambda cluster, host: (f"{text} on {host.name}" for text in texts)


COLD = Check("Cold", finds("it is cold", "it snows"))
WET = Check("Wet", lambda cluster, host: iter(["it is wet"] if host.name == "cp-2" else []))
DARK = Check("Dark", finds("it is dark"), on=leader)
GOOD = Check("Good", finds())
UNKNOWN = Check("Unknown", raising(NotYetKnown("not yet")))
OUTSIDE = Phase(
    "outside", "Outside", yields(File(MOTD, b"")), checks=(COLD, WET, GOOD, UNKNOWN),
    phases=(Phase("night", "Night", checks=(DARK, COLD)),),
)  # fmt: skip


def test_all_problems_of_all_hosts_are_told_and_nothing_is_changed(three: FakeCluster, recorder: Recorder) -> None:
    with pytest.raises(PreflightFailed) as caught:
        run((motd(), OUTSIDE), three.cluster, recorder)
    expected = [
        Problem("Cold", "cp-1", "it is cold on cp-1"),
        Problem("Cold", "cp-1", "it snows on cp-1"),
        Problem("Dark", "cp-1", "it is dark on cp-1"),
        Problem("Cold", "cp-2", "it is cold on cp-2"),
        Problem("Cold", "cp-2", "it snows on cp-2"),
        Problem("Wet", "cp-2", "it is wet"),
        Problem("Cold", "cp-3", "it is cold on cp-3"),
        Problem("Cold", "cp-3", "it snows on cp-3"),
    ]
    assert recorder.problems == list(caught.value.problems) == expected
    assert caught.value.exit_code == 3
    assert caught.value.message == "preflight found 8 problems; nothing was changed"
    assert caught.value.hint.endswith("--ignore-preflight-errors=Cold,Dark,Wet to continue anyway")
    assert ("cp-1", "Good", True) in recorder.checks
    assert ("cp-1", "Cold", False) in recorder.checks
    assert not any(name == "Unknown" for _, name, _ in recorder.checks)
    assert recorder.phases == []
    assert three.acts() == []


@pytest.mark.parametrize("ignore", [("Cold", "Wet", "Dark"), ("all",)])
def test_ignored_problems_are_told_and_stop_nothing(
    three: FakeCluster, recorder: Recorder, ignore: tuple[str, ...]
) -> None:
    actions = run((OUTSIDE,), three.cluster, recorder, ignore=ignore)
    assert len(recorder.problems) == 8
    assert all(problem.ignored for problem in recorder.problems)
    assert len(actions) == 3


def test_one_problem_that_is_not_ignored_stops_the_run(three: FakeCluster, recorder: Recorder) -> None:
    with pytest.raises(PreflightFailed) as caught:
        run((OUTSIDE,), three.cluster, recorder, ignore=("Cold", "Dark"))
    assert caught.value.message == "preflight found 1 problem; nothing was changed"
    assert caught.value.hint.endswith("--ignore-preflight-errors=Wet to continue anyway")
    assert three.acts() == []


def test_a_check_that_cannot_ask_is_a_problem_and_the_others_go_on(three: FakeCluster, recorder: Recorder) -> None:
    def broken(cluster: Cluster, host: Host) -> Iterator[str]:
        if host.name:
            raise Error("cannot read /etc/x: it is a pipe", hint="move it away", host=host.name)
        yield ""

    phase = Phase("outside", "Look", checks=(Check("Broken", broken), Check("Wet", lambda c, h: iter(["it rains"]))))
    with pytest.raises(PreflightFailed) as caught:
        run((phase,), three.cluster, recorder)
    found = [(problem.check, problem.host, problem.text) for problem in caught.value.problems]
    assert found == [
        (name, host, text)
        for host in ("cp-1", "cp-2", "cp-3")
        for name, text in (("Broken", "cannot read /etc/x: it is a pipe; move it away"), ("Wet", "it rains"))
    ]


def test_a_connection_that_breaks_in_a_check_is_no_problem_of_the_host(three: FakeCluster, recorder: Recorder) -> None:
    def lost(cluster: Cluster, host: Host) -> Iterator[str]:
        if host.name:
            raise ConnectionFailed("the connection broke", host=host.name)
        yield ""

    with pytest.raises(ConnectionFailed):
        run((Phase("outside", "Look", checks=(Check("Lost", lost),)),), three.cluster, recorder)
    assert three.acts() == []


def test_two_checks_of_one_name_are_both_made(three: FakeCluster, recorder: Recorder) -> None:
    """Such as one for the nodes that come and one for those that leave, which users ignore by one name."""
    others = Phase("others", "Others", checks=(Check("Cold", finds(), on=leader),))
    with pytest.raises(PreflightFailed):
        run((OUTSIDE, others), three.cluster, recorder)
    assert [problem.text for problem in recorder.problems if problem.check == "Cold"] == [
        f"{text} on {name}" for name in ("cp-1", "cp-2", "cp-3") for text in ("it is cold", "it snows")
    ]
    assert recorder.checks.count(("cp-1", "Cold", True)) == 1


def test_only_checks_of_selected_phases_run(three: FakeCluster, recorder: Recorder) -> None:
    run((motd(), OUTSIDE), three.cluster, recorder, only=("motd",))
    assert recorder.checks == []


def test_checks_run_on_read_only_hosts_in_a_dry_run_too(three: FakeCluster, recorder: Recorder) -> None:
    with pytest.raises(PreflightFailed):
        run((OUTSIDE,), three.cluster, recorder, dry_run=True)


def test_an_unknown_check_lists_the_known_ones(three: FakeCluster, recorder: Recorder) -> None:
    with pytest.raises(ConfigError, match="unknown check Colt") as caught:
        run((OUTSIDE,), three.cluster, recorder, ignore=("Colt",))
    assert caught.value.hint == "choose from: Cold, Wet, Good, Unknown, Dark"
    assert caught.value.code == "CheckUnknown"


def test_every_check_of_init_has_its_own_name() -> None:
    """The name is what a user types: who ignores one of two ignores both."""
    named: dict[str, Check] = {}
    for _, phase in leaves(INIT):
        for check in phase.checks:
            assert named.setdefault(check.name, check) is check
    assert len(named) >= 10


# ---- selection --------------------------------------------------------------------------------------------------

TREE = (
    Phase("a", "A", phases=(Phase("one", "A1"), Phase("two", "A2", phases=(Phase("deep", "A2d"),)))),
    Phase("ab", "AB"),
    Phase("b", "B", phases=(Phase("one", "B1"),)),
)


@pytest.mark.parametrize(
    ("only", "skip", "expected"),
    [
        ((), (), "a a/one a/two a/two/deep ab b b/one"),
        (("a",), (), "a a/one a/two a/two/deep"),
        (("a/two",), (), "a/two a/two/deep"),
        (("b/one", "a/one"), (), "a/one b/one"),
        ((), ("a",), "ab b b/one"),
        ((), ("a/two", "ab"), "a a/one b b/one"),
        (("a",), ("a/two/deep",), "a a/one a/two"),
    ],
)
def test_selection_takes_what_lies_below(only: tuple[str, ...], skip: tuple[str, ...], expected: str) -> None:
    assert [path for path, _ in select(TREE, only, skip)] == expected.split()


@pytest.mark.parametrize(("only", "skip"), [(("a/three",), ()), ((), ("one",)), (("",), ())])
def test_an_unknown_phase_lists_the_known_ones(only: tuple[str, ...], skip: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="unknown phase") as caught:
        select(TREE, only, skip)
    assert caught.value.hint == "choose one of: a, a/one, a/two, a/two/deep, ab, b, b/one"
    assert caught.value.exit_code == 2


def test_an_unknown_phase_is_refused_before_any_host_is_asked(three: FakeCluster, recorder: Recorder) -> None:
    cluster, asked = three.cluster, len(three.log())
    with pytest.raises(ConfigError):
        run(INIT, cluster, recorder, only=("initt",))
    assert len(three.log()) == asked


def test_phases_run_in_order_and_a_later_one_never_begins_after_a_failure(
    three: FakeCluster, recorder: Recorder
) -> None:
    bad = Phase("bad", "Bad", yields(Odd(raising(Error("broken")))))
    with pytest.raises(PhaseFailed):
        run((motd(), bad, Phase("after", "After", yields(File("/etc/after", b"")))), three.cluster, recorder)
    assert recorder.phases == ["motd", "bad"]


# ---- hosts side by side, or one at a time -----------------------------------------------------------------------


def test_hosts_of_a_phase_work_side_by_side(three: FakeCluster, recorder: Recorder) -> None:
    together = threading.Barrier(3, timeout=30)

    def ask(_: Host) -> str | None:
        together.wait()
        return None

    run((Phase("meet", "Meet", yields(Odd(ask))),), three.cluster, recorder)
    assert not together.broken


def test_every_failure_of_hosts_side_by_side_is_told(three: FakeCluster, recorder: Recorder) -> None:
    three.servers["cp-2"].put(MOTD, "hello\n")

    def ask(host: Host) -> str | None:
        if host.name != "cp-2":
            raise Error(f"{host.name} is broken")
        return None

    with pytest.raises(PhaseFailed, match="cp-1 is broken"):
        run((Phase("bad", "Bad", yields(Odd(ask), File(MOTD, b"done\n"))),), three.cluster, recorder)
    assert recorder.notes == [("cp-3", "also failed: phase bad, do something odd: cp-3 is broken")]
    assert three.servers["cp-2"].content(MOTD) == b"done\n", "the good host finished"


def test_an_interruption_is_told_and_begins_no_further_step(three: FakeCluster) -> None:
    told = threading.Event()

    class Telling(Recorder):
        def note(self, text: str, *, host: str = "", level: str = "info") -> None:
            super().note(text, host=host, level=level)
            told.set()

    begun = set()

    def act(host: Host) -> None:
        begun.add(host.name)
        if host.name == "cp-2":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert told.wait(30)

    odd = Odd(lambda host: None if host.name in begun else "not begun", act)
    recorder = Telling()
    # A shell has what runs in its background ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run((Phase("meet", "Meet", yields(odd, File(MOTD, b"done\n"))),), three.cluster, recorder)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [text for _, text in recorder.notes] == [
        "interrupted: completing changes in progress; press Ctrl-C again to stop immediately"
    ]
    assert all(MOTD not in server.tree for server in three.servers.values())


def serial(change: Change) -> Phase:
    return Phase("serial", "Serial", yields(change), one_at_a_time=True)


def test_one_at_a_time_goes_in_order_and_only_where_something_differs(three: FakeCluster, recorder: Recorder) -> None:
    three.servers["cp-2"].put(MOTD, "hello\n")
    journal: list[tuple[str, str]] = []

    def act(host: Host) -> None:
        journal.append(("begin", host.name))
        host.write(MOTD, b"hello\n")
        journal.append(("end", host.name))

    change = Odd(lambda host: None if host.read(MOTD) else "no greeting", act)
    run((serial(change),), three.cluster, recorder)
    assert journal == [("begin", "cp-1"), ("end", "cp-1"), ("begin", "cp-3"), ("end", "cp-3")]


@pytest.mark.parametrize("at_once", [False, True])
def test_a_first_installation_takes_all_hosts_at_once_where_it_may(
    three: FakeCluster, recorder: Recorder, at_once: bool
) -> None:
    """A cluster whose secrets nobody has asked for looks the same to a run that only restarts something."""
    three.fixed = None  # no secrets before
    together = threading.Barrier(3 if at_once else 1)
    journal: list[str] = []

    def act(host: Host) -> None:
        journal.append("begin")
        together.wait(timeout=30)
        host.write(MOTD, b"hello\n")
        together.wait(timeout=30)
        journal.append("end")

    change = Odd(lambda host: None if host.read(MOTD) else "no greeting", act)
    run((replace(serial(change), first_at_once=at_once),), three.cluster, recorder)
    assert journal == (["begin"] * 3 + ["end"] * 3 if at_once else ["begin", "end"] * 3)


@pytest.mark.parametrize("phase", [containerd.CONTAINERD, reset.CONTAINERD], ids=["init", "reset"])
def test_containerd_restarts_on_one_host_after_the_other_also_without_secrets(
    three: FakeCluster, recorder: Recorder, phase: Phase
) -> None:
    """A host on which it does not come back is the only one: so where a registry is removed that lost its secrets."""
    three.fixed = None
    for server in three.servers.values():
        server.answer("restart", with_=1, act="restart")
    change = Odd(lambda host: "it restarts", lambda host: host.run("restart"))
    with pytest.raises(PhaseFailed):
        run((replace(phase, steps=yields(change), checks=(), notices=None),), three.cluster, recorder)
    assert [name for name, server in three.servers.items() if server.acts] == ["cp-1"]


def test_one_at_a_time_stops_at_the_first_failure(three: FakeCluster, recorder: Recorder) -> None:
    """The next host serves users: nobody knows what the same change would do to it."""
    for name in ("cp-2", "cp-3"):
        three.servers[name].answer("make-it-so", with_=1, act="make it so")
    three.servers["cp-1"].put(MOTD, "hello\n")
    change = Odd(lambda host: None if host.read(MOTD) else "no greeting", lambda host: host.run("make-it-so"))
    with pytest.raises(PhaseFailed) as caught:
        run((serial(change),), three.cluster, recorder)
    assert caught.value.host == "cp-2"
    assert three.servers["cp-3"].acts == []
    assert recorder.notes == []


@pytest.mark.parametrize("serially", [False, True])
def test_a_host_that_is_given_up_is_left_alone_and_the_run_goes_on(
    three: FakeCluster, recorder: Recorder, serially: bool
) -> None:
    three.servers["cp-2"].answer("make-it-so", with_=1, act="make it so")
    for name in ("cp-1", "cp-3"):
        three.servers[name].answer("make-it-so", with_=lambda *_, of=name: three.servers[of].put(MOTD, "so\n") or "")
    change = Odd(lambda host: None if host.read(MOTD) else "no greeting", lambda host: host.run("make-it-so"))
    first = Phase("first", "First", yields(change), one_at_a_time=serially, gives_up="it stays as it is")
    then = Phase("then", "Then", yields(File("/etc/then", b"")), gives_up="it stays as it is")
    last = Phase("last", "Last", yields(File("/etc/last", b"")))
    run((first, then, last), three.cluster, recorder)
    there = {name: {"/etc/then", "/etc/last"} & set(server.tree) for name, server in three.servers.items()}
    assert there == {
        "cp-1": {"/etc/then", "/etc/last"}, "cp-2": {"/etc/last"}, "cp-3": {"/etc/then", "/etc/last"},
    }  # fmt: skip
    [(host, text)] = recorder.notes
    assert host == "cp-2"
    assert text.startswith("phase first, do something odd: make-it-so failed")
    assert text.endswith("; it stays as it is")


def test_one_at_a_time_takes_a_host_that_cannot_be_compared_yet(three: FakeCluster, recorder: Recorder) -> None:
    """Its earlier steps may make known what the later ones ask for."""

    def steps(_: Cluster, host: Host) -> Steps:
        yield File(MOTD, b"hello\n")
        yield Odd(lambda host: None if host.read(MOTD) else raising(NotYetKnown("no greeting"))())

    actions = run((Phase("serial", "Serial", steps, one_at_a_time=True),), three.cluster, recorder)
    assert [action.host for action in actions] == ["cp-1", "cp-2", "cp-3"]


def test_one_at_a_time_takes_a_host_that_cannot_be_compared_at_all(three: FakeCluster, recorder: Recorder) -> None:
    """When its turn comes, the error is that of the phase on this host; those before it are done."""

    def ask(host: Host) -> str | None:
        if host.name == "cp-2":
            raise Error("the disk cannot be read", hint="replace it", code="DiskBroken")
        return None if host.read(MOTD) else "no greeting"

    change = Odd(ask, lambda host: host.write(MOTD, b"hello\n"))
    with pytest.raises(PhaseFailed, match="the disk cannot be read") as caught:
        run((serial(change),), three.cluster, recorder)
    assert (caught.value.host, caught.value.phase, caught.value.code) == ("cp-2", "serial", "DiskBroken")
    assert three.servers["cp-1"].content(MOTD) == b"hello\n"
    assert MOTD not in three.servers["cp-3"].tree


def test_one_at_a_time_compares_without_changing(three: FakeCluster, recorder: Recorder) -> None:
    """A phase that acts outside of a change shows it when hosts are compared, before any takes its turn."""

    def steps(_: Cluster, host: Host) -> Steps:
        host.write(MOTD, b"")
        yield File(MOTD, b"hello\n")

    with pytest.raises(AssertionError, match="outside of a Change"):
        run((Phase("serial", "Serial", steps, one_at_a_time=True),), three.cluster, recorder)
    assert three.acts() == []


def test_a_dry_run_of_one_at_a_time_shows_all_hosts(three: FakeCluster, recorder: Recorder) -> None:
    actions = run((serial(File(MOTD, b"")),), three.cluster, recorder, dry_run=True)
    assert {action.host for action in actions} == {"cp-1", "cp-2", "cp-3"}


def test_a_file_changed_by_hand_is_put_right_without_a_restart(three: FakeCluster) -> None:
    """The service never saw the change."""
    everything(three)
    for server in three.servers.values():
        server.put("/etc/kubeadm-registry/zot/writer.json", "{}", 0o640, "root:kubeadm-registry-agent")
        server.acts.clear()
    everything(three)
    assert {act for server in three.servers.values() for act in server.acts} == {
        "write /etc/kubeadm-registry/zot/writer.json, mode 640, owner root:kubeadm-registry-agent"
    }


def test_services_restart_on_one_server_after_the_other(three: FakeCluster) -> None:
    everything(three)
    seen: list[tuple[str, str]] = []
    for name, server in three.servers.items():
        server.on_start = lambda unit, name=name: seen.append((unit, name))  # type: ignore[misc]
    three.config = config.parse(f"{config.SMALLEST}  dataDirectory: /srv/registry\n", "changed")
    everything(three)
    expected = ["kubeadm-registry-garage.service", "kubeadm-registry-zot.service"]
    once = [(unit, name) for unit in expected for name in three.servers]
    # The agent keeps what it has promised beside the data. The holder of the virtual IP comes last.
    assert seen == [*once, *(("kubeadm-registry-agent.service", name) for name in ("cp-2", "cp-3", "cp-1"))]


@pytest.mark.parametrize("one_at_a_time", [True, False])
def test_notices_are_told_after_the_steps(three: FakeCluster, recorder: Recorder, one_at_a_time: bool) -> None:
    def notices(_: Cluster, host: Host) -> Iterator[str]:
        if host.name == "cp-2":
            raise NotYetKnown("not yet")
        yield f"it says {(host.read(MOTD) or b'').decode().strip()}"

    run((replace(motd(), notices=notices, one_at_a_time=one_at_a_time),), three.cluster, recorder)
    assert recorder.notes == [("cp-1", "it says hello"), ("cp-3", "it says hello")]


# ---- locks ------------------------------------------------------------------------------------------------------


def test_a_run_locks_every_host(three: FakeCluster, recorder: Recorder) -> None:
    run((motd(),), three.cluster, recorder)
    assert all(f"pid {os.getpid()}" in str(server.locked_by) for server in three.servers.values())


def test_a_busy_host_is_left_alone_with_all_others(three: FakeCluster, recorder: Recorder) -> None:
    three.servers["cp-2"].holder = "ada@desk pid 7"
    with pytest.raises(HostBusy) as caught:
        run((motd(),), three.cluster, recorder)
    assert str(caught.value) == "cp-2: locked by another run: ada@desk pid 7"
    assert three.servers["cp-3"].locked_by is None, "they are locked in order, so two runs cannot each hold a half"
    assert three.acts() == []
    assert recorder.checks == []


def test_two_files_in_another_order_lock_in_the_same_one(three: FakeCluster, recorder: Recorder) -> None:
    three.servers["cp-2"].holder = "ada@desk pid 7"
    backwards = replace(three.cluster, hosts=three.cluster.hosts[::-1])
    with pytest.raises(HostBusy):
        run((motd(),), backwards, recorder)
    assert three.servers["cp-3"].locked_by is None, "ada's run, which is to have it next, goes on"


def test_a_busy_host_does_not_stop_a_dry_run(three: FakeCluster, recorder: Recorder) -> None:
    three.servers["cp-2"].holder = "ada@desk pid 7"
    assert len(run((motd(),), three.cluster, recorder, dry_run=True)) == 3


def test_the_fake_refuses_what_it_does_not_understand(server: FakeTransport) -> None:
    with pytest.raises(AssertionError, match="mkfs"):
        server.host().query("mkfs", "/dev/sda")
