"""What every server has before its services."""

from kubeadm_registry.components import common
from kubeadm_registry.engine.workflow import Phase

BASE = Phase("base", "Make users, folders and the slice of the services", common.base)
