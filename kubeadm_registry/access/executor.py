"""Start the retention executor on the node that holds the lease, wait for what comes of it, or end it.

An order is put beside the executor's settings, where only root writes; what starts is a unit named by its digest. The
executor itself refuses an order that it cannot trust, and a second one beside it: what is looked at here before is for
a clear answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubeadm_registry import paths
from kubeadm_registry.agent import document
from kubeadm_registry.agent.document import State
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import retention
from kubeadm_registry.components.executor_files import ORDER, order_path, read_result, result_path
from kubeadm_registry.engine.changes import last_words, unit_path
from kubeadm_registry.errors import CommandTimeout, ConfigError, Error
from kubeadm_registry.formats import Damaged
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.transport.host import Host, side_by_side
from kubeadm_registry.upkeep.lease import held_term

#: An agent writes its state every second; one that is silent for longer is not believed. As in status.py.
STALE_AFTER = 5.0
#: Seconds between two looks at a run.
INTERVAL = 1.0
#: Seconds for systemd to take a job, and for a run to end that was told to.
JOB = 30.0
ENDING = 60.0
#: Minutes after which an order is removed, as find(1) has it.
KEPT = "+1440"
#: What systemd says of a program that is not there (systemd.exec(5), process exit codes).
_NO_PROGRAM = 203
_RUNS = ("activating", "active", "deactivating", "reloading")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an order: on which *node*, with which exit *status*, and what the executor said in the end."""

    node: str
    status: int
    result: Mapping[str, Any]


#: ``$1`` the agent's state, ``$2`` a pattern of units. The units with their states, the time, and the agent's state.
_LOOK = """
systemctl list-units --all --plain --no-legend --no-pager -- "$2" |
  while read -r unit load active rest; do echo "$unit $active"; done
echo ---
date +%s.%N
cat -- "$1" 2>/dev/null || :
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """A node: the units of the executor that run there, and the state of its agent, None if it tells none."""

    host: Host
    running: tuple[str, ...]
    agent: State | None

    @property
    def term(self) -> int:
        """The term under which this node holds the lease; 0 if it does not."""
        return held_term(self.agent)


def look(host: Host) -> Seen:
    """Ask *host* what runs there, and whether it holds the lease."""
    answer = host.query("sh", "-c", _LOOK, "look", paths.AGENT_STATE, retention.INSTANCES, timeout=15)
    units, _, rest = answer.stdout.decode(errors="replace").partition("---\n")
    now, _, text = rest.partition("\n")
    running = [name for name, _, state in (line.partition(" ") for line in units.splitlines()) if state in _RUNS]
    state = document.read(text) if answer.ok else None
    # Either way: where the clock went back, a dead agent's last words are of the future.
    fresh = state is not None and abs(float(now) - float(state["time"])) < STALE_AFTER
    return Seen(host, tuple(running), state if fresh else None)


def holder(seen: Sequence[Seen]) -> Seen:
    """The node that holds the lease. Raises Error (NoExecutor)."""
    # Of two that say so the later one is right: terms of successive holders grow.
    best = max(seen, key=lambda one: one.term, default=None)
    if best is None or not best.term:
        raise Error(
            "no node holds the lease, so no node may delete images",
            code="NoExecutor",
            hint="run `kubeadm-registry status`; try again when one node holds the virtual IP and the agents have a "
            "majority",
        )
    return best


def run(
    cluster: Cluster, content: bytes, *, deadline: float, progress: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Carry out the order *content* on the node that holds the lease, and wait *deadline* seconds.

    An order that runs there already is waited for. *progress* hears the last line that the executor logged, when there
    is another one. Whoever stops waiting does not end it. Raises Error (NoExecutor, ExecutorBusy, ToolMissing,
    ExecutorFailed: it ended without a result), CommandTimeout, and ConnectionFailed.
    """
    order = oci.digest_of(content).removeprefix("sha256:")
    unit = _unit(order)
    seen = side_by_side(look, cluster.hosts)
    host = holder(seen).host
    _require_idle(seen, host, unit)
    if not host.query("test", "-e", unit_path(unit)).ok:
        raise _no_tool(host)
    before = _result(host, order).get("invocation")
    _put(host, order, content)
    host.run("systemctl", "start", "--no-block", "--", unit, timeout=JOB)
    state = _wait(host, unit, deadline, progress)
    if state.get("ExecMainStatus") == str(_NO_PROGRAM):
        raise _no_tool(host)
    result = _result(host, order)
    if not result or result.get("invocation") == before:
        raise Error(
            f"the executor ended without a result ({state.get('Result', 'unknown')}): {last_words(host, unit)}",
            host=host.name, code="ExecutorFailed", hint=f"see: journalctl -u {unit}",
        )  # fmt: skip
    return Outcome(host.name, int(state.get("ExecMainStatus") or 0), result)


def _put(host: Host, order: str, content: bytes) -> None:
    """Leave *order* on *host*, where the executor can read it and not change it."""
    host.run("find", retention.ORDERS, "-type", "f", "-mmin", KEPT, "-delete")
    host.write(order_path(order), content, mode=0o640, owner=f"root:{retention.USER}")


def stop(cluster: Cluster, order: str) -> list[str]:
    """End *order* wherever it runs; the names of these nodes. It may be begun again at any time."""
    unit = _unit(order)
    hosts = [one.host for one in side_by_side(look, cluster.hosts) if unit in one.running]
    side_by_side(lambda host: host.run("systemctl", "stop", "--", unit, timeout=ENDING), hosts)
    return [host.name for host in hosts]


def _unit(order: str) -> str:
    if ORDER.fullmatch(order) is None:
        raise ConfigError(
            f"{order[:80]!r} is not an order", hint="pass the 64 hexadecimal digits of its digest", code="OrderInvalid"
        )
    return retention.unit(order)


def _require_idle(seen: Sequence[Seen], host: Host, unit: str) -> None:
    """Nothing runs but *unit* on *host*. Raises Error (ExecutorBusy)."""
    for one in seen:
        for other in one.running:
            if other != unit or one.host is not host:
                raise Error(
                    f"another order runs: {other}",
                    host=one.host.name, code="ExecutorBusy", hint="wait until it has ended, or stop it",
                )  # fmt: skip


def _no_tool(host: Host) -> Error:
    return Error(
        "the retention executor is not installed on this node",
        host=host.name, code="ToolMissing",
        hint="run `kubeadm-registry init` with a bundle of this release that holds the program kubeadm-registry",
    )  # fmt: skip


#: ``$1`` the unit. How it runs, and the last line of its log.
_STATE = """
systemctl show --property=ActiveState,Result,ExecMainStatus -- "$1"
echo ---
journalctl --no-pager --quiet -o cat -n 1 -u "$1"
"""


def _wait(host: Host, unit: str, deadline: float, progress: Callable[[str], None]) -> Mapping[str, str]:
    """What systemd says of *unit* when it has ended. Raises CommandTimeout."""
    end, told = time.monotonic() + deadline, ""
    while True:
        answer = host.query("sh", "-c", _STATE, "state", unit).stdout.decode(errors="replace")
        shown, _, line = answer.partition("---\n")
        state = dict(one.partition("=")[::2] for one in shown.splitlines())
        if (line := line.strip()) and line != told:
            told = line
            progress(line)
        if state.get("ActiveState") not in _RUNS:
            return state
        if time.monotonic() >= end:
            raise CommandTimeout(
                f"{unit} still runs after {deadline:.0f} s; it goes on", host=host.name,
                hint=f"see: journalctl -f -u {unit}",
            )  # fmt: skip
        time.sleep(INTERVAL)


def _result(host: Host, order: str) -> Mapping[str, Any]:
    """The result of *order* on *host*; empty if there is none that can be read.

    It is read as the user whose directory it is in: root would follow a link that this user put there.
    """
    found = host.query("runuser", "-u", retention.USER, "--", "cat", result_path(order))
    try:
        return read_result(found.stdout) if found.ok else {}
    except Damaged:
        return {}
