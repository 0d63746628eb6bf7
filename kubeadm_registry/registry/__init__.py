"""A client of the OCI distribution API, as far as verifying and seeding need it.

Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
"""

from kubeadm_registry.registry.client import Login, Registry
from kubeadm_registry.registry.upload import PIECE, Upload

__all__ = ["PIECE", "Login", "Registry", "Upload"]
