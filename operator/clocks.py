"""Compares the operator's clock with those of the nodes, by which the ages in the ledger count.

A pod has the clock of the machine where it runs, which need not be a node, and may be set wrong.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import suppress

from kubeadm_registry.access.executor import ByHelper
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.errors import Error, RegistryError
from kubeadm_registry.operator.probes import PATIENCE
from kubeadm_registry.operator.way import Way
from kubeadm_registry.retention.protected import CLOCK_TOLERANCE
from kubeadm_registry.transport.host import side_by_side


def compare_clocks(cluster: RegistryCluster, way: Way, clock: Callable[[], float]) -> None:
    """Check that *clock* agrees with the median of the clocks of the nodes that can be asked.

    Raises Error (ClockDoubtful), and RegistryError if none can be asked.
    """
    helpers = {one.name: one for one in way.nodes(cluster) or ()}
    found = side_by_side(lambda node: _ahead(helpers.get(node.name), node, way, clock), cluster.spec.nodes)
    told = [one for one in found if not isinstance(one, RegistryError)]
    if not told:
        raise next(one for one in found if isinstance(one, RegistryError))
    off = statistics.median(told)
    if abs(off) > CLOCK_TOLERANCE:
        raise Error(
            f"the clock of the operator is {abs(off):.0f} seconds {'ahead of' if off > 0 else 'behind'} those of the "
            "nodes", code="ClockDoubtful", hint="set the clock of the machine where the operator's pod runs",
        )  # fmt: skip


def _ahead(helper: ByHelper | None, node: Node, way: Way, clock: Callable[[], float]) -> float | RegistryError:
    """Seconds by which *clock* is ahead of that of *node*, which its agent tells every second.

    Without a *helper* to ask for that, the registry tells, at this node or behind its proxy.
    """
    if helper is not None:
        with suppress(Error):
            said = (helper.look().agent or {}).get("time")
            if said is not None:
                return clock() - float(said)
    try:
        with way.registry(node.address, timeout=PATIENCE)() as registry:
            said = registry.time()
    except RegistryError as error:
        return error
    return clock() - said
