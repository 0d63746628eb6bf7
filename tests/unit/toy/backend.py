"""The least that a backend needs: what services.py asks for, in one module with one directory of templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kubeadm_registry import paths
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import s3
from kubeadm_registry.components.existing import Existing
from kubeadm_registry.components.units import Port, Service, serve
from kubeadm_registry.engine.changes import Condition, Directory, File, Steps, Wait, unit_state
from kubeadm_registry.engine.render import render
from kubeadm_registry.transport.host import Host

NAME = "toy"
CONFIG = f"{paths.ETC}/toy/toy.conf"
REGION = "toyland"
BLOCK = 1000
DATA: tuple[str, ...] = ("blobs",)
SERVICE = Service(
    NAME,
    units=(paths.unit(NAME),),
    user=paths.user(NAME),
    program=NAME,
    restarted_by=(CONFIG,),
    ports=(Port(7000), Port(paths.S3_PORT, local=True)),
    inspect=f"toy --status {CONFIG}",
)


def copies(servers: int) -> int:
    return servers


def clear(_: Cluster, __: Host) -> Steps:
    yield from ()


def install(cluster: Cluster, host: Host) -> Steps:
    data, owner = f"{cluster.spec.data_directory}/{NAME}", f"{SERVICE.user}:{SERVICE.user}"
    members = {cluster.secrets.node_id(node.name): node.address for node in cluster.spec.nodes}
    config = File(CONFIG, render("toy/toy.conf.j2", data=data, members=members))
    yield Directory(f"{paths.ETC}/toy")
    for directory in (data, f"{data}/blobs"):
        yield Directory(directory, mode=0o700, owner=owner, recursive=True)
    yield config
    yield from serve(
        SERVICE,
        (config,),
        gate=gate(cluster),
        user=SERVICE.user,
        program=cluster.program(NAME).executable,
        config=CONFIG,
    )


def form(cluster: Cluster, _: Host) -> Steps:
    yield File(f"{cluster.spec.data_directory}/{NAME}/blobs/bucket", s3.bucket(cluster.spec).encode())


def move(cluster: Cluster, host: Host) -> Steps:
    yield from form(cluster, host)


def copied(_: Cluster, __: Host) -> Steps:
    yield Wait("the toy runs", _runs)


def joined(_: Cluster, __: Host) -> Steps:
    yield Wait("the toy runs", _runs)


def _runs(host: Host) -> str | None:
    return None if unit_state(host, SERVICE.unit).active else "it does not"


def gate(cluster: Cluster) -> Condition:
    return lambda _: next((why for member in cluster.hosts if (why := _runs(member))), None)


def existing(host: Host) -> Existing | None:
    content = host.read(CONFIG)
    if content is None:
        return None
    (_, data), *members = (line.split() for line in content.decode().splitlines())
    return Existing(NAME, data.removesuffix(f"/{NAME}"), len(members), dict(members))


def formed(host: Host, data_directory: str) -> bool:
    return host.query("test", "-s", f"{data_directory}/{NAME}/blobs/bucket").ok


def is_ours(_: Cluster, host: Host) -> bool:
    return host.read(CONFIG) is not None


def stored(_: Cluster, __: Host) -> int:
    return 0


def places(_: Cluster, __: Host) -> frozenset[str]:
    return frozenset()


def incoming(_: Cluster, __: Host) -> int:
    return 0


def abandon(_: Cluster, __: Host, ___: int) -> int:
    return 0


def blocks(_: Cluster, __: Host, keys: Sequence[str]) -> list[Mapping[str, int] | None]:
    return [{} for _ in keys]


def lacking(_: Cluster, __: Host, ___: Mapping[str, int]) -> frozenset[str]:
    return frozenset()


def lost(cluster: Cluster) -> Mapping[str, int]:
    return {host.name: 0 for host in cluster.hosts}


def agent_storage() -> dict[str, object] | None:
    return None


def agent_peer(_: Cluster, __: str) -> dict[str, object]:
    return {}


def agent_token(_: Cluster) -> str:
    return ""
