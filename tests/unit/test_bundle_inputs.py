"""What people have, on its way into a bundle: names, platforms, layouts that lack something, and what is no file."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kubeadm_registry.bundle import Bundle, check, platforms, problems
from kubeadm_registry.bundle.lists import names_in
from kubeadm_registry.bundle.make import FromLayout, choose, create, images_from, named
from kubeadm_registry.bundle.make.remote import FromRegistries
from kubeadm_registry.bundle.tree import take_directory
from kubeadm_registry.errors import BundleError, Error
from kubeadm_registry.images import rescue
from kubeadm_registry.oci import descriptors as oci
from tests.unit.bundle_files import Said, contents, image, resealed, write_layout
from tests.unit.fake_upstream import FakeUpstream, serving
from tests.unit.test_bundle_delta import layered
from tests.unit.test_bundle_images import multi_arch, saved
from tests.unit.test_bundle_signing import made

PAUSE = "registry.k8s.io/pause:3.10"


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with serving(FakeUpstream()) as held:
        yield held


@pytest.fixture(autouse=True)
def nobodys_logins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def codes(path: Path) -> set[str]:
    return {problem.code for problem in problems(path)}


def refusal(path: Path, *given: str | Path, wanted: str = "") -> BundleError:
    with pytest.raises(BundleError) as caught:
        create(path, {}, images=images_from([], given), platforms=platforms(wanted.split()), cache=path.parent / "c")
    return caught.value


def tagged(path: Path, *tags: str) -> Path:
    """A layout as skopeo and umoci write it: images by their tags alone."""
    files: dict[str, bytes] = {}
    entries = []
    for number, tag in enumerate(tags):
        one = layered(tag, b"layer %d" % number)
        entries += json.loads(one[oci.INDEX_FILE])["manifests"]
        files |= one
    files[oci.INDEX_FILE] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    return write_layout(path, files)


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_name_with_another_digest_is_refused(tmp_path: Path) -> None:
    """It would be pushed under the tag, and pulled by it."""
    wrong = f"{PAUSE}@sha256:{'a' * 64}"
    layout = write_layout(tmp_path / "layout.tar", image(wrong))
    error = refusal(tmp_path / "a.tar", layout)
    assert (error.code, wrong in error.message) == ("BundleInputRefused", True)
    assert codes(layout) == {"BundleDamaged"}, "a bundle is a layout, and this one is read as one"
    with Bundle.open(layout) as bundle, pytest.raises(BundleError, match="has another digest"):
        _ = bundle.images
    digest = json.loads(image(PAUSE)[oci.INDEX_FILE])["manifests"][0]["digest"]
    right = write_layout(tmp_path / "right.tar", image(f"{PAUSE}@{digest}"))
    create(tmp_path / "a.tar", {}, images=[FromLayout(right)], cache=tmp_path / "cache")
    assert codes(tmp_path / "a.tar") == set()


@pytest.mark.parametrize(
    "names",
    [
        {oci.CONTAINERD_NAME: "program/x:1", oci.REFERENCE_NAME: "1"},
        {oci.CONTAINERD_NAME: "program/x:1"},
        {oci.CONTAINERD_NAME: "program/x:1", oci.REFERENCE_NAME: "program/x:1"},
        {oci.REFERENCE_NAME: "program/x:1"},
        {oci.CONTAINERD_NAME: PAUSE, oci.REFERENCE_NAME: "program/x:1"},
    ],
    ids=str,
)
def test_an_image_named_like_a_program(tmp_path: Path, names: dict[str, str]) -> None:
    """Each entry is a program or an image, for whoever reads the bundle, and is looked at as that."""
    path = write_layout(tmp_path / "x.tar", image("", **names))
    if names.get(oci.CONTAINERD_NAME) == PAUSE:
        assert codes(path) == set()
        with Bundle.open(path) as bundle:
            assert (list(bundle.images), list(bundle.programs)) == ([PAUSE], [])
    else:
        assert codes(path) == {"BundleDamaged"}
    if oci.CONTAINERD_NAME in names and PAUSE not in names.values():
        assert refusal(tmp_path / "a.tar", path).code == "BundleInputRefused"


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("quay.io/x:1=dir", "quay.io/x:1", "dir"), ("x=dir/a=b", "x", "dir/a=b"), ("dir", "", "dir"),
        ("./here=there", "", "./here=there"), ("=dir", "", "dir"),
    ],
)  # fmt: skip
def test_a_name_before_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here=there").touch()
    assert named(text) == (name, Path(path))


@pytest.mark.parametrize("name", ["docker.io/nginx:1", "index.docker.io/library/nginx:1"])
def test_an_image_of_docker_hub_is_where_clients_ask_for_it(tmp_path: Path, name: str) -> None:
    """As people write names for skopeo, which keeps them as they are: containerd asks for docker.io/library/nginx."""
    layout = write_layout(tmp_path / "layout.tar", image(name))
    create(tmp_path / "a.tar", {}, images=images_from([], [layout]), cache=tmp_path / "cache")
    with Bundle.open(tmp_path / "a.tar") as bundle:
        assert list(bundle.images) == ["docker.io/library/nginx:1"]


@pytest.mark.parametrize("text", ["", "=", "x="])
def test_no_path_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pod.yaml").write_text("image: x:1")
    with pytest.raises(BundleError, match="names no path"):
        images_from([], [text])


def test_a_host_with_uppercase_letters_is_refused(tmp_path: Path) -> None:
    """A repository of that name cannot be pushed to zot."""
    name = "Registry.Example.com/app:v1"
    (tmp_path / "list").write_text(f"{name}\n")
    saved_as, layout = tmp_path / "docker.tar", write_layout(tmp_path / "layout.tar", image(name))
    saved_as.write_bytes(saved(b"layer", name=name))
    for given in (tmp_path / "list", layout, saved_as):
        error = refusal(tmp_path / "a.tar", given)
        assert error.code == "BundleInputRefused"
        assert "Registry.Example.com/app:v1: the host has uppercase letters" in error.message
        assert error.hint == "use registry.example.com, also where the image is used"
    with pytest.raises(BundleError, match="uppercase"):
        images_from([name], [])
    write_layout(layout, image("registry.example.com/app:V1"))
    assert create(tmp_path / "a.tar", {}, images=images_from([], [layout]), cache=tmp_path / "c").images


def test_layouts_with_tags_only_get_their_names(tmp_path: Path) -> None:
    one, two = tagged(tmp_path / "one.tar", "latest"), tagged(tmp_path / "two.tar", "v1", "v2")

    def names(*given: str) -> list[str]:
        return list(create(tmp_path / "a.tar", {}, images=images_from([], given), cache=tmp_path / "cache").images)

    assert names(f"quay.io/org/app:v3={one}") == ["quay.io/org/app:v3"]
    assert names(f"quay.io/org/app={one}") == ["quay.io/org/app:latest"]
    assert names(f"app={two}") == ["docker.io/library/app:v1", "docker.io/library/app:v2"]
    assert codes(tmp_path / "a.tar") == set()
    assert names(f"localhost:5000/app={two}", f"x:1={one}") == [
        "docker.io/library/x:1", "localhost:5000/app:v1", "localhost:5000/app:v2"
    ]  # fmt: skip
    for given, words in [
        (str(two), "is not the full name of an image"), (f"quay.io/app:v1={two}", "has 2 images"),
        (f"UPPER={two}", "is not a valid image name"), (f"quay.io/app={write_layout(one, image(PAUSE))}", PAUSE),
    ]:  # fmt: skip
        error = refusal(tmp_path / "a.tar", given)
        assert words in error.message
        assert error.hint


def test_a_layout_that_lists_every_manifest(tmp_path: Path) -> None:
    """As ORAS writes it: the tag, then without a name what the tag's index has, and what refers to it."""
    files = contents(tagged(tmp_path / "one.tar", "v1"))
    part = oci.Index.model_validate_json(files[oci.INDEX_FILE]).manifests[0].model_copy(update={"annotations": None})
    inner = oci.Index(manifests=(part,)).to_json()
    root = oci.Descriptor(media_type=oci.INDEX, digest=oci.digest_of(inner), size=len(inner))
    empty = oci.Descriptor(media_type=oci.EMPTY, digest=oci.digest_of(b"{}"), size=2)
    sbom = oci.Manifest(artifact_type="test/sbom", config=empty, layers=(empty,), subject=root).to_json()
    refers = oci.Descriptor(media_type=oci.MANIFEST, digest=oci.digest_of(sbom), size=len(sbom))
    for content in (inner, sbom, b"{}"):
        files[oci.blob_name(oci.digest_of(content))] = content
    entries = (root.model_copy(update={"annotations": {oci.REFERENCE_NAME: "v1"}}), part)
    path = tmp_path / "oras.tar"

    def digests(given: str, *entries: oci.Descriptor) -> dict[str, str]:
        write_layout(path, {**files, oci.INDEX_FILE: oci.Index(manifests=entries).to_json()})
        create(tmp_path / "a.tar", {}, images=images_from([], [f"{given}={path}"]), cache=tmp_path / "cache")
        assert codes(tmp_path / "a.tar") == set()
        with Bundle.open(tmp_path / "a.tar") as bundle:
            return {name: one.digest for name, one in bundle.images.items()}

    assert digests("quay.io/app", *entries) == {"quay.io/app:v1": root.digest}
    assert digests("quay.io/app:v2", *entries) == {"quay.io/app:v2": root.digest}
    assert digests("quay.io/app", *entries, refers) == {
        "quay.io/app:v1": root.digest, f"quay.io/app@{refers.digest}": refers.digest,
    }  # fmt: skip
    with pytest.raises(BundleError, match="is not the full name of an image"):
        digests("quay.io/app", part)


def saved_by_docker(path: Path, layers: list[bytes], kind: str, told: list[bytes]) -> Path:
    """An image of *layers* in OCI's form, with *told* in its configuration, which lists them uncompressed."""
    diffs = {"rootfs": {"type": "layers", "diff_ids": [oci.digest_of(one) for one in told]}}
    config = json.dumps({"os": "linux", "architecture": "amd64", **diffs}).encode()
    blobs = [
        oci.Descriptor(media_type=media_type, digest=oci.digest_of(one), size=len(one))
        for media_type, one in ((oci.CONFIG, config), *((kind, one) for one in layers))
    ]
    manifest = oci.Manifest(config=blobs[0], layers=tuple(blobs[1:])).to_json()
    entry = oci.Descriptor(
        media_type=oci.MANIFEST, digest=oci.digest_of(manifest), size=len(manifest),
        annotations={oci.CONTAINERD_NAME: PAUSE, oci.REFERENCE_NAME: "3.10"},
    )  # fmt: skip
    files = {oci.LAYOUT_FILE: oci.LAYOUT, oci.INDEX_FILE: oci.Index(manifests=(entry,)).to_json()}
    return write_layout(path, files | {oci.blob_name(oci.digest_of(one)): one for one in (manifest, config, *told)})


@pytest.mark.parametrize(
    ("layers", "kind", "is_good"),
    [
        ([b"1", b"2"], "application/vnd.oci.image.layer.v1.tar", True),
        ([b"2", b"1"], "application/vnd.oci.image.layer.v1.tar", False),
        ([], oci.LAYER, False),
        ([b"1"], oci.LAYER, False),
        ([b"2", b"1"], oci.LAYER, True),
    ],
    ids=["as it should be", "another order", "none", "one of two", "compressed: nobody knows"],
)
def test_an_image_without_its_layers_is_refused(tmp_path: Path, layers: list[bytes], kind: str, is_good: bool) -> None:
    """As `docker save` of Docker 25.0.0 and its candidates wrote them, beside a manifest.json that was right."""
    layout = saved_by_docker(tmp_path / "saved.tar", layers, kind, [b"1", b"2"])
    if is_good:
        create(tmp_path / "a.tar", {}, images=images_from([], [layout]), cache=tmp_path / "cache")
    else:
        error = refusal(tmp_path / "a.tar", layout)
        assert (error.code, PAUSE in error.message, "docker save" in error.hint) == ("BundleInputRefused", True, True)


def test_an_image_of_containerd_gets_another_name(tmp_path: Path) -> None:
    """It has its full name, and its tag beside that."""
    names = {oci.CONTAINERD_NAME: "docker.io/library/app:v1", oci.REFERENCE_NAME: "v1"}
    path = write_layout(tmp_path / "one.tar", image("", **names))
    made = create(tmp_path / "a.tar", {}, images=images_from([], [f"quay.io/x/app={path}"]), cache=tmp_path / "cache")
    assert made.images == ("quay.io/x/app:v1",)


def test_a_layout_that_is_not_whole_is_no_bundle_to_be_created_again(tmp_path: Path) -> None:
    """Its user creates a bundle: the hint is for who saved the image."""
    files = image(PAUSE)
    layer = next(name for name in files if name.startswith("blobs/") and files[name] == b"layer")
    flaws = {
        "BundleIncomplete": {name: content for name, content in files.items() if name != layer},
        "BundleDamaged": {**files, oci.LAYOUT_FILE: b'{"imageLayoutVersion":"2.0.0"}'},
    }
    for number, wrong in enumerate([*flaws.values(), {**files, layer: b"other"}]):
        error = refusal(tmp_path / "a.tar", write_layout(tmp_path / f"{number}.tar", wrong))
        assert error.code in flaws
        assert error.hint.startswith("save the image again")


def test_links_and_sparse_files_are_told_with_the_way_out(tmp_path: Path) -> None:
    """Bazel makes layouts of links, and tar keeps the hard links and the holes of a directory."""
    archive, layout = write_layout(tmp_path / "a.tar", image(PAUSE)), tmp_path / "layout"
    with tarfile.open(archive) as opened:
        opened.extractall(layout, filter="data")
    blob = next(layout.glob("blobs/sha256/*"))
    with blob.with_suffix(".more").open("wb") as file:
        file.truncate(2**20)
    for name, option in (("sparse", ("--sparse",)), ("pax", ("--sparse", "--format=posix"))):
        subprocess.run(["tar", *option, "-C", str(layout), "-cf", str(tmp_path / name), "."], check=True)
    blob.with_suffix(".more").unlink()
    blob.with_suffix(".hard").hardlink_to(blob)
    subprocess.run(["tar", "-C", str(layout), "-cf", str(tmp_path / "hard"), "."], check=True)
    for name in ("sparse", "pax", "hard"):
        assert refusal(tmp_path / "b.tar", tmp_path / name).hint.startswith("write the archive again")
    blob.unlink()
    blob.symlink_to(blob.with_suffix(".hard"))
    assert refusal(tmp_path / "b.tar", layout).hint.startswith("copy the directory with `cp -rL`")


def test_another_directory_is_not_searched(tmp_path: Path) -> None:
    """Not a home directory for `bundle verify .`, to be refused for a link in it."""
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "new\nline").touch()
    with pytest.raises(BundleError, match=f"is not an OCI image layout: it has no file {oci.LAYOUT_FILE}"):
        Bundle.open(tmp_path)


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories called sha256 cannot be listed."""
    scandir = os.scandir

    def forbidden(path: str) -> object:
        if str(path).endswith("sha256"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)


def test_a_part_that_cannot_be_listed_is_not_missing(tmp_path: Path, unlisted: None) -> None:
    for name, content in image(PAUSE).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path / "a.tar", tmp_path)
    assert (error.code, error.message) == (
        "BundleUnreadable",
        f"cannot read {tmp_path}/blobs/sha256: Permission denied",
    )


def test_manifests_and_programs_that_cannot_be_listed_are_not_missing(tmp_path: Path, unlisted: None) -> None:
    (tmp_path / "in" / "sha256").mkdir(parents=True)
    (tmp_path / "in" / "list.yaml").write_text("image: nginx")
    with pytest.raises(BundleError, match=f"cannot read {tmp_path}/in/sha256: Permission denied"):
        names_in(tmp_path / "in")
    with pytest.raises(PermissionError):
        take_directory(tmp_path / "in", tmp_path)


def test_an_archive_of_docker_gets_its_name(tmp_path: Path) -> None:
    (tmp_path / "none.tar").write_bytes(saved(b"layer", name=None))
    (tmp_path / "named.tar").write_bytes(saved(b"layer"))
    for name in ("none.tar", "named.tar"):
        sources = images_from([], [f"quay.io/x:1={tmp_path / name}"])
        assert create(tmp_path / "a.tar", {}, images=sources, cache=tmp_path / "c").images == ("quay.io/x:1",)
    error = refusal(tmp_path / "a.tar", tmp_path / "none.tar")
    assert f"NAME:TAG={tmp_path / 'none.tar'}" in error.hint


def test_a_list_has_its_names(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("nginx:1\n")
    assert "does not apply to it" in refusal(tmp_path / "a.tar", f"quay.io/x={tmp_path / 'list'}").message


# ---- platforms -------------------------------------------------------------------------------------------------------


def sparse(folder: Path, upstream: FakeUpstream, *kept: str) -> Path:
    """An image for three platforms of which only those *kept* are there, and no attestation."""
    index = multi_arch(upstream, "a/b")
    name = f"{upstream.host}/a/b:v1"
    whole = FromRegistries((f"{name}@{oci.digest_of(index.to_json())}",), patience=1)
    create(folder / "whole.tar", {}, images=[whole], cache=folder / "cache")
    files = contents(folder / "whole.tar")
    for entry in index.manifests:
        if str(entry.platform) not in kept:
            manifest = json.loads(files.pop(oci.blob_name(entry.digest)))
            for one in (manifest["config"], *manifest["layers"]):
                files.pop(oci.blob_name(one["digest"]), None)
    told = json.loads(files[oci.INDEX_FILE])
    told["manifests"][0]["annotations"] = {oci.REFERENCE_NAME: "quay.io/a/b:v1"}
    return write_layout(folder / "sparse.tar", resealed(files | {oci.INDEX_FILE: json.dumps(told).encode()}))


def test_an_index_whose_platforms_are_not_all_there(upstream: FakeUpstream, tmp_path: Path) -> None:
    """As engines save what they pulled for one platform. The hint leads to what works."""
    path = sparse(tmp_path, upstream, "linux/amd64", "linux/arm/v7")
    error = refusal(tmp_path / "a.tar", path)
    assert (error.code, "quay.io/a/b:v1" in error.message) == ("BundleIncomplete", True)
    assert error.hint == "choose available platforms with --platform linux/amd64,linux/arm/v7"
    error = refusal(tmp_path / "a.tar", path, wanted="linux/amd64 linux/arm64/v8")
    assert error.hint == "choose available platforms with --platform linux/amd64,linux/arm/v7"
    create(
        tmp_path / "a.tar", {}, images=[FromLayout(path)], platforms=platforms(["linux/amd64", "linux/arm/v7"]),
        cache=tmp_path / "cache",
    )  # fmt: skip
    assert codes(tmp_path / "a.tar") == set()


@pytest.mark.parametrize("pinned", [False, True])
def test_an_image_for_other_servers(upstream: FakeUpstream, tmp_path: Path, pinned: bool) -> None:
    root = upstream.image("a/b", "v1", b"layer", platform="arm64")
    name = f"{upstream.host}/a/b:v1" + (f"@{root.digest}" if pinned else "")
    said = Said()

    def make(*wanted: str) -> None:
        source = FromRegistries((name,), patience=1)
        create(
            tmp_path / "a.tar", {}, images=[source], platforms=platforms(wanted), architecture="amd64",
            cache=tmp_path / "cache", progress=said,
        )  # fmt: skip

    warning = f"warning: {name} is not available for linux/amd64, only for linux/arm64"
    if pinned:  # it is that one image, by its digest
        make()
        assert warning in said
        return
    for wanted in ((), ("linux/amd64",)):
        with pytest.raises(BundleError, match="not available for linux/amd64") as caught:
            make(*wanted)
        assert caught.value.code == "BundleInputRefused"
        assert caught.value.hint == "pass --platform with one or more of linux/arm64"
    make("linux/arm64")
    assert not [line for line in said if line.startswith("warning")]


@pytest.mark.parametrize("index", [False, True])
def test_an_image_for_some_of_the_platforms(upstream: FakeUpstream, tmp_path: Path, index: bool) -> None:
    """What nodes of the others cannot start is told here, and not by them."""
    root = upstream.image("a/b", "v1", b"layer", platform="arm64")
    if index:
        entry = root.model_copy(update={"platform": oci.Platform(os="linux", architecture="arm64", variant="v8")})
        upstream.add("a/b", "v1", oci.Index(manifests=(entry,)).to_json(), oci.INDEX)
    name = f"{upstream.host}/a/b:v1"

    def warnings(*wanted: str) -> list[str]:
        said, source = Said(), FromRegistries((name,), patience=1)
        create(
            tmp_path / "a.tar", {}, images=[source], platforms=platforms(wanted), cache=tmp_path / "cache",
            progress=said,
        )  # fmt: skip
        return [line for line in said if line.startswith("warning")]

    lacks = f"warning: {name} is not available for"
    assert warnings("linux/amd64", "linux/arm64") == [f"{lacks} linux/amd64"]
    assert warnings("linux/amd64", "linux/arm64/v8", "linux/s390x") == [f"{lacks} linux/amd64, linux/s390x"]
    assert warnings("linux/arm64", "linux/arm64/v8") == []


@pytest.mark.parametrize("index", [False, True])
def test_a_file_with_an_image_for_other_servers(upstream: FakeUpstream, tmp_path: Path, index: bool) -> None:
    """All of a file is taken where no platform is given, and what nobody there can start is told."""
    upstream.image("a/b", "v1", b"layer", platform="arm64")
    source = FromRegistries((f"{upstream.host}/a/b:v1",), patience=1)
    arm = platforms(["linux/arm64"])
    create(tmp_path / "file.tar", {}, images=[source], platforms=arm, cache=tmp_path / "cache")
    name = f"{upstream.host}/a/b:v1"
    if index:
        path = sparse(tmp_path, upstream, "linux/arm64/v8")
        create(tmp_path / "file.tar", {}, images=[FromLayout(path)], platforms=arm, cache=tmp_path / "cache")
        name = "quay.io/a/b:v1"
    said = Said()
    create(
        tmp_path / "a.tar", {}, images=[FromLayout(tmp_path / "file.tar")], architecture="amd64", cache=tmp_path / "c",
        progress=said,
    )  # fmt: skip
    variant = "/v8" if index else ""
    assert f"warning: {name} is not available for linux/amd64, only for linux/arm64{variant}" in said
    error = refusal(tmp_path / "a.tar", tmp_path / "file.tar", wanted="linux/amd64")
    assert "not available for linux/amd64" in error.message


def test_what_is_for_no_platform_is_for_all(upstream: FakeUpstream, tmp_path: Path) -> None:
    """Charts, and images whose configuration does not say."""
    manifests = []
    for number, (kind, config) in enumerate(
        [("application/vnd.cncf.helm.config.v1+json", b'{"os":"x","architecture":"y"}'), (oci.CONFIG, b"{}")]
    ):
        blob = upstream.blob(config, kind)
        manifest = oci.Manifest(config=blob, layers=(upstream.blob(b"chart"),))
        upstream.add("a/chart", f"v{number}", manifest.to_json(), oci.MANIFEST)
        manifests.append(f"{upstream.host}/a/chart:v{number}")
    source = FromRegistries(tuple(manifests), patience=1)
    made = create(
        tmp_path / "a.tar", {}, images=[source], platforms=platforms(["linux/amd64"]), cache=tmp_path / "cache"
    )
    assert len(made.images) == 2


@pytest.mark.parametrize("index", [False, True])
def test_an_empty_platform_is_none(upstream: FakeUpstream, tmp_path: Path, index: bool) -> None:
    """As `crane append` writes it without a base."""
    config = upstream.blob(b'{"architecture":"","os":"","rootfs":{"type":"layers","diff_ids":[]}}', oci.CONFIG)
    manifest = oci.Manifest(config=config, layers=(upstream.blob(b"package"),)).to_json()
    root = upstream.add("a/package", "v1", manifest, oci.MANIFEST)
    if index:
        entry = root.model_copy(update={"platform": oci.Platform(os="", architecture="")})
        root = upstream.add("a/package", "v1", oci.Index(manifests=(entry,)).to_json(), oci.INDEX)
    source = FromRegistries((f"{upstream.host}/a/package:v1",), patience=1)
    for wanted in ((), ("linux/amd64",)):
        said = Said()
        create(
            tmp_path / "a.tar", {}, images=[source], platforms=platforms(wanted), architecture="arm64",
            cache=tmp_path / "cache", progress=said,
        )  # fmt: skip
        assert not [line for line in said if line.startswith("warning")]
        with Bundle.open(tmp_path / "a.tar") as bundle:
            assert [one.digest for one in bundle.images.values()] == [root.digest]
    create(tmp_path / "b.tar", {}, images=[FromLayout(tmp_path / "a.tar")], platforms=platforms(["linux/amd64"]))


def test_what_a_delta_leaves_out_is_not_looked_at(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.image("a/b", "v1", b"layer")
    source = FromRegistries((f"{upstream.host}/a/b:v1",), patience=1)
    create(tmp_path / "a.tar", {}, images=[source], architecture="amd64", cache=tmp_path / "cache")
    create(
        tmp_path / "b.tar", {}, images=[source], architecture="amd64", since=tmp_path / "a.tar", cache=tmp_path / "new"
    )
    assert codes(tmp_path / "b.tar") == set()
    assert not list((tmp_path / "new/blobs/sha256").iterdir())


# ---- what is no file -------------------------------------------------------------------------------------------------


@pytest.fixture
def soon() -> Iterator[None]:
    """Ends a test that waits for a pipe."""

    def end(_number: int, _frame: object) -> None:
        raise AssertionError("it waits for the pipe")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def as_images(path: Path) -> None:
    create(path.with_name("a.tar"), {}, images=images_from([], [path]), cache=path.parent / "cache")


def as_program(path: Path) -> None:
    create(path.with_name("a.tar"), choose([], {"garage": path}), cache=path.parent / "cache")


def as_base(path: Path) -> None:
    made(path.with_name("a.tar"), since=path)


def as_key(path: Path) -> None:
    with Bundle.open(made(path.with_name("a.tar"))) as bundle:
        check(bundle.layout, path)


READERS: list[Callable[[Path], object]] = [
    Bundle.open, as_images, as_program, as_base, as_key, rescue.certificate, rescue.logins,
]  # fmt: skip


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__qualname__)
def test_a_pipe_that_nobody_writes_to_is_refused(tmp_path: Path, read: Callable[[Path], object], soon: None) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Error) as caught:
        read(tmp_path / "pipe")
    assert caught.value.hint
    assert caught.value.code != "Bug"


def test_what_a_command_writes_is_a_list(soon: None) -> None:
    """As ``--images-from <(kubeadm config images list)``, whose writer may take its time."""
    end, written = os.pipe()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(names_in, Path(f"/dev/fd/{end}"))
        assert not found.done()
        os.write(written, f"{PAUSE}\n".encode())
        os.close(written)
        assert found.result(10) == [PAUSE]
    os.close(end)


def test_an_archive_that_a_command_writes_is_refused(soon: None) -> None:
    """As ``--images-from <(docker save app)``: it would be read from several places at a time."""
    end, written = os.pipe()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(images_from, [], [Path(f"/dev/fd/{end}")])
        os.write(written, saved(b"layer"))
        os.close(written)
        with pytest.raises(BundleError, match="it is not a text file") as caught:
            found.result(10)
    os.close(end)
    assert "which must be a regular file" in caught.value.hint
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_bundle(path: str, soon: None) -> None:
    with pytest.raises(BundleError, match="it is not a regular file") as caught:
        Bundle.open(path)
    assert caught.value.code == "BundleUnreadable"


def test_a_list_without_end_is_refused(soon: None) -> None:
    with pytest.raises(BundleError, match="it is larger than"):
        names_in(Path("/dev/zero"))


@pytest.mark.parametrize("limit", ["oci.descriptors.MAX_INDEX", "bundle.archive.MAX_MEMBERS"])
def test_what_could_not_be_read_again_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    layout = write_layout(tmp_path / "layout.tar", image(PAUSE))
    size = {"oci.descriptors.MAX_INDEX": len(contents(layout)[oci.INDEX_FILE]), "bundle.archive.MAX_MEMBERS": 6}
    monkeypatch.setattr(f"kubeadm_registry.{limit}", size[limit])
    error = refusal(tmp_path / "a.tar", layout)
    assert error.code == "BundleInputRefused"
    assert "more than can be read again" in error.message
    assert not (tmp_path / "a.tar").exists()
