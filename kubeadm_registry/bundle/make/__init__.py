"""How a bundle is made on a machine that reaches the world: programs and images are fetched, checked and packed."""

from kubeadm_registry.bundle.make.context import Mirror
from kubeadm_registry.bundle.make.create import create
from kubeadm_registry.bundle.make.images import FromLayout
from kubeadm_registry.bundle.make.inputs import images_from, named, told_of
from kubeadm_registry.bundle.make.sources import choose

__all__ = ["FromLayout", "Mirror", "choose", "create", "images_from", "named", "told_of"]
