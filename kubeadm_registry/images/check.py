"""Whether images are in the registry with all that they consist of."""

from __future__ import annotations

from collections.abc import Sequence

from kubeadm_registry.images import graph
from kubeadm_registry.images.inventory import PATIENCE
from kubeadm_registry.images.names import Place
from kubeadm_registry.images.pool import Connect, each
from kubeadm_registry.images.seed import Item
from kubeadm_registry.registry import Api, retry


def find(connect: Connect, where: Sequence[Place]) -> tuple[list[Item], dict[str, str]]:
    """The images at *where* with all that they consist of; by name, why the others cannot be read.

    What of them can be read at each server is for `seed.prove` to say. Raises RegistryError.
    """

    reader = graph.Reader(PATIENCE)

    def one(registry: Api, place: Place) -> Item | str:
        found = reader.read(registry, place)
        if found is None or isinstance(found, str):
            return found or "is not in the registry"
        return retry(lambda: found.without_absent_layers(registry), PATIENCE).item()

    items: list[Item] = []
    missing: dict[str, str] = {}
    for place, outcome in each(connect, one, where):
        if isinstance(outcome, str):
            missing[str(place)] = outcome
        else:
            items.append(outcome)
    return items, missing
