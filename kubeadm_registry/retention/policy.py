"""The policy file: which images to keep. It is also the custom resource RegistryPolicy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kubeadm_registry.config import document
from kubeadm_registry.config.contradictions import Contradiction
from kubeadm_registry.config.durations import Duration
from kubeadm_registry.config.model import Metadata, Model
from kubeadm_registry.config.rules import OnServer, matching
from kubeadm_registry.config.rules import Rule as ServerRule
from kubeadm_registry.config.values import Flag, Label, Whole
from kubeadm_registry.retention import globs, jsonpath
from kubeadm_registry.retention.versions import Level

_KEEPS_TEXT = "must say what to keep, such as newest or within; nothing would be kept"
_MOST_RULES = 64
_MOST_PATTERNS = 64
#: Patterns of a rule that a message names.
_NAMED = 3
_HINT = "see docs/retention.md for all keys and for examples"
SMALLEST = """\
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryPolicy
metadata: {name: retention}
spec:
  rules:
    - name: ci
      repositories: ["team/*"]
      keep: {newest: 10}
"""


def _tags(value: str) -> str:
    globs.tag(value)
    return value


def _repositories(value: str) -> str:
    globs.repository(value)
    return value


TagPattern = Annotated[
    str,
    AfterValidator(_tags),
    OnServer(*globs.TAG_RULES, maxLength=globs.LONGEST_TAG),
]
RepositoryPattern = Annotated[
    str,
    AfterValidator(_repositories),
    OnServer(*globs.REPOSITORY_RULES, maxLength=globs.LONGEST_REPOSITORY),
]
#: ``Keep.keeps_something`` for an API server.
_KEEPS = ServerRule(
    "(has(self.all) && self.all) || (has(self.tags) && size(self.tags) > 0) || "
    "has(self.newest) || has(self.within) || has(self.pulledWithin) || has(self.semver)",
    _KEEPS_TEXT,
)


def _given(value: object) -> object:
    if value is None:  # as if the key was not there, a rule would keep less than was meant
        raise ValueError("has no value")
    return value


_GIVEN = BeforeValidator(_given)
_RESOURCE_TEXT = "must be the plural of a custom resource in lower case, such as workflows"
_VERSION_TEXT = "must be the API group and version of a custom resource, such as argoproj.io/v1alpha1"
_RESOURCE = r"[a-z]([-a-z0-9]*[a-z0-9])?"
_API_VERSION = rf"{_RESOURCE}([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)+/v[0-9]+((alpha|beta)[0-9]+)?"
_LONGEST_PATH = 256
_MOST_PATHS = 64


def _matching(pattern: str, text: str, longest: int) -> Any:
    """A text that matches *pattern* as a whole, by the same rule here and on an API server."""

    def check(value: str) -> str:
        if len(value) > longest or not re.fullmatch(pattern, value):
            raise ValueError(text)
        return value

    return AfterValidator(check), OnServer(matching(pattern, text), maxLength=longest)


_BY_NAME = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
SetName = Literal["bundle", "kubeadm"]
Count = Annotated[Whole, Field(ge=1, le=100_000)]


class Semver(Model):
    """Keeps the newest versions, of tags that are versions (semver.org), with or without a leading v."""

    newest: Count
    """How many versions to keep."""
    of_each: Level = "minor"
    """Of each of which versions: 3 of each minor keeps 1.2.9, 1.2.8, 1.2.7, 1.1.4, and so on."""


class Keep(Model):
    """What a rule keeps. An image is kept if any of these keeps it, by any of its tags; all its tags then stay."""

    all: Flag = False
    """Keep every image."""
    newest: Annotated[Count | None, _GIVEN] = None
    """Keep so many images of each repository: those first seen last, with all that were first seen at
    the same time as the last of them."""
    within: Annotated[Duration | None, _GIVEN] = None
    """Keep images first seen within this time, such as 90d, 12h or 30m."""
    pulled_within: Annotated[Duration | None, _GIVEN] = None
    """Keep images pulled within this time; one that was never pulled counts from when it was first seen. While pulls
    have been recorded for a shorter time, everything is kept."""
    tags: tuple[TagPattern, ...] = Field((), max_length=_MOST_PATTERNS)
    """Keep images with a tag that matches one of these patterns: * any characters, ? one, [0-9] one of a set."""
    semver: Annotated[Semver | None, _GIVEN] = None
    """Keep the newest versions."""

    @property
    def keeps_something(self) -> bool:
        """Whether any part is set; without one, every image would be deleted."""
        return bool(self.all or self.newest or self.within or self.pulled_within or self.tags or self.semver)


class Rule(Model):
    """What to keep in some repositories."""

    name: Label
    """Name of the rule, unique; plans and events show it."""
    repositories: tuple[RepositoryPattern, ...] = Field(min_length=1, max_length=_MOST_PATTERNS)
    """Repositories of the registry for which this rule decides, such as registry.k8s.io/** or team/*. A * does not
    match a slash, ** does."""
    keep: Annotated[Keep, OnServer(_KEEPS)]
    """What to keep; every other image in these repositories is deleted, unless it is in use."""

    @model_validator(mode="after")
    def _keeps_something(self) -> Self:
        if not self.keep.keeps_something:
            raise Contradiction([("keep", _KEEPS_TEXT)])
        return self


class Untagged(Model):
    """Manifests without a tag that are not part of another image."""

    after: Duration | None = None
    """Delete them when they have had no tag for this time. Unset: keep them."""


class Trash(Model):
    """Where deleted images stay before their space is freed."""

    window: Duration = "7d"
    """How long a deleted image can be restored."""


class ImagePath(Model):
    """A place in a custom resource that names images."""

    api_version: Annotated[str, *_matching(_API_VERSION, _VERSION_TEXT, 253)]
    """API group and version, such as argoproj.io/v1alpha1."""
    resource: Annotated[str, *_matching(_RESOURCE, _RESOURCE_TEXT, 63)]
    """Plural of the resource, such as workflows. The operator needs the right to list it."""
    path: Annotated[str, *_matching(jsonpath.PATTERN, jsonpath.PATTERN_TEXT, _LONGEST_PATH)]
    """JSONPath to a text or a list of texts, such as .spec.templates[*].container.image."""

    @property
    def pair(self) -> tuple[str, str]:
        """As ``upkeep.clusters.read`` takes it: GROUP/VERSION/PLURAL and the path."""
        return f"{self.api_version}/{self.resource}", self.path


class PolicySpec(Model):
    """Which images to keep. The default keeps everything."""

    rules: Annotated[tuple[Rule, ...], OnServer(**_BY_NAME)] = Field((), max_length=_MOST_RULES)
    """The first rule with a pattern that matches a repository decides; what no rule matches is kept."""
    untagged: Untagged = Untagged()
    sets: tuple[SetName, ...] = Field(("bundle", "kubeadm"), max_length=2)
    """Sets of images that are always kept: those that bundles brought, of each line of deltas the last one, and those
    of kubeadm's current, previous and next version."""
    grace: Duration = "24h"
    """Keep what was first seen within this time, whatever the rules say."""
    workload_grace: Duration = "7d"
    """Keep images for this time after the last workload that used them is gone."""
    image_paths: tuple[ImagePath, ...] = Field((), max_length=_MOST_PATHS)
    """Where custom resources name images. Each is read with the workloads of a cluster, and a path to something else
    than a name stops the plan."""
    trash: Trash = Trash()
    maximum_share: Whole = Field(20, ge=1, le=100)
    """A plan that deletes more than this percentage of the images, or of their tags, of a repository or of the
    registry, and more than five, needs an approval."""
    approval: Literal["Required", "Automatic"] = "Required"
    """Whether every plan needs an approval, or only one that is unusually large."""

    free_space: Literal["Daily", "Never"] = "Daily"
    """Whether the operator frees the space of permanently deleted images: at most once a day, and only after something
    was, or while less than 15 % of a disk is free. With Distribution, pushes wait meanwhile, for about a minute."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [rule.name for rule in self.rules]
        doubles = [index for index, name in enumerate(names) if name in names[:index]]
        if doubles:
            raise Contradiction([(f"rules[{index}].name", f"{names[index]} is used twice") for index in doubles])
        return self

    def rule_of(self, repository: str) -> Rule | None:
        """The rule that decides for *repository*; None: all of it is kept."""
        return next(
            (rule for rule in self.rules if any(compiled(one).match(repository) for one in rule.repositories)), None
        )

    def idle(self, repositories: Iterable[str]) -> list[str]:
        """The rules that decide for none of *repositories*, as a clause for each: a mistake, or for what is to come."""
        busy = {rule.name for one in repositories if (rule := self.rule_of(one)) is not None}
        return [
            f"the rule {rule.name} decides for no repository: {', '.join(rule.repositories[:_NAMED])}"
            for rule in self.rules
            if rule.name not in busy
        ]


class PolicyMetadata(Metadata):
    """Kubernetes' metadata, as far as a file needs it."""

    name: Label = "retention"
    """Name of the policy."""


class RegistryPolicy(Model):
    """Which images to keep in the registry."""

    api_version: Literal["kubeadm-registry.dev/v1alpha1"]
    kind: Literal["RegistryPolicy"]
    metadata: PolicyMetadata = PolicyMetadata()
    spec: PolicySpec = PolicySpec()

    @model_validator(mode="before")
    @classmethod
    def _without_status(cls, value: Any) -> Any:
        return {key: one for key, one in value.items() if key != "status"} if isinstance(value, Mapping) else value

    @property
    def asks_for_pulls(self) -> bool:
        """Whether a rule goes by when images were pulled."""
        return any(rule.keep.pulled_within for rule in self.spec.rules)


@lru_cache(maxsize=_MOST_RULES * _MOST_PATTERNS)
def compiled(glob: str) -> re.Pattern[str]:
    """The pattern *glob* of repositories, which the model has checked."""
    return globs.repository(glob)


def load(path: Path) -> RegistryPolicy:
    """Read the policy file *path*. Raises ConfigError with every problem at once."""
    return parse(document.text_of(path, "policy file", "--policy"), str(path))


def parse(text: str, name: str) -> RegistryPolicy:
    """The policy that *text* (YAML) describes; *name* stands in errors. Raises ConfigError."""
    found = document.read(text, name, hint=_HINT, smallest=SMALLEST)
    return document.validated(RegistryPolicy, found, name, hint=_HINT)


def from_object(found: Mapping[str, Any]) -> RegistryPolicy:
    """The policy that a RegistryPolicy read from an API server describes. Raises ConfigError."""
    metadata = found.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    own = {key: found[key] for key in ("apiVersion", "kind", "spec") if key in found}
    return document.validated(RegistryPolicy, {**own, "metadata": {"name": name}}, f"RegistryPolicy {name}", hint=_HINT)
