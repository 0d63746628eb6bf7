"""``certs check``: every certificate on every node, what is wrong with it, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kubeadm_registry import config, paths, pki, rotation, secrets
from kubeadm_registry.access import session
from kubeadm_registry.agent import served
from kubeadm_registry.cli.main import cli
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import haproxy
from kubeadm_registry.transport import host_python
from tests.unit.fake_cluster import authority
from tests.unit.installed import fresh

NAMES = ("cp-1", "cp-2", "cp-3")


class Site:
    """An installed cluster, and what each node presents: by default what is in its file."""

    def __init__(self) -> None:
        self.fake = fresh()
        self.presented: dict[tuple[str, str], str | None] = {}
        self.absent: dict[str, str] = {}
        self.more: dict[str, dict[str, object]] = {}
        script = host_python.command(served)
        for name, server in self.fake.servers.items():
            server.answer(*script, with_=lambda *_, name=name: json.dumps(self.said(name)))

    def file(self, name: str) -> str:
        return self.fake.servers[name].content(paths.NODE_PEM).decode().partition("-----BEGIN PRIVATE")[0]

    def said(self, name: str) -> dict[str, object]:
        proxy, agent = (self.presented.get((name, what), self.file(name)) for what in ("haproxy", "agent"))
        one = served.fingerprint(served.ssl.PEM_cert_to_DER_cert(self.file(name)))
        shown = {} if proxy is None else {served.fingerprint(served.ssl.PEM_cert_to_DER_cert(proxy)): proxy}
        return {
            "file": one, "ca": ["C"], "proxies": dict.fromkeys(paths.HAPROXY_SOCKETS, next(iter(shown), None)),
            "trusted": {key: ["C"] for key in paths.HAPROXY_SOCKETS}, "handshakes": shown, "agent": agent,
            "trouble": [], **self.more.get(name, {}),
        }  # fmt: skip

    def issue(self, name: str, *, ca: pki.Pair | None = None, days: int = 400, names: tuple[str, ...] = ()) -> str:
        cluster = self.fake.cluster
        host = next(one for one in cluster.hosts if one.name == name)
        pair = pki.issue(
            ca or authority(), name, names or tuple(haproxy.names(cluster, host)), lifetime=timedelta(days=days)
        )
        return pair.certificate

    @contextmanager
    def cluster(self, *_: object, **__: object) -> Iterator[Cluster]:
        whole = self.fake.cluster
        hosts = tuple(host for host in whole.hosts if host.name not in self.absent)
        yield Cluster(whole.config, hosts, whole.vault, whole.programs, absent=self.absent)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Site:
    made = Site()
    (tmp_path / "cluster.yaml").write_text(config.SMALLEST)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "cluster", made.cluster)
    return made


def check(*options: str) -> Result:
    return CliRunner().invoke(cli, ["certs", "check", *options])


def problems(code: int) -> dict[tuple[str, str], list[str]]:
    """The codes of problems by node and certificate; *code* is the exit code that there must be."""
    result = check("-o", "json")
    assert result.exit_code == code, result.output
    found = json.loads(result.stdout)
    return {
        (one["node"], one["certificate"]): [problem["code"] for problem in one["problems"]]
        for one in found["certificates"]
        if one["problems"]
    }


def test_all_certificates_of_all_nodes_are_shown(site: Site) -> None:
    assert problems(0) == {}
    found = json.loads(check("-o", "json").stdout)["certificates"]
    assert [(one["node"], one["certificate"]) for one in found] == [
        (name, what) for name in NAMES for what in ("ca", "file", "haproxy", "agent")
    ]
    assert {one["days"] for one in found if one["certificate"] == "ca"} == {pki.CA_LIFETIME.days - 1}
    assert {one["issuer"] for one in found} == {"CN=kubeadm-registry CA of registry"}
    text = check()
    assert text.exit_code == 0
    lines = text.stdout.splitlines()
    assert lines[0].split() == ["NODE", "CERTIFICATE", "WHERE", "DAYS", "EXPIRES", "PROBLEM"]
    assert [line.split()[:2] for line in lines[1:3]] == [["cp-1", "CA"], ["cp-1", "node"]]


def put(site: Site, name: str, certificate: str) -> None:
    site.fake.servers[name].put(paths.NODE_PEM, certificate, 0o640, f"root:{haproxy.USER}")


@pytest.mark.parametrize(
    ("days", "code", "word"), [(29, 5, "EndsSoon"), (-2, 1, "Expired")], ids=["ends soon", "has ended"]
)
def test_a_certificate_that_ends_is_told_wherever_it_is(site: Site, days: int, code: int, word: str) -> None:
    put(site, "cp-2", site.issue("cp-2", days=days))
    assert problems(code) == {("cp-2", what): [word] for what in ("file", "haproxy", "agent")}


def test_what_is_presented_is_compared_with_the_file(site: Site) -> None:
    site.presented["cp-1", "haproxy"] = site.presented["cp-3", "agent"] = site.issue("cp-1")
    assert problems(5) == {("cp-1", "haproxy"): ["NotLoaded"], ("cp-3", "agent"): ["NotLoaded"]}
    site.presented["cp-1", "haproxy"] = site.issue("cp-1", ca=pki.make_ca("registry"))
    assert problems(1)["cp-1", "haproxy"] == ["OtherAuthority", "NotLoaded"]
    site.presented["cp-1", "haproxy"] = site.presented["cp-3", "agent"] = None
    assert problems(5) == {("cp-1", "haproxy"): ["NotSeen"], ("cp-3", "agent"): ["NotSeen"]}


def test_other_names_and_missing_files_are_told(site: Site) -> None:
    put(site, "cp-1", site.issue("cp-1", names=("cp-1",)))
    assert problems(5) == {("cp-1", "file"): ["OtherNames"]}
    del site.fake.servers["cp-2"].tree[paths.CA]
    site.fake.servers["cp-3"].put(paths.CA, pki.make_ca("registry").certificate)
    found = problems(1)
    assert (found["cp-2", "ca"], found["cp-3", "ca"]) == (["Missing"], ["OtherAuthority"])


def test_proxies_that_trust_another_ca_are_told(site: Site) -> None:
    site.more["cp-2"] = {"trusted": {key: ["D"] for key in paths.HAPROXY_SOCKETS}}
    assert problems(5) == {("cp-2", "ca"): ["NotLoaded"]}


def test_a_node_that_cannot_be_reached_or_asked_is_told(site: Site) -> None:
    site.absent = {"cp-3": "cannot be reached"}
    site.more["cp-2"] = {"trouble": ["1.sock: timed out"], "handshakes": {}}
    assert problems(5) == {("cp-2", "haproxy"): ["NotSeen"]}
    assert json.loads(check("-o", "json").stdout)["unreachable"] == {"cp-3": "cannot be reached"}
    assert "1.sock: timed out" in check().stdout and "cp-3  -" in check().stdout


def test_a_ca_that_is_being_replaced_is_told(site: Site) -> None:
    assert json.loads(check("-o", "json").stdout)["replacement"] == ""
    both = rotation.advance(site.fake.cluster.secrets, "registry")
    for server in site.fake.servers.values():
        server.put(secrets.PATH, both.to_json(), 0o600)
        server.put(paths.CA, both.trust)
    found = json.loads(check("-o", "json").stdout)
    assert found["replacement"] == "trust"
    assert len([one for one in found["certificates"] if one["certificate"] == "ca"]) == 6
    assert "the CA is being replaced (stage trust)" in check().stdout


def test_a_registry_that_was_not_made_has_no_certificates(site: Site) -> None:
    for server in site.fake.servers.values():
        del server.tree[secrets.PATH]
    site.fake.fixed = None
    result = check()
    assert (result.exit_code, "run init first" in result.output) == (1, True)
