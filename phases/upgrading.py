"""Carries out an upgrade: node after node, and the virtual IP by a planned move before its holder's turn."""

from __future__ import annotations

from collections.abc import Sequence

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.report import Action, Reporter
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error, NotYetKnown
from kubeadm_registry.phases import moves, upgrade, vip_move, workflows
from kubeadm_registry.phases.verify import VERIFY
from kubeadm_registry.transport.host import Host


def carry_out(
    cluster: Cluster, hosts: Sequence[Host], reporter: Reporter, *, ignore: Sequence[str] = (), dry_run: bool = False
) -> list[Action]:
    """Upgrade *hosts*, all of them, in this order; what differed.

    Where the last one has the virtual IP and would lose it, it gives that up by a planned move, once the others are
    done: no client is cut off, and with one writer no upload. Where that cannot be, as with agents of release 0.1, its
    turn begins with the end of what clients do. Raises Error as ``engine.workflow.run``.
    """
    *others, last = hosts
    if dry_run or not others or not _gives_up(cluster, last):
        return run(workflows.upgrade(hosts), cluster, reporter, ignore=ignore, dry_run=dry_run)
    done = run([one for one in workflows.upgrade(others) if one.name != VERIFY.name], cluster, reporter, ignore=ignore)
    moved = _move(cluster, last, reporter)
    return [*done, *moved, *run(workflows.upgrade((last,)), cluster, reporter, ignore=ignore)]


def _gives_up(cluster: Cluster, host: Host) -> bool:
    """Whether *host* has the virtual IP, and something restarts there upon which that moves."""
    try:
        return upgrade.leaves(cluster).diff(host) is not None
    except NotYetKnown:  # a secret that this release adds is made first, and changes files of the agent
        return True


def _move(cluster: Cluster, host: Host, reporter: Reporter) -> Sequence[Action]:
    """Move the virtual IP away from *host*, if that can be planned."""
    try:
        if not _gives_up(cluster, host) or not vip_move.known(vip_move.look(cluster)):
            return ()
        # The nodes that have had their turn may still copy what was pushed meanwhile.
        planned = vip_move.plan(cluster, patience=upgrade.HEALTHY_WITHIN, note=reporter.note)
        return moves.move(planned, reporter).actions
    except Error as error:
        text = f"no planned move of the virtual IP: {error.message}; it moves when the requests in flight have ended"
        reporter.note(text, host=host.name, level="warning")
        return ()
