"""Recovery commands for a node's console, without this tool."""

from kubeadm_registry.components import runbook
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.phases.immutable import OF_MEMBERS

RUNBOOK = Phase("runbook", "Write the RUNBOOK: recovery without this tool", runbook.install, checks=OF_MEMBERS)
