"""zot: the frontend with one writer. On disk every server has a standby; becoming the writer is an act of the agent.

Two zot processes that write one bucket lose tags silently: both answer 201, and the last ``index.json`` wins. So zot
starts read-only, from a copy of its standby configuration in /run; the agent of the one writer gives that copy the
writer's content in place, which zot notices within 50 ms. It has no login: with one it would read the whole store at
start, 7 to 12 s with 1000 repositories. It collects no garbage: that is retention's work, which knows what pods run.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kubeadm_registry import paths
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import s3
from kubeadm_registry.components.units import Port, Service, serve
from kubeadm_registry.engine.changes import Directory, File, Steps
from kubeadm_registry.transport.host import Host

if TYPE_CHECKING:
    from kubeadm_registry.components.services import Backend

NAME = "zot"
UNIT = paths.unit(NAME)
USER = paths.user(NAME)
ETC = f"{paths.ETC}/zot"
STANDBY_CONFIG = f"{ETC}/standby.json"
WRITER_CONFIG = f"{ETC}/writer.json"
RUN = f"{paths.RUN}/zot"
RUNTIME_CONFIG = f"{RUN}/config.json"
SINGLE_WRITER = True
FREES_BLOBS = True
SERVICE = Service(
    NAME,
    units=(UNIT,),
    user=USER,
    program=NAME,
    restarted_by=(STANDBY_CONFIG, WRITER_CONFIG),
    ports=(Port(paths.FRONTEND_PORT, local=True),),
    calls=(paths.S3_PORT,),
    scratch=True,
)

_READ = ("read",)
_WRITE = ("read", "create", "update", "delete")


def configuration(cluster: Cluster, region: str, *, writer: bool) -> bytes:
    """zot's configuration as standby or as *writer*, for a storage of this S3 *region*."""
    secrets = cluster.secrets
    document = {
        "distSpecVersion": "1.1.1",
        "storage": {
            "rootDirectory": f"{cluster.spec.data_directory}/zot",
            # Deduplication on S3 needs a cache that all share; a local one makes blobs unreadable elsewhere.
            "dedupe": False,
            "remoteCache": False,
            "gc": False,
            "storageDriver": {
                "name": "s3",
                "region": region,
                "regionendpoint": s3.url(),
                "forcepathstyle": True,
                "bucket": s3.bucket(cluster.spec),
                "secure": False,
                "accesskey": secrets.s3_key_id,
                "secretkey": secrets.s3_secret_key,
                # Strings: as numbers they reach the driver in scientific notation, and zot dies at start.
                "chunksize": "10485760",
                "multipartcopythresholdsize": "5368709120",
                "loglevel": "off",
            },
        },
        "http": {
            "address": paths.LOOPBACK,
            "port": str(paths.FRONTEND_PORT),
            "compat": ["docker2s2"],
            # They would bound a whole body, 60 s by default: too short for a large layer.
            "readTimeout": "0s",
            "writeTimeout": "0s",
            "accessControl": {"repositories": {"**": {"anonymousPolicy": _WRITE if writer else _READ}}},
        },
        "log": {"level": "warn"},
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def agent_frontend() -> dict[str, object]:
    """The configuration that zot watches, and the two that the agent gives it in turn."""
    return {"runtime_config": RUNTIME_CONFIG, "writer_config": WRITER_CONFIG, "standby_config": STANDBY_CONFIG}


def key(repository: str, digest: str) -> str:
    """Where zot keeps the blob *digest* of *repository* in its bucket."""
    return f"{repository}/blobs/sha256/{digest.removeprefix('sha256:')}"


def records(repository: str) -> tuple[str, ...]:
    """The files of an OCI layout: zot makes new ones where there are none, and says 404 where it cannot read them."""
    return (f"{repository}/index.json", f"{repository}/oci-layout")


def install(cluster: Cluster, host: Host, storage: Backend) -> Steps:
    """Install zot on loopback as a standby, and start it."""
    # The agent copies the one or the other, and knows what zot knows.
    agent_user = paths.user("agent")
    owner = f"root:{agent_user}"
    program = cluster.program(NAME).executable
    standby, writer = (
        File(
            path,
            configuration(cluster, storage.REGION, writer=path == WRITER_CONFIG),
            mode=0o640,
            owner=owner,
            validate=(program, "verify", "{path}.json"),
            secret_keys=("secretkey",),
        )
        for path in (STANDBY_CONFIG, WRITER_CONFIG)
    )
    yield Directory(ETC, mode=0o750, owner=owner)
    yield Directory(f"{cluster.spec.data_directory}/zot", mode=0o700, owner=f"{USER}:{USER}", recursive=True)
    yield standby
    yield writer
    yield from serve(
        SERVICE,
        (standby, writer),
        gate=storage.gate(cluster),
        user=USER,
        storage=storage.SERVICE.unit,
        agent=agent_user,
        program=program,
        standby=STANDBY_CONFIG,
        run=RUN,
        runtime=RUNTIME_CONFIG,
        data=f"{cluster.spec.data_directory}/zot",
    )
