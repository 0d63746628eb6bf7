"""The client of the registry: whom it trusts, what it checks, what it asks; and the phase ``verify`` on top of it."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator

import httpx
import pytest

from kubeadm_registry import pki
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import PhaseFailed, RegistryError
from kubeadm_registry.oci import canary
from kubeadm_registry.phases.workflows import VERIFY_ONLY
from kubeadm_registry.registry import Api, Login, Registry, push_blob
from tests.unit.fake_cluster import FakeCluster, authority
from tests.unit.fake_registry import FakeRegistry, serving
from tests.unit.test_workflow import Recorder

NAMES = ("10.0.0.10", "fd00::10", "registry.lan", "10.0.0.11", "10.0.0.12", "10.0.0.13")
BLOB = b"a layer"
DIGEST = "sha256:" + hashlib.sha256(BLOB).hexdigest()


@pytest.fixture(scope="module")
def pair() -> pki.Pair:
    return pki.issue(authority(), "cp-1", NAMES)


@pytest.fixture
def fake(pair: pki.Pair) -> Iterator[FakeRegistry]:
    with serving(FakeRegistry(), pair) as registry:
        yield registry


def client(fake: FakeRegistry, name: str = "10.0.0.10", login: str = "push:secret", ca: str = "") -> Registry:
    user, _, password = login.partition(":")
    ca = ca or authority().certificate
    return Registry(
        name, 5000, ca=ca, login=Login(user, password) if login else None, via=("127.0.0.1", fake.port), timeout=10
    )


@pytest.mark.parametrize(
    ("name", "host"),
    [("10.0.0.10", "10.0.0.10:5000"), ("fd00::10", "[fd00::10]:5000"), ("registry.lan", "registry.lan:5000")],
)
def test_the_registry_is_asked_by_its_own_name_wherever_the_way_leads(fake: FakeRegistry, name: str, host: str) -> None:
    with client(fake, name) as registry:
        assert registry.blob("a", DIGEST) is None
    assert [request.host for request in fake.requests] == [host]


@pytest.mark.parametrize("name", ["10.0.0.99", "127.0.0.1", "other.lan"])
def test_a_certificate_for_another_name_is_refused(fake: FakeRegistry, name: str) -> None:
    with client(fake, name) as registry, pytest.raises(RegistryError, match="certificate verify failed") as caught:
        registry.blob("a", DIGEST)
    assert caught.value.code == "RegistryUnreachable"
    assert fake.requests == [], "no login was told to whoever that is"


def test_a_port_on_which_nothing_listens_is_told_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    closed = Registry("registry.lan", 5000, ca=authority().certificate, via=("127.0.0.1", port), timeout=10)
    with closed as registry, pytest.raises(RegistryError, match="failed: Connection refused"):
        registry.blob("a", DIGEST)


def test_another_authority_is_refused(fake: FakeRegistry) -> None:
    with client(fake, ca=pki.make_ca("registry").certificate) as registry, pytest.raises(RegistryError):
        registry.blob("a", DIGEST)
    assert fake.requests == []


def test_proxies_of_the_environment_are_not_asked(fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with client(fake) as registry:
        assert registry.blob("a", DIGEST) is None


def test_push_and_pull(fake: FakeRegistry) -> None:
    with client(fake) as registry:
        push_blob(registry, "a/b", DIGEST, BLOB)
        registry.push_manifest("a/b", "v1", b"{}", "application/vnd.oci.image.manifest.v1+json")
        assert registry.blob("a/b", DIGEST) == BLOB
        assert registry.manifest("a/b", "v1") == b"{}"
    assert [request.method for request in fake.requests] == ["HEAD", "POST", "PUT", "PUT", "GET", "GET"]
    assert fake.requests[2].path == f"/v2/a/blobs/uploads/1?state=x&digest={DIGEST.replace(':', '%3A')}", (
        "what the registry put into the Location stays there"
    )
    assert fake.requests[3].type == "application/vnd.oci.image.manifest.v1+json"
    assert {request.login for request in fake.requests} == {"push:secret"}


def test_a_blob_that_is_there_is_not_sent_again(fake: FakeRegistry) -> None:
    fake.blobs[DIGEST] = BLOB
    with client(fake) as registry:
        push_blob(registry, "a", DIGEST, BLOB)
    assert [request.method for request in fake.requests] == ["HEAD"]


def test_an_upload_goes_our_way_and_not_to_where_the_answer_says(fake: FakeRegistry) -> None:
    fake.location = "http://elsewhere.invalid:1/v2/a/blobs/uploads/1"
    with client(fake) as registry:
        push_blob(registry, "a", DIGEST, BLOB)
    assert fake.blobs == {DIGEST: BLOB}
    assert {request.host for request in fake.requests} == {"10.0.0.10:5000"}


def test_an_upload_without_a_location_is_an_error_of_the_registry(fake: FakeRegistry) -> None:
    fake.location = ""
    with client(fake) as registry, pytest.raises(RegistryError, match="no Location"):
        push_blob(registry, "a", DIGEST, BLOB)


def test_other_bytes_than_the_digest_says_are_refused(fake: FakeRegistry) -> None:
    fake.blobs[DIGEST], fake.manifests[DIGEST], fake.spoil = BLOB, BLOB, True
    with client(fake) as registry:
        for ask in (registry.blob, registry.manifest):
            with pytest.raises(RegistryError, match="the content does not match its digest") as caught:
                ask("a", DIGEST)
            assert caught.value.code == "DigestMismatch"


@pytest.mark.parametrize(("status", "temporary"), [(500, True), (503, True), (403, False)])
def test_another_status_is_an_error_with_the_registrys_words(fake: FakeRegistry, status: int, temporary: bool) -> None:
    fake.refuse["GET", "/blobs/"] = [status]
    with client(fake) as registry, pytest.raises(RegistryError, match="UNAVAILABLE") as caught:
        registry.blob("a", DIGEST)
    assert f"at 10.0.0.10: status {status} instead of 200" in caught.value.message
    assert caught.value.temporary is temporary


def test_a_list_that_is_gone_after_a_page_is_no_shorter_list() -> None:
    """zot makes a 404 of a storage error."""
    more = {"Link": '</v2/app/tags/list?last=v2>; rel="next"'}
    pages = [httpx.Response(200, json={"tags": ["v1", "v2"]}, headers=more), httpx.Response(404)]
    with Api("registry", "http://registry", httpx.Client(transport=httpx.MockTransport(lambda _: pages.pop(0)))) as api:
        with pytest.raises(RegistryError, match="the list ended after 1 page") as error:
            api.tags("app")
        assert error.value.temporary, "it is worth another try"
        pages.append(httpx.Response(404))
        assert api.tags("app") == []


def test_a_wrong_login(fake: FakeRegistry) -> None:
    with client(fake, login="push:wrong") as registry, pytest.raises(RegistryError, match="status 401") as caught:
        registry.push_manifest("a", "v1", b"{}", "x")
    assert "wrong" not in str(caught.value)


def test_nobody_there(fake: FakeRegistry) -> None:
    registry = Registry("10.0.0.10", 5000, ca=authority().certificate, via=("127.0.0.1", 1))
    with (
        registry,
        pytest.raises(RegistryError, match=r"GET https://.*/v2/a/blobs/x at 10\.0\.0\.10 failed") as caught,
    ):
        registry.blob("a", "x")
    assert (caught.value.code, caught.value.temporary) == ("RegistryUnreachable", True)


# ---- verify ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def verified(three: FakeCluster, fake: FakeRegistry) -> Cluster:
    """A cluster whose every address leads to the fake registry."""
    fake.password = "push:the-push-password"
    for server in three.servers.values():
        server.dial = lambda address, port: ("127.0.0.1", fake.port)  # type: ignore[method-assign]
    return three.cluster


def test_verify_pushes_once_and_pulls_everywhere(verified: Cluster, fake: FakeRegistry) -> None:
    [action] = run(VERIFY_ONLY, verified, Recorder())
    assert (action.host, action.title) == ("cp-1", "push the canary image")
    assert fake.manifests[canary.TAG] == canary.MANIFEST.content
    assert fake.blobs == {blob.digest: blob.content for blob in (canary.LAYER, canary.CONFIG)}
    pulled = {(request.host, request.login) for request in fake.requests if request.method == "GET"}
    addresses = ("10.0.0.10", "10.0.0.11", "10.0.0.12", "10.0.0.13")
    assert pulled == {(f"{address}:5000", "pull:the-pull-password") for address in addresses}
    assert run(VERIFY_ONLY, verified, Recorder()) == [], "a second time there is nothing to do"


def test_verify_begins_a_push_anew_while_the_writer_moves(verified: Cluster, fake: FakeRegistry) -> None:
    fake.refuse["PUT", "/manifests/"] = [503]
    run(VERIFY_ONLY, verified, Recorder())
    assert canary.TAG in fake.manifests


def test_verify_does_not_wait_for_what_never_gets_better(verified: Cluster, fake: FakeRegistry) -> None:
    fake.password = "push:another"
    with pytest.raises(PhaseFailed, match=r"phase verify/push, push the canary image: .* status 401") as caught:
        run(VERIFY_ONLY, verified, Recorder())
    assert caught.value.host == "cp-1"
    assert "the-push-password" not in str(caught.value)


def test_a_dry_run_of_verify_before_init_says_later(three: FakeCluster) -> None:
    three.fixed = None
    recorder = Recorder()
    assert run(VERIFY_ONLY, three.cluster, recorder, dry_run=True) == []
    assert {reason for _, _, reason in recorder.later} == {"not every node has the registry's secrets yet"}
