"""Registries on the internet: whom a login is told to, where redirects may lead, what odd answers come to."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from kubeadm_registry import pki
from kubeadm_registry.errors import Error, RegistryError
from kubeadm_registry.registry import Login, Upload, Upstream, answers, retries, retry, web
from kubeadm_registry.registry.challenges import challenges
from tests.unit.fake_cluster import authority
from tests.unit.fake_web import Asked, Say, Web, raw, serving

LOGIN = Login("me", "secret")
BASIC = "Basic bWU6c2VjcmV0"
MANIFEST = b'{"schemaVersion": 2}'
DIGEST = "sha256:" + hashlib.sha256(MANIFEST).hexdigest()
FOUND = Say(200, MANIFEST, (("Content-Type", "application/vnd.oci.image.manifest.v1+json"),))


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of a server at 127.0.0.1."""
    pair, path = pki.issue(authority(), "registry", ("127.0.0.1",)), tmp_path_factory.mktemp("tls") / "pair.pem"
    path.write_text(pair.certificate + pair.key)
    return path


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This machine trusts the CA."""
    (tmp_path / "ca.pem").write_text(authority().certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


def to(host: str, login: Login | None = LOGIN, timeout: float = 5) -> Upstream:
    return Upstream(host, lambda _: login, timeout=timeout)


def challenge(*values: str) -> Say:
    return Say(401, b"{}", tuple(("WWW-Authenticate", value) for value in values))


def redirect(url: str) -> Callable[[Asked], Say]:
    return lambda asked: Say(307, b"", (("Location", url + asked.path),))


def found(asked: Asked) -> Say:
    del asked
    return FOUND


def demanding(*values: str) -> Callable[[Asked], Say]:
    """Who lets in whoever comes with a login or a token."""
    return lambda asked: FOUND if asked.login else challenge(*values)


def tokens(asked: Asked) -> Say:
    del asked
    return Say(200, b'{"token": "t"}')


@pytest.fixture
def realm(tls: Path) -> Iterator[Web]:
    """A server of tokens."""
    with serving(tokens, tls) as web:
        yield web


# ---- logins and redirects --------------------------------------------------------------------------------------------


def test_a_login_is_told_to_the_registry_and_its_server_of_tokens(tls: Path, realm: Web) -> None:
    with serving(demanding(f'Bearer realm="{realm.url}/token"'), tls) as web, to(web.host) as registry:
        assert registry.manifest("a/b", "v1") == MANIFEST
    assert web.logins == {"Bearer t"}
    assert realm.logins == {BASIC}
    assert realm.asked[0].path == "/token?scope=repository%3Aa%2Fb%3Apull"


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
def test_who_is_redirected_to_gets_no_login(tls: Path, realm: Web, scheme: str) -> None:
    """A registry's redirect may lead to anybody: what that one asks for is answered as by anybody."""
    demand = f'{scheme} realm="{realm.url}/token"'
    with (
        serving(demanding(demand), tls) as other,
        serving(redirect(other.url), tls) as web,
        to(web.host) as registry,
    ):
        if scheme == "Basic":
            with pytest.raises(RegistryError, match="status 401"):
                registry.manifest("a/b", "v1")
        else:
            assert registry.manifest("a/b", "v1") == MANIFEST, "with a token for anybody, as registry.k8s.io needs it"
    assert BASIC not in web.logins | other.logins | realm.logins


def test_a_token_is_not_told_to_who_is_redirected_to(tls: Path, realm: Web) -> None:
    def elsewhere(asked: Asked) -> Say:
        return redirect(other.url)(asked) if asked.login else challenge(f'Bearer realm="{realm.url}/token"')

    with serving(found, tls) as other, serving(elsewhere, tls) as web, to(web.host) as registry:
        assert registry.manifest("a/b", "v1") == MANIFEST
    assert web.logins == {"Bearer t"}
    assert other.logins == set()


def test_a_redirect_within_the_registry_keeps_the_login(tls: Path) -> None:
    def inner(asked: Asked) -> Say:
        if not asked.login:
            return challenge("Basic")
        return FOUND if "moved" in asked.path else Say(302, b"", (("Location", "/v2/moved/manifests/v1"),))

    with serving(inner, tls) as web, to(web.host) as registry:
        assert registry.manifest("a/b", "v1") == MANIFEST
    assert web.logins == {BASIC}


@pytest.mark.parametrize("reference", ["v1", DIGEST])
def test_https_does_not_go_on_by_http(tls: Path, reference: str) -> None:
    with serving(found) as plain, serving(redirect(plain.url), tls) as web, to(web.host) as registry:
        with pytest.raises(RegistryError, match=f"redirects to {plain.url}, which is not an https address") as caught:
            registry.manifest("a/b", reference)
        with pytest.raises(RegistryError, match="not an https address"):
            b"".join(registry.stream("a/b", DIGEST))
    assert (caught.value.code, caught.value.temporary) == ("RedirectRefused", False)
    assert plain.asked == []


@pytest.mark.parametrize("where", ["http://127.0.0.1:9/token", "http://auth.example.com/token", "file:///etc/x", ""])
def test_tokens_come_by_https(tls: Path, where: str) -> None:
    with (
        serving(demanding(f'Bearer realm="{where}"'), tls) as web,
        to(web.host) as registry,
        pytest.raises(RegistryError, match="not an https address") as caught,
    ):
        registry.manifest("a/b", "v1")
    assert caught.value.code == "RedirectRefused"


def test_a_server_of_tokens_that_moved_gets_no_login_unless_it_is_the_same(tls: Path) -> None:
    with (
        serving(tokens, tls) as moved,
        serving(redirect(moved.url), tls) as first,
        serving(demanding(f'Bearer realm="{first.url}/token"'), tls) as web,
        to(web.host) as registry,
    ):
        assert registry.manifest("a/b", "v1") == MANIFEST
    assert (first.logins, moved.logins) == ({BASIC}, set())


def test_who_does_not_answer_is_named_where_that_is_not_the_registry(tls: Path) -> None:
    """A firewall may let in the registry and not the place of its blobs; what is behind the path there is a secret."""
    with (
        serving(redirect("https://127.0.0.1:1/x?signature="), tls) as web,
        to(web.host) as registry,
        pytest.raises(RegistryError, match=r"at 127\.0\.0\.1:\d+, redirected to 127\.0\.0\.1:1, failed: ") as caught,
    ):
        registry.blob("a", DIGEST)
    assert "signature" not in caught.value.message


def test_redirects_that_lead_nowhere_end(tls: Path) -> None:
    with serving(redirect(""), tls) as web, to(web.host) as registry:
        begin = time.monotonic()
        with pytest.raises(RegistryError, match="redirects more than 5 times"):
            retry(lambda: registry.manifest("a", "v1"), 30)
        assert time.monotonic() - begin < 10, "waiting does not mend it"
    assert len(web.asked) == 6


# ---- challenges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        ('Basic realm="x"', 'Bearer realm="R/token",service="s"'),
        ('Basic realm="x", Bearer realm="R/token",service="s"',),
        ('Bearer Realm="R/token" , SERVICE="s"',),
        ("bearer realm=R/token, service=s",),
        ('Negotiate abcd==, BEARER service="s",realm="R/token"',),
        (r'Bearer error="say \"please\"",realm="R/token",service=s',),
    ],
)
def test_challenges_in_all_their_forms(tls: Path, realm: Web, headers: tuple[str, ...]) -> None:
    values = [header.replace("R/", f"{realm.url}/") for header in headers]
    with serving(demanding(*values), tls) as web, to(web.host) as registry:
        assert registry.manifest("a", "v1") == MANIFEST
    assert "service=s" in realm.asked[0].path


@pytest.mark.parametrize("header", ["", ",,,", "=", '"', 'realm="x"', 'Bearer realm="', "Basic\tx", "é=1", " " * 9999])
def test_what_is_no_challenge_is_none(header: str) -> None:
    assert not [one for one in challenges([header]) if one.values.get("realm")]


def test_a_challenge_that_cannot_be_answered_is_told(tls: Path) -> None:
    with (
        serving(lambda _: challenge("Negotiate"), tls) as web,
        to(web.host) as registry,
        pytest.raises(RegistryError, match="status 401") as caught,
    ):
        registry.manifest("a", "v1")
    assert "podman login" in caught.value.hint
    assert "check the name" in caught.value.hint, "Docker Hub and GHCR say 401 and 403 of what is not there"


def test_a_token_that_has_ended_is_replaced(tls: Path, realm: Web) -> None:
    valid = ["Bearer t"]

    def once(asked: Asked) -> Say:
        if asked.login in valid:
            return FOUND
        valid[:] = ["Bearer t"]
        return challenge(f'Bearer realm="{realm.url}/token"')

    with serving(once, tls) as web, to(web.host) as registry:
        assert registry.manifest("a", "v1") == MANIFEST
        valid.clear()
        assert registry.manifest("a", "v1") == MANIFEST
    assert len(realm.asked) == 2


class Uploads:
    """A registry that takes one upload, with tokens that end after *each* requests, and some for reading alone."""

    def __init__(self, realm: Web, each: int) -> None:
        self.realm, self.each, self.left = realm, each, 0
        self.taken, self.done = b"", False

    def __call__(self, asked: Asked) -> Say:
        pushes = asked.method in ("POST", "PATCH", "PUT")
        if not asked.login or self.left == 0 or (pushes and asked.login != "Bearer push"):
            self.left = self.each
            scope = "pull,push" if pushes else "pull"
            return challenge(f'Bearer realm="{self.realm.url}/token",scope="repository:a:{scope}"')
        self.left -= 1
        where = (("Location", "/v2/a/blobs/uploads/1"), ("Range", f"0-{max(0, len(self.taken) - 1)}"))
        if asked.method == "POST":
            return Say(202, headers=where)
        if asked.method == "GET":
            return Say(204, headers=where)
        self.taken += asked.body
        if asked.method == "PUT":
            self.done = True
            return Say(201)
        return Say(202, headers=(where[0], ("Range", f"0-{len(self.taken) - 1}")))


@pytest.mark.parametrize("each", [2, 3, 100])
def test_an_upload_outlives_its_tokens(tls: Path, each: int) -> None:
    """What a refused request brought is gone, and its content is a stream: it is sent again from the source."""
    content = bytes(range(256)) * 1000

    def give(asked: Asked) -> Say:
        return Say(body=b'{"token":"%s"}' % (b"push" if "push" in asked.path else b"pull"))

    with serving(give, tls) as realm:
        uploads = Uploads(realm, each)
        with serving(uploads, tls) as web, to(web.host) as registry:
            upload = Upload(registry, "a", f"sha256:{'0' * 64}", len(content), piece=50_000, patience=20)
            upload.run(lambda offset: io.BytesIO(content[offset:]))
    assert uploads.done
    assert uploads.taken == content


def test_an_upload_need_not_name_its_repository(tls: Path) -> None:
    """As those of Google's Artifact Registry: /artifacts-uploads/namespaces/... The login may be for one repository."""
    uploads: dict[str, bytes] = {}

    def give(asked: Asked) -> Say:
        [scope] = parse_qs(asked.path.partition("?")[2])["scope"]
        return Say(body=json.dumps({"token": scope.split(":")[1] if asked.login == BASIC else "nobody"}).encode())

    def take(asked: Asked) -> Say:
        name = asked.path.split("/")[2]
        if asked.login != f"Bearer {name}":
            return challenge(f'Bearer realm="{desk.url}/token"')
        if asked.method != "POST":
            uploads[name] = uploads.get(name, b"") + asked.body
        status = {"POST": 202, "PATCH": 202, "PUT": 201}[asked.method]
        return Say(status, headers=(("Location", f"/artifacts-uploads/{name}/1"),))

    def login(repository: str) -> Login | None:
        return LOGIN if repository in ("a", "b") else None

    with serving(give, tls) as desk, serving(take, tls) as web, Upstream(web.host, login, pushes=True) as registry:
        for name in "ab":
            Upload(registry, name, DIGEST, 5, piece=2, patience=0).run(lambda offset: io.BytesIO(b"12345"[offset:]))
    assert uploads == {"a": b"12345", "b": b"12345"}
    assert len(desk.asked) == 2, "each repository has a token"


@pytest.mark.parametrize("link", ["?n=2&last=one", "list?n=2&last=one", "/v2/a/b/tags/list?n=2&last=one"])
@pytest.mark.parametrize(
    "header", ['<{}>; rel="next"', '<{}>; title="a, b"; rel=next', '</v2/a/b/tags/list>; rel="first", <{}>; Rel="next"']
)
def test_the_next_page_may_be_relative_to_this_one(tls: Path, link: str, header: str) -> None:
    """As any URL in a Link: RFC 8288, section 3.1; with other parameters, and other links."""

    def pages(asked: Asked) -> Say:
        path, _, query = asked.path.partition("?")
        if path != "/v2/a/b/tags/list":
            return Say(404)
        if "last=" in query:
            return Say(200, b'{"tags": ["two"]}')
        return Say(200, b'{"tags": ["one"]}', (("Link", header.format(link)),))

    with serving(pages, tls) as web, to(web.host) as registry:
        assert registry.tags("a/b") == ["one", "two"]


def test_each_scope_is_asked_for_by_itself(tls: Path, realm: Web) -> None:
    """As a mount needs two: https://distribution.github.io/distribution/spec/auth/token/, "Requesting a Token"."""

    def mounting(asked: Asked) -> Say:
        scopes = "repository:a:pull,push repository:b:pull"
        return Say(201) if asked.login else challenge(f'Bearer realm="{realm.url}/token",service="s",scope="{scopes}"')

    with serving(mounting, tls) as web, to(web.host) as registry:
        assert registry.begin_upload("a", mount=DIGEST, source="b") == ""
    [asked] = realm.asked
    told = parse_qs(asked.path.partition("?")[2])
    assert told == {"scope": ["repository:a:pull,push", "repository:b:pull"], "service": ["s"]}


@pytest.mark.parametrize("login", [LOGIN, Login("", "", "identity")])
def test_a_repository_that_is_not_there_yet_is_asked_for_by_who_may_make_it(tls: Path, login: Login) -> None:
    """As by Quay: a token for reading alone is none for what is not there, and the challenge asks for no other one."""

    def give(asked: Asked) -> Say:
        scope = parse_qs(asked.body.decode() or asked.path.partition("?")[2])["scope"]
        return Say(body=b'{"token":"%s"}' % (b"new" if scope == ["repository:a/b:pull,push"] else b"nobody"))

    with serving(give, tls) as realm:

        def quay(asked: Asked) -> Say:
            if asked.login == "Bearer new":
                return Say(404)
            return challenge(f'Bearer realm="{realm.url}/token",scope="repository:a/b:pull"')

        with serving(quay, tls) as web, Upstream(web.host, lambda _: login, pushes=True) as registry:
            assert registry.digest("a/b", "v1") is None
            assert not registry.has_repository("a/b")


def test_a_repository_that_must_be_created_first_is_told_at_once(tls: Path) -> None:
    """As by ECR, and by Harbor of a project."""
    said = Say(404, b'{"errors": [{"code": "NAME_UNKNOWN"}]}')
    with serving(lambda _: said, tls) as web, Upstream(web.host, lambda _: LOGIN, pushes=True) as registry:
        begin = time.monotonic()
        with pytest.raises(RegistryError, match=r"begin upload to a/b at .*: status 404 .*NAME_UNKNOWN") as caught:
            Upload(registry, "a/b", DIGEST, 20, patience=30).run(lambda _: io.BytesIO(MANIFEST), mount_from="a/b")
        assert time.monotonic() - begin < 5
    assert caught.value.hint.startswith("create the repository")


def test_an_upload_is_not_sent_to_where_somebody_redirects(tls: Path) -> None:
    def elsewhere(asked: Asked) -> Say:
        if asked.method == "POST":
            return Say(202, headers=(("Location", "/v2/a/blobs/uploads/1"),))
        return Say(307, headers=(("Location", "/v2/b/blobs/uploads/1"),))

    with serving(elsewhere, tls) as web, to(web.host) as registry:
        upload = Upload(registry, "a", f"sha256:{'0' * 64}", 10, patience=1)
        with pytest.raises(RegistryError, match="redirects an upload"):
            upload.run(lambda offset: io.BytesIO(bytes(10)[offset:]))


def test_an_identity_token_is_exchanged(tls: Path, realm: Web) -> None:
    """As docker keeps it for Azure: https://distribution.github.io/distribution/spec/auth/oauth/."""
    login = Login("", "", "the+identity")
    with serving(demanding(f'Bearer realm="{realm.url}/oauth2",service="s"'), tls) as web, to(web.host, login) as at:
        assert at.manifest("a/b", "v1") == MANIFEST
    [asked] = [one for one in realm.asked if one.method == "POST"]
    assert asked.login == ""
    assert b"grant_type=refresh_token" in asked.body
    assert b"refresh_token=the%2Bidentity" in asked.body
    assert b"scope=repository%3Aa%2Fb%3Apull" in asked.body


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"token": "\xc3\xa9"}', "returned no token"),
        (b'{"token": "a\\nHost: x"}', "returned no token"),
        (b'{"token": 5}', "returned no token"),
        (b"{}", "returned no token"),
        (b"[]", "not a JSON object"),
        (b"<html>", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"token": "' + b"a" * 2**20 + b'"}', "larger than"),
    ],
)
def test_tokens_that_are_none(tls: Path, answer: bytes, message: str) -> None:
    with (
        serving(lambda _: Say(200, answer), tls) as odd,
        serving(demanding(f'Bearer realm="{odd.url}/token"'), tls) as web,
        to(web.host) as registry,
        pytest.raises(RegistryError, match=message) as caught,
    ):
        registry.manifest("a", "v1")
    assert not caught.value.temporary


@pytest.mark.parametrize("status", [401, 403, 429])
@pytest.mark.parametrize("realm_status", [200, 403])
def test_why_there_is_no_login_is_told_to_who_is_refused(tls: Path, status: int, realm_status: int) -> None:
    with (
        serving(lambda _: Say(realm_status, b'{"token": "t"}'), tls) as realm,
        serving(lambda asked: Say(status) if asked.login else challenge(f'Bearer realm="{realm.url}"'), tls) as web,
        Upstream(web.host, advice=lambda: "check the helper") as registry,
        pytest.raises(RegistryError) as caught,
    ):
        registry.manifest("a", "v1")
    assert caught.value.hint == "check the helper"


# ---- on this machine -------------------------------------------------------------------------------------------------


def test_a_registry_on_this_machine_is_asked_as_it_speaks(tls: Path) -> None:
    for pair in (None, tls):
        with serving(found, pair) as web, to(web.host) as registry:
            assert registry.manifest("a", "v1") == MANIFEST


def test_a_tls_registry_on_this_machine_must_be_trusted(tls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    with serving(found, tls) as web, to(web.host) as registry:
        begin = time.monotonic()
        with pytest.raises(RegistryError, match="certificate verify failed") as caught:
            retry(lambda: registry.manifest("a", "v1"), 30)
    assert time.monotonic() - begin < 10, "waiting does not mend it"
    assert "trusts the CA" in caught.value.hint
    assert [one for one in web.asked if "manifests" in one.path] == []


def test_authorities_are_found_where_debian_has_none(
    tls: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Debian's OpenSSL is in the one file also on RHEL, which has no /usr/lib/ssl. Programs come as images do."""
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    nowhere = ssl.get_default_verify_paths()._replace(cafile=None, capath=None)  # type: ignore[arg-type]
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nowhere)
    monkeypatch.setattr(web, "_AUTHORITIES", (str(tmp_path / "nothing"), str(tmp_path / "ca.pem")))
    with serving(found, tls) as server, to(server.host) as registry, web.client() as downloads:
        assert registry.manifest("a", "v1") == MANIFEST
        assert downloads.get(server.url).content == MANIFEST
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing"))
    with serving(found, tls) as server, to(server.host) as registry, pytest.raises(RegistryError, match="certificate"):
        registry.manifest("a", "v1")


def test_authorities_of_sites_need_not_be_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python 3.13 on "Missing Authority Key Identifier" was all that came through many a company's proxy."""
    made = ssl.create_default_context

    def strict(*arguments: Any, **options: Any) -> ssl.SSLContext:
        context = made(*arguments, **options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    assert not web.trusting().verify_flags & ssl.VERIFY_X509_STRICT


def test_a_plain_registry_on_this_machine_may_not_send_elsewhere_by_http() -> None:
    with (
        serving(redirect("http://registry.example.com")) as web,
        to(web.host) as registry,
        pytest.raises(RegistryError, match="not an https address"),
    ):
        registry.manifest("a", "v1")


# ---- what waiting does not mend --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "nobody.invalid",
        "a" * 64 + ".example.com",
        "xn--zzzz99999.example.com",
        "xn--a.example.com",
        "256.256.256.256",
        "1.2.3",
        "host.example.com:99999",
        "a." * 130 + "example.com",
        "a..example.com",
    ],
)
def test_a_host_that_cannot_be_is_told_at_once(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def offline(*arguments: Any, flags: int = 0, **options: Any) -> Any:
        return real(*arguments, flags=flags | socket.AI_NUMERICHOST, **options)

    monkeypatch.setattr(socket, "getaddrinfo", offline)  # a name server that is slow, or not there, is another matter
    begin = time.monotonic()
    with pytest.raises(RegistryError) as caught, to(host) as registry:
        retry(lambda: registry.manifest("a", "v1"), 30)
    assert time.monotonic() - begin < 15
    assert caught.value.code == "RegistryUnreachable"
    assert "redirects" not in caught.value.message


def test_a_registry_that_never_answered_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubeadm_registry.registry.upstream._FIRST", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    begin = time.monotonic()
    with to(f"127.0.0.1:{port}") as registry, pytest.raises(RegistryError):
        retry(lambda: registry.manifest("a", "v1"), 30)
    assert 0.3 <= time.monotonic() - begin < 15


def test_a_registry_that_answered_before_is_waited_for(tls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubeadm_registry.registry.upstream._FIRST", 0.0)
    last = Say(FOUND.status, FOUND.body, (*FOUND.headers, ("Connection", "close")))
    with serving(lambda _: last, tls) as web:
        registry = to(web.host)
        registry.manifest("a", "v1")
    with registry, pytest.raises(RegistryError) as caught:
        registry.manifest("a", "v2")
    assert (caught.value.code, caught.value.temporary) == ("RegistryUnreachable", True)


@pytest.mark.parametrize(
    ("status", "temporary"), [(404, False), (403, False), (408, True), (429, True), (503, True), (522, True)]
)
def test_a_blob_that_is_not_there_is_not_waited_for(tls: Path, status: int, temporary: bool) -> None:
    with (
        serving(lambda _: Say(status), tls) as web,
        to(web.host) as registry,
        pytest.raises(RegistryError, match=f"status {status}") as caught,
    ):
        b"".join(registry.stream("a", DIGEST))
    assert caught.value.temporary is temporary


def test_a_registry_that_asks_for_a_pause_gets_it(tls: Path) -> None:
    said = [Say(429, b"", (("Retry-After", "1"),)), FOUND]
    with serving(lambda asked: said.pop(0) if "manifests" in asked.path else FOUND, tls) as web, to(web.host) as at:
        begin = time.monotonic()
        assert retry(lambda: at.manifest("a", "v1"), 30) == MANIFEST
    assert time.monotonic() - begin >= 1


@pytest.mark.parametrize("pause", ["3600", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_pause_that_is_too_long_is_told(tls: Path, pause: str) -> None:
    with serving(lambda _: Say(429, b"slow down", (("Retry-After", pause),)), tls) as web, to(web.host) as registry:
        begin = time.monotonic()
        with pytest.raises(RegistryError, match="slow down") as caught:
            retry(lambda: registry.manifest("a", "v1"), 30)
    assert time.monotonic() - begin < 10
    assert "as the registry requests" in caught.value.hint


@pytest.mark.parametrize(
    "pause",
    ["soon", "", "-1", "Fri, 01 Jan 2000 00:00:00 GMT", "Fri, 99 Zzz 2000", f"Fri, 01 Jan 2000 00:00:00 +{'9' * 20}"],
)
def test_a_pause_that_is_none_is_not_waited_for(tls: Path, pause: str) -> None:
    said = [Say(503, b"", (("Retry-After", pause),)), FOUND]
    with serving(lambda asked: said.pop(0) if "manifests" in asked.path else FOUND, tls) as web, to(web.host) as at:
        assert retry(lambda: at.manifest("a", "v1"), 30) == MANIFEST


@pytest.mark.parametrize(("pause", "hint"), [("1", ""), ("3600", "wait 3600 seconds, as the registry requests")])
def test_a_server_of_tokens_asks_for_a_pause_too(tls: Path, pause: str, hint: str) -> None:
    said = [Say(429, b"{}", (("Retry-After", pause),))]
    with (
        serving(lambda asked: said.pop() if said else tokens(asked), tls) as busy,
        serving(demanding(f'Bearer realm="{busy.url}/token"'), tls) as web,
        to(web.host) as registry,
    ):
        begin = time.monotonic()
        if not hint:
            assert retry(lambda: registry.manifest("a", "v1"), 30) == MANIFEST
            assert time.monotonic() - begin >= 1
            return
        with pytest.raises(RegistryError, match="returned no token: status 429") as caught:
            retry(lambda: registry.manifest("a", "v1"), 30)
        assert caught.value.hint.startswith(hint)


# ---- odd answers: none is taken for the right bytes, and each ends with an error -------------------------------------


def http(head: bytes, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 " + head + b"\r\n\r\n" + body


JSON = b"Content-Type: application/vnd.oci.image.manifest.v1+json\r\n"
LENGTH = b"Content-Length: %d" % len(MANIFEST)
OTHER = MANIFEST.replace(b"2", b"3")
#: Name of the case: what comes instead of the manifest.
ODD = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zeros": bytes(1000),
    "half a status line": b"HTTP/1.1 2",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "an endless head": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
    "status 999": http(b"999 What"),
    "status 600": http(b"600 What\r\n" + LENGTH, MANIFEST),
    "status 204": http(b"204 No Content"),
    "status 206": http(b"206 Partial Content\r\n" + LENGTH, MANIFEST),
    "status 304": http(b"304 Not Modified"),
    "a redirect to nowhere": http(b"307 Temporary Redirect\r\nContent-Length: 0"),
    "a redirect to nobody": http(b"307 Temporary Redirect\r\nLocation: http://\r\nContent-Length: 0"),
    "a redirect to a file": http(b"307 Temporary Redirect\r\nLocation: file:///etc/passwd\r\nContent-Length: 0"),
    "a redirect to no URL": http(b"307 Temporary Redirect\r\nLocation: http://[::\r\nContent-Length: 0"),
    "a redirect to a digest": http(b"307 R\r\nLocation: " + DIGEST.encode() + b"\r\nContent-Length: 0"),
    "a redirect in another alphabet": http(b"307 R\r\nLocation: https://\xff\xfe/\r\nContent-Length: 0"),
    "a redirect to an odd name": http(b"307 R\r\nLocation: https://xn--zzzz99999.invalid/\r\nContent-Length: 0"),
    "a redirect to a port that is none": http(b"307 R\r\nLocation: https://a.invalid:99999/\r\nContent-Length: 0"),
    "a redirect with a blank": http(b"307 R\r\nLocation: https://a b/\r\nContent-Length: 0"),
    "too short": http(b"200 OK\r\n" + JSON + LENGTH, MANIFEST[:5]),
    "shorter by one": http(b"200 OK\r\n" + JSON + LENGTH, MANIFEST[:-1]),
    "other bytes": http(b"200 OK\r\n" + JSON + LENGTH, OTHER),
    "one byte more": http(b"200 OK\r\n" + JSON + b"Content-Length: 21", MANIFEST + b" "),
    "no bytes": http(b"200 OK\r\n" + JSON + b"Content-Length: 0"),
    "two lengths": http(b"200 OK\r\nContent-Length: 1\r\nContent-Length: 20", MANIFEST),
    "a length below zero": http(b"200 OK\r\nContent-Length: -1", MANIFEST),
    "a length that is no number": http(b"200 OK\r\nContent-Length: x", MANIFEST),
    "a huge length": http(b"200 OK\r\nContent-Length: 99999999999999999999", MANIFEST),
    "chunks that are none": http(b"200 OK\r\nTransfer-Encoding: chunked", b"zz\r\n"),
    "chunks that break off": http(b"200 OK\r\nTransfer-Encoding: chunked", b"5\r\n{\"sch"),
    "gzip of other bytes": http(b"200 OK\r\nContent-Encoding: gzip", gzip.compress(OTHER)),
    "gzip that is none": http(b"200 OK\r\nContent-Encoding: gzip\r\n" + LENGTH, MANIFEST),
    "gzip that breaks off": http(b"200 OK\r\nContent-Encoding: gzip", gzip.compress(MANIFEST)[:-9]),
    "an encoding that nobody knows": http(b"200 OK\r\nContent-Encoding: rot13", b"{"),
    "a bomb": http(b"200 OK\r\nContent-Encoding: gzip", gzip.compress(bytes(2**26))),
    "a bomb of an error": http(b"500 Bad\r\nContent-Encoding: gzip", gzip.compress(bytes(2**26))),
    "more than a manifest may have": http(b"200 OK\r\nContent-Length: 9000000", bytes(9_000_000)),
    "a login page": http(b"200 OK\r\nContent-Type: text/html", b"<html>log in</html>"),
    "a challenge without words": http(b"401 Unauthorized\r\nContent-Length: 0"),
    "a challenge without a realm": http(b"401 U\r\nWWW-Authenticate: Bearer\r\nContent-Length: 0"),
    "a realm that is no URL": http(b"401 U\r\nWWW-Authenticate: Bearer realm=\"http://[\"\r\nContent-Length: 0"),
    "a realm in another alphabet": http(b"401 U\r\nWWW-Authenticate: Bearer realm=\"\xff\"\r\nContent-Length: 0"),
    "a realm of an odd name": http(b"401 U\r\nWWW-Authenticate: Bearer realm=\"https://xn--zzzz99999.invalid\"\r\n"),
    "a realm of a name in no alphabet": http(b"401 U\r\nWWW-Authenticate: Bearer realm=\"https://xn--a\"\r\n"),
    "rate limit": http(b"429 Too Many Requests\r\nContent-Length: 0"),
    "control characters": http(b"500 \x1b[31m\r\nContent-Length: 4", b"\x1b[2J"),
}  # fmt: skip


@pytest.mark.parametrize("answer", ODD.values(), ids=ODD.keys())
def test_an_odd_answer_is_an_error(answer: bytes) -> None:
    with raw(answer) as host, to(host) as registry:
        for ask in (registry.manifest, registry.blob, _streamed(registry)):
            try:
                taken = ask("a", DIGEST)
            except Error as error:
                assert error.message
            else:
                assert taken in (None, MANIFEST), "wrong bytes"


def test_a_redirect_to_no_address_is_the_registrys_mistake() -> None:
    with raw(ODD["a redirect to a digest"]) as host, to(host) as registry:
        with pytest.raises(RegistryError, match=f"{host} redirects to an address that is not valid") as caught:
            registry.blob("a", DIGEST)
        assert (caught.value.code, caught.value.temporary) == ("RedirectRefused", False)


def _streamed(registry: Upstream) -> Callable[[str, str], bytes | None]:
    """Reads a blob as it comes, and compares it as who fetches it does."""

    def ask(repository: str, digest: str) -> bytes | None:
        content = b""
        for chunk in registry.stream(repository, digest):
            content += chunk
            if len(content) > len(MANIFEST):
                break
        return None if hashlib.sha256(content).hexdigest() != digest.removeprefix("sha256:") else content

    return ask


def test_a_right_answer_is_taken() -> None:
    """The odd ones are not refused for another reason."""
    answer = http(b"200 OK\r\nConnection: close\r\n" + JSON + LENGTH, MANIFEST)
    with raw(answer) as host, to(host) as registry:
        for ask in (registry.manifest, registry.blob, _streamed(registry)):
            assert ask("a", DIGEST) == MANIFEST


def test_a_compressed_answer_is_taken() -> None:
    """Caches give out what they have, also to who asks for bytes as they are."""
    packed = gzip.compress(MANIFEST)
    head = b"200 OK\r\nConnection: close\r\nContent-Encoding: gzip\r\n" + JSON + b"Content-Length: %d" % len(packed)
    with raw(http(head, packed)) as host, to(host) as registry:
        for ask in (registry.manifest, registry.blob, _streamed(registry)):
            assert ask("a", DIGEST) == MANIFEST


@pytest.mark.parametrize("tags", ["{}", '{"tags": 5}', '{"tags": "abc"}', '{"tags": [5]}', '{"tags": null}'])
def test_lists_of_tags(tags: str) -> None:
    content = tags.encode()
    with raw(http(b"200 OK\r\nContent-Length: %d" % len(content), content)) as host, to(host) as registry:
        if json.loads(tags).get("tags"):
            with pytest.raises(RegistryError, match="no list of tags"):
                registry.tags("a")
        else:
            assert registry.tags("a") == []


def drip(line: socket.socket) -> None:
    """A body that comes byte by byte for ever."""
    line.sendall(http(b"200 OK\r\nContent-Length: 1000000"))
    while True:
        line.sendall(b" ")
        time.sleep(0.02)  # what the test is about: it ends when the other side goes away


def test_a_body_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "WINDOW", 0.3)
    with raw(drip) as host, to(host) as registry:
        for ask in (lambda: registry.manifest("a", "v1"), lambda: b"".join(registry.stream("a", DIGEST))):
            begin = time.monotonic()
            with pytest.raises(RegistryError, match="bytes received in") as caught:
                retry(ask, 1)
            assert time.monotonic() - begin < 15
            assert caught.value.temporary


def test_bytes_now_and_then_are_no_progress() -> None:
    """Who fails again and again, a few bytes further each time, is given up as well."""
    reached = 0

    def fail() -> None:
        nonlocal reached
        reached += 10
        raise RegistryError("broken", temporary=True)

    begin = time.monotonic()
    with pytest.raises(RegistryError):
        retry(fail, 0.5, reached=lambda: reached)
    assert time.monotonic() - begin < 10


class Clock:
    """Time that goes on only while somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("times", "comes"), [(retries.ANEW, True), (1000, False)])
def test_bytes_that_were_lost_and_come_anew_count_a_few_times(
    monkeypatch: pytest.MonkeyPatch, times: int, comes: bool
) -> None:
    """A writer that moves twice in the same large blob, which takes longer than the patience."""
    monkeypatch.setattr(retries, "time", clock := Clock())
    taken, left = 10**9, times

    def upload() -> str:
        nonlocal taken, left
        clock.sleep(800)
        if left == 0:
            return "done"
        taken, left = taken - 10**6, left - 1
        raise RegistryError("the writer has moved", temporary=True)

    if comes:
        assert retry(upload, 120, reached=lambda: taken) == "done"
    else:
        with pytest.raises(RegistryError):
            retry(upload, 120, reached=lambda: taken)
        assert times - left == retries.ANEW + 1
