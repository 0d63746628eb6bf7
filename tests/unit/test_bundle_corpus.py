"""Every corrupted bundle of the corpus is refused, by its code; nothing of it is pushed, nothing written outside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeadm_registry import pki
from kubeadm_registry.bundle import Bundle, problems, verify
from kubeadm_registry.errors import BundleError
from kubeadm_registry.images import seed
from tests.unit.corrupted import CASES, Case, Good
from tests.unit.fake_cluster import authority
from tests.unit.fake_registry import FakeRegistry, connector, serving
from tests.unit.test_seed import run


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    return Good.make(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def served() -> Iterator[FakeRegistry]:
    with serving(FakeRegistry(), pki.issue(authority(), "cp-1", ("10.0.0.10",))) as registry:
        yield registry


@pytest.fixture
def fake(served: FakeRegistry) -> FakeRegistry:
    for held in (served.blobs, served.manifests, served.requests, served.uploads):
        held.clear()  # type: ignore[attr-defined]
    return served


def test_the_corpus_is_made_from_a_good_one(good: Good, fake: FakeRegistry, tmp_path: Path) -> None:
    path = tmp_path / "good.tar"
    path.write_bytes(good.content)
    verify(path)
    with Bundle.open(path) as bundle:
        bundle.extract(bundle.programs["garage"], tmp_path / "layer")
        assert run(bundle, fake, tmp_path)
        assert seed.prove(connector(fake), seed.plan(bundle), 1) == {}
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused(good: Good, fake: FakeRegistry, tmp_path: Path, case: Case) -> None:
    path = tmp_path / "in" / "there" / "bundle.tar"
    path.parent.mkdir(parents=True)
    path.write_bytes(case.build(good))
    begin = time.process_time()
    found = list(problems(path))
    assert case.code in {problem.code for problem in found}, found
    assert all(problem.hint and "Error" not in problem.message for problem in found)

    with pytest.raises(BundleError) as caught, Bundle.open(path) as bundle:
        assert case.where != "open" or not (bundle.programs and bundle.images)
        if case.where in ("programs", "extract"):
            bundle.extract(bundle.programs["garage"], path.parent / "layer")
        else:
            run(bundle, fake, path.parent)
    assert caught.value.code == case.code
    assert time.process_time() - begin < 5
    assert not fake.manifests, "an image is there"
    if case.where != "stream":
        assert {request.method for request in fake.requests} <= {"GET", "HEAD"}, "something was pushed"
    left = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert left <= {f"in/there/{name}" for name in ("bundle.tar", "journal.json", "journal.json.lock")}
    assert not Path("/tmp/escaped").exists()
