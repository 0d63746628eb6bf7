"""kopf watches our objects. Its handlers wake workers, and nothing else.

Only ``on.event``: timers, daemons and ``on.delete`` would put a finalizer on the object, which then could not be
deleted while no operator runs; ``on.create`` and its like write annotations. There is no peering: the lease decides who
acts.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import kopf

from kubeadm_registry.custom_resources import GROUP, VERSION
from kubeadm_registry.operator.settings import Settings

#: The server ends a watch after so many seconds (it takes whole ones), so that one that fell silent is noticed.
_WATCH = 300


class Changes:
    """Tells what people changed from what the operator wrote: its writes to statuses must not wake it."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def is_new(self, event: Mapping[str, Any]) -> bool:
        """Whether the object of *event* is not as it was, apart from its status."""
        metadata = event["object"].get("metadata", {})
        uid = metadata.get("uid", "")
        if event.get("type") == "DELETED":
            self._seen.pop(uid, None)
            return True
        told = json.dumps([metadata.get("generation"), metadata.get("annotations")], sort_keys=True)
        if self._seen.get(uid) == told:
            return False
        self._seen[uid] = told
        return True


def watch(settings: Settings, wakes: Mapping[str, Callable[[], None]]) -> None:
    """Watch each kind of *wakes*, by its plural, and call what it says. Returns or raises only if kopf ends.

    To be run in a thread of its own: kopf takes the signals and at its end cancels the tasks of the loop that it is in.
    """
    registry = kopf.OperatorRegistry()
    changes = Changes()

    def handler(wake: Callable[[], None]) -> Callable[..., Any]:
        async def changed(event: Mapping[str, Any], **_: Any) -> None:
            if changes.is_new(event):
                wake()

        return changed

    for plural, wake in wakes.items():
        kopf.on.event(GROUP, VERSION, plural, id=plural, registry=registry)(handler(wake))

    login = kopf.login_with_kubeconfig if settings.kubeconfig is not None else kopf.login_with_service_account
    kopf.on.login(id="login", registry=registry)(login)

    options = kopf.OperatorSettings()
    options.posting.enabled = False
    options.scanning.disabled = True
    options.watching.server_timeout = _WATCH
    options.networking.request_timeout = 60
    logging.getLogger("kopf").setLevel(logging.ERROR)
    asyncio.run(kopf.operator(registry=registry, settings=options, standalone=True, clusterwide=True))
