"""The object that shows a retention plan, and the statuses that belong to retention.

The operator writes a RegistryRetentionPlan, people read it. etcd does not hold plans of 100,000 deletions, so it has
sums and the largest of them; ``digest`` is that of the whole plan, which is an artifact in the registry.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kubeadm_registry.config.model import Metadata, Model
from kubeadm_registry.config.rules import OnServer, Rule
from kubeadm_registry.config.values import Label
from kubeadm_registry.custom_resources.status import Conditions, Moment, Text, Word

#: How many deletions are shown one by one.
LARGEST = 20
_MOST_REASONS = 32
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)]
Count = Annotated[int, Field(ge=0)]


class PlanSpec(Model):
    """Where the plan comes from. The operator writes it."""

    policy: Annotated[Label, OnServer(Rule("self == oldSelf", "cannot be changed; the operator writes this object"))]
    """Name of the RegistryPolicy."""


class RegistryRetentionPlan(Model):
    """What a policy would delete now."""

    api_version: Literal["kubeadm-registry.dev/v1alpha1"]
    kind: Literal["RegistryRetentionPlan"]
    metadata: Metadata = Metadata()
    spec: PlanSpec


class PlannedDeletion(Model):
    """An image, or one of its tags, that the plan deletes."""

    repository: str = Field(max_length=255)
    """The repository in the registry."""
    tag: str | None = Field(None, max_length=128)
    """The tag; unset: a manifest that has none."""
    digest: Digest
    """What the tag refers to."""
    rule: Word | None = None
    """The rule of the policy that does not keep it."""
    why: Text
    """Why it goes."""
    age_seconds: Count
    """Seconds since it was first seen."""
    size_bytes: Count
    """Bytes of the whole image."""
    freed_bytes: Count
    """Bytes that no other image needs."""


class PlanReason(Model):
    """Why the plan must be approved whatever the policy says."""

    code: Word
    """The reason in one word, for programs."""
    message: Text
    """The reason in a sentence."""
    hint: Text | None = None
    """What to do."""


class Approval(Model):
    """Whether the plan may run."""

    state: Literal["Required", "NotRequired", "Approved", "Outdated"]
    """Outdated: the approval names another plan than this one."""
    digest: Digest | None = None
    """The plan that was approved, by the annotation kubeadm-registry.dev/approve."""


class PlanMarker(Model):
    """By which an etcd is recognized that was restored from a backup: it remembers an earlier number than the ledger in
    the registry."""

    newest: Count
    """Written before the cluster is read."""
    confirmed: Count
    """The last one that the ledger is known to have; 0: none."""


class PlanStatus(Model):
    """The plan. Without a digest there is none, and the condition Made says why."""

    policy_generation: int | None = Field(None, ge=0)
    """The metadata.generation of the policy."""
    conditions: Conditions | None = None
    """Made: whether there is a plan. Published: whether the whole of it is in the registry. CarriedOut: what came of it
    on the nodes. ApprovalValid: whether all that the annotation has can be an approval."""
    digest: Digest | None = None
    """Digest of the sorted deletions, by which the plan is approved."""
    made: Moment | None = None
    """When the plan was made."""
    artifact: Digest | None = None
    """The whole plan, an artifact in the repository kubeadm-registry/retention of the registry; `kubeadm-registry
    retention plan --digest` shows it."""
    deletions: Count | None = None
    """How many tags, and manifests without a tag, go."""
    kept: Count | None = None
    """How many images stay."""
    freed_bytes: Count | None = None
    """Bytes that are freed."""
    freed: Word | None = None
    """The same for people, such as 1.2 GB."""
    largest: Annotated[tuple[PlannedDeletion, ...], Field(max_length=LARGEST)] | None = None
    """The deletions that free most; `kubeadm-registry retention plan --all --digest` lists every one."""
    needs_approval: Annotated[tuple[PlanReason, ...], Field(max_length=_MOST_REASONS)] | None = None
    """Why the plan must be approved although the policy may not ask for approvals."""
    marker: PlanMarker | None = None
    approval: Approval | None = None
    used_approvals: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=_MOST_REASONS)] | (
        None
    ) = None
    """What of the annotation kubeadm-registry.dev/approve a run has used. To approve the same again, remove the
    annotation first."""


class PolicyStatus(Model):
    """How the policy fares."""

    observed_generation: int | None = Field(None, ge=0)
    """The metadata.generation that the status was found for."""
    conditions: Conditions | None = None
    """Accepted: whether the operator works by this policy. RetentionHealthy: whether there is a plan, or why not.
    ImagePathsMatch: whether spec.imagePaths finds images. RulesMatch: whether each rule decides for a repository.
    PullsKnown: whether all nodes report what was pulled, without which pulledWithin keeps everything."""
    plan: Digest | None = None
    """The newest plan, in the RegistryRetentionPlan of the same name."""
