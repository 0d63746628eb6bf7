"""The kubeadm configuration that we write, judged by kubeadm itself. Needs no hosts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kubeadm_registry.config import Spec
from kubeadm_registry.config.kubeadm import kubeadm_config
from tests.lab.programs import PROGRAMS, program

V4 = [{"name": f"cp-{n}", "address": f"10.0.0.1{n}"} for n in (1, 2, 3)]
V6 = [{"name": f"cp-{n}", "address": f"fd00::1{n}"} for n in (1, 2, 3)]


def dual(first: list[dict[str, str]], second: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**a, "secondaryAddress": b["address"]} for a, b in zip(first, second, strict=True)]


@pytest.fixture(scope="module")
def kubeadm() -> Path:
    return program("kubeadm")


@pytest.mark.parametrize("node", ["cp-1", "cp-3"])
@pytest.mark.parametrize(
    ("nodes", "vip"),
    [
        (V4, {"address": "10.0.0.10"}),
        (V6, {"address": "fd00::10"}),
        (dual(V4, V6), {"address": "10.0.0.10", "secondaryAddress": "fd00::10"}),
        (dual(V6, V4), {"address": "fd00::10", "secondaryAddress": "10.0.0.10"}),
    ],
    ids=["ipv4", "ipv6", "dual-ipv4", "dual-ipv6"],
)
def test_kubeadm_accepts_it(
    kubeadm: Path, tmp_path: Path, nodes: list[dict[str, str]], vip: dict[str, str], node: str
) -> None:
    version = f"v{PROGRAMS['kubeadm'].version.removeprefix('v')}"
    spec = Spec.model_validate({"nodes": nodes, "vip": vip, "kubernetes": {"version": version}})
    file = tmp_path / "kubeadm.yaml"
    file.write_text(kubeadm_config(spec, node))
    done = subprocess.run(
        [kubeadm, "config", "validate", "--config", file], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ok"


def test_images_come_from_the_upstream_name(kubeadm: Path, tmp_path: Path) -> None:
    spec = Spec.model_validate({"nodes": V4, "vip": {"address": "10.0.0.10"}, "kubernetes": {"version": "v1.36.3"}})
    file = tmp_path / "kubeadm.yaml"
    file.write_text(kubeadm_config(spec))
    done = subprocess.run(
        [kubeadm, "config", "images", "list", "--config", file], capture_output=True, text=True, timeout=60, check=True
    )
    assert "registry.k8s.io/kube-apiserver:v1.36.3" in done.stdout.splitlines()
    assert all(line.startswith("registry.k8s.io/") for line in done.stdout.splitlines())
