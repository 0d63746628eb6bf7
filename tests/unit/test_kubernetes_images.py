"""The images that kubeadm asks for, as its own `kubeadm config images list` prints them."""

from __future__ import annotations

import pytest

from kubeadm_registry.errors import ConfigError
from kubeadm_registry.images.kubernetes_images import images_of
from kubeadm_registry.oci.references import parse

LIST_1_36_3 = """\
registry.k8s.io/kube-apiserver:v1.36.3
registry.k8s.io/kube-controller-manager:v1.36.3
registry.k8s.io/kube-scheduler:v1.36.3
registry.k8s.io/kube-proxy:v1.36.3
registry.k8s.io/coredns/coredns:v1.14.2
registry.k8s.io/pause:3.10.2
registry.k8s.io/etcd:3.6.8-0
"""


@pytest.mark.parametrize("version", ["v1.36.3", "1.36.3"])
def test_the_list_is_that_of_kubeadm(version: str) -> None:
    assert images_of(version) == tuple(LIST_1_36_3.split())
    assert all(parse(name) for name in images_of(version))


@pytest.mark.parametrize(
    ("version", "coredns", "pause", "etcd"),
    [
        ("v1.31.0", "v1.11.1", "3.10", "3.5.15-0"),
        ("v1.31.13", "v1.11.3", "3.10", "3.5.15-0"),
        ("v1.31.14", "v1.11.3", "3.10", "3.5.24-0"),
        ("v1.32.2", "v1.11.3", "3.10", "3.5.16-0"),
        ("v1.32.13", "v1.11.3", "3.10", "3.5.24-0"),
        ("v1.33.6", "v1.12.0", "3.10", "3.5.24-0"),
        ("v1.34.0", "v1.12.1", "3.10.1", "3.6.4-0"),
        ("v1.34.2", "v1.12.1", "3.10.1", "3.6.5-0"),
        ("v1.35.4", "v1.13.1", "3.10.1", "3.6.6-0"),
        ("v1.37.2", "v1.14.6", "3.10.2", "3.7.0-0"),
    ],
)
def test_a_patch_release_may_ask_for_others(version: str, coredns: str, pause: str, etcd: str) -> None:
    assert images_of(version)[4:] == (
        f"registry.k8s.io/coredns/coredns:{coredns}",
        f"registry.k8s.io/pause:{pause}",
        f"registry.k8s.io/etcd:{etcd}",
    )


@pytest.mark.parametrize("version", ["v1.30.2", "v1.36.4", "v1.99.0"])
def test_what_is_not_known_is_not_guessed(version: str) -> None:
    with pytest.raises(ConfigError) as caught:
        images_of(version)
    assert caught.value.code == "KubernetesVersionUnknown"
    assert f"kubeadm config images list --kubernetes-version {version}" in caught.value.hint


@pytest.mark.parametrize("version", ["", "v1.36", "v2.0.0", "v1.36.3-rc.0", "latest"])
def test_what_is_no_version(version: str) -> None:
    with pytest.raises(ConfigError) as caught:
        images_of(version)
    assert caught.value.code == "KubernetesVersionInvalid"
