"""New passwords for the logins at the proxies, which accept those of before as well until that is ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kubeadm_registry import rotation
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.phase import Workflow
from kubeadm_registry.engine.report import Action, Reporter
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.phases.containerd import CONTAINERD
from kubeadm_registry.phases.identity import STORE
from kubeadm_registry.phases.proxy import PROXY
from kubeadm_registry.phases.retention import RETENTION

# Those who accept a password come before those who use it.
LOGINS: Workflow = (STORE, PROXY, RETENTION, CONTAINERD)


def rotate(
    cluster: Cluster, reporter: Reporter, others: Callable[[Cluster], None], roles: Sequence[str], *,
    dry_run: bool = False,
) -> list[Action]:  # fmt: skip
    """Have the nodes accept and use new passwords for *roles*, then *others*; return what was changed on nodes.

    A role of which two passwords are accepted gets no third one, so a run that died is completed: those that were
    given out stay good until ``finish``. Raises what ``run`` and *others* do.
    """
    fresh = [role for role in roles if role not in rotation.overlapping(cluster.secrets)]
    if fresh:
        cluster = cluster.with_vault(cluster.vault.revised(rotation.rotate(cluster.secrets, fresh)))
    actions = run(LOGINS, cluster, reporter, dry_run=dry_run)
    others(cluster)
    return actions


def finish(
    cluster: Cluster, reporter: Reporter, others: Callable[[Cluster], None], roles: Sequence[str], *,
    dry_run: bool = False,
) -> list[Action]:  # fmt: skip
    """Have the nodes refuse the passwords of before for *roles*, once *others* have the new ones.

    Raises as ``rotate``.
    """
    others(cluster)
    # Where the overlap is over in the secrets, a run that died is completed.
    if {*rotation.overlapping(cluster.secrets)} & {*roles}:
        cluster = cluster.with_vault(cluster.vault.revised(rotation.finish(cluster.secrets, roles)))
    return run(LOGINS, cluster, reporter, dry_run=dry_run)
