"""An operator that meets what a newer release has written says so by name, changes nothing, and every pull works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.custom_resources.names import NAMESPACE
from kubeadm_registry.upkeep import store
from tests.lab import releases
from tests.lab.command import run, wait_until
from tests.operator.apiserver import ApiServer
from tests.operator.battery import changed, put
from tests.operator.replicas import OBJECTS, Replica, replica
from tests.operator.site import VIP, Site
from tests.operator.test_rounds import POLICY, there  # noqa: F401  fixtures

SOON = 120.0
AUTOMATIC = changed(POLICY, put("spec.approval", "Automatic"))


def conditions(server: ApiServer, kind: str) -> dict[str, tuple[str, str]]:
    """Of the one object of *kind*; none before it has any."""
    items = server.get(kind)["items"]
    found = items[0].get("status", {}).get("conditions", ()) if items else ()
    return {one["type"]: (one["status"], one["reason"]) for one in found}


def wait_for(server: ApiServer, kind: str, condition: str, *verdict: str) -> None:
    """Wait until a condition is so."""
    so = f"{condition} of {kind} to be {verdict}"
    wait_until(so, lambda: conditions(server, kind).get(condition) == verdict, seconds=SOON)


def said(server: ApiServer, kind: str, condition: str) -> str:
    """The message of a condition."""
    found = server.get(kind)["items"][0]["status"]["conditions"]
    return next(str(one["message"]) for one in found if one["type"] == condition)


@contextmanager
def operator(server: ApiServer, there: Site, folder: Path, **values: Any) -> Iterator[Replica]:  # noqa: F811
    """A replica, until it has led; the Lease is as nobody had it afterwards."""
    with replica(server, folder, "one", site=there, LEASE_SECONDS="300", **values) as one:
        yield one
    assert server.ask("delete", "lease", "operator", f"--namespace={NAMESPACE}").taken
    assert server.send("apply", [OBJECTS[1]]).taken


@pytest.fixture
def served(adopted: ApiServer, there: Site) -> Iterator[ApiServer]:  # noqa: F811
    assert adopted.send("apply", [*OBJECTS, AUTOMATIC]).taken
    yield adopted
    for kind in ("registrypolicies", "registryretentionplans"):
        assert adopted.ask("delete", kind, "--all").taken


def record(there: Site, change: Any = None) -> Any:  # noqa: F811
    """The ledger as it is in the registry, after *change* to it."""
    with there.way.registry(VIP, timeout=30)() as registry:
        if change is not None:
            document = json.loads(store.LEDGER.read(registry, there.way.key) or b"")
            change(document)
            store.LEDGER.write(registry, there.way.key, json.dumps(document).encode())
        return json.loads(store.LEDGER.read(registry, there.way.key) or b"")


def pulls(there: Site, digest: str) -> bool:  # noqa: F811
    """Whether the image is there by its tag, through the virtual IP."""
    with there.way.registry(VIP, timeout=30)() as registry:
        return registry.digest("team/app", "v1") == digest


def test_a_ledger_of_a_newer_release_gives_no_plan(
    served: ApiServer,
    there: Site,  # noqa: F811
    tmp_path: Path,
) -> None:
    digest = there.push("team/app", "v1")
    with operator(served, there, tmp_path):
        wait_for(served, "regplan", "Made", "True", "Planned")
    before = record(there, lambda document: document["format"].update(version=99, minReader=99, minWriter=99))
    with operator(served, there, tmp_path) as one:
        wait_for(served, "regplan", "Made", "False", "NewerFormat")
        wait_for(served, "regc", "RetentionHealthy", "False", "NewerFormat")
        assert "a newer release wrote the retention ledger" in said(served, "regplan", "Made")
        assert "use a newer kubeadm-registry" in said(served, "regplan", "Made")
        assert conditions(served, "regc")["Available"] == ("True", "Serving"), one.log
        assert "httpx" not in one.log, "each request would have a line"
    assert record(there) == before
    assert pulls(there, digest)


def test_the_operator_of_the_release_before(
    served: ApiServer,
    there: Site,  # noqa: F811
    tmp_path: Path,
) -> None:
    """0.1.0 finds objects with fields that it does not know: the API server has written the defaults into them."""
    [version] = releases.RELEASES
    found = releases.commit(version)
    if not found:
        pytest.skip("the history of this repository does not contain it")
    source = tmp_path / "source"
    source.mkdir()
    archive = tmp_path / "source.tar"
    run("git", "-C", releases.ROOT, "archive", "--format=tar", f"--output={archive}", found)
    run("tar", "-xf", archive, "-C", source)
    digest = there.push("team/app", "v1")
    with operator(served, there, tmp_path):
        wait_for(served, "regplan", "Made", "True", "Planned")
    before, marker = record(there), served.get("regplan", "retention")["status"]["marker"]

    with operator(served, there, tmp_path, source=source) as one:
        wait_for(served, "regc", "Adopted", "False", "Invalid")
        wait_for(served, "regp", "Accepted", "False", "Invalid")
        assert "unknown key" in said(served, "regc", "Adopted"), one.log
        assert "spec.freeSpace: unknown key" in said(served, "regp", "Accepted")
    assert record(there) == before
    assert pulls(there, digest)
    assert served.get("regplan", "retention")["status"]["marker"] == marker

    with operator(served, there, tmp_path):
        wait_for(served, "regc", "Adopted", "True", "Adopted")
        wait_for(served, "regp", "RetentionHealthy", "True", "Planned")
    assert pulls(there, digest)
