"""What is done, in which order: the page to read first."""

from collections.abc import Sequence

from kubeadm_registry.engine.phase import Phase, Workflow
from kubeadm_registry.phases.agent import AGENT
from kubeadm_registry.phases.backend import BACKEND
from kubeadm_registry.phases.base import BASE
from kubeadm_registry.phases.certificates import RENEW
from kubeadm_registry.phases.client_nodes import LEAVE, POINT
from kubeadm_registry.phases.collect import Collection
from kubeadm_registry.phases.containerd import CONTAINERD
from kubeadm_registry.phases.credentials import LOGINS
from kubeadm_registry.phases.frontend import FRONTEND
from kubeadm_registry.phases.helper import FORBID, HELPER
from kubeadm_registry.phases.identity import SECRETS, STORE
from kubeadm_registry.phases.members import ARRIVE, FORGET, MEMBERS, MOVE, SETTLE, UNINSTALL
from kubeadm_registry.phases.network import NETWORK
from kubeadm_registry.phases.preflight import PREFLIGHT
from kubeadm_registry.phases.programs import PROGRAMS_PHASE
from kubeadm_registry.phases.proxy import PROXY
from kubeadm_registry.phases.renewal import Renewal
from kubeadm_registry.phases.reset import RESET_PHASES
from kubeadm_registry.phases.restore import RESTORABLE
from kubeadm_registry.phases.retention import DISABLE_TIMER, RETENTION
from kubeadm_registry.phases.runbook import RUNBOOK
from kubeadm_registry.phases.upgrade import VERSIONS, one_by_one
from kubeadm_registry.phases.verify import VERIFY
from kubeadm_registry.phases.vip import VIP
from kubeadm_registry.phases.vip_move import Move
from kubeadm_registry.transport.host import Host

PREPARE = (PREFLIGHT, PROGRAMS_PHASE, BASE, SECRETS)
REGISTRY = (BACKEND, FRONTEND, PROXY, AGENT, VIP, SETTLE)
SERVE = (MEMBERS, NETWORK, *REGISTRY)
FINISH = (RETENTION, HELPER, RUNBOOK, CONTAINERD, VERIFY)

INIT = (*PREPARE, *SERVE, *FINISH)
"""Install, or update: from bare hosts to a verified registry."""

CHANGE_MEMBERS = (*PREPARE, ARRIVE, MOVE, UNINSTALL, *SERVE, FORGET, *FINISH)
"""Join, leave and replace: the storage copies first; nodes that leave stop when the others have their data; then the
agents vote by the new list, at first with the one before, until all have promised not to go back to it."""

RECOVER = (*PREPARE, MEMBERS, NETWORK, HELPER, ARRIVE, MOVE, *REGISTRY, *(one for one in FINISH if one is not HELPER))
"""Half of the nodes or more are lost: those that are left keep the lost ones out, then give new ones what they have.

The helper's keys come before the agents: a node with an agent is no longer new, and says which keys the nodes have.
"""

RESTORE = (RESTORABLE, PREFLIGHT, PROGRAMS_PHASE, BASE, MEMBERS, SECRETS, NETWORK, *REGISTRY, *FINISH)
"""Onto bare hosts with the secrets of a backup, which the cluster's vault has; images come from bundles afterwards.

The list of members comes before the secrets: `init`, which may complete this, would begin one that keeps out nobody.
"""

NODE = tuple(phase for phase in INIT if phase not in (PREFLIGHT, PROGRAMS_PHASE, SETTLE, VERIFY))
"""What makes a node of a host: all of INIT that may be done on one node after another."""

PREFLIGHT_ONLY = (PROGRAMS_PHASE,)
"""After the checks: the programs are uploaded to their final path and started once. Nothing depends on them yet."""

VERIFY_ONLY = (VERIFY,)

RESET = RESET_PHASES
"""Uninstall."""

RETENTION_TIMER_DISABLE = DISABLE_TIMER
"""Undo `retention timer enable`, whose phase holds the policy: `phases/retention.py` makes it."""

OPERATOR_FORBID = FORBID
"""Undo what `operator install` does on the nodes; `phases/helper.py` makes that, which holds the key."""

MIRRORS = (POINT,)
"""Configure containerd on a client node, where nothing else is installed."""

MIRRORS_REMOVE = (LEAVE,)
"""Undo `mirrors apply` on a client node."""


CERTS_RENEW = RENEW
"""New certificates, one node at a time; the request for them is stored first."""

CREDENTIALS_ROTATE = LOGINS
"""New passwords: the proxies accept both, then everything on the nodes uses the new ones."""


def move_vip(run: Move) -> Workflow:
    """Move the virtual IP to a named node, as planned: nobody is cut off."""
    return (run.keep, run.ask, run.arrive, run.reopen, run.serve)


def collect(run: Collection) -> Workflow:
    """Free what no manifest needs, with Distribution: pushes wait meanwhile, pulls go on."""
    return (run.close, run.drain, run.sweep, *reopen(run))


def complete(run: Collection) -> Workflow:
    """The end of a ``collect`` that died: nothing more is deleted, and pushes open before their time."""
    return (run.close, run.end, *reopen(run))


def reopen(run: Collection) -> Workflow:
    """The end of ``collect``, also after a failure in the middle."""
    return (run.restart, run.reopen)


def renew_blobs(run: Renewal) -> Workflow:
    """Have the registry take blobs again that the storage has lost in part."""
    return (run.delete, run.restart)


def upgrade(hosts: Sequence[Host]) -> Workflow:
    """Install another version, one node at a time: *hosts* are all of them, as they take their turns."""
    # Nothing runs from these yet. Every node has the secrets before the first of them is used, as in INIT.
    staged = (PROGRAMS_PHASE, Phase("secrets", "Store the secrets that this release adds", phases=(STORE,)))
    return (PREFLIGHT, VERSIONS, *staged, *one_by_one(hosts, NODE), VERIFY)
