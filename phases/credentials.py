"""New passwords for the logins at the proxies, and new keys between the services.

The proxies accept the passwords of before as well until that is ended, for people have them. Keys are known to the
nodes alone, so they are replaced in stages by one run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kubeadm_registry import paths, rotation
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import agent
from kubeadm_registry.engine.changes import STARTED, Steps, Wait
from kubeadm_registry.engine.phase import Phase, Workflow
from kubeadm_registry.engine.report import Action, Reporter
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.phases import identity
from kubeadm_registry.phases.agent import AGENT
from kubeadm_registry.phases.backend import FORM, INSTALL, JOINED
from kubeadm_registry.phases.containerd import CONTAINERD
from kubeadm_registry.phases.exchange import Stages, exchange, go_on
from kubeadm_registry.phases.frontend import FRONTEND
from kubeadm_registry.phases.network import NETWORK
from kubeadm_registry.phases.programs import IN_USE, UPLOADED
from kubeadm_registry.phases.proxy import PROXY
from kubeadm_registry.phases.retention import RETENTION
from kubeadm_registry.transport.host import Host

#: Whether the file ``$1`` was written two seconds after ``$2``, or later.
_SETTLED = '[ "$(stat -c %Y -- "$1")" -ge "$(($(stat -c %Y -- "$2") + 2))" ]'


def _unsettled(host: Host) -> str | None:
    """That the agent, which executes itself anew after a reload, may not have done so yet."""
    wrote = host.query("sh", "-c", _SETTLED, "settled", paths.AGENT_STATE, f"{STARTED}/{agent.UNIT}").ok
    return None if wrote else "it has not written its state since it was reloaded"


def _settle(_: Cluster, __: Host) -> Steps:
    yield Wait("the agent works with the keys", _unsettled, timeout=30)


# What was uploaded for an upgrade is recorded, and would be started by what follows; where that upload died, on some
# nodes only.
STORE = replace(identity.STORE, checks=(*identity.STORE.checks, UPLOADED, IN_USE))
SETTLE = Phase("settle", "Wait until the agents work with the keys", _settle)
# The agent of a release looks after the rules of that release.
AGENTS: Workflow = (NETWORK, AGENT, SETTLE)
KEYS: dict[rotation.Kind, Stages] = {
    "s3": {
        "trust": (STORE, FORM, JOINED),
        "issue": (STORE, FORM, JOINED, FRONTEND),
        "remove": (STORE, FRONTEND, FORM),
        "": (STORE,),
    },
    "heartbeat": {
        "trust": (STORE, *AGENTS),
        "issue": (STORE, *AGENTS),
        "remove": (STORE, *AGENTS),
        "": (STORE,),
    },
    # The storage accepts one token at a time, and only its own node's agent uses it, which reads it again where it is
    # refused. So both get it on one node after another; the other stages are for a run that dies.
    "admin": {
        "trust": (STORE,),
        "issue": (STORE, INSTALL, JOINED, *AGENTS),
        "remove": (STORE,),
        "": (STORE,),
    },
}
"""What brings the nodes to each stage of a new key; see ``rotation``."""

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
        cluster = cluster.with_secrets(rotation.rotate(cluster.secrets, fresh))
    actions = run(LOGINS, cluster, reporter, dry_run=dry_run)
    others(cluster)
    return actions


def finish(
    cluster: Cluster, reporter: Reporter, others: Callable[[Cluster], None], roles: Sequence[str], *,
    dry_run: bool = False,
) -> list[Action]:  # fmt: skip
    """Have the nodes refuse the previous passwords of *roles*, once *others* have the new ones.

    Raises as ``rotate``.
    """
    # What a run that died has left: the nodes accept the new ones before anybody else is given them.
    actions = run(LOGINS, cluster, reporter, dry_run=dry_run)
    others(cluster)
    # Where the overlap is over in the secrets, a run that died is completed.
    if not {*rotation.overlapping(cluster.secrets)} & {*roles}:
        return actions
    cluster = cluster.with_secrets(rotation.finish(cluster.secrets, roles))
    return [*actions, *go_on(actions, LOGINS, cluster, reporter, dry_run=dry_run)]


def replace_key(kind: rotation.Kind, cluster: Cluster, reporter: Reporter, *, dry_run: bool = False) -> list[Action]:
    """Replace the storage's S3 key (``s3``) or ``admin`` token, or the agents' ``heartbeat`` key; see ``exchange``."""
    return exchange(kind, KEYS[kind], cluster, reporter, lambda _: None, dry_run=dry_run)
