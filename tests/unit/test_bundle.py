"""Bundles: made, opened, verified, and refused when something is wrong with them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from bundle_files import Said, contents, elf, image, member, resealed, script, tar, write_layout
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubeadm_registry.bundle import Bundle, inspect, problems, tree, verify, version_command
from kubeadm_registry.bundle.catalogue import catalogue, version_in
from kubeadm_registry.bundle.make import FromLayout, choose, create
from kubeadm_registry.bundle.make.context import this_architecture
from kubeadm_registry.bundle.programs import PROGRAMS, Program
from kubeadm_registry.errors import BundleError, ConfigError
from kubeadm_registry.oci import descriptors as oci
from tests.lab.command import wait_until

PAUSE = "registry.k8s.io/pause:3.10"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with two programs and an image."""
    folder = tmp_path_factory.mktemp("made")
    programs = choose(
        ["zot"],
        {
            "garage": script(folder / "garage"),
            "zot": script(folder / "tree/bin/zot", '{"commit":"v2.1.20-0-gabc","message":"version"}').parent.parent,
        },
    )
    layout = write_layout(folder / "pause.tar", image(PAUSE, b"layer" * 1000))
    create(folder / "bundle.tar", programs, images=[FromLayout(layout)], cache=folder / "cache")
    return folder / "bundle.tar"


def test_holds_programs_and_images(made: Path, tmp_path: Path) -> None:
    verify(made)
    with Bundle.open(made) as bundle:
        assert sorted(bundle.programs) == ["garage", "zot"]
        assert list(bundle.images) == [PAUSE]
        garage = bundle.programs["garage"]
        assert garage.version == "2.3.0"
        assert garage.architecture == this_architecture()
        assert garage.source.kind == "file"
        assert garage.source.origin == "garage"
        assert garage.prefix.startswith(f"{PROGRAMS}/garage/2.3.0-{this_architecture()}-")
        assert version_command(garage) == (f"{garage.prefix}/bin/garage", "--version")
        assert bundle.programs["zot"].version == "2.1.20"
        bundle.extract(garage, tmp_path / "layer")
    assert (tmp_path / "layer").stat().st_size == garage.size
    assert "sha256:" + hashlib.sha256((tmp_path / "layer").read_bytes()).hexdigest() == garage.digest
    subprocess.run(["tar", "-xzf", "layer"], cwd=tmp_path, check=True)
    assert b"garage v2.3.0" in subprocess.run([tmp_path / "bin/garage"], check=True, capture_output=True).stdout


def test_a_program_that_several_hosts_want_at_once_is_looked_into_once(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def check(layer: BinaryIO, entry_point: str, unpacked: int) -> Iterator[str]:
        looked.append(entry_point)
        wait_until("the others to have it as well", lambda: len(list(tmp_path.glob("cp-*.new"))) == 3, seconds=30)
        return check_layer(layer, entry_point, unpacked)

    check_layer = tree.check_layer
    monkeypatch.setattr(tree, "check_layer", check)
    with Bundle.open(made) as bundle, ThreadPoolExecutor(3) as pool:
        garage = bundle.programs["garage"]
        list(pool.map(lambda name: bundle.extract(garage, tmp_path / name), ("cp-1", "cp-2", "cp-3")))
    assert looked == [garage.entry_point]
    assert {(tmp_path / name).read_bytes() for name in ("cp-1", "cp-2", "cp-3")} == {(tmp_path / "cp-1").read_bytes()}


def test_other_tools_know_the_layout(made: Path) -> None:
    files = contents(made)
    assert list(files)[:2] == ["oci-layout", "index.json"]
    index_digest = "sha256:" + hashlib.sha256(files["index.json"]).hexdigest()
    assert json.loads(files["oci-layout"]) == {
        "imageLayoutVersion": "1.0.0", "dev.kubeadm-registry.index": index_digest
    }  # fmt: skip
    for name, content in files.items():
        if name.startswith("blobs/"):
            assert name == "blobs/sha256/" + hashlib.sha256(content).hexdigest()
    index = json.loads(files["index.json"])
    assert index["schemaVersion"] == 2
    names = [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index["manifests"]]
    assert names == ["program/garage:2.3.0", "program/zot:2.1.20", PAUSE]
    manifest = json.loads(files[oci.blob_name(index["manifests"][0]["digest"])])
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.kubeadm-registry.program.v1"
    assert manifest["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert files[oci.blob_name(manifest["config"]["digest"])] == b"{}"


def test_an_unpacked_bundle_is_a_layout_too(made: Path, tmp_path: Path) -> None:
    with tarfile.open(made) as file:
        file.extractall(tmp_path, filter="data")
    verify(tmp_path)
    assert inspect(tmp_path)["programs"] == inspect(made)["programs"]
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match="neither a file nor a directory"):
        verify(tmp_path)


def test_the_same_inputs_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    sources = {"garage": script(tmp_path / "garage"), "zot": made.parent / "tree"}
    create(again, choose([], sources), images=[FromLayout(made.parent / "pause.tar")], cache=tmp_path / "cache")
    assert again.read_bytes() == made.read_bytes()


def test_images_come_from_a_bundle_as_well(made: Path, tmp_path: Path) -> None:
    second = create(tmp_path / "second.tar", {}, images=[FromLayout(made)], cache=tmp_path)
    assert second.images == (PAUSE,)
    verify(tmp_path / "second.tar")


def test_inspect_is_plain_data(made: Path) -> None:
    told = json.loads(json.dumps(inspect(made)))
    assert [program["name"] for program in told["programs"]] == ["garage", "zot"]
    assert told["programs"][0]["source"]["checked"] == "nothing: the user's own file"
    assert told["images"][0]["name"] == PAUSE
    assert told["images"][0]["size"] > 5000
    assert told["index"] == oci.digest_of(contents(made)["index.json"])


def test_blobs_are_read_in_any_order_by_several_threads(made: Path) -> None:
    with Bundle.open(made) as bundle:
        wanted = list(bundle.layout.reachable(bundle.images[PAUSE]))

        def read(one: oci.Descriptor) -> str:
            with bundle.layout.blob(one) as blob:
                return oci.digest_of(blob.read())

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(read, wanted * 10)) == [one.digest for one in wanted] * 10
        assert wanted[-1] == bundle.images[PAUSE]  # children first: the order in which a registry takes them
        with bundle.layout.blob(wanted[0]) as whole, bundle.layout.blob(wanted[0], offset=5) as part:
            assert whole.read()[5:] == part.read()
        with pytest.raises(BundleError, match="does not hold"):
            bundle.layout.blob(wanted[0].model_copy(update={"digest": "sha256:" + "0" * 64}))


def test_a_failed_run_leaves_nothing_behind(tmp_path: Path) -> None:
    output = tmp_path / "out.tar"
    output.write_bytes(b"the old one")
    damaged = image(PAUSE)
    damaged[next(name for name in damaged if damaged[name] == b"layer")] = b"LAYER"
    layout = write_layout(tmp_path / "pause.tar", damaged)
    with pytest.raises(BundleError, match="does not match its digest"):
        create(output, {}, images=[FromLayout(layout)], cache=tmp_path / "cache")
    assert output.read_bytes() == b"the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tar", "pause.tar"]


def test_what_cannot_be_made_is_said_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="empty"):
        create(tmp_path / "a.tar", {})
    with pytest.raises(ConfigError, match="sparc"):
        create(tmp_path / "a.tar", {}, architecture="sparc")
    with pytest.raises(ConfigError, match="cannot write"):
        create(tmp_path / "none/a.tar", choose([], {"garage": tmp_path}))
    with pytest.raises(ConfigError, match="unknown programs: bird, nginx") as caught:
        choose(["nginx", "garage"], {"bird": tmp_path})
    assert "haproxy" in caught.value.hint
    for digest in ["abc", "sha256:abc", "sha256:" + "G" * 64, "sha256:" + "0" * 64 + "\n"]:
        with pytest.raises(ConfigError, match="not a valid digest for garage"):
            choose(["garage"], accepted={"garage": digest})


# What a damaged or hostile bundle can be.


def change(made: Path, tmp_path: Path, edit: Callable[[dict[str, bytes]], None]) -> Path:
    files = contents(made)
    edit(files)
    return write_layout(tmp_path / "changed.tar", resealed(files))


def codes(path: Path) -> set[str]:
    return {problem.code for problem in problems(path)}


def test_a_changed_blob_is_found(made: Path, tmp_path: Path) -> None:
    for name in contents(made):
        if name.startswith("blobs/"):

            def flip(files: dict[str, bytes], name: str = name) -> None:
                files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])

            assert codes(change(made, tmp_path, flip)) == {"BundleDamaged"}, name


def test_a_missing_or_longer_blob_is_found(made: Path, tmp_path: Path) -> None:
    for name in contents(made):
        if name.startswith("blobs/"):

            def remove(files: dict[str, bytes], name: str = name) -> None:
                del files[name]

            def lengthen(files: dict[str, bytes], name: str = name) -> None:
                files[name] += b"x"

            assert "BundleIncomplete" in codes(change(made, tmp_path, remove))
            assert codes(change(made, tmp_path, lengthen)) == {"BundleDamaged"}


def test_what_nothing_refers_to_is_found(made: Path, tmp_path: Path) -> None:
    changed = change(made, tmp_path, lambda files: files.update({"blobs/sha256/" + "0" * 64: b"", "run.sh": b""}))
    assert [problem.message.rpartition(" ")[2] for problem in problems(changed)] == [
        "blobs/sha256/" + "0" * 64,
        "run.sh",
    ]
    with pytest.raises(BundleError, match="2 problems"):
        verify(changed)


def test_extract_of_a_changed_layer_leaves_no_file(made: Path, tmp_path: Path) -> None:
    with Bundle.open(made) as bundle:
        name = oci.blob_name(bundle.programs["garage"].digest)
    changed = change(made, tmp_path, lambda files: files.update({name: bytes(len(files[name]))}))
    with Bundle.open(changed) as bundle, pytest.raises(BundleError, match="does not match its digest"):
        bundle.extract(bundle.programs["garage"], tmp_path / "layer")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["changed.tar"]


def set_index(files: dict[str, bytes], edit: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads(files["index.json"])
    edit(index)
    files["index.json"] = json.dumps(index).encode()


INDEXES: dict[str, Callable[[dict[str, Any]], None]] = {
    "twice": lambda index: index["manifests"].append(index["manifests"][0]),
    "renamed": lambda index: index["manifests"][0].update(
        annotations={"org.opencontainers.image.ref.name": "program/zot:2.3.0"}
    ),
    "short name": lambda index: index["manifests"][2].update(
        annotations={"org.opencontainers.image.ref.name": "pause"}
    ),
    "no name": lambda index: index["manifests"][2].pop("annotations"),
    "digest": lambda index: index["manifests"][0].update(digest="sha256:../../../../etc/shadow"),
    "other digest": lambda index: index["manifests"][0].update(digest="md5:" + "0" * 64),
    "newline": lambda index: index["manifests"][0].update(digest="sha256:" + "0" * 64 + "\n"),
    "size": lambda index: index["manifests"][0].update(size=-1),
    "text size": lambda index: index["manifests"][0].update(size="12"),
    "huge manifest": lambda index: index["manifests"][0].update(size=2**40),
    "no list": lambda index: index.update(manifests={}),
    "version": lambda index: index.update(schemaVersion=1),
}


@pytest.mark.parametrize("name", INDEXES)
def test_a_wrong_index_is_refused(made: Path, tmp_path: Path, name: str) -> None:
    changed = change(made, tmp_path, lambda files: set_index(files, INDEXES[name]))
    assert codes(changed) == {"BundleDamaged"}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"manifests":' + b"9" * 5000 + b"}"], ids=len
)
def test_an_index_that_is_no_index_is_refused(made: Path, tmp_path: Path, content: bytes) -> None:
    assert codes(change(made, tmp_path, lambda files: files.update({"index.json": content}))) == {"BundleDamaged"}


def test_a_huge_index_is_not_read(made: Path, tmp_path: Path) -> None:
    changed = change(made, tmp_path, lambda files: files.update({"index.json": b" " * (oci.MAX_INDEX + 1)}))
    assert "more than" in next(problems(changed)).message


PROGRAM = "dev.kubeadm-registry.program."
ANNOTATIONS = {
    "org.opencontainers.image.title": ["", "../x", "Garage", "a b"],
    "org.opencontainers.image.version": ["", "1\n2", "x" * 300],
    PROGRAM + "prefix": [
        "",
        "/etc",
        f"{PROGRAMS}/garage/..",
        f"{PROGRAMS}/garage/a/b",
        f"{PROGRAMS}/zot/1",
        "/opt/x\n",
    ],
    PROGRAM + "entry-point": ["", "/bin/sh", "../bin/sh", "bin/../../x", "lib/garage", "bin"],
    PROGRAM + "architecture": ["", "sparc", "AMD64"],
    PROGRAM + "unpacked-size": ["", "-1", "1e9"],
    PROGRAM + "packages": ["{", "[1]", '[{"name":1}]', "3", "[" * 100_000],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in ANNOTATIONS.items() for value in values])
def test_a_wrongly_described_program_is_refused(made: Path, tmp_path: Path, key: str, value: str) -> None:
    def edit(files: dict[str, bytes]) -> None:
        def entry(index: dict[str, Any]) -> None:
            manifest = json.loads(files.pop(oci.blob_name(index["manifests"][0]["digest"])))
            manifest["annotations"][key] = value
            content = json.dumps(manifest).encode()
            files[oci.blob_name(oci.digest_of(content))] = content
            index["manifests"][0].update(digest=oci.digest_of(content), size=len(content))

        set_index(files, entry)

    changed = change(made, tmp_path, edit)
    assert codes(changed) == {"BundleDamaged"}
    with Bundle.open(changed) as bundle, pytest.raises(BundleError):
        _ = bundle.programs


def with_layer(made: Path, tmp_path: Path, layer: bytes) -> Path:
    """Return the bundle with another layer for garage, all digests made right."""

    def edit(files: dict[str, bytes]) -> None:
        def entry(index: dict[str, Any]) -> None:
            manifest = json.loads(files.pop(oci.blob_name(index["manifests"][0]["digest"])))
            files.pop(oci.blob_name(manifest["layers"][0]["digest"]))
            manifest["layers"][0].update(digest=oci.digest_of(layer), size=len(layer))
            manifest["annotations"][PROGRAM + "unpacked-size"] = str(len(SCRIPT))
            content = json.dumps(manifest).encode()
            files[oci.blob_name(oci.digest_of(layer))] = layer
            files[oci.blob_name(oci.digest_of(content))] = content
            index["manifests"][0].update(digest=oci.digest_of(content), size=len(content))

        set_index(files, entry)

    return change(made, tmp_path, edit)


def packed(*members: tuple[str | tarfile.TarInfo, bytes]) -> bytes:
    import gzip

    return gzip.compress(tar(*members), mtime=0)


SCRIPT = b"#!/bin/sh\n"
GOOD = (member("bin", tarfile.DIRTYPE, mode=0o755), b""), (member("bin/garage", mode=0o755), SCRIPT)
LAYERS = {
    "no gzip": b"hello",
    "cut": packed(*GOOD)[:-9],
    "link": packed(*GOOD, (member("bin/sh", tarfile.SYMTYPE, "/bin/sh"), b"")),
    "hard link": packed(*GOOD, (member("bin/sh", tarfile.LNKTYPE, "/bin/sh"), b"")),
    "device": packed(*GOOD, (member("bin/null", tarfile.CHRTYPE), b"")),
    "outside": packed(*GOOD, ("../../../etc/cron.d/x", b"")),
    "absolute": packed(*GOOD, ("/etc/cron.d/x", b"")),
    "twice": packed(*GOOD, ("bin/garage", b"")),
    "not executable": packed(GOOD[0], ("bin/garage", b"")),
    "no entry point": packed(GOOD[0]),
    "entry point is a directory": packed(GOOD[0], (member("bin/garage", tarfile.DIRTYPE, mode=0o755), b"")),
    "below a file": packed(*GOOD, ("bin/garage/x", b"")),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_hostile_layer_is_found(made: Path, tmp_path: Path, name: str) -> None:
    changed = with_layer(made, tmp_path, LAYERS[name])
    assert codes(changed) == {"BundleDamaged"}


def test_a_good_layer_is_not_refused(made: Path, tmp_path: Path) -> None:
    assert not codes(with_layer(made, tmp_path, packed(*GOOD)))


def test_links_in_the_bundle_itself_are_refused(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "links.tar"
    members: list[tuple[str | tarfile.TarInfo, bytes]] = list(contents(made).items())
    path.write_bytes(tar(*members, (member("blobs/sha256/x", tarfile.SYMTYPE, "/etc/shadow"), b"")))
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    assert caught.value.code == "BundleDamaged"
    assert str(path) in caught.value.message


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.floats(min_value=0, max_value=1, exclude_max=True))
def test_every_cut_is_found(made: Path, tmp_path: Path, part: float) -> None:
    content = made.read_bytes()
    end = len(content.rstrip(b"\0")) + 512  # the last block of zeros may be lost: no content is in it
    path = tmp_path / "cut.tar"
    path.write_bytes(content[: int(part * end)])
    assert codes(path) == {"BundleDamaged"}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_no_change_goes_unnoticed_or_makes_another_error(made: Path, tmp_path: Path, where: int, change: int) -> None:
    content = bytearray(made.read_bytes())
    where %= len(content)
    content[where] ^= change
    path = tmp_path / "changed.tar"
    path.write_bytes(bytes(content))
    found = codes(path)
    assert found <= {"BundleDamaged", "BundleIncomplete", "BundleInputRefused"}
    if not found:  # then the change is in what carries no meaning: padding, or fields of a header that are not read
        with Bundle.open(made) as before, Bundle.open(path) as after:
            assert (before.programs, before.images) == (after.programs, after.images)


def test_a_directory_with_names_that_are_no_text_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).touch()
    (tmp_path / oci.LAYOUT_FILE).write_bytes(oci.LAYOUT)
    with pytest.raises(BundleError, match=r"unsafe name in an archive: 'caf\\udce9'") as caught:
        Bundle.open(tmp_path)
    assert caught.value.code == "BundleDamaged"


def test_a_missing_file_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file") as caught:
        Bundle.open(tmp_path / "none.tar")
    assert caught.value.code == "BundleUnreadable"


def test_a_docker_archive_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "docker.tar"
    path.write_bytes(tar(("manifest.json", b"[]")))
    with pytest.raises(BundleError, match="not an OCI image layout") as caught:
        create(tmp_path / "a.tar", {}, images=[FromLayout(path)], cache=tmp_path)
    assert "skopeo" in caught.value.hint


# Images.


def test_the_full_name_is_taken_from_where_containerd_puts_it(tmp_path: Path) -> None:
    names = {"io.containerd.image.name": PAUSE, "org.opencontainers.image.ref.name": "3.10"}
    layout = write_layout(tmp_path / "pause.tar", image("", **names))
    assert create(tmp_path / "a.tar", {}, images=[FromLayout(layout)], cache=tmp_path).images == (PAUSE,)


def test_an_image_without_a_full_name_needs_one(tmp_path: Path) -> None:
    for name in ["pause:3.10", "library/pause:3.10", "registry.k8s.io/pause", "registry.k8s.io/Pause:1", "../x:1", ""]:
        layout = write_layout(tmp_path / "pause.tar", image(name))
        with pytest.raises(BundleError, match="full name"):
            create(tmp_path / "a.tar", {}, images=[FromLayout(layout)], cache=tmp_path)
    made = create(tmp_path / "a.tar", {}, images=[FromLayout(layout, PAUSE)], cache=tmp_path)
    assert made.images == (PAUSE,)
    with Bundle.open(tmp_path / "a.tar") as bundle:
        assert list(bundle.images) == [PAUSE]


def test_one_name_cannot_stand_for_two_images(tmp_path: Path) -> None:
    layouts = [
        FromLayout(write_layout(tmp_path / f"{layer.decode()}.tar", image(PAUSE, layer))) for layer in (b"a", b"b")
    ]
    with pytest.raises(BundleError, match="another"):
        create(tmp_path / "a.tar", {}, images=layouts, cache=tmp_path)
    assert create(tmp_path / "a.tar", {}, images=[layouts[0], layouts[0]], cache=tmp_path).images == (PAUSE,)


def test_a_manifest_under_many_names_costs_little(tmp_path: Path) -> None:
    """It is parsed twice at most, whoever reads the bundle."""
    files = {oci.LAYOUT_FILE: oci.LAYOUT, oci.blob_name(oci.digest_of(b"{}")): b"{}"}
    empty = oci.Descriptor(media_type=oci.EMPTY, digest=oci.digest_of(b"{}"), size=2)
    content = oci.Manifest(config=empty, layers=(empty,) * 8000).to_json()
    files[oci.blob_name(oci.digest_of(content))] = content
    root = oci.Descriptor(media_type=oci.MANIFEST, digest=oci.digest_of(content), size=len(content))
    index = oci.Index(manifests=(root.model_copy(update={"annotations": {"x": str(len(content))}}),)).to_json()
    files[oci.blob_name(oci.digest_of(index))] = index
    roots = [root, oci.Descriptor(media_type=oci.INDEX, digest=oci.digest_of(index), size=len(index))]
    entries = [
        roots[number % 2].model_copy(update={"annotations": {oci.REFERENCE_NAME: f"quay.io/x:{number}"}})
        for number in range(100)
    ]
    files[oci.INDEX_FILE] = oci.Index(manifests=tuple(entries)).to_json()
    path = write_layout(tmp_path / "many.tar", files)
    for look in (verify, inspect):
        begin = time.process_time()
        look(path)
        assert time.process_time() - begin < 3, "it took 5 s and more"


# Programs from files.


def make(tmp_path: Path, path: Path, architecture: str = "") -> tuple[Program, list[str]]:
    lines = Said()
    made = create(
        tmp_path / "a.tar",
        choose([], {"garage": path}),
        cache=tmp_path / "cache",
        progress=lines,
        architecture=architecture,
    )
    verify(made.path)
    return made.programs[0], lines


def test_a_tree_may_come_as_directory_or_archive(tmp_path: Path) -> None:
    tree = script(tmp_path / "tree/bin/garage").parent.parent
    (tree / "share").mkdir()
    (tree / "share/data").write_text("data")
    (tree / "share/link").symlink_to("data")
    program, _ = make(tmp_path, tree)
    subprocess.run(["tar", "-czf", tmp_path / "tree.tar.gz", "-C", tree, "."], check=True)
    assert make(tmp_path, tmp_path / "tree.tar.gz")[0].digest == program.digest
    with Bundle.open(tmp_path / "a.tar") as bundle:
        bundle.extract(program, tmp_path / "layer")
    with tarfile.open(tmp_path / "layer") as layer:
        assert layer.getnames() == ["bin", "bin/garage", "share", "share/data", "share/link"]
        assert layer.extractfile("share/link").read() == b"data"  # type: ignore[union-attr]


@pytest.mark.parametrize("target", ["/etc/passwd", "../../garage-outside", "nowhere", "bin"])
def test_links_that_lead_out_of_a_tree_are_refused(tmp_path: Path, target: str) -> None:
    tree = script(tmp_path / "tree/bin/garage").parent.parent
    (tree / "link").symlink_to(target)
    with pytest.raises(BundleError) as caught:
        make(tmp_path, tree)
    assert caught.value.code == "BundleInputRefused"
    subprocess.run(["tar", "-czf", tmp_path / "tree.tar.gz", "-C", tree, "."], check=True)
    with pytest.raises(BundleError):
        make(tmp_path, tmp_path / "tree.tar.gz")


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("hello")
    cases = {
        "neither a Linux executable": text,
        "no such file": tmp_path / "none",
        "has no bin/garage": script(tmp_path / "other/bin/zot").parent.parent,
        "cannot unpack": tmp_path / "x.tar.gz",
    }
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8bnonsense")
    for words, path in cases.items():
        with pytest.raises(BundleError, match=words):
            make(tmp_path, path)
    tree = script(tmp_path / "flat/bin/garage")
    tree.chmod(0o644)
    with pytest.raises(BundleError, match="not executable"):
        make(tmp_path, tree.parent.parent)


def test_a_program_for_another_machine_is_refused(tmp_path: Path) -> None:
    other = "arm64" if this_architecture() == "amd64" else "amd64"
    path = tmp_path / "garage"
    path.write_bytes(elf(other))
    with pytest.raises(BundleError, match=f"built for {other}"):
        make(tmp_path, path)
    program, _ = make(tmp_path, path, architecture=other)
    assert program.architecture == other
    assert program.version.startswith("sha256-")  # it cannot run here, so it cannot tell


def test_a_damaged_executable_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "garage"
    path.write_bytes(elf()[:70])
    with pytest.raises(BundleError, match="damaged ELF file"):
        make(tmp_path, path)


@pytest.mark.parametrize(
    ("told", "version"),
    [("garage v1.0.1 [features: k2v]", None), ("garage cargo:0.9.4", None), ("garage v20.1", None),
     ("garage cargo:2.3.0 [features: lmdb]", "2.3.0"), ("garage v2.4.0-rc1", "2.4.0-rc1")],
)  # fmt: skip
def test_a_program_of_a_series_that_this_release_cannot_work_with_is_refused(
    tmp_path: Path, told: str, version: str | None
) -> None:
    path = script(tmp_path / "garage", told)
    if version is not None:
        assert make(tmp_path, path)[0].version == version
        return
    with pytest.raises(BundleError, match=r"is not supported; this release works with 2\.x") as caught:
        make(tmp_path, path)
    assert (caught.value.code, caught.value.hint) == ("BundleInputRefused", "pass garage 2.x")


def test_a_program_that_is_older_than_this_release_needs_is_refused() -> None:
    zot = catalogue()["zot"].version
    given = ("2", "2.0.4", "2.1.1", "2.1.2-rc1", "2.1.2", "2.1.20", "2.10.0", "3.0.0")
    assert list(filter(zot.supports, given)) == ["2.1.2-rc1", "2.1.2", "2.1.20", "2.10.0"]
    assert str(zot) == "2.x from 2.1.2 on"


@pytest.mark.parametrize(
    ("told", "version"),
    [('{"commit":"v2.1.20-0-gab12","version":""}', "2.1.20"), ('{"commit":"9f3ab12","version":"v2.1.20"}', "2.1.20"),
     ('{"commit":"9f3ab12"}', None)],
)  # fmt: skip
def test_a_commit_is_not_taken_for_a_version(told: str, version: str | None) -> None:
    assert version_in("zot", told) == version


def test_a_program_that_tells_no_version_is_known_by_its_digest(tmp_path: Path) -> None:
    program, lines = make(tmp_path, script(tmp_path / "garage", "hello"))
    assert program.version.startswith("sha256-")
    assert "warning: cannot determine the version of garage: hello" in lines
    path = tmp_path / "broken"
    path.write_text("#!/bin/sh\nexit 3\n")
    path.chmod(0o755)
    program, lines = make(tmp_path, path)
    assert program.version.startswith("sha256-")
    assert any("cannot determine the version" in line and "status 3" in line for line in lines)


def test_a_program_that_cannot_run_here_is_known_by_its_digest(tmp_path: Path) -> None:
    """And two such digests are of versions that `upgrade` takes for any, so it is said before the air gap."""
    other = "arm64" if this_architecture() == "amd64" else "amd64"
    program, lines = make(tmp_path, script(tmp_path / "garage"), other)
    assert program.version.startswith("sha256-")
    assert any(line.startswith("warning: cannot run garage here") and f"on a {other} host" in line for line in lines)


def test_where_programs_may_not_run_is_said(tmp_path: Path) -> None:
    """As in a /tmp that is mounted with noexec: `upgrade` would know the program by its digest alone, and refuse it."""
    (tmp_path / "sh").write_text("a file that may not run")
    (tmp_path / "garage").write_text(f"#!{tmp_path}/sh\n")
    with pytest.raises(BundleError, match=r"^version of garage: cannot run .*: Permission denied; is ") as caught:
        create(tmp_path / "b.tar", choose([], {"garage": tmp_path / "garage"}))
    assert "TMPDIR" in caught.value.hint


def test_what_a_program_needs_of_the_hosts_is_said(tmp_path: Path) -> None:
    path = tmp_path / "garage"
    path.write_bytes(elf(interpreter="/lib64/ld-linux.so.2", needed=("libc.so.6", "libm.so.6")))
    _, lines = make(tmp_path, path)
    assert "warning: garage is dynamically linked; every node must provide libc.so.6, libm.so.6" in lines


def test_two_builds_of_a_version_never_share_a_directory(tmp_path: Path) -> None:
    first, _ = make(tmp_path, script(tmp_path / "garage", "garage v2.3.0 one"))
    second, _ = make(tmp_path, script(tmp_path / "garage", "garage v2.3.0 two"))
    assert first.version == second.version
    assert first.prefix != second.prefix


def test_the_stream_of_a_blob_ends_before_wrong_content_is_whole() -> None:
    from kubeadm_registry.bundle.layout import Layout

    class Store:
        def __init__(self) -> None:
            self.sizes = {"oci-layout": 30, "index.json": 32, oci.blob_name("sha256:" + "0" * 64): 5}

        def open(self, name: str) -> io.BytesIO:
            content = {"oci-layout": oci.LAYOUT, "index.json": b'{"schemaVersion":2}'}
            return io.BytesIO(content.get(name, b"12345"))

        def close(self) -> None:
            pass

    layout = Layout(Store(), "here")  # type: ignore[arg-type]
    descriptor = oci.Descriptor(media_type="x", digest="sha256:" + "0" * 64, size=5)
    with layout.blob(descriptor) as blob, pytest.raises(BundleError, match="does not match its digest"):
        blob.read(5)
