"""The RUNBOOK: the real commands for this room, for a person at a server's console without this tool."""

from __future__ import annotations

from kubeadm_registry import paths, secrets
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import agent, distribution, garage, haproxy, keepalived, network, zot
from kubeadm_registry.engine.changes import File, Steps
from kubeadm_registry.engine.render import render
from kubeadm_registry.oci import canary
from kubeadm_registry.transport.host import Host

PATH = f"{paths.ETC}/RUNBOOK"
_FRONTENDS = {zot.NAME: zot.UNIT, distribution.NAME: distribution.UNIT}


def units(cluster: Cluster) -> tuple[str, ...]:
    """Our units in the order in which they start; they stop the other way round."""
    frontend = _FRONTENDS[cluster.spec.frontend.type]
    return (network.UNIT, garage.UNIT, frontend, *paths.HAPROXY_UNITS, agent.UNIT, keepalived.UNIT)


def key(cluster: Cluster, repository: str, digest: str) -> str:
    """Where the frontend keeps the blob *digest* of *repository* in its bucket."""
    hexadecimal = digest.removeprefix("sha256:")
    if cluster.spec.frontend.type == zot.NAME:
        return f"{repository}/blobs/sha256/{hexadecimal}"
    return f"docker/registry/v2/blobs/sha256/{hexadecimal[:2]}/{hexadecimal}/data"


def install(cluster: Cluster, host: Host) -> Steps:
    """Write the RUNBOOK; there is no secret in it."""
    node, spec = cluster.node(host), cluster.spec
    yield File(
        PATH,
        render(
            "runbook/RUNBOOK.j2",
            cluster=cluster.config.metadata.name,
            node=node,
            nodes=spec.nodes,
            vips=[
                (address, keepalived.link(host, own).interface)
                for own, address in zip(node.addresses, spec.vip.addresses, strict=False)
            ],
            frontend=spec.frontend.type,
            anonymous_pull=spec.proxy.anonymous_pull,
            units=units(cluster),
            data=spec.data_directory,
            garage=cluster.program(garage.NAME).executable,
            garage_config=garage.CONFIG,
            bucket=garage.bucket(cluster),
            s3=garage.s3_url(),
            key=key(cluster, canary.REPOSITORY, canary.LAYER.digest),
            canary=canary,
            python=agent.python(cluster, host),
            secrets=secrets.PATH,
            pem=paths.NODE_PEM,
            auth_map=haproxy.AUTH_MAP,
            paths=paths,
        ),
    )
