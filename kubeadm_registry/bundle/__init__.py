"""The bundle: one file that carries programs and images across an air gap, each by its digest."""

from kubeadm_registry.bundle.bundle import Bundle
from kubeadm_registry.bundle.catalogue import version_command
from kubeadm_registry.bundle.delta import diff
from kubeadm_registry.bundle.images import platforms
from kubeadm_registry.bundle.programs import Program
from kubeadm_registry.bundle.signing import check, opened, sign_file
from kubeadm_registry.bundle.tool import NAME as TOOL
from kubeadm_registry.bundle.verify import inspect, problems, verify

__all__ = [
    "TOOL",
    "Bundle",
    "Program",
    "check",
    "diff",
    "inspect",
    "opened",
    "platforms",
    "problems",
    "sign_file",
    "verify",
    "version_command",
]
