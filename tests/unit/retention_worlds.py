"""Small, nasty registries with workloads and policies, each made of a string of bytes.

Manifests share digests across repositories and tags, are indexes of indexes, refer to referrers, to themselves and to
what is not there (cycles too, which no real digest could make), and share configurations. What each use means is noted
here when it is made, so that tests need not ask the code that they test.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.retention import (
    Inventory,
    Manifest,
    Plan,
    Protected,
    Refused,
    RegistryPolicy,
    Repository,
    Seen,
    Tag,
    Use,
    Workloads,
    plan,
    protect,
)

NOW = 1_800_000_000
HOUR, DAY = 3600, 86400
One = TypeVar("One")
REPOSITORIES = (
    "team/app", "team/web", "docker.io/library/nginx", "registry.k8s.io/coredns", "registry.k8s.io/coredns/coredns",
    "kubeadm-registry/canary", "host_5000/x", "alone",
)  # fmt: skip
#: How users write each of them.
SPELLINGS = {
    "team/app": ("10.0.0.10:5000/team/app", "team/app", "[fd00::10]:5000/team/app"),
    "team/web": ("10.0.0.10:5000/team/web", "registry.local/team/web"),
    "docker.io/library/nginx": ("nginx", "docker.io/nginx", "index.docker.io/library/nginx", "docker.io/library/nginx",
                                "10.0.0.10:5000/docker.io/library/nginx", "10.0.0.10:5000/docker.io/nginx"),
    "registry.k8s.io/coredns": ("registry.k8s.io/coredns", "10.0.0.10:5000/registry.k8s.io/coredns",
                                "registry.k8s.io/coredns/coredns"),
    "registry.k8s.io/coredns/coredns": ("registry.k8s.io/coredns/coredns", "10.0.0.10:5000/registry.k8s.io/coredns"),
    "kubeadm-registry/canary": ("10.0.0.10:5000/kubeadm-registry/canary",),
    "host_5000/x": ("host:5000/x", "10.0.0.10:5000/host_5000/x"),
    "alone": ("10.0.0.10:5000/alone", "alone"),
}  # fmt: skip
TAGS = ("latest", "v1.0.0", "v1.0.1", "v1.1.0-rc.1", "v2.0.0", "1.0", "dev-1", "dev-2", "trash-1")
GLOBS = (
    "**",
    "**",
    "**",
    "team/*",
    "team/app",
    "docker.io/**",
    "registry.k8s.io/**",
    "host:5000/*",
    "kubeadm-registry/**",
)


class Dice:
    """Decisions taken from bytes; the first one where there are no more, so fewer bytes make a smaller world."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def roll(self, sides: int) -> int:
        return next(self._data, 0) % sides

    def one_of(self, values: Sequence[One]) -> One:
        return values[self.roll(len(values))]

    def some_of(self, values: Sequence[One], most: int) -> tuple[One, ...]:
        return tuple(self.one_of(values) for _ in range(self.roll(most + 1)))


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def manifest_digests(count: int) -> tuple[str, ...]:
    return tuple(digest(number) for number in range(1, count + 1))


@dataclass(frozen=True)
class World:
    """An inventory, what is in use, a policy; with *named*, the digests that the uses name, and *tags* likewise."""

    inventory: Inventory
    workloads: Workloads
    policy: RegistryPolicy
    named: frozenset[str]
    more: tuple[Use, ...] = field(default=())
    now: int = NOW

    @cached_property
    def protected(self) -> Protected:
        return protect(self.inventory, self.workloads, self.policy, self.now)

    @cached_property
    def outcome(self) -> Plan | Refused:
        return plan(self.inventory, self.protected, self.policy, self.now)

    @property
    def plan(self) -> Plan:
        assert isinstance(self.outcome, Plan), self.outcome
        return self.outcome


def world(data: bytes) -> World:
    dice = Dice(data)
    inventory = _inventory(dice)
    used = [_use(dice, inventory) for _ in range(dice.one_of((0, 1, 1, 2, 3)))]
    sets = {"bundle": (), "kubeadm": (dice.one_of(SPELLINGS["registry.k8s.io/coredns"]) + ":latest",)}
    workloads = Workloads(tuple(use for use, _ in used), sets)
    named = {one for use, digests in used if _counts(use) for one in digests}
    named |= {
        inventory.repositories[name].tags["latest"].digest
        for name in ("registry.k8s.io/coredns", "registry.k8s.io/coredns/coredns")
        if name in inventory.repositories and "latest" in inventory.repositories[name].tags
    }
    policy = _policy(dice)
    return World(inventory, workloads, policy, frozenset(named), tuple(_use(dice, inventory)[0] for _ in range(2)))


def random_world(seed: int) -> World:
    return world(random.Random(seed).randbytes(random.Random(-seed).randint(20, 260)))


def _counts(use: Use) -> bool:
    return use.last_seen is None or use.last_seen >= NOW - 7 * DAY


def _time(dice: Dice) -> int:
    return NOW - dice.one_of(
        (
            40 * DAY,
            39 * DAY,
            38 * DAY,
            37 * DAY,
            36 * DAY,
            35 * DAY,
            20 * DAY,
            20 * DAY,
            10 * DAY,
            6 * DAY,
            6 * DAY,
            3 * DAY,
            20 * HOUR,
        )
    )


def _inventory(dice: Dice) -> Inventory:
    known = manifest_digests(1 + dice.roll(12))
    anything = (*known, digest(99))  # the last one is nowhere
    configs = tuple(digest(1001 + number) for number in range(5))
    blobs = {digest(2000 + number): 10**number for number in range(5)}
    manifests = {}
    for one in known:
        kind = dice.roll(6)
        subject = dice.one_of(anything) if kind == 3 or (kind == 1 and not dice.roll(4)) else ""
        if kind == 1:
            manifests[one] = Manifest(oci.INDEX, 3, children=dice.some_of(anything, 2), subject=subject)
        else:
            manifests[one] = Manifest(
                oci.MANIFEST, 7, dice.one_of(configs), dice.some_of(tuple(blobs), 3), subject=subject
            )
    repositories = {}
    for name in REPOSITORIES[: 1 + dice.roll(3)] if dice.roll(2) else {dice.one_of(REPOSITORIES) for _ in range(3)}:
        repositories[name] = _repository(dice, known)
    since = dice.one_of((None, NOW - 60 * DAY, NOW - DAY))
    return Inventory(dict(sorted(repositories.items())), manifests, {**blobs, **dict.fromkeys(configs, 5)}, since)


def _repository(dice: Dice, known: Sequence[str]) -> Repository:
    held = {
        one: Seen(_time(dice), dice.one_of((None, NOW - DAY, NOW - 30 * DAY)), dice.one_of((None, NOW - 2 * DAY)))
        for one in known
        if dice.roll(4)
    }
    names = (*TAGS, *(f"sha256-{one[7:]}" for one in known[:3]), f"sha256-{known[0][7:]}.sig")
    tags = {name: Tag(dice.one_of(tuple(held)), _time(dice)) for name in names if held and dice.roll(2)}
    return Repository(tags, held, frozenset(name for name in tags if name.startswith("trash-")))


def _use(dice: Dice, inventory: Inventory) -> tuple[Use, set[str]]:
    """A use, and the digests that it names."""
    name = dice.one_of(tuple(inventory.repositories))
    spelling = dice.one_of(SPELLINGS[name])
    meant = {name} | ({"registry.k8s.io/coredns", "registry.k8s.io/coredns/coredns"} if "coredns" in name else set())
    held = [inventory.repositories[one].tags for one in sorted(meant) if one in inventory.repositories]
    known = (*inventory.manifests, digest(99))
    tag, by_digest = dice.one_of(("latest", "v1.0.0", "dev-1", "")), dice.one_of(known)
    kind = dice.roll(3)
    reference = spelling + (f":{tag}" if kind != 1 and tag else "") + (f"@{by_digest}" if kind else "")
    named = {by_digest} if kind else set()
    if tag if kind != 1 else False:
        named |= {tags[tag].digest for tags in held if tag in tags}
    if not kind and not tag:
        named |= {tags["latest"].digest for tags in held if "latest" in tags}
    image_id, what = _image_id(dice, known)
    running = {one for one, found in inventory.manifests.items() if what and what in (one, found.config)}
    if image_id and not running:
        running = {
            found.digest
            for one in meant
            if one in inventory.repositories
            for found_tag, found in inventory.repositories[one].tags.items()
            if not found_tag.startswith("trash-")
        }
    last_seen = dice.one_of((None, None, NOW - DAY, NOW - 8 * DAY))
    return Use(reference, image_id, ("Pod default/web",), last_seen=last_seen), named | running


def _image_id(dice: Dice, known: Sequence[str]) -> tuple[str, str]:
    """An imageID, and the digest in it."""
    what = dice.one_of((*known, digest(1001), digest(1002), digest(1003)))
    form = dice.one_of(("", "", "", "{}", "x.example/other@{}", "docker-pullable://x/y@{}", "docker://{}", "not one"))
    return form.format(what), what if "{}" in form else ""


def _policy(dice: Dice) -> RegistryPolicy:
    rules = []
    for number in range(dice.roll(3) + 1):
        parts = {
            "newest": 1 + dice.roll(3),
            "within": dice.one_of(("15d", "1d", "30d")),
            "pulledWithin": dice.one_of(("5d", "50d")),
            "tags": [dice.one_of(("dev-*", "v[0-9]*", "latest"))],
            "semver": {"newest": 1 + dice.roll(2), "ofEach": dice.one_of(("major", "minor", "patch"))},
            "all": True,
        }
        names = (*tuple(parts)[:-1] * 3, "all")
        chosen = {dice.one_of(names) for _ in range(1 + dice.roll(2))}
        rules.append(
            {
                "name": f"rule-{number}",
                "repositories": [dice.one_of(GLOBS)],
                "keep": {key: value for key, value in parts.items() if key in chosen},
            }
        )
    spec = {
        "rules": rules,
        "untagged": dice.one_of(({}, {"after": "1h"}, {"after": "12d"})),
        "grace": dice.one_of(("24h", "1m", "5d")),
    }
    return RegistryPolicy.model_validate(
        {"apiVersion": "kubeadm-registry.dev/v1alpha1", "kind": "RegistryPolicy", "spec": spec}
    )
