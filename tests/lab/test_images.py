"""The images in the registry: what is there, what is broken, what is copied, what goes, and what nodes lack."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.bundle.make import FromLayout, create
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Registry as Client
from kubeadm_registry.registry import push_blob
from tests.lab import images, programs, s3
from tests.lab.command import LabError
from tests.lab.host import Host
from tests.lab.registry import SERVERS, Registry
from tests.lab.web import ask

pytest_plugins = ["tests.lab.registry"]

EVERYWHERE = {*SERVERS, "the virtual IP"}
CRI = "unix:///run/containerd/containerd.sock"


def say(text: str) -> None:
    """Show a figure."""
    sys.stdout.write(f"\n  {text}\n")


@dataclass(frozen=True, slots=True)
class MultiArch:
    """An image for two platforms, and a signature of it."""

    repository: str
    amd64: images.Image
    arm64: images.Image
    index: str
    signature: str

    @property
    def name(self) -> str:
        """With its tag."""
        return f"{self.repository}:v1"


def signed(registry: Registry) -> MultiArch:
    """Push an image for two platforms that nobody has seen before, as v1, and a signature that refers to it."""
    seed = time.time_ns()
    repository = f"registry.example/images/{seed}"
    both = images.image((400_000,), seed=seed), images.image((300_000,), seed=seed + 1)
    with registry.lab.network(), images.client(registry, role="push") as at:
        for image in both:
            _push(at, repository, image.digest, image)
        entries = [
            {**_descriptor(image.manifest), "platform": {"os": "linux", "architecture": architecture}}
            for image, architecture in zip(both, ("amd64", "arm64"), strict=True)
        ]
        index = oci.canonical({"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": entries})
        at.push_manifest(repository, "v1", index, oci.INDEX)
        small = images.image((1000,), seed=seed + 2)
        document = json.loads(small.manifest) | {
            "artifactType": "application/vnd.example.signature", "subject": _descriptor(index, oci.INDEX),
        }  # fmt: skip
        signature = images.Image(oci.canonical(document), small.config, small.layers)
        noted = _push(at, repository, signature.digest, signature)
        if not noted:  # as the specification asks of clients where the registry has no list
            entry = {**_descriptor(signature.manifest), "artifactType": document["artifactType"]}
            listed = oci.canonical({"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [entry]})
            at.push_manifest(repository, images.digest_of(index).replace(":", "-"), listed, oci.INDEX)
    return MultiArch(repository, *both, images.digest_of(index), signature.digest)


def _push(at: Client, repository: str, reference: str, image: images.Image) -> bool:
    for blob in image.blobs:
        push_blob(at, repository, images.digest_of(blob), blob)
    return at.push_manifest(repository, reference, image.manifest, images.MANIFEST)


def _descriptor(content: bytes, media_type: str = images.MANIFEST) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": images.digest_of(content), "size": len(content)}


def listed(registry: Registry, *arguments: str) -> dict[str, dict[str, Any]]:
    """What `images list` says, by name."""
    return {image["name"]: image for image in registry.json("images", "list", *arguments)[-1]["images"]}


def test_what_is_there_is_listed(registry: Registry) -> None:
    image = signed(registry)
    found = listed(registry, "--referrers")
    one = found[image.name]
    assert one["digest"] == image.index
    assert {(part["platform"], part["digest"], part["present"]) for part in one["platforms"]} == {
        ("linux/amd64", image.amd64.digest, True),
        ("linux/arm64", image.arm64.digest, True),
    }
    assert [(part["subject"], part["digest"]) for part in one["referrers"]] == [(image.index, image.signature)]
    everything = sum(len(blob) for part in (image.amd64, image.arm64) for blob in (part.manifest, *part.blobs))
    assert everything < one["size"] < everything + 2000, "and the index"
    assert not [name for name in found if name.startswith("kubeadm-registry/")]
    assert not [name for name in found if name.startswith(f"{image.repository}:sha256-")], "a list, not an image"
    assert "kubeadm-registry/canary:v1" in listed(registry, "--all")
    lines = registry.cli("images", "list", image.repository).stdout.splitlines()
    assert lines[-1] == "1 image"
    assert "linux/amd64, linux/arm64" in lines[1]


@pytest.mark.long  # a minute, while others would wait
def test_a_blob_that_only_the_storage_lost_is_named_with_image_and_server(registry: Registry, tmp_path: Path) -> None:
    seed = time.time_ns()
    whole, broken = images.image((200_000,), seed=seed), images.image((200_000, 300_000), seed=seed + 1)
    names = {f"registry.example/lost/{seed}-{which}:v1": image for which, image in (("a", whole), ("b", broken))}
    layouts = [
        FromLayout(image.write_layout(tmp_path / str(number)), name)
        for number, (name, image) in enumerate(names.items())
    ]
    bundle = tmp_path / "images.tar"
    create(bundle, {}, images=layouts)
    registry.cli("seed", "--bundle", bundle)
    good = registry.json("images", "check", "--bundle", bundle)[-1]
    assert (good["images"], good["unproven"]) == (2, [])

    lost, name = images.digest_of(broken.layers[-1]), list(names)[1]
    s3.lose(registry, lost)
    for arguments in (("--bundle", str(bundle)), ()):
        begin = time.monotonic()
        *checks, error = registry.json("images", "check", *arguments, check=False)
        told = [one for one in checks if one["event"] == "check"]
        assert {one["host"] for one in told} == EVERYWHERE
        assert {one["message"].partition(": ")[0] for one in told} == {name}
        assert all(lost in one["message"] for one in told)
        assert (error["code"], error["message"].partition(" of ")[0]) == ("ImagesMissing", "1")
        say(f"{registry.frontend}: found in {time.monotonic() - begin:.1f} s")
    seeded = registry.cli("seed", "--bundle", bundle, check=False)
    assert seeded.returncode == 1
    for where in EVERYWHERE:
        assert f"{name} at {where}: " in seeded.stderr
    assert "of 2 images can be pulled" not in seeded.stdout

    # As docs/images.md says.
    registry.cli("images", "delete", name)
    if registry.frontend == "distribution":
        for host in registry.servers.values():
            host.sh("systemctl", "restart", registry.unit("frontend"))
            registry.wait_whole()
    registry.cli("seed", "--bundle", bundle)
    assert registry.json("images", "check", "--bundle", bundle)[-1]["images"] == 2


def test_what_kubernetes_needs_and_is_not_there_is_named(registry: Registry) -> None:
    *checks, error = registry.json("images", "check", "--kubernetes-version", "v1.36.3", check=False)
    told = {one["message"].partition(" ")[0].rstrip(":") for one in checks if one["event"] == "check"}
    assert "registry.k8s.io/kube-scheduler:v1.36.3" in told
    assert error["code"] == "ImagesMissing"


def test_an_image_is_copied_with_platforms_and_signature(registry: Registry) -> None:
    image = signed(registry)
    target = f"copied/{image.repository.rpartition('/')[2]}"
    (copied,) = registry.json("images", "copy", "--referrers", image.name, target)
    assert (copied["digest"], copied["manifests"]) == (image.index, 4)
    if registry.frontend == "distribution":
        assert copied["sent"] == 0, "all is mounted"
    one = listed(registry, "--referrers", target)[f"{target}:v1"]
    assert [part["present"] for part in one["platforms"]] == [True, True]
    assert [part["digest"] for part in one["referrers"]] == [image.signature]
    for part in (image.amd64, image.arm64):
        assert not images.missing(registry, part, target)
    registry.cli("images", "delete", image.name)
    assert not images.missing(registry, image.amd64, target), "a copy is not a link"


def test_a_tag_goes_alone_or_not_at_all(registry: Registry) -> None:
    image = images.image((50_000,), seed=time.time_ns())
    repository = f"tests/deleted-{time.time_ns()}"
    for tag in ("v1", "v2"):
        images.push(registry, image, repository, tag)
    planned = registry.cli("images", "delete", "--dry-run", "--all-tags", f"{repository}:v1").stdout
    assert planned.startswith("would delete ")
    assert set(listed(registry, repository)) == {f"{repository}:v1", f"{repository}:v2"}
    if registry.frontend == "zot":
        registry.cli("images", "delete", f"{repository}:v1")
        assert set(listed(registry, repository)) == {f"{repository}:v2"}
        assert not images.missing(registry, image, repository), "the other tag needs it"
    else:
        refused = registry.json("images", "delete", f"{repository}:v1", check=False)[-1]
        assert refused["code"] == "DeleteRefused"
        assert "v2, and this registry cannot delete a single tag" in refused["message"]
        assert set(listed(registry, repository)) == {f"{repository}:v1", f"{repository}:v2"}
    registry.cli("images", "delete", "--all-tags", f"{repository}@{image.digest}")
    assert not listed(registry, repository)
    for host in registry.servers.values():
        assert ask(registry, "GET", f"/v2/{repository}/manifests/{image.digest}", address=host.address).status == 404


def test_a_part_of_an_index_stays(registry: Registry) -> None:
    image = signed(registry)
    name = f"{image.repository}@{image.amd64.digest}"
    refused = registry.json("images", "delete", name, check=False)[-1]
    assert refused["code"] == "DeleteRefused"
    assert f"is part of {image.name}, which remains" in refused["message"]
    assert not images.missing(registry, image.amd64, image.repository)
    registry.cli("images", "delete", image.name, f"{image.repository}@{image.index}", name)
    assert image.name not in listed(registry)


def pull(host: Host, name: str) -> str:
    """Pull *name* as a kubelet does; what is said when that fails, else nothing."""
    if host.sh("test", "-x", "/usr/local/bin/crictl", check=False).returncode != 0:
        host.put(programs.program("crictl"), "/usr/local/bin/crictl", mode="755")
    try:
        host.sh("crictl", "--image-endpoint", CRI, "--runtime-endpoint", CRI, "pull", name, timeout=60)
    except LabError as error:
        return str(error)
    return ""


def test_what_nodes_lack_is_written_down_until_it_comes(registry: Registry, tmp_path: Path) -> None:
    image = images.image((50_000,), seed=time.time_ns())
    repository = f"registry.k8s.io/wanted/{time.time_ns()}"
    # The server with the virtual IP asks from that very address.
    name, host = f"{repository}:v1", registry.others(registry.holder())[0]
    begin = time.monotonic()
    assert "not found" in pull(host, name)
    say(f"{registry.frontend}: an image that is not there fails after {time.monotonic() - begin:.2f} s")
    odd = f"/v2/{repository}%0Aregistry.k8s.io/evil/manifests/v1"
    assert ask(registry, "GET", odd).status in (400, 404)
    with registry.lab.network(), images.client(registry, role="push") as at:
        assert at.digest(f"{repository}-by-push", "v1") is None

    file = tmp_path / "wanted.txt"

    def wanted() -> list[str]:
        said = registry.cli("images", "wanted", "--since", "1h", "-o", file, "--format", "json").stdout
        result = json.loads(said.splitlines()[-1])
        assert result["path"] == str(file)
        lines = [line for line in file.read_text().splitlines() if repository in line]
        assert [line.partition(" ")[0] for line in lines] == [one for one in result["wanted"] if repository in one]
        return lines

    (line,) = wanted()
    assert line.startswith(f"{name}  # ")
    assert line.endswith(f"by {host.address}") or f"by {host.address}," in line
    images.push(registry, image, repository, "v1")
    assert not pull(host, name)
    assert not wanted(), "it came meanwhile"


@pytest.mark.parametrize("arguments", [("list",), ("check", "--kubernetes-version", "v1.36.3")])
def test_over_ssh_where_the_registry_network_does_not_lead(registry: Registry, arguments: tuple[str, ...]) -> None:
    direct = {**registry.json("images", *arguments, check=False)[-1], "time": ""}
    with registry.without_direct_way():
        assert {**registry.json("images", *arguments, check=False)[-1], "time": ""} == direct
