"""What one look at the registry finds, before anything is known of since when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kubeadm_registry.retention.inventory import Manifest
from kubeadm_registry.retention.reasons import Reason


@dataclass(frozen=True, slots=True)
class Held:
    """What one repository holds: digests by *tags*, and all *manifests*, those without a tag as well.

    *buried* are tags that a broken run has left: they mean a tombstone, and are none.
    """

    tags: Mapping[str, str]
    manifests: frozenset[str]
    buried: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Holdings:
    """Everything that was found: *repositories* by name, *manifests* and the sizes of *blobs* by digest.

    *unread* are repositories that are there and could not be read; *problems* say why, and then no plan is made.
    """

    repositories: Mapping[str, Held]
    manifests: Mapping[str, Manifest]
    blobs: Mapping[str, int]
    unread: frozenset[str] = frozenset()
    problems: tuple[Reason, ...] = field(default=())
