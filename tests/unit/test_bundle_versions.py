"""Bundles of other releases: those of release 0.1 are read for ever, and what only a newer one can read is told so."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.bundle import Bundle, inspect, problems, sign_file, tool, verify
from kubeadm_registry.bundle.make import FromLayout, choose, create
from kubeadm_registry.bundle.versions import FILES, FORMAT, INDEX_DIGEST
from kubeadm_registry.errors import BundleError
from kubeadm_registry.oci import descriptors as oci
from tests.unit.bundle_files import contents, image, resealed, script, write_layout
from tests.unit.corrupted import Files, descriptors, sealed
from tests.unit.test_bundle_signing import keygen, public

#: A full bundle and a delta as release 0.1 wrote them, at d7583f6, both signed by the key. They are never made again.
FROZEN = Path(__file__).parents[1] / "golden" / "formats" / "bundle"
FULL, DELTA, KEY = FROZEN / "full.tar", FROZEN / "delta.tar", FROZEN / "key.pub"
PAUSE, APP, PROXY = "registry.k8s.io/pause:3.10", "quay.io:443/org/app:v1", "registry.k8s.io/kube-proxy:v1.36.3"
PROGRAM = "dev.kubeadm-registry.program."


def codes(path: Path) -> set[str]:
    return {problem.code for problem in problems(path)}


def indexed(path: Path, files: Files, edit: Callable[[Any], object]) -> Path:
    """The bundle *path* of *files* with another index."""
    index = json.loads(files[oci.INDEX_FILE])
    edit(index)
    return write_layout(path, resealed(files | {oci.INDEX_FILE: json.dumps(index).encode()}))


@pytest.fixture(scope="module")
def current(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as this release makes it, with the tool in it."""
    folder = tmp_path_factory.mktemp("current")
    layout = write_layout(folder / "pause.tar", image(PAUSE, b"layer"))
    programs = choose([], {tool.NAME: script(folder / "tool", "kubeadm-registry, version 0.2.0")})
    create(folder / "bundle.tar", programs, images=[FromLayout(layout)], cache=folder / "cache")
    return folder / "bundle.tar"


# ---- release 0.1 -----------------------------------------------------------------------------------------------------


def test_what_0_1_wrote_is_read(tmp_path: Path) -> None:
    verify(FULL, key=KEY)
    verify(DELTA, key=KEY, bases=[FULL])
    with Bundle.open(FULL) as full, Bundle.open(DELTA) as delta:
        assert (list(full.images), list(delta.images)) == ([APP, PAUSE], [PROXY, PAUSE])
        assert full.programs["garage"].version == "1.0.0"
        assert delta.layout.lineage.base == full.layout.lineage.index
        assert (full.layout.version.number, full.layout.version.files) == (1, {})
        full.extract(full.programs["garage"], tmp_path / "layer")
    with tarfile.open(tmp_path / "layer") as layer:
        assert layer.getnames() == ["bin", "bin/garage"]


def test_a_delta_is_made_since_one_of_0_1(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "pause.tar", image(PAUSE, b"small" * 100))
    create(tmp_path / "june.tar", {}, images=[FromLayout(layout)], since=DELTA, cache=tmp_path / "cache")
    verify(tmp_path / "june.tar", bases=[FULL])
    assert inspect(tmp_path / "june.tar")["sequence"] == 2


def test_one_of_0_1_is_signed_again(tmp_path: Path) -> None:
    path = tmp_path / "full.tar"
    path.write_bytes(FULL.read_bytes())
    key = keygen(tmp_path / "key")
    sign_file(path, key)
    verify(path, key=public(key))


def test_the_script_in_one_of_0_1_is_that_of_0_1(current: Path, tmp_path: Path) -> None:
    files = contents(FULL)
    for other in (files[tool.UNPACK_FILE] + b"\n", contents(current)[tool.UNPACK_FILE]):
        assert codes(write_layout(tmp_path / "x.tar", files | {tool.UNPACK_FILE: other})) == {"BundleDamaged"}
    del files[tool.UNPACK_FILE]
    assert codes(write_layout(tmp_path / "x.tar", files)) == {"BundleDamaged"}


def more(document: Any) -> None:
    """Give each object in *document* a key that nobody knows."""
    for one in list(descriptors(document)):
        one["x-from-a-newer-release"] = "1" if all(isinstance(value, str) for value in one.values()) else {"a": [1]}


def manifests(files: Files) -> list[str]:
    return [name for name, held in files.items() if name.startswith("blobs/") and b'"schemaVersion"' in held]


@pytest.mark.parametrize("path", [FULL, DELTA], ids=lambda path: path.stem)
def test_one_key_more(path: Path, tmp_path: Path) -> None:
    """Wherever it is: in the index and its annotations, and in each manifest."""
    before = contents(path)
    files, docs = dict(before), 0
    for name in [oci.LAYOUT_FILE, oci.INDEX_FILE]:
        document = json.loads(files[name])
        more(document)
        files[name] = json.dumps(document).encode()
    for name in manifests(before):
        document = json.loads(before[name])
        more(document)
        files = sealed(files, "sha256:" + name.rpartition("/")[2], json.dumps(document).encode())
        docs += 1
    assert docs >= 4
    verify(write_layout(tmp_path / "more.tar", files))
    told, was = inspect(tmp_path / "more.tar"), inspect(path)
    assert [item["name"] for item in told["images"]] == [item["name"] for item in was["images"]]
    for new, old in zip(told["programs"], was["programs"], strict=True):
        assert new | {"manifest": ""} == old | {"manifest": ""}
    assert (told["base"], told["sequence"]) == (was["base"], was["sequence"])


def without(document: Any, path: tuple[Any, ...]) -> Any:
    """*document* without what is at *path*."""
    document = json.loads(json.dumps(document))
    held = document
    for part in path[:-1]:
        held = held[part]
    del held[path[-1]]
    return document


def places(document: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(document, list):
        return [found for number, value in enumerate(document) for found in places(value, (*above, number))]
    if not isinstance(document, dict):
        return []
    return [found for key, value in document.items() for found in ((*above, key), *places(value, (*above, key)))]


#: What may be missing: these are only shown, or have a default; and an image may have no layers.
_OPTIONAL = {
    *(f"{PROGRAM}{name}" for name in ("source", "origin", "checked")),
    "schemaVersion", "mediaType", "artifactType", "platform", "data", "layers",
}  # fmt: skip


@pytest.mark.parametrize("path", [FULL, DELTA], ids=lambda path: path.stem)
def test_one_key_less(path: Path, tmp_path: Path) -> None:
    """It has a default, or the bundle is refused by a code that says what to do; never another error."""
    files = contents(path)
    taken, whole = set(), set()
    for name in (oci.LAYOUT_FILE, oci.INDEX_FILE, *manifests(files)):
        document = json.loads(files[name])
        for place in places(document):
            content = json.dumps(without(document, place)).encode()
            digest = "sha256:" + name.rpartition("/")[2]
            changed = sealed(files, digest, content) if name.startswith("blobs/") else files | {name: content}
            found = list(problems(write_layout(tmp_path / "less.tar", changed)))
            assert {problem.code for problem in found} <= {"BundleDamaged", "BundleIncomplete"}, place
            assert all(problem.hint for problem in found)
            taken.add(place[-1])
            if not found:
                whole.add(place[-1])
                inspect(tmp_path / "less.tar")
    assert {"digest", "size", "config", f"{PROGRAM}prefix", "imageLayoutVersion"} <= taken - whole
    assert whole <= _OPTIONAL
    assert {f"{PROGRAM}origin", "schemaVersion"} <= whole


# ---- other releases --------------------------------------------------------------------------------------------------


def stamp(version: int, reader: int, writer: int) -> dict[str, str]:
    return {FORMAT: json.dumps({"version": version, "minReader": reader, "minWriter": writer, "more": 1})}


def test_this_release_says_its_format(current: Path) -> None:
    annotations = json.loads(contents(current)[oci.INDEX_FILE])["annotations"]
    assert json.loads(annotations[FORMAT]) == {"version": 2, "minReader": 1, "minWriter": 1}
    script_digest = oci.digest_of(contents(current)[tool.UNPACK_FILE])
    assert json.loads(annotations[FILES]) == {"unpack.sh": script_digest}
    verify(current)


def test_a_script_and_files_of_another_release(current: Path, tmp_path: Path) -> None:
    """They are what the index says, whatever this release would have written."""
    files = contents(current) | {tool.UNPACK_FILE: b"another way", "docs/NEWS": b"news"}
    digests = {name: oci.digest_of(files[name]) for name in (tool.UNPACK_FILE, "docs/NEWS")}
    told = stamp(3, 1, 1) | {FILES: json.dumps(digests)}
    path = indexed(tmp_path / "x.tar", files, lambda index: index["annotations"].update(told))
    verify(path)
    for name in digests:
        assert codes(write_layout(path, contents(path) | {name: b"changed"})) == {"BundleDamaged"}
        path = indexed(path, files, lambda index: index["annotations"].update(told))
        assert codes(write_layout(path, {n: held for n, held in contents(path).items() if n != name})) == {
            "BundleDamaged"
        }
        path = indexed(path, files, lambda index: index["annotations"].update(told))
    assert codes(write_layout(path, contents(path) | {"docs/OTHER": b""})) == {"BundleDamaged"}


@pytest.mark.parametrize(
    "text", ["", "[]", '{"x": 1}', '{"x": "sha256:1"}', "[" * 100_000]
    + [json.dumps({name: "sha256:" + "0" * 64}) for name in ("../x", "/x", "blobs/sha256/x", "index.json", "")],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_a_list_of_files_that_is_none(current: Path, tmp_path: Path, text: str) -> None:
    path = indexed(tmp_path / "x.tar", contents(current), lambda index: index["annotations"].update({FILES: text}))
    assert codes(path) == {"BundleDamaged"}


@pytest.mark.parametrize("text", ["", "3", "[]", "{", '{"version": 0}', '{"minReader": "1"}', "[" * 100_000])
def test_a_format_that_is_none(current: Path, tmp_path: Path, text: str) -> None:
    path = indexed(tmp_path / "x.tar", contents(current), lambda index: index["annotations"].update({FORMAT: text}))
    assert codes(path) == {"BundleDamaged"}


def unreadable(index: Any) -> None:
    index["schemaVersion"] = 3
    index["manifests"] = {"a": "form of its own"}


@pytest.mark.parametrize("form", [lambda index: None, unreadable], ids=["readable", "of a form of its own"])
def test_what_only_a_newer_release_can_read(current: Path, tmp_path: Path, form: Callable[[Any], None]) -> None:
    def edit(index: Any) -> None:
        index["annotations"].update(stamp(4, 3, 3))
        form(index)

    path = indexed(tmp_path / "x.tar", contents(current), edit)
    [problem] = problems(path)
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    for error in (problem, caught.value):
        assert (error.code, error.hint) == ("NewerFormat", "use a newer kubeadm-registry")
        assert "version 3 of its format is needed to read it" in error.message
        assert str(path) in error.message


def test_what_only_a_newer_release_may_write(current: Path, tmp_path: Path) -> None:
    path = indexed(tmp_path / "x.tar", contents(current), lambda index: index["annotations"].update(stamp(4, 1, 3)))
    verify(path)
    before = path.read_bytes()
    with pytest.raises(BundleError) as caught:
        sign_file(path, keygen(tmp_path / "key"))
    assert caught.value.code == "NewerFormat"
    assert path.read_bytes() == before


def test_a_program_of_a_newer_form(tmp_path: Path) -> None:
    files = contents(FULL)
    [name] = [name for name in manifests(files) if b'"garage"' in files[name]]
    document = json.loads(files[name]) | {"artifactType": "application/vnd.kubeadm-registry.program.v2"}
    digest = "sha256:" + name.rpartition("/")[2]
    path = write_layout(tmp_path / "x.tar", sealed(files, digest, json.dumps(document).encode()))
    assert codes(path) == {"NewerFormat"}
    with Bundle.open(path) as bundle, pytest.raises(BundleError) as caught:
        _ = bundle.programs
    assert caught.value.hint == "use a newer kubeadm-registry"


def test_a_bundle_of_this_release_has_the_digest_of_its_index(current: Path, tmp_path: Path) -> None:
    files = contents(current)
    assert json.loads(files[oci.LAYOUT_FILE])[INDEX_DIGEST] == inspect(current)["index"]
    for told in (oci.LAYOUT, b"{}", b"[]", b"{", json.dumps({**json.loads(oci.LAYOUT), INDEX_DIGEST: "x"}).encode()):
        assert codes(write_layout(tmp_path / "x.tar", files | {oci.LAYOUT_FILE: told})) == {"BundleDamaged"}
