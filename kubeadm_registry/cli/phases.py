"""The phases of a workflow as help shows them."""

from __future__ import annotations

from kubeadm_registry.engine.phase import Workflow, leaves


def phase_table(workflow: Workflow) -> str:
    """The phases of *workflow* with their summaries, as help shows them; generated, so it cannot lie."""
    rows = [("  " * path.count("/") + path, phase.summary) for path, phase in leaves(workflow)]
    width = max(len(name) for name, _ in rows)
    return "\b\nPhases, in order:\n" + "\n".join(f"  {name:<{width}}  {summary}" for name, summary in rows)
