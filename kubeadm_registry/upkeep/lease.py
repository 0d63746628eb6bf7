"""Who may delete: the node that holds the lease of the agents, under the present term of it.

The proxy of that node compares the term with each request of the executor's login, as it does for uploads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The header by which the proxy knows under which term of the lease a request was made.
TERM_HEADER = "X-Registry-Term"
#: agent.model.Role.WRITER, which is not imported: the agent takes long to import, and the commands need only its word.
HOLDER = "writer"


def held_term(state: Mapping[str, Any] | None) -> int:
    """The term under which the node of an agent's *state* (``agent.document``) holds the lease; 0 if it does not."""
    writer = state.get("writer") if state is not None else None
    if not isinstance(writer, Mapping) or writer.get("role") != HOLDER:
        return 0
    term = writer.get("term")
    return term if type(term) is int and term > 0 else 0
