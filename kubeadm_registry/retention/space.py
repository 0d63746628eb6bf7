"""How large images are, and how many bytes are freed when they go."""

from __future__ import annotations

from collections.abc import Sequence

from kubeadm_registry.retention.decision import Decision
from kubeadm_registry.retention.inventory import Inventory, Manifest


class Space:
    """Sizes in the storage that all repositories share.

    A blob is freed when no manifest that stays, in any repository or in the trash, needs it. It is counted at the first
    deletion that needs it, of images before their parts.
    """

    def __init__(self, inventory: Inventory, decisions: Sequence[Decision]) -> None:
        self._inventory = inventory
        self._sizes: dict[str, int] = {}
        self._freed: dict[tuple[str, str], int] = {}
        going = {decision.name: set(decision.going) for decision in decisions}
        gone = {digest for held in going.values() for digest in held}
        remaining = {
            digest
            for name, repository in inventory.repositories.items()
            for digest in repository.manifests
            if digest not in going[name]
        }
        counted = inventory.manifests.keys() - (gone - remaining)
        for digest in remaining:
            counted.update(_blobs(inventory.manifests[digest]))
        for decision in decisions:
            for image in sorted(decision.images.values(), key=lambda image: image.tags):
                if image.digest in going[decision.name]:
                    self._freed[decision.name, image.digest] = self._count(image.digest, counted)
        for decision in decisions:
            for digest in decision.going:
                if (decision.name, digest) not in self._freed:
                    self._freed[decision.name, digest] = self._count(digest, counted)

    def freed(self, repository: str, digest: str) -> int:
        """The bytes that are freed with the deletion of *digest* from *repository*."""
        return self._freed[repository, digest]

    def first_seen(self, repository: str, digest: str) -> int:
        """When *digest* was first seen in *repository*."""
        return self._inventory.repositories[repository].manifests[digest].first_seen

    def size(self, digest: str) -> int:
        """The bytes of the manifest *digest* with all that it needs and that is there, each once."""
        if digest not in self._sizes:
            self._sizes[digest] = self._count(digest, set())
        return self._sizes[digest]

    def _count(self, digest: str, counted: set[str]) -> int:
        """The bytes of *digest* with its parts that are not in *counted*, which gets them."""
        manifests, sizes = self._inventory.manifests, self._inventory.blobs
        total = 0
        blobs: set[str] = set()
        waiting = [digest]
        while waiting:
            one = waiting.pop()
            manifest = manifests.get(one)
            if manifest is None or one in counted:
                continue
            counted.add(one)
            total += manifest.size
            blobs.update(_blobs(manifest))
            waiting += manifest.children
        blobs -= counted
        counted |= blobs
        return total + sum(sizes.get(blob, 0) for blob in blobs)


def _blobs(manifest: Manifest) -> tuple[str, ...]:
    return (*manifest.blobs, manifest.config) if manifest.config else manifest.blobs
