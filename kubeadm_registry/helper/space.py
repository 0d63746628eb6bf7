"""``python -m kubeadm_registry.helper.space STEP``: do one step of freeing space on this node, as root.

systemd starts it for the helper. What the step is asked for stands in a file, and so does its result.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from kubeadm_registry import paths
from kubeadm_registry.access import questions
from kubeadm_registry.access.collecting import POINT, STEPS, Place, Step
from kubeadm_registry.cluster import Cluster, read_vault
from kubeadm_registry.components import helper, programs
from kubeadm_registry.errors import Error, HostBusy
from kubeadm_registry.formats import Damaged
from kubeadm_registry.registry import SILENCE, Login, Registry
from kubeadm_registry.transport.host import Host
from kubeadm_registry.transport.local import Local

#: Steps that change something: none of them runs beside another run that works on this node. But ``end`` and ``open``
#: do: the one ends a sweep for which nobody waits any more, the other has pushes go on, whoever works here.
ACTS = frozenset({"close", "sweep", "restart", "abandon", "renew"})


@dataclass(frozen=True, slots=True)
class OnDisk:
    """What is kept between two steps, in a file of *host*."""

    host: Host

    def read(self) -> bytes | None:
        """See Notes."""
        return self.host.read(helper.NOTES)

    def write(self, content: bytes) -> None:
        """See Notes."""
        self.host.write(helper.NOTES, content, mode=0o600)


def here(host: Host) -> Place:
    """This node, by what `init` has left on it. Raises Error (HelperUnknown, SecretsDamaged, ProgramsDamaged)."""
    name, spec = helper.read_settings(host.read(helper.NODE), host.name)
    named = Host(name, spec.spec.node(name).address, host.transport)
    vault = read_vault(spec, [named], ())
    found = programs.read_record(named.read(programs.RECORD) or b"", name)
    cluster = Cluster(spec, (named,), vault, found)
    login = Login("push", vault.secrets.password("push"))
    connect = partial(
        Registry, named.address, paths.REGISTRY_PORT, ca=vault.secrets.trust, login=login, timeout=SILENCE
    )
    return Place(cluster, named, connect, OnDisk(named))


def work(step: str, host: Host, place_of: Callable[[Host], Place] = here) -> None:
    """Do *step* on *host*, and leave its result. Raises Error (RequestDamaged), NewerFormat: nobody can be told."""
    ticket, values = requested(host, step)
    try:
        place = place_of(host)
        if step in ACTS and (holder := host.transport.lock("the operator's helper")) is not None:
            raise HostBusy(f"locked by another run: {holder}", hint="wait until it is done")
        said = {"result": dict(_does(step)(place, values))}
    except Error as error:
        said = dict(questions.told(error))
        sys.stderr.write(f"[{error.code}] {error.message}\n")
    host.write(helper.result_path(step), helper.RESULT.render({"ticket": ticket, **said}), mode=0o600)


def _does(step: str) -> Step:
    """What does *step*. Those that free space, while pushes wait, start without what a client node takes."""
    if step == POINT:
        from kubeadm_registry.helper import clients

        return clients.point
    return STEPS[step]


def requested(host: Host, step: str) -> tuple[str, Mapping[str, Any]]:
    """The ticket under which *step* is asked for on *host*, and its values. Raises as ``work``."""
    path = helper.request_path(step)
    try:
        request = helper.REQUEST.parse(host.read(path) or b"").values
        return request["ticket"], request["values"]
    except (Damaged, KeyError) as error:
        raise Error(f"{path}: {error}", host=host.name, code="RequestDamaged", hint="request the step again") from error


def main(step: str) -> int:
    """Do *step*; the exit status."""
    with contextlib.closing(Local("this node")) as local:
        work(step, Host("this node", "", local))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
