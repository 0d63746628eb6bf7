"""systemd units of ours: a file rendered from ``templates/units`` and the service that runs it."""

from __future__ import annotations

from collections.abc import Sequence

from kubeadm_registry.engine.changes import RECORD_START, Condition, File, Running, Steps, unit_path
from kubeadm_registry.engine.render import render
from kubeadm_registry.paths import SLICE


def serve(
    unit: str,
    files: Sequence[File],
    *,
    instances: Sequence[str] = (),
    reloads: Sequence[str] = (),
    gate: Condition | None = None,
    **values: object,
) -> Steps:
    """Write the unit file of *unit*, then have it (or each of its *instances*) run with *files*.

    *files* are written by the caller; the unit notes their digests when it starts, and so knows when it is stale.
    *values* go to the template ``units/<unit>.j2``.
    """
    record = [RECORD_START, "%n", *(file.path for file in files), unit_path(unit)]
    text = render(f"units/{unit}.j2", record=" ".join(record), slice=SLICE, **values)
    unit_file = File(unit_path(unit), text)
    yield unit_file
    for name in instances or (unit,):
        yield Running(name, (*files, unit_file), reloads=reloads, gate=gate)
