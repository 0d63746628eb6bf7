"""Uploads that break and go on, and what else seeding asks of a registry."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kubeadm_registry import pki
from kubeadm_registry.errors import BundleError, RegistryError
from kubeadm_registry.registry import Login, Registry, Upload
from kubeadm_registry.registry.upload import push_blob
from tests.unit.fake_cluster import authority
from tests.unit.fake_registry import FakeRegistry, Handler, serving

CONTENT = bytes(range(256)) * 40
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def fake(pair: pki.Pair) -> Iterator[FakeRegistry]:
    with serving(FakeRegistry(), pair) as registry:
        yield registry


@pytest.fixture
def registry(fake: FakeRegistry) -> Iterator[Registry]:
    ca, way = authority().certificate, ("127.0.0.1", fake.port)
    with Registry("10.0.0.10", 5000, ca=ca, login=Login("push", "secret"), via=way, timeout=10) as one:
        yield one


def content(offset: int) -> io.BytesIO:
    return io.BytesIO(CONTENT[offset:])


def upload(registry: Registry, *, size: int = len(CONTENT), **options: object) -> Upload:
    return Upload(registry, "a/b", DIGEST, size, **({"piece": 4000, "patience": 5} | options))  # type: ignore[arg-type]


def methods(fake: FakeRegistry) -> list[str]:
    return [request.method for request in fake.requests]


def test_a_blob_goes_in_pieces(fake: FakeRegistry, registry: Registry) -> None:
    seen: list[int] = []
    upload(registry, progress=seen.append).run(content)
    assert fake.blobs == {DIGEST: CONTENT}
    assert methods(fake) == ["POST", "PATCH", "PATCH", "PATCH", "PUT"]
    assert seen == [0, 4000, 8000, len(CONTENT)]


def test_a_registry_whose_range_stays_behind_has_what_it_took(
    fake: FakeRegistry, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ECR: 202 for each piece, and each time the range of the first one."""
    monkeypatch.setattr(Handler, "_range", lambda _: {"Range": "0-3999"})
    upload(registry, patience=1).run(content)
    assert fake.blobs == {DIGEST: CONTENT}
    assert methods(fake) == ["POST", "PATCH", "PATCH", "PATCH", "PUT"]


def test_a_small_blob_goes_with_the_request_that_ends_its_upload(fake: FakeRegistry, registry: Registry) -> None:
    seen: list[int] = []
    fake.refuse = {("PUT", "/uploads/"): [502]}
    whole = upload(registry, piece=len(CONTENT), progress=seen.append)
    assert not whole.in_pieces
    whole.run(content)
    assert fake.blobs == {DIGEST: CONTENT}
    assert methods(fake) == ["POST", "PUT", "HEAD", "GET", "PUT"]
    assert seen == [0, 0, len(CONTENT)]


def test_an_empty_blob(fake: FakeRegistry, registry: Registry) -> None:
    digest = "sha256:" + hashlib.sha256(b"").hexdigest()
    Upload(registry, "a", digest, 0).run(lambda _: io.BytesIO())
    assert fake.blobs == {digest: b""}


def test_a_blob_that_another_repository_has_is_not_sent(fake: FakeRegistry, registry: Registry) -> None:
    fake.mounts = True
    fake.blobs[DIGEST] = CONTENT
    upload(registry).run(content, mount_from="c")
    assert methods(fake) == ["POST"]
    assert f"mount={DIGEST.replace(':', '%3A')}&from=c" in fake.requests[0].path


def test_a_registry_that_does_not_mount_gets_it(fake: FakeRegistry, registry: Registry) -> None:
    upload(registry).run(content, mount_from="c")
    assert fake.blobs == {DIGEST: CONTENT}


def test_a_registry_that_does_not_find_what_to_mount_gets_it(fake: FakeRegistry, registry: Registry) -> None:
    """As Pulp: 404, where the specification has a new upload."""
    fake.refuse = {("POST", "/uploads/"): [404]}
    upload(registry, patience=0).run(content, mount_from="a/b")
    assert fake.blobs == {DIGEST: CONTENT}
    assert [request.path for request in fake.requests][:2] == [
        f"/v2/a/b/blobs/uploads/?mount={DIGEST.replace(':', '%3A')}&from=a%2Fb", "/v2/a/b/blobs/uploads/",
    ]  # fmt: skip


@pytest.mark.parametrize("status", [201, 204])
def test_a_piece_may_be_taken_with_another_status(
    fake: FakeRegistry, registry: Registry, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """201 is that of ECR, 204 that of earlier releases of Pulp and of the first description of the API."""
    say = Handler._say

    def other(one: Handler, told: int, *more: Any, **most: Any) -> None:
        say(one, status if one.command == "PATCH" else told, *more, **most)

    monkeypatch.setattr(Handler, "_say", other)
    upload(registry, patience=1).run(content)
    assert fake.blobs == {DIGEST: CONTENT}
    assert methods(fake) == ["POST", "PATCH", "PATCH", "PATCH", "PUT"]


@pytest.mark.parametrize("status", [400, 405, 416])
def test_a_registry_that_takes_no_such_pieces_gets_the_blob_whole(
    fake: FakeRegistry, registry: Registry, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """As ghcr.io, where a piece has 4 MiB at most (416), and others that take none."""
    put = Handler._put

    def no_piece(one: Handler, *more: Any) -> None:
        assert one.headers["Content-Range"] is None, "which makes it a piece as well, and too large a one"
        put(one, *more)

    monkeypatch.setattr(Handler, "_put", no_piece)
    fake.refuse = {("PATCH", "/uploads/"): [status] * 9}
    upload(registry, patience=1).run(content)
    assert fake.blobs == {DIGEST: CONTENT}
    assert methods(fake) == ["POST", "PATCH", "DELETE", "POST", "PUT"]


def test_after_a_break_it_goes_on_behind_what_has_arrived(fake: FakeRegistry, registry: Registry) -> None:
    fake.breaks = [1000]
    seen: list[int] = []
    upload(registry, progress=seen.append).run(content)
    assert fake.blobs == {DIGEST: CONTENT}
    assert seen == [0, 1000, 5000, 9000, len(CONTENT)]


def test_a_registry_that_forgets_the_piece_gets_only_that_again(fake: FakeRegistry, registry: Registry) -> None:
    fake.breaks, fake.keeps = [1000], False
    seen: list[int] = []
    upload(registry, progress=seen.append).run(content)
    assert fake.blobs == {DIGEST: CONTENT}
    assert seen == [0, 0, 4000, 8000, len(CONTENT)]


@pytest.mark.parametrize("status", [408, 429])
def test_a_registry_that_is_busy_has_not_forgotten_what_arrived(
    fake: FakeRegistry, registry: Registry, status: int
) -> None:
    """nginx answers 408 to a request that came too slowly, public registries 429 to who asks too often."""
    fake.breaks = [1000]
    fake.refuse = {("GET", "/uploads/"): [status] * 4, ("PATCH", "/uploads/"): [status]}
    seen: list[int] = []
    upload(registry, progress=seen.append, patience=20).run(content)
    assert fake.blobs == {DIGEST: CONTENT}
    assert fake.begun == 1
    assert seen == [0, 1000, 1000, 5000, 9000, len(CONTENT)]


def test_a_later_run_goes_on_where_the_first_was_killed(fake: FakeRegistry, registry: Registry) -> None:
    class Killed(BaseException):
        pass

    def kill(taken: int) -> None:
        if taken:
            raise Killed

    first = upload(registry, progress=kill)
    with pytest.raises(Killed):
        first.run(content)
    before = len(fake.requests)
    upload(registry, location=first.location).run(content)
    assert fake.blobs == {DIGEST: CONTENT}
    assert methods(fake)[before:] == ["GET", "PATCH", "PATCH", "PUT"]


@pytest.mark.parametrize("status", [404, 502, 503])
def test_an_upload_that_the_registry_does_not_know_begins_anew(
    fake: FakeRegistry, registry: Registry, status: int
) -> None:
    """As when the writer has moved, and the new one knows nothing of it."""
    fake.refuse = {("PATCH", "/uploads/"): [status], ("GET", "/uploads/"): [404]}
    upload(registry).run(content)
    assert fake.blobs == {DIGEST: CONTENT}
    assert methods(fake).count("POST") == 2


def test_wrong_bytes_of_an_earlier_run_are_not_kept(fake: FakeRegistry, registry: Registry) -> None:
    """A run of a damaged bundle was killed, and the next one has a good copy."""
    location = registry.begin_upload("a/b")
    fake.uploads["1"] += b"?" * 4000
    upload(registry, location=location).run(content)
    assert fake.blobs == {DIGEST: CONTENT}
    assert methods(fake).count("PUT") == 2, "begun again once"
    assert "1" not in fake.uploads, "nothing of it stays in the registry"


@pytest.mark.parametrize("resumed", [False, True])
def test_a_refused_upload_is_dropped(fake: FakeRegistry, registry: Registry, resumed: bool) -> None:
    location = registry.begin_upload("a/b") if resumed else ""
    one = upload(registry, location=location)
    with pytest.raises(RegistryError, match="digest invalid"):
        one.run(lambda offset: io.BytesIO(bytes(len(CONTENT) - offset)))
    assert methods(fake).count("PUT") == 1 + resumed, "begun again once at most"
    assert one.location == ""
    assert fake.uploads == {}


def test_a_source_that_fails_leaves_no_upload(fake: FakeRegistry, registry: Registry) -> None:
    def damaged(offset: int) -> io.BytesIO:
        raise BundleError(f"damaged at byte {offset}")

    one = upload(registry)
    with pytest.raises(BundleError):
        one.run(damaged)
    assert (one.location, fake.uploads) == ("", {})


def test_an_upload_that_is_given_up_is_resumed_by_a_later_run(fake: FakeRegistry, registry: Registry) -> None:
    fake.refuse = {("PUT", "/uploads/"): [503] * 100}
    one = upload(registry, patience=0.3)
    with pytest.raises(RegistryError, match="status 503"):
        one.run(content)
    assert one.location == fake.place("1"), "what has arrived need not be sent again"


def test_a_location_where_nothing_gets_on_is_not_tried_by_the_next_run(fake: FakeRegistry, registry: Registry) -> None:
    fake.refuse = {("PATCH", "/uploads/1"): [503] * 100}
    one = upload(registry, patience=0.3, location=registry.begin_upload("a/b"))
    with pytest.raises(RegistryError, match="status 503"):
        one.run(content)
    assert one.location == ""


def test_a_location_of_an_earlier_run_that_is_gone(fake: FakeRegistry, registry: Registry) -> None:
    upload(registry, location="/v2/a/b/blobs/uploads/gone").run(content)
    assert fake.blobs == {DIGEST: CONTENT}


def test_a_registry_that_forgets_every_piece_at_once_is_given_up(fake: FakeRegistry, registry: Registry) -> None:
    fake.refuse = {("PATCH", "/uploads/"): [404] * 1000}
    with pytest.raises(RegistryError, match="does not resume the upload"):
        upload(registry, patience=0.5).run(content)
    assert methods(fake).count("PATCH") < 10, "with a pause between"


def test_an_earlier_run_whose_writer_has_moved(fake: FakeRegistry, registry: Registry) -> None:
    """Our proxy says 503 of such an upload for ever, and a registry that is only away says it for a moment."""
    fake.refuse = {("GET", "/uploads/7"): [503] * 1000, ("PATCH", "/uploads/7"): [503] * 1000}
    upload(registry, location="/v2/a/b/blobs/uploads/7", patience=20).run(content)
    assert fake.blobs == {DIGEST: CONTENT}


def test_a_range_that_does_not_follow_is_looked_up(fake: FakeRegistry, registry: Registry) -> None:
    one = upload(registry)
    one.run(content)
    fake.uploads["1"], fake.blobs = bytearray(CONTENT[:10]), {}
    again = upload(registry, location=fake.location)
    again.run(content)
    assert fake.blobs == {DIGEST: CONTENT}


def test_an_answer_to_the_last_request_that_was_lost(fake: FakeRegistry, registry: Registry) -> None:
    fake.blobs[DIGEST] = CONTENT
    fake.refuse = {("PUT", "/uploads/"): [404]}
    upload(registry).run(content)
    assert methods(fake)[-2:] == ["PUT", "HEAD"]


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_a_large_blob_may_take_its_time(pair: pki.Pair, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """A piece that was sent is still on its way over a slow line, and at the end a registry reads and copies all."""

    class Slow(Handler):
        def _handle(self) -> None:
            if self.command == method:
                time.sleep(1.5)
            super()._handle()

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _handle

    for name in ("_COPIED", "_SLOWEST"):
        monkeypatch.setattr(f"kubeadm_registry.registry.upload.{name}", 400, raising=False)
    ca, login = authority().certificate, Login("push", "secret")
    with serving(FakeRegistry(), pair, Slow) as fake:
        way = ("127.0.0.1", fake.port)
        with Registry("10.0.0.10", 5000, ca=ca, login=login, via=way, timeout=1) as one:
            upload(one).run(content)
            assert (methods(fake).count("PATCH"), methods(fake).count("PUT")) == (3, 1)
            if method == "PUT":
                with pytest.raises(RegistryError, match="timed out"):
                    push_blob(one, "a", "sha256:0", b"x")


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
def test_who_is_refused_is_not_tried_again(fake: FakeRegistry, registry: Registry, method: str) -> None:
    fake.refuse = {(method, "/uploads/"): [403, 403]}
    with pytest.raises(RegistryError, match="status 403"):
        upload(registry).run(content)
    assert methods(fake).count(method) == 1


def test_a_registry_that_takes_nothing_is_given_up(fake: FakeRegistry, registry: Registry) -> None:
    fake.refuse = {("PATCH", "/uploads/"): [503] * 100}
    with pytest.raises(RegistryError, match="status 503"):
        upload(registry, patience=0.5).run(content)


def test_a_source_that_ends_early_is_an_error_and_no_endless_trial(fake: FakeRegistry, registry: Registry) -> None:
    with pytest.raises(RegistryError, match="shorter than its descriptor says") as caught:
        upload(registry, size=len(CONTENT) + 1).run(content)
    assert caught.value.code == "BlobTruncated"
    assert not fake.blobs


# ---- the rest of the client -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limited", [False, True])
def test_repositories_are_asked_for_in_few_pages(fake: FakeRegistry, registry: Registry, limited: bool) -> None:
    """zot begins at the first one for each page; Distribution takes no number over 1000."""
    fake.manifests, fake.page = {f"v{number}": b"{}" for number in range(5)}, 1000
    fake.refuse = {("GET", "/_catalog"): [400]} if limited else {}
    assert registry.repositories() == ["v0", "v1", "v2", "v3", "v4"]
    assert [request.path.partition("?")[2] for request in fake.requests] == ["n=10000", "n=1000"][: 1 + limited]


def test_the_list_of_repositories_may_take_its_time(pair: pki.Pair) -> None:
    class Looking(Handler):
        def _handle(self) -> None:
            if "_catalog" in self.path:
                time.sleep(1.5)
            super()._handle()

        do_GET = _handle

    with (
        serving(FakeRegistry(manifests={"a": b"{}"}), pair, Looking) as fake,
        Registry("10.0.0.10", 5000, ca=authority().certificate, via=("127.0.0.1", fake.port), timeout=1) as one,
    ):
        assert one.repositories() == ["a"]


def test_lists_go_over_all_pages(fake: FakeRegistry, registry: Registry) -> None:
    fake.manifests = {f"v{number}": b"{}" for number in range(5)}
    assert registry.tags("a") == ["v0", "v1", "v2", "v3", "v4"]
    assert registry.repositories() == ["v0", "v1", "v2", "v3", "v4"]
    fake.refuse = {("GET", "/tags/list"): [404]}
    assert registry.tags("nobody") == []


@pytest.mark.parametrize("native", [True, False])
def test_referrers_come_from_the_list_or_from_the_tag(fake: FakeRegistry, registry: Registry, native: bool) -> None:
    fake.referrers = native
    if native:
        fake.manifests["sha256:2"] = b'{"subject": {"digest": "sha256:1"}}'
    else:
        fake.manifests["sha256-1"] = b'{"manifests": [{"digest": "sha256:2"}]}'
    assert [entry["digest"] for entry in registry.referrers("a", "sha256:1")] == ["sha256:2"]
    assert registry.referrers("a", "sha256:9") == []


def test_a_piece_of_a_blob(fake: FakeRegistry, registry: Registry) -> None:
    fake.blobs[DIGEST] = CONTENT
    assert registry.piece("a", DIGEST, 10, 5) == CONTENT[10:15], "also from a registry that knows no ranges"
    assert registry.piece("a", "sha256:0", 0, 5) is None


def test_digest_and_deletion_of_a_manifest(fake: FakeRegistry, registry: Registry) -> None:
    fake.manifests["v1"] = b"{}"
    assert registry.digest("a", "v1") == "sha256:" + hashlib.sha256(b"{}").hexdigest()
    assert registry.delete_manifest("a", "v1")
    assert not registry.delete_manifest("a", "v1")
    assert registry.digest("a", "v1") is None


def test_the_digest_in_a_registry_that_knows_get_alone(fake: FakeRegistry, registry: Registry) -> None:
    fake.refuse["HEAD", "/manifests/"] = [405, 405]
    fake.manifests["v1"] = b"{}"
    assert registry.digest("a", "v1") == "sha256:" + hashlib.sha256(b"{}").hexdigest()
    assert registry.digest("a", "v2") is None


@pytest.mark.parametrize("answer", [b"<html>", b"[]"])
def test_lists_that_are_none(fake: FakeRegistry, registry: Registry, answer: bytes) -> None:
    fake.referrers = False
    fake.manifests["sha256-1"] = answer
    with pytest.raises(RegistryError, match="the response is not"):
        registry.referrers("a", "sha256:1")
