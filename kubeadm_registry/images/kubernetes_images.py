"""The images that kubeadm asks for: the list that ``kubeadm config images list`` prints, for each version.

Source: cmd/kubeadm/app/images/images.go and cmd/kubeadm/app/constants/constants.go of kubernetes/kubernetes (the list
itself, CoreDNSVersion, SupportedEtcdVersion, PauseVersion), read in the first and the last known patch of each minor
version; where these differ, the changelog of that minor version says which patch brought the change.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from kubeadm_registry.config.values import KUBERNETES_REGISTRY
from kubeadm_registry.errors import ConfigError

_COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")


class _Since(NamedTuple):
    """What kubeadm has asked for since a patch of a minor version."""

    patch: int
    coredns: str
    pause: str
    etcd: str


#: For each minor version of Kubernetes 1: the last patch that is known, and what changed when.
_KNOWN = {
    31: (14, (_Since(0, "v1.11.1", "3.10", "3.5.15-0"), _Since(1, "v1.11.3", "3.10", "3.5.15-0"),
              _Since(14, "v1.11.3", "3.10", "3.5.24-0"))),
    32: (13, (_Since(0, "v1.11.3", "3.10", "3.5.16-0"), _Since(10, "v1.11.3", "3.10", "3.5.24-0"))),
    33: (13, (_Since(0, "v1.12.0", "3.10", "3.5.21-0"), _Since(6, "v1.12.0", "3.10", "3.5.24-0"))),
    34: (4, (_Since(0, "v1.12.1", "3.10.1", "3.6.4-0"), _Since(2, "v1.12.1", "3.10.1", "3.6.5-0"))),
    35: (4, (_Since(0, "v1.13.1", "3.10.1", "3.6.6-0"),)),
    36: (3, (_Since(0, "v1.14.2", "3.10.2", "3.6.8-0"),)),
    37: (2, (_Since(0, "v1.14.6", "3.10.2", "3.7.0-0"),)),
}  # fmt: skip


def known_patches(minor: int) -> tuple[str, ...]:
    """The versions of Kubernetes 1.*minor* whose images are known, oldest first."""
    return tuple(f"v1.{minor}.{patch}" for patch in range(_KNOWN[minor][0] + 1)) if minor in _KNOWN else ()


def images_of(version: str) -> tuple[str, ...]:
    """The full names of the images that kubeadm *version* (``v1.36.3`` or ``1.36.3``) asks for, in its own order.

    Raises ConfigError for a version that is not known here: a patch release may ask for another etcd, and an image
    that is silently missing shows only when ``kubeadm init`` fails.
    """
    found = re.fullmatch(r"v?1\.([0-9]{1,3})\.([0-9]{1,3})", version)
    if found is None:
        raise ConfigError(
            f"{version!r} is not a valid Kubernetes version",
            hint="write it as v1.36.3",
            code="KubernetesVersionInvalid",
        )
    minor, patch = int(found[1]), int(found[2])
    last, changes = _KNOWN.get(minor, (-1, ()))
    if patch > last:
        known = ", ".join(f"1.{minor}.0 to 1.{minor}.{last}" for minor, (last, _) in _KNOWN.items())
        raise ConfigError(
            f"the images of Kubernetes {version} are not known; known versions: {known}",
            hint=f"list them with kubeadm {version} (`kubeadm config images list --kubernetes-version {version} "
            "> FILE`) and pass the file with --images-from",
            code="KubernetesVersionUnknown",
        )
    now = [since for since in changes if since.patch <= patch][-1]
    tags = {
        **dict.fromkeys(_COMPONENTS, f"v1.{minor}.{patch}"),
        "coredns/coredns": now.coredns,
        "pause": now.pause,
        "etcd": now.etcd,
    }
    return tuple(f"{KUBERNETES_REGISTRY}/{path}:{tag}" for path, tag in tags.items())
