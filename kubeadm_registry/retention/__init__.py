"""Which images may be deleted: a pure function of what the registry holds, what is in use, a policy and the time."""

from kubeadm_registry.retention.inventory import Inventory, Manifest, Repository, Seen, Tag
from kubeadm_registry.retention.plan import plan
from kubeadm_registry.retention.policy import RegistryPolicy
from kubeadm_registry.retention.protected import Protected, protect
from kubeadm_registry.retention.reasons import Reason
from kubeadm_registry.retention.record import Deletion, Kept, Plan, Refused
from kubeadm_registry.retention.uses import Use, Workloads, grouped

__all__ = [
    "Deletion",
    "Inventory",
    "Kept",
    "Manifest",
    "Plan",
    "Protected",
    "Reason",
    "Refused",
    "RegistryPolicy",
    "Repository",
    "Seen",
    "Tag",
    "Use",
    "Workloads",
    "grouped",
    "plan",
    "protect",
]
