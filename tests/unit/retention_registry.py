"""Registries for examples: images by name, age and layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.retention import (
    Inventory,
    Manifest,
    Plan,
    Protected,
    Reason,
    Refused,
    RegistryPolicy,
    Repository,
    Seen,
    Tag,
    Use,
    Workloads,
    plan,
    policy,
    protect,
)

NOW = 1_800_000_000
DAY = 86400
MB = 1_000_000
HEAD = "apiVersion: kubeadm-registry.dev/v1alpha1\nkind: RegistryPolicy\n"
SETS: dict[str, tuple[str, ...]] = {"bundle": (), "kubeadm": ()}


def digest(name: str) -> str:
    """The digest of something called *name*."""
    return oci.digest_of(name.encode())


@dataclass
class Registry:
    """What was pushed; times are days before now."""

    manifests: dict[str, Manifest] = field(default_factory=dict)
    blobs: dict[str, int] = field(default_factory=dict)
    tags: dict[str, dict[str, Tag]] = field(default_factory=dict)
    seen: dict[str, dict[str, Seen]] = field(default_factory=dict)
    trash: dict[str, set[str]] = field(default_factory=dict)

    def image(
        self,
        repository: str,
        *tags: str,
        name: str = "",
        days: float = 30,
        pulled: float | None = None,
        untagged: float | None = None,
        layers: Sequence[str] = (),
        config: str = "",
        subject: str = "",
    ) -> str:
        """Push an image called *name* (default: its repository and first tag); each layer has 10 MB. Its digest."""
        name = name or f"{repository}:{tags[0]}"
        layers = layers or (f"layer of {name}",)
        config = digest(config or f"config of {name}")
        self.blobs |= {digest(layer): 10 * MB for layer in layers} | {config: 1000}
        manifest = Manifest(oci.MANIFEST, 500, config, tuple(map(digest, layers)), subject=subject)
        return self._push(repository, tags, name, manifest, days, pulled, untagged)

    def index(self, repository: str, *tags: str, children: Sequence[str], days: float = 30, subject: str = "") -> str:
        """Push an index of *children*, which are there or not. Its digest."""
        name = f"{repository}:{tags[0]} {children}" if tags else f"index of {children}"
        manifest = Manifest(oci.INDEX, 300, children=tuple(children), subject=subject)
        return self._push(repository, tags, name, manifest, days, None, None)

    def also(self, repository: str, *tags: str, of: str, days: float = 30) -> None:
        """Push the manifest *of* to *repository* as well, as these tags."""
        self._push(repository, tags, "", self.manifests[of], days, None, None, of)

    def _push(
        self,
        repository: str,
        tags: Sequence[str],
        name: str,
        manifest: Manifest,
        days: float,
        pulled: float | None,
        untagged: float | None,
        known: str = "",
    ) -> str:
        found = known or digest(name)
        when = NOW - int(days * DAY)
        self.manifests[found] = manifest
        self.seen.setdefault(repository, {})[found] = Seen(when, _ago(pulled), _ago(untagged))
        self.tags.setdefault(repository, {}).update({tag: Tag(found, when) for tag in tags})
        return found

    def inventory(self, *, pulls_since: int | None = None, problems: tuple[Reason, ...] = ()) -> Inventory:
        repositories = {
            name: Repository(dict(self.tags[name]), dict(self.seen[name]), frozenset(self.trash.get(name, ())))
            for name in self.tags
        }
        return Inventory(repositories, dict(self.manifests), dict(self.blobs), pulls_since, problems)

    def protected(self, *uses: Use, by: RegistryPolicy | None = None, problems: tuple[Reason, ...] = ()) -> Protected:
        return protect(self.inventory(), Workloads(uses, SETS, problems), by or rules("[]"), NOW)

    def outcome(self, by: RegistryPolicy, *uses: Use, now: int = NOW, pulls_since: int | None = None) -> Plan | Refused:
        inventory = self.inventory(pulls_since=pulls_since)
        return plan(inventory, protect(inventory, Workloads(uses, SETS), by, now), by, now)

    def plan(self, by: RegistryPolicy, *uses: Use, now: int = NOW, pulls_since: int | None = None) -> Plan:
        made = self.outcome(by, *uses, now=now, pulls_since=pulls_since)
        assert isinstance(made, Plan), made
        return made


def _ago(days: float | None) -> int | None:
    return None if days is None else NOW - int(days * DAY)


def rules(text: str, **spec: str) -> RegistryPolicy:
    """A policy with the rules in *text*, YAML of one line, and other keys of its spec likewise."""
    more = "".join(f"  {key}: {value}\n" for key, value in spec.items())
    return policy.parse(f"{HEAD}spec:\n  rules: {text}\n{more}", "policy.yaml")


def keep(text: str, repositories: str = "['**']", **spec: str) -> RegistryPolicy:
    """A policy with one rule that keeps *text* in *repositories*."""
    return rules(f"[{{name: one, repositories: {repositories}, keep: {text}}}]", **spec)


def gone(made: Plan) -> list[str]:
    """What a plan deletes: ``repository:tag``, or ``repository@digest`` where there is no tag."""
    return [f"{one.repository}:{one.tag}" if one.tag else f"{one.repository}@{one.digest}" for one in made.deletions]
