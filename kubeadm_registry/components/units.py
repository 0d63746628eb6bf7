"""What a service of a registry node is, and the steps that write its systemd unit and keep it running."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kubeadm_registry.engine.changes import RECORD_START, Condition, File, Running, Steps, unit_path
from kubeadm_registry.engine.render import render
from kubeadm_registry.paths import SLICE


@dataclass(frozen=True, slots=True)
class Port:
    """A port on which a service listens."""

    number: int
    protocol: str = "tcp"
    local: bool = False
    """On loopback: only root and the services that name it in ``calls`` may connect. Else on the node's addresses."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service of a registry node: what others must know of it. Its module has the steps that install it."""

    name: str
    """The word for it in ``status``, and the directory of its templates, in which ``unit.j2`` is its unit."""
    units: tuple[str, ...]
    """Its unit, or several processes of one template unit, in the order in which they start; none: it is called."""
    user: str = ""
    """The system user that it runs as; empty: root."""
    groups: tuple[str, ...] = ()
    """Groups that its user joins."""
    program: str = ""
    """The program of the bundle that it runs; empty: one that every host has."""
    restarted_by: tuple[str, ...] = ()
    """The files with which it must be started again when they change; its unit file always is one."""
    reloaded_by: tuple[str, ...] = ()
    """The files for which a reload is enough."""
    ports: tuple[Port, ...] = ()
    calls: tuple[int, ...] = ()
    """The loopback ports of other services that it connects to."""
    inspect: str = ""
    """Shell commands that only read, with which it shows its own view in a support archive; empty: none."""
    scratch: bool = False
    """Whether it has a directory of its name in spec.dataDirectory without images in it: reset removes that."""

    @property
    def unit(self) -> str:
        """The first of its units."""
        return self.units[0]


def serve(service: Service, files: Sequence[File], *, gate: Condition | None = None, **values: object) -> Steps:
    """Write the unit file of *service*, then have each of its units run with those of *files* that concern it.

    *files* are written by the caller. The unit notes their digests when it starts, and so knows when it is stale.
    *gate* must say None before one that runs is restarted. *values* go to the template ``<name>/unit.j2``.
    """
    written = {file.path: file for file in files}
    watched = [written[path] for path in (*service.restarted_by, *service.reloaded_by) if path in written]
    unit_file_path = unit_path(service.unit)
    record = [RECORD_START, "%n", *(file.path for file in watched), unit_file_path]
    text = render(f"{service.name}/unit.j2", record=" ".join(record), slice=SLICE, **values)
    unit_file = File(unit_file_path, text)
    yield unit_file
    for unit in service.units:
        yield Running(unit, (*watched, unit_file), reloads=service.reloaded_by, gate=gate)
