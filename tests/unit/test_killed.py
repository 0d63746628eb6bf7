"""Workflows that are killed at a change, where no test of their own does it: the same command again completes each."""

from __future__ import annotations

import pytest

from kubeadm_registry import config, pki
from kubeadm_registry.components import retention as timer
from kubeadm_registry.engine.phase import Workflow
from kubeadm_registry.engine.report import Action
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import PhaseFailed
from kubeadm_registry.phases import retention
from kubeadm_registry.phases.helper import allow
from kubeadm_registry.phases.workflows import OPERATOR_FORBID, RESET, RETENTION_TIMER_DISABLE
from tests.unit.fake_cluster import FakeCluster
from tests.unit.installed import fresh
from tests.unit.kills import every
from tests.unit.test_workflow import Recorder

pytestmark = pytest.mark.slow

PRIVATE, PUBLIC = pki.ssh_key()
ALLOW = allow(PUBLIC, PRIVATE)
ENABLE = retention.enable_timer(b"a policy")
#: What was done before, and what is killed, by the command.
KILLED: dict[str, tuple[Workflow, Workflow]] = {
    "reset": (ALLOW, RESET),
    "reset --purge-data": (ALLOW, RESET),
    "operator install": ((), ALLOW),
    "operator uninstall": (ALLOW, OPERATOR_FORBID),
    "retention timer enable": ((), ENABLE),
    "retention timer disable": (ENABLE, RETENTION_TIMER_DISABLE),
}


def ran(fake: FakeCluster, workflow: Workflow, *skip: str, cut: tuple[str, int] | None = None) -> list[Action]:
    """Run *workflow* by new connections; one breaks before that act of a server."""
    cluster = fake.cluster
    for server in fake.servers.values():
        server.answer("sh", "-c", retention._KUBELET, "kubelet", *timer.KUBELET)
    if cut is not None:
        fake.servers[cut[0]].cut_at = cut[1]
    return run(workflow, cluster, Recorder(), skip=skip)


def begun(before: Workflow) -> FakeCluster:
    fake = fresh(config.SMALLEST)
    ran(fake, before)
    for server in fake.servers.values():
        server.acts.clear()
    return fake


@pytest.mark.parametrize("command", KILLED)
def test_killed_anywhere_it_is_completed_by_the_next_run(command: str) -> None:
    before, workflow = KILLED[command]
    skip = {"reset": ("containerd", "data"), "reset --purge-data": ("containerd",)}.get(command, ())
    whole = begun(before)
    ran(whole, workflow, *skip)
    wrong = {}
    for name, server in whole.servers.items():
        assert server.acts
        for number in range(0, len(server.acts), every(5) if workflow is RESET else 1):
            fake = begun(before)
            with pytest.raises(PhaseFailed):
                ran(fake, workflow, *skip, cut=(name, number))
            ran(fake, workflow, *skip)
            if ran(fake, workflow, *skip) or state(fake) != state(whole):
                wrong[name, number] = server.acts[number]
    assert not wrong


def state(fake: FakeCluster) -> object:
    """What may not depend on how often it took."""
    return {
        name: (
            {path: it for path, it in server.tree.items() if "/started" not in path},
            server.users, {unit: found.active for unit, found in server.units.items()},
        )
        for name, server in fake.servers.items()
    }  # fmt: skip
