"""A registry straight from a bundle: what it says to the clients that the room has, and to those that ask for more."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from kubeadm_registry import paths, pki
from kubeadm_registry.bundle import Bundle
from kubeadm_registry.cli.main import cli
from kubeadm_registry.components.haproxy import login_digest
from kubeadm_registry.errors import BundleError, ConfigError, Error
from kubeadm_registry.images import pool, rescue, seed
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Registry
from tests.unit.bundle_files import image, write_layout
from tests.unit.fake_cluster import authority
from tests.unit.test_seed import joined

VIP = "10.0.0.10"
ONE, TWO, OLD = "registry.k8s.io/pause:3.10", "quay.io:443/org/app:v1", "registry.k8s.io/pause:3.9"
LAYER = b"0123456789" * 100
LARGE = bytes(range(256)) * 4096
SIGNATURE = "application/vnd.example.signature"


def signed(name: str, subject: str) -> dict[str, bytes]:
    """An artifact that refers to *subject*, as an image of its own name."""
    empty = oci.Descriptor(media_type=oci.EMPTY, digest=oci.digest_of(b"{}"), size=2)
    about = oci.Descriptor(media_type=oci.INDEX, digest=subject, size=1)
    manifest = oci.Manifest(
        artifact_type=SIGNATURE, config=empty, layers=(empty,), subject=about, annotations={"by": "a test"}
    ).to_json()
    digest = oci.digest_of(manifest)
    entry = oci.Descriptor(
        media_type=oci.MANIFEST, digest=digest, size=len(manifest), annotations={oci.REFERENCE_NAME: name}
    )
    return {
        oci.LAYOUT_FILE: oci.LAYOUT,
        oci.blob_name(digest): manifest,
        oci.blob_name(empty.digest): b"{}",
        oci.INDEX_FILE: oci.Index(manifests=(entry,)).to_json(),
    }


def root_of(files: dict[str, bytes]) -> oci.Descriptor:
    return oci.Index.model_validate_json(files[oci.INDEX_FILE]).manifests[0]


PAUSE = image(ONE, LAYER)
FILES = joined(PAUSE, image(TWO, LARGE), image(OLD, b"old"), signed("registry.k8s.io/pause:sig", root_of(PAUSE).digest))
DIGEST = oci.digest_of(LAYER)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key in one file, as on the servers."""
    pair = pki.issue(authority(), "cp-1", (VIP, "127.0.0.1", "::1"))
    path = tmp_path_factory.mktemp("pem") / "node.pem"
    path.write_text(pair.certificate + pair.key)
    return path


@contextmanager
def serving(
    path: Path, pem: Path, address: str = "127.0.0.1", logins: frozenset[str] = frozenset()
) -> Iterator[rescue.Server]:
    told: list[str] = []
    tls = rescue.certificate(pem)
    with (
        Bundle.open(path) as bundle,
        rescue.Server(address, 0, bundle, tls, logins=logins, told=lambda _, line: told.append(line)) as server,
    ):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)
    # What went wrong in a thread of the server would be silent otherwise.
    assert [line for line in told if "failed:" in line and "TLS" not in line and "SSL" not in line] == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, pem: Path) -> Iterator[rescue.Server]:
    with serving(write_layout(tmp_path_factory.mktemp("bundle") / "bundle.tar", FILES), pem) as running:
        yield running


@pytest.fixture
def client(server: rescue.Server) -> Iterator[httpx.Client]:
    context = ssl.create_default_context(cadata=authority().certificate)
    base = f"https://127.0.0.1:{server.server_port}"
    with httpx.Client(base_url=base, verify=context, trust_env=False, timeout=10) as opened:
        yield opened


def connector(server: rescue.Server) -> pool.Connect:
    return partial(Registry, VIP, 5000, ca=authority().certificate, via=("127.0.0.1", server.server_port), timeout=10)


def blob(path: str = f"registry.k8s.io/pause/blobs/{DIGEST}") -> str:
    return f"/v2/{path}"


# ---- as our own client sees it ---------------------------------------------------------------------------------------


def test_all_that_seed_would_have_brought_is_there(server: rescue.Server) -> None:
    assert seed.prove(connector(server), seed.plan(server.bundle), 4) == {}


def test_the_lists(server: rescue.Server) -> None:
    with connector(server)() as registry:
        assert registry.repositories() == ["quay.io_443/org/app", "registry.k8s.io/pause"]
        assert registry.tags("registry.k8s.io/pause") == ["3.10", "3.9", "sig"]
        assert registry.tags("registry.k8s.io/other") == []


def test_what_refers_to_an_image(server: rescue.Server, client: httpx.Client) -> None:
    with connector(server)() as registry:
        (found,) = registry.referrers("registry.k8s.io/pause", root_of(PAUSE).digest)
        assert (found["artifactType"], found["annotations"]) == (SIGNATURE, {"by": "a test"})
        assert registry.manifest("registry.k8s.io/pause", found["digest"]) is not None
        assert registry.referrers("registry.k8s.io/pause", found["digest"]) == []
        assert registry.referrers("nobody/knows", found["digest"]) == []
    path = f"/v2/registry.k8s.io/pause/referrers/{root_of(PAUSE).digest}"
    filtered = client.get(path, params={"artifactType": "application/other"})
    assert filtered.json()["manifests"] == []
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"


def test_an_index_may_refer_to_an_image_as_well(tmp_path: Path) -> None:
    """Image-spec, image-index.md: an index has a subject, too, and need not say what it is."""
    subject = root_of(PAUSE)
    content = oci.Index(subject=subject.model_copy(update={"annotations": None})).to_json()
    entry = oci.Descriptor(
        media_type=oci.INDEX, digest=oci.digest_of(content), size=len(content),
        annotations={oci.REFERENCE_NAME: "registry.k8s.io/pause:more"},
    )  # fmt: skip
    more = {**PAUSE, oci.blob_name(entry.digest): content, oci.INDEX_FILE: oci.Index(manifests=(entry,)).to_json()}
    with Bundle.open(write_layout(tmp_path / "bundle.tar", joined(PAUSE, more))) as bundle:
        found = rescue.repositories(bundle)["registry.k8s.io/pause"].referrers[subject.digest]
    assert found == [{"mediaType": oci.INDEX, "digest": entry.digest, "size": entry.size}]


# ---- the pages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v2/", "/v2", "/v2/?ns=registry.k8s.io"])
def test_the_ping(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()) == (200, {})
    assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"


def test_a_manifest_by_tag_and_by_digest(client: httpx.Client) -> None:
    root = root_of(PAUSE)
    by_tag = client.get("/v2/registry.k8s.io/pause/manifests/3.10", params={"ns": "registry.k8s.io"})
    by_digest = client.get(f"/v2/registry.k8s.io/pause/manifests/{root.digest}")
    for answer in (by_tag, by_digest):
        assert answer.status_code == 200
        assert oci.digest_of(answer.content) == root.digest == answer.headers["Docker-Content-Digest"]
        assert answer.headers["Content-Type"] == oci.INDEX
    head = client.head("/v2/registry.k8s.io/pause/manifests/3.10")
    assert (head.content, head.headers["Content-Length"]) == (b"", str(root.size))
    assert head.headers["Docker-Content-Digest"] == root.digest


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("registry.k8s.io/pause/manifests/3.11", "MANIFEST_UNKNOWN"),
        ("registry.k8s.io/other/manifests/3.10", "MANIFEST_UNKNOWN"),
        (f"registry.k8s.io/pause/blobs/{oci.digest_of(LARGE)}", "BLOB_UNKNOWN"),
        (f"quay.io_443/org/app/blobs/{DIGEST}", "BLOB_UNKNOWN"),
        ("registry.k8s.io/pause/blobs/../../etc/passwd", "NOT_FOUND"),
        ("registry.k8s.io/other/tags/list", "NAME_UNKNOWN"),
        ("registry.k8s.io/pause/blobs/uploads/1", "NOT_FOUND"),
        ("..%2f..%2fetc%2fpasswd", "NOT_FOUND"),
    ],
)
def test_what_is_not_there(client: httpx.Client, path: str, code: str) -> None:
    answer = client.get(f"/v2/{path}")
    assert answer.status_code == 404
    assert answer.json()["errors"][0]["code"] == code
    assert client.head(f"/v2/{path}").status_code == 404


def test_a_registry_that_is_not_among_the_mirrors_by_name(client: httpx.Client) -> None:
    """From a mirror of every registry containerd asks below one path, and says in the query which registry it means."""
    for registry, rest in (
        ("registry.k8s.io", "pause/manifests/3.10"),
        ("registry.k8s.io", f"pause/blobs/{DIGEST}"),
        ("quay.io:443", "org/app/tags/list"),
    ):
        assert client.get(f"/v2/{paths.ANY_UPSTREAM}/{rest}", params={"ns": registry}).status_code == 200
        assert client.head(f"/v2/{paths.ANY_UPSTREAM}/{rest}", params={"ns": registry}).status_code == 200
    for registry in ("", "docker.io", "../registry.k8s.io", "REGISTRY.K8S.IO"):
        other = client.get(f"/v2/{paths.ANY_UPSTREAM}/pause/manifests/3.10", params={"ns": registry})
        assert other.status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_nothing_can_be_written(client: httpx.Client, method: str) -> None:
    for path in ("registry.k8s.io/pause/blobs/uploads/", "registry.k8s.io/pause/manifests/3.10"):
        answer = client.request(method, f"/v2/{path}", content=b"x" * 100)
        assert answer.status_code == 405
        assert answer.json()["errors"][0]["code"] == "UNSUPPORTED"
        assert answer.headers["Allow"] == "GET, HEAD"


def test_a_blob(client: httpx.Client) -> None:
    answer = client.get(blob())
    assert answer.content == LAYER
    assert answer.headers["Docker-Content-Digest"] == DIGEST
    assert answer.headers["Accept-Ranges"] == "bytes"
    head = client.head(blob())
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", str(len(LAYER)))


RANGES: dict[str, tuple[int, bytes]] = {
    "bytes=0-9": (206, LAYER[:10]),
    "bytes=990-": (206, LAYER[990:]),
    "bytes=-5": (206, LAYER[-5:]),
    "bytes=-5000": (206, LAYER),
    "bytes=990-5000": (206, LAYER[990:]),
    "bytes=999-999": (206, LAYER[999:]),
    "bytes=1000-": (416, b""),
    "bytes=1000-1001": (416, b""),
    "bytes=-0": (416, b""),
    "bytes=5-4": (200, LAYER),
    "bytes=0-1,4-5": (200, LAYER),
    "bytes=-": (200, LAYER),
    "octets=0-1": (200, LAYER),
    "": (200, LAYER),
}


@pytest.mark.parametrize(("header", "wanted"), RANGES.items(), ids=RANGES)
def test_a_part_of_a_blob(client: httpx.Client, header: str, wanted: tuple[int, bytes]) -> None:
    answer = client.get(blob(), headers={"Range": header})
    assert answer.status_code == wanted[0]
    if wanted[0] == 416:
        assert answer.headers["Content-Range"] == f"bytes */{len(LAYER)}"
        return
    assert answer.content == wanted[1]
    if wanted[0] == 206:
        start = LAYER.rindex(wanted[1])
        first, last = answer.headers["Content-Range"].removesuffix(f"/{len(LAYER)}").removeprefix("bytes ").split("-")
        assert int(last) - int(first) + 1 == len(wanted[1])
        assert LAYER[int(first) : int(last) + 1] == wanted[1], start


def test_head_takes_no_part(client: httpx.Client) -> None:
    assert client.head(blob(), headers={"Range": "bytes=0-1"}).status_code == 200


def test_lists_come_in_pages(client: httpx.Client) -> None:
    names, path = [], "/v2/registry.k8s.io/pause/tags/list?n=1"
    while path:
        answer = client.get(path)
        assert answer.json()["name"] == "registry.k8s.io/pause"
        names += answer.json()["tags"]
        path = answer.links.get("next", {}).get("url", "")
    assert names == ["3.10", "3.9", "sig"]
    assert client.get("/v2/_catalog?n=0").json() == {"repositories": []}
    for odd in ("%C2%B2", 5000 * "9"):
        assert len(client.get(f"/v2/_catalog?n={odd}").json()["repositories"]) == 2
    assert client.get("/v2/_catalog?last=quay.io_443/org/app").json() == {"repositories": ["registry.k8s.io/pause"]}


def test_with_logins_it_lets_nobody_else_read(tmp_path: Path, pem: Path) -> None:
    auth_map = tmp_path / "auth.map"
    auth_map.write_text(f"{login_digest('push', 'secret')} push\n{login_digest('pull', 'other')} pull\n")
    path = write_layout(tmp_path / "bundle.tar", PAUSE)
    context = ssl.create_default_context(cadata=authority().certificate)
    with serving(path, pem, logins=rescue.logins(auth_map)) as server:

        def ask(login: httpx.BasicAuth | None) -> httpx.Response:
            url = f"https://127.0.0.1:{server.server_port}{blob()}"
            return httpx.get(url, verify=context, trust_env=False, auth=login)

        assert ask(httpx.BasicAuth("pull", "other")).content == LAYER
        assert ask(httpx.BasicAuth("push", "secret")).status_code == 200
        for refused in (None, httpx.BasicAuth("pull", "secret"), httpx.BasicAuth("", "")):
            answer = ask(refused)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == 'Basic realm="registry"'
            assert LAYER not in answer.content
    auth_map.write_text("\n")
    with pytest.raises(Error, match="contains no credentials"):
        rescue.logins(auth_map)
    with pytest.raises(Error, match="cannot read"):
        rescue.logins(tmp_path / "none")


# ---- many clients, bad clients, bad bundles --------------------------------------------------------------------------


def test_many_clients_at_once(server: rescue.Server) -> None:
    wanted = oci.digest_of(LARGE)

    def read(_: int) -> bool:
        with connector(server)() as registry:
            return registry.blob("quay.io_443/org/app", wanted) == LARGE

    with ThreadPoolExecutor(max_workers=20) as pool:
        assert all(pool.map(read, range(60)))


def test_one_that_says_nothing_keeps_nobody_waiting(server: rescue.Server, client: httpx.Client) -> None:
    silent = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(20)]
    try:
        assert client.get("/v2/", timeout=5).status_code == 200
    finally:
        for connection in silent:
            connection.close()


def test_one_that_asks_nothing_more_gives_its_place_back(
    server: rescue.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescue, "IDLE", 2)  # for the handshake and the first request, too
    context = ssl.create_default_context(cadata=authority().certificate)
    with (
        socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as wire,
        context.wrap_socket(wire, server_hostname="127.0.0.1") as secure,
    ):
        secure.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while piece := secure.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"{}")


def test_one_that_does_not_trust_us_is_told_of(server: rescue.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    heard = threading.Event()
    monkeypatch.setattr(server, "told", lambda _, line: (told.append(line), heard.set()))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://127.0.0.1:{server.server_port}/v2/", trust_env=False)
    assert heard.wait(10)
    assert "SSL" in told[0]


@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_a_damaged_blob_never_arrives_whole(tmp_path: Path, pem: Path, size: int) -> None:
    layer = b"a" * size
    files = dict(image(ONE, layer))
    files[oci.blob_name(oci.digest_of(layer))] = b"a" * (size - 1) + b"b"
    path = write_layout(tmp_path / "bundle.tar", files)
    with serving(path, pem) as server, connector(server)() as registry:
        answer: Any = None
        try:
            answer = registry.send("GET", blob(f"registry.k8s.io/pause/blobs/{oci.digest_of(layer)}"))
        except Error as error:
            assert "incomplete" in error.message or "closed" in error.message, error.message
        assert answer is None or answer.status_code == 500
        assert (answer is None) == (size > rescue.PIECE), "a small one is refused before it begins"
        registry.ping()


def test_an_incomplete_bundle_is_refused(tmp_path: Path, pem: Path) -> None:
    files = dict(PAUSE)
    inner = oci.Index.model_validate_json(files[oci.blob_name(root_of(PAUSE).digest)]).manifests[0]
    del files[oci.blob_name(inner.digest)]
    with (
        Bundle.open(write_layout(tmp_path / "bundle.tar", files)) as bundle,
        pytest.raises(BundleError, match=inner.digest),
    ):
        rescue.Server("127.0.0.1", 0, bundle, rescue.certificate(pem))


def test_both_families(tmp_path: Path, pem: Path) -> None:
    path = write_layout(tmp_path / "bundle.tar", PAUSE)
    context = ssl.create_default_context(cadata=authority().certificate)
    with serving(path, pem, "") as server:
        for host in ("127.0.0.1", "[::1]"):
            answer = httpx.get(f"https://{host}:{server.server_port}/v2/", verify=context, trust_env=False)
            assert answer.status_code == 200


def test_a_port_that_is_taken(tmp_path: Path, pem: Path) -> None:
    path = write_layout(tmp_path / "bundle.tar", PAUSE)
    with socket.create_server(("127.0.0.1", 0)) as taken, Bundle.open(path) as bundle:
        with pytest.raises(Error, match="in use") as caught:
            rescue.Server("127.0.0.1", taken.getsockname()[1], bundle, rescue.certificate(pem))
        assert caught.value.code == "ListenFailed"


# ---- the command -----------------------------------------------------------------------------------------------------


def invoke(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(cli, ["rescue", "serve", *arguments, "-o", "json"])
    assert "Traceback" not in done.output
    return done.exit_code, json.loads(done.stdout.splitlines()[-1])


def test_what_the_command_refuses(tmp_path: Path, pem: Path) -> None:
    path = str(write_layout(tmp_path / "bundle.tar", PAUSE))
    code, error = invoke(path, "--cert", str(tmp_path / "no.pem"))
    assert (code, error["code"]) == (1, "CertificateMissing")
    assert "--cert FILE --key FILE" in error["hint"]
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    code, error = invoke(path, "--cert", str(broken))
    assert (code, error["code"]) == (1, "CertificateInvalid")
    assert error["message"] == f"cannot use the certificate {broken}: it is not a certificate with its private key"
    assert invoke(str(tmp_path / "none.tar"), "--cert", str(pem))[1]["code"] == "BundleUnreadable"
    for listen in ("x", "name:5000", "10.0.0.10:http", "10.0.0.10:70000", ":²", f":{5000 * '9'}"):
        code, error = invoke(path, "--cert", str(pem), "--listen", listen)
        assert (code, error["code"]) == (2, "UsageInvalid"), listen
    empty = {oci.LAYOUT_FILE: oci.LAYOUT, oci.INDEX_FILE: oci.Index().to_json()}
    without = str(write_layout(tmp_path / "empty.tar", empty))
    assert invoke(without, "--cert", str(pem), "--listen", "127.0.0.1:0")[1]["code"] == "BundleEmpty"


def test_where_to_listen() -> None:
    from kubeadm_registry.cli.rescue import where

    assert where(":5000") == ("", 5000)
    assert where("10.0.0.10:5001") == ("10.0.0.10", 5001)
    assert where("[fd00::10]:5000") == ("fd00::10", 5000)
    assert where("fd00::10") == ("fd00::10", 5000)
    assert where("10.0.0.10") == ("10.0.0.10", 5000)
    with pytest.raises(ConfigError):
        where("")


def test_it_serves_until_it_is_interrupted(tmp_path: Path, pem: Path) -> None:
    path = write_layout(tmp_path / "bundle.tar", PAUSE)
    # A shell starts what runs in the background with SIGINT ignored, and so would the tests hand it on.
    argv = ["env", "--default-signal=INT", sys.executable, "-m", "kubeadm_registry"]
    argv += ["rescue", "serve", str(path), "--cert", str(pem)]
    process = subprocess.Popen(
        [*argv, "--listen", "127.0.0.1:0", "-o", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        begun = json.loads(process.stdout.readline())
        port = int(begun["message"].partition("127.0.0.1:")[2].partition(";")[0])
        context = ssl.create_default_context(cadata=authority().certificate)
        answer = httpx.get(f"https://127.0.0.1:{port}{blob()}", verify=context, trust_env=False)
        assert hashlib.sha256(answer.content).hexdigest() == DIGEST.removeprefix("sha256:")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    request, result = (json.loads(line) for line in rest.splitlines())
    assert (request["host"], request["message"]) == ("127.0.0.1", f"GET {blob()} 200")
    assert (result["event"], result["requests"], process.returncode, errors) == ("result", 1, 0, "")
