"""`images ...` as people type it: output, exit codes, and what is asked before something goes."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click.testing
import pytest
from click.testing import CliRunner, Result

from kubeadm_registry import config, members, pki
from kubeadm_registry.access import reach, session
from kubeadm_registry.agent import bucket
from kubeadm_registry.cli.main import cli
from kubeadm_registry.components import garage, zot
from kubeadm_registry.errors import RegistryError
from kubeadm_registry.images import check, wanted
from kubeadm_registry.images.kubernetes_images import images_of
from kubeadm_registry.images.names import Place
from kubeadm_registry.images.seed import Item, proof
from kubeadm_registry.members import Members
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import retry
from kubeadm_registry.transport import host_python
from tests.unit.bundle_files import image, write_layout
from tests.unit.fake_cluster import FakeCluster, authority
from tests.unit.fake_images import Repositories, ScopedHandler
from tests.unit.fake_pushes import FakePushes, listing
from tests.unit.fake_registry import connector, serving
from tests.unit.fakes import FakeTransport
from tests.unit.image_site import NAMES, PAUSE
from tests.unit.test_garage_layout import Clock

pytest_plugins = ["tests.unit.image_site"]


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, ("images", *arguments), input=stdin, prog_name="kubeadm-registry")


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def journal(three: FakeCluster, name: str, *found: str) -> None:
    """What the script that reads a server's log says there."""
    text = "\n".join(["begins 1700000000", *found])
    three.servers[name].answer("sh", "-c", wanted.ASK, with_=text)


def test_list_for_people(fake: Repositories) -> None:
    result = run("list")
    assert result.exit_code == 0, result.output
    head, app, pause, total = result.stdout.splitlines()
    assert head.split() == ["IMAGE", "DIGEST", "PLATFORMS", "SIZE"]
    assert app.split()[0] == "app:v1"
    assert pause.split()[0] == f"{PAUSE}:3.10"
    assert "linux/amd64, linux/arm64" in pause
    assert total == "2 images"
    assert "canary" in run("list", "--all").stdout
    assert run("list", "registry.k8s.io").stdout.splitlines()[-1] == "1 image"


def test_list_for_machines(fake: Repositories) -> None:
    (found,) = lines(run("list", "--referrers", "-o", "json"))
    assert [one["name"] for one in found["images"]] == ["app:v1", f"{PAUSE}:3.10"]
    assert found["images"][1]["digest"] == fake.store[PAUSE].tags["3.10"]
    assert [one["platform"] for one in found["images"][1]["platforms"]] == ["linux/amd64", "linux/arm64"]


def test_check_of_all_that_is_there(fake: Repositories) -> None:
    result = run("check")
    assert result.exit_code == 0, result.output
    assert result.stdout == "2 of 2 images can be pulled through the virtual IP and from 3 nodes\n"


def test_check_names_a_repository_whose_tags_cannot_be_listed(fake: Repositories) -> None:
    """zot, when a block of the list is lost. Of each other repository without a tag it tells an empty list."""
    fake.nameless.add("app")
    fake.store[PAUSE].tags.clear()
    result = run("check", "-o", "json")
    assert result.exit_code == 1, result.output
    problems = [one for one in lines(result) if one["event"] == "check"]
    assert [one["message"] for one in problems] == ["app: the list of its tags cannot be read"]


def test_check_names_image_and_server(fake: Repositories) -> None:
    lost = next(iter(fake.store["app"].blobs))
    fake.store["app"].blobs.pop(lost)
    result = run("check", "-o", "json")
    assert result.exit_code == 1
    *checks, error = lines(result)
    assert {one["host"] for one in checks} == {*NAMES, "the virtual IP"}
    assert {one["check"] for one in checks} == {"ImageReadable"}
    assert all("app:v1" in one["message"] and lost in one["message"] for one in checks)
    assert error["code"] == "ImagesMissing"
    assert error["message"] == "1 of 2 images cannot be pulled from every node"


def test_check_of_a_kubernetes_version(fake: Repositories) -> None:
    *checks, error = lines(run("check", "--kubernetes-version", "v1.33.6", "-o", "json"))
    there, *_ = [name for name in images_of("v1.33.6") if name == f"{PAUSE}:3.10"]
    told = {one["message"].partition(" ")[0].rstrip(":") for one in checks}
    assert told == set(images_of("v1.33.6")) - {there}
    assert {(one["check"], one["host"]) for one in checks} == {("ImagePresent", "")}
    assert error["message"] == "6 of 7 images cannot be pulled from every node"
    result = run("check", "--kubernetes-version", "v1.99.0", "-o", "json")
    assert (result.exit_code, lines(result)[-1]["code"]) == (2, "KubernetesVersionUnknown")


def test_check_of_a_list(fake: Repositories, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"# all\n{PAUSE}:3.10  # twice\n\n{PAUSE}:3.10\n")
    assert run("check", "--images-from", "list").stdout.startswith("1 of 1 image can")
    (tmp_path / "list").write_text("No Name\n")
    result = run("check", "--images-from", "list", "-o", "json")
    assert (result.exit_code, lines(result)[-1]["code"]) == (1, "BundleInputRefused")
    assert run("check", "--images-from", "nowhere").exit_code == 1


def test_check_of_a_list_that_calls_the_registry_by_its_address_and_name(fake: Repositories, tmp_path: Path) -> None:
    """As manifests of images that were pushed here do."""
    (tmp_path / "cluster.yaml").write_text(config.SMALLEST.replace("vip: {", "vip: {name: registry.example, "))
    texts = [f"image: {host}:5000/app:v1\n" for host in ("10.0.0.10", "registry.example")]
    (tmp_path / "pods.yaml").write_text("---\n".join(texts))
    result = run("check", "--images-from", "pods.yaml")
    assert (result.exit_code, result.stdout.partition(" can")[0]) == (0, "1 of 1 image"), result.stdout


def test_check_of_a_bundle(fake: Repositories, tmp_path: Path) -> None:
    write_layout(tmp_path / "bundle.tar", image(f"{PAUSE}:3.11"))
    result = run("check", "--bundle", "bundle.tar", "-o", "json")
    assert result.exit_code == 1
    assert {one["host"] for one in lines(result)[:-1]} == {*NAMES, "the virtual IP"}
    assert all(f"{PAUSE}:3.11" in one["message"] for one in lines(result)[:-1])


def test_check_does_not_speak_for_a_server_that_does_not_answer(
    fake: Repositories, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        closed = nobody.getsockname()[1]
    monkeypatch.setattr(
        FakeTransport, "dial",
        lambda _self, address, _port: ("127.0.0.1", closed if address == "10.0.0.13" else fake.port),
    )  # fmt: skip
    monkeypatch.setattr(proof, "retry", lambda work, seconds: retry(work, min(seconds, 0.3)))
    result = run("check", "-o", "json")
    assert result.exit_code == 5
    *_, note, last = lines(result)
    assert note["host"] == "cp-3"
    assert last["unproven"] == ["cp-3"]
    assert "from 2 nodes" in last["summary"]


DUAL_STACK = """
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryCluster
metadata: {name: registry}
spec:
  nodes:
    - {name: cp-1, address: 10.0.0.11, secondaryAddress: "fd00::11"}
    - {name: cp-2, address: 10.0.0.12, secondaryAddress: "fd00::12"}
    - {name: cp-3, address: 10.0.0.13, secondaryAddress: "fd00::13"}
  vip: {address: 10.0.0.10, secondaryAddress: "fd00::10"}
"""


@pytest.fixture
def dual_stack(tmp_path: Path) -> Iterator[tuple[Repositories, FakeCluster]]:
    """A registry that is reached by both addresses of three servers and of the virtual IP."""
    names = tuple(f"{prefix}{last}" for prefix in ("10.0.0.", "fd00::") for last in (10, 11, 12, 13))
    registry = Repositories()
    for number in range(3):
        registry.image("app", f"v{number}", layer=bytes([number]))
    with serving(registry, pki.issue(authority(), "cp-1", names), ScopedHandler):
        yield registry, FakeCluster.of(DUAL_STACK)


@pytest.mark.parametrize("closed", ["", "fd00::12", "fd00::10"])
def test_both_families_are_looked_at(
    dual_stack: tuple[Repositories, FakeCluster], monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    registry, three = dual_stack
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    dialled = []

    def dial(_: object, address: str, _port: int) -> tuple[str, int]:
        dialled.append(address)
        return "127.0.0.1", port if address == closed else registry.port

    monkeypatch.setattr(FakeTransport, "dial", dial)
    monkeypatch.setattr(proof, "retry", lambda work, seconds: retry(work, min(seconds, 0.3)))
    connect = reach.connection(three.cluster, three.cluster.hosts[0], "10.0.0.10", direct=False)
    items, _ = check.find(connect, [Place("app", f"v{number}") for number in range(3)])
    flaws, silent = reach.prove(three.cluster, items, 2, direct=False)
    assert set(dialled) == set(three.cluster.spec.vip.addresses).union(*(n.addresses for n in three.cluster.spec.nodes))
    where = {"": [], "fd00::12": ["cp-2 (fd00::12)"], "fd00::10": ["the virtual IP (fd00::10)"]}
    assert [flaw.where for flaw in flaws] == where[closed]
    assert silent == {}


def test_where_the_virtual_ip_is_silent_the_nodes_are_not_read_to_the_end(
    dual_stack: tuple[Repositories, FakeCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That may take minutes, for an error that is known already; and so it is with what a Ctrl-C ends."""
    registry, three = dual_stack
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    monkeypatch.setattr(
        FakeTransport, "dial", lambda _self, to, _port: ("127.0.0.1", port if to == "10.0.0.10" else registry.port)
    )
    monkeypatch.setattr(proof, "retry", lambda work, seconds: retry(work, min(seconds, 0.3)))
    looked: list[object] = []
    monkeypatch.setattr(proof, "absent", lambda _, item, thorough: (looked.append(item), time.sleep(0.1))[1])
    items, _ = check.find(connector(registry), [Place("app", "v0")])
    with pytest.raises(RegistryError, match=r"10\.0\.0\.10"):
        reach.prove(three.cluster, [*items] * 300, 1, direct=False)
    assert len(looked) < 600


@pytest.mark.parametrize("lost", ["", "10.0.0.10", "10.0.0.12"])
def test_images_that_were_read_before_are_looked_for_at_one_node_each(
    dual_stack: tuple[Repositories, FakeCluster], monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    registry, three = dual_stack
    items, _ = check.find(connector(registry), [Place("app", f"v{number}") for number in range(3)] * 3)
    items = [replace(item, name=f"app:{number}") for number, item in enumerate(items * 3)]
    known = {item.name for item in items[1:]}
    read = {item.name for item in items[4:]}
    asked: dict[str, list[tuple[set[str], bool]]] = {}

    def prove(
        way: str, what: Sequence[Item], workers: int, *, known: Collection[str], stop: object = None
    ) -> dict[str, str]:
        names = {item.name for item in what}
        asked.setdefault(way, []).append((names, names <= {*known}))
        return {"app:5": "is lost"} if way == lost else {}

    monkeypatch.setattr(reach, "_way", lambda _cluster, _host, address, direct: address)
    monkeypatch.setattr("kubeadm_registry.access.reach.seeding.prove", prove)
    flaws, silent = reach.prove(three.cluster, items, 2, direct=False, known=known, read=read)
    nodes = [asked[node.address] for node in three.cluster.spec.nodes]
    assert asked["10.0.0.10"] == [({"app:0", "app:1", "app:2", "app:3"}, False)]
    assert [one[0] for one in nodes] == [
        ({f"app:{number}" for number in range(len(items)) if number in (0, place) or number % 3 == place}, False)
        for place in range(3)
    ]
    everywhere = ({item.name for item in items}, False)
    assert [one[1:] for one in nodes] == [[everywhere] if lost else []] * 3
    assert [(flaw.image, flaw.why) for flaw in flaws] == ([("app:5", "is lost")] if lost else [])
    assert silent == {}


def test_a_node_is_asked_where_there_are_fewer_images_than_nodes(fake: Repositories) -> None:
    items, _ = check.find(connector(fake), [Place("app", "v1")])
    assert [reach._share(items, {items[0].name}, place, 3) for place in range(3)] == [items] * 3


def test_80_columns_show_the_size_and_all_of_a_name(fake: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "registry.example_5000/a/long/path/to/an/image/of/some/project/with/a/very/long/name"
    fake.image(name, "v1", layer=b"app")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda _self: True)
    shown = run("list").stdout
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert shown.splitlines()[0].split() == ["IMAGE", "DIGEST", "PLATFORMS", "SIZE"]
    assert shown.count("MB") == 3
    folded = "".join(line.split()[0] for line in shown.splitlines() if line.strip())
    assert "to/an/image/of/some/project/with/a/very/long/name:v1" in folded


def test_copy_to_another_name(fake: Repositories) -> None:
    result = run("copy", f"{PAUSE}:3.10", "mine/pause", "-o", "json")
    assert result.exit_code == 0, result.output
    (last,) = lines(result)
    assert (last["manifests"], last["digest"]) == (3, fake.store["mine/pause"].tags["3.10"])
    assert run("copy", PAUSE, "mine/pause:v1").exit_code == 2, "which of its tags?"


def test_a_copy_has_the_tag_that_stands_before_a_digest(fake: Repositories) -> None:
    """As manifests name images; without a tag it would be in no list, and retention takes what is untagged."""
    result = run("copy", f"{PAUSE}:3.10@{fake.store[PAUSE].tags['3.10']}", "mine/pause")
    assert result.exit_code == 0, result.output
    assert fake.store["mine/pause"].tags == {"3.10": fake.store[PAUSE].tags["3.10"]}


@pytest.mark.parametrize("target", ["kubeadm-registry/canary:v1", "10.0.0.10:5000/kubeadm-registry/retention:ledger"])
def test_nothing_is_copied_over_the_registrys_own_records(fake: Repositories, target: str) -> None:
    before = {name: dict(store.tags) for name, store in fake.store.items()}
    result = run("copy", f"{PAUSE}:3.10", target)
    assert (result.exit_code, "belongs to kubeadm-registry itself" in result.stderr) == (2, True)
    assert {name: dict(store.tags) for name, store in fake.store.items()} == before


def test_names_may_begin_with_what_the_registry_is_called(fake: Repositories) -> None:
    """As pods have them: there is no repository that is called by the registry's own address."""
    assert run("list", "10.0.0.10:5000/app").stdout.splitlines()[-1] == "1 image"
    result = run("copy", "10.0.0.10:5000/app:v1", "10.0.0.10:5000/mine/app:v2")
    assert result.exit_code == 0, result.output
    assert set(fake.store["mine/app"].tags) == {"v2"}
    result = run("delete", "10.0.0.10:5000/mine/app:v2")
    assert result.exit_code == 0, result.output
    assert fake.store["mine/app"].tags == {}
    assert "10.0.0.10_5000/mine/app" not in fake.store


def test_delete_shows_before_it_does(fake: Repositories) -> None:
    result = run("delete", "app:v1", "--dry-run")
    assert result.stdout.splitlines()[0].startswith("would delete app:v1 (sha256:")
    assert result.stdout.splitlines()[-1] == "would delete 1 name"
    assert fake.store["app"].tags
    *_, last = lines(run("delete", "app:v1", "-o", "json"))
    assert [one["name"] for one in last["deleted"]] == ["app:v1"]
    assert not fake.store["app"].tags


def test_a_tag_that_goes_alone_is_said_to_free_nothing(fake: Repositories) -> None:
    """zot keeps its image, and `images collect` frees nothing that a manifest needs, with a tag or without."""
    tag = run("delete", "app:v1", "--dry-run").output
    assert "a tag alone frees no space" in tag
    assert "images delete NAME@DIGEST" in tag
    digest = fake.store["app"].tags["v1"]
    assert "frees no space" not in run("delete", f"app@{digest}", "--all-tags", "--dry-run").output


def test_delete_frees_what_no_other_image_needs(fake: Repositories, three: FakeCluster) -> None:
    shared, own, kept = (fake.image("app", tag, layer=tag.encode()) for tag in ("v2", "v3", "v4"))
    relied = oci.digest_of(b"v4")
    proxies = FakePushes(three.servers, relied={"cp-2": [f"app {relied}"]})
    names = [f"app@{one.digest}" for one in (shared, own, kept)]
    said = lines(run("delete", *names, "--all-tags", "-o", "json"))
    assert said[-1]["freed"] == len(b"v2") + len(b"v3"), "the configuration is that of v1 as well"
    assert said[-1]["summary"] == "deleted 3 names, freed 0.0 MB"
    assert relied in fake.store["app"].blobs, "a push has asked for it"
    assert [one["message"] for one in said if one["event"] == "note"][-1].startswith("1 blob stay for now")
    assert not {oci.digest_of(b"v2"), oci.digest_of(b"v3")} & set(fake.store["app"].blobs)
    assert {one.partition(" ")[0] for one in proxies.history[:3]} == {"close"}, "before the logs are read"
    assert {one.partition(" ")[0] for one in proxies.history[-3:]} == {"open"}
    assert not any(proxies.closed.values())


@pytest.mark.parametrize("command", [("images", "collect"), ("images", "delete", "app:v1", "--yes"), ("vip", "move")])
def test_with_a_file_that_omits_a_member_nothing_is_freed_or_moved(
    fake: Repositories, three: FakeCluster, command: tuple[str, ...]
) -> None:
    """Its proxy would take pushes that rely on what goes, and it may take the virtual IP unasked."""
    nodes = {name: f"10.0.0.1{number}" for number, name in enumerate((*NAMES, "cp-4"), 1)}
    for server in three.servers.values():
        server.put(members.PATH, Members(2, nodes).render())
    before = {name: dict(store.blobs) for name, store in fake.store.items()}
    result = CliRunner().invoke(cli, (*command, "-o", "json"), prog_name="kubeadm-registry")
    assert result.exit_code == 1, result.output
    assert (lines(result)[-1]["code"], "cp-4" in lines(result)[-1]["message"]) == ("MembersDiffer", True)
    assert {name: store.blobs for name, store in fake.store.items()} == before
    assert three.acts() == []


def test_collect_frees_what_no_manifest_names(
    fake: Repositories, three: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "installed", lambda _hosts: three.programs)
    broken, new, relied = (fake.blob("app", text).digest for text in (b"broken", b"new", b"relied"))
    untagged = fake.image("app", layer=b"of a manifest without a tag")
    proxies = FakePushes(three.servers, relied={"cp-1": [f"app {relied}"]})
    keys = [
        f"{90_000 if digest != new else 100} 10 {zot.key(name, digest)}"
        for name in ("app", PAUSE)
        for digest in (*fake.store[name].blobs, *fake.store[name].manifests)
    ]
    three.garage.buckets["b"] = {"globalAliases": ["registry-zot"], "bytes": 70}
    for server in three.servers.values():
        server.unit(garage.UNIT).active = "active"
        server.answer(*host_python.command(bucket), with_=listing(*keys, "0 1 x/index.json"))
    before = {name: dict(store.blobs) for name, store in fake.store.items()}
    dry = lines(run("collect", "--dry-run", "-o", "json"))[-1]
    assert {name: store.blobs for name, store in fake.store.items()} == before
    assert (dry["dryRun"], dry["blobs"]) == (True, 4), (
        "at most: also the untagged manifest with its layer, and what a push relied on"
    )
    asked = len(fake.requests)
    result = run("collect", "-o", "json")
    assert result.exit_code == 0, result.output
    said = lines(result)[-1]
    assert (said["blobs"], said["freed"], said["kept"], said["before"]) == (1, 10, 1, 70)
    assert set(before["app"]) - set(fake.store["app"].blobs) == {broken}
    assert fake.store[PAUSE].blobs == before[PAUSE]
    tried = {one.path.rpartition("/")[2] for one in fake.requests[asked:] if one.method == "DELETE"}
    assert untagged.digest in tried, "zot says that it is needed"
    assert not any(proxies.closed.values())


@pytest.mark.parametrize("answer", ["y", "n"])
def test_delete_asks_at_a_terminal(fake: Repositories, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda _self: True)
    result = run("delete", "app:v1", stdin=f"{answer}\n")
    assert "Delete this? [y/N]" in result.stderr
    assert result.exit_code == (0 if answer == "y" else 1)
    assert bool(fake.store["app"].tags) is (answer == "n")
    if answer == "n":
        assert run("delete", "app:v1", "--yes").exit_code == 0
        assert not fake.store["app"].tags


def test_what_is_pushed_before_the_answer_does_not_go(fake: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest takes all its tags along: only those that were shown."""
    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda _self: True)
    digest = fake.store["app"].tags["v1"]

    def confirm(_text: str, *, abort: bool, err: bool) -> bool:
        fake.store["app"].tags["stable"] = digest
        return abort and err

    monkeypatch.setattr(click, "confirm", confirm)
    result = run("delete", f"app@{digest}", "--all-tags")
    assert (result.exit_code, "[ImageChanged]" in result.stderr) == (1, True)
    assert fake.store["app"].tags["stable"] == digest
    assert digest in fake.store["app"].manifests


def test_a_question_is_no_part_of_the_json(fake: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda _self: True)
    result = run("delete", "app:v1", "-o", "json", stdin="n\n")
    assert [one["event"] for one in map(json.loads, result.stdout.splitlines())] == ["note", "note", "error"]
    assert "Delete this? [y/N]" in result.stderr


def test_wanted_is_what_did_not_come_meanwhile(fake: Repositories, three: FakeCluster, tmp_path: Path) -> None:
    journal(three, "cp-1", f"  4 10.0.0.21 {PAUSE} 3.9", f"  2 10.0.0.21 {PAUSE} 3.10")
    journal(three, "cp-2", f"  1 10.0.0.22 {PAUSE} 3.9")
    journal(three, "cp-3")
    result = run("wanted", "--since", "2d", "-o", "out.txt", "--format", "json")
    assert result.exit_code == 0, result.output
    *_, last = lines(result)
    assert (last["wanted"], last["arrived"], last["path"]) == ([f"{PAUSE}:3.9"], 1, "out.txt")
    written = (tmp_path / "out.txt").read_text().splitlines()
    assert [line for line in written if not line.startswith("#")] == [
        f"{PAUSE}:3.9  # 5 times, by 10.0.0.21, 10.0.0.22"
    ]
    assert "in the 2d before" in written[0]


def test_wanted_never_replaces_the_cluster_file(fake: Repositories, three: FakeCluster, tmp_path: Path) -> None:
    before = (tmp_path / "cluster.yaml").read_text()
    result = run("wanted", "-o", "cluster.yaml", "--format", "json")
    assert (result.exit_code, lines(result)[-1]["code"]) == (2, "OutputInvalid")
    assert (tmp_path / "cluster.yaml").read_text() == before


def test_wanted_may_go_into_a_pipe(fake: Repositories, three: FakeCluster, tmp_path: Path) -> None:
    for name in NAMES:
        journal(three, name)
    assert run("wanted", "-o", "/dev/null").exit_code == 0
    assert Path("/dev/null").is_char_device()


def test_wanted_needs_the_logs(fake: Repositories, three: FakeCluster) -> None:
    for name in NAMES:
        three.servers[name].answer("sh", "-c", wanted.ASK, with_=1)
    result = run("wanted", "--format", "json")
    assert (result.exit_code, lines(result)[-1]["code"]) == (1, "LogUnreadable")
    assert run("wanted", "--since", "soon").exit_code == 2


@pytest.mark.parametrize("arguments", [("list",), ("check",), ("copy", "a:1", "b"), ("delete", "a:1"), ("wanted",)])
def test_each_needs_a_registry(fake: Repositories, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.setattr(session, "reach", lambda _config, node, prompts: FakeTransport(node.name))
    form = "--format" if arguments == ("wanted",) else "-o"
    result = run(*arguments, form, "json")
    assert (result.exit_code, lines(result)[-1]["code"]) == (1, "NotInstalled")


def test_an_image_that_the_storage_has_lost_hides_no_other(fake: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubeadm_registry.registry.retries.time", Clock())
    fake.refuse["GET", "/v2/app/manifests/v1"] = [500] * 1000
    *checks, error = lines(run("check", "-o", "json"))
    assert [(one["check"], one["message"].split(" ")[0]) for one in checks] == [("ImagePresent", "app:v1:")]
    assert "status 500 instead of 200" in checks[0]["message"]
    assert not checks[0]["message"].endswith(":")
    assert error["message"] == "1 of 2 images cannot be pulled from every node"
    (found,) = lines(run("list", "-o", "json"))
    assert [one["name"] for one in found["images"]] == ["app:v1", f"{PAUSE}:3.10"]
    assert "status 500" in found["images"][0]["problem"]
