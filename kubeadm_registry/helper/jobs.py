"""Steps (``access/collecting.py``), most of them to free space, for somebody who may only ask for them.

Some take longer than an answer may. So each runs as a unit of its own, called by the name of the step, of which there
is a fixed number; who asks gets a ticket with which the answer is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from secrets import token_hex
from typing import Any

from kubeadm_registry.access import questions
from kubeadm_registry.access.collecting import POINT, STEPS, invalid
from kubeadm_registry.components import helper
from kubeadm_registry.engine.changes import runs
from kubeadm_registry.errors import Error
from kubeadm_registry.formats import Damaged
from kubeadm_registry.transport.host import Host

NAMES = frozenset({*STEPS, POINT})
#: Seconds for which a step is waited for, before it begins and after; between two looks; and for a unit to begin.
WAITS, EVERY, BEGINS = 20.0, 0.1, 5.0


def begin(host: Host, step: object, values: object) -> Mapping[str, Any]:
    """Begin *step* with *values* on *host*: its result if it ends soon, else a ticket. Raises Error."""
    name = _step(step)
    if not isinstance(values, Mapping):
        raise invalid("values")
    until = time.monotonic() + WAITS
    while runs(host, helper.space_unit(name)):  # for somebody else, or for one who does not wait any more
        if time.monotonic() > until:
            raise Error(
                f"already running: {helper.space_unit(name)}", host=host.name, code="CollectionBusy",
                hint="wait until it has ended, then try again",
            )  # fmt: skip
        time.sleep(EVERY)
    ticket = token_hex(8)
    request = helper.REQUEST.render({"ticket": ticket, "values": dict(values)})
    host.write(helper.request_path(name), request, mode=0o600)
    host.run("systemctl", "start", "--no-block", "--", helper.space_unit(name), timeout=30)
    return ended(host, name, ticket)


def ended(host: Host, step: object, ticket: object) -> Mapping[str, Any]:
    """The result of *step*, which was begun under *ticket*, or that it still runs. Raises Error as the step did."""
    name, begun = _step(step), time.monotonic()
    while True:
        running = runs(host, helper.space_unit(name))
        if (found := _result(host, name, ticket)) is not None:
            if (said := found.get("error")) is not None:
                raise questions.error_of(said, host.name)
            return {"done": True, "result": found["result"], "ticket": ticket}
        waited = time.monotonic() - begun
        if not running and waited > BEGINS:
            raise Error(
                f"{helper.space_unit(name)} ended without a result", host=host.name, code="CollectionFailed",
                hint=f"see `journalctl -u {helper.space_unit(name)}` on that node, then run it again",
            )  # fmt: skip
        if waited > WAITS:
            return {"done": False, "result": None, "ticket": ticket}
        time.sleep(EVERY)


def _step(step: object) -> str:
    if not isinstance(step, str) or step not in NAMES:
        raise invalid("step")
    return step


def _result(host: Host, step: str, ticket: object) -> Mapping[str, Any] | None:
    content = host.read(helper.result_path(step))
    try:
        values = helper.RESULT.parse(content).values if content is not None else {}
    except Damaged:
        return None
    said = "result" in values or "error" in values
    return values if said and values.get("ticket") == ticket else None
