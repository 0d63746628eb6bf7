"""The least that a frontend needs: what services.py asks for, in one module with one directory of templates."""

from __future__ import annotations

from kubeadm_registry import paths
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import s3
from kubeadm_registry.components.services import Backend
from kubeadm_registry.components.units import Port, Service, serve
from kubeadm_registry.engine.changes import Directory, File, Steps
from kubeadm_registry.transport.host import Host

NAME = "plain"
CONFIG = f"{paths.ETC}/plain/plain.conf"
SINGLE_WRITER = False
FREES_BLOBS = False
SERVICE = Service(
    NAME,
    units=(paths.unit(NAME),),
    user=paths.user(NAME),
    program=NAME,
    restarted_by=(CONFIG,),
    ports=(Port(paths.FRONTEND_PORT, local=True),),
    calls=(paths.S3_PORT,),
)


def agent_frontend() -> dict[str, object]:
    return {}


def key(repository: str, digest: str) -> str:
    return f"{repository}/{digest}"


def records(_: str) -> tuple[str, ...]:
    return ()


def install(cluster: Cluster, _: Host, storage: Backend) -> Steps:
    config = File(CONFIG, f"{s3.url()}/{s3.bucket(cluster.spec)}\n".encode())
    yield Directory(f"{paths.ETC}/plain")
    yield config
    yield from serve(
        SERVICE, (config,), gate=storage.gate(cluster), user=SERVICE.user, program=cluster.program(NAME).executable
    )
