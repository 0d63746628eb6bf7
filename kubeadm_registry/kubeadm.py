"""The kubeadm configuration of a server, with the addresses that kubeadm cannot find out by itself. Pure text.

kubeadm takes the address of the default route for a server's own, and there may be none; and on the server that holds
the registry's VIP it could take that. So ``advertiseAddress`` and ``node-ip`` are always those of the cluster file.
``imageRepository`` stays at its default: containerd's mirrors lead ``registry.k8s.io`` to the registry, and manifests
that name no VIP go on when it changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from kubeadm_registry.addresses import endpoint, is_ipv6
from kubeadm_registry.config import Node, Spec

CRI_SOCKET = "unix:///run/containerd/containerd.sock"

#: Placeholders of the right form, so that ``kubeadm config validate`` accepts the file; `kubeadm join` does not.
TOKEN = "000000.0000000000000000"  # noqa: S105  a placeholder
CA_HASH = "sha256:" + "0" * 64
CERTIFICATE_KEY = "0" * 64

_API_PORT = 6443
#: kubeadm's own default for services is IPv4, so other families need both networks named.
_NETWORKS = {
    False: {"podSubnet": "10.244.0.0/16", "serviceSubnet": "10.96.0.0/16"},
    True: {"podSubnet": "fd00:10:244::/56", "serviceSubnet": "fd00:10:96::/112"},
}

_HEAD = """\
# kubeadm's configuration for the server {node}, written by `kubeadm-registry config kubeadm --node {node}`.
#   on the first server:  kubeadm init --config FILE --upload-certs     (the JoinConfiguration is then left out)
#   on the others:        fill in the JoinConfiguration, then kubeadm join --config FILE
"""
_JOIN = """\
# The zeros below are placeholders. On the first server
#   kubeadm init phase upload-certs --upload-certs --config FILE | tail -n 1     prints the certificateKey
#   kubeadm token create --print-join-command                                    prints token and caCertHashes
"""
_ENDPOINT = """\
# controlPlaneEndpoint is where kubelets and kubectl find the API. This is the first server: if it is lost, so is the
# way to the API until it comes back. Put an address or name here that follows the API servers, before `kubeadm init`:
# it stands in certificates and is hard to change later. The registry's VIP follows the registry, not the API.
"""
_IMAGES = """\
# imageRepository is not set on purpose: containerd takes the images of registry.k8s.io from the registry.
"""


def kubeadm_config(spec: Spec, node: str | None = None, *, control_plane_endpoint: str = "") -> str:
    """Init-, Join- and ClusterConfiguration for the server *node* (None: the first one), as YAML with comments.

    *control_plane_endpoint* is ``host:port`` of the API; empty: the first server. Kubernetes from 1.31 on, and no
    version at all, gets v1beta4, older ones v1beta3. Raises KeyError if the cluster file has no such node.
    """
    this = spec.nodes[0] if node is None else spec.node(node)
    version = spec.kubernetes.version
    api = "kubeadm.k8s.io/v1beta4" if _minor(version) >= 31 else "kubeadm.k8s.io/v1beta3"
    registration = {
        "name": this.name,
        "criSocket": CRI_SOCKET,
        "kubeletExtraArgs": _arguments({"node-ip": ",".join(this.addresses)}, as_list=api.endswith("v1beta4")),
    }
    local = {"advertiseAddress": this.address, "bindPort": _API_PORT}
    first = endpoint(spec.nodes[0].address, _API_PORT)
    init = {"localAPIEndpoint": local, "nodeRegistration": registration}
    join = {
        "discovery": {
            "bootstrapToken": {
                "token": TOKEN,
                "apiServerEndpoint": control_plane_endpoint or first,
                "caCertHashes": [CA_HASH],
            }
        },
        "controlPlane": {"localAPIEndpoint": local, "certificateKey": CERTIFICATE_KEY},
        "nodeRegistration": registration,
    }
    cluster: dict[str, Any] = {"controlPlaneEndpoint": control_plane_endpoint or first}
    if version is not None:
        cluster["kubernetesVersion"] = f"v{version.removeprefix('v')}"
    if networking := _networking(this):
        cluster["networking"] = networking
    return "---\n".join(
        [
            _HEAD.format(node=this.name) + _document(api, "InitConfiguration", init),
            ("" if control_plane_endpoint else _ENDPOINT) + _IMAGES + _document(api, "ClusterConfiguration", cluster),
            _JOIN + _document(api, "JoinConfiguration", join),
        ]
    )


def cautions(spec: Spec) -> list[str]:
    """What a user of the file for *spec* should know before `kubeadm init`, a sentence each; empty: nothing."""
    found = []
    if spec.kubernetes.version is None:
        found.append(
            "spec.kubernetes.version is not set, so kubeadm asks the internet for the latest version; "
            "set it to the version whose images are in the registry"
        )
    used = spec.kubernetes.control_plane_endpoint or endpoint(spec.nodes[0].address, _API_PORT)
    host = used.rpartition(":")[0].strip("[]")
    node = next((node for node in spec.nodes if host in (node.name, *node.addresses)), None)
    if node is not None and len(spec.nodes) > 1:
        found.append(
            f"controlPlaneEndpoint is {used} on the single node {node.name}: without that node the Kubernetes API is "
            "unreachable; set spec.kubernetes.controlPlaneEndpoint to an address or name that leads to every API server"
        )
    return found


def _minor(version: str | None) -> int:
    """The minor version; a large one where none is set, for then it will be a recent one."""
    return 99 if version is None else int(version.split(".")[1])


def _arguments(values: Mapping[str, str], *, as_list: bool) -> Any:
    """Extra arguments: a list since v1beta4, a mapping before."""
    return [{"name": name, "value": value} for name, value in values.items()] if as_list else dict(values)


def _networking(node: Node) -> dict[str, str]:
    """Networks for pods and services, the family of the node's first address in front; none for IPv4 alone."""
    families = [is_ipv6(address) for address in node.addresses]
    if families == [False]:
        return {}
    return {key: ",".join(_NETWORKS[family][key] for family in families) for key in ("podSubnet", "serviceSubnet")}


def _document(api: str, kind: str, body: Mapping[str, Any]) -> str:
    return yaml.dump({"apiVersion": api, "kind": kind, **body}, Dumper=_Plain, sort_keys=False)


class _Plain(yaml.SafeDumper):
    """Writes a value that is used twice twice: an anchor would only puzzle the reader."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
