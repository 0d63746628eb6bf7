"""What to write on nodes whose runtime another tool configures: k3s, RKE2, Talos, and those with CRI-O. Pure text.

Sources: "Private Registry Configuration" of docs.k3s.io and docs.rke2.io (``rewrite`` is for mirrors alone); Talos
v1alpha1 ``machine.registries``; containers-registries.conf(5) and containers-certs.d(5) for CRI-O.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from kubeadm_registry import addresses
from kubeadm_registry.config.values import EVERY_REGISTRY
from kubeadm_registry.containerd import ContainerdSettings
from kubeadm_registry.containerd.edit import literal
from kubeadm_registry.containerd.hosts import below
from kubeadm_registry.oci.references import repository_prefix

#: Who pulls where not everybody may.
USER = "pull"


def k3s(settings: ContainerdSettings, password: str) -> str:
    """``/etc/rancher/k3s/registries.yaml``."""
    return _rancher(settings, password, "k3s")


def rke2(settings: ContainerdSettings, password: str) -> str:
    """``/etc/rancher/rke2/registries.yaml``."""
    return _rancher(settings, password, "rke2")


def _rancher(settings: ContainerdSettings, password: str, product: str) -> str:
    at = _endpoint(settings)
    ca = f"/etc/rancher/{product}/kubeadm-registry-ca.crt"
    mirrors: dict[str, Any] = {
        upstream: {"endpoint": [f"https://{at}"], "rewrite": {"^(.*)$": f"{repository_prefix(upstream)}/$1"}}
        for upstream in _named(settings.mirrors)
    }
    config: dict[str, Any] = {at: {"tls": {"ca_file": ca}}}
    if password:
        config[at]["auth"] = {"username": USER, "password": password}
    comments = [
        f"/etc/rancher/{product}/registries.yaml; restart {product} afterwards.",
        f"The CA certificate, as `kubeadm-registry ca` prints it, belongs in {ca}.",
        f"Start {product} with --disable-default-registry-endpoint if nothing may be pulled from the internet.",
        *_cannot(settings.mirrors, f"the rewrites of {product}"),
    ]
    return _yaml(comments, {"mirrors": mirrors, "configs": config})


def talos(settings: ContainerdSettings, password: str) -> str:
    """A patch for the machine configuration of Talos."""
    at = _endpoint(settings)
    mirrors = {
        upstream: {
            "endpoints": [f"https://{at}/v2/{below(upstream)}"],
            "overridePath": True,
            "skipFallback": True,
        }
        for upstream in settings.mirrors
    }
    config: dict[str, Any] = {"tls": {"ca": base64.b64encode(settings.ca_pem).decode()}}
    if password:
        config["auth"] = {"username": USER, "password": password}
    registries = {"mirrors": mirrors, "config": {at: config}}
    comments = ["Apply it with: talosctl patch machineconfig --nodes NODE --patch @FILE"]
    return _yaml(comments, {"machine": {"registries": registries}})


def crio(settings: ContainerdSettings, password: str) -> str:
    """A file of ``/etc/containers/registries.conf.d``."""
    at = _endpoint(settings)
    lines = [
        "/etc/containers/registries.conf.d/50-kubeadm-registry.conf; run `systemctl reload crio` afterwards.",
        f"The CA certificate, as `kubeadm-registry ca` prints it, belongs in /etc/containers/certs.d/{at}/ca.crt.",
        *([f"CRI-O needs the credentials of {USER} for {at} in its global_auth_file."] if password else []),
        *_cannot(settings.mirrors, "registries.conf"),
    ]
    tables = [
        f"\n[[registry]]\nprefix = {literal(upstream)}\nlocation = {literal(f'{at}/{repository_prefix(upstream)}')}\n"
        for upstream in _named(settings.mirrors)
    ]
    return _commented(lines) + "".join(tables)


FORMATS: Mapping[str, Callable[[ContainerdSettings, str], str]] = {
    "k3s": k3s, "rke2": rke2, "talos": talos, "cri-o": crio,
}  # fmt: skip
"""By the names that people know them by: the text, for a registry that asks for a password if there is one."""


def _endpoint(settings: ContainerdSettings) -> str:
    """``HOST:PORT`` of the registry: its name where the address is IPv6, which not all of them read."""
    address, *_ = settings.vip_addresses
    host = settings.vip_name if settings.vip_name and addresses.is_ipv6(address) else address
    return addresses.endpoint(host, settings.port)


def _named(mirrors: Iterable[str]) -> list[str]:
    return [upstream for upstream in mirrors if upstream != EVERY_REGISTRY]


def _cannot(mirrors: Iterable[str], what: str) -> list[str]:
    if EVERY_REGISTRY not in mirrors:
        return []
    return [f'"{EVERY_REGISTRY}" is omitted, which {what} cannot express: list the registries in spec.mirrors.']


def _commented(lines: Iterable[str]) -> str:
    return "".join(f"# {line}\n" for line in lines)


def _yaml(comments: Iterable[str], document: object) -> str:
    return _commented(comments) + yaml.safe_dump(document, sort_keys=False, width=1000)
