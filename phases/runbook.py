"""What a person needs at a server's console when this tool is not at hand."""

from kubeadm_registry.components import runbook
from kubeadm_registry.engine.workflow import Phase

RUNBOOK = Phase("runbook", f"Write {runbook.PATH}: recovery commands for a node's console", runbook.install)
