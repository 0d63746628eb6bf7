"""Retention of a real registry: what goes by a policy, what stays because it is in use, the trash, and the way back."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

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
  trash: {window: 1m}
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


@pytest.mark.long  # three minutes, most of them until images are old enough
def test_old_images_go_and_those_in_use_stay(registry: Registry, tmp_path: Path) -> None:
    area = f"registry.example/retention-{time.time_ns()}"
    policy, used = tmp_path / "policy.yaml", tmp_path / "in-use.txt"
    policy.write_text(POLICY % area)
    patient = tmp_path / "patient.yaml"  # for what is pushed here may take more than a minute
    patient.write_text((POLICY % area).replace("grace: 1m", "grace: 1h").replace("after: 1m", "after: 1h"))
    earlier = len(registry.json("retention", "history")[-1]["runs"])
    versions = [images.image((200_000,), seed=time.time_ns() + number) for number in range(3)]
    for number, version in enumerate(versions):
        images.push(registry, version, f"{area}/app", f"v{number}")
        images.push(registry, version, f"{area}/moving", "latest")
        assert not plan(registry, patient, "--no-cluster")["deletions"], "all of it is too new"
    used.write_text(f"{registry.vip}:5000/{area}/app:v0\n")

    def deleted() -> set[tuple[str, str, str]]:
        found = plan(registry, policy, "--in-use", used)["deletions"]
        return {(one["repository"].removeprefix(f"{area}/"), one["tag"], one["digest"]) for one in found}

    expected = {("app", "v1", versions[1].digest), ("moving", "", versions[1].digest)}
    wait_until("what is older than a minute to go", lambda: deleted() == expected, seconds=120, every=10)
    for number, version in enumerate(versions):
        assert not images.missing(registry, version, f"{area}/app"), f"v{number} is still there"

    run = ("retention", "run", "--policy", policy, "--in-use", used)
    assert "is not approved" in registry.cli(*run).stdout
    assert tags(registry, f"{area}/app") == {"v0", "v1", "v2"}
    registry.cli("retention", "approve", plan(registry, policy, "--in-use", used)["digest"])
    assert "2 to the trash" in registry.cli(*run).stdout
    assert tags(registry, f"{area}/app") == {"v0", "v2"}
    for version in versions:
        assert not images.missing(registry, version, f"{area}/app"), "a digest can be pulled until the window is over"
    deleted_now = [one for one in registry.json("retention", "trash")[-1]["images"] if area in one["repository"]]
    assert sorted(list(one["tags"]) for one in deleted_now) == [[], ["v1"]]

    assert "1 restored" in registry.cli("retention", "undo", f"{area}/app:v1").stdout
    assert tags(registry, f"{area}/app") == {"v0", "v1", "v2"}
    registry.cli("retention", "approve", plan(registry, policy, "--in-use", used)["digest"])
    assert "1 to the trash" in registry.cli(*run).stdout

    def purged() -> bool:
        registry.cli(*run)
        return not [one for one in registry.json("retention", "trash")[-1]["images"] if area in one["repository"]]

    wait_until("the trash to be emptied", purged, seconds=180, every=10)
    assert tags(registry, f"{area}/app") == {"v0", "v2"}
    assert images.missing(registry, versions[1], f"{area}/app"), "it went for good"
    for version in (versions[0], versions[2]):
        assert not images.missing(registry, version, f"{area}/app")
    history = registry.json("retention", "history")[-1]["runs"][earlier:]
    assert [one["error"] for one in history] == [""] * len(history)
    assert sum(one["purged"] for one in history) == 2


def tags(registry: Registry, repository: str) -> set[str]:
    """The tags of *repository* that are not in the trash."""
    found = registry.json("images", "list", repository, "--all")[-1]["images"]
    names = {one["name"].rpartition(":")[2] for one in found}
    return {name for name in names if not name.startswith("trash-")}


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
