"""The phases of each command, in their order. Read this module first."""

from collections.abc import Sequence
from dataclasses import replace

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
from kubeadm_registry.phases.records import RECORDS
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
"""Install or update the registry, from bare hosts to a verified registry."""

CHANGE_MEMBERS = (*PREPARE, ARRIVE, MOVE, UNINSTALL, *SERVE, FORGET, *FINISH)
"""Join, leave and replace. The storage copies data first, and nodes that leave stop once the others have theirs. Then
the agents vote by the new list of members and by the previous one, until all have promised not to return to that."""

RECOVER = (*PREPARE, MEMBERS, NETWORK, HELPER, ARRIVE, MOVE, *REGISTRY, *(one for one in FINISH if one is not HELPER))
"""Recover after half of the nodes or more are lost: the remaining ones exclude those, then new ones copy from them.

The helper's keys are written before the agents start: a node with an agent no longer counts as new, and its keys count
when the nodes agree on them.
"""

RESTORE = (RESTORABLE, PREFLIGHT, PROGRAMS_PHASE, BASE, MEMBERS, SECRETS, NETWORK, *REGISTRY, *FINISH)
"""Install on bare hosts with the secrets of a backup, which are in the cluster's vault; images are loaded afterwards.

The list of members is written before the secrets: `init`, which may complete an interrupted restore, would start a new
list, which excludes no former node.
"""

NODE = tuple(phase for phase in INIT if phase not in (PREFLIGHT, PROGRAMS_PHASE, SETTLE, VERIFY))
"""Set up a single node: the phases of INIT that can run on one node at a time."""

PREFLIGHT_ONLY = (replace(PROGRAMS_PHASE, checks=()),)
"""After the checks of INIT: upload the programs to their final path, start each once. Nothing depends on them yet."""

VERIFY_ONLY = (VERIFY,)

RESET = RESET_PHASES
"""Uninstall."""

RETENTION_TIMER_DISABLE = DISABLE_TIMER
"""Undo `retention timer enable`. The phase of that command contains the policy; see `phases/retention.py`."""

OPERATOR_FORBID = FORBID
"""Undo what `operator install` does on the nodes. Its phase contains the key; see `phases/helper.py`."""

MIRRORS = (POINT,)
"""Configure containerd on a client node, where nothing else is installed."""

MIRRORS_REMOVE = (LEAVE,)
"""Undo `mirrors apply` on a client node."""

CERTS_RENEW = RENEW
"""Issue new certificates, one node at a time. The request for them is stored first."""

CREDENTIALS_ROTATE = LOGINS
"""Change passwords: the proxies accept both, then everything on the nodes uses the new ones."""


def move_vip(run: Move) -> Workflow:
    """Move the virtual IP to a named node without breaking connections."""
    return (run.keep, run.ask, run.arrive, run.reopen, run.serve)


def collect(run: Collection) -> Workflow:
    """Delete blobs that no manifest refers to, with Distribution. Pushes wait meanwhile; pulls continue."""
    return (run.close, run.drain, run.sweep, *reopen(run))


def complete(run: Collection) -> Workflow:
    """Complete a ``collect`` that was interrupted: delete nothing more, and open pushes before their deadline."""
    return (run.close, run.end, *reopen(run))


def reopen(run: Collection) -> Workflow:
    """Restart the registry and open pushes: the end of ``collect``, also after one of its phases failed."""
    return (run.restart, run.reopen)


def renew_blobs(run: Renewal) -> Workflow:
    """Have the registry accept blobs again that the storage has lost in part."""
    return (run.delete, run.restart)


def upgrade(hosts: Sequence[Host]) -> Workflow:
    """Install another version, one node at a time, in the order of *hosts*."""
    # No service uses these yet. As in INIT, every node has the secrets before the first service uses one.
    programs = replace(PROGRAMS_PHASE, checks=(RECORDS,))  # VERSIONS looks at the versions, of all nodes at once
    staged = (programs, Phase("secrets", "Store the secrets that this release adds", phases=(STORE,)))
    return (PREFLIGHT, VERSIONS, *staged, *one_by_one(hosts, NODE), VERIFY)
