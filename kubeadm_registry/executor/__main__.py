"""``python -m kubeadm_registry.executor --config FILE ORDER | --timer``: carry out a retention order on this node.

ORDER is 64 hexadecimal digits, the digest of an order that root has put beside the settings. With ``--timer`` the order
is made here, by the policy beside the settings and without knowing any workload, unless a cluster is known to use the
registry; a node that does not hold the lease does nothing then. What came of it is left in a file, and a line for each
image goes to the journal.
"""

from __future__ import annotations

import argparse
import fcntl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from kubeadm_registry import paths
from kubeadm_registry.agent import document
from kubeadm_registry.agent.formats import Newer
from kubeadm_registry.agent.pulls import POSITION_FILE, RECORD_FILE
from kubeadm_registry.components import executor_files
from kubeadm_registry.components.executor_files import Settings
from kubeadm_registry.errors import Error
from kubeadm_registry.executor.checks import doubts
from kubeadm_registry.executor.run import Executor
from kubeadm_registry.formats import Damaged
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.printable import counted
from kubeadm_registry.registry import SILENCE, Api, Login, Registry
from kubeadm_registry.retention import Reason, Refused, policy
from kubeadm_registry.retention.history import Run
from kubeadm_registry.retention.order import Order
from kubeadm_registry.retention.pulls import Pulls
from kubeadm_registry.upkeep import planning, running
from kubeadm_registry.upkeep.lease import TERM_HEADER, held_term

#: Seconds for which the registry may not be whole before nothing is deleted.
WHOLE_AFTER = 30.0
_FAILED, _BUSY = 1, 3


@dataclass(frozen=True, slots=True)
class Node:
    """This node: its *settings*, and the *term* of the lease under which the whole run is done; 0: it holds none."""

    settings: Settings
    term: int

    @classmethod
    def here(cls, given: Settings) -> Node:
        """This node as its agent describes it."""
        return cls(given, _term(given))

    def connect(self) -> Registry:
        """The registry by this node's own proxy, with the executor's login."""
        where = urlsplit(self.settings.registry)
        return Registry(
            str(where.hostname), int(where.port or 443), ca=Path(self.settings.ca).read_text(encoding="ascii"),
            login=Login(self.settings.username, self.settings.password), timeout=SILENCE,
            headers={TERM_HEADER: str(self.term)},
        )  # fmt: skip

    def holds(self) -> None:
        """Raise Error (TermOver) if the lease is not that one any more. The proxy compares it with each request."""
        if _term(self.settings) != self.term:
            raise Error(
                f"{self.settings.node} no longer holds the lease under term {self.term}", code="TermOver",
                hint="run it again: the present lease holder completes it",
            )  # fmt: skip

    def doubts(self) -> tuple[Reason, ...]:
        """Why the registry may not be whole, for WHOLE_AFTER seconds at least: a pause of a moment is none."""
        until = time.monotonic() + WHOLE_AFTER
        while (found := tuple(doubts(_state(self.settings)))) and time.monotonic() < until:
            time.sleep(1.0)
        return found

    def carry_out(self, registry: Api, order: Order) -> Run:
        """Carry out *order*. Raises Error."""
        settings = self.settings
        work = Executor(registry, settings.key, settings.node, self.holds, tell=_tell, doubts=self.doubts)
        return work.carry_out(order)


def _term(given: Settings) -> int:
    return held_term(_state(given))


def _state(given: Settings) -> document.State | None:
    """What the agent of this node says; None if that cannot be read."""
    try:
        return document.read(Path(given.agent_state).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def main(arguments: list[str] | None = None) -> int:
    """Carry out an order, or what is due; the exit status: 0 done, 1 failed, 3 another run is going on."""
    parser = argparse.ArgumentParser(prog="kubeadm_registry.executor", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--timer", action="store_true", help="make the order here, by the policy beside the settings")
    what.add_argument("order", nargs="?", metavar="ORDER")
    given = parser.parse_args(arguments)
    if given.order is not None and executor_files.ORDER.fullmatch(given.order) is None:
        parser.error("ORDER is not 64 hexadecimal digits")
    try:
        node = Node.here(executor_files.load(given.config))
        with _alone(Path(paths.RETENTION_STATE)):
            folder = given.config.parent
            work = partial(_due, folder) if given.timer else partial(_ordered, folder, given.order)
            return _done(node, given.order, work)
    except BlockingIOError:
        _tell("another run is in progress")
        return _BUSY
    except Error as error:
        _tell(f"failed [{error.code}]: {error.advice}")
        return _FAILED


def _done(node: Node, order: str | None, work: Callable[[Node], Run | None]) -> int:
    """Do *work*, and leave what came of it for whoever gave the *order*. Raises Error."""
    try:
        run = work(node)
    except Error as error:
        if order is not None:
            executor_files.write_result(order, {"error": error.message, "code": error.code, "hint": error.hint})
        raise
    if run is not None:
        if order is not None:
            executor_files.write_result(order, {"run": run.to_dict()})
        _tell(run.summary())
    return 0


def _ordered(folder: Path, digits: str, node: Node) -> Run:
    """Carry out the order with that digest. Raises Error (NoExecutor, OrderDamaged, and what breaks it off)."""
    if not node.term:
        raise Error(
            f"{node.settings.node} does not hold the lease", code="NoExecutor",
            hint="start it on the node that does; `kubeadm-registry status` names it",
        )  # fmt: skip
    path = Path(executor_files.order_path(digits, folder))
    try:
        content = path.read_bytes()
        if oci.digest_of(content) != f"sha256:{digits}":
            raise Damaged("its content does not match its digest")
        order = Order.parse(content)
    except (OSError, Damaged) as error:
        raise Error(
            f"{path}: {error}", code="OrderDamaged", hint="create the order again with `retention run`"
        ) from error
    with node.connect() as registry:
        return node.carry_out(registry, order)


def _due(folder: Path, node: Node) -> Run | None:
    """What the timer does, by the policy here, where no cluster uses the registry. Raises Error.

    What one run has no time for, the next one does.
    """
    if not node.term:
        _tell(f"{node.settings.node} does not hold the lease, so another node does this")
        return None
    run = _planned(folder, node)
    while run is not None and run.left:
        _tell(run.summary())
        run = _planned(folder, node)
    return run


def _planned(folder: Path, node: Node) -> Run | None:
    """One plan, carried out as far as there is time; None if there is nothing to do. Raises Error."""
    rules = policy.load(folder / "policy.yaml")
    settings = node.settings
    look = planning.look(
        node.connect, settings.key, rules, int(time.time()), sets={}, pulls=_pulls, pause=settings.sandbox_image
    )
    if unknown := tuple(_unknown(look)):
        raise Error(
            "; ".join(reason.message for reason in unknown), code=unknown[0].code,
            hint="; ".join(["run `kubeadm-registry retention timer disable`", *(reason.hint for reason in unknown)]),
        )  # fmt: skip
    plan = look.plan(rules)
    if isinstance(plan, Refused):
        raise Error(
            "there is no plan: " + "; ".join(str(reason) for reason in plan.reasons), code="PlanRefused",
            hint=plan.reasons[0].hint,
        )  # fmt: skip
    for idle in rules.spec.idle(look.holdings.repositories):
        _tell(idle)
    with node.connect() as registry:
        prepared = running.prepare(registry, settings.key, look, plan, rules)
        running.keep(registry, settings.key, plan)
        if prepared.waits:
            _tell(f"plan {plan.digest[:19]} waits for an approval (`kubeadm-registry retention approve`)")
        if not prepared.order:
            return None
        run = node.carry_out(registry, prepared.order)
    if run.purged:
        _tell("`kubeadm-registry images collect`, from the workstation, frees the space of permanently deleted images")
    return run


def _unknown(look: planning.Look) -> Iterator[Reason]:
    """Why it is not known which images are in use: the timer can ask no cluster what has come since its last report."""
    if names := sorted(one.name for one in look.after.clusters.values()):
        yield Reason(
            "WorkloadsUnknown",
            f"the timer cannot ask what is in use now: {counted(len(names), 'cluster')} reported before: "
            f"{', '.join(names)}",
            "if such a cluster is gone, run `kubeadm-registry retention forget NAME`",
        )
    if look.standing.callers:
        yield Reason(
            "WorkloadsUnknown",
            "an operator gave orders before, and it alone knows what its cluster uses",
            "if that cluster is gone, run `kubeadm-registry retention forget --standing`, which discards pins and "
            "approvals as well",
        )


def _pulls(folder: Path = Path(paths.PULLS_STATE)) -> Pulls | None:
    """What this node recorded: there may be other pulls, by the other nodes. None: it cannot be read."""
    try:
        record, position = ((folder / name).read_bytes() for name in (RECORD_FILE, POSITION_FILE))
        return replace(Pulls.parse(record, position, time.time()), since=None)
    except (OSError, Damaged, Newer) as error:
        _tell(f"the record of pulls is not used: {error}")
        return None


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """No other executor of this node runs meanwhile. Raises BlockingIOError if one does."""
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _tell(line: str) -> None:
    """Say *line* in the journal."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
