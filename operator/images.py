"""Images that pods use and the registry lacks: found before a node needs them."""

from __future__ import annotations

from collections.abc import Sequence

from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.config.values import EVERY_REGISTRY
from kubeadm_registry.errors import RegistryError
from kubeadm_registry.images import pool
from kubeadm_registry.images.names import Place, hosts
from kubeadm_registry.oci.references import in_pod, parse_in_pod, repository_prefix
from kubeadm_registry.operator.conditions import Verdict
from kubeadm_registry.printable import counted, shown
from kubeadm_registry.registry import Api, retry
from kubeadm_registry.retention import Use
from kubeadm_registry.upkeep.clusters import ClusterReport

#: Seconds that one question may be repeated.
_PATIENCE = 10.0
#: Distribution has no repository with a longer name, and answers 500 when it is asked for one.
_LONGEST = 255
#: How many are named; a message has 32 kB.
_NAMED = 50
_KIND = "ImagesMissing"


def place_of(config: RegistryCluster, reference: str) -> Place | None:
    """Where a node of the cluster looks for *reference* in the registry; None if it is pulled from elsewhere."""
    found = parse_in_pod(in_pod(reference) or "")
    if found is None:
        return None
    if found.host in hosts(config.spec):
        return Place(found.path, found.wanted)
    if found.host.startswith("["):
        return None  # containerd looks for no mirror of an IPv6 address
    if {found.host, EVERY_REGISTRY} & {*config.spec.mirrors}:
        return Place(f"{repository_prefix(found.host)}/{found.path}", found.wanted)
    return None


def missing(config: RegistryCluster, connect: pool.Connect, uses: Sequence[Use]) -> list[tuple[Place, Use]]:
    """Those of *uses* that nodes look for in the registry, to which *connect* leads, and that it lacks.

    Raises RegistryError if the registry cannot be asked.
    """
    wanted = {place: use for use in uses if (place := place_of(config, use.reference)) is not None}

    def is_there(registry: Api, place: Place) -> bool:
        try:
            patience = _PATIENCE if len(place.repository) <= _LONGEST else 0.0
            return retry(lambda: registry.digest(place.repository, place.reference), patience) is not None
        except RegistryError:
            if len(place.repository) <= _LONGEST:
                raise
            return False  # a pod may name anything, which must not hide what the registry lacks besides

    answers = pool.each(connect, is_there, sorted(wanted, key=str))
    return [(place, wanted[place]) for place, there in answers if not there]


def verdict(config: RegistryCluster, connect: pool.Connect, report: ClusterReport) -> Verdict:
    """The condition ImagesMissing for what *report* says of the cluster's pods."""
    if report.problems:
        return Verdict(_KIND, None, report.problems[0].code, report.problems[0].message)
    try:
        found = missing(config, connect, report.uses)
    except RegistryError as error:
        return Verdict(_KIND, None, "RegistryNotAsked", error.message)
    if not found:
        return Verdict(_KIND, False, "AllThere", "the registry has every image that pods pull from it")
    named = ", ".join(f"{place} ({shown(use.who(), 200)})" for place, use in found[:_NAMED])
    more = f", and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return Verdict(
        _KIND, True, "NotInRegistry",
        f"{counted(len(found), 'image')} that pods use cannot be pulled again: {named}{more}",
    )  # fmt: skip
