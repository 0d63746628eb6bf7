"""`recover` as people type it: what it asks, what it loads again, and what it says cannot be had back."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click.testing
import pytest
from click.testing import Result

from kubeadm_registry import config, members
from kubeadm_registry.access import lacking, loading, session
from kubeadm_registry.access.lacking import RECORDS_LOST
from kubeadm_registry.bundle.make import FromLayout, create
from kubeadm_registry.cli import recover as cli_recover
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import garage_layout, links, s3
from kubeadm_registry.components.health import Report
from kubeadm_registry.components.services import backend, frontend
from kubeadm_registry.engine.phase import Workflow
from kubeadm_registry.engine.report import Action, Reporter
from kubeadm_registry.engine.workflow import run as run_workflow
from kubeadm_registry.errors import ConnectionFailed, Error
from kubeadm_registry.images import inventory
from kubeadm_registry.images.pool import Connect
from kubeadm_registry.images.tombstone import TOMBSTONE, TOMBSTONE_DIGEST
from kubeadm_registry.members import Members
from kubeadm_registry.phases.workflows import INIT, RECOVER
from kubeadm_registry.registry import Api
from kubeadm_registry.transport.host import Host, Transport
from kubeadm_registry.transport.ssh import UNREACHABLE
from kubeadm_registry.upkeep import store
from kubeadm_registry.upkeep.signed import REPOSITORY
from tests.unit.backup_site import PAUSE, Site, error, lines
from tests.unit.bundle_files import image, write_layout
from tests.unit.fake_cluster import ELSEWHERE
from tests.unit.fake_images import Repositories, Store
from tests.unit.fake_registry import connector
from tests.unit.test_garage_layout import Clock
from tests.unit.test_members import THREE, file
from tests.unit.test_recovery import OTHERS, after
from tests.unit.test_workflow import Recorder

pytestmark = pytest.mark.slow

pytest_plugins = ["tests.unit.backup_site"]
APP = "registry.example/team/app"
NOW = 1_700_000_000
WITH_PROGRAMS, SELECT = loading.with_programs, session.select


@dataclass
class Storage:
    """zot's objects in the storage, by what the registry has; of those that are *broken* a block is on no node."""

    registry: Repositories
    spec: config.Spec
    broken: set[str] = field(default_factory=set)
    deleted: list[str] = field(default_factory=list)

    def _parts(self, key: str) -> tuple[Store, str]:
        repository, _, digest = key.rpartition("/blobs/sha256/")
        return self.registry.store[repository], f"sha256:{digest}"

    def blocks(self, _: Cluster, __: Host, keys: Sequence[str]) -> list[Mapping[str, int] | None]:
        return [{key: 5} if self._is_there(key) else None for key in keys]

    def _is_there(self, key: str) -> bool:
        if key.endswith(("/index.json", "/oci-layout")):
            return key.rpartition("/")[0] in self.registry.store and key not in self.deleted
        store, digest = self._parts(key)
        return digest in store.blobs or digest in store.manifests

    def objects(self, _: Cluster, __: Host, ___: str, ____: str) -> list[s3.Stored]:
        """All of the bucket."""
        key = frontend(self.spec).key
        found = [
            name
            for repository, store in self.registry.store.items()
            for name in (
                f"{repository}/index.json", f"{repository}/oci-layout",
                *(key(repository, one) for one in (*store.blobs, *store.manifests)),
            )
        ]  # fmt: skip
        return [s3.Stored(name, 5, 0.0) for name in found if self._is_there(name)]

    def lacking(self, _: Cluster, __: Host, wanted: Mapping[str, int]) -> frozenset[str]:
        return frozenset(wanted) & self.broken

    def delete(self, _: Cluster, __: Host, ___: str, keys: Collection[str], **____: Any) -> frozenset[str]:
        for key in sorted(keys):
            self.deleted.append(key)
            if key.endswith("/index.json"):
                self.registry.nameless.discard(repository := key.rpartition("/")[0])
                self.registry.store[repository].tags.clear()
            else:
                store, digest = self._parts(key)
                (store.blobs if digest in store.blobs else store.manifests).pop(digest)
        self.broken -= set(keys)
        return frozenset(keys)


@dataclass
class World:
    """A site of which two servers are lost, its bundle, and its storage."""

    site: Site
    bundle: Path
    storage: Storage

    def __call__(self, *arguments: str | Path) -> Result:
        return self.site("recover", "--bundle", self.bundle, *arguments)

    def lose(self, repository: str, tag: str) -> str:
        """The storage has lost a part of the layer of an image, and still lists it. Returns its key."""
        store = self.site.registry.store[repository]
        document = json.loads(store.manifest(tag) or b"")
        if "manifests" in document:
            document = json.loads(store.manifest(document["manifests"][0]["digest"]) or b"")
        key = frontend(self.site.three.config.spec).key(repository, document["layers"][0]["digest"])
        self.storage.broken.add(key)
        return key


def run(workflow: Workflow, cluster: Cluster, reporter: Reporter, **given: Any) -> list[Action]:
    """As in earnest, but for the phases that the fakes do not know."""
    skip = ELSEWHERE if workflow in (INIT, RECOVER) else ()
    return run_workflow(workflow, cluster, reporter, skip=skip, **given)


@pytest.fixture
def world(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Of ``pause:3.10`` the bundle brings all again; ``pause:3.11`` is in it and was never here; ``app`` is in none."""
    layouts = [
        FromLayout(write_layout(tmp_path / tag, image(f"{PAUSE}:{tag}", tag.encode()))) for tag in ("3.10", "3.11")
    ]
    first = create(tmp_path / "one.tar", {}, images=layouts[:1]).path
    site.registry.store.clear()
    site.registry.image("kubeadm-registry/canary", "v1")
    site.registry.image(APP, "v1", layer=b"app")
    assert site("seed", "--bundle", first).exit_code == 0
    run_workflow(INIT, site.three.cluster, Recorder(), skip=ELSEWHERE)
    (site.folder / "cluster.yaml").write_text(file(OTHERS))
    site.three = after(site.three, OTHERS)
    spec = site.three.config.spec
    storage = Storage(site.registry, spec)
    monkeypatch.setattr(backend(spec), "blocks", storage.blocks)
    monkeypatch.setattr(backend(spec), "lacking", storage.lacking)
    monkeypatch.setattr(s3, "objects", storage.objects)
    monkeypatch.setattr(s3, "delete", storage.delete)
    monkeypatch.setattr(cli_recover, "record_writer", lambda _: connector(site.registry))
    monkeypatch.setattr(cli_recover, "server_time", lambda _: NOW)
    monkeypatch.setattr(cli_recover, "run", run)
    monkeypatch.setattr(garage_layout, "time", Clock())
    reach = session.reach

    def connect(parsed: config.RegistryCluster, node: config.Node, prompts: session.Prompts) -> Transport:
        if node.name in OTHERS:
            return reach(parsed, node, prompts)
        site.asked.append(node.name)
        raise ConnectionFailed("no route to host", host=node.name, code=UNREACHABLE)

    monkeypatch.setattr(session, "reach", connect)
    shut = "".join(f"{THREE[name]} 5445\n" for name in ("cp-2", "cp-3"))
    site.three.servers["cp-1"].answer("sh", "-c", links.BLOCKED, "blocked", with_=shut)
    yield World(site, create(tmp_path / "two.tar", {}, images=layouts).path, storage)


def test_what_a_bundle_has_is_loaded_again_and_the_rest_is_named(world: World) -> None:
    gone = world.lose(APP, "v1")
    renewed = world.lose(PAUSE, "3.10")
    file = world.site.folder / "cluster.yaml"
    file.write_text(file.read_text().replace("vip: {", "vip: {name: registry.example, "))
    late = [f"{host}:5000/team/late:v2" for host in ("10.0.0.10", "registry.example")]
    (world.site.folder / "list").write_text("\n".join([*late, f"{PAUSE}:3.10"]))
    result = world("--images-from", "list", "--yes", "-o", "json")
    assert result.exit_code == 5, result.output
    last = lines(result)[-1]
    assert last["missing"] == [
        {"name": f"{APP}:v1", "reason": "the storage has lost a part of 1 blob"},
        {"name": "team/late:v2", "reason": "is not in the registry"},
    ]
    assert last["loaded"] == [f"{PAUSE}:3.10", f"{PAUSE}:3.11"]
    assert world.storage.deleted == sorted([gone, renewed]), "the registry would take no other for them"
    told = [one["message"] for one in lines(result) if one.get("level") == "warning"]
    assert any("everything that is not on cp-1 will be lost permanently" in text for text in told)


def test_a_repository_whose_list_of_tags_is_lost_is_made_anew(world: World) -> None:
    """zot would refuse each push to it: the list is an object that it writes over with each."""
    for repository in (APP, PAUSE):
        world.storage.broken.add(f"{repository}/index.json")
        world.site.registry.nameless.add(repository)
    (world.site.folder / "list").write_text(f"{APP}:v1\n")
    result = world("--images-from", "list", "--yes", "-o", "json")
    assert result.exit_code == 5, result.output
    last = lines(result)[-1]
    told = "the storage has lost the list of its tags; push again what is not listed here"
    assert last["missing"] == [
        {"name": APP, "reason": told},
        {"name": f"{APP}:v1", "reason": "is not in the registry"},
        {"name": PAUSE, "reason": told},
    ]
    assert last["loaded"] == [f"{PAUSE}:3.10", f"{PAUSE}:3.11"]
    assert world.storage.deleted == [f"{APP}/index.json", f"{PAUSE}/index.json"]
    texts = [one["message"] for one in lines(result) if one.get("level") == "warning"]
    assert texts.count(f"{APP}: {told}") == 1
    world.site.registry.image(APP, "v1", layer=b"app")
    result = world("--images-from", "list", "-o", "json")
    assert (result.exit_code, lines(result)[-1]["missing"]) == (0, [])


def test_a_repository_whose_list_of_tags_goes_is_named_before(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run does not know that there ever was one."""
    world.storage.broken.add(f"{APP}/index.json")
    world.site.registry.nameless.add(APP)
    monkeypatch.setattr(loading, "load_given", lambda *_, **__: 1 / 0)
    result = world("--yes", "-o", "json")
    assert (result.exit_code, world.storage.deleted) == (1, [f"{APP}/index.json"])
    told = [one["message"] for one in lines(result) if one.get("level") == "warning"]
    assert told.count(f"{APP}: {lacking.NAMES_LOST}") == 1


def test_a_repository_without_a_list_is_named_also_if_the_registry_does_not_list_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zot leaves out each repository of which it cannot read the directory."""
    listed = inventory.repositories
    monkeypatch.setattr(inventory, "repositories", lambda registry: [one for one in listed(registry) if one != APP])
    world.storage.broken.add(f"{APP}/index.json")
    result = world("--yes", "-o", "json")
    assert [one["name"] for one in lines(result)[-1]["missing"]] == [APP]


def test_a_manifest_that_is_lost_can_be_pushed_again_and_its_tag_is_named(world: World) -> None:
    store = world.site.registry.store[APP]
    key = frontend(world.storage.spec).key(APP, digest := store.tags["v1"])
    world.storage.broken.add(key)
    for _ in range(2):
        result = world("--yes", "-o", "json")
        assert (result.exit_code, [one["name"] for one in lines(result)[-1]["missing"]]) == (5, [f"{APP}:v1"])
        assert (world.storage.deleted, store.tags) == ([key], {"v1": digest})
    world.site.registry.image(APP, "v1", layer=b"app")
    assert world("--yes").exit_code == 0


@pytest.mark.parametrize("ends", [True, False])
def test_nothing_is_taken_for_lost_before_the_nodes_have_compared_what_there_is(
    world: World, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """Two nodes that have just come are a majority, and know nothing yet of what the third one has."""
    left = [Report("cp-8", {"storage_left": {"blocks": 9, "tables": 3}}), Report("cp-8", {}, runs=4.0)]
    well = Report("cp-8", {"storage_left": {"blocks": 9, "tables": 0}})
    asked: list[int] = []

    def reports(_: Cluster) -> list[Report]:
        asked.append(len(world.storage.deleted))
        return [left[len(asked) % 2]] if len(asked) < 5 or not ends else [well]

    key = world.lose(APP, "v1")
    monkeypatch.setattr(lacking.health, "reports", reports)
    monkeypatch.setattr(lacking, "time", Clock())
    result = world("--yes", "-o", "json")
    assert asked[:4] == [0] * 4
    assert world.storage.deleted == ([key] if ends else [])
    if not ends:
        assert error(result, 1)["code"] == "StorageUnreadable"


def test_a_second_run_changes_nothing_and_says_the_same(world: World) -> None:
    world.lose(APP, "v1")
    assert world("--yes").exit_code == 5
    world.site.asked.clear()
    result = world("-o", "json")
    assert result.exit_code == 5, result.output
    last = lines(result)[-1]
    assert (last["changed"], last["loaded"], len(last["missing"])) == (0, [], 1)
    assert not {"cp-2", "cp-3"} & set(world.site.asked), "nobody is lost any more, so nothing is given up"


def test_what_is_lacking_still_may_come_in_a_bundle_of_images_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert world("--yes").exit_code == 0
    monkeypatch.setattr(loading, "with_programs", WITH_PROGRAMS)
    monkeypatch.setattr(session, "select", SELECT)
    again = world("-o", "json")
    assert again.exit_code == 0, again.output  # the nodes have the programs
    assert lines(again)[-1]["changed"] == 0


def test_a_run_that_broke_off_after_the_deletion_is_completed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distribution remembers blobs that are gone, and would take them from nobody until it starts again."""
    gone, asked = world.lose(APP, "v1"), list[tuple[str, ...]]()

    def killed(workflow: Workflow, cluster: Cluster, reporter: Reporter, **given: Any) -> list[Action]:
        asked.append(tuple(phase.name for phase in workflow))
        if asked[-1] == ("blobs", "restart") and asked.count(asked[-1]) == 1:
            run(workflow[:1], cluster, reporter, **given)
            raise Error("killed", code="Killed")
        return run(workflow, cluster, reporter, **given)

    monkeypatch.setattr(cli_recover, "run", killed)
    assert error(world("--yes", "-o", "json"), 1)["code"] == "Killed"
    assert world.storage.deleted == [gone]
    assert world("--yes").exit_code == 5
    assert asked[-1] == ("blobs", "restart")
    world.site.registry.image(APP, "v1", layer=b"app")
    assert world("--yes").exit_code == 0
    assert asked[-1] != ("blobs", "restart"), "nothing is lost, so nothing starts again"


def test_no_node_needs_to_be_lost(world: World) -> None:
    """Of a block that was lost later, neither a deletion nor a seed has the registry take the blob again."""
    assert world("--yes").exit_code == 0
    gone = world.lose(PAUSE, "3.10")
    del world.site.registry.store[PAUSE].tags["3.10"]
    world.site("seed", "--bundle", world.bundle)
    assert (world.storage.broken, world.storage.deleted) == ({gone}, [])
    result = world("-o", "json")
    assert (result.exit_code, lines(result)[-1]["loaded"]) == (0, [f"{PAUSE}:3.10"])
    assert (world.storage.broken, world.storage.deleted) == (set(), [gone])


def test_where_all_is_whole_it_says_so(world: World) -> None:
    result = world("--yes")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "3 of 3 images can be pulled, 1 of them loaded again"
    assert "images that no remaining node ever stored are not listed" in result.output


def test_a_tag_that_is_another_image_than_the_bundle_has_stays(world: World) -> None:
    pushed = world.site.registry.image(PAUSE, "3.11", layer=b"pushed since")
    gone = world.lose(PAUSE, "3.11")
    result = world("--yes", "-o", "json")
    assert [one["name"] for one in lines(result)[-1]["missing"]] == [f"{PAUSE}:3.11"]
    assert world.site.registry.store[PAUSE].tags["3.11"] == pushed.digest
    assert world.storage.deleted == [gone]


def lost_index(world: World, tag: str) -> None:
    """An index that no bundle has was pushed to *tag*, and what was left of it is deleted."""
    registry = world.site.registry
    lost = registry.index(PAUSE, tag, amd64=registry.image(PAUSE, layer=b"of another time"))
    del registry.store[PAUSE].manifests[lost.digest]


def test_a_bundle_has_another_index_than_the_one_that_is_lost(world: World) -> None:
    """zot takes none in place of one that it cannot read, and says that a blob is unknown."""
    lost_index(world, "3.11")
    result = world("--yes", "-o", "json")
    assert result.exit_code == 0, result.output
    assert lines(result)[-1]["loaded"] == [f"{PAUSE}:3.11"]


def test_a_run_that_broke_off_before_a_lost_index_was_replaced_is_completed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost_index(world, "3.11")
    with monkeypatch.context() as killed:
        killed.setattr(Api, "delete_manifest", lambda *_: 1 / 0)
        assert world("--yes").exit_code == 1
    assert world.site.registry.store[PAUSE].tags["3.11"] == TOMBSTONE_DIGEST
    result = world("--yes", "-o", "json")
    assert (result.exit_code, lines(result)[-1]["loaded"]) == (0, [f"{PAUSE}:3.11"])


def test_a_tag_that_is_being_deleted_is_no_image(world: World) -> None:
    """`images delete` was killed; whoever wants it back has it in a bundle or in a list."""
    store = world.site.registry.store[APP]
    store.manifests[TOMBSTONE_DIGEST], store.tags["going"] = TOMBSTONE, TOMBSTONE_DIGEST
    result = world("--yes", "-o", "json")
    assert (result.exit_code, lines(result)[-1]["images"]) == (0, 3)
    (world.site.folder / "list").write_text(f"{APP}:going\n")
    result = world("--images-from", "list", "-o", "json")
    assert lines(result)[-1]["missing"] == [{"name": f"{APP}:going", "reason": "is not in the registry"}]


def test_an_image_that_was_out_of_reach_for_a_moment_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """zot makes a 404 of a storage error at once. The bundle has an image of before under this tag."""
    pushed = world.site.registry.image(PAUSE, "3.11", layer=b"pushed since")
    dark = [True]
    refusal = world.site.registry.refusal

    def refuse(method: str, path: str) -> int | None:
        return 404 if dark and path == f"/v2/{PAUSE}/manifests/3.11" else refusal(method, path)

    def begin(workflow: Workflow, cluster: Cluster, reporter: Reporter, **given: Any) -> list[Action]:
        if workflow not in (INIT, RECOVER):
            dark.clear()
        return run(workflow, cluster, reporter, **given)

    monkeypatch.setattr(world.site.registry, "refusal", refuse)
    monkeypatch.setattr(cli_recover, "run", begin)
    result = world("--yes", "-o", "json")
    assert (result.exit_code, lines(result)[-1]["loaded"]) == (0, []), result.output
    assert world.site.registry.store[PAUSE].tags["3.11"] == pushed.digest


def test_nothing_is_loaded_over_what_may_only_be_out_of_reach(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "PATIENCE", 0.0)
    pushed = world.site.registry.image(PAUSE, "3.11", layer=b"pushed since")
    world.site.registry.refuse = {
        ("GET", f"/v2/{PAUSE}/manifests/3.11"): [404],
        ("GET", "/canary/manifests/v1"): [404] * 99,
    }  # fmt: skip
    refused = error(world("--yes", "-o", "json"), 1)
    assert refused["code"] == "RegistryNotWhole"
    assert world.site.registry.store[PAUSE].tags["3.11"] == pushed.digest


def test_retention_is_paused_for_its_records_may_be_those_of_before(world: World) -> None:
    """A pin of the last minute may be lost, and with it all that keeps an image."""
    key = world.site.three.cluster.secrets.retention_key
    result = world("--yes")
    assert "retention is paused" not in result.output, "it has never run"
    with connector(world.site.registry)() as registry:
        store.restate(registry, key, lambda one: one.with_approval("sha256:1", NOW))
        assert "retention is paused, because its records may be out of date" in world().output
        first = store.read_said(registry, key)
        assert (first.paused, first.why.partition(":")[0]) == (NOW, "recover")
        assert not first.approved, "it may be used up, and the record of that be lost"


def test_retention_without_its_records_is_paused(world: World) -> None:
    world.storage.broken.add(f"{REPOSITORY}/index.json")
    key = world.site.three.cluster.secrets.retention_key
    with connector(world.site.registry)() as registry:
        store.restate(registry, key, lambda one: one)
        world.site.registry.nameless.add(REPOSITORY)
        result = world("--yes", "-o", "json")
        assert lines(result)[-1]["missing"] == [{"name": REPOSITORY, "reason": RECORDS_LOST[REPOSITORY]}]
        assert world.storage.deleted == [f"{REPOSITORY}/index.json"]
        assert store.read_said(registry, key).paused == NOW


def test_without_an_executor_it_says_that_retention_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: Cluster) -> Connect:
        raise Error("no node holds the lease", code="NoExecutor")

    monkeypatch.setattr(cli_recover, "record_writer", nobody)
    result = world("--yes")
    assert (result.exit_code, "retention cannot be paused: no node holds the lease" in result.output) == (0, True)


def test_in_a_script_nothing_is_given_up_unasked(world: World) -> None:
    before = world.site.three.snapshot()
    refused = error(world("-o", "json"), 2)
    assert refused["code"] == "ConfirmationNeeded"
    assert "--yes" in refused["hint"]
    assert world.site.three.snapshot() == before


def test_a_dry_run_says_what_would_be_given_up_and_changes_nothing(world: World) -> None:
    before = world.site.three.snapshot()
    result = world("--dry-run")
    assert result.exit_code == 0, result.output
    assert "cp-2 (10.0.0.12), cp-3 (10.0.0.13) will be excluded if switched on again" in result.output
    assert result.stdout.splitlines()[-1].startswith("would make ")
    assert world.site.three.snapshot() == before


@pytest.mark.parametrize("back", [True, False], ids=["a node is back", "a colleague recovered"])
def test_what_happened_while_somebody_was_asked(world: World, monkeypatch: pytest.MonkeyPatch, back: bool) -> None:
    """The prompt was open for an hour."""
    left, asked = world.site.three.servers["cp-1"], []

    def think(*_: object, **__: object) -> None:
        asked.append(left.locked_by)
        if back:
            left.answer("sh", "-c", links.BLOCKED, "blocked", with_="10.0.0.13 5445\n")
        else:
            left.put(members.PATH, Members(2, {"cp-1": "10.0.0.11", "cp-7": "10.0.0.17", "cp-8": "10.0.0.18"}).render())

    monkeypatch.setattr(click, "confirm", think)
    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda _self: True)
    left.locked_by = None
    acts = world.site.three.acts()
    result = world("-o", "json")
    assert asked == [None], "nothing is locked while somebody thinks"
    assert left.locked_by
    assert world.site.three.acts() == acts
    if back:
        assert error(result, 1)["code"] == "NodeAlive"
    else:
        assert error(result, 3)["code"] == "PreflightFailed"
        problems = [one for one in lines(result) if one["event"] == "check" and not one["ok"]]
        assert [one["check"] for one in problems] == ["SameMembers"]


def test_a_wrong_command_line_contacts_nobody(world: World) -> None:
    world.site.asked.clear()
    for arguments, code in {
        ("--bundle", "nowhere"): "BundleMissing",
        ("-f", "nowhere"): "ConfigUnreadable",
        ("--ignore-preflight-errors", "none"): "CheckUnknown",
    }.items():
        assert error(world(*arguments, "-o", "json"), 2)["code"] == code, arguments
    assert world.site.asked == []
