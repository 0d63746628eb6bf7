"""Units that do not run, do not stay up, will not start at boot, or are not what init wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kubeadm_registry import paths
from kubeadm_registry.agent.pulls import SILENT
from kubeadm_registry.components import agent, retention
from kubeadm_registry.containerd.survey import UNIT as CONTAINERD
from kubeadm_registry.doctor.facts import Facts, Unit, units
from kubeadm_registry.doctor.finding import Command, Finding, Kind, here, limited
from kubeadm_registry.doctor.snapshot import NodeSnapshot, Snapshot
from kubeadm_registry.engine.changes import Running, unit_path

LESS = "The node lacks a part of the registry; the others serve without it, and none of them may fail."
STOPPED = Kind("ServiceStopped", "error", LESS)
MASKED = Kind("ServiceMasked", "error", f"It cannot be started, not even at boot. {LESS}")
FAILED = Kind("ServiceFailed", "error", LESS)
LOOPS = Kind("ServiceCrashLoops", "error", f"systemd restarts it repeatedly. {LESS}")
MISSING = Kind("UnitMissing", "error", f"Its unit file is gone. {LESS}")
DISABLED = Kind("ServiceDisabled", "warning", "It does not start at boot: after a reboot the node lacks it.")
OVERRIDDEN = Kind(
    "UnitOverridden", "warning", "The service runs with settings that were not tested; init does not remove the file."
)
BROKEN_BY_OVERRIDE = Kind("UnitBroken", "error", f"A drop-in file keeps the service from running. {LESS}")
STALE = Kind(
    "ServiceStale", "warning", "The service runs with an outdated configuration; a restart applies the current one."
)
CONTAINERD_DOWN = Kind(
    "ContainerdStopped",
    "error",
    "The node starts no pod and pulls no image; the registry does not depend on containerd.",
)
OUT_OF_MEMORY = Kind(
    "OutOfMemory", "warning", "The node has too little memory for its processes; it will happen again."
)
MEMORY_PRESSURE = Kind(
    "MemoryPressure", "warning", "Processes stall while the kernel reclaims memory; everything seems to hang."
)
RETENTION_FAILED = Kind("RetentionFailed", "warning", "No image is deleted by the timer, so the disks fill.")
RETENTION_PAUSED = Kind("RetentionPaused", "warning", "No image is deleted until it is resumed, so the disks fill.")
NOT_LOGGED = Kind(
    "RequestsNotLogged", "warning",
    "Pulls are not recorded, so retention keeps what depends on them, and no space is freed.",
)  # fmt: skip

#: So many restarts in so many seconds are no accident. One that has run since for so long, and for longer than it did
#: between two of them, has been repaired.
RESTARTS, WITHIN, STEADY = 3, 60.0, 15.0
#: Percent of a minute that all processes waited for memory.
PRESSURE = 20.0
_STATE = ("LoadState", "ActiveState", "SubState", "Result", "UnitFileState")


def _said(unit: Unit) -> list[str]:
    return [f"journalctl -u {unit.name}: {line}" for line in unit.words]


def restarted(facts: Facts, unit: str) -> list[str]:
    """What systemd said of the restarts of *unit* in the last WITHIN seconds; nothing if it has been steady since."""
    found: list[str] = []
    ages: list[float] = []
    for line in facts.manager:
        said = re.match(rf"(\d+\.\d+) .*?: {re.escape(unit)}: Scheduled restart job", line)
        if said and facts.clock - float(said[1]) < WITHIN:
            found.append(f"journalctl: {line}")
            ages.append(facts.clock - float(said[1]))
    ages.sort()
    between = max((later - sooner for sooner, later in pairwise(ages)), default=0.0)
    return found if ages and ages[0] < max(STEADY, 1.5 * between) else []


def is_down(facts: Facts, unit: Unit) -> bool:
    """Whether *unit* does not run, or not for long. One that starts just now, for the first time, is neither."""
    starting = unit.get("ActiveState") == "activating" and unit.get("SubState") != "auto-restart"
    return len(restarted(facts, unit.name)) >= RESTARTS or not (unit.active or starting)


@dataclass(frozen=True, slots=True)
class _Down:
    """A unit that does not run, or not for long: *restarts* is what systemd said of the last ones."""

    node: NodeSnapshot
    unit: Unit
    restarts: Sequence[str]

    def finding(self, kind: Kind, what: str, *fix: Command, shown: Sequence[str] = (), **more: Any) -> Finding:
        """A finding about it."""
        name = self.unit.name
        evidence = [*shown, self.unit.line(*_STATE), *_said(self.unit), *self.restarts[-2:]]
        return Finding(kind, self.node.name, f"{name} {what}", limited(evidence), fix, subject=name, **more)

    def command(self, line: str) -> Command:
        """A command on its node, which ends in the name of the unit."""
        return Command(self.node.name, f"{line} {self.unit.name}")


def running(snapshot: Snapshot) -> Iterator[Finding]:
    """Every unit runs, and stays up."""
    for node, facts in snapshot.answering:
        for name in units(snapshot.config) if node.installed else ():
            unit = facts.units.get(name)
            if unit is None:
                continue
            if not is_down(facts, unit):
                continue
            down = _Down(node, unit, restarted(facts, name))
            yield from next((found for look in _LOOKS if (found := look(down)) is not None), ())


def _containerd(down: _Down) -> Sequence[Finding] | None:
    if down.unit.name != CONTAINERD:
        return None
    if not down.unit.there:  # another program runs the containers; the check Containerd says what it thinks of that
        return ()
    fix = down.command("systemctl start")
    return (down.finding(CONTAINERD_DOWN, f"is {_word(down.unit)}", fix, explains=frozenset({"Containerd"})),)


def _masked(down: _Down) -> Sequence[Finding] | None:
    if not down.unit.masked:
        return None
    # The mask stands where the unit file was, so that comes back with init.
    return (down.finding(MASKED, "is masked", down.command("systemctl unmask"), here("init")),)


def _missing(down: _Down) -> Sequence[Finding] | None:
    return None if down.unit.there else (down.finding(MISSING, "has no unit file", here("init")),)


def _overridden(down: _Down) -> Sequence[Finding] | None:
    files = down.unit.drop_ins
    if not files:
        return None
    remove = Command(down.node.name, f"rm {' '.join(files)} && systemctl daemon-reload")
    found = down.finding(
        BROKEN_BY_OVERRIDE, f"does not run, and {', '.join(files)} changes it",
        remove, down.command("systemctl restart"),
        shown=[down.unit.line("DropInPaths")], explains=frozenset({OVERRIDDEN.code}),
    )  # fmt: skip
    return (found,)


def _looping(down: _Down) -> Sequence[Finding] | None:
    if len(down.restarts) < RESTARTS and down.unit.get("SubState") != "auto-restart":
        return None
    look = Command(down.node.name, f"journalctl -u {down.unit.name} -n 50")
    return (down.finding(LOOPS, "exits soon after each start", look, here("init")),)


def _stopped(down: _Down) -> Sequence[Finding] | None:
    # Each unit is restarted whenever it fails: one that stays down after a stop that took too long was stopped.
    if down.unit.get("ActiveState") == "failed" and down.unit.get("Result") != "timeout":
        return (down.finding(FAILED, "failed", down.command("systemctl restart")),)
    return (down.finding(STOPPED, f"is {_word(down.unit)}", down.command("systemctl start")),)


#: The first that says something is right.
_LOOKS = (_containerd, _masked, _missing, _overridden, _looping, _stopped)


def _word(unit: Unit) -> str:
    state = unit.get("ActiveState")
    return {"inactive": "stopped", "failed": "stopped", "deactivating": "being stopped"}.get(state, state or "unknown")


def at_boot(snapshot: Snapshot) -> Iterator[Finding]:
    """Every unit starts at boot, and runs with the files that are there."""
    for node, facts in snapshot.answering:
        stale = []
        for difference in node.differences:
            change = difference.change
            if not isinstance(change, Running) or difference.error is not None:
                continue
            unit = facts.units.get(change.unit)
            if unit is not None and not unit.masked and unit.there and unit.get("UnitFileState") == "disabled":
                yield Finding(
                    DISABLED, node.name, f"{change.unit} does not start at boot", [unit.line("UnitFileState")],
                    (Command(node.name, f"systemctl enable {change.unit}"),), subject=f"{change.unit} at boot",
                )  # fmt: skip
            if "with earlier versions of" in difference.text and (unit is None or unit.active):
                stale.append(difference.text)
        if stale:
            yield Finding(
                STALE, node.name, "services run with an earlier configuration than the one on disk",
                limited(stale), (here("init"),), subject="stale",
            )  # fmt: skip


def as_written(snapshot: Snapshot) -> Iterator[Finding]:
    """No drop-in file changes a unit."""
    for node, facts in snapshot.answering:
        for unit in facts.units.values():
            if unit.name.startswith(paths.PREFIX) and unit.drop_ins and unit_path(unit.name) not in unit.drop_ins:
                remove = Command(node.name, f"rm {' '.join(unit.drop_ins)} && systemctl daemon-reload")
                yield Finding(
                    OVERRIDDEN, node.name, f"{unit.name} is changed by {', '.join(unit.drop_ins)}",
                    [unit.line("FragmentPath", "DropInPaths")],
                    (remove, Command(node.name, f"systemctl restart {unit.name}")), subject=unit.name,
                )  # fmt: skip


def memory(snapshot: Snapshot) -> Iterator[Finding]:
    """The node has memory for what runs on it."""
    for node, facts in snapshot.answering:
        killed = [f"journalctl: {line}" for line in facts.manager if "OOM killer" in line or "'oom-kill'" in line]
        if killed:
            names = sorted({found[1] for line in killed if (found := re.search(r"(\S+\.service): ", line))})
            yield Finding(
                OUT_OF_MEMORY, node.name, f"the kernel killed {', '.join(names) or 'a service'} because memory ran out",
                limited(killed[-2:]), (Command(node.name, "systemd-cgtop --order=memory --iterations=1"),),
            )  # fmt: skip
        if facts.pressure.get("full", 0.0) > PRESSURE:
            yield Finding(
                MEMORY_PRESSURE, node.name, "the node is short of memory",
                [f"/proc/pressure/memory: full avg60={facts.pressure['full']:.2f}"],
                (Command(node.name, "systemd-cgtop --order=memory --iterations=1"),),
            )  # fmt: skip


def retained(snapshot: Snapshot) -> Iterator[Finding]:
    """The last run of retention's timer ended well."""
    for node, facts in snapshot.answering:
        unit = facts.units.get(retention.DAILY)
        if unit is None or unit.get("Result") in ("", "success"):
            continue
        evidence = [unit.line("Result", "ExecMainStatus"), *_said(unit)]
        if any(PAUSED in line for line in unit.words):
            yield Finding(RETENTION_PAUSED, node.name, "retention is paused", limited(evidence),
                          (here("retention resume"),))  # fmt: skip
        else:
            start = Command(node.name, f"systemctl start {unit.name}")
            yield Finding(RETENTION_FAILED, node.name, "the last run of retention's timer failed", limited(evidence),
                          (here("retention plan --no-cluster"), start))  # fmt: skip


def logged(snapshot: Snapshot) -> Iterator[Finding]:
    """The journal has what the proxies log: at least the probes of the agent."""
    for node, facts in snapshot.answering:
        run = [one for name in (*paths.HAPROXY_UNITS, agent.UNIT) if (one := facts.units.get(name)) and one.active]
        if facts.requests is False and len(run) == len(paths.HAPROXY_UNITS) + 1:
            yield Finding(
                NOT_LOGGED, node.name, "the journal has no requests from the proxies, which log one per second",
                [f"journalctl -u 'kubeadm-registry-haproxy@*' --since=-{SILENT:.0f}s: no request"],
                (Command(node.name, "systemd-analyze cat-config systemd/journald.conf  # set MaxLevelStore=debug"),
                 Command(node.name, "systemctl restart systemd-journald")),
            )  # fmt: skip


#: ``executor.checks`` says so, and the executor writes it to its journal.
PAUSED = "retention is paused"
KINDS = (
    STOPPED, MASKED, FAILED, LOOPS, BROKEN_BY_OVERRIDE, MISSING, CONTAINERD_DOWN, DISABLED, OVERRIDDEN, STALE,
    OUT_OF_MEMORY, MEMORY_PRESSURE, RETENTION_FAILED, RETENTION_PAUSED, NOT_LOGGED,
)  # fmt: skip
