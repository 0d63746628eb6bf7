"""Where frontend and storage meet: every storage serves S3 at one loopback address, every frontend has its bucket."""

from __future__ import annotations

from kubeadm_registry import addresses, paths
from kubeadm_registry.config import Spec


def bucket(spec: Spec) -> str:
    """The bucket of the frontend: each kind has its own, for neither can read what the other writes."""
    return f"registry-{spec.frontend.type}"


def url() -> str:
    """Where the frontend finds the storage."""
    return addresses.url(paths.S3_ADDRESS, paths.S3_PORT, scheme="http")
