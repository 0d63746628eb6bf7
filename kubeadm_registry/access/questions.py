"""What the operator asks a node's helper, and what that answers: one JSON document each way.

=========  =========================  ==============================================================
verb       with                       answer
=========  =========================  ==============================================================
space      step, its values           done: whether it has ended; its result; else a ticket
spaced     step, ticket               the same, later
look                                  running: units of the executor; agent: the agent's state
start      order: its text            nothing; the order is started where it is asked for
progress   order: its digest          how the order's unit is, and what the executor said in the end
stop       order: its digest          nothing; the order is ended
pulls                                 since, last: when images were pulled, by repository and reference; missed
replace    old: a name; new: a node   as replacing; the replacement is begun, if nodes may do that
replacing                             allowed, members, work, clock: as access/replacing.py has them
=========  =========================  ==============================================================

An answer has *error* in place of these if it cannot be done, with *message*, *code* and *hint*.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kubeadm_registry.errors import Error
from kubeadm_registry.formats import Damaged, Format

QUESTION = Format("the question to the helper")
ANSWER = Format("the answer of the helper")
#: Bytes of a question at most: an order with some 60,000 images.
MOST = 32 << 20


def question(verb: str, **values: object) -> bytes:
    """What is sent to ask for *verb*."""
    return QUESTION.render({"verb": verb, **values})


def answer(values: Mapping[str, Any]) -> bytes:
    """What is sent back."""
    return ANSWER.render(values)


def failure(error: Error) -> bytes:
    """What is sent back when *error* is all that there is to say."""
    return answer(told(error))


def told(error: Error) -> Mapping[str, Any]:
    """What stands for *error* in an answer, or in the result of a step."""
    return {"error": {"message": error.message, "code": error.code, "hint": error.hint}}


def error_of(said: Mapping[str, Any], node: str) -> Error:
    """The error of *node* that *said* stands for."""
    return Error(str(said["message"]), host=node, code=str(said["code"]), hint=str(said["hint"]))


def read(content: bytes, node: str, keys: Iterable[str] = (), maybe: Iterable[str] = ()) -> Mapping[str, Any]:
    """What the helper of *node* answered with *content*, which has *keys*, and *maybe* these: None where it has not.

    Raises Error as the helper said it, or HelperUnknown; NewerFormat.
    """
    try:
        values = ANSWER.parse(content).values
        said = values.get("error")
        if said is None:
            return {**{key: values.get(key) for key in maybe}, **{key: values[key] for key in keys}}
        raise error_of(said, node)
    except (Damaged, TypeError, KeyError) as problem:
        raise Error(
            f"not a response of the helper: {problem}", host=node, code="HelperUnknown",
            hint="run `kubeadm-registry operator install` with this release",
        ) from problem  # fmt: skip
