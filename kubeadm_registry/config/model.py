"""The cluster file: one frozen model, which is also the custom resource. Every field has its reason beside it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from kubeadm_registry.config import document, relations
from kubeadm_registry.config.contradictions import MOST_NODES, Contradiction, Facts, contradictions
from kubeadm_registry.config.durations import Duration
from kubeadm_registry.config.values import (
    ELSEWHERE,
    KUBERNETES_REGISTRY,
    Address,
    DataDirectory,
    DnsName,
    Endpoint,
    Flag,
    HostKey,
    ImageName,
    Label,
    NodeName,
    OwnFile,
    Upstream,
    UserName,
    Version,
    Whole,
)
from kubeadm_registry.errors import ConfigError, ConfigProblem

DEFAULT_FILE = Path("cluster.yaml")
_HINT = "see `kubeadm-registry config print-defaults` for all keys, and docs/reference.md for their meaning"
SMALLEST = """\
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryCluster
metadata: {name: registry}
spec:
  nodes:
    - {name: cp-1, address: 10.0.0.11}
    - {name: cp-2, address: 10.0.0.12}
    - {name: cp-3, address: 10.0.0.13}
  vip: {address: 10.0.0.10}
"""


class Model(BaseModel):
    """Base of all parts: frozen, closed to unknown keys, camelCase in the file."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, use_attribute_docstrings=True
    )


#: Of sshd, where neither the file nor ssh_config says another.
SSH_PORT = 22


class Ssh(Model):
    """How to reach a node by SSH. These values override ssh_config."""

    user: UserName | None = None
    """User to log in as. Unset: that of ssh_config, else your own name, as with ssh. Others than root need sudo."""
    port: Whole | None = Field(None, ge=1, le=65535)
    """Port of sshd. Unset: that of ssh_config, else 22."""
    identity_file: OwnFile | None = None
    """Private key. Unset: ssh_config's, the agent's and the usual names in ~/.ssh."""
    known_hosts_file: OwnFile | None = None
    """File with the host keys of the nodes. Unset: that of ssh_config, else ~/.ssh/known_hosts."""

    def over(self, other: Ssh) -> Ssh:
        """These settings where they are set, those of *other* where they are not."""
        return Ssh(**{**other.model_dump(exclude_none=True), **self.model_dump(exclude_none=True)})

    def without_files(self) -> Ssh:
        """These settings as another machine may have them: the files are this one's."""
        return Ssh(user=self.user, port=self.port)


class Node(Model):
    """A node of the registry; usually a control-plane node of the later cluster."""

    name: NodeName
    """Name of the node, unique; the Kubernetes node name is the natural choice."""
    address: Annotated[Address, relations.NODE_ADDRESS]
    """Address by which the other nodes, the clients and SSH reach it."""
    secondary_address: Address | None = None
    """Its address of the other family, in a dual-stack network."""
    host_key: HostKey | None = None
    """The key that its sshd must show: ``ssh-ed25519 AAAA...``. Unset: one that known_hosts has for it."""
    ssh: Ssh = Ssh()
    """SSH settings of this node only."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """One or two addresses, the first one preferred."""
        return (self.address,) if self.secondary_address is None else (self.address, self.secondary_address)


class Vip(Model):
    """The virtual IP: a layer-2 address that is always on a healthy node."""

    address: Address
    """The address. Unused, in the subnet of the nodes' addresses, never an address of a node."""
    secondary_address: Address | None = None
    """A second one of the other family, in a dual-stack network. It moves together with the first."""
    name: DnsName | None = None
    """A name for it, in addition, if something resolves one. It is put into the certificates."""
    virtual_router_id: Whole | None = Field(None, alias="virtualRouterID", ge=1, le=255)
    """VRRP's group number, unique in the subnet. Unset: derived from the address."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """One or two addresses."""
        return (self.address,) if self.secondary_address is None else (self.address, self.secondary_address)

    @property
    def router_id(self) -> int:
        """The VRRP virtual router identifier, 1 to 255 (RFC 5798, section 5.2.3)."""
        if self.virtual_router_id is not None:
            return self.virtual_router_id
        # kube-vip and hand-made keepalived setups crowd near 1, 50 and 51; the last byte keeps two of ours apart.
        return ipaddress.ip_address(self.address).packed[-1] % 127 + 101


class Backend(Model):
    """The replicated storage of the layers."""

    type: Annotated[Literal["garage"], relations.BACKEND_TYPE] = "garage"
    """Garage keeps every block on three nodes and needs two of them to read and write."""


class Frontend(Model):
    """The registry program that speaks OCI."""

    type: Literal["zot", "distribution"] = "zot"
    """zot lists referrers, deletes single tags and has one writer; Distribution may be written on every node."""


class Proxy(Model):
    """Who may do what."""

    anonymous_pull: Flag = True
    """Whether images may be pulled without a login. Off: containerd needs the pull login on every node."""


class Containerd(Model):
    """containerd on the nodes of the registry."""

    sandbox_image: ImageName | None = None
    """The pause image (``registry.k8s.io/pause:3.10.2``), if containerd's own default should be replaced."""


class Kubernetes(Model):
    """What ``config kubeadm`` writes."""

    version: Version | None = None
    """Version of Kubernetes, v1.36.3. Unset: kubeadm asks the internet for the latest version."""
    control_plane_endpoint: Endpoint | None = None
    """``host:port`` that leads to all API servers. Unset: the first node alone, a single point of failure."""


class Replacement(Model):
    """What the operator does about a node that is gone."""

    mode: Literal["Propose", "Automatic"] = "Propose"
    """Propose: it says which machine could take the node's place. Automatic: it has it take the place."""
    after: Duration = "30m"
    """For how long a node must have been gone before that: ``90m``, ``12h``, ``2d``."""


class Spec(Model):
    """What the registry should be."""

    nodes: Annotated[tuple[Annotated[Node, relations.NODE], ...], relations.NODES] = Field(
        min_length=1, max_length=MOST_NODES
    )
    """Three to five nodes; one for a trial, without high availability."""
    vip: Annotated[Vip, relations.VIP]
    ssh: Ssh = Ssh()
    """SSH settings for all nodes."""
    backend: Backend = Backend()
    frontend: Frontend = Frontend()
    proxy: Proxy = Proxy()
    mirrors: Annotated[tuple[Upstream, ...], relations.MIRRORS] = Field(
        (KUBERNETES_REGISTRY, "docker.io", "quay.io", "ghcr.io"), max_length=relations.MOST_MIRRORS
    )
    """Upstream registries whose images containerd takes from this registry instead; ``"*"`` stands for all others."""
    containerd: Containerd = Containerd()
    kubernetes: Kubernetes = Kubernetes()
    replacement: Replacement = Replacement()
    data_directory: Annotated[DataDirectory, relations.DATA_DIRECTORY] = "/var/lib/kubeadm-registry"
    """Where the nodes keep layers and metadata; mount a disk of its own there. An existing directory keeps its
    owner and mode."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = list(contradictions(Facts.of(self)))
        if problems:
            raise Contradiction(problems)
        return self

    def node(self, name: str) -> Node:
        """The node of this name. Raises KeyError."""
        return {node.name: node for node in self.nodes}[name]

    def ssh_port(self, node: Node) -> int:
        """The port of sshd on *node* by this file; what ssh_config says is not asked."""
        return node.ssh.over(self.ssh).port or SSH_PORT

    @property
    def highly_available(self) -> bool:
        """Whether any one node may be lost."""
        return len(self.nodes) > 1


#: Keys of metadata that an API server writes, or that mean something to it alone (meta/v1, ObjectMeta).
_OF_API_SERVERS = {
    "namespace", "labels", "annotations", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields",
    "selfLink", "finalizers", "ownerReferences", "deletionTimestamp", "deletionGracePeriodSeconds",
}  # fmt: skip


def _without(value: Any, keys: Set[str]) -> Any:
    return {key: item for key, item in value.items() if key not in keys} if isinstance(value, Mapping) else value


class Metadata(Model):
    """Kubernetes' metadata, as far as a file needs it; what an API server adds to it is passed over."""

    name: Label = "registry"
    """Name of the cluster."""

    @model_validator(mode="before")
    @classmethod
    def _without_the_servers(cls, value: Any) -> Any:
        return _without(value, _OF_API_SERVERS)


class RegistryCluster(Model):
    """The whole file; ``kubectl get -o yaml`` shows a ``status`` besides, which is passed over."""

    api_version: Literal["kubeadm-registry.dev/v1alpha1"]
    kind: Literal["RegistryCluster"]
    metadata: Metadata = Metadata()
    spec: Annotated[Spec, relations.SPEC]

    @model_validator(mode="before")
    @classmethod
    def _without_status(cls, value: Any) -> Any:
        return _without(value, {"status"})

    def without_files(self) -> Self:
        """The same file as it may be on another machine: the files that ``ssh`` names are this one's."""
        nodes = tuple(node.model_copy(update={"ssh": node.ssh.without_files()}) for node in self.spec.nodes)
        return self.with_spec(nodes=nodes, ssh=self.spec.ssh.without_files())

    def with_spec(self, **values: object) -> Self:
        """The same file with other *values* of its specification, by attribute, which are not checked."""
        return self.model_copy(update={"spec": self.spec.model_copy(update=values)})


def load(path: Path | None) -> RegistryCluster:
    """Read the cluster file *path*, ``./cluster.yaml`` if None. Raises ConfigError with every problem at once."""
    return parse(file_text(path), str(path or DEFAULT_FILE))


def file_text(path: Path | None) -> str:
    """The text of the cluster file *path*, ``./cluster.yaml`` if None. Raises ConfigError."""
    if path is None and not DEFAULT_FILE.exists():
        raise ConfigError(
            "no cluster file: ./cluster.yaml does not exist, and -f was not given. A minimal file:\n\n" + SMALLEST,
            hint="create ./cluster.yaml with your addresses, or pass your file with -f FILE",
            code="ConfigMissing",
        )
    return document.text_of(path or DEFAULT_FILE, "cluster file", "-f")


def parse(text: str, name: str, *, elsewhere: bool = False) -> RegistryCluster:
    """The cluster that *text* (YAML) describes; *name* stands in errors. Raises ConfigError.

    *elsewhere*: files that ``spec.ssh`` names are on another machine, and are not looked for here.
    """
    return _validated(document.read(text, name, hint=_HINT, smallest=SMALLEST), name, elsewhere=elsewhere)


def from_object(found: Mapping[str, Any]) -> RegistryCluster:
    """The cluster that a RegistryCluster read from an API server describes. Raises ConfigError.

    Of the object count ``apiVersion``, ``kind``, ``metadata.name`` and ``spec``; all else belongs to the API server and
    to those who write its status. Files that ``spec.ssh`` names are on the workstation, and are not looked for here.
    """
    metadata = found.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    own = {key: found[key] for key in ("apiVersion", "kind", "spec") if key in found}
    return _validated({**own, "metadata": {"name": name}}, f"RegistryCluster {name}", elsewhere=True)


def _validated(found: Mapping[str, Any], name: str, *, elsewhere: bool = False) -> RegistryCluster:
    return document.validated(
        RegistryCluster, found, name, hint=_HINT, together=_contradictions, context={ELSEWHERE: elsewhere}
    )


def _contradictions(file: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    """What contradicts itself in *file*."""
    spec = file.get("spec")
    if isinstance(spec, Mapping):
        yield from (ConfigProblem(f"spec.{path}", text) for path, text in contradictions(Facts.in_document(spec)))


def dump(cluster: RegistryCluster) -> str:
    """The cluster as YAML with every default written out."""
    return yaml.safe_dump(cluster.model_dump(by_alias=True, exclude_none=True, mode="json"), sort_keys=False)
