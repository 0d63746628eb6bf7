"""A client of the OCI distribution API: our own registry, and those that images come from.

Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
"""

from kubeadm_registry.registry.client import SILENCE, Api, Deleted, Login, Registry, cosign_tags, referrers_tag
from kubeadm_registry.registry.limit import Limit
from kubeadm_registry.registry.retries import retry
from kubeadm_registry.registry.upload import PIECE, Upload, push_blob
from kubeadm_registry.registry.upstream import Upstream

__all__ = [
    "PIECE",
    "SILENCE",
    "Api",
    "Deleted",
    "Limit",
    "Login",
    "Registry",
    "Upload",
    "Upstream",
    "cosign_tags",
    "push_blob",
    "referrers_tag",
    "retry",
]
