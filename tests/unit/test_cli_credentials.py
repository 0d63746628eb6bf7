"""``credentials rotate``: what is refused, and who is told of a new password."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kubeadm_registry import config, rotation
from kubeadm_registry.access import session
from kubeadm_registry.cli import others
from kubeadm_registry.cli.main import cli
from kubeadm_registry.phases import credentials
from tests.unit.test_cli_certs import Operated, Site, operated

__all__ = ["operated"]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    made = Site()
    (tmp_path / "cluster.yaml").write_text(config.SMALLEST)
    (tmp_path / "closed.yaml").write_text(config.SMALLEST + "  proxy: {anonymousPull: false}\n")
    (tmp_path / "clients.txt").write_text("w1 10.0.0.21\nw2 10.0.0.22\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr(session, "cluster", made.cluster)
    monkeypatch.setattr(session, "secrets", lambda *_: made.fake.cluster.secrets)
    monkeypatch.setattr(others, "run_on_clients", made.run_on_clients)
    monkeypatch.setattr(credentials, "LOGINS", tuple(one for one in credentials.LOGINS if one.name != "containerd"))
    return made


def rotate(*options: str, code: int = 0) -> dict[str, Any]:
    """The last object that it writes."""
    result = CliRunner().invoke(cli, ["credentials", "rotate", "-o", "json", *options])
    assert result.exit_code == code, result.output
    said: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return said


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--role", "metrics"), "RotationRefused", "it is not stored"),
        (("--role", "push", "--role", "admin"), "UsageInvalid", "--role admin cannot be combined with another role"),
        (("--role", "pull", "--file", "closed.yaml"), "UsageInvalid", "--role pull needs either --nodes"),
        (("--role", "s3", "--role", "push"), "UsageInvalid", "--role s3 cannot be combined with another role"),
        (("--role", "heartbeat", "--finish"), "UsageInvalid", "there is nothing to finish for heartbeat"),
        ((), "UsageInvalid", "Missing option '--role'"),
    ],
)
def test_what_cannot_be_rotated_is_refused_before_anything_is_contacted(
    site: Site, options: tuple[str, ...], code: str, words: str
) -> None:
    said = rotate(*options, code=2)
    assert (said["code"], words in said["message"]) == (code, True)
    assert site.contacted == 0


def test_the_new_password_is_printed_and_the_former_one_goes_when_told(site: Site) -> None:
    def printed() -> str:
        return str(json.loads(CliRunner().invoke(cli, ["credentials", "-o", "json"]).stdout)["password"])

    assert printed() == "the-push-password"
    rotate("--role", "push")
    new = printed()
    assert new != "the-push-password"
    assert rotate("--role", "push")["changed"] == 0
    assert (printed(), rotation.overlapping(site.fake.cluster.secrets)) == (new, ("push",))
    rotate("--role", "push", "--finish")
    assert (printed(), rotation.overlapping(site.fake.cluster.secrets)) == (new, ())


def test_the_former_password_stays_while_a_client_node_lacks_the_new_one(site: Site) -> None:
    pull = ("--role", "pull", "--file", "closed.yaml", "--nodes", "clients.txt")
    site.away = {"w2"}
    said = rotate(*pull, code=1)
    assert (said["code"], "w2 could not be configured" in said["message"]) == ("TrustPending", True)
    new = site.fake.cluster.secrets.pull_password
    assert rotate(*pull, "--finish", code=1)["code"] == "TrustPending"
    assert site.fake.cluster.secrets.passwords("pull") == (new, "the-pull-password")
    site.away = set()
    rotate(*pull, "--finish")
    assert site.fake.cluster.secrets.passwords("pull") == (new,)


def test_a_node_that_the_operator_configures_must_be_listed(site: Site, operated: Operated) -> None:
    """Only where the password is one that client nodes have."""
    operated.nodes = {"w3": ["10.0.0.23"]}
    pull, before = ("--role", "pull", "--kubeconfig", "admin.conf"), site.fake.cluster.secrets.pull_password
    for more in ((), ("--finish",)):
        said = rotate(*pull, "--file", "closed.yaml", "--nodes", "clients.txt", *more, code=2)
        assert (said["code"], said["hint"]) == ("ClientsUnlisted", "add to the file that --nodes names: w3 10.0.0.23")
    assert site.fake.cluster.secrets.passwords("pull") == (before,)
    rotate(*pull)
    rotate("--role", "push", "--kubeconfig", "admin.conf")
