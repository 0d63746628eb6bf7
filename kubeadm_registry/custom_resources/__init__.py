"""The custom resources of Kubernetes, and what guards them: made from the models that read the files."""

from kubeadm_registry.custom_resources.definitions import DEFINITIONS, GROUP, VERSION
from kubeadm_registry.custom_resources.manifests import manifests

__all__ = ["DEFINITIONS", "GROUP", "VERSION", "manifests"]
