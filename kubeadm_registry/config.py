"""The cluster file: one frozen model, which is also the custom resource. Every field has its reason beside it."""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from kubeadm_registry.addresses import is_ipv6
from kubeadm_registry.errors import ConfigError, ConfigProblem
from kubeadm_registry.values import Address, DataDirectory, DnsName, Label, NodeName, Upstream

API_VERSION: Literal["kubeadm-registry.dev/v1alpha1"] = "kubeadm-registry.dev/v1alpha1"
DEFAULT_FILE = Path("cluster.yaml")
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


class Ssh(Model):
    """How to reach a server, on top of the user's own ssh_config, which these values overrule."""

    user: str | None = Field(None, min_length=1)
    """User to log in as. Unset: what ssh_config says, else root. Others need sudo."""
    port: int | None = Field(None, ge=1, le=65535)
    """Port of sshd. Unset: what ssh_config says, else 22."""
    identity_file: str | None = Field(None, min_length=1)
    """Private key. Unset: ssh_config's, the agent's and the usual names in ~/.ssh."""
    known_hosts_file: str | None = Field(None, min_length=1)
    """Where the servers' host keys are known from. Unset: what ssh_config says, else ~/.ssh/known_hosts."""

    def over(self, other: Ssh) -> Ssh:
        """These settings where they are set, those of *other* where they are not."""
        return Ssh(**{**other.model_dump(exclude_none=True), **self.model_dump(exclude_none=True)})


class Node(Model):
    """A server that runs the registry; usually a control-plane server of the later cluster."""

    name: NodeName
    """Name of the server, unique; the Kubernetes node name is the natural choice."""
    address: Address
    """Address by which the other servers, the clients and SSH reach it."""
    secondary_address: Address | None = None
    """Its address of the other family, in a dual-stack network."""
    ssh: Ssh = Ssh()
    """SSH settings of this server alone."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """One or two addresses, the first one preferred."""
        return (self.address,) if self.secondary_address is None else (self.address, self.secondary_address)


class Vip(Model):
    """The virtual IP: one layer-2 address that is always at a healthy server."""

    address: Address
    """The address. Unused, in the subnet of the nodes' addresses, never an address of a node."""
    secondary_address: Address | None = None
    """A second one of the other family, in a dual-stack network. It moves together with the first."""
    name: DnsName | None = None
    """A name for it, in addition, if something resolves one. It is put into the certificates."""
    virtual_router_id: int | None = Field(None, alias="virtualRouterID", ge=1, le=255)
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

    type: Literal["garage"] = "garage"
    """Garage keeps every block on three servers and needs two of them to read and write."""


class Frontend(Model):
    """The registry program that speaks OCI."""

    type: Literal["zot", "distribution"] = "zot"
    """zot has retention and referrers, and one writer; Distribution is plain and may be written anywhere."""


class Proxy(Model):
    """Who may do what."""

    anonymous_pull: bool = True
    """Whether images may be pulled without a login. Off: containerd needs the pull login on every node."""


class Containerd(Model):
    """What happens to containerd on the registry's servers."""

    sandbox_image: str | None = Field(None, min_length=1)
    """The pause image (``registry.k8s.io/pause:3.10.2``), if containerd's own default should be replaced."""


class Kubernetes(Model):
    """What ``config kubeadm`` writes."""

    version: str | None = Field(None, pattern=r"^v?[0-9]+\.[0-9]+\.[0-9]+$")
    """Version of Kubernetes, v1.36.3. Without it kubeadm asks the internet, which is not there."""
    control_plane_endpoint: str | None = Field(None, min_length=1)
    """``host:port`` of the API servers together. Unset: the first server's own, a single point of failure."""


class Spec(Model):
    """What the registry should be."""

    nodes: tuple[Node, ...] = Field(min_length=1, max_length=5)
    """Three to five servers; one for trying things out, without high availability."""
    vip: Vip
    ssh: Ssh = Ssh()
    """SSH settings for all servers."""
    backend: Backend = Backend()
    frontend: Frontend = Frontend()
    proxy: Proxy = Proxy()
    mirrors: tuple[Upstream, ...] = ("registry.k8s.io", "docker.io", "quay.io", "ghcr.io")
    """Upstream registries whose images containerd takes from this registry instead."""
    containerd: Containerd = Containerd()
    kubernetes: Kubernetes = Kubernetes()
    data_directory: DataDirectory = "/var/lib/kubeadm-registry"
    """Where the servers keep layers and metadata: the place for a disk of its own. A directory that is there keeps its
    owner and mode."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = list(_contradictions(self))
        if problems:
            raise _Contradiction(problems)
        return self

    def node(self, name: str) -> Node:
        """The node of this name. Raises KeyError."""
        return {node.name: node for node in self.nodes}[name]

    @property
    def highly_available(self) -> bool:
        """Whether any one server may be lost."""
        return len(self.nodes) > 1


class Metadata(Model):
    """Kubernetes' metadata, as far as a file needs it."""

    name: Label = "registry"
    """Name of the cluster."""


class RegistryCluster(Model):
    """The whole file."""

    api_version: Literal["kubeadm-registry.dev/v1alpha1"]
    kind: Literal["RegistryCluster"]
    metadata: Metadata = Metadata()
    spec: Spec


class _Contradiction(ValueError):
    """Values that are right each for itself and not together; carries path and text of each."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {text}" for path, text in problems))
        self.problems = problems


def _contradictions(spec: Spec) -> Iterator[tuple[str, str]]:
    if len(spec.nodes) == 2:
        yield "nodes", "two servers cannot outvote a lost one: give three to five, or one to try things out"
    names: dict[str, int] = {}
    owners: dict[str, str] = {}
    for index, node in enumerate(spec.nodes):
        if node.name in names:
            yield f"nodes[{index}].name", f"{node.name} is the name of nodes[{names[node.name]}] as well"
        names.setdefault(node.name, index)
        for field, address in (("address", node.address), ("secondaryAddress", node.secondary_address)):
            if address is None:
                continue
            path = f"nodes[{index}].{field}"
            if address in owners:
                yield path, f"{address} is {owners[address]} as well"
            owners.setdefault(address, path)
            if address in spec.vip.addresses:
                yield path, f"{address} is the VIP, which belongs to no server"
        if is_ipv6(node.address) != is_ipv6(spec.nodes[0].address):
            yield f"nodes[{index}].address", "must be of the same family as nodes[0].address"
        if node.secondary_address and is_ipv6(node.secondary_address) == is_ipv6(node.address):
            yield f"nodes[{index}].secondaryAddress", "must be of the other family than address"
    yield from _vip_contradictions(spec)


def _vip_contradictions(spec: Spec) -> Iterator[tuple[str, str]]:
    if is_ipv6(spec.vip.address) != is_ipv6(spec.nodes[0].address):
        yield "vip.address", "must be of the same family as nodes[0].address"
    if spec.vip.secondary_address is not None:
        if is_ipv6(spec.vip.secondary_address) == is_ipv6(spec.vip.address):
            yield "vip.secondaryAddress", "must be of the other family than vip.address"
        if any(node.secondary_address is None for node in spec.nodes):
            yield "vip.secondaryAddress", "needs a secondaryAddress at every node"
    if len(set(spec.mirrors)) != len(spec.mirrors):
        yield "mirrors", "names a registry twice"


def load(path: Path | None) -> RegistryCluster:
    """Read the cluster file *path*, ``./cluster.yaml`` if None. Raises ConfigError with every problem at once."""
    if path is None and not DEFAULT_FILE.exists():
        raise ConfigError(
            "no cluster file: there is no ./cluster.yaml here, and -f names no other. This is the smallest one:\n\n"
            + SMALLEST,
            hint="write it with your addresses, then run this again, or name yours with -f FILE",
            code="ConfigMissing",
        )
    path = DEFAULT_FILE if path is None else path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", code="ConfigUnreadable") from error
    return parse(text, str(path))


def parse(text: str, name: str) -> RegistryCluster:
    """The cluster that *text* (YAML) describes; *name* stands in errors. Raises ConfigError."""
    try:
        document = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506  a SafeLoader that refuses a key given twice
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {error}", code="ConfigNotYaml") from error
    if not isinstance(document, Mapping):
        raise ConfigError(f"{name} holds no mapping", hint=f"this is the smallest file:\n\n{SMALLEST}")
    try:
        return RegistryCluster.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{name} is wrong", problems=list(_explain(error))) from None


class _UniqueKeys(yaml.SafeLoader):
    """YAML takes the last of two equal keys and says nothing; a forgotten node must not vanish so."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _explain(error: ValidationError) -> Iterator[ConfigProblem]:
    found = error.errors()
    for item in found:
        place = item["loc"]
        if item["type"] == "too_short" and any(place == other["loc"][: len(place)] for other in found if other != item):
            continue  # pydantic does not count items that are wrong, and those are told anyway
        path = _path(place)
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, _Contradiction):
            for relative, text in cause.problems:
                yield ConfigProblem(f"{path}.{relative}", text)
        elif item["type"] == "extra_forbidden":
            yield ConfigProblem(path, f"unknown key{_suggestion(item['loc'])}")
        elif item["type"] == "missing":
            yield ConfigProblem(path, "is missing")
        elif item["type"] in ("too_short", "too_long"):
            context = item["ctx"]
            bound = f"least {context['min_length']}" if "min_length" in context else f"most {context['max_length']}"
            yield ConfigProblem(path, f"must have at {bound}, and has {context['actual_length']}")
        elif isinstance(cause, ValueError):
            yield ConfigProblem(path, f"{cause} (it is {item['input']!r})")
        else:
            text = item["msg"][0].lower() + item["msg"][1:]
            shown = f" (it is {item['input']!r})" if isinstance(item["input"], str | int | float | bool) else ""
            yield ConfigProblem(path, f"{text}{shown}")


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def _suggestion(location: tuple[int | str, ...]) -> str:
    model: type[BaseModel] | None = RegistryCluster
    for part in location[:-1]:
        if isinstance(part, int) or model is None:
            continue
        model = next((model_of(f.annotation) for n, f in model.model_fields.items() if part in (n, f.alias)), None)
    if model is None:
        return ""
    known = [field.alias or name for name, field in model.model_fields.items()]
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f", did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def model_of(annotation: object) -> type[BaseModel] | None:
    """The model in the annotation of a field (``tuple[Node, ...]``: Node); None if it is a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for argument in get_args(annotation) if (model := model_of(argument))), None)


def dump(cluster: RegistryCluster) -> str:
    """The cluster as YAML with every default written out."""
    return yaml.safe_dump(cluster.model_dump(by_alias=True, exclude_none=True, mode="json"), sort_keys=False)
