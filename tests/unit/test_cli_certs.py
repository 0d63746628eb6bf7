"""``certs renew``: which options go together, and whom the new CA waits for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kubeadm_registry import config, paths, rotation, secrets
from kubeadm_registry.access import session
from kubeadm_registry.access.client_nodes import Outcome
from kubeadm_registry.cli import others
from kubeadm_registry.cli.main import cli
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import helper
from kubeadm_registry.config.client_list import ClientNode
from kubeadm_registry.custom_resources import installing
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.phases import certificates
from kubeadm_registry.secrets import Secrets, Vault
from kubeadm_registry.upkeep.api import Answer
from kubeadm_registry.upkeep.nodes import CLIENT
from tests.unit.fake_cluster import authority
from tests.unit.installed import fresh


class Site:
    """An installed registry with client nodes, of which some do not answer. *trust*: what each got, in order."""

    def __init__(self) -> None:
        self.fake = fresh()
        self.contacted = 0
        self.away: set[str] = set()
        self.trust: dict[str, list[str]] = {}

    @contextmanager
    def cluster(self, *_: object, **__: object) -> Iterator[Cluster]:
        self.contacted += 1
        yield self.fake.cluster

    def run_on_clients(
        self, _: object, __: object, vault: Vault, listed: Sequence[ClientNode], *___: object, dry_run: bool
    ) -> list[Outcome]:
        for client in listed:
            if client.name not in self.away and not dry_run:
                self.trust.setdefault(client.name, []).append(vault.secrets.trust)
        away = ConnectionFailed("no answer", hint="", code="Unreachable")
        return [Outcome(client, error=away if client.name in self.away else None) for client in listed]

    def stages(self) -> set[str]:
        files = [server.content(secrets.PATH) for server in self.fake.servers.values()]
        return {rotation.stage(Secrets.from_json(content)) for content in files}


class Operated:
    """An API server: what the operator was *told*, and the *nodes* that it configures, with their addresses."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.nodes: dict[str, list[str]] = {}

    def get(self, path: str, *, by: float) -> Answer:
        assert path == f"/api/v1/nodes?labelSelector={CLIENT}&limit=500"
        items = [
            {
                "metadata": {"name": name},
                "status": {"addresses": [{"type": "InternalIP", "address": at} for at in all_]},
            }
            for name, all_ in self.nodes.items()
        ]
        return Answer(200, json.dumps({"metadata": {}, "items": items}).encode())


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    made = Site()
    (tmp_path / "cluster.yaml").write_text(config.SMALLEST)
    (tmp_path / "clients.txt").write_text("w1 10.0.0.21\nw2 10.0.0.22\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr(session, "cluster", made.cluster)
    monkeypatch.setattr(others, "run_on_clients", made.run_on_clients)
    without = {key: tuple(one for one in all_ if one.name != "containerd") for key, all_ in certificates.STAGES.items()}
    monkeypatch.setattr(certificates, "STAGES", without)
    return made


def renew(*options: str, code: int = 0) -> dict[str, Any]:
    """The last object that it writes."""
    result = CliRunner().invoke(cli, ["certs", "renew", "-o", "json", *options])
    assert result.exit_code == code, result.output
    said: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return said


ALL = ("--ca", "--nodes", "clients.txt")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--ca",), "--ca needs either --nodes FILE or --no-clients"),
        ((*ALL, "--no-clients"), "--ca needs either --nodes FILE or --no-clients"),
        ((*ALL, "--node", "cp-1"), "--node cannot be combined with --ca"),
        (("--nodes", "clients.txt"), "--nodes, --no-clients and --trust-only need --ca"),
        (("--trust-only",), "--nodes, --no-clients and --trust-only need --ca"),
        (("--node", "cp-9"), "there is no node cp-9"),
        (("--ca", "--nodes", "none.txt"), "cannot read none.txt"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_contacted(
    site: Site, options: tuple[str, ...], words: str
) -> None:
    assert words in renew(*options, code=2)["message"]
    assert site.contacted == 0


@pytest.mark.parametrize("line", ["cp-2 192.168.0.12", "kube-2 10.0.0.12"])
def test_a_registry_node_is_no_client_node(site: Site, line: str) -> None:
    """The run has locked it: as a client node it would be locked by another run, and the exchange would stop there."""
    with Path("clients.txt").open("a") as file:
        file.write(f"{line}\n")
    said = renew(*ALL, code=2)
    assert (said["code"], site.contacted) == ("NodesInvalid", 0)
    assert f"{line.split(maxsplit=1)[0]} in clients.txt: not a client node but a registry node" in said["message"]


def test_certificates_of_all_nodes_or_of_one_are_renewed(site: Site) -> None:
    before = {name: server.content(paths.NODE_PEM) for name, server in site.fake.servers.items()}
    assert renew("--node", "cp-2", "--dry-run")["dryRun"] is True
    assert renew("--node", "cp-2")["ok"] is True
    changed = [name for name, server in site.fake.servers.items() if server.content(paths.NODE_PEM) != before[name]]
    assert changed == ["cp-2"]
    assert "changes on 3 nodes" in renew()["summary"]
    assert not [name for name, one in before.items() if site.fake.servers[name].content(paths.NODE_PEM) == one]


def test_every_listed_client_node_gets_what_is_to_be_trusted_at_each_stage(site: Site) -> None:
    renew(*ALL)
    old = authority().certificate
    new = site.fake.cluster.secrets.ca_certificate
    assert site.trust == {key: [old + new, new + old, new] for key in ("w1", "w2")}
    assert site.stages() == {""}


def test_the_ca_is_not_exchanged_while_a_listed_client_node_lacks_it(site: Site) -> None:
    site.away = {"w2"}
    said = renew(*ALL, code=1)
    assert (said["code"], "w2 could not be configured" in said["message"]) == ("TrustPending", True)
    assert site.stages() == {"trust"}
    assert site.fake.cluster.secrets.ca_certificate == authority().certificate
    assert site.fake.cluster.secrets.trust.startswith(authority().certificate)
    site.away = set()
    renew(*ALL)
    assert site.stages() == {""}


def test_both_are_printed_while_both_are_trusted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    renew("--ca", "--no-clients", "--trust-only")
    monkeypatch.setattr(session, "secrets", lambda *_: site.fake.cluster.secrets)
    printed = CliRunner().invoke(cli, ["ca"]).stdout
    assert printed == site.fake.cluster.secrets.trust
    assert printed.count("BEGIN CERTIFICATE") == 2


@pytest.fixture
def operated(site: Site, monkeypatch: pytest.MonkeyPatch) -> Operated:
    """The operator is installed."""
    for server in site.fake.servers.values():
        server.put(helper.KEYS, b"a key\n")
    made = Operated()
    monkeypatch.setattr(installing, "refresh", lambda _, secrets, __: made.told.append(rotation.stage(secrets)))
    monkeypatch.setattr(others, "by_kubeconfig", lambda _: made)
    monkeypatch.setattr(helper, "_programs", lambda _: iter(()))
    return made


def test_an_operator_must_be_told_as_well(site: Site, operated: Operated) -> None:
    said = renew("--ca", "--no-clients", code=2)
    assert "the operator is installed and must be updated as well" in said["message"]
    assert site.stages() == {""}
    renew("--ca", "--no-clients", "--kubeconfig", "admin.conf")
    assert operated.told == ["trust", "issue", "remove"]


def test_a_node_that_the_operator_configures_must_be_listed(site: Site, operated: Operated) -> None:
    by_name, by_address = {"w1": ["192.0.2.1"]}, {"node-22": ["fd00::22", "10.0.0.22"]}
    operated.nodes = by_name | by_address | {"w3": ["10.0.0.23", "fd00::23"], "w4": []}
    said = renew(*ALL, "--kubeconfig", "admin.conf", code=2)
    assert said["code"] == "ClientsUnlisted"
    assert said["message"].endswith(" and are not in the list of client nodes: w3, w4")
    assert said["hint"] == "add to the file that --nodes names: w3 10.0.0.23; w4 ADDRESS"
    assert (site.stages(), operated.told) == ({""}, [])
    operated.nodes = by_name | by_address | {"cp-1": ["10.0.0.1"]}  # the last is a node of the registry
    renew(*ALL, "--kubeconfig", "admin.conf")
    assert operated.told == ["trust", "issue", "remove"]


def test_a_dry_run_changes_nothing(site: Site) -> None:
    before = site.fake.snapshot()
    assert renew(*ALL, "--dry-run")["changed"] == 6  # secrets and CA files
    assert (site.fake.snapshot(), site.trust) == (before, {})
