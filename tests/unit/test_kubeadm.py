"""kubeadm's configuration: the addresses of one server in the form that its version of kubeadm reads."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from kubeadm_registry.config import Spec
from kubeadm_registry.config.kubeadm import cautions, kubeadm_config

VIP = "10.0.0.10"


def spec(*nodes: dict[str, str], vip: dict[str, str] | None = None, version: str | None = None) -> Spec:
    return Spec.model_validate(
        {
            "nodes": nodes or [{"name": f"cp-{n}", "address": f"10.0.0.1{n}"} for n in (1, 2, 3)],
            "vip": vip or {"address": VIP},
            "kubernetes": {"version": version} if version else {},
        }
    )


def documents(text: str) -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def test_the_node_has_its_own_addresses() -> None:
    text = kubeadm_config(spec(version="1.36.3"), "cp-2")
    found = documents(text)
    assert list(found) == ["InitConfiguration", "ClusterConfiguration", "JoinConfiguration"]
    for local in (
        found["InitConfiguration"]["localAPIEndpoint"],
        found["JoinConfiguration"]["controlPlane"]["localAPIEndpoint"],
    ):
        assert local == {"advertiseAddress": "10.0.0.12", "bindPort": 6443}
    for kind in ("InitConfiguration", "JoinConfiguration"):
        assert found[kind]["nodeRegistration"] == {
            "name": "cp-2",
            "criSocket": "unix:///run/containerd/containerd.sock",
            "kubeletExtraArgs": [{"name": "node-ip", "value": "10.0.0.12"}],
        }
    assert found["ClusterConfiguration"] == {
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "ClusterConfiguration",
        "controlPlaneEndpoint": "10.0.0.11:6443",
        "kubernetesVersion": "v1.36.3",
    }


@pytest.mark.parametrize(
    "name", ["1e3", "12e10", "1e-3", "0o17", "0x1f", "017", "08", "12", "2001-1-1", "y", "n", "on", "null", "true"]
)
def test_a_name_that_yaml_may_take_for_something_else_is_quoted(name: str) -> None:
    """Go reads 1e3 as 1000 and 08 as 8, and kubeadm refuses a name that is a number."""
    text = kubeadm_config(spec({"name": name, "address": "10.0.0.11"}))
    assert text.count(f"  name: '{name}'\n") == 2


def test_a_plain_name_is_not_quoted() -> None:
    text = kubeadm_config(spec({"name": "e3-1e3x", "address": "10.0.0.11"}))
    assert text.count("  name: e3-1e3x\n") == 2


def test_the_vip_is_nowhere() -> None:
    assert VIP not in kubeadm_config(spec())


def test_the_first_node_is_the_default() -> None:
    assert kubeadm_config(spec()) == kubeadm_config(spec(), "cp-1")
    with pytest.raises(KeyError):
        kubeadm_config(spec(), "cp-9")


def test_no_version_is_no_line() -> None:
    assert "kubernetesVersion" not in kubeadm_config(spec())


def test_before_1_31() -> None:
    found = documents(kubeadm_config(spec(version="v1.30.14")))
    assert {document["apiVersion"] for document in found.values()} == {"kubeadm.k8s.io/v1beta3"}
    assert found["InitConfiguration"]["nodeRegistration"]["kubeletExtraArgs"] == {"node-ip": "10.0.0.11"}


def test_dual_stack() -> None:
    nodes = [{"name": f"cp-{n}", "address": f"fd00::1{n}", "secondaryAddress": f"10.0.0.1{n}"} for n in (1, 2, 3)]
    found = documents(kubeadm_config(spec(*nodes, vip={"address": "fd00::10", "secondaryAddress": VIP}), "cp-3"))
    assert found["InitConfiguration"]["localAPIEndpoint"]["advertiseAddress"] == "fd00::13"
    arguments = found["InitConfiguration"]["nodeRegistration"]["kubeletExtraArgs"]
    assert arguments == [{"name": "node-ip", "value": "fd00::13,10.0.0.13"}]
    assert found["ClusterConfiguration"]["controlPlaneEndpoint"] == "[fd00::11]:6443"
    assert found["ClusterConfiguration"]["networking"] == {
        "podSubnet": "fd00:10:244::/56,10.244.0.0/16",
        "serviceSubnet": "fd00:10:96::/112,10.96.0.0/16",
    }


def test_an_endpoint_of_the_users() -> None:
    text = kubeadm_config(spec(), control_plane_endpoint="api.lan:6443")
    found = documents(text)
    assert found["ClusterConfiguration"]["controlPlaneEndpoint"] == "api.lan:6443"
    assert found["JoinConfiguration"]["discovery"]["bootstrapToken"]["apiServerEndpoint"] == "api.lan:6443"
    assert "This is the first server" not in text


@pytest.mark.parametrize("used", [None, "10.0.0.12:6443", "10.0.0.12", "cp-2", "cp-2:6443", "[FD00::12]:6443"])
def test_the_address_of_one_node_is_no_endpoint_of_a_cluster(used: str | None) -> None:
    nodes = [{"name": f"cp-{n}", "address": f"10.0.0.1{n}", "secondaryAddress": f"fd00::1{n}"} for n in (1, 2, 3)]
    wanted = spec(*nodes, vip={"address": VIP, "secondaryAddress": "fd00::10"}, version="v1.36.3")
    kubernetes = wanted.kubernetes.model_copy(update={"control_plane_endpoint": used})
    [said] = cautions(wanted.model_copy(update={"kubernetes": kubernetes}))
    assert said.startswith(f"controlPlaneEndpoint is {used or '10.0.0.11:6443'} on the single node cp-")


@pytest.mark.parametrize("used", ["10.0.0.10:6443", "10.0.0.10", "[FD00:0::10]:6443", "[fd00::10]", "registry.lan"])
def test_the_virtual_ip_does_not_follow_the_api_servers(used: str) -> None:
    """README, "Limits of high availability": it follows the registry, also to a node that is not joined yet."""
    nodes = [{"name": f"cp-{n}", "address": f"10.0.0.1{n}", "secondaryAddress": f"fd00::1{n}"} for n in (1, 2, 3)]
    vip = {"address": VIP, "secondaryAddress": "fd00::10", "name": "registry.lan"}
    wanted = spec(*nodes, vip=vip, version="v1.36.3")
    kubernetes = wanted.kubernetes.model_copy(update={"control_plane_endpoint": used})
    [said] = cautions(wanted.model_copy(update={"kubernetes": kubernetes}))
    assert said.startswith(f"controlPlaneEndpoint is {used} on the virtual IP of the registry")


def test_an_endpoint_that_leads_to_all_and_a_single_node_are_fine() -> None:
    wanted = spec(version="v1.36.3")
    kubernetes = wanted.kubernetes.model_copy(update={"control_plane_endpoint": "api.lan:6443"})
    assert cautions(wanted.model_copy(update={"kubernetes": kubernetes})) == []
    assert cautions(spec({"name": "cp-1", "address": "10.0.0.11"}, version="v1.36.3")) == []


@pytest.mark.parametrize(
    ("at", "second", "said"),
    [
        ("10.95.255.1", None, []),
        ("10.112.0.1", None, []),
        ("10.244.0.1", None, []),  # of pods: the network plugin's own, which is in no file of ours
        ("10.100.0.1", None, ["networking.serviceSubnet is 10.96.0.0/12 unless you set it, and 10.100.0.10 of"]),
        ("10.100.0.1", "fd00::1", []),
        ("10.244.0.1", "fd00::1", ["networking.podSubnet is 10.244.0.0/16 unless you set it, and 10.244.0.10 of"]),
        ("fd00:10:96::1", None, ["networking.serviceSubnet is fd00:10:96::/112 unless you set it, and fd00:10:96::10"]),
    ],
)
def test_no_node_is_in_a_network_of_kubernetes(at: str, second: str | None, said: list[str]) -> None:
    """kube-proxy's nftables mode drops what goes to the network of Services and to none of them."""

    def place(last: int) -> dict[str, str]:
        return {"address": f"{at}{last}"} | ({"secondaryAddress": f"{second}{last}"} if second else {})

    wanted = spec(*({"name": f"cp-{n}"} | place(n) for n in (1, 2, 3)), vip=place(0), version="v1.36.3")
    kubernetes = wanted.kubernetes.model_copy(update={"control_plane_endpoint": "api.lan:6443"})
    found = cautions(wanted.model_copy(update={"kubernetes": kubernetes}))
    assert [text[: len(start)] for text, start in zip(found, said, strict=True)] == said


def test_a_version_that_is_missing_is_told() -> None:
    assert [said for said in cautions(spec()) if said.startswith("spec.kubernetes.version is not set")]


@pytest.mark.parametrize(
    ("mirrors", "mirrored"), [(("registry.k8s.io",), True), (("*",), True), ((), False), (("docker.io",), False)]
)
def test_images_that_do_not_come_from_the_registry_are_told(mirrors: tuple[str, ...], mirrored: bool) -> None:
    wanted = spec({"name": "cp-1", "address": "10.0.0.11"}, version="v1.36.3").model_copy(update={"mirrors": mirrors})
    assert [said for said in cautions(wanted) if said.startswith("spec.mirrors")] == cautions(wanted)
    assert bool(cautions(wanted)) is not mirrored
    assert ("pulls the images of registry.k8s.io from the registry" in kubeadm_config(wanted)) is mirrored
