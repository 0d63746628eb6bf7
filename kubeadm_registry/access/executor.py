"""Start the retention executor on the node that holds the lease, wait for what comes of it, or end it.

An order is put beside the executor's settings, where only root writes; what starts is a unit named by its digest. The
executor itself refuses an order that it cannot trust, and a second one beside it: what is looked at here before is for
a clear answer. Commands reach a node by its root (``OnHost``), the operator by its helper (``ByHelper``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Protocol, TypeVar

from kubeadm_registry import paths
from kubeadm_registry.access import questions
from kubeadm_registry.agent.formats import Newer
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import health, retention
from kubeadm_registry.components import pulls as recorder
from kubeadm_registry.components.executor_files import ORDER, order_path, read_result, result_path
from kubeadm_registry.engine.changes import RUNS, unit_path
from kubeadm_registry.errors import CommandTimeout, ConfigError, ConnectionFailed, Error
from kubeadm_registry.formats import Damaged
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.retention.history import Run
from kubeadm_registry.retention.pulls import Pulls, merged
from kubeadm_registry.transport.host import Host, side_by_side
from kubeadm_registry.upkeep.lease import held_term

#: Seconds between two looks at a run, at first and at most; and for which a node may be out of reach meanwhile.
INTERVAL, SELDOM = 1.0, 10.0
PATIENCE = 60.0
#: Seconds for systemd to take a job, and for a run to end that was told to.
JOB = 30.0
ENDING = 60.0
#: Minutes after which an order is removed, as find(1) has it.
KEPT = "+1440"
#: What systemd says of a program that is not there (systemd.exec(5), process exit codes).
_NO_PROGRAM = 203


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an order: on which *node*, with which exit *status*, and what the executor said in the end."""

    node: str
    status: int
    result: Mapping[str, Any]

    def run(self) -> Run:
        """What was done. Raises Error as the executor said it, or ExecutorFailed."""
        if "run" not in self.result:
            raise Error(
                str(self.result.get("error", "the executor did not say why it failed")), host=self.node,
                code=str(self.result.get("code", "ExecutorFailed")), hint=str(self.result.get("hint", "")),
            )  # fmt: skip
        try:
            return Run.parse(self.result["run"])
        except Damaged as damaged:
            raise Error(
                f"the executor's result is damaged: {damaged}", host=self.node, code="ExecutorFailed",
                hint="see `kubeadm-registry retention history`",
            ) from damaged  # fmt: skip


#: ``$1`` the agent's state, ``$2`` a pattern of units. The units with their states, the time, and the agent's state.
_LOOK = """
systemctl list-units --all --plain --no-legend --no-pager -- "$2" |
  while read -r unit load active rest; do echo "$unit $active"; done
echo ---
date +%s.%N
cat -- "$1" 2>/dev/null || :
"""


#: The time, and the files ``$@``, a line each.
_PULLS = 'date +%s.%N; cat -- "$1" || exit; echo; cat -- "$2"'


@dataclass(frozen=True, slots=True)
class Seen:
    """A node: the units of the executor that run there, and the state of its agent, None if it tells none."""

    running: tuple[str, ...]
    agent: Mapping[str, Any] | None

    @property
    def term(self) -> int:
        """The term under which this node holds the lease; 0 if it does not."""
        return held_term(self.agent)


@dataclass(frozen=True, slots=True)
class Progress:
    """How an order fares: what systemd says of its unit (*state*, *result*, exit *status*), the last *line* of its log,
    and what the executor *said* in the end, empty if nothing."""

    state: str
    result: str
    status: int
    line: str
    said: Mapping[str, Any]

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.state in RUNS


class Node(Protocol):
    """A node as somebody who gives orders reaches it. All raise Error."""

    @property
    def name(self) -> str:
        """Of the node in the cluster file."""

    def look(self) -> Seen:
        """What runs there, and whether it holds the lease."""

    def start(self, content: bytes) -> None:
        """Start the order *content*."""

    def progress(self, order: str) -> Progress:
        """How *order* fares there."""

    def stop(self, order: str) -> None:
        """End *order*."""

    def pulls(self) -> Pulls:
        """What it recorded of pulls. Raises Error (PullsUnknown) if that says nothing of now."""


N = TypeVar("N", bound=Node)
#: ``$1`` the directory of orders: those that are older than ``$2`` minutes go, and all but the newest 20. Units ``$3``
#: that failed are forgotten.
_TIDY = """
find "$1" -type f -mmin "$2" -delete
ls -t -- "$1" | tail -n +20 | while read -r name; do rm -f -- "$1/$name"; done
systemctl reset-failed -- "$3" 2>/dev/null || :
"""


@dataclass(frozen=True, slots=True)
class OnHost:
    """A node whose root we are."""

    host: Host

    @property
    def name(self) -> str:
        """See Node."""
        return self.host.name

    def look(self) -> Seen:
        """See Node."""
        answer = self.host.query("sh", "-c", _LOOK, "look", paths.AGENT_STATE, retention.INSTANCES, timeout=15)
        units, _, rest = answer.stdout.decode(errors="replace").partition("---\n")
        now, _, text = rest.partition("\n")
        running = [name for name, _, state in (line.partition(" ") for line in units.splitlines()) if state in RUNS]
        return Seen(tuple(running), health.fresh(text, float(now)) if answer.ok else None)

    def start(self, content: bytes) -> None:
        """See Node. Raises Error (ToolMissing)."""
        order = _digits(content)
        if not self.host.query("test", "-e", unit_path(_unit(order))).ok:
            raise _no_tool(self.name)
        self.host.run("sh", "-c", _TIDY, "tidy", retention.ORDERS, KEPT, retention.INSTANCES)
        # Where the executor can read it and not change it.
        self.host.write(order_path(order), content, mode=0o640, owner=f"root:{retention.USER}")
        self.host.run("systemctl", "start", "--no-block", "--", _unit(order), timeout=JOB)

    def progress(self, order: str) -> Progress:
        """See Node."""
        answer = self.host.query("sh", "-c", _STATE, "state", _unit(order)).stdout.decode(errors="replace")
        shown, _, line = answer.partition("---\n")
        state = dict(one.partition("=")[::2] for one in shown.splitlines())
        # A start that systemd has yet to carry out is a job of a unit that is still inactive.
        active = "activating" if state.get("Job") else state.get("ActiveState", "")
        status = int(state.get("ExecMainStatus") or 0)
        return Progress(active, state.get("Result", "unknown"), status, line.strip(), self._said(order))

    def stop(self, order: str) -> None:
        """See Node."""
        self.host.run("systemctl", "stop", "--", _unit(order), timeout=ENDING)

    def pulls(self) -> Pulls:
        """See Node. Its user reads the files: root would follow a link that this user put there."""
        files = (recorder.RECORD, recorder.POSITION)
        found = self.host.query("runuser", "-u", recorder.USER, "--", "sh", "-c", _PULLS, "pulls", *files, timeout=60)
        try:
            if not found.ok:
                raise Damaged(found.stderr.decode(errors="replace").strip()[:200] or "there is no record")
            now, record, position = found.stdout.split(b"\n", 2)
            return Pulls.parse(record, position, float(now))
        except (Damaged, Newer, ValueError) as problem:
            raise Error(
                f"its record of pulls cannot be used: {problem}", host=self.name, code="PullsUnknown",
                hint=f"see: journalctl -u {recorder.UNIT}",
            ) from problem  # fmt: skip

    def _said(self, order: str) -> Mapping[str, Any]:
        """It is read as the user whose directory it is in: root would follow a link that this user put there."""
        found = self.host.query("runuser", "-u", retention.USER, "--", "cat", result_path(order))
        try:
            return read_result(found.stdout) if found.ok else {}
        except Damaged:
            return {}


@dataclass(frozen=True, slots=True)
class ByHelper:
    """The node *name* whose helper takes questions: *ask* sends one and returns the answer, within so many seconds."""

    name: str
    ask: Callable[[bytes, float], bytes]

    def look(self) -> Seen:
        """See Node."""
        values = self._ask(JOB, "look", ("running", "agent"))
        return Seen(tuple(values["running"]), values["agent"])

    def start(self, content: bytes) -> None:
        """See Node."""
        self._ask(2 * JOB, "start", (), content.decode())

    def progress(self, order: str) -> Progress:
        """See Node."""
        return Progress(**self._ask(JOB, "progress", tuple(one.name for one in fields(Progress)), order))

    def stop(self, order: str) -> None:
        """See Node."""
        self._ask(ENDING + JOB, "stop", (), order)

    def pulls(self) -> Pulls:
        """See Node. A helper of an earlier release does not know the question, or answers a part of it."""
        try:
            return Pulls.read(self._ask(2 * JOB, "pulls", ("since", "last", "missed")))
        except Damaged as problem:
            raise Error(str(problem), host=self.name, code="PullsUnknown") from problem

    def _ask(self, seconds: float, verb: str, keys: Sequence[str], order: str | None = None) -> Mapping[str, Any]:
        asked = questions.question(verb) if order is None else questions.question(verb, order=order)
        return questions.read(self.ask(asked, seconds), self.name, keys)


def answers(node: Node, verb: object, order: object) -> Mapping[str, Any]:
    """What the helper of *node* answers to ``questions``. Raises Error (QuestionInvalid, and what the node raises)."""
    text = order if isinstance(order, str) else ""
    match verb:
        case "look":
            seen = node.look()
            return {"running": list(seen.running), "agent": seen.agent}
        case "start":
            node.start(text.encode())
            return {}
        case "progress":
            return asdict(node.progress(text))
        case "stop":
            node.stop(text)
            return {}
        case "pulls":
            return node.pulls().to_dict()
    raise ConfigError(
        f"the helper cannot {str(verb)[:40]!r}", code="QuestionInvalid",
        hint="run `kubeadm-registry init` with the release of the operator",
    )  # fmt: skip


def pulls(nodes: Sequence[Node], count: int, note: Callable[[str], object] = lambda _: None) -> Pulls:
    """What *nodes* recorded of pulls; there may be others, unless all of the *count* nodes of the cluster can say.

    *note* hears why not. A node that cannot be reached may have served pulls of which nobody else knows.
    """

    def attempt(node: Node) -> Pulls | None:
        try:
            return node.pulls()
        except Error as error:
            note(f"{node.name}: {error.message}")
            return None

    found = side_by_side(attempt, nodes)
    if len(nodes) < count:
        note(f"{len(nodes)} of {count} nodes can be asked")
        found = [*found, None]
    return merged(found)


def on_hosts(cluster: Cluster) -> list[OnHost]:
    """The nodes of *cluster*, whose root we are."""
    return [OnHost(host) for host in cluster.hosts]


def holder(seen: Sequence[tuple[N, Seen]]) -> tuple[N, Seen]:
    """The node that holds the lease, of those that were *seen*. Raises Error (NoExecutor)."""
    # Of two that say so the later one is right: terms of successive holders grow.
    best = max(seen, key=lambda one: one[1].term, default=None)
    if best is None or not best[1].term:
        raise Error(
            "no node holds the lease, so no node may delete images",
            code="NoExecutor",
            hint="run `kubeadm-registry status`; try again when one node holds the virtual IP and the agents have a "
            "majority",
        )
    return best


def run(
    nodes: Sequence[Node], content: bytes, *, deadline: float, progress: Callable[[str], None] = lambda _: None,
    begins: Callable[[], None] = lambda: None,
) -> Outcome:  # fmt: skip
    """Carry out the order *content* on that of all *nodes* that holds the lease, and wait *deadline* seconds.

    An order that runs there already is waited for. *progress* hears the last line that the executor logged, when there
    is another one; *begins* is called when nothing stands in the way of it any more, just before it may begin. Whoever
    stops waiting does not end it. Raises Error (NoExecutor, ExecutorBusy, ToolMissing,
    ExecutorFailed: it ended without a result), CommandTimeout, and ConnectionFailed.
    """
    order = _digits(content)
    unit = _unit(order)
    seen = _look(nodes)
    node, _ = holder(seen)
    _require_idle(seen, node, unit)
    before = node.progress(order).said.get("invocation")
    begins()
    node.start(content)
    ended = _wait(node, order, deadline, progress)
    if ended.status == _NO_PROGRAM:
        raise _no_tool(node.name)
    if not ended.said or ended.said.get("invocation") == before:
        raise Error(
            f"the executor ended without a result ({ended.result}): {ended.line}",
            host=node.name, code="ExecutorFailed", hint=f"see: journalctl -u {unit}",
        )  # fmt: skip
    return Outcome(node.name, ended.status, ended.said)


def stop(nodes: Sequence[Node], order: str) -> list[str]:
    """End *order* wherever it runs; the names of these nodes. It may be begun again at any time."""
    unit = _unit(order)
    running = [node for node, one in _look(nodes) if unit in one.running]
    side_by_side(partial(_stop, order), running)
    return [node.name for node in running]


def _look(nodes: Sequence[Node]) -> list[tuple[Node, Seen]]:
    """Those of *nodes* that can be reached, each with what it says. Raises ConnectionFailed if none can be.

    One that cannot runs no order that counts: the proxies take the holder's, under its term, and nobody else's.
    """

    def attempt(node: Node) -> Seen | ConnectionFailed:
        try:
            return node.look()
        except ConnectionFailed as error:
            return error

    found = side_by_side(attempt, nodes)
    reached = [(node, one) for node, one in zip(nodes, found, strict=True) if isinstance(one, Seen)]
    failures = [one for one in found if isinstance(one, ConnectionFailed)]
    if failures and not reached:
        raise failures[0]
    return reached


def _stop(order: str, node: Node) -> None:
    node.stop(order)


def _digits(content: bytes) -> str:
    """The name of the order *content*."""
    return oci.digest_of(content).removeprefix("sha256:")


def _unit(order: str) -> str:
    if ORDER.fullmatch(order) is None:
        raise ConfigError(
            f"{order[:80]!r} is not an order", hint="pass the 64 hexadecimal digits of its digest", code="OrderInvalid"
        )
    return retention.unit(order)


def _require_idle(seen: Sequence[tuple[Node, Seen]], node: Node, unit: str) -> None:
    """Nothing runs but *unit* on *node*. Raises Error (ExecutorBusy)."""
    for where, one in seen:
        for other in one.running:
            if other != unit or where is not node:
                raise Error(
                    f"another order runs: {other}",
                    host=where.name, code="ExecutorBusy", hint="wait until it has ended, or stop it",
                )  # fmt: skip


def _no_tool(name: str) -> Error:
    return Error(
        "the retention executor is not installed on this node",
        host=name, code="ToolMissing",
        hint="run `kubeadm-registry init` with a bundle of this release that holds the program kubeadm-registry",
    )  # fmt: skip


#: ``$1`` the unit. How it runs, and the last line of its log.
_STATE = """
systemctl show --property=ActiveState,Result,ExecMainStatus,Job -- "$1"
echo ---
journalctl --no-pager --quiet -o cat -n 1 -u "$1"
"""


def _wait(node: Node, order: str, deadline: float, tell: Callable[[str], None]) -> Progress:
    """How *order* is when it has ended. Raises CommandTimeout."""
    begin = heard = time.monotonic()
    told = ""
    while True:
        try:
            now = node.progress(order)
        except ConnectionFailed:
            if time.monotonic() - heard > PATIENCE:
                raise
        else:
            heard = time.monotonic()
            if now.line and now.line != told:
                told = now.line
                tell(told)
            if not now.runs:
                return now
            if heard - begin >= deadline:
                unit = _unit(order)
                raise CommandTimeout(
                    f"{unit} still runs after {deadline:.0f} s; it continues", host=node.name,
                    hint=f"see: journalctl -f -u {unit}",
                )  # fmt: skip
        time.sleep(min(INTERVAL * (1 + (heard - begin) / 10), SELDOM))
