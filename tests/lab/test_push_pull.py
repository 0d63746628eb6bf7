"""Who may push and pull, from where, and that what comes back is what was pushed."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kubeadm_registry import paths, pki
from kubeadm_registry.oci import canary
from tests.lab import images, programs
from tests.lab.command import wait_until
from tests.lab.host import Host
from tests.lab.registry import Login, Registry
from tests.lab.web import CANARY, ask

pytest_plugins = ["tests.lab.registry"]

CRI = "unix:///run/containerd/containerd.sock"
UPSTREAM = "registry.k8s.io/tests/pulled"
IMAGE = images.image((64 * 1024, 3 * 2**20, 12 * 2**20), seed=20)
ABSENT = "sha256:" + 64 * "0"


@pytest.fixture
def pushed(registry: Registry, tmp_path: Path) -> Registry:
    """IMAGE is in the registry under its upstream name, pushed by skopeo."""
    if images.missing(registry, IMAGE, UPSTREAM):
        skopeo = Skopeo(registry, tmp_path)
        skopeo.log_in(registry.login())
        layout = IMAGE.write_layout(tmp_path / "image")
        skopeo.copy(f"oci:{layout}:latest", f"docker://{skopeo.registry}/{UPSTREAM}:v1")
    return registry


class Skopeo:
    """skopeo with nothing but the cluster's authority to trust, and logins of its own."""

    def __init__(self, registry: Registry, directory: Path) -> None:
        self.registry = f"{registry.vip}:{paths.REGISTRY_PORT}"
        self._lab = registry.lab
        self._logins = directory / "auth.json"
        self._logins.write_text("{}")
        self._trust = directory / "trust"
        self._trust.mkdir()
        (self._trust / "ca.crt").write_bytes(registry.ca.read_bytes())

    def log_in(self, login: Login) -> None:
        self._lab.run(
            "skopeo", "login", "--authfile", self._logins, "--cert-dir", self._trust, "--username", login.username,
            "--password-stdin", self.registry, stdin=login.password,
        )  # fmt: skip

    def copy(self, source: str, target: str, *, check: bool = True) -> str:
        """Copy an image; what skopeo complained of."""
        trust = ("--src-cert-dir", self._trust, "--dest-cert-dir", self._trust)
        return self._lab.run(
            "skopeo", "copy", "--quiet", "--insecure-policy", "--authfile", self._logins, *trust, source, target,
            check=check,
        ).stderr  # fmt: skip


def addresses(registry: Registry) -> list[str]:
    """Every address at which the registry answers: each server's and the VIP's, of both families."""
    own = [address for host in registry.servers.values() for address in (host.address, host.address6)]
    return list(dict.fromkeys(address for address in (*own, registry.vip, registry.vip6) if address))


def test_what_was_pushed_comes_back_everywhere(pushed: Registry) -> None:
    everywhere = addresses(pushed)
    assert len(everywhere) == 8
    for address in everywhere:
        assert images.missing(pushed, IMAGE, UPSTREAM, address=address) == [], address


def test_a_tag_says_the_same_on_every_server(pushed: Registry) -> None:
    for address in addresses(pushed):
        answer = ask(pushed, "GET", f"/v2/{UPSTREAM}/manifests/v1", address=address)
        assert images.digest_of(answer.body) == IMAGE.digest
        assert answer.headers["docker-content-digest"] == IMAGE.digest


def test_skopeo_pulls_without_a_login(pushed: Registry, tmp_path: Path) -> None:
    skopeo = Skopeo(pushed, tmp_path)
    skopeo.copy(f"docker://{skopeo.registry}/{UPSTREAM}@{IMAGE.digest}", f"oci:{tmp_path / 'pulled'}:v1")
    blobs = tmp_path / "pulled/blobs/sha256"
    wanted = {images.digest_of(content).partition(":")[2]: content for content in (IMAGE.manifest, *IMAGE.blobs)}
    assert {path.name: path.read_bytes() for path in blobs.iterdir()} == wanted


def test_skopeo_may_not_push_without_a_login(pushed: Registry, tmp_path: Path) -> None:
    layout = images.image(seed=21).write_layout(tmp_path / "image")
    skopeo = Skopeo(pushed, tmp_path)
    said = skopeo.copy(f"oci:{layout}:latest", f"docker://{skopeo.registry}/tests/nobody:v1", check=False)
    assert "authentication required" in said or "unauthorized" in said, said
    assert ask(pushed, "GET", "/v2/tests/nobody/manifests/v1").status == 404


#: Who asks for what, and the status that must come back. ``MANIFEST`` and ``BLOB`` stand for those of IMAGE.
RIGHTS = [
    ("anonymous", "GET", "MANIFEST", 200),
    ("anonymous", "HEAD", "MANIFEST", 200),
    ("anonymous", "GET", "BLOB", 200),
    ("anonymous", "GET", "/v2/", 401),
    ("anonymous", "GET", "/v2", 401),
    ("anonymous", "POST", f"/v2/{UPSTREAM}/blobs/uploads/", 401),
    ("anonymous", "POST", f"/v2/tests/other/blobs/uploads/?mount={IMAGE.digest}&from={UPSTREAM}", 401),
    ("anonymous", "PATCH", f"/v2/{UPSTREAM}/blobs/uploads/1", 401),
    ("anonymous", "PUT", f"/v2/{UPSTREAM}/blobs/uploads/1?digest={ABSENT}", 401),
    ("anonymous", "PUT", f"/v2/{UPSTREAM}/manifests/v1", 401),
    ("anonymous", "DELETE", "MANIFEST", 401),
    ("anonymous", "DELETE", "BLOB", 401),
    ("a typing error", "GET", "MANIFEST", 401),
    ("a typing error", "POST", f"/v2/{UPSTREAM}/blobs/uploads/", 401),
    ("a typing error", "DELETE", "MANIFEST", 401),
    ("a stranger", "GET", "MANIFEST", 401),
    ("pull", "GET", "/v2/", 200),
    ("pull", "GET", "MANIFEST", 200),
    ("pull", "POST", f"/v2/{UPSTREAM}/blobs/uploads/", 403),
    ("pull", "PUT", f"/v2/{UPSTREAM}/manifests/v1", 403),
    ("pull", "DELETE", "MANIFEST", 403),
    ("push", "GET", "/v2/", 200),
    ("push", "GET", "MANIFEST", 200),
    ("push", "GET", "/", 404),
    ("push", "GET", "/metrics", 404),
    ("push", "GET", "/debug/pprof/", 404),
    ("push", "POST", "/v3/", 404),
    ("push", "PUT", "//v2/tests/x/manifests/v1", 404),
    ("push", "TRACE", "/v2/", 405),
    ("push", "PURGE", "MANIFEST", 405),
    ("push", "PROPFIND", "/v2/", 405),
]


@pytest.fixture
def logins(registry: Registry) -> dict[str, Login | None]:
    """The logins by what RIGHTS calls them."""
    push, pull = registry.login("push"), registry.login("pull")
    return {
        "anonymous": None,
        "a typing error": Login("push", push.password[:-1]),
        "a stranger": Login("admin", push.password),
        "pull": pull,
        "push": push,
    }


def test_who_may_do_what(pushed: Registry, logins: dict[str, Login | None]) -> None:
    places = {
        "MANIFEST": f"/v2/{UPSTREAM}/manifests/{IMAGE.digest}",
        "BLOB": f"/v2/{UPSTREAM}/blobs/{images.digest_of(IMAGE.layers[0])}",
    }
    wrong = []
    for who, method, path, status in RIGHTS:
        answer = ask(pushed, method, places.get(path, path), login=logins[who], body=b"" if method != "GET" else None)
        if answer.status != status:
            wrong.append(f"{who}: {method} {path}: {answer.status} instead of {status}")
        if answer.status == 401 and not answer.headers.get("www-authenticate", "").startswith("Basic "):
            wrong.append(f"{who}: {method} {path}: 401 without a challenge")
        if answer.status in (401, 403, 404, 405) and method != "HEAD" and "errors" not in json.loads(answer.body):
            wrong.append(f"{who}: {method} {path}: no error as OCI has it: {answer.body!r}")
    assert not wrong, "\n".join(wrong)


def test_who_may_push_may_delete(registry: Registry, logins: dict[str, Login | None]) -> None:
    image = images.image(seed=22)
    images.push(registry, image, "tests/deleted")
    path = f"/v2/tests/deleted/manifests/{image.digest}"
    assert ask(registry, "GET", path).status == 200
    assert ask(registry, "DELETE", path, login=logins["push"]).status == 202
    for host in registry.servers.values():
        assert ask(registry, "GET", path, address=host.address).status == 404, host.name


def test_a_client_that_trusts_another_authority_goes_away(registry: Registry) -> None:
    stranger = ssl.create_default_context(cadata=pki.make_ca("registry").certificate)
    for trust in (stranger, ssl.create_default_context()):
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(registry, "GET", CANARY, trust=trust)


CONNECT = 'exec 3<>"/dev/tcp/$1/$2"'


def reaches(host: Host, user: str, address: str, port: int) -> bool:
    """Whether *user* of *host* gets a connection to *address*:*port*."""
    argv = ("runuser", "-u", user, "--", "timeout", "5", "bash", "-c", CONNECT, "-", address, str(port))
    return host.sh(*argv, check=False).returncode == 0


def test_other_users_of_a_server_reach_nothing_behind_the_proxy(registry: Registry) -> None:
    frontend, haproxy, agent, garage = (paths.user(name) for name in (registry.frontend, "haproxy", "agent", "garage"))
    allowed = {
        (paths.LOOPBACK, paths.FRONTEND_PORT): ("root", haproxy, agent),
        (paths.S3_ADDRESS, paths.S3_PORT): ("root", frontend),
        (paths.LOOPBACK, paths.ADMIN_PORT): ("root", agent),
    }
    refused = {
        (paths.LOOPBACK, paths.FRONTEND_PORT): ("nobody", "daemon", garage),
        (paths.S3_ADDRESS, paths.S3_PORT): ("nobody", "daemon", haproxy, agent),
        (paths.LOOPBACK, paths.ADMIN_PORT): ("nobody", "daemon", haproxy, frontend),
    }
    for host in registry.servers.values():
        for (address, port), users in allowed.items():
            for user in users:
                assert reaches(host, user, address, port), f"{host.name}: {user} does not reach {address}:{port}"
        for (address, port), users in refused.items():
            for user in users:
                assert not reaches(host, user, address, port), f"{host.name}: {user} reaches {address}:{port}"


def test_other_hosts_reach_nothing_behind_the_proxy(registry: Registry) -> None:
    client = registry.client
    for address in addresses(registry):
        for port in (paths.FRONTEND_PORT, paths.S3_PORT, paths.ADMIN_PORT):
            assert not reaches(client, "root", address, port), f"{address}:{port}"
        assert reaches(client, "root", address, paths.REGISTRY_PORT), address


#: Reads a manifest of the server ``$1`` at its port for servers, as another server does; prints the status.
AS_A_SERVER = """
import http.client, ssl, sys
address, port, pem, ca, path, kind = sys.argv[1:]
trust = ssl.create_default_context(cafile=ca)
trust.load_cert_chain(pem)
asked = http.client.HTTPSConnection(address, int(port), context=trust, timeout=10)
asked.request("GET", path, headers={"Accept": kind})
print(asked.getresponse().status)
"""


@pytest.mark.parametrize("port", [paths.INTERNAL_PORT, paths.AGENT_PORT])
def test_the_servers_talk_to_servers_only(registry: Registry, tmp_path: Path, port: int) -> None:
    """Neither without a certificate, nor with one of another authority; with that of a server it works.

    At the port that takes writes without a login it works from a server's address only, also with the certificate.
    """
    here, there = registry.servers["h1"], registry.servers["h2"]
    other = pki.make_ca("registry")
    forged = pki.issue(other, "h1", ["h1", here.address])
    stranger, member = tmp_path / "stranger.pem", tmp_path / "member.pem"
    stranger.write_text(forged.certificate + forged.key)
    member.write_text(here.sh("cat", paths.NODE_PEM).stdout)

    def answer(certificate: Path | None) -> int:
        trust = registry.tls()
        if certificate is not None:
            trust.load_cert_chain(certificate)
        return ask(registry, "GET", CANARY, address=there.address, port=port, trust=trust).status

    for refused in (None, stranger, *([member] if port == paths.INTERNAL_PORT else [])):
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.BadStatusLine)):
            answer(refused)
    if port == paths.AGENT_PORT:
        assert answer(member) == 404
        return
    arguments = (there.address, str(port), paths.NODE_PEM, paths.CA, CANARY, canary.MANIFEST.media_type)
    assert here.sh("python3", "-c", AS_A_SERVER, *arguments).stdout == "200\n"


def crictl(host: Host, *argv: str) -> str:
    """Ask containerd as a kubelet does."""
    return host.sh("crictl", "--image-endpoint", CRI, "--runtime-endpoint", CRI, *argv, timeout=120).stdout


def pull_with_containerd(host: Host, name: str = UPSTREAM) -> None:
    """Pull IMAGE by its upstream *name* as a kubelet would, from nothing."""
    if host.sh("test", "-x", "/usr/local/bin/crictl", check=False).returncode != 0:
        host.put(programs.program("crictl"), "/usr/local/bin/crictl", mode="755")
    host.sh("crictl", "--image-endpoint", CRI, "--runtime-endpoint", CRI, "rmi", f"{name}:v1", check=False)
    crictl(host, "pull", f"{name}:v1")
    digests = json.loads(crictl(host, "inspecti", "-o", "json", f"{name}:v1"))["status"]["repoDigests"]
    assert f"{name}@{IMAGE.digest}" in digests


def test_containerd_pulls_by_the_upstream_name(pushed: Registry) -> None:
    for host in pushed.servers.values():
        pull_with_containerd(host)


@contextmanager
def changed(registry: Registry, **spec: object) -> Iterator[None]:
    """Other values in the cluster file, as ``write_file`` takes them, for the length of a ``with``."""
    registry.write_file(spec)
    registry.cli("init")
    try:
        yield
    finally:
        registry.write_file()
        registry.cli("init")


@pytest.fixture
def closed(pushed: Registry) -> Iterator[Registry]:
    """The registry while nobody may pull without a login."""
    with changed(pushed, **{"proxy.anonymousPull": False}):
        yield pushed


def test_pulls_can_be_closed_and_containerd_goes_on(closed: Registry, logins: dict[str, Login | None]) -> None:
    path = f"/v2/{UPSTREAM}/manifests/v1"
    wait_until("old proxy processes to be gone", lambda: ask(closed, "GET", path).status == 401, seconds=30)
    for address in addresses(closed):
        assert ask(closed, "GET", path, address=address).status == 401, address
        assert ask(closed, "HEAD", path, address=address).status == 401, address
        assert ask(closed, "GET", path, login=logins["pull"], address=address).status == 200, address
        assert ask(closed, "GET", path, login=logins["push"], address=address).status == 200, address
    for host in closed.servers.values():
        pull_with_containerd(host)
        for mode in host.sh("sh", "-c", 'stat -c "%a %U %n" /etc/containerd/certs.d/*/hosts.toml').stdout.splitlines():
            assert mode.startswith("600 root "), mode
    closed.cli("verify")
    again = closed.cli("init", "--diff").stdout
    assert again.splitlines()[-1] == "nothing to do", again


@pytest.fixture
def of_all(pushed: Registry) -> Iterator[Registry]:
    """The registry as the mirror of every other."""
    with changed(pushed, mirrors=["*"]):
        yield pushed
    left = [host.sh("ls", "/etc/containerd/certs.d").stdout.split() for host in pushed.servers.values()]
    assert all("_default" not in names for names in left), left


def test_containerd_finds_images_of_any_registry_if_it_is_told_to(of_all: Registry) -> None:
    images.push(of_all, IMAGE, "quay.example_8443/tests/any", "v1")
    for host in of_all.servers.values():
        pull_with_containerd(host, "quay.example:8443/tests/any")
        pull_with_containerd(host)
        assert host.sh("ls", "/etc/containerd/certs.d").stdout.count("_default") == 1
    assert of_all.cli("init", "--diff").stdout.splitlines()[-1] == "nothing to do"


def test_the_agents_metrics_are_read_with_the_certificate_that_is_issued(registry: Registry, tmp_path: Path) -> None:
    pem = tmp_path / "metrics.pem"
    pem.write_text(registry.cli("credentials", "--role", "metrics").stdout)
    trust = registry.tls()
    trust.load_cert_chain(pem)
    for host in registry.servers.values():
        for path, status in (("/metrics", 200), ("/state", 403)):
            with registry.lab.network():
                asked = http.client.HTTPSConnection(host.address, paths.AGENT_PORT, context=trust, timeout=10)
                asked.request("GET", path)
                answer = asked.getresponse()
                assert (answer.status, b"kubeadm_registry_agent_fit 1" in answer.read()) == (status, status == 200)
                asked.close()


def test_pulls_are_open_again_afterwards(pushed: Registry) -> None:
    for address in addresses(pushed):
        assert ask(pushed, "GET", f"/v2/{UPSTREAM}/manifests/v1", address=address).status == 200, address
    for host in pushed.servers.values():
        pull_with_containerd(host)
        for mode in host.sh("sh", "-c", 'stat -c "%a %n" /etc/containerd/certs.d/*/hosts.toml').stdout.splitlines():
            assert mode.startswith("644 "), mode
