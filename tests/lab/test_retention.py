"""A plan for a real registry: what is read of it, what goes by a policy, and what stays because it is in use."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.lab import images
from tests.lab.command import wait_until
from tests.lab.registry import Registry
from tests.lab.test_images import signed

pytest_plugins = ["tests.lab.registry"]

POLICY = """\
apiVersion: kubeadm-registry.dev/v1alpha1
kind: RegistryPolicy
metadata: {name: retention}
spec:
  grace: 1m
  rules:
    - {name: apps, repositories: ["%s/**"], keep: {newest: 1}}
  untagged: {after: 1m}
  sets: [bundle]
"""


def plan(registry: Registry, policy: Path, *more: str | Path) -> dict[str, Any]:
    began = time.monotonic()
    found: dict[str, Any] = json.loads(
        registry.cli("retention", "plan", "--policy", policy, "-o", "json", *more).stdout.splitlines()[-1]
    )
    kept, gone = len(found["kept"]), len(found["deletions"])
    sys.stdout.write(f"\n  planned in {time.monotonic() - began:.1f} s: {kept} kept, {gone} deleted\n")
    return found


def test_old_images_go_and_those_in_use_stay(registry: Registry, tmp_path: Path) -> None:
    area = f"registry.example/retention-{time.time_ns()}"
    policy, used = tmp_path / "policy.yaml", tmp_path / "in-use.txt"
    policy.write_text(POLICY % area)
    versions = [images.image((200_000,), seed=time.time_ns() + number) for number in range(3)]
    for number, version in enumerate(versions):
        images.push(registry, version, f"{area}/app", f"v{number}")
        images.push(registry, version, f"{area}/moving", "latest")
        assert not plan(registry, policy, "--no-cluster")["deletions"], "all of it is too new"
    used.write_text(f"{registry.vip}:5000/{area}/app:v0\n")

    def deleted() -> set[tuple[str, str, str]]:
        found = plan(registry, policy, "--in-use", used)["deletions"]
        return {(one["repository"].removeprefix(f"{area}/"), one["tag"], one["digest"]) for one in found}

    expected = {("app", "v1", versions[1].digest), ("moving", "", versions[1].digest)}
    wait_until("what is older than a minute to go", lambda: deleted() == expected, seconds=120, every=10)
    for number, version in enumerate(versions):
        assert not images.missing(registry, version, f"{area}/app"), f"v{number} is still there"


def test_a_signature_stays_with_its_image(registry: Registry, tmp_path: Path) -> None:
    made = signed(registry)
    policy = tmp_path / "policy.yaml"
    policy.write_text((POLICY % "registry.example/images").replace("newest: 1", 'tags: ["v1"]'))
    found = plan(registry, policy, "--no-cluster")
    kept = {one["digest"] for one in found["kept"] if one["repository"] == made.repository}
    assert made.index in kept
    assert not [one for one in found["deletions"] if one["repository"] == made.repository]
    ledger = plan(registry, policy, "--no-cluster", "--all")
    assert ledger["digest"] == found["digest"], "the same again"
