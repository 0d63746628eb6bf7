"""One plan for a large registry: python -m tests.bench.retention TAGS REPOSITORIES PODS. Prints seconds and counts.

Half of the images are indexes of two manifests each; images of one repository share most layers. Every pod has a tag or
a digest in its spec and an imageID, and 20 pods share each image.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator

from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.retention import (
    Inventory,
    Manifest,
    Plan,
    Repository,
    Seen,
    Tag,
    Workloads,
    grouped,
    plan,
    policy,
    protect,
)

NOW = 1_800_000_000
DAY = 86400
SHARING = 20
POLICY = """\
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryPolicy
spec:
  rules:
    - {name: releases, repositories: ["*/release/**"], keep: {semver: {newest: 3}}}
    - {name: rest, repositories: ["**"], keep: {newest: 20, tags: [stable, "v[0-9]*"]}}
"""


def digest(random: random.Random) -> str:
    """A digest of nothing."""
    return f"sha256:{random.randbytes(32).hex()}"


def inventory(tags: int, repositories: int) -> Inventory:
    """*tags* in *repositories*, first seen one after the other."""
    draw = random.Random(1)
    manifests: dict[str, Manifest] = {}
    blobs: dict[str, int] = {}
    held: dict[str, Repository] = {}
    for number in range(repositories):
        layers = [digest(draw) for _ in range(20)]
        named: dict[str, Tag] = {}
        seen: dict[str, Seen] = {}

        def image(when: int, layers: list[str] = layers, seen: dict[str, Seen] = seen) -> str:
            own = [digest(draw), digest(draw)]
            blobs.update(dict.fromkeys([*own, *layers], 20_000_000))
            name = digest(draw)
            manifests[name] = Manifest(oci.MANIFEST, 1500, own[0], (*draw.sample(layers, 7), own[1]))
            seen[name] = Seen(when, when)
            return name

        for count in range(tags // repositories):
            when = NOW - (400 - count) * DAY
            if count % 2:
                name = digest(draw)
                manifests[name] = Manifest(oci.INDEX, 800, children=(image(when), image(when)))
                seen[name] = Seen(when)
            else:
                name = image(when)
            named[f"1.{count // 10}.{count % 10}" if number % 4 == 0 else f"build-{count}"] = Tag(name, when)
        held[f"team-{number % 50}/{'release' if number % 4 == 0 else 'ci'}/app-{number}"] = Repository(named, seen)
    return Inventory(held, manifests, blobs)


def pods(count: int, known: Inventory) -> Iterator[tuple[str, str, str]]:
    """What *count* pods use."""
    draw = random.Random(2)
    names = list(known.repositories)
    for number in range(count // SHARING):
        name = draw.choice(names)
        tag, what = draw.choice(list(known.repositories[name].tags.items()))
        spec = f"10.0.0.10:5000/{name}" + (f"@{what.digest}" if number % 3 == 0 else f":{tag}")
        for pod in range(SHARING):
            yield spec, f"10.0.0.10:5000/other@{what.digest}", f"Pod namespace-{number % 300}/pod-{number}-{pod}"


def main() -> None:
    """Make the registry, then a plan, which is timed."""
    tags, repositories, count = map(int, sys.argv[1:])
    made = inventory(tags, repositories)
    begin = time.monotonic(), time.process_time()
    uses = grouped(pods(count, made))
    by = policy.parse(POLICY, "policy.yaml")
    sets: dict[str, tuple[str, ...]] = {"bundle": (), "kubeadm": ()}
    found = plan(made, protect(made, Workloads(uses, sets), by, NOW), by, NOW)
    assert isinstance(found, Plan), found
    name = found.digest
    took = time.monotonic() - begin[0], time.process_time() - begin[1]
    result = {
        "seconds": round(took[0], 2), "cpu": round(took[1], 2), "manifests": len(made.manifests), "uses": len(uses),
        "deletions": len(found.deletions), "kept": len(found.kept), "freed": found.freed, "digest": name,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
