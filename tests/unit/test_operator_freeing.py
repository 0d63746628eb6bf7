"""The operator frees space by questions to the helpers: the same steps, whatever ends it in the middle."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import members, paths, secrets
from kubeadm_registry.access import collecting, questions
from kubeadm_registry.access.collecting import ByHelper, Place
from kubeadm_registry.access.executor import OnHost
from kubeadm_registry.components import garage, helper, programs
from kubeadm_registry.errors import ConnectionFailed, Error
from kubeadm_registry.helper import jobs
from kubeadm_registry.helper import space as job
from kubeadm_registry.helper.__main__ import answered
from kubeadm_registry.members import Members
from kubeadm_registry.operator import freeing
from kubeadm_registry.operator.figures import Figures
from kubeadm_registry.operator.rounds import Rounds
from kubeadm_registry.operator.way import Way
from kubeadm_registry.registry import Login
from kubeadm_registry.retention.history import History, Run
from kubeadm_registry.retention.order import Caller
from kubeadm_registry.transport.host import Host
from kubeadm_registry.upkeep import store
from tests.unit.fake_cluster import fixed_secrets
from tests.unit.fake_registry import connector
from tests.unit.kills import every
from tests.unit.test_collect import DAY, World, blob, world  # noqa: F401  the fixture

pytestmark = pytest.mark.slow

NOW = 1_795_000_000.0


class Stopped(Exception):
    """Stands for the end of the operator."""


class Site:
    """The nodes of *world* with helpers; *stops* counts questions until the operator's end."""

    def __init__(self, world: World) -> None:  # noqa: F811
        self.world = world
        self.cluster = world.fake.cluster
        self.asked: list[tuple[str, str]] = []
        self.stops: int | None = None
        self.stopped = False
        self.away = 0
        self.jobs: dict[tuple[str, str], threading.Thread] = {}
        for name, server in world.fake.servers.items():
            server.put(secrets.PATH, fixed_secrets(tuple(world.fake.servers)).to_json(), 0o600)
            host = next(one for one in self.cluster.hosts if one.name == name)
            server.put(helper.NODE, helper.settings(self.cluster, host), 0o600)
            server.put(f"{helper.STEPS}/README", b"")
            server.put(programs.RECORD, programs.record(world.fake.programs, None))
            server.unit(garage.UNIT).active = "active"
            server.answer(
                "systemctl", "start", "--no-block", "--", with_=lambda argv, _, host=host: self.start(host, argv[-1]),
                act="start",
            )  # fmt: skip
            server.answer(
                "systemctl", "show", "--property=ActiveState", "--value", "--",
                with_=lambda argv, _, name=name: self.state(name, argv[-1]),
            )  # fmt: skip
        world.fake.garage.buckets["b"] = {"globalAliases": ["registry-distribution"], "bytes": 5000}

    def start(self, host: Host, unit: str) -> str:
        """What systemd does: the step runs, as the node knows itself."""
        step = unit.partition("@")[2].removesuffix(".service")

        def here(one: Host) -> Place:
            return replace(job.here(one), connect=connector(self.world.registry))

        self.jobs[host.name, step] = threading.Thread(target=job.work, args=(step, host, here))
        self.jobs[host.name, step].start()  # systemd does not wait for it either
        return ""

    def state(self, name: str, unit: str) -> str:
        """Of a unit."""
        running = self.jobs.get((name, unit.partition("@")[2].removesuffix(".service")))
        return "activating" if running is not None and running.is_alive() else "inactive"

    def members(self) -> list[ByHelper]:
        return [ByHelper(host.name, self.ask(host)) for host in self.cluster.hosts]

    def ask(self, host: Host) -> Callable[[bytes, float], bytes]:
        def ask(content: bytes, _: float) -> bytes:
            if self.stops is not None and len(self.asked) >= self.stops:
                self.stopped = True
                raise Stopped
            asked = json.loads(content)
            self.asked.append((host.name, asked["step"]))
            if self.away and asked["verb"] == "spaced":
                self.away -= 1
                raise ConnectionFailed("no route to host", host=host.name)
            return answered(content, OnHost(host))

        return ask

    def free(self) -> freeing.Freed:
        connect = connector(self.world.registry)
        return freeing.free(self.cluster.config, self.members(), connect, itertools.count(int(NOW)).__next__)


@pytest.fixture
def site(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:  # noqa: F811
    monkeypatch.setattr(garage, "STABLE", 0.0)
    monkeypatch.setattr(jobs, "EVERY", 0.002)
    made = Site(world)
    blob(world, "app", b"old", bytes_age=9 * DAY, link_age=9 * DAY)
    yield made


def test_nothing_is_freed_while_a_member_would_not_be_asked(site: Site) -> None:
    """A node has joined, and nobody has applied the file that lists it: pushes through it go on."""
    nodes = {host.name: host.address for host in site.cluster.hosts}
    joined = Members(2, {**nodes, "cp-4": "10.0.0.14"})
    site.world.fake.servers["cp-2"].put(members.PATH, joined.render())
    done = site.free()
    assert (done.verdict.status, done.verdict.reason, done.report) == (False, "MembersDiffer", None)
    assert "cp-4" in done.verdict.message
    assert {step for _, step in site.asked} == {"whole"}
    leaving = Members(3, nodes, before=(*nodes, "cp-4"))
    site.world.fake.servers["cp-2"].put(members.PATH, leaving.render())
    assert site.free().verdict.reason == "MembersDiffer"
    site.world.fake.servers["cp-2"].put(members.PATH, leaving.settle().render())
    assert site.free().verdict.reason == "Freed"


def test_space_is_freed_by_questions_alone(site: Site) -> None:
    relied = blob(site.world, "app", b"relied", bytes_age=9 * DAY, link_age=9 * DAY)
    site.world.proxies.relied["cp-3"] = [f"app {relied}"]
    done = site.free()
    assert (done.verdict.status, done.verdict.reason) == (True, "Freed"), done.verdict
    assert done.verdict.message.startswith("freed 10 bytes in 1 blob")
    assert done.report is not None
    assert {key: done.report[key] for key in ("freedBytes", "blobs", "kept", "beforeBytes")} == {
        "freedBytes": 10, "blobs": 1, "kept": 1, "beforeBytes": 5000,
    }  # fmt: skip
    assert site.world.eligible == [relied]
    assert site.world.story == ["sweep", "restart cp-1", "restart cp-2", "restart cp-3"]
    assert not any(site.world.proxies.closed.values())
    for server in site.world.fake.servers.values():
        for path in (helper.request_path("close"), helper.result_path("close"), helper.NODE):
            state = server.files()[path]
            assert (state.mode, state.owner) == (0o600, "root:root")
            assert "the-s3-secret-key" not in state.content.decode()
    again = site.free()
    assert (again.verdict.status, again.verdict.reason) == (True, "NothingToFree")


def test_an_operator_that_ends_anywhere_leaves_what_the_next_one_completes(site: Site) -> None:
    """And what it has closed opens by itself: it was closed for a time.

    How often it looks whether a step has ended depends on the time this takes: the last one to end is the first that
    had no further question.
    """
    for stops in itertools.count(step=every(2)):
        blob(site.world, "app", f"old {stops}".encode(), bytes_age=9 * DAY, link_age=9 * DAY)
        site.stops, site.stopped, site.asked = stops, False, []
        try:
            done = site.free()
        except Stopped:
            pass
        else:
            assert not site.stopped, "its end was taken for an answer"
            assert {"close", "sweep", "restart", "open"} <= {step for _, step in site.asked}, done.verdict
            break
        closed = [one for one in site.world.proxies.closed.values() if one]
        assert all(one < collecting.LONGEST for one in closed)
        site.world.story.clear()
        site.stops = None
        done = site.free()
        assert done.verdict.status is True, (stops, done.verdict)
        assert site.world.eligible == [], stops
        assert not any(site.world.proxies.closed.values())
        if closed:
            assert [one for one in site.world.story if one != "sweep"] == [
                "restart cp-1",
                "restart cp-2",
                "restart cp-3",
            ]


def test_a_step_that_takes_long_is_waited_for_while_the_node_is_out_of_reach(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "WAITS", 0.0)
    monkeypatch.setattr(collecting.time, "sleep", lambda _: None)
    found = jobs._result
    times = itertools.count()
    monkeypatch.setattr(jobs, "_result", lambda *words: None if next(times) < 2 else found(*words))
    site.away = 2
    assert site.members()[0].do("stored") == {"stored": 5000}
    assert len(site.asked) >= 4, "it was out of reach for two of them"


def test_a_step_that_ends_without_a_result_is_a_failure(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "BEGINS", 0.0)
    site.start = lambda *_: ""  # type: ignore[method-assign]
    with pytest.raises(Error, match="ended without a result"):
        site.members()[0].do("stored")


def test_a_failure_is_told_and_pushes_are_open(site: Site) -> None:
    site.world.broken = True
    done = site.free()
    assert (done.verdict.status, done.verdict.reason, done.report) == (False, "CollectionFailed", None)
    assert not any(site.world.proxies.closed.values())


def test_a_node_on_which_somebody_works_is_left_alone(site: Site) -> None:
    site.world.fake.servers["cp-2"].holder = "root@workstation pid 7"
    done = site.free()
    assert (done.verdict.status, done.verdict.reason) == (False, "HostBusy")
    assert "sweep" not in site.world.story
    assert not any(site.world.proxies.closed.values())


@pytest.mark.parametrize(
    "asked",
    [{"step": "reboot", "values": {}}, {"step": "../sweep", "values": {}}, {"step": ["mark"], "values": {}},
     {"step": "mark", "values": 1}, {}],
)  # fmt: skip
def test_no_step_comes_from_the_question(site: Site, asked: dict[str, Any]) -> None:
    said = json.loads(answered(questions.question("space", **asked), OnHost(site.cluster.hosts[0])))
    assert said["error"]["code"] == "QuestionInvalid"
    assert not [path for path in site.world.fake.servers["cp-1"].files() if "request" in path]


def test_a_node_without_what_init_leaves_says_so(site: Site) -> None:
    del site.world.fake.servers["cp-2"].tree[helper.NODE]
    with pytest.raises(Error) as caught:
        site.members()[1].do("look")
    assert caught.value.code == "HelperUnknown"
    assert paths.ETC in caught.value.message


def test_when_it_is_time() -> None:
    run = Run("o", "p", "retention", "cp-1", int(NOW) - 50, int(NOW), purged=1)
    done = History((run,))
    assert freeing.due(None, done, filling=False, now=NOW + 1)
    assert not freeing.due(None, History((replace(run, purged=0, deleted=9),)), filling=False, now=NOW), "to the trash"
    assert freeing.due(None, History(), filling=True, now=NOW)
    assert not freeing.due(NOW + 5, done, filling=False, now=NOW + 2 * DAY), "nothing since"
    assert freeing.due(NOW - 5, done, filling=False, now=NOW + DAY)
    assert not freeing.due(NOW - 5, done, filling=True, now=NOW + 3600), "once a day"
    assert freeing.due(NOW + 10 * DAY, done, filling=True, now=NOW), "the clock was wrong"


FORMATS = Path(__file__).parents[1] / "golden" / "formats"


def test_what_is_stored_for_the_steps_is_as_the_first_release_with_them_wrote_it(site: Site) -> None:
    node = helper.SETTINGS.parse((FORMATS / "helper-node.json").read_bytes()).values
    site.world.fake.servers["cp-1"].put(helper.NODE, (FORMATS / "helper-node.json").read_bytes())
    assert job.here(site.cluster.hosts[0]).host.name == node["node"] == "cp-1"
    written = helper.settings(site.cluster, site.cluster.hosts[0])
    assert helper.read_settings(written, "x") == helper.read_settings((FORMATS / "helper-node.json").read_bytes(), "x")
    request = helper.REQUEST.parse((FORMATS / "helper-step-request.json").read_bytes()).values
    assert request == {"ticket": "0123456789abcdef", "values": {"run": "0" * 16}}
    result = helper.RESULT.parse((FORMATS / "helper-step.json").read_bytes()).values
    assert result == {"ticket": "0123456789abcdef", "result": {"blobs": 1, "bytes": 10, "kept": 0}}


# ---- the round ---------------------------------------------------------------------------------------------------


@dataclass
class Objects:
    """The API server as far as a round of space asks it."""

    cluster: dict[str, Any]
    policy: dict[str, Any]
    events: list[dict[str, Any]] = field(default_factory=list)
    #: The codes with which the next writes fail.
    changed: list[str] = field(default_factory=list)

    def list(self, plural: str) -> list[dict[str, Any]]:
        return [one for one in ([self.cluster] if plural == "registryclusters" else [self.policy]) if one]

    def create(self, _: str, event: dict[str, Any]) -> dict[str, Any]:
        self.events.append(event)
        return event

    def put_status(self, _: str, found: dict[str, Any], status: dict[str, Any]) -> bool:
        if self.changed:
            raise ConnectionFailed("changed at the same time", code=self.changed.pop())
        assert found == self.cluster
        self.cluster["status"] = status
        return True


class Turns:
    """Rounds of an operator by the *site*, with a clock of the test's."""

    def __init__(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site, self.now = site, NOW
        meta = {"name": "registry", "uid": "u", "generation": 1}
        document = site.cluster.config.model_dump(by_alias=True, exclude_none=True, mode="json")
        kind = {"apiVersion": "kubeadm-registry.dev/v1alpha1", "kind": "RegistryPolicy"}
        self.objects = Objects(
            {**document, "metadata": meta}, {**kind, "metadata": {"name": "retention"}, "spec": {"sets": []}}
        )
        self.history = History()
        way = Way("ca", Login("push", "x"), "key", helper=(Path("key"), Path("hosts")))
        monkeypatch.setattr(Way, "members", lambda *_: site.members())
        monkeypatch.setattr(Way, "registry", lambda *_, **__: connector(site.world.registry))
        monkeypatch.setattr(store, "read_history", lambda *_: self.history)
        self.rounds = Rounds(
            "here", self.objects, (None, None), lambda: way, Figures(), lambda: Caller("l", 1),  # type: ignore[arg-type]
            clock=lambda: self.now,
        )  # fmt: skip

    def fill(self, status: str) -> None:
        """Say of the disks that they fill."""
        self.objects.cluster.setdefault("status", {})["conditions"] = [{
            "type": "StorageFilling", "status": status, "reason": "x", "message": "",
            "lastTransitionTime": freeing.rfc3339(self.now), "observedGeneration": 1,
        }]  # fmt: skip

    def again(self) -> None:
        """Another replica leads: what this one remembered is gone."""
        self.rounds = replace(self.rounds, _found={}, _space={}, _space_again=0.0)

    def round(self, seconds: float = 0.0) -> str:
        """Some time later; the reason of the condition."""
        self.now += seconds
        self.rounds.space()
        self.rounds._write("registryclusters", self.objects.cluster, list(self.rounds._found.values()), self.now)
        conditions = self.objects.cluster["status"]["conditions"]
        found = [one["reason"] for one in conditions if one["type"] == freeing.KIND]
        return str(found[0]) if found else ""

    def purge(self) -> None:
        run = Run("o", "p", "retention", "cp-1", int(self.now), int(self.now) + 1, purged=1)
        self.history = self.history.with_run(run)


@pytest.fixture
def turns(site: Site, monkeypatch: pytest.MonkeyPatch) -> Turns:
    return Turns(site, monkeypatch)


def test_a_round_frees_what_has_gone_for_good_once_a_day(turns: Turns) -> None:
    assert turns.round() == "", "nothing was deleted for good"
    turns.purge()
    assert turns.round(600) == "Freed"
    space = turns.objects.cluster["status"]["space"]
    assert (space["blobs"], space["freedBytes"]) == (1, 10)
    assert turns.objects.events[0]["note"].startswith("freed 10 bytes in 1 blob")
    blob(turns.site.world, "app", b"later", bytes_age=9 * DAY, link_age=9 * DAY)
    turns.purge()
    turns.round(3600)
    assert turns.site.world.eligible, "it was today"
    turns.rounds._space = {}  # another replica leads: the status says when it was
    turns.round(3600)
    assert turns.site.world.eligible
    turns.round(DAY)
    assert not turns.site.world.eligible
    turns.round(3 * DAY)
    assert turns.objects.cluster["status"]["space"]["ended"] < freeing.rfc3339(turns.now - DAY), "nothing since"


@pytest.mark.parametrize("changed", [[], ["ObjectChanged"]], ids=["at once", "changed by a round of health"])
def test_an_operator_that_ends_before_the_next_round_of_health_has_freed_space_today(
    turns: Turns, changed: list[str]
) -> None:
    turns.purge()
    turns.objects.cluster["status"] = {"observedGeneration": 1, "nodes": []}
    turns.objects.changed = changed
    turns.now += 600
    turns.rounds.space()
    assert turns.objects.cluster["status"].keys() == {"observedGeneration", "nodes", "space"}
    turns.again()
    blob(turns.site.world, "app", b"later", bytes_age=9 * DAY, link_age=9 * DAY)
    turns.purge()
    turns.site.asked = []
    turns.round(3600)
    assert turns.site.world.eligible
    assert {step for _, step in turns.site.asked} == {"look"}, "pushes are not closed again"


def test_a_status_that_cannot_be_written_is_left_to_the_next_round_of_health(turns: Turns) -> None:
    turns.purge()
    turns.objects.changed = ["ObjectChanged"] * 2
    assert turns.round(600) == "Freed"
    assert "space" in turns.objects.cluster["status"]


@pytest.mark.parametrize("wanted", ["Daily", "Never", None])
def test_what_an_operator_that_ended_has_left_closed_is_opened_by_the_next_round(
    turns: Turns, wanted: str | None
) -> None:
    """Also if what made it begin is over: the sweep has freed enough, or nobody wants it any more."""
    found, policy = 0, turns.objects.policy
    for stops in itertools.count(1, 3):
        blob(turns.site.world, "app", f"old {stops}".encode(), bytes_age=9 * DAY, link_age=9 * DAY)
        turns.fill("True")
        turns.objects.policy = policy
        turns.site.stops, turns.site.asked = stops, []
        try:
            turns.round(2 * DAY)
            break
        except Stopped:
            pass
        turns.again()
        turns.fill("False")
        turns.objects.policy = {**policy, "spec": {**policy["spec"], "freeSpace": wanted}} if wanted else {}
        closed = [one for one in turns.site.world.proxies.closed.values() if one]
        turns.site.stops, turns.site.asked = None, []
        turns.site.world.story.clear()
        turns.round(600)
        assert not any(turns.site.world.proxies.closed.values()), stops
        assert turns.site.world.story == ([f"restart {name}" for name in ("cp-1", "cp-2", "cp-3")] if closed else [])
        found += bool(closed)
    assert found > 5, "it was ended while pushes were closed"


def test_what_is_completed_can_be_interrupted_too(turns: Turns) -> None:
    proxies, story = turns.site.world.proxies, turns.site.world.story
    for stops in itertools.count():
        proxies.closed["cp-2"] = 5000.0
        turns.site.stops, turns.site.asked = stops, []
        story.clear()
        try:
            turns.round(600)
            break
        except Stopped:
            pass
        assert set(proxies.closed.values()) <= {0.0, 5000.0}, "what the dead run deletes may go on so long"
        turns.site.stops = None
        turns.round(600)
        assert not any(proxies.closed.values()), stops
        assert {"restart cp-1", "restart cp-2", "restart cp-3"} <= set(story)
    assert stops > 10


def test_pushes_that_somebody_else_has_closed_stay_closed(turns: Turns) -> None:
    """As by `images collect`, which works on all nodes."""
    turns.site.world.proxies.closed |= {"cp-1": 500.0, "cp-2": 500.0, "cp-3": 500.0}
    for server in turns.site.world.fake.servers.values():
        server.holder = "root@workstation pid 7"
    assert turns.round() == ""
    assert set(turns.site.world.proxies.closed.values()) == {500.0}
    assert turns.site.world.stopped == 0, "its deletion goes on"


def test_a_node_that_does_not_answer_changes_nothing(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    turns.site.world.proxies.closed["cp-2"] = 500.0

    def ask(content: bytes, _: float) -> bytes:
        raise ConnectionFailed("no route to host", host="cp-3")

    members = [*turns.site.members()[:2], ByHelper("cp-3", ask)]
    monkeypatch.setattr(Way, "members", lambda *_: members)
    assert turns.round() == ""
    assert turns.site.world.proxies.closed == {"cp-2": 500.0}


def test_a_round_leaves_it_to_people_where_the_policy_says_so(turns: Turns) -> None:
    turns.purge()
    turns.objects.policy["spec"]["freeSpace"] = "Never"
    assert turns.round() == "Disabled"
    assert {step for _, step in turns.site.asked} == {"look"}


def test_a_failure_is_none_any_more_once_there_is_no_policy(turns: Turns) -> None:
    turns.purge()
    turns.site.world.broken = True
    assert turns.round() == "CollectionFailed"
    turns.objects.policy = {}
    turns.again()
    assert turns.round(3600) == "NoPolicy"
    assert turns.objects.cluster["status"]["conditions"][-1]["status"] == "Unknown"


def test_after_a_failure_it_is_tried_again_an_hour_later(turns: Turns) -> None:
    turns.purge()
    turns.site.world.broken = True
    assert turns.round() == "CollectionFailed"
    assert "space" not in turns.objects.cluster["status"]
    turns.site.world.broken = False
    assert turns.round(600) == "CollectionFailed", "pushes have just waited for nothing"
    assert turns.round(3600) == "Freed"
