"""The example policies, each against the same registry, and the page that explains them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from kubeadm_registry.config import explain
from kubeadm_registry.retention import Plan, Use, Workloads, plan, policy, protect
from tests.unit.retention_registry import DAY, NOW, Registry, digest, gone

KUBEADM = tuple(
    f"registry.k8s.io/{name}" for name in ("kube-apiserver:v1.36.3", "kube-apiserver:v1.37.2", "pause:3.10.2",
                                           "coredns/coredns:v1.14.2")
)  # fmt: skip


def registry() -> Registry:
    """A year in the life of a registry."""
    found = Registry()
    for number in range(1, 15):
        found.image("ci/shop/api", f"build-{number:02}", days=60 - number)
    found.also("ci/shop/api", "stable", of=digest("ci/shop/api:build-02"), days=58)
    for tag in ("v1.3.9", "v1.4.0", "v1.4.1", "v1.4.2", "v1.4.3", "v1.4.1-alpine", "v1.4.0-alpine", "v1.4", "nightly"):
        found.image("products/cart", tag, days=100)
    for number in range(1, 6):
        found.image("apps/blog", f"r{number}", days=500 - 100 * number)
    for tag, pulled in (("1.25", 10), ("1.24", 100), ("1.23", None)):
        found.image("docker.io/library/nginx", tag, days=300, pulled=pulled)
    found.image("docker.io/library/redis", "7", days=300)
    found.image("payments/ledger", "audit-2024", days=900)
    found.image("payments/ledger", "old", days=400)
    found.image("payments/base/jdk", "17", days=900)
    for number in range(1, 8):
        found.image("web/front", f"w{number}", days=40 - number)
    for tag in ("v1.35.4", "v1.36.3", "v1.37.2", "v1.34.4"):
        found.image("registry.k8s.io/kube-apiserver", tag, days=200)
    for tag in ("3.9", "3.10.2"):
        found.image("registry.k8s.io/pause", tag, days=200)
    for tag in ("v1.12.1", "v1.14.2"):
        image = found.image("registry.k8s.io/coredns/coredns", tag, days=200)
        found.also("registry.k8s.io/coredns", tag, of=image, days=200)
    found.image("registry.k8s.io/ingress-nginx/controller", "v1.9.0", days=400)
    found.image("maven/app", "v1.0.0", days=700)
    found.image("maven/app", "1.1.0-SNAPSHOT", days=10)
    found.image("maven/app", "1.0.1-SNAPSHOT", days=60)
    found.image("maven/app", "release-2", days=60)
    found.image("maven/app", name="replaced", days=60, untagged=20)
    found.image("maven/app", name="just replaced", days=60, untagged=2)
    for number in range(1, 7):
        found.image("shared/tool", f"t{number}", days=100 - number)
    return found


#: What is used by which cluster; the second one has been silent for 20 days.
USES = (
    Use("10.0.0.10:5000/ci/shop/api:build-01", users=("Pod shop/api-0",)),
    Use("nginx:1.24", users=("Deployment shop/proxy",)),
    Use("10.0.0.10:5000/shared/tool:t1", users=("cluster a: Pod x/y",)),
    Use("10.0.0.10:5000/shared/tool:t2", users=("cluster b: Pod x/y",), last_seen=NOW - 20 * DAY),
    Use("registry.k8s.io/kube-apiserver:v1.35.4", users=("Pod kube-system/kube-apiserver-cp-1",)),
)
GONE = {
    "keep-everything": [],
    "ci-newest-10": ["ci/shop/api:build-03", "ci/shop/api:build-04"],
    "newest-versions": ["products/cart:nightly", "products/cart:v1.4.0", "products/cart:v1.4.0-alpine"],
    "by-age": ["apps/blog:r1", "apps/blog:r2"],
    "only-what-is-pulled": ["docker.io/library/nginx:1.23", "docker.io/library/redis:7"],
    "several-teams": ["payments/ledger:old", "web/front:w1", "web/front:w2"],
    "old-kubernetes-releases": [
        "registry.k8s.io/coredns/coredns:v1.12.1", "registry.k8s.io/coredns:v1.12.1",
        "registry.k8s.io/kube-apiserver:v1.34.4", "registry.k8s.io/pause:3.9",
    ],
    "untagged-only": [f"maven/app@{digest('replaced')}"],
    "releases-and-snapshots": ["maven/app:1.0.1-SNAPSHOT"],
    "two-clusters": ["shared/tool:t3"],
}  # fmt: skip


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "manifests" / "examples" / "policies"


def test_there_are_ten(folder: Path) -> None:
    assert {path.stem for path in folder.iterdir()} == set(GONE)
    assert len(GONE) == 10


@pytest.mark.parametrize("name", GONE)
def test_an_example_deletes_what_it_says(folder: Path, name: str) -> None:
    by = policy.load(folder / f"{name}.yaml")
    inventory = registry().inventory(pulls_since=NOW - 90 * DAY)
    workloads = Workloads(USES, {"kubeadm": KUBEADM, "bundle": ("docker.io/library/redis:7",)})
    made = plan(inventory, protect(inventory, workloads, by, NOW), by, NOW)
    assert isinstance(made, Plan)
    assert sorted(gone(made)) == sorted(GONE[name])


@pytest.mark.parametrize("name", GONE)
def test_an_example_is_explained(root: Path, folder: Path, name: str) -> None:
    assert f"(../manifests/examples/policies/{name}.yaml)" in (root / "docs" / "retention.md").read_text()
    assert (folder / f"{name}.yaml").read_text().startswith("# ")


def rows(model: type[BaseModel], above: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        path = f"{above}.{field.alias or name}" + ("[]" if "tuple" in str(field.annotation) else "")
        inner = explain.model_of(field.annotation)
        if inner is None:
            yield f"| `{path}` | {default(field)} | {' '.join((field.description or '').split())} |"
        else:
            yield from rows(inner, path)


def default(field: Any) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, tuple):
        return ", ".join(f"`{value}`" for value in field.default)
    return (
        "" if field.default is None else f"`{str(field.default).lower() if field.default is False else field.default}`"
    )


def test_the_page_has_every_field_of_the_policy(root: Path) -> None:
    table = "\n".join(rows(policy.PolicySpec, "spec"))
    assert table in (root / "docs" / "retention.md").read_text(), table


def test_the_smallest_policy_is_on_the_page(root: Path) -> None:
    assert policy.SMALLEST in (root / "docs" / "retention.md").read_text()
