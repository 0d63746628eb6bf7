"""Retention on the nodes: the place of its executor, and the timer by which it works without being told."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from kubeadm_registry import paths
from kubeadm_registry.bundle import TOOL
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import pulls, retention
from kubeadm_registry.engine.changes import Absent, Disabled, File, Running, Steps, unit_path
from kubeadm_registry.engine.phase import Check, Phase, Workflow
from kubeadm_registry.phases.immutable import OF_MEMBERS
from kubeadm_registry.transport.host import Host

_WITH_IT = f"create a bundle with it (without --with, or with --with ...,{TOOL})"


def lacking(cluster: Cluster, host: Host) -> Iterator[str]:
    """That the program is not there, once for all nodes."""
    if host == cluster.leader and TOOL not in cluster.programs:
        yield (
            f"retention cannot run on the nodes: {'the bundle has' if cluster.bundle else 'they have'} no program "
            f"{TOOL}; {_WITH_IT}"
        )


def kept(cluster: Cluster, host: Host) -> Iterator[str]:
    """The program is there that retention and the operator's helper run on this node, if they do."""
    if TOOL not in cluster.programs and host.query("test", "-e", f"{paths.UNITS}/{retention.TEMPLATE}").ok:
        has = "the bundle has" if cluster.bundle else "the nodes have"
        yield (
            f"{has} no program {TOOL}, and this node runs retention from it, and the operator's helper if that is "
            f"installed; they would be removed: {_WITH_IT}"
        )


def install(cluster: Cluster, host: Host) -> Steps:
    """Install the executor's units, and what it is told by."""
    yield from retention.install(cluster, host)
    yield from pulls.install(cluster, host)


RETENTION = Phase(
    "retention",
    "Install the retention executor and pull recorder",
    install,
    checks=(*OF_MEMBERS, Check("RetentionProgram", kept)),
    notices=lacking,
)


def installed(_: Cluster, host: Host) -> Iterator[str]:
    """The units of the retention executor are installed."""
    if not host.query("test", "-e", unit_path(retention.TIMER)).ok:
        yield f"{retention.TIMER} is not installed; run `kubeadm-registry init` with a bundle that holds {TOOL}"


#: Those of the files ``$@`` that are there, and whether a kubelet runs.
_KUBELET = """
for file; do [ ! -e "$file" ] || echo "$file exists"; done
! systemctl is-active --quiet kubelet.service || echo "kubelet.service is running"
"""


def no_kubelet(_: Cluster, host: Host) -> Iterator[str]:
    """No kubelet is configured on the nodes: the timer does not know what a Kubernetes cluster uses."""
    found = host.query("sh", "-c", _KUBELET, "kubelet", *retention.KUBELET).text.splitlines()
    if found:
        yield (
            f"{', '.join(found)}: this node is part of a Kubernetes cluster, and the timer does not know which images "
            "its pods use; run `kubeadm-registry retention plan --kubeconfig FILE` instead"
        )


def enable_timer(policy: bytes) -> Workflow:
    """Have the timer work by *policy*, the content of a policy file, on every node."""
    own = (Check("RetentionInstalled", installed, mandatory=True), Check("NoKubelet", no_kubelet, mandatory=True))
    checks = (*OF_MEMBERS, *own)
    steps = partial(_enable, policy)
    return (Phase("timer", "Store the policy and enable the timer of retention", steps, checks=checks),)


def _enable(policy: bytes, _: Cluster, __: Host) -> Steps:
    yield File(retention.POLICY, policy, mode=0o640, owner=f"root:{retention.USER}")
    yield Running(retention.TIMER, ())


def _disable(_: Cluster, __: Host) -> Steps:
    yield Disabled(retention.TIMER)
    yield Absent(retention.POLICY)


# A member that an old file lacks would go on by the policy of before.
DISABLE_TIMER = (Phase("timer", "Disable the timer of retention and remove its policy", _disable, checks=OF_MEMBERS),)
