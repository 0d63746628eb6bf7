"""Whether images are in the registry with all that they consist of."""

from __future__ import annotations

from collections.abc import Sequence

from kubeadm_registry.errors import RegistryError
from kubeadm_registry.images import graph
from kubeadm_registry.images.inventory import PATIENCE
from kubeadm_registry.images.names import Place
from kubeadm_registry.images.pool import WORKERS, Connect, each
from kubeadm_registry.images.seed import Item
from kubeadm_registry.registry import Api, retry


def find(connect: Connect, where: Sequence[Place], workers: int = WORKERS) -> tuple[list[Item], dict[str, str]]:
    """The images at *where* with all that they consist of; and those, by name, that are not there, or are no images.

    What of them can be read at each server is for `seed.prove` to say. Raises RegistryError.
    """

    def one(registry: Api, place: Place) -> Item | str:
        try:
            found = retry(lambda: graph.read(registry, place), PATIENCE)
        except RegistryError as error:
            if error.code != "ImageInvalid":
                raise
            return error.message
        return "is not in the registry" if found is None else found.item()

    items: list[Item] = []
    missing: dict[str, str] = {}
    for place, outcome in each(connect, one, where, workers):
        if isinstance(outcome, str):
            missing[str(place)] = outcome
        else:
            items.append(outcome)
    return items, missing
