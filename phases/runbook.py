"""Recovery commands for a node's console, without this tool."""

from kubeadm_registry.components import runbook
from kubeadm_registry.engine.phase import Phase

RUNBOOK = Phase("runbook", f"Write {runbook.PATH}: recovery commands for a node's console", runbook.install)
