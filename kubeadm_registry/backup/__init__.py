"""The backup: a small file with what the nodes keep to themselves, and the list of images that bundles bring back.

The file is a tar archive of ``index.json``, its signatures, and the content, which age encrypts: so ``tar``, ``age``,
``openssl`` and ``ssh-keygen`` read all of it where this program is not at hand (docs/backup.md).
"""

from kubeadm_registry.backup.age import Identities, Passphrase, PublicKeys
from kubeadm_registry.backup.contents import Contents, Image, Member, Pin, Version
from kubeadm_registry.backup.file import Backup, read, write

__all__ = [
    "Backup",
    "Contents",
    "Identities",
    "Image",
    "Member",
    "Passphrase",
    "Pin",
    "PublicKeys",
    "Version",
    "read",
    "write",
]
