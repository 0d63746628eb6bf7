"""``python -m kubeadm_registry.helper``: answer one question of the operator, from standard input, as root.

systemd starts it for each connection to the helper's socket (systemd.socket(5), ``Accept=yes``). It can do what
``access/questions.py`` names, and nothing else: no command, path or unit comes from the question.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

from kubeadm_registry.access import questions
from kubeadm_registry.access.executor import OnHost, answers
from kubeadm_registry.errors import ConfigError, Error
from kubeadm_registry.formats import Damaged
from kubeadm_registry.helper import jobs, replacing
from kubeadm_registry.retention.order import Order
from kubeadm_registry.transport.host import Host
from kubeadm_registry.transport.local import Local

_HINT = "run `kubeadm-registry operator install` and `init` with the same release"


def _space(host: Host, values: Mapping[str, Any]) -> Mapping[str, Any]:
    if values["verb"] == "space":
        return jobs.begin(host, values.get("step"), values.get("values"))
    return jobs.ended(host, values.get("step"), values.get("ticket"))


def _replacing(host: Host, values: Mapping[str, Any]) -> Mapping[str, Any]:
    if values["verb"] == "replace":
        return replacing.begin(host, values.get("old"), values.get("new")).values()
    return replacing.standing(host).values()


def answered(content: bytes, node: OnHost) -> bytes:
    """The answer of *node* to the question *content*."""
    try:
        try:
            values = questions.QUESTION.parse(content).values
            verb, order = values.get("verb"), values.get("order")
            if verb == "start":
                Order.parse(str(order).encode())  # what is no order does not reach the disk
            if verb in ("space", "spaced"):
                sys.stderr.write(f"{verb} {str(values.get('step'))[:20]!r}\n")
                return questions.answer(_space(node.host, values))
            if verb in ("replace", "replacing"):
                sys.stderr.write(f"{verb} {str(values.get('old', ''))[:63]!r}\n")
                return questions.answer(_replacing(node.host, values))
        except Damaged as damaged:
            raise ConfigError(f"invalid request: {damaged}", code="QuestionInvalid", hint=_HINT) from damaged
        sys.stderr.write(f"{verb if isinstance(verb, str) else '?'}\n"[:40])
        return questions.answer(answers(node, verb, order))
    except Error as error:
        sys.stderr.write(f"[{error.code}] {error.message}\n")
        return questions.failure(error)


def main(source: BinaryIO, sink: BinaryIO) -> int:
    """Answer the question in *source* to *sink*; the exit status."""
    content = source.read(questions.MOST + 1)
    if len(content) > questions.MOST:
        said = questions.failure(ConfigError("the request is too long", code="QuestionInvalid", hint=_HINT))
    else:
        with contextlib.closing(Local(socket.gethostname())) as here:
            said = answered(content, OnHost(Host(socket.gethostname(), "", here)))
    with contextlib.suppress(BrokenPipeError):
        sink.write(said)
        sink.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.stdin.buffer, sys.stdout.buffer))
