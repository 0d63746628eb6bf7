"""From a bundle into the registry: what is missing, several blobs at a time, and the proof that all can be read.

Nothing is unpacked: each blob is read from its place in the bundle's file. What the registry has is not sent again,
also after a run that was killed: a blob on its way is noted with the place where it goes on.
"""

from kubeadm_registry.images.seed.contents import Item, plan
from kubeadm_registry.images.seed.proof import absent, prove
from kubeadm_registry.images.seed.seeder import Progress, Seeder

__all__ = ["Item", "Progress", "Seeder", "absent", "plan", "prove"]
