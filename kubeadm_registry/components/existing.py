"""What a server was set up with, read from what is on it: some of that cannot be changed afterwards."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

from kubeadm_registry.components import garage
from kubeadm_registry.errors import Error
from kubeadm_registry.transport.host import Host


@dataclass(frozen=True, slots=True)
class Existing:
    """The storage of a server as its configuration has it: the file is there from the first init to reset."""

    data_directory: str
    copies: int
    members: Mapping[str, str]
    """The address of each server by Garage's id of it."""


def read(host: Host) -> Existing | None:
    """What *host* was set up with; None on a bare one. Raises Error if that cannot be told."""
    content = host.read(garage.CONFIG)
    if content is None:
        return None
    try:
        document = tomllib.loads(content.decode())
        metadata = document["metadata_dir"]
        peers = [peer.partition("@")[::2] for peer in document["bootstrap_peers"]]
        members = {identity: place.rpartition(":")[0].strip("[]") for identity, place in peers}
        return Existing(metadata.removesuffix(f"/{garage.NAME}/meta"), document["replication_factor"], members)
    except (ValueError, KeyError, AttributeError) as error:
        raise Error(
            f"{garage.CONFIG} is not as init wrote it: {type(error).__name__} {error}", host=host.name,
            code="ExistingUnknown", hint="put the file back as it was on the other servers",
        ) from error  # fmt: skip


def formed(host: Host, data_directory: str) -> bool:
    """Whether the storage in *data_directory* may have a layout; before that it stores nothing, and all may be changed.

    Garage writes the file when it is told of a layout first (LayoutManager::save_cluster_layout of Garage 2.3).
    """
    return host.query("test", "-s", f"{data_directory}/{garage.NAME}/meta/cluster_layout").ok
