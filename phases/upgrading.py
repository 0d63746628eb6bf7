"""Carries out an upgrade: node after node, and the virtual IP by a planned move before its holder's turn."""

from __future__ import annotations

from collections.abc import Sequence

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.report import Action, Reporter
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error, PhaseFailed, PreflightFailed
from kubeadm_registry.phases import moves, upgrade, workflows
from kubeadm_registry.phases.preflight import PREFLIGHT
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
    # The nodes that have had their turn may still copy what was pushed meanwhile.
    patience = upgrade.HEALTHY_WITHIN
    moved = moves.away(cluster, last, reporter, patience=patience) if _gives_up(cluster, last) else ()
    turn = workflows.upgrade((last,))
    asked = [one.name for one in turn if one.name in (PREFLIGHT.name, upgrade.VERSIONS.name)]
    try:
        return [*done, *moved, *run(turn, cluster, reporter, skip=asked, ignore=ignore)]
    except PreflightFailed as error:
        raise PhaseFailed(last.name, error.under_way(), host=last.name) from error


def _gives_up(cluster: Cluster, host: Host) -> bool:
    """Whether *host* has the virtual IP, and something restarts there upon which that moves."""
    try:
        return upgrade.leaves(cluster).diff(host) is not None
    except Error:  # as of a secret that this release adds, and which is made first; the run tells of what is wrong
        return True
