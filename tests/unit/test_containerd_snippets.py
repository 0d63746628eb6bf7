"""What k3s, RKE2, Talos and CRI-O are told, as their own readers read it."""

from __future__ import annotations

import base64
import tomllib
from dataclasses import replace
from typing import Any

import pytest
import yaml

from kubeadm_registry.containerd import ContainerdSettings, snippets

SETTINGS = ContainerdSettings(("10.0.0.10",), b"the certificate\n", ("docker.io", "own.lan:8443"))
ALL = replace(SETTINGS, mirrors=("*", "docker.io"))
AT = "10.0.0.10:5000"


def read(name: str, settings: ContainerdSettings = SETTINGS, password: str = "") -> dict[str, Any]:
    text = snippets.FORMATS[name](settings, password)
    found: dict[str, Any] = tomllib.loads(text) if name == "cri-o" else yaml.safe_load(text)
    return found


@pytest.mark.parametrize("product", ["k3s", "rke2"])
def test_registries_yaml(product: str) -> None:
    assert read(product) == {
        "mirrors": {
            "docker.io": {"endpoint": [f"https://{AT}"], "rewrite": {"^(.*)$": "docker.io/$1"}},
            "own.lan:8443": {"endpoint": [f"https://{AT}"], "rewrite": {"^(.*)$": "own.lan_8443/$1"}},
        },
        "configs": {AT: {"tls": {"ca_file": f"/etc/rancher/{product}/kubeadm-registry-ca.crt"}}},
    }
    closed = read(product, password="secret")
    assert closed["configs"][AT]["auth"] == {"username": "pull", "password": "secret"}


def test_a_patch_for_talos() -> None:
    registries = read("talos", ALL, "secret")["machine"]["registries"]
    assert registries["mirrors"]["docker.io"] == {
        "endpoints": [f"https://{AT}/v2/docker.io"], "overridePath": True, "skipFallback": True,
    }  # fmt: skip
    assert registries["mirrors"]["*"]["endpoints"] == [f"https://{AT}/v2/_upstream"]
    assert base64.b64decode(registries["config"][AT]["tls"]["ca"]) == b"the certificate\n"
    assert registries["config"][AT]["auth"] == {"username": "pull", "password": "secret"}
    assert "auth" not in read("talos")["machine"]["registries"]["config"][AT]


def test_registries_conf_never_names_the_internet() -> None:
    assert read("cri-o")["registry"] == [
        {"prefix": "docker.io", "location": f"{AT}/docker.io"},
        {"prefix": "own.lan:8443", "location": f"{AT}/own.lan_8443"},
    ]
    text = snippets.crio(SETTINGS, "secret")
    assert f"/etc/containers/certs.d/{AT}/ca.crt" in text
    assert "secret" not in text, "it does not belong into a file that all may read"
    assert "global_auth_file" in text


@pytest.mark.parametrize("name", ["k3s", "rke2", "cri-o"])
def test_what_one_of_them_cannot_say_is_told(name: str) -> None:
    text = snippets.FORMATS[name](ALL, "")
    assert '"*" is omitted' in text
    assert "_upstream" not in text
    assert '"*"' not in snippets.FORMATS[name](SETTINGS, "")


@pytest.mark.parametrize(
    ("addresses", "name", "at"),
    [(("fd00::10",), "", "[fd00::10]:5000"), (("fd00::10",), "registry.lan", "registry.lan:5000"),
     (("10.0.0.10", "fd00::10"), "registry.lan", AT)],
)  # fmt: skip
def test_the_name_stands_for_an_ipv6_address(addresses: tuple[str, ...], name: str, at: str) -> None:
    settings = replace(SETTINGS, vip_addresses=addresses, vip_name=name)
    assert read("k3s", settings)["mirrors"]["docker.io"]["endpoint"] == [f"https://{at}"]
