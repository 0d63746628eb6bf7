"""The phases of a workflow as help shows them."""

from __future__ import annotations

from collections.abc import Sequence

from kubeadm_registry.engine.phase import Workflow, select


def phase_table(workflow: Workflow, *, head: str = "Phases, in order", skip: Sequence[str] = ()) -> str:
    """The phases of *workflow* with their summaries, as help shows them; generated, so it cannot lie.

    *head* says when these are the phases, if that is not always; *skip* names those that do nothing for a command.
    """
    rows = [("  " * path.count("/") + path, phase.summary) for path, phase in select(workflow, skip=skip)]
    width = max(len(name) for name, _ in rows)
    return f"\b\n{head}:\n" + "\n".join(f"  {name:<{width}}  {summary}" for name, summary in rows)
