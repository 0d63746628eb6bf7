"""A look at the registry through the virtual IP and through each node."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

from kubeadm_registry.access import executor, replacing
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.errors import Error
from kubeadm_registry.operator import health, probes
from kubeadm_registry.operator.conditions import rfc3339
from kubeadm_registry.operator.way import Way
from kubeadm_registry.retention.pulls import Pulls


def look(cluster: RegistryCluster, the_way: Way) -> tuple[probes.Probe, list[health.Seen]]:
    """What the virtual IP and each node say, all asked side by side."""
    nodes = cluster.spec.nodes
    with ThreadPoolExecutor(1 + 2 * len(nodes), "probe") as pool:
        vip = pool.submit(probes.probe, the_way, cluster.spec.vip.address)
        served = [pool.submit(probes.probe, the_way, node.address) for node in nodes]
        agents = [pool.submit(probes.agent, the_way, node.address) for node in nodes]
        seen = [
            health.Seen(node.name, probe.result(), agent.result())
            for node, probe, agent in zip(nodes, served, agents, strict=True)
        ]
        return vip.result(), seen


def of_node(one: health.Seen, authority_ends: datetime, now: datetime) -> dict[str, Any]:
    """What the status says of a node besides its conditions, as `kubeadm-registry status` does."""
    says = one.says
    found: dict[str, Any] = {
        "name": one.name,
        "reachable": one.probe.reason != "Unreachable" or says is not None,
        "fit": bool(says.values.get("fit")) if says is not None else one.probe.serves,
    }
    if one.probe.why:
        found["message"] = one.probe.why
    if says is not None:
        found["conditions"] = sorted(says.conditions)
        if (level := says.values.get("level")) is not None:
            found["level"] = int(level)
    if one.probe.ends is not None:
        found["certificateExpires"] = rfc3339(one.probe.ends.timestamp())
        found["certificateDays"] = (one.probe.ends - now).days
    return {**found, "authorityExpires": rfc3339(authority_ends.timestamp())}


def pulls(cluster: RegistryCluster, the_way: Way) -> Pulls:
    """What the nodes of *cluster* recorded of pulls; there may be others, unless all nodes of the registry can say."""
    nodes = the_way.nodes(cluster) or []
    names = {node.name for node in cluster.spec.nodes}
    try:
        listed = replacing.listed(nodes)
    except Error:
        return executor.pulls(nodes, len(names) + 1)
    return executor.pulls(nodes, len(names | (listed.nodes.keys() if listed is not None else set())))
