"""The RUNBOOK: the recovery commands of this cluster, for a node's console without this tool."""

from __future__ import annotations

from kubeadm_registry import paths, secrets
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import agent, haproxy, pulls, s3
from kubeadm_registry.components.links import link
from kubeadm_registry.components.services import backend, frontend, services, vip_manager
from kubeadm_registry.engine.changes import File, Steps
from kubeadm_registry.engine.render import render
from kubeadm_registry.oci import canary
from kubeadm_registry.transport.host import Host

PATH = f"{paths.ETC}/RUNBOOK"


def install(cluster: Cluster, host: Host) -> Steps:
    """Write the RUNBOOK; there is no secret in it."""
    node, spec = cluster.node(host), cluster.spec
    registry, storage, vip = frontend(spec), backend(spec), vip_manager(spec)
    # They stop the other way round.
    units = [unit for service in services(spec) for unit in service.units]
    yield File(
        PATH,
        render(
            "runbook/RUNBOOK.j2",
            cluster=cluster.config.metadata.name,
            node=node,
            nodes=spec.nodes,
            vips=[
                (address, link(host, own).interface)
                for own, address in zip(node.addresses, spec.vip.addresses, strict=False)
            ],
            frontend=registry.SERVICE.name,
            anonymous_pull=spec.proxy.anonymous_pull,
            units=units,
            # Started first, stopped last: it reads what the others log.
            all_units=[*pulls.SERVICE.units, *units],
            units_before_frontend=units[units.index(registry.SERVICE.unit) + 1 :],
            data=spec.data_directory,
            backend=storage.SERVICE.name,
            storage_unit=storage.SERVICE.unit,
            storage_program=cluster.program(storage.SERVICE.program).executable,
            storage_config=storage.CONFIG,
            region=storage.REGION,
            vip_manager=vip.SERVICE.name,
            vip_unit=vip.SERVICE.unit,
            bucket=s3.bucket(spec),
            s3=s3.url(),
            key=registry.key(canary.REPOSITORY, canary.LAYER.digest),
            canary=canary,
            python=agent.python(cluster, host),
            secrets=secrets.PATH,
            pem=paths.NODE_PEM,
            auth_map=haproxy.AUTH_MAP,
            paths=paths,
        ),
    )
