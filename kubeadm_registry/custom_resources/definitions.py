"""The custom resources: their names, what ``kubectl get`` shows, and their schemas from the models.

Another resource is another entry of DEFINITIONS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.config.rules import VALIDATIONS
from kubeadm_registry.config.values import OBJECT_NAME
from kubeadm_registry.custom_resources.plans import PlanStatus, PolicyStatus, RegistryRetentionPlan
from kubeadm_registry.custom_resources.schema import Schema, structural
from kubeadm_registry.custom_resources.status import ClusterStatus
from kubeadm_registry.retention import RegistryPolicy

GROUP = "kubeadm-registry.dev"
VERSION = "v1alpha1"
#: ``kubectl get kubeadm-registry`` shows everything of it.
CATEGORY = "kubeadm-registry"
_LONGEST_NAME = 63


@dataclass(frozen=True, slots=True)
class Column:
    """A column of ``kubectl get``; one that is not *narrow* needs ``-o wide``."""

    name: str
    path: str
    description: str
    kind: str = "string"
    narrow: bool = True

    def as_json(self) -> dict[str, Any]:
        """An item of ``additionalPrinterColumns``."""
        shown = {"name": self.name, "type": self.kind, "jsonPath": self.path, "description": self.description}
        return shown if self.narrow else {**shown, "priority": 1}


def _condition(kind: str, name: str, description: str, *, narrow: bool = True, field: str = "status") -> Column:
    return Column(name, f'.status.conditions[?(@.type=="{kind}")].{field}', description, narrow=narrow)


AGE = Column("Age", ".metadata.creationTimestamp", "When the object was made.", kind="date")


@dataclass(frozen=True, slots=True)
class Definition:
    """A custom resource: *model* reads its file, and has a field ``spec``; *status* is its status."""

    model: type[BaseModel]
    status: type[BaseModel]
    plural: str
    short_names: tuple[str, ...]
    description: str
    columns: tuple[Column, ...]

    @property
    def kind(self) -> str:
        """``RegistryCluster``."""
        return self.model.__name__

    @property
    def name(self) -> str:
        """``registryclusters.kubeadm-registry.dev``, the name of its definition."""
        return f"{self.plural}.{GROUP}"

    def schema(self) -> Schema:
        """The structural schema of the whole object. Raises NotStructural."""
        return {
            "description": self.description,
            "type": "object",
            **({"required": ["spec"]} if self.model.model_fields["spec"].is_required() else {}),
            # A schema sees of the metadata the name alone.
            VALIDATIONS: [OBJECT_NAME.as_json()],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": {
                    "type": "object",
                    "properties": {"name": {"type": "string", "maxLength": _LONGEST_NAME}},
                },
                "spec": structural(self.model, "spec"),
                "status": structural(self.status),
            },
        }

    def as_object(self) -> dict[str, Any]:
        """The CustomResourceDefinition."""
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.name},
            "spec": {
                "group": GROUP,
                # An object of a namespace would end with the namespace, and nobody would be asked.
                "scope": "Cluster",
                "names": {
                    "kind": self.kind,
                    "listKind": f"{self.kind}List",
                    "plural": self.plural,
                    "singular": self.kind.lower(),
                    "shortNames": list(self.short_names),
                    "categories": [CATEGORY],
                },
                "versions": [
                    {
                        "name": VERSION,
                        "served": True,
                        "storage": True,
                        "additionalPrinterColumns": [column.as_json() for column in self.columns],
                        "subresources": {"status": {}},
                        "schema": {"openAPIV3Schema": self.schema()},
                    }
                ],
            },
        }


DEFINITIONS = (
    Definition(
        model=RegistryCluster,
        status=ClusterStatus,
        plural="registryclusters",
        short_names=("regc",),
        description="A registry as `kubeadm-registry init` installs it, described by the same file.",
        columns=(
            _condition("Available", "Available", "Whether the registry serves at the virtual IP."),
            _condition("CanLoseANode", "Can Lose A Node", "Whether any one node may fail now."),
            Column("VIP Holder", ".status.vip.holder", "The node that holds the virtual IP."),
            AGE,
            Column("VIP", ".spec.vip.address", "The virtual IP.", narrow=False),
            Column("Frontend", ".spec.frontend.type", "The registry program.", narrow=False),
            _condition("RedundancyComplete", "Storage", "Whether the storage is fully replicated.", narrow=False),
            _condition("CertificatesValid", "Certificates", "Whether clients accept them.", narrow=False),
            _condition("CanLoseANode", "Reason", "Why no node may fail now.", narrow=False, field="message"),
        ),
    ),
    Definition(
        model=RegistryPolicy,
        status=PolicyStatus,
        plural="registrypolicies",
        short_names=("regp",),
        description="Which images to keep in the registry, described by the same file that `kubeadm-registry retention "
        "plan` reads. There is one. Images in use are kept whatever it says.",
        columns=(
            _condition("RetentionHealthy", "Healthy", "Whether there is a plan."),
            Column("Approval", ".spec.approval", "Whether every plan needs an approval."),
            AGE,
            Column("Plan", ".status.plan", "Digest of the newest plan.", narrow=False),
            _condition("RetentionHealthy", "Reason", "Why there is none.", narrow=False, field="message"),
        ),
    ),
    Definition(
        model=RegistryRetentionPlan,
        status=PlanStatus,
        plural="registryretentionplans",
        short_names=("regplan",),
        description="What a RegistryPolicy would delete now, written by the operator. Approve it by an annotation with "
        "the whole of its digest: kubectl annotate regplan NAME kubeadm-registry.dev/approve=DIGEST",
        columns=(
            Column("Deletions", ".status.deletions", "How many tags and untagged manifests go.", kind="integer"),
            Column("Frees", ".status.freed", "How much space is freed."),
            Column("Approval", ".status.approval.state", "Whether the plan may run."),
            Column("Made", ".status.made", "When the plan was made.", kind="date"),
            Column("Digest", ".status.digest", "Digest by which the plan is approved.", narrow=False),
            _condition("Made", "Reason", "Why there is no plan.", narrow=False, field="message"),
        ),
    ),
)
