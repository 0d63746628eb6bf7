"""Asks the nodes for all that the rules want to know. Reads only."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

from kubeadm_registry import status as cluster_status
from kubeadm_registry.access import session
from kubeadm_registry.bundle import Program
from kubeadm_registry.cluster import Cluster, read_members, read_vault
from kubeadm_registry.components.services import data_directories, existing, formed
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.doctor import facts
from kubeadm_registry.doctor.facts import Facts
from kubeadm_registry.doctor.snapshot import NodeSnapshot, Snapshot
from kubeadm_registry.engine.look import Difference, differences
from kubeadm_registry.engine.memory import remembering
from kubeadm_registry.engine.phase import Workflow, select
from kubeadm_registry.engine.report import JsonLines
from kubeadm_registry.engine.workflow import preflight
from kubeadm_registry.errors import Error, PreflightFailed, Problem
from kubeadm_registry.phases.workflows import INIT
from kubeadm_registry.secrets import Vault
from kubeadm_registry.transport.host import Host, side_by_side

#: Phases that find nothing out of order on a node: the checks, and a pull through each node, which the agents do all
#: the time.
NOT_COMPARED = ("preflight", "verify")
#: It makes the kernel forget who has the address. Here ``wire`` asks, which changes nothing.
NOT_CHECKED = ("VipUnused",)
#: Without the secrets all data look like those of another registry, to be moved away.
NOT_WITHOUT_SECRETS = ("DataDirectory",)


@dataclass(frozen=True, slots=True)
class _Compared:
    """What preflight's checks and init's comparison found, and what the nodes have at all."""

    problems: Sequence[Problem] = ()
    differences: Sequence[Difference] = ()
    made: bool = False
    secrets_error: Error | None = None
    stores: Mapping[str, bool] = field(default_factory=dict)
    configured: Mapping[str, bool] = field(default_factory=dict)


def examine(
    config: RegistryCluster, hosts: Sequence[Host], unreachable: Mapping[str, str], workflow: Workflow = INIT
) -> Snapshot:
    """Ask *hosts* side by side; *unreachable* says why each of the others cannot be reached.

    A node that stops answering meanwhile counts as unreachable. *workflow* is what the nodes are compared with.
    """
    hosts = [host.as_read_only() for host in hosts]
    earlier = cluster_status.gather(config, hosts, unreachable)
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(side_by_side, lambda host: _ask(config, host), hosts)
        compared = pool.submit(_compare, config, hosts, unreachable, workflow)
        answers = dict(zip((host.name for host in hosts), asked.result(), strict=True))
        found = compared.result()
    later = cluster_status.gather(config, hosts, unreachable)
    nodes = []
    for node, before, now in zip(config.spec.nodes, earlier, later, strict=True):
        answer = answers.get(node.name)
        failed = isinstance(answer, Error)
        after = replace(now, reachable=False, trouble=now.trouble or str(answer)) if failed else now
        nodes.append(
            NodeSnapshot(
                node.name,
                node.address,
                after,
                before,
                facts=answer if isinstance(answer, Facts) and after.reachable else None,
                stores=found.stores.get(node.name, False),
                made=found.configured.get(node.name, False),
                problems=[one for one in found.problems if one.host == node.name],
                differences=[one for one in found.differences if one.host == node.name],
            )
        )
    made = found.made or any(one.installed for one in nodes)
    judged, judged_earlier = (cluster_status.judge(config, one) for one in (later, earlier))
    return Snapshot(config, nodes, judged, judged_earlier, made, found.secrets_error)


def _ask(config: RegistryCluster, host: Host) -> Facts | Error:
    try:
        return facts.ask(config, config.spec.node(host.name), host)
    except Error as error:
        return error


def _compare(
    config: RegistryCluster, hosts: Sequence[Host], unreachable: Mapping[str, str], workflow: Workflow
) -> _Compared:
    """What preflight's checks find, and what init would change. As far as it can be told: nothing is raised."""
    if not hosts:
        return _Compared()
    names = [node.name for node in config.spec.nodes]
    flaw = None
    try:
        vault = read_vault(config, hosts, data_directories(config.spec))
    except Error as error:
        vault, flaw = Vault(config.metadata.name, names, {}), error
    recorded, told = None, True
    try:
        recorded = read_members(config, hosts)
    except Error:  # the checks say it
        told = False
    programs = _programs(hosts)
    cluster = remembering(Cluster(config, tuple(hosts), vault, programs, absent=unreachable, recorded=recorded))
    configured, stores = (
        dict(zip((host.name for host in cluster.hosts), side_by_side(one, cluster.hosts), strict=True))
        for one in (_has_configuration, lambda host: _has_stored(config, host))
    )
    if not vault.made and flaw is None:
        return _Compared(made=any(configured.values()), configured=configured, stores=stores)
    selected = select(workflow)
    left_out = (*NOT_CHECKED, *(NOT_WITHOUT_SECRETS if flaw is not None else ()))
    checked = [
        (path, replace(phase, checks=tuple(check for check in phase.checks if check.name not in left_out)))
        for path, phase in selected
    ]
    problems: Sequence[Problem] = ()
    try:
        problems = preflight(checked, cluster, JsonLines(io.StringIO()), ignore=("all",))
    except PreflightFailed as failed:
        problems = failed.problems
    except Error:  # a node that stopped answering; its status says so
        pass
    differ: Sequence[Difference] = ()
    if flaw is None and told:
        differ = differences(
            [(path, phase) for path, phase in selected if path.partition("/")[0] not in NOT_COMPARED], cluster
        )
    return _Compared(problems, differ, True, flaw, stores, configured)


def _programs(hosts: Sequence[Host]) -> Mapping[str, Program]:
    """The programs as the nodes recorded them; none where the record is damaged or no node has one."""
    with suppress(Error):
        return session.installed(hosts)
    return {}


def _has_configuration(host: Host) -> bool:
    try:
        return existing(host) is not None
    except Error:  # it was changed by hand, so it is there
        return True


def _has_stored(config: RegistryCluster, host: Host) -> bool:
    with suppress(Error):
        return formed(host, config.spec.data_directory)
    return False
