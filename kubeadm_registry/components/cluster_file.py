"""The cluster file as it was applied last, on each node: for people who have lost theirs, or have an older one.

Nothing reads its settings there. The operator's helper has a copy of its own, since not all registries have that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kubeadm_registry import config, paths
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.engine.changes import File, Steps
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.transport.host import Host, side_by_side

PATH = f"{paths.ETC}/cluster.yaml"
_HEAD = (
    "# The cluster file as kubeadm-registry applied it last, with all defaults. A change here has no effect: change a\n"
    "# copy, and run `kubeadm-registry upgrade` with it. Not in it are host keys of nodes, and files of spec.ssh.\n"
)


def install(cluster: Cluster, _: Host) -> Steps:
    """Keep the cluster file; there is no secret in it."""
    yield File(PATH, _content(cluster))


def _content(cluster: Cluster) -> bytes:
    """Whether a file has host keys depends on who runs the command: the operator's helper adds those that it knows."""
    file = cluster.config.without_files()
    file = file.with_spec(nodes=tuple(node.model_copy(update={"host_key": None}) for node in file.spec.nodes))
    return f"{_HEAD}{config.dump(file)}".encode()


def changes(cluster: Cluster) -> list[str]:
    """The settings, by their path, of which the nodes were last told otherwise than the cluster's file says.

    Which nodes there are is not among them, nor how to reach them.
    """
    wanted, now = _content(cluster), dict(_settings(cluster.config))
    found: set[str] = set()
    for content in set(side_by_side(lambda host: host.read(PATH), cluster.hosts)):
        if content is not None and content != wanted and (file := _parsed(content)) is not None:
            then = dict(_settings(file))
            found |= {path for path in {*now, *then} if now.get(path) != then.get(path)}
    return sorted(found)


def _parsed(content: bytes) -> RegistryCluster | None:
    """The file that a node has; None if this release cannot read it."""
    try:
        return config.parse(content.decode(errors="replace"), PATH, elsewhere=True)
    except ConfigError:
        return None


def _settings(file: RegistryCluster) -> Iterator[tuple[str, Any]]:
    described = file.model_dump(by_alias=True, mode="json", exclude={"spec": {"nodes", "ssh"}})
    return _values(described["spec"], "spec")


def _values(found: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(found, Mapping):
        yield path, found
        return
    for key, value in found.items():
        yield from _values(value, f"{path}.{key}")
