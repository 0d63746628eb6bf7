"""The operator's helper on the nodes: `operator install` lets a key ask, `init` keeps what answers current."""

from __future__ import annotations

from functools import partial

from kubeadm_registry.components import helper
from kubeadm_registry.engine.phase import Phase, Workflow
from kubeadm_registry.phases.immutable import OF_MEMBERS
from kubeadm_registry.phases.programs import UPLOADED
from kubeadm_registry.phases.records import RECORDS

HELPER = Phase("helper", "Update the operator's helper, if installed", helper.update, checks=(*OF_MEMBERS, RECORDS))


def allow(public: str, private: str = "") -> Workflow:
    """Have the helper answer to the owner of the SSH key *public*, and to nobody else.

    By the key *private* the nodes reach each other to replace one, unless it is empty.
    """
    steps = partial(helper.install, public=public, private=private)
    checks = (*OF_MEMBERS, RECORDS, UPLOADED)
    return (Phase("helper", "Install the helper and the operator's key", steps, checks=checks),)


# A member that an old file lacks would keep the key.
FORBID = (Phase("helper", "Remove the helper and the operator's key", helper.remove, checks=OF_MEMBERS),)
