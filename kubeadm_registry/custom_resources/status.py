"""The status of custom resources, as models of which schemas are made.

``ClusterStatus`` is what ``kubeadm-registry status -o json`` prints (``kubeadm_registry/status.py``), and in each
condition the time that Kubernetes' conditions have besides. Those of retention are in ``plans.py``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kubeadm_registry.config.model import Model
from kubeadm_registry.config.rules import OnServer
from kubeadm_registry.config.values import Address, NodeName

_MOST_CONDITIONS = 32
_MOST_NODES = 16
"""More than spec.nodes may have: a node that is replaced and the one in its place."""
Word = Annotated[str, Field(max_length=63)]
Text = Annotated[str, Field(max_length=4096)]
Moment = Annotated[str, OnServer(format="date-time")]


class Condition(Model):
    """A condition, as Kubernetes' API conventions have it (metav1.Condition, with its limits)."""

    type: str = Field(max_length=316, pattern=r"^[A-Za-z][A-Za-z0-9]*$")
    """What is said something of, as CanLoseANode."""
    status: Literal["True", "False", "Unknown"]
    """Whether it is so."""
    reason: str = Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    """Why, in one word for programs."""
    message: str = Field(max_length=32768)
    """Why, in a sentence for people."""
    last_transition_time: Moment
    """Since when *status* is what it is."""
    observed_generation: int | None = Field(None, ge=0)
    """The metadata.generation that this was found for; an older one than the object's means: not yet looked at."""


Conditions = Annotated[
    tuple[Condition, ...],
    Field(max_length=_MOST_CONDITIONS),
    OnServer(**{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
]


class VipReport(Model):
    """The virtual IP as it is."""

    address: Address | None = None
    """The address."""
    holder: NodeName | None = None
    """The node that holds it; unset if none does, or more than one."""


class NodeReport(Model):
    """A node as it is."""

    name: NodeName
    """Name of the node."""
    reachable: bool | None = None
    """Whether it could be asked."""
    fit: bool | None = None
    """Whether it serves reads."""
    services: dict[str, Word] | None = Field(None, max_length=32)
    """Each service with the state of its unit, "active" if it runs."""
    message: Text | None = None
    """What could not be asked, and why."""
    level: int | None = None
    """The agent's: 0 healthy, 1 the registry is slow or wrong there, 2 a process is dead or hung."""
    conditions: Annotated[tuple[Word, ...], Field(max_length=64)] | None = None
    """What the agent has to say, a word each."""
    certificate_expires: Moment | None = None
    """When the certificate that it presents to clients expires."""
    certificate_days: int | None = None
    """Whole days until then."""
    authority_expires: Moment | None = None
    """When the CA's certificate expires."""
    health: Conditions | None = None
    """What the operator found of this node, and since when."""


class SpaceReport(Model):
    """What the operator freed last."""

    began: Moment
    """When it began."""
    ended: Moment
    """When it ended."""
    before_bytes: int = Field(ge=0)
    """What was stored before, each image's bytes once."""
    after_bytes: int = Field(ge=0)
    """What was stored then; the disks follow about ten minutes later."""
    freed_bytes: int = Field(ge=0)
    """The bytes of the blobs that were deleted."""
    blobs: int = Field(ge=0)
    """How many blobs were deleted."""
    kept: int = Field(ge=0)
    """How many stayed, since a push relied on them within a day."""
    closed_seconds: int = Field(ge=0)
    """For how long pushes waited, with Distribution."""


class ReplacementReport(Model):
    """Which node was replaced last, or is being replaced."""

    old: NodeName
    """The node that is replaced."""
    new: NodeName
    """The machine that takes its place."""
    cause: Literal["SpecChanged", "NodeGone"]
    """Who asked for it: an edit of spec.nodes, or the operator itself since the node was gone."""
    result: Literal["Running", "Ended", "Failed", "Done"]
    """Ended: it was broken off, and goes on with the next round. Failed: so it does, ten minutes later."""
    node: NodeName | None = None
    """The member that does it."""
    step: Word | None = None
    """The phase that it began last; `kubeadm-registry replace --help` lists them."""
    began: Moment
    """When that member began."""
    ended: Moment | None = None
    """When it ended there."""
    message: Text | None = None
    """Why it failed."""


class ClusterStatus(Model):
    """What the operator found; `kubeadm-registry status` finds the same."""

    observed_generation: int | None = Field(None, ge=0)
    """The metadata.generation that the status was found for."""
    conditions: Conditions | None = None
    """What is known of the registry, and since when. CanLoseANode: whether any one node may fail now."""
    vip: VipReport | None = None
    space: SpaceReport | None = None
    replacement: ReplacementReport | None = None
    nodes: (
        Annotated[
            tuple[NodeReport, ...],
            Field(max_length=_MOST_NODES),
            OnServer(**{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
        ]
        | None
    ) = None
    """Each node as it is."""
