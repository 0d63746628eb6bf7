"""CNCF Distribution: plain, and may be written anywhere, for its tags are objects of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubeadm_registry import paths
from kubeadm_registry.addresses import endpoint
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import s3
from kubeadm_registry.components.units import Port, Service, serve
from kubeadm_registry.engine.changes import Directory, File, Steps
from kubeadm_registry.engine.render import render
from kubeadm_registry.transport.host import Host

if TYPE_CHECKING:
    from kubeadm_registry.components.services import Backend

NAME = "distribution"
UNIT = paths.unit(NAME)
USER = paths.user(NAME)
CONFIG = f"{paths.ETC}/distribution/config.yml"
SINGLE_WRITER = False
SERVICE = Service(
    NAME,
    units=(UNIT,),
    user=USER,
    program=NAME,
    restarted_by=(CONFIG,),
    ports=(Port(paths.FRONTEND_PORT, local=True),),
    calls=(paths.S3_PORT,),
)


def agent_frontend() -> dict[str, object]:
    """Nothing: it may write at any time."""
    return {}


def key(_: str, digest: str) -> str:
    """Where Distribution keeps the blob *digest* in its bucket, which all repositories share."""
    hexadecimal = digest.removeprefix("sha256:")
    return f"docker/registry/v2/blobs/sha256/{hexadecimal[:2]}/{hexadecimal}/data"


def install(cluster: Cluster, host: Host, storage: Backend) -> Steps:
    """Install Distribution on loopback, without a login of its own, and start it."""
    config = File(
        CONFIG,
        render(
            "distribution/config.yml.j2",
            listen=endpoint(paths.LOOPBACK, paths.FRONTEND_PORT),
            secrets=cluster.secrets,
            s3=s3.url(),
            region=storage.REGION,
            bucket=s3.bucket(cluster.spec),
        ),
        owner=f"root:{USER}",
        mode=0o640,
        secret_keys=("secret", "secretkey"),
    )
    yield Directory(f"{paths.ETC}/distribution", mode=0o750, owner=f"root:{USER}")
    yield config
    yield from serve(
        SERVICE,
        (config,),
        gate=storage.gate(cluster),
        user=USER,
        storage=storage.SERVICE.unit,
        program=cluster.program(NAME).executable,
        config=CONFIG,
    )
