"""Distribution's collection: in which order, what stays, and how it ends when it fails in the middle."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kubeadm_registry import paths, pki, secrets
from kubeadm_registry.access import collecting
from kubeadm_registry.agent import bucket, pushes
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.main import cli
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import distribution, garage, haproxy, s3
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error, PhaseFailed
from kubeadm_registry.images.pool import Connect
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.phases import collect as phase
from kubeadm_registry.phases import workflows
from kubeadm_registry.phases.collect import Collection
from kubeadm_registry.transport import host_python
from tests.unit.fake_cluster import FakeCluster, authority, fixed_secrets
from tests.unit.fake_images import Repositories, ScopedHandler
from tests.unit.fake_pushes import FakePushes
from tests.unit.fake_registry import connector, serving
from tests.unit.real_haproxy import nodes
from tests.unit.test_workflow import Recorder

GOLDEN = Path(__file__).parents[1] / "golden"
DISTRIBUTION = (GOLDEN / "ipv4-distribution" / "cluster.yaml").read_text()
DAY = 86400.0


@dataclass
class World:
    """A registry with Distribution: *eligible* blobs, which no manifest needs, and the *ages* of blobs and links."""

    fake: FakeCluster
    registry: Repositories
    proxies: FakePushes
    eligible: list[str] = field(default_factory=list)
    ages: dict[str, float] = field(default_factory=dict)
    status: int = 0
    broken: bool = False
    stopped: int = 0
    marked: list[tuple[str, str]] = field(default_factory=list)
    """Manifests that the collection reads."""
    otherwise: list[str] = field(default_factory=list)
    """What else it says."""
    story: list[str] = field(default_factory=list)

    def collection(self, grace: float = DAY) -> Collection:
        members = collecting.as_root(self.fake.cluster, connector(self.registry))
        return Collection(self.fake.cluster, members, grace)

    def mark(self, _: tuple[str, ...], __: bytes) -> str:
        read = [f"{repository}: marking manifest {digest} " for repository, digest in self.marked]
        found = [f"blob eligible for deletion: {one}" for one in self.eligible]
        return "\n".join([*read, *self.otherwise, *found, f"status {self.status}"])

    def sweep(self, _: tuple[str, ...], stdin: bytes) -> str:
        assert all(self.proxies.closed.values()), "pushes go on"
        request = json.loads(stdin)
        assert request["seconds"] <= min(self.proxies.closed.values()) - collecting.RESTARTS
        self.story.append("sweep")
        if self.broken:
            return "\n".join(request["delete"][:1])
        self.eligible = [one for one in self.eligible if data(one) not in request["delete"]]
        return "\n".join([*request["delete"], "end"])

    def restart(self, name: str) -> Callable[[tuple[str, ...], bytes], str]:
        def restart(_: tuple[str, ...], __: bytes) -> str:
            assert all(self.proxies.closed.values()), "pushes go on before all frontends have forgotten"
            self.story.append(f"restart {name}")
            return ""

        return restart

    def stop(self, name: str) -> str:
        assert name == "cp-1", "where it runs"
        self.stopped += 1
        return ""

    def listed(self, _: tuple[str, ...], stdin: bytes) -> str:
        request = json.loads(stdin)
        assert request["secret"] == "the-s3-secret-key"
        newer = request["newer"]
        there = {key: age for key, age in self.ages.items() if re.search(request["keys"], key)}
        always = request["always"] or "(?!)"
        listed = {key: age for key, age in there.items() if newer is None or age < newer or re.search(always, key)}
        lines = [f"{age:.0f} 10 {key}" for key, age in listed.items()]
        return "\n".join([*lines, "end"])


def data(digest: str) -> str:
    return distribution.key("", digest)


def revision(repository: str, digest: str) -> str:
    return f"docker/registry/v2/repositories/{repository}/_manifests/revisions/sha256/{digest[7:]}/link"


def link(repository: str, digest: str) -> str:
    return f"docker/registry/v2/repositories/{repository}/_layers/sha256/{digest[7:]}/link"


@pytest.fixture
def world() -> Iterator[World]:
    fake = FakeCluster.of(DISTRIBUTION)
    registry = Repositories(mounts=True)
    made = World(fake, registry, FakePushes(fake.servers))
    for name, server in fake.servers.items():
        show = ("systemctl", "show", "--property=InvocationID", "--value", "--", distribution.UNIT)
        server.answer(*show, with_=lambda *_, name=name: str(made.story.count(f"restart {name}")))
        server.answer("systemctl", "restart", "--", distribution.UNIT, with_=made.restart(name), act="restart")
        server.answer("sh", "-c", distribution._COLLECT, with_=made.mark)
        server.answer("sh", "-c", s3._AS_UNIT, with_=made.sweep, act="sweep")
        server.answer("sh", "-c", collecting._ARM, act="arm")
        server.answer("sh", "-c", collecting._STOP, with_=lambda *_, name=name: made.stop(name), act="stop")
        server.answer("systemctl", "stop", "--", f"{collecting.REOPEN}.timer")
        server.answer(*host_python.command(bucket), with_=made.listed)
        server.answer("date", "+%s.%N", with_=lambda *_: f"{time.time() - 1:.9f}")
        server.put(paths.AGENT_STATE, json.dumps(
            # However long a test takes, this is later.
            {"time": time.time() + 10**6, "level": 0, "frontend": {"health": "ok"}, "fit": True}
        ))  # fmt: skip
    with serving(registry, pki.issue(authority(), "cp-1", ("10.0.0.10",)), ScopedHandler):
        yield made


def blob(world: World, repository: str, content: bytes, *, bytes_age: float, link_age: float) -> str:
    """A blob that no manifest needs."""
    digest = world.registry.blob(repository, content).digest
    world.eligible.append(digest)
    world.ages |= {data(digest): bytes_age, link(repository, digest): link_age}
    return digest


def test_what_no_manifest_needs_goes_but_for_what_pushes_relied_on(world: World) -> None:
    blob(world, "app", b"old", bytes_age=9 * DAY, link_age=9 * DAY)
    new = blob(world, "app", b"new", bytes_age=100, link_age=100)
    mounted = blob(world, "app", b"mounted", bytes_age=9 * DAY, link_age=100)
    asked_for = blob(world, "app", b"asked for", bytes_age=9 * DAY, link_age=9 * DAY)
    world.proxies.relied["cp-3"] = [f"app {asked_for}", f"app sha256:{'0' * 64}"]
    world.proxies.writes = [0, 0, 0, 2, 0]  # a push is still in flight when pushes are closed
    one = world.collection()
    one.look()
    assert (one.blobs, one.bytes) == (4, 40)
    recorder = Recorder()
    run(workflows.collect(one), world.fake.cluster, recorder)
    assert world.story == ["sweep", "restart cp-1", "restart cp-2", "restart cp-3"]
    assert (one.deleted, one.freed, one.kept) == (1, 10, 3)
    assert world.eligible == [new, mounted, asked_for]
    assert not any(world.proxies.closed.values())
    assert [word.split()[0] for word in world.proxies.history if not word.startswith("log")] == ["close"] * 3 + [
        "open"
    ] * 3
    world.ages = dict.fromkeys(world.ages, 9 * DAY)
    world.proxies.relied.clear()
    again = world.collection()
    again.look()
    run(workflows.collect(again), world.fake.cluster, recorder)
    assert (again.deleted, world.eligible) == (3, [])


def test_what_a_manifest_needs_that_came_after_the_look_stays(world: World) -> None:
    """Its client did not ask for the layer, which an older image of the repository has brought."""
    layer = blob(world, "app", b"layer", bytes_age=9 * DAY, link_age=9 * DAY)
    blob(world, "app", b"gone", bytes_age=9 * DAY, link_age=9 * DAY)
    deleted = "sha256:" + "1" * 64  # between the list and the question
    one = world.collection(grace=0)
    one.look()
    manifest = {"mediaType": oci.MANIFEST, "layers": [{"mediaType": "x", "digest": layer, "size": 5}]}
    digest = world.registry.put("app", manifest, "v2").digest
    world.ages |= {revision("app", digest): 3.0, revision("app", deleted): 2.0}
    run(workflows.collect(one), world.fake.cluster, Recorder())
    assert (one.deleted, one.kept, world.eligible) == (1, 1, [layer])


def test_what_a_manifest_needs_that_was_not_read_stays(world: World) -> None:
    """As when another manifest of the repository goes while it is read: the collection leaves out the rest."""
    layer = blob(world, "app", b"layer", bytes_age=9 * DAY, link_age=9 * DAY)
    gone = blob(world, "app", b"gone", bytes_age=9 * DAY, link_age=9 * DAY)
    for tag, held in (("read", gone), ("left-out", layer)):
        manifest = {"mediaType": oci.MANIFEST, "layers": [{"mediaType": tag, "digest": held, "size": 5}]}
        digest = world.registry.put("app", manifest, tag).digest
        world.ages[revision("app", digest)] = 9 * DAY
        world.marked += [("app", digest)] if tag == "read" else []
    one = world.collection()
    one.look()
    run(workflows.collect(one), world.fake.cluster, Recorder())
    assert (one.deleted, world.eligible) == (1, [layer])


def test_nothing_goes_while_an_image_names_layers_by_digests_that_the_collection_does_not_follow(world: World) -> None:
    """Distribution has the layer by its sha256, marks the sha512, and says that no manifest needs the former."""
    layer = blob(world, "team/app", b"layer", bytes_age=9 * DAY, link_age=9 * DAY)
    world.otherwise = [f"team/app: marking blob sha512:{'0' * 128}"]
    with pytest.raises(Error, match=r"an image in team/app needs a blob by sha512:0{12}\.\.\.") as caught:
        world.collection().look()
    assert caught.value.code == "CollectionFailed"
    assert (world.story, world.eligible) == ([], [layer])


def test_a_run_after_a_dead_one_that_fails_early_restarts_all_the_same(world: World) -> None:
    """What the dead one has deleted, the frontends do not know."""
    blob(world, "app", b"old", bytes_age=9 * DAY, link_age=9 * DAY)
    world.proxies.closed["cp-2"] = 40.0
    one = world.collection()
    one.look()
    world.proxies.relied["cp-3"] = ["no line of it"]
    for server in world.fake.servers.values():
        server.answer(*host_python.command(bucket), with_=lambda *_: "1 2 broken", act="")
    with pytest.raises(PhaseFailed):
        run(workflows.collect(one), world.fake.cluster, Recorder())
    run(workflows.reopen(one), world.fake.cluster, Recorder())
    assert world.story == ["restart cp-1", "restart cp-2", "restart cp-3"]
    assert not any(world.proxies.closed.values())


def test_nothing_restarts_if_pushes_rely_on_everything(world: World) -> None:
    blob(world, "app", b"new", bytes_age=100, link_age=100)
    one = world.collection()
    one.look()
    run(workflows.collect(one), world.fake.cluster, Recorder())
    assert (one.deleted, world.story) == (0, [])
    assert not any(world.proxies.closed.values())


def test_a_dry_run_changes_nothing(world: World) -> None:
    blob(world, "app", b"old", bytes_age=9 * DAY, link_age=9 * DAY)
    one, recorder = world.collection(), Recorder()
    one.look()
    run(workflows.collect(one), world.fake.cluster, recorder, dry_run=True)
    assert (one.blobs, one.deleted, world.story) == (1, 0, [])
    assert [action.phase for action in recorder.actions] == ["close"] * 3 + ["sweep"]
    assert not [word for word in world.proxies.history if word.startswith("close")]


def test_a_collection_that_fails_ends_with_frontends_that_have_forgotten_and_open_pushes(world: World) -> None:
    blob(world, "app", b"old", bytes_age=9 * DAY, link_age=9 * DAY)
    one = world.collection()
    one.look()
    world.broken = True
    with pytest.raises(PhaseFailed) as caught:
        run(workflows.collect(one), world.fake.cluster, Recorder())
    assert caught.value.code == "CollectionFailed"
    assert all(world.proxies.closed.values())
    run(workflows.reopen(one), world.fake.cluster, Recorder())
    assert world.story == ["sweep", "restart cp-1", "restart cp-2", "restart cp-3"]
    assert world.stopped == 3, "what may still run is ended before pushes go on"
    assert not any(world.proxies.closed.values())


def test_pushes_in_flight_that_do_not_end_are_not_cut_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phase, "DRAIN", 0.3)
    blob(world, "app", b"old", bytes_age=9 * DAY, link_age=9 * DAY)
    one = world.collection()
    one.look()
    world.proxies.writes = [1] * 1000
    with pytest.raises(PhaseFailed, match="writing request"):
        run(workflows.collect(one), world.fake.cluster, Recorder())
    run(workflows.reopen(one), world.fake.cluster, Recorder())
    assert world.story == [], "nothing was deleted, so nothing restarts"
    assert not any(world.proxies.closed.values())


def test_what_a_dead_run_left_closed_is_made_up_for(world: World) -> None:
    """Nothing is left to delete, but the frontends do not know what has gone."""
    one = world.collection()
    one.look()
    assert not one.pending
    world.proxies.closed["cp-2"] = 40.0
    one.look()
    assert one.pending
    run(workflows.collect(one), world.fake.cluster, Recorder())
    assert (one.deleted, world.story) == (0, ["restart cp-1", "restart cp-2", "restart cp-3"])
    assert not any(world.proxies.closed.values())


def test_a_run_that_was_asleep_does_nothing_to_a_later_one(world: World) -> None:
    """An operator that was paused, while another one leads, or somebody runs the command."""
    blob(world, "app", b"old", bytes_age=9 * DAY, link_age=9 * DAY)
    asleep, later = world.collection(), world.collection()
    hosts = world.fake.cluster.hosts
    asleep.look()
    run((asleep.close, asleep.drain), world.fake.cluster, Recorder())
    later.look()
    run((later.close, later.drain), world.fake.cluster, Recorder())
    with pytest.raises(PhaseFailed) as caught:
        run((asleep.sweep,), world.fake.cluster, Recorder())
    assert (caught.value.code, world.story) == ("CollectionBusy", [])
    for host in hosts:
        asleep.member(host).do("open", run=asleep.run)
        with pytest.raises(Error, match="another run has since closed pushes"):
            asleep.member(host).do("restart", run=asleep.run)
    assert all(world.proxies.closed.values())
    run((later.sweep, *workflows.reopen(later)), world.fake.cluster, Recorder())
    assert later.deleted == 1
    assert not any(world.proxies.closed.values())


@pytest.mark.parametrize(
    ("step", "values"),
    [
        ("close", {"run": "../etc", "seconds": 60, "again": 0}),
        ("close", {"run": "0" * 16, "seconds": 1e9, "again": 0}),
        ("close", {"run": "0" * 16, "seconds": float("nan"), "again": 0}), ("open", {}), ("log", {"back": "1; reboot"}),
        ("sweep", {"run": "0" * 16, "relied": "x", "back": 1, "ahead": 0}), ("blobs", {"grace": True}),
    ],
)  # fmt: skip
def test_a_step_takes_no_other_values(world: World, step: str, values: dict[str, object]) -> None:
    member, *_ = collecting.as_root(world.fake.cluster, connector(world.registry))
    world.fake.servers["cp-1"].put(collecting.RUN, "0" * 16)
    with pytest.raises(Error) as caught:
        member.do(step, **values)
    assert caught.value.code == "QuestionInvalid"
    assert world.proxies.history == []


# ---- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def command(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs ``images collect``."""
    (tmp_path / "cluster.yaml").write_text(DISTRIBUTION)
    monkeypatch.chdir(tmp_path)
    for server in world.fake.servers.values():
        server.put(secrets.PATH, fixed_secrets(tuple(world.fake.servers)).to_json(), 0o600)
        server.unit(garage.UNIT).active = "active"
    world.fake.garage.buckets["b"] = {"globalAliases": ["registry-distribution"], "bytes": 5000}
    world.fake.garage.uploads = [8 * DAY, 6 * DAY]

    @contextmanager
    def registry(*_: object) -> Iterator[tuple[Cluster, Connect, bool]]:
        yield world.fake.cluster, connector(world.registry), True

    monkeypatch.setattr(terminal, "registry", registry)
    return lambda *words: CliRunner().invoke(cli, ("images", "collect", *words))


def test_the_command_says_what_was_freed(world: World, command: Callable[..., Result]) -> None:
    blob(world, "app", b"old", bytes_age=9 * DAY, link_age=9 * DAY)
    dry = command("--dry-run", "-o", "json")
    assert dry.exit_code == 0, dry.output
    assert json.loads(dry.stdout.splitlines()[-1])["blobs"] == 1
    assert world.story == []
    done = command("-o", "json")
    assert done.exit_code == 0, done.output
    assert "dropped 1 upload that began more than a week ago" in done.stdout
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["blobs"], said["freed"], said["before"], said["kept"]) == (1, 10, 5000, 0)
    assert said["summary"].startswith("freed 0.0 MB in 1 blob; 0.0 MB stored, pushes were closed for ")
    again = json.loads(command("-o", "json").stdout.splitlines()[-1])
    assert (again["blobs"], again["closedSeconds"]) == (0, 0.0), "pushes are not closed for nothing"


def test_the_command_opens_pushes_after_a_failure(world: World, command: Callable[..., Result]) -> None:
    blob(world, "app", b"old", bytes_age=9 * DAY, link_age=9 * DAY)

    world.broken = True
    failed = command("-o", "json")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout.splitlines()[-1])["code"] == "CollectionFailed"
    assert world.story == ["sweep", "restart cp-1", "restart cp-2", "restart cp-3"]
    assert not any(world.proxies.closed.values())


def test_the_command_refuses_without_a_node_or_with_a_storage_that_is_not_whole(
    world: World, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def degraded(*_: object) -> collecting.Values:
        raise Error("2 of 3 storage nodes are up", code="StorageNotWhole")

    monkeypatch.setitem(collecting.STEPS, "whole", degraded)  # type: ignore[arg-type]
    assert json.loads(command("-o", "json").stdout.splitlines()[-1])["code"] == "StorageNotWhole"

    @contextmanager
    def registry(*_: object) -> Iterator[tuple[Cluster, Connect, bool]]:
        yield replace(world.fake.cluster, absent={"cp-3": "no route to host"}), connector(world.registry), True

    monkeypatch.setattr(terminal, "registry", registry)
    refused = command("-o", "json")
    assert (refused.exit_code, json.loads(refused.stdout.splitlines()[-1])["host"]) == (4, "cp-3")
    assert world.proxies.history == []


# ---- what runs on the nodes --------------------------------------------------------------------------------------


def test_the_proxies_of_a_node_are_closed_and_opened() -> None:
    with nodes(DISTRIBUTION, "cp-1") as [node]:
        name, sock = f"{node.folder}/etc/haproxy/pushes.map", f"{node.folder}/run/1.sock"

        def tell(verb: str, seconds: float = 0) -> dict[str, object]:
            argv = (
                sys.executable,
                "-I",
                "-c",
                Path(pushes.__file__).read_text(),
                verb,
                name,
                str(seconds),
                "daemon",
                sock,
            )
            done = subprocess.run([*argv, f"{sock}.none"], capture_output=True, check=True, text=True)
            shown: dict[str, object] = json.loads(done.stdout)
            assert (shown["trouble"], shown["writes"]) == ([], 0)
            return shown

        assert tell("show")["left"] == {name: 0, sock: 0, f"{sock}.none": None}
        closed = tell("close", 100)["left"]
        assert isinstance(closed, dict)
        assert all(95 < closed[where] <= 100 for where in (name, sock))
        assert Path(name).stat().st_mode & 0o777 == 0o644, "HAProxy must be able to read it"
        assert Path(name).read_bytes() != haproxy.PUSHES_OPEN
        assert tell("open")["left"] == {name: 0, sock: 0, f"{sock}.none": None}
        assert Path(name).read_bytes() == haproxy.PUSHES_OPEN, "init finds nothing to do"


def test_requests_that_write_are_counted() -> None:
    stat = "# pxname,svname,qcur,scur\nwriter,local,0,2\nwriter,BACKEND,1,2\nreads,BACKEND,0,9\nown_write,BACKEND,,3\n"
    assert pushes.writes(stat) == 6
    assert pushes.left("0x55 closed 130\n", 100.0) == 30
    assert pushes.left("closed 90\n", 100.0) == 0
    assert pushes.left("0x55 epoch 130\n", 100.0) is None
