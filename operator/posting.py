"""Events about our objects: one for each change of a condition, and a series where the same happens again.

Objects of no namespace have their Events in ``default`` (k8s.io/client-go/tools/events does the same).
"""

from __future__ import annotations

import logging
from hashlib import sha256
from typing import Any

from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.operator.conditions import Verdict, micro_time
from kubeadm_registry.operator.objects import Object, Objects

PATH = "/apis/events.k8s.io/v1/namespaces/default/events"
_CONTROLLER = "kubeadm-registry.dev/operator"
#: Bytes (k8s.io/kubernetes/pkg/apis/core/validation/events.go).
_LONGEST_NOTE = 1000
log = logging.getLogger("kubeadm_registry.operator")


def name_of(about: Object, what: Verdict, where: str) -> str:
    """The name of the Event: the same for the same thing, so that it becomes a series.

    Its note can never be changed, so what says another thing is another one.
    """
    said = sha256(what.message.encode()).hexdigest()[:8]
    return ".".join(filter(None, (about["metadata"]["uid"], where, what.kind, what.reason, said))).lower()


def post(objects: Objects, replica: str, about: Object, what: Verdict, where: str = "") -> None:
    """Say that the condition *what* of *about*, or of its node *where*, changed. What fails is logged. Raises Lost."""
    log.info("%s %s%s: %s=%s %s: %s", about["kind"], about["metadata"]["name"], f" {where}" if where else "", what.kind,
             what.status, what.reason, what.message)  # fmt: skip
    name, now = name_of(about, what, where), micro_time()
    note = f"{where}: {what.message}" if where else what.message
    event: dict[str, Any] = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": "default"},
        "eventTime": now,
        "reportingController": _CONTROLLER,
        "reportingInstance": replica,
        "action": "Check",
        "reason": what.reason,
        "regarding": {
            "apiVersion": about["apiVersion"], "kind": about["kind"], "name": about["metadata"]["name"],
            "uid": about["metadata"]["uid"],
        },
        "note": note if len(note.encode()) <= _LONGEST_NOTE else note.encode()[:_LONGEST_NOTE].decode(errors="ignore"),
        "type": "Normal" if what.good else "Warning",
    }  # fmt: skip
    try:
        if objects.create(PATH, event) is not None:
            return
        old = objects.get(f"{PATH}/{name}")
        count = ((old or {}).get("series") or {}).get("count", 1)
        objects.merge(f"{PATH}/{name}", {"series": {"count": count + 1, "lastObservedTime": now}})
    except ConnectionFailed as error:
        log.warning("cannot post an Event: %s", error.message)
