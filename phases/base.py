"""What every node needs before its services."""

from kubeadm_registry.components import common
from kubeadm_registry.engine.phase import Phase

BASE = Phase("base", "Create users, directories and the systemd slice", common.base)
