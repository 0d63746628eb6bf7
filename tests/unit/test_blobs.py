"""Freeing blobs one by one: nothing that a manifest needs goes, whatever interrupts it, and what is freed adds up."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeadm_registry import pki
from kubeadm_registry.errors import Error, RegistryError
from kubeadm_registry.images import blobs, push_log
from kubeadm_registry.images.blobs import Blob, Freed, Pace
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Deleted
from tests.unit.fake_cluster import authority
from tests.unit.fake_images import Repositories, ScopedHandler
from tests.unit.fake_registry import connector, serving
from tests.unit.here import here

QUICK = Pace(1e9, sleep=lambda _: None)


class Stopped(Exception):
    """Stands for the end of the program."""


class Memory:
    """A registry as far as blobs are deleted: *needed* ones are refused, and *stops* counts requests until the end."""

    def __init__(self, there: set[Blob], needed: set[Blob], stops: int | None = None) -> None:
        self.there, self.needed, self.stops = there, needed, stops
        self.asked: list[Blob] = []

    def delete_blob(self, repository: str, digest: str) -> Deleted:
        if self.stops is not None and len(self.asked) >= self.stops:
            raise Stopped
        self.asked.append((repository, digest))
        if (repository, digest) not in self.there:
            return Deleted.ABSENT
        if (repository, digest) in self.needed:
            return Deleted.NEEDED
        self.there.remove((repository, digest))
        return Deleted.GONE

    @contextmanager
    def connect(self) -> Iterator[Memory]:
        yield self


BLOBS = st.dictionaries(
    st.tuples(st.sampled_from("ab"), st.integers(0, 60).map(str)), st.integers(1, 1000), max_size=90
)


@given(BLOBS, st.data())
def test_interrupted_anywhere_and_run_again_it_ends_in_the_same_state(
    sizes: dict[Blob, int], data: st.DataObject
) -> None:
    subset = st.sets(st.sampled_from(sorted(sizes))) if sizes else st.just(set())
    there, needed, relied = data.draw(subset), data.draw(subset), data.draw(subset)
    once = Memory(set(there), needed)
    whole = blobs.free(once.connect, sizes, relied=lambda: relied, pace=QUICK)  # type: ignore[arg-type]
    assert once.there == there & (needed | relied)
    assert whole.bytes == sum(sizes[one] for one in there - needed - relied), "each once"
    again = Memory(set(there), needed, stops=data.draw(st.integers(0, len(sizes))))
    try:
        blobs.free(again.connect, sizes, relied=lambda: relied, pace=QUICK)  # type: ignore[arg-type]
    except Stopped:
        again.stops = None
        blobs.free(again.connect, sizes, relied=lambda: relied, pace=QUICK)  # type: ignore[arg-type]
    assert again.there == once.there
    assert not relied & set(again.asked), "what pushes rely on is not even tried"


def test_it_holds_pushes_around_each_batch_and_asks_within_whether_one_relies_on_a_blob() -> None:
    sizes = {("a", str(number)): 1 for number in range(2 * blobs.BATCH + 1)}
    memory, story = Memory(set(sizes), set()), list[str]()

    @contextmanager
    def hold() -> Iterator[None]:
        story.append("closed")
        yield
        story.append(f"open after {len(memory.asked)}")

    def relied() -> set[Blob]:
        story.append("asked")
        return set()

    freed = blobs.free(memory.connect, sizes, relied=relied, hold=hold, pace=QUICK)  # type: ignore[arg-type]
    assert story == [
        word
        for count in (blobs.BATCH, 2 * blobs.BATCH, len(sizes))
        for word in ("closed", "asked", f"open after {count}")
    ]
    assert freed == Freed(blobs=len(sizes), bytes=len(sizes))


def test_the_pace_leaves_as_much_time_as_requests_took_and_waits_while_something_else_suffers() -> None:
    now, slept, slow = [100.0], list[float](), [0.0, 0.0, 7.0, 3.0, 0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(10, lambda: slow.pop(0), clock=lambda: now[0], sleep=sleep)
    pace.wait()
    now[0] += 0.1
    pace.made(5)  # at ten a second five take half of one
    pace.wait()
    assert slept == [pytest.approx(0.4)]
    now[0] += 2
    pace.made(5)
    pace.wait()
    assert slept[1:] == [pytest.approx(2.0), 7.0, 3.0]


@pytest.fixture
def fake() -> Iterator[Repositories]:
    with serving(Repositories(), pki.issue(authority(), "cp-1", ("10.0.0.10",)), ScopedHandler) as registry:
        yield registry


def test_what_the_registry_says_of_a_blob(fake: Repositories) -> None:
    manifest = fake.image("app", "v1", layer=b"layer")
    layer = oci.digest_of(b"layer")
    with connector(fake)() as registry:
        assert registry.delete_blob("app", layer) is Deleted.NEEDED
        assert registry.delete_manifest("app", manifest.digest)
        assert registry.delete_blob("app", layer) is Deleted.GONE
        assert registry.delete_blob("app", layer) is Deleted.ABSENT
        fake.refuse["DELETE", "/blobs/"] = [500]
        with pytest.raises(RegistryError):
            registry.delete_blob("app", layer)


# ---- on which blobs pushes relied --------------------------------------------------------------------------------

ONE, TWO, THREE = (f"sha256:{number * 64}" for number in "123")
LOG = f"""
{{"client":"10.0.0.9","who":"push","method":"HEAD","path":"/v2/team/app/blobs/{ONE}","status":200,"end":"--","blob":""}}
{{"client":"10.0.0.9","who":"anonymous","method":"HEAD","path":"\\/v2\\/team\\/app\\/blobs\\/{ONE}","status":200,"end":"--","blob":""}}
{{"client":"10.0.0.9","who":"push","method":"HEAD","path":"/v2/team/app/blobs/{TWO}","status":404,"end":"--","blob":""}}
{{"client":"10.0.0.9","who":"push","method":"GET","path":"/v2/team/app/blobs/{TWO}","status":200,"end":"--","blob":""}}
{{"client":"10.0.0.9","who":"push","method":"POST","path":"/v2/b/blobs/uploads/","status":201,"end":"--","blob":"{TWO}"}}
{{"client":"10.0.0.9","who":"push","method":"POST","path":"/v2/c/blobs/uploads/","status":202,"end":"--","blob":"{TWO}"}}
{{"client":"10.0.0.9","who":"push","method":"PUT","path":"/v2/d/blobs/uploads/u-1","status":201,"end":"--","blob":"{THREE}"}}
{{"client":"10.0.0.9","who":"push","method":"PUT","path":"/v2/e/manifests/v1","status":201,"end":"--","blob":""}}
"""


def test_a_log_tells_on_which_blobs_pushes_relied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").write_text(LOG.lstrip())
    script = tmp_path / "journalctl"
    script.write_text(
        f"""#!/bin/sh
case "$*" in
  *short-unix*) echo "1800000000.123456 cp-1 haproxy[1]: x" ;;
  *--since=-60s*--unit=systemd-journald.service) cat {tmp_path}/journald ;;
  *--output=cat*--since=-60s*--unit=one@1.service*) cat {tmp_path}/log ;;
  *--output=cat*--since=-150s*--unit=one@1.service*) cat {tmp_path}/lately ;;
esac
"""
    )
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\ncat {tmp_path}/state\nexit 3\n")
    (tmp_path / "state").write_text("active\n")
    (tmp_path / "lately").write_text("backend reads has no server available!\n" + LOG.lstrip())
    for one in (script, tmp_path / "systemctl"):
        one.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    argv = ("sh", "-c", push_log.ASK, "named", "60", "100", push_log.FOUND, push_log.TAKEN, "150", "one@1.service")

    def asked() -> push_log.PushLog:
        said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        return push_log.parse(said.splitlines())

    (tmp_path / "journald").write_text("Suppressed 9 messages from other.service\n")
    found = asked()
    assert found.blobs == {("team/app", ONE), ("b", TWO), ("d", THREE)}
    assert found.begins is not None
    assert not found.suppressed
    (tmp_path / "journald").write_text("Suppressed 9 messages from kubeadm-registry-haproxy@1.service\n")
    assert asked() == push_log.PushLog(found.blobs, found.begins, suppressed=True)


@pytest.mark.parametrize(
    ("state", "lately", "fails"),
    [
        ("active", LOG.lstrip(), False),
        ("active", "", True),
        ("inactive\nreloading", "backend reads has no server available!\n", True),
        ("inactive\nfailed", "", False),
    ],
    ids=["there are requests", "there is nothing", "only what is of a higher level", "the proxies do not run"],
)
def test_proxies_that_run_and_log_no_request_tell_nothing(tmp_path: Path, state: str, lately: str, fails: bool) -> None:
    (tmp_path / "journalctl").write_text(
        f'#!/bin/sh\ncase "$*" in *--since=-150s*haproxy@*) cat {tmp_path}/lately ;; *) : ;; esac\n'
    )
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\ncat {tmp_path}/state\n")
    (tmp_path / "state").write_text(f"{state}\n")
    (tmp_path / "lately").write_text(lately)
    for name in ("journalctl", "systemctl"):
        (tmp_path / name).chmod(0o755)
    if not fails:
        assert push_log.ask(here(tmp_path), 60).blobs == frozenset()
        return
    with pytest.raises(Error, match=r"no request of the last 150 s; is MaxLevelStore= below info") as caught:
        push_log.ask(here(tmp_path), 60)
    assert caught.value.code == "LogUnreadable"
