"""Images for a bundle: from registries, archives, lists and manifests; names, platforms, logins, broken transfers."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from bundle_files import Said, contents, image, member, resealed, script, tar, write_layout

from kubeadm_registry.bundle import Bundle, platforms, verify
from kubeadm_registry.bundle.images import prune, require
from kubeadm_registry.bundle.lists import names_in, told_in
from kubeadm_registry.bundle.make import FromLayout, create, images_from
from kubeadm_registry.bundle.make.remote import FromRegistries
from kubeadm_registry.errors import BundleError, ConfigError
from kubeadm_registry.images.wanted import to_text
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.oci.references import full, parse
from tests.unit.fake_upstream import FakeUpstream, serving
from tests.unit.fake_web import Asked, Say
from tests.unit.fake_web import serving as serving_web

ROOT = Path(__file__).parents[2]
LAYER = bytes(range(256)) * 4096


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with serving(FakeUpstream()) as held:
        yield held


@pytest.fixture(autouse=True)
def nobodys_logins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "auth.json").write_text("{}")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))


def bundle_of(tmp_path: Path, *names: str, wanted: str = "", name: str = "a.tar", patience: float = 1) -> Path:
    chosen = platforms([wanted]) if wanted else ()
    source = FromRegistries(names, patience=patience)
    create(tmp_path / name, {}, images=[source], platforms=chosen, architecture="amd64", cache=tmp_path / "cache")
    verify(tmp_path / name)
    return tmp_path / name


def multi_arch(held: FakeUpstream, repository: str) -> oci.Index:
    """An image for three platforms, one with an attestation of BuildKit's."""
    entries = []
    for architecture, variant in (("amd64", None), ("arm64", "v8"), ("arm", "v7")):
        root = held.image(repository, "", architecture.encode() * 100, platform=architecture)
        platform = oci.Platform(os="linux", architecture=architecture, variant=variant)
        entries.append(root.model_copy(update={"platform": platform}))
    about = held.image(repository, "", b"attestation", platform="unknown")
    notes = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": entries[0].digest}
    unknown = oci.Platform(os="unknown", architecture="unknown")
    entries.append(about.model_copy(update={"platform": unknown, "annotations": notes}))
    index = oci.Index(manifests=tuple(entries))
    held.add(repository, "v1", index.to_json(), oci.INDEX)
    return index


# What refers to an image.


def signed(held: FakeUpstream, tmp_path: Path, *, referrers: bool = True) -> dict[str, oci.Descriptor]:
    """The images of a bundle of a/app:v1, of which *held* has more than that."""
    source = FromRegistries((f"{held.host}/a/app:v1",), referrers, patience=1)
    create(tmp_path / "a.tar", {}, images=[source], architecture="amd64", cache=tmp_path / "cache")
    verify(tmp_path / "a.tar")
    with Bundle.open(tmp_path / "a.tar") as bundle:
        return dict(bundle.images)


@pytest.mark.parametrize("listed", [True, False])
def test_what_refers_to_an_image_comes_along_if_wanted(upstream: FakeUpstream, tmp_path: Path, listed: bool) -> None:
    """By the registry's list, or where it has none by the tag that stands for one; and what refers to that."""
    upstream.lists_referrers = listed
    image = upstream.image("a/app", "v1", LAYER)
    other = upstream.image("a/app", "v2", b"other")
    sbom = upstream.artifact("a/app", image, kind="test/sbom")
    signature = upstream.artifact("a/app", sbom)
    upstream.artifact("a/app", other)
    cosigned = upstream.artifact("a/app", image, tag=f"sha256-{image.digest[7:]}.sig", kind="test/cosign")
    if not listed:
        for subject, refers in ((image, (sbom, cosigned)), (sbom, (signature,))):
            index = oci.Index(manifests=refers)
            upstream.add("a/app", f"sha256-{subject.digest[7:]}", index.to_json(), oci.INDEX)
    found = signed(upstream, tmp_path)
    place = f"{upstream.host}/a/app"
    assert {name: root.digest for name, root in found.items()} == {
        f"{place}:v1": image.digest,
        f"{place}@{sbom.digest}": sbom.digest,
        f"{place}@{signature.digest}": signature.digest,
        f"{place}@{cosigned.digest}": cosigned.digest,
        f"{place}:sha256-{image.digest[7:]}.sig": cosigned.digest,
    }


def test_what_refers_and_cannot_be_had_is_told_and_left_out(upstream: FakeUpstream, tmp_path: Path) -> None:
    """What was deleted may still be listed, and what OCI 1.1 was to have in its drafts is of another type."""
    upstream.lists_referrers = False
    image = upstream.image("a/app", "v1", LAYER)
    signature = upstream.artifact("a/app", image)
    gone = upstream.artifact("a/app", image, kind="test/gone")
    del upstream.manifests[f"a/app:{gone.digest}"]
    draft = upstream.add("a/app", "", b"{}", "application/vnd.oci.artifact.manifest.v1+json")
    index = oci.Index(manifests=(gone, draft, signature))
    upstream.add("a/app", f"sha256-{image.digest[7:]}", index.to_json(), oci.INDEX)
    said, place = Said(), f"{upstream.host}/a/app"
    source = FromRegistries((f"{place}:v1",), referrers=True, patience=1)
    create(tmp_path / "a.tar", {}, images=[source], architecture="amd64", cache=tmp_path / "cache", progress=said)
    with Bundle.open(tmp_path / "a.tar") as bundle:
        assert set(bundle.images) == {f"{place}:v1", f"{place}@{signature.digest}"}
    assert {line for line in said if line.startswith("warning")} == {
        f"warning: not included: {place}@{gone.digest}: {upstream.host} has no a/app:{gone.digest}",
        f"warning: not included: {place}@{draft.digest} is {draft.media_type} with 2 bytes, not an image in a "
        "supported format",
    }


def test_a_page_for_people_is_no_list_of_what_refers(upstream: FakeUpstream, tmp_path: Path) -> None:
    """ghcr.io redirects the question to its web pages (https://github.com/artifacthub/hub/issues/4785)."""
    upstream.referrers_page = b"<html>"
    image = upstream.image("a/app", "v1", LAYER)
    signature = upstream.artifact("a/app", image)
    index = oci.Index(manifests=(signature,))
    upstream.add("a/app", f"sha256-{image.digest[7:]}", index.to_json(), oci.INDEX)
    assert set(signed(upstream, tmp_path)) == {
        f"{upstream.host}/a/app:v1", f"{upstream.host}/a/app@{signature.digest}"
    }  # fmt: skip


def test_an_image_is_no_list_of_what_refers_to_it(upstream: FakeUpstream, tmp_path: Path) -> None:
    """GitLab takes the tag for the digest (https://github.com/oras-project/oras-go/issues/1396)."""
    upstream.lists_referrers = False
    index = multi_arch(upstream, "a/app").to_json()
    digest = oci.digest_of(index)
    upstream.add("a/app", digest.replace(":", "-"), index, oci.INDEX)
    source = FromRegistries((f"{upstream.host}/a/app@{digest}",), referrers=True, patience=1)
    create(tmp_path / "a.tar", {}, images=[source], architecture="amd64", cache=tmp_path / "cache")
    with Bundle.open(tmp_path / "a.tar") as bundle:
        assert set(bundle.images) == {f"{upstream.host}/a/app@{digest}"}


def test_nothing_is_looked_for_unless_it_is_wanted(upstream: FakeUpstream, tmp_path: Path) -> None:
    image = upstream.image("a/app", "v1", LAYER)
    upstream.artifact("a/app", image)
    assert list(signed(upstream, tmp_path, referrers=False)) == [f"{upstream.host}/a/app:v1"]
    assert not [path for path in upstream.asked if "referrers" in path or ".sig" in path]


def test_an_image_of_several_platforms_brings_what_refers_to_those_that_are_in_the_bundle(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    index = multi_arch(upstream, "a/app")
    wanted, others = index.manifests[0], index.manifests[1:3]
    signature = upstream.artifact("a/app", wanted)
    for other in others:
        upstream.artifact("a/app", other)
    source = FromRegistries((f"{upstream.host}/a/app:v1",), referrers=True, patience=1)
    create(tmp_path / "a.tar", {}, images=[source], platforms=platforms(["linux/amd64"]), architecture="amd64",
           cache=tmp_path / "cache")  # fmt: skip
    with Bundle.open(tmp_path / "a.tar") as bundle:
        assert set(bundle.images) == {f"{upstream.host}/a/app:v1", f"{upstream.host}/a/app@{signature.digest}"}


# Names.


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("calico/node:v3", "docker.io/calico/node:v3"),
        ("docker.io/nginx:1", "docker.io/library/nginx:1"),
        ("index.docker.io/library/nginx:1", "docker.io/library/nginx:1"),
        ("localhost/x:1", "localhost/x:1"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("quay.io/a/b/c:1@sha256:" + "a" * 64, "quay.io/a/b/c:1@sha256:" + "a" * 64),
        ("nginx@sha256:" + "b" * 64, "docker.io/library/nginx@sha256:" + "b" * 64),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
    ],
)
def test_short_names_mean_what_they_mean_to_containerd(name: str, whole: str) -> None:
    assert full(name) == whole


@pytest.mark.parametrize(
    "name", ["", "UPPER", "a b", "x:", "quay.io/", "quay.io/x@sha256:12", "{{ .Values.image }}", "a/../b"]
)
def test_what_is_no_name_is_none(name: str) -> None:
    assert full(name) is None


def test_a_name_in_its_parts() -> None:
    found = parse("quay.io:8443/a/b:1@sha256:" + "a" * 64)
    assert found is not None
    assert (found.host, found.path, found.tag) == ("quay.io:8443", "a/b", "1")
    assert found.wanted == "sha256:" + "a" * 64


def test_lists_have_names_and_comments(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("# wanted\nregistry.k8s.io/pause:3.9   # twice\n\n  nginx:1\nnginx:1\n")
    assert names_in(tmp_path / "list") == ["docker.io/library/nginx:1", "registry.k8s.io/pause:3.9"]


def test_a_list_from_windows(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbfnginx:1\r\n\r\nquay.io/a:2 \t\r\n")
    assert names_in(tmp_path / "list") == ["docker.io/library/nginx:1", "quay.io/a:2"]


@pytest.mark.parametrize(
    "word",
    ["=", "<<", "2021-13-45", "2001-01-01 25:00:00", "0b_", "0x_", "9" * 5000, "!!int x", "!!timestamp x", "!!bool x"],
)
def test_words_that_mean_something_in_yaml_alone(tmp_path: Path, word: str) -> None:
    (tmp_path / "crd.yaml").write_text(f"enum:\n- {word}\n- '!='\na: {word}\n---\nimage: x:1\n")
    assert names_in(tmp_path) == ["docker.io/library/x:1"]


@pytest.mark.parametrize("word", ["true", "1", "1.25", "2021-01-01", "null", "~", "=", ""])
def test_what_is_no_text_names_no_image(tmp_path: Path, word: str) -> None:
    (tmp_path / "values.yaml").write_text(f"a: {{image: {word}}}\nimage: x:1\n")
    assert names_in(tmp_path) == ["docker.io/library/x:1"]


def test_keys_that_are_no_text_hide_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("1: {image: a:1}\n2: {image: b:1}\ntrue: {image: c:1}\n=: {image: d:1}\n")
    assert names_in(tmp_path) == [f"docker.io/library/{name}:1" for name in "abcd"]


@pytest.mark.parametrize("text", ['{"a": "\\ud83d\\ude00", "image": "x:1"}', '{"a": 1}\n---\n{"image": "x:1"}'])
def test_json_is_read_as_json_if_it_is(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert names_in(tmp_path) == ["docker.io/library/x:1"]


def test_manifests_have_images_in_many_places(tmp_path: Path) -> None:
    folder = tmp_path / "manifests" / "deep"
    folder.mkdir(parents=True)
    (folder / "pods.yaml").write_text(
        "kind: Pod\nspec:\n  initContainers: [{name: a, image: a:1}]\n  containers: [{image: 'quay.io/b:2'}]\n"
        "  volumes: [{name: v, image: {reference: ghcr.io/data:3}}]\n---\n# empty\n---\n"
        "kind: Prometheus\nspec: {image: quay.io/prometheus/prometheus:v3, values: {image: {repository: x}}}\n"
    )
    (folder / "list.json").write_text(json.dumps({"items": [{"spec": {"image": "registry.k8s.io/etcd:3"}}]}))
    (folder / "notes.txt").write_text("image: not/me:1")
    assert names_in(tmp_path / "manifests") == [
        "docker.io/library/a:1", "ghcr.io/data:3", "quay.io/b:2", "quay.io/prometheus/prometheus:v3",
        "registry.k8s.io/etcd:3",
    ]  # fmt: skip


def test_what_a_controller_is_told_of_is_no_image_of_the_manifest(tmp_path: Path) -> None:
    """As in the manifests of cert-manager and Longhorn, and of operators with ``RELATED_IMAGE_...``."""
    solver, engine = "quay.io/jetstack/cert-manager-acmesolver:v1", "longhornio/longhorn-engine:v1"
    controller = {
        "image": "quay.io/jetstack/cert-manager-controller:v1", "command": ["run", "--engine-image", engine],
        "args": ["--v=2", 3, f"--solver={solver}", "--listen=0.0.0.0:8080"],
        "env": [{"name": "RELATED_IMAGE_X", "value": "busybox:1"}, {"name": "IMAGE_OF", "valueFrom": {}}, None],
    }  # fmt: skip
    odd = {"args": {"a": solver}, "env": "x", "command": None}
    (tmp_path / "a.json").write_text(json.dumps({"spec": {"containers": [controller, odd]}}))
    (tmp_path / "list.txt").write_text("nginx\n")
    assert names_in(tmp_path) == ["quay.io/jetstack/cert-manager-controller:v1"]
    assert told_in(tmp_path) == ["docker.io/library/busybox:1", f"docker.io/{engine}", solver]
    assert told_in(tmp_path / "list.txt") == []


def test_a_registry_with_an_ipv6_address_is_named_in_manifests(tmp_path: Path) -> None:
    """As pods name images in our own registry; they are no images to take from there."""
    ours, solver = "[fd00::10]:5000/team/app", "[fd00::10]:5000/jetstack/solver:v1"
    controller = {"image": ours, "args": [f"--solver={solver}", "--listen=[::]:8080"]}
    (tmp_path / "a.json").write_text(json.dumps({"spec": {"containers": [controller]}}))
    assert names_in(tmp_path) == [f"{ours}:latest"]
    assert told_in(tmp_path) == [solver]
    with pytest.raises(BundleError, match="IPv6 address") as caught:
        images_from([], [tmp_path])
    assert caught.value.code == "BundleInputRefused"
    (tmp_path / "a.json").write_text(json.dumps({"image": "[fd00::10/x:1"}))
    with pytest.raises(BundleError, match="not a valid image name"):
        names_in(tmp_path)


def test_a_manifest_from_windows(tmp_path: Path) -> None:
    (tmp_path / "PODS.YAML").write_text("image: x:1\n")
    (tmp_path / "LIST.JSON").write_text('{"image": "y:1"}')
    assert names_in(tmp_path / "PODS.YAML") == ["docker.io/library/x:1"]
    assert names_in(tmp_path) == ["docker.io/library/x:1", "docker.io/library/y:1"]


def test_a_list_of_comments_has_no_image(tmp_path: Path) -> None:
    """`images wanted` writes it where nothing is missing, and the next bundle is created all the same."""
    (tmp_path / "list").write_text(to_text({}, "30d", datetime.now(UTC)))
    assert images_from(["a:1"], [tmp_path / "list"]) == images_from(["a:1"], [])
    (tmp_path / "list").write_text("\n \n")
    with pytest.raises(BundleError, match="lists no images"):
        names_in(tmp_path / "list")


def test_manifests_without_a_suffix_are_told_apart_from_names(tmp_path: Path) -> None:
    """As of a pipe, or of `helm template > rendered`."""
    (tmp_path / "rendered").write_text("---\napiVersion: v1\nkind: Pod\nspec: {containers: [{image: a:1}]}\n")
    with pytest.raises(BundleError, match="is not a valid image name") as caught:
        names_in(tmp_path / "rendered")
    assert "suffix .yaml" in caught.value.hint


def test_every_wrong_name_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("nginx:1\nNGINX\nok:1\nquay.io/ x\n")
    with pytest.raises(BundleError) as caught:
        names_in(tmp_path / "list")
    assert f"{tmp_path}/list:2" in caught.value.message
    assert f"{tmp_path}/list:4" in caught.value.message


def test_a_file_that_is_no_list_is_told_briefly(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("some words\n" * 1000)
    with pytest.raises(BundleError) as caught:
        names_in(tmp_path / "log")
    *lines, last = caught.value.message.splitlines()
    assert len(lines) == 50
    assert last == "and 950 more"


def test_a_character_that_no_yaml_has_is_told_with_its_line(tmp_path: Path) -> None:
    """As in what was copied from a terminal with colours."""
    (tmp_path / "colours.yaml").write_text("a: äöü\nb: c\n\x1b[32mimage: nginx\n")
    with pytest.raises(BundleError, match=r"colours\.yaml:3: not valid YAML: the character U\+001B is not allowed"):
        names_in(tmp_path / "colours.yaml")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [("pod.json", "[" * 5000, "it is nested too deeply"), ("pod.yaml", "{{ .x }}: 1", "a key must be plain text")],
)
def test_what_is_no_manifest_is_told_without_words_of_python(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BundleError, match=rf"{name}(:1)?: not valid YAML: {told}"):
        names_in(tmp_path / name)


def test_a_list_that_is_too_large_is_told_with_the_limit(tmp_path: Path) -> None:
    with (tmp_path / "list").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(BundleError, match=r"cannot read .*/list: it is larger than 64 MiB"):
        names_in(tmp_path / "list")


def test_a_template_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text("kind: Pod\nspec: {{ .Values.spec }}\n  x: [\n")
    with pytest.raises(BundleError, match=r"pod.yaml:\d") as caught:
        names_in(tmp_path)
    assert "helm template" in caught.value.hint


def test_many_aliases_are_looked_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 {image: x:1}"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    assert names_in(tmp_path / "bomb.yaml") == ["docker.io/library/x:1"]


def test_each_path_is_taken_for_what_it_is(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout.tar", image("registry.k8s.io/pause:3.10"))
    (tmp_path / "list").write_text("nginx:1\n")
    sources = images_from(["busybox"], [layout, tmp_path / "list"])
    assert sources == [
        FromLayout(layout),
        FromRegistries(("docker.io/library/busybox:latest", "docker.io/library/nginx:1")),
    ]


@pytest.mark.parametrize("magic", [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh9"])
def test_a_compressed_archive_is_refused_with_the_way_out(tmp_path: Path, magic: bytes) -> None:
    (tmp_path / "a.tar.gz").write_bytes(magic + bytes(600))
    with pytest.raises(BundleError, match="is compressed") as caught:
        images_from([], [tmp_path / "a.tar.gz"])
    assert "gunzip" in caught.value.hint


# Registries.


@pytest.mark.parametrize("tokens", [False, True])
def test_an_image_comes_with_all_that_it_needs(upstream: FakeUpstream, tmp_path: Path, tokens: bool) -> None:
    upstream.tokens = tokens
    upstream.image("a/b", "v1", LAYER, b"second")
    name = f"{upstream.host}/a/b:v1"
    with Bundle.open(bundle_of(tmp_path, name)) as bundle:
        assert list(bundle.images) == [name]
        assert len(list(bundle.layout.reachable(bundle.images[name]))) == 4


def test_a_second_bundle_fetches_no_blob_and_is_the_same(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.image("a/b", "v1", LAYER)
    first = bundle_of(tmp_path, f"{upstream.host}/a/b:v1")
    sent = upstream.sent
    second = bundle_of(tmp_path, f"{upstream.host}/a/b:v1", name="b.tar")
    assert upstream.sent == sent
    assert first.read_bytes() == second.read_bytes()


def test_a_second_bundle_reads_no_manifest_that_is_still_meant(tmp_path: Path) -> None:
    """Docker Hub counts who reads one, so a run that failed at its limit would fail there again and again."""
    held = FakeUpstream()
    multi_arch(held, "a/b")
    looks = True

    def answer(asked: Asked) -> Say:
        if "/blobs/" in asked.path:
            return Say(200, held.blobs[asked.path.rpartition("/")[2]])
        content, kind = held.manifests.get(asked.path.removeprefix("/v2/").replace("/manifests/", ":"), (b"{}", ""))
        if asked.method == "HEAD" and not looks:
            return Say(405)
        told = (("Content-Type", kind), ("Docker-Content-Digest", oci.digest_of(content)))
        return Say(200, b"" if asked.method == "HEAD" else content, told)

    with serving_web(answer) as web:

        def read() -> int:
            """How many manifests are read for a bundle."""
            web.asked.clear()
            bundle_of(tmp_path, f"{web.host}/a/b:v1")
            return len([one for one in web.asked if one.method == "GET" and "/manifests/" in one.path])

        assert [read(), read()] == [3, 0]
        for path in (tmp_path / "cache/manifests").iterdir():
            path.write_bytes(path.read_bytes()[:-1])
        assert [read(), read()] == [3, 0], "what is damaged is read again"
        looks = False
        assert read() == 1, "not every registry can be asked what a tag means"
        looks = True
        held.image("a/b", "v1", b"another layer")
        assert [read(), read()] == [1, 0], "the tag means another image"


def test_a_broken_transfer_goes_on_where_it_stopped(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.image("a/b", "v1", LAYER)
    upstream.breaks = [300_000, 300_000]
    bundle_of(tmp_path, f"{upstream.host}/a/b:v1", patience=30)
    assert upstream.sent <= len(LAYER) + 1000


def test_a_registry_without_ranges_begins_anew_and_the_bytes_are_right(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.image("a/b", "v1", LAYER)
    upstream.breaks, upstream.ranges = [300_000], False
    bundle_of(tmp_path, f"{upstream.host}/a/b:v1", patience=30)


def test_a_later_run_goes_on_inside_a_blob(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.image("a/b", "v1", LAYER)
    blob = oci.digest_of(LAYER).removeprefix("sha256:")
    folder = tmp_path / "cache/blobs/sha256"
    folder.mkdir(parents=True)
    (folder / f"{blob}.part").write_bytes(LAYER[:500_000])
    bundle_of(tmp_path, f"{upstream.host}/a/b:v1")
    assert upstream.sent < len(LAYER) - 400_000


@pytest.mark.parametrize("size", [500_000, len(LAYER)])
def test_a_damaged_rest_of_an_earlier_run_is_thrown_away(upstream: FakeUpstream, tmp_path: Path, size: int) -> None:
    upstream.image("a/b", "v1", LAYER)
    part = tmp_path / "cache/blobs/sha256" / (oci.digest_of(LAYER).removeprefix("sha256:") + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"?" * size)
    told: list[tuple[int, int]] = []
    source = FromRegistries((f"{upstream.host}/a/b:v1",), patience=1)
    create(
        tmp_path / "a.tar", {}, images=[source], cache=tmp_path / "cache", meter=lambda *said: told.append(said)
    )  # fmt: skip
    verify(tmp_path / "a.tar")
    assert all(done <= total for done, total in told)


def test_a_registry_that_sends_something_else_is_refused(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.image("a/b", "v1", LAYER)
    upstream.blobs[oci.digest_of(LAYER)] = LAYER[:-1] + b"!"
    with pytest.raises(BundleError, match=r"/a/b:v1: .* does not match the digest"):
        bundle_of(tmp_path, f"{upstream.host}/a/b:v1")
    assert not (tmp_path / "a.tar").exists()


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        (oci.LAYER, "push it again"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "omit the digest"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "omit the digest"),
    ],
)
def test_a_blob_that_the_registry_lacks_is_told_with_its_image(
    upstream: FakeUpstream, tmp_path: Path, kind: str, hint: str
) -> None:
    lost = oci.Descriptor(media_type=kind, digest=oci.digest_of(b"lost"), size=4)
    manifest = oci.Manifest(config=upstream.blob(b"{}", oci.EMPTY), layers=(lost,))
    upstream.add("a/b", "v1", manifest.to_json(), oci.MANIFEST)
    with pytest.raises(BundleError) as caught:
        bundle_of(tmp_path, f"{upstream.host}/a/b:v1")
    assert caught.value.message.startswith(f"{upstream.host}/a/b:v1: read a/b@{lost.digest}")
    assert caught.value.code == "BundleInputUnavailable"
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("status", "hint"), [(404, "push it again"), (503, "check the network"), (429, "check the network")]
)
def test_a_blob_that_does_not_come_is_not_one_to_push_again(tmp_path: Path, status: int, hint: str) -> None:
    held = FakeUpstream()
    held.image("a/b", "v1", b"layer")

    def answer(asked: Asked) -> Say:
        content, kind = held.manifests["a/b:v1"]
        return Say(200, content, (("Content-Type", kind),)) if "/manifests/" in asked.path else Say(status)

    with serving_web(answer) as web, pytest.raises(BundleError, match=f"status {status}") as caught:
        bundle_of(tmp_path, f"{web.host}/a/b:v1", patience=0.1)
    assert hint in caught.value.hint


def test_layers_that_no_tool_saves_are_told_with_the_way_out(upstream: FakeUpstream, tmp_path: Path) -> None:
    """As in `skopeo copy --all` of an image that is for Windows as well."""
    files = image(name := "registry.k8s.io/pause:3.10")
    lost = oci.Descriptor(
        media_type="application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", digest=oci.digest_of(b"?"), size=1
    )
    config = upstream.blob(b'{"os":"windows","architecture":"amd64"}', oci.CONFIG)
    text = oci.Manifest(config=config, layers=(lost,)).to_json()
    windows = oci.Descriptor(
        media_type=oci.MANIFEST,
        digest=oci.digest_of(text),
        size=len(text),
        annotations={oci.REFERENCE_NAME: f"{name}w"},
    )
    entries = (*oci.Index.model_validate_json(files[oci.INDEX_FILE]).manifests, windows)
    files |= {
        oci.INDEX_FILE: oci.Index(manifests=entries).to_json(),
        oci.blob_name(windows.digest): text,
        oci.blob_name(config.digest): upstream.blobs[config.digest],
    }
    with pytest.raises(BundleError, match=rf"does not hold {lost.digest}.*, for {name}w") as caught:
        create(tmp_path / "a.tar", {}, images=[FromLayout(write_layout(tmp_path / "layout", files))])
    assert caught.value.code == "BundleIncomplete"
    assert "--platform linux/amd64" in caught.value.hint


def test_an_empty_list_may_be_null(upstream: FakeUpstream, tmp_path: Path) -> None:
    """As Go's json.Marshal writes a nil slice."""
    config = upstream.blob(b"{}", oci.EMPTY).model_dump(by_alias=True, exclude_none=True)
    document = {"schemaVersion": 2, "mediaType": oci.MANIFEST, "config": config, "layers": None}
    root = upstream.add("a/b", "v1", json.dumps(document).encode(), oci.MANIFEST)
    with Bundle.open(bundle_of(tmp_path, name := f"{upstream.host}/a/b:v1")) as bundle:
        assert bundle.images[name].digest == root.digest
    assert oci.parse(oci.Index, b'{"manifests": null}', "it").manifests == ()


def test_an_archive_of_docker_may_have_an_image_without_layers(tmp_path: Path) -> None:
    """As of a Dockerfile with FROM scratch and LABEL alone."""
    row = {"Config": "c.json", "RepoTags": ["quay.io/x:1"], "Layers": None}
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": None}}).encode()
    archive = tar(("c.json", config), ("manifest.json", json.dumps([row]).encode()))
    (tmp_path / "saved.tar").write_bytes(archive)
    create(tmp_path / "a.tar", {}, images=images_from([], [tmp_path / "saved.tar"]), cache=tmp_path / "cache")
    verify(tmp_path / "a.tar")
    with Bundle.open(tmp_path / "a.tar") as bundle:
        assert bundle.layout.manifest(bundle.images["quay.io/x:1"]).layers == ()


def test_an_image_by_another_digest_than_sha256_is_refused(upstream: FakeUpstream, tmp_path: Path) -> None:
    content = oci.Manifest(config=upstream.blob(b"{}", oci.EMPTY)).to_json()
    digest = oci.digest_of(b"{}")
    upstream.add("a/b", "v1", content.replace(digest.encode(), b"sha512:" + b"a" * 128), oci.MANIFEST)
    with pytest.raises(BundleError, match=r"a/b:v1: sha256:\w+: config\.digest: must be a sha256 digest") as caught:
        bundle_of(tmp_path, f"{upstream.host}/a/b:v1")
    assert (caught.value.code, caught.value.hint) == ("BundleInputRefused", "push it again with a current client")


def test_a_part_that_is_not_there_is_no_wrong_name(upstream: FakeUpstream, tmp_path: Path) -> None:
    """A name with a digest is for all platforms, of which a registry may have some."""
    index = multi_arch(upstream, "a/app")
    del upstream.manifests[f"a/app:{index.manifests[1].digest}"]
    digest = upstream.add("a/app", "v1", index.to_json(), oci.INDEX).digest
    with pytest.raises(BundleError, match=f"has no a/app:{index.manifests[1].digest}") as caught:
        bundle_of(tmp_path, f"{upstream.host}/a/app@{digest}")
    assert caught.value.hint.startswith("its index lists that")


def test_every_image_that_is_not_there_is_named(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.image("a/b", "v1", LAYER)
    names = [f"{upstream.host}/a/b:{tag}" for tag in ("v1", "v2", "v3")]
    with pytest.raises(BundleError) as caught:
        bundle_of(tmp_path, *names)
    assert "v1" not in caught.value.message
    assert names[1] in caught.value.message
    assert names[2] in caught.value.message
    assert caught.value.code == "BundleInputUnavailable"


def test_a_registry_that_nobody_reaches_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"127\.0\.0\.1:1") as caught:
        bundle_of(tmp_path, "127.0.0.1:1/a/b:v1")
    assert caught.value.code == "BundleInputUnavailable"


def test_only_the_wanted_platforms_come_and_what_is_attached_to_them(upstream: FakeUpstream, tmp_path: Path) -> None:
    index = multi_arch(upstream, "a/b")
    name = f"{upstream.host}/a/b:v1"

    def held(wanted: str) -> list[str]:
        with Bundle.open(bundle_of(tmp_path, name, wanted=wanted)) as bundle:
            return [entry.digest for entry in bundle.layout.children(bundle.images[name])]

    digests = [entry.digest for entry in index.manifests]
    assert held("") == [digests[0], digests[3]], "that of the servers"
    assert held("linux/arm64") == [digests[1]]
    assert held("linux/arm/v7") == [digests[2]]
    asked = [path for path in upstream.asked if digests[2] in path]
    assert len(asked) == 1, "nothing is asked for that nobody wants"


def test_an_image_by_digest_comes_whole(upstream: FakeUpstream, tmp_path: Path) -> None:
    index = multi_arch(upstream, "a/b")
    digest = oci.digest_of(index.to_json())
    name = f"{upstream.host}/a/b:v1@{digest}"
    with Bundle.open(bundle_of(tmp_path, name, wanted="linux/amd64")) as bundle:
        assert bundle.images[name].digest == digest
        assert len(bundle.layout.children(bundle.images[name])) == 4


def test_a_platform_that_is_not_there_is_refused_with_those_that_are(upstream: FakeUpstream, tmp_path: Path) -> None:
    multi_arch(upstream, "a/b")
    with pytest.raises(BundleError, match="is not available for linux/riscv64") as caught:
        bundle_of(tmp_path, f"{upstream.host}/a/b:v1", wanted="linux/riscv64")
    assert "linux/arm/v7" in caught.value.hint


def test_a_layout_is_pruned_as_well(upstream: FakeUpstream, tmp_path: Path) -> None:
    multi_arch(upstream, "a/b")
    name = f"{upstream.host}/a/b:v1"
    everything = bundle_of(tmp_path, f"{name}@{oci.digest_of(upstream.manifests['a/b:v1'][0])}")
    with Bundle.open(everything) as bundle:
        layout = contents(everything)
        entry = bundle.layout.index.manifests[0].model_copy(update={"annotations": {oci.REFERENCE_NAME: name}})
    layout[oci.INDEX_FILE] = oci.Index(manifests=(entry,)).to_json()
    source = FromLayout(write_layout(tmp_path / "whole.tar", resealed(layout)))
    create(tmp_path / "b.tar", {}, images=[source], platforms=platforms(["linux/arm64"]), cache=tmp_path)
    verify(tmp_path / "b.tar")
    with Bundle.open(tmp_path / "b.tar") as bundle:
        assert len(bundle.layout.children(bundle.images[name])) == 1


def test_a_configuration_that_is_too_large_to_be_read_comes_along(tmp_path: Path) -> None:
    """Its labels may hold anything; which layers and platform it lists is not looked at then."""
    text = json.dumps({"os": "linux", "architecture": "amd64", "config": {"Labels": {"sbom": "x" * oci.MAX_MANIFEST}}})
    config = oci.Descriptor(
        media_type=oci.CONFIG, digest=oci.digest_of(text.encode()), size=len(text)
    )  # fmt: skip
    manifest = oci.Manifest(config=config).to_json()
    entry = oci.Descriptor(
        media_type=oci.MANIFEST, digest=oci.digest_of(manifest), size=len(manifest),
        annotations={oci.REFERENCE_NAME: "quay.io/org/app:v1"},
    )  # fmt: skip
    files = {
        oci.LAYOUT_FILE: oci.LAYOUT, oci.INDEX_FILE: oci.Index(manifests=(entry,)).to_json(),
        oci.blob_name(config.digest): text.encode(), oci.blob_name(entry.digest): manifest,
    }  # fmt: skip
    layout = FromLayout(write_layout(tmp_path / "layout", files))
    create(tmp_path / "a.tar", {}, images=[layout], architecture="amd64", cache=tmp_path / "cache")
    verify(tmp_path / "a.tar")


def test_an_index_that_loses_nothing_keeps_its_bytes() -> None:
    text = b'{ "schemaVersion": 2, "manifests": [ ], "x": 1 }'
    one = b'{"manifests":[{"mediaType":"m","digest":"sha256:%s","size":1}]}' % (b"a" * 64)
    assert prune(one, platforms(["linux/amd64"]), "x") == one
    with pytest.raises(BundleError):
        prune(text, platforms(["linux/amd64"]), "x")


def test_what_names_no_platform_does_not_stand_for_the_one_that_is_missing(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    """As an index of SOCI in that of an image: it stays with its image, and nobody can run it."""
    arm = upstream.image("a/b", "", LAYER, platform="arm64")
    arm = arm.model_copy(update={"platform": oci.Platform(os="linux", architecture="arm64")})
    index = oci.Index(manifests=(arm, upstream.artifact("a/b", arm)))
    upstream.add("a/b", "v1", index.to_json(), oci.INDEX)
    name = f"{upstream.host}/a/b:v1"
    with pytest.raises(BundleError, match="is not available for linux/amd64") as caught:
        bundle_of(tmp_path, name)
    assert caught.value.hint == "pass --platform with one or more of linux/arm64"
    with Bundle.open(bundle_of(tmp_path, name, wanted="linux/arm64")) as bundle:
        assert len(bundle.layout.children(bundle.images[name])) == 2


@pytest.mark.parametrize("text", ["linux", "/amd64", "linux/", "linux/arm/"])
def test_a_platform_is_os_and_architecture(text: str) -> None:
    with pytest.raises(ConfigError, match="not a valid platform"):
        platforms([text])


@pytest.mark.parametrize(
    ("there", "wanted", "fits"),
    [
        ("linux/arm64", "linux/arm64/v8", True),
        ("linux/arm64/v8", "linux/arm64/v8", True),
        ("linux/arm64/v9", "linux/arm64/v8", False),
        ("linux/arm", "linux/arm/v7", True),
        ("linux/arm", "linux/arm/v6", False),
        ("linux/arm/v6", "linux/arm", True),
        ("linux/amd64", "linux/amd64/v1", True),
        ("linux/amd64", "linux/amd64/v3", False),
        ("linux/riscv64", "linux/riscv64", True),
    ],
)
def test_a_variant_that_is_not_named_is_the_usual_one(there: str, wanted: str, fits: bool) -> None:
    """As containerd has it: images for arm64 name their variant or do not."""
    if fits:
        require("x", platforms([there]), platforms([wanted]))
    else:
        with pytest.raises(BundleError, match="not available"):
            require("x", platforms([there]), platforms([wanted]))


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", "push it again"),
        ("text/html", "check whether a proxy"),
    ],
)
def test_what_is_no_image_is_refused(upstream: FakeUpstream, tmp_path: Path, kind: str, hint: str) -> None:
    upstream.add("a/b", "v1", b"{}", kind)
    with pytest.raises(BundleError, match="not an image in a supported format") as caught:
        bundle_of(tmp_path, f"{upstream.host}/a/b:v1")
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize("what", ["another type", "a build cache", "a manifest for a layer"])
def test_an_image_with_parts_of_another_type_is_named_before_anything_is_fetched(
    upstream: FakeUpstream, tmp_path: Path, what: str
) -> None:
    """Such as the cache of BuildKit, an index of layers."""
    config, layer = upstream.blob(b"{}", oci.CONFIG), upstream.blob(LAYER)
    match what:
        case "another type":
            manifest, kind = oci.Manifest(config=config, layers=(layer,)).to_json(), oci.DOCKER_MANIFEST
        case "a build cache":
            manifest, kind = oci.Index(manifests=(layer, config)).to_json(), oci.INDEX
        case _:
            layer = layer.model_copy(update={"media_type": oci.MANIFEST})
            manifest, kind = oci.Manifest(config=config, layers=(layer,)).to_json(), oci.MANIFEST
    digest = upstream.add("a/b", "v1", manifest, kind).digest
    with pytest.raises(BundleError, match=f"{upstream.host}/a/b:v1: {digest} (is referred|refers) to") as caught:
        bundle_of(tmp_path, f"{upstream.host}/a/b:v1")
    assert (caught.value.code, caught.value.hint) == ("BundleInputRefused", "push it again with a current client")
    assert not [path for path in upstream.asked if "/blobs/" in path]


# Logins.


def test_the_users_login_is_told_to_the_tokens_server_alone(
    upstream: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.tokens = True
    upstream.image("a/b", "v1", LAYER)
    auth = base64.b64encode(b"me:secret").decode()
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {upstream.host: {"auth": auth}}}))
    bundle_of(tmp_path, f"{upstream.host}/a/b:v1")
    assert set(upstream.logins) == {f"Basic {auth}"}


# Archives of docker and podman.


def saved(*layers: bytes, name: str | None = "nginx:1", links: bool = False) -> bytes:
    """An archive as ``docker save`` writes it."""
    config = json.dumps(
        {"rootfs": {"diff_ids": ["sha256:" + hashlib.sha256(one).hexdigest() for one in layers]}}
    ).encode()
    files: list[tuple[str | tarfile.TarInfo, bytes]] = [("c.json", config)]
    names = []
    for number, layer in enumerate(layers):
        names.append(f"{number}/layer.tar")
        if links:
            files += [(f"blob-{number}", layer), (member(names[-1], tarfile.SYMTYPE, f"../blob-{number}"), b"")]
        else:
            files.append((names[-1], layer))
    row = {"Config": "c.json", "RepoTags": [name] if name else None, "Layers": names}
    return tar(*files, ("manifest.json", json.dumps([row]).encode()))


@pytest.mark.parametrize("links", [False, True])
def test_an_archive_of_docker_becomes_an_image_of_todays_form(tmp_path: Path, links: bool) -> None:
    plain = tar(("etc/x", b"content"))
    (tmp_path / "saved.tar").write_bytes(saved(plain, LAYER, links=links))
    made = [tmp_path / "a.tar", tmp_path / "b.tar"]
    for path in made:
        create(path, {}, images=images_from([], [tmp_path / "saved.tar"]), cache=tmp_path / "cache")
    verify(made[0])
    assert made[0].read_bytes() == made[1].read_bytes()
    with Bundle.open(made[0]) as bundle:
        assert list(bundle.images) == ["docker.io/library/nginx:1"]
        manifest = bundle.layout.manifest(bundle.images["docker.io/library/nginx:1"])
        with bundle.layout.blob(manifest.layers[0]) as blob:
            assert gzip.decompress(blob.read()) == plain


def test_layers_that_are_compressed_already_stay_as_they_are(tmp_path: Path) -> None:
    packed = gzip.compress(LAYER, mtime=0)
    archive = saved(LAYER)
    config = contents(write(tmp_path / "x.tar", archive))["c.json"]
    row = {"Config": "c.json", "RepoTags": ["quay.io/x:1"], "Layers": ["l.tar.gz"]}
    write(
        tmp_path / "crane.tar",
        tar(("c.json", config), ("l.tar.gz", packed), ("manifest.json", json.dumps([row]).encode())),
    )
    create(tmp_path / "a.tar", {}, images=images_from([], [tmp_path / "crane.tar"]), cache=tmp_path / "cache")
    assert oci.blob_name(oci.digest_of(packed)) in contents(tmp_path / "a.tar")


def test_what_the_cache_has_of_other_archives_changes_no_byte(tmp_path: Path) -> None:
    """The same layer may be in an archive of crane, in the form that its registry has."""
    config = contents(write(tmp_path / "docker.tar", saved(LAYER)))["c.json"]
    row = {"Config": "c.json", "RepoTags": ["quay.io/x:1"], "Layers": ["l.tar.gz"]}
    packed = gzip.compress(LAYER, 1, mtime=0)
    files = (("c.json", config), ("l.tar.gz", packed), ("manifest.json", json.dumps([row]).encode()))
    write(tmp_path / "crane.tar", tar(*files))
    for number, (archive, cache) in enumerate((("crane", "a"), ("docker", "a"), ("docker", "b"), ("crane", "b"))):
        sources = images_from([], [tmp_path / f"{archive}.tar"])
        create(tmp_path / str(number), {}, images=sources, cache=tmp_path / cache)
    crane, docker, docker_alone, crane_later = ((tmp_path / str(number)).read_bytes() for number in range(4))
    assert docker == docker_alone
    assert crane == crane_later


@pytest.mark.parametrize(
    "spoil",
    [
        lambda packed: packed[:-9],
        lambda packed: packed[:-3],
        lambda packed: packed[:5],
        lambda packed: packed[:2],
        lambda packed: packed[:300] + b"???" + packed[303:],
        lambda packed: packed[:-8] + b"????" + packed[-4:],
        lambda packed: packed + b"?",
    ],
    ids=["no end", "half an end", "half a header", "magic alone", "other bytes", "other checksum", "more bytes"],
)
def test_a_damaged_layer_that_is_compressed_already_is_refused(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    packed = spoil(gzip.compress(LAYER, mtime=0))
    config = contents(write(tmp_path / "x.tar", saved(LAYER)))["c.json"]
    row = {"Config": "c.json", "RepoTags": ["quay.io/x:1"], "Layers": ["l.tar.gz"]}
    files = (("c.json", config), ("l.tar.gz", packed), ("manifest.json", json.dumps([row]).encode()))
    write(tmp_path / "crane.tar", tar(*files))
    with pytest.raises(BundleError, match=r"layer l\.tar\.gz is not a complete gzip file") as caught:
        create(tmp_path / "a.tar", {}, images=images_from([], [tmp_path / "crane.tar"]), cache=tmp_path / "cache")
    assert caught.value.code == "BundleDamaged"
    assert not list((tmp_path / "cache/blobs/sha256").iterdir())


def test_layers_that_are_compressed_in_another_way_are_refused(tmp_path: Path) -> None:
    config = contents(write(tmp_path / "x.tar", saved(LAYER)))["c.json"]
    row = {"Config": "c.json", "RepoTags": ["quay.io/x:1"], "Layers": ["l.tar.gz"]}
    files = (("c.json", config), ("l.tar.gz", b"\x28\xb5\x2f\xfd?"), ("manifest.json", json.dumps([row]).encode()))
    write(tmp_path / "crane.tar", tar(*files))
    with pytest.raises(BundleError, match=r"crane\.tar: layer l\.tar\.gz is compressed with zstd") as caught:
        create(tmp_path / "a.tar", {}, images=images_from([], [tmp_path / "crane.tar"]), cache=tmp_path / "cache")
    assert caught.value.code == "BundleInputRefused"
    assert "--format=oci" in caught.value.hint


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_layer_with_another_content_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "saved.tar", saved(LAYER).replace(LAYER[:1000], b"?" * 1000, 1))
    with pytest.raises(BundleError, match="has the digest"):
        create(tmp_path / "a.tar", {}, images=images_from([], [tmp_path / "saved.tar"]), cache=tmp_path / "cache")


@pytest.mark.parametrize("target", ["/etc/passwd", "../../etc/passwd", "missing", "../0/layer.tar"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path, target: str) -> None:
    config = json.dumps({"rootfs": {"diff_ids": ["sha256:" + "a" * 64]}}).encode()
    row = {"Config": "c.json", "RepoTags": ["x:1"], "Layers": ["0/layer.tar"]}
    files = [
        ("c.json", config),
        (member("0/layer.tar", tarfile.SYMTYPE, target), b""),
        ("manifest.json", json.dumps([row]).encode()),
    ]
    write(tmp_path / "saved.tar", tar(*files))
    with pytest.raises(BundleError) as caught:
        create(tmp_path / "a.tar", {}, images=images_from([], [tmp_path / "saved.tar"]), cache=tmp_path / "cache")
    assert caught.value.code == "BundleDamaged"


def test_an_archive_without_a_name_needs_one(tmp_path: Path) -> None:
    write(tmp_path / "saved.tar", saved(LAYER, name=None))
    with pytest.raises(BundleError, match="has no name"):
        create(tmp_path / "a.tar", {}, images=images_from([], [tmp_path / "saved.tar"]), cache=tmp_path / "cache")


def test_an_empty_archive_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "saved.tar", tar(("manifest.json", b"[]")))
    with pytest.raises(BundleError, match=r"saved\.tar contains no images"):
        create(tmp_path / "a.tar", {}, images=images_from([], [tmp_path / "saved.tar"]), cache=tmp_path / "cache")


ONE_LAYER = json.dumps({"rootfs": {"diff_ids": ["sha256:" + "a" * 64]}})


def archive_of(config: str, *layers: str) -> bytes:
    row = {"Config": "c.json", "RepoTags": ["x:1"], "Layers": layers}
    return tar(("c.json", config.encode()), ("manifest.json", json.dumps([row]).encode()))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (saved(LAYER)[:300], "the archive is truncated within a header"),
        (saved(LAYER)[:-10240], "the archive is truncated: the end mark is missing"),
        (tar(("manifest.json", b"[]"), (member("f", tarfile.FIFOTYPE), b"")),
         "'f' in the archive is neither a file nor a directory"),
        (saved(LAYER).replace(LAYER[:1000], b"?" * 1000, 1), "layer 0/layer.tar has the digest sha256:"),
        (tar(("manifest.json", b"null")), "manifest.json: Input should be a valid array"),
        (archive_of("{}"), "c.json: rootfs: Field required"),
        (archive_of('{"rootfs": {}}', "l"),
         "manifest.json lists 1 layer of an image, and its configuration c.json 0"),
        (archive_of(ONE_LAYER, "../l"), "unsafe name in an archive: '../l'"),
        (archive_of(ONE_LAYER, "l"), "it has no file l, which it refers"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_archive_begins_with_its_path(tmp_path: Path, content: bytes, said: str) -> None:
    path = write(tmp_path / "saved.tar", content)
    with pytest.raises(BundleError) as caught:
        create(tmp_path / "a.tar", {}, images=images_from([], [path]), cache=tmp_path / "cache")
    assert caught.value.message.startswith(f"{path}: {said}")
    assert "\n" not in caught.value.message
    assert caught.value.code == "BundleDamaged"
    assert caught.value.hint.startswith("save the image again")


# The same everywhere.


def test_neither_time_nor_place_nor_habits_change_a_byte(tmp_path: Path) -> None:
    written = []
    for number, (zone, language, mask) in enumerate([("UTC", "C", "022"), ("Asia/Kathmandu", "C.UTF-8", "077")]):
        folder = tmp_path / f"folder {number}"
        folder.mkdir()
        write(folder / "saved.tar", saved(tar(("etc/x", b"content")), LAYER))
        script(folder / "garage")
        write_layout(folder / "layout.tar", image("registry.k8s.io/pause:3.10"))
        argv = [
            "-m",
            "kubeadm_registry",
            "bundle",
            "create",
            "-o",
            "a.tar",
            "--with",
            "garage",
            "--program",
            "garage=garage",
        ]
        argv += ["--images-from", "saved.tar", "--images-from", "layout.tar", "--platform", "linux/amd64"]
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), "TZ": zone, "LC_ALL": language
        }  # fmt: skip
        command = ["sh", "-c", 'umask "$1"; shift; exec "$@"', "sh", mask, sys.executable, *argv]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        written.append((folder / "a.tar").read_bytes())
    assert written[0] == written[1]
