"""The agent's file: strict, all mistakes at once, each with its path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.agent.__main__ import main
from kubeadm_registry.agent.config import ConfigError, load, parse


def smallest() -> dict[str, Any]:
    return {
        "name": "cp-1",
        "address": "10.0.0.11",
        "peers": [{"name": "cp-2", "address": "10.0.0.12"}, {"name": "cp-3", "address": "10.0.0.13"}],
        "vips": ["10.0.0.10"],
        "frontend": {"type": "distribution", "unit": "registry.service"},
        "writer": "any",
        "heartbeat_key_file": "/k",
        "tls": {"cert": "/c", "key": "/c", "ca": "/ca"},
    }


def problems(raw: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(raw)
    return caught.value.problems


def test_what_can_be_known_has_a_default() -> None:
    config = parse(smallest())
    assert config.frontend.reads_from == "127.0.0.9"
    assert config.ports.heartbeat == 5444
    assert config.storage is None
    assert config.settings.peers == ("cp-2", "cp-3")
    assert config.settings.majority == 2
    assert not config.settings.single_writer


def test_every_mistake_is_named_with_its_path() -> None:
    raw = smallest()
    raw["adress"] = "x"
    raw["peers"][1] = {"name": 3}
    raw["ports"] = {"rpc": "3901"}
    raw["metrics_anonymous"] = 1
    del raw["vips"]
    found = problems(raw)
    assert any(line.startswith("adress: unknown key") for line in found)
    assert "peers[1].name: a text is needed" in found
    assert "peers[1].address: missing" in found
    assert "ports.rpc: a whole number is needed" in found
    assert "metrics_anonymous: true or false is needed" in found
    assert "vips: missing" in found


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"writer": "both"}, 'writer: "any" or "single" is needed'),
        ({"writer": "single"}, 'frontend.runtime_config: missing, and writer is "single"'),
        ({"executor": {}}, "fence: missing, and there is an executor"),
        ({"executor": {"writes_from": "x"}}, "executor.writes_from: 'x' is not an IP address"),
        (
            {"executor": {"writes_from": "127.0.0.9"}},
            "executor.writes_from: must differ from frontend.address and frontend.reads_from",
        ),
        ({"address": "cp-1"}, "address: 'cp-1' is not an IP address"),
        ({"vips": []}, "vips: at least one address is needed"),
        ({"name": "cp-2"}, "peers: every node needs a name of its own, and none may be called local"),
        ({"name": "local"}, "peers: every node needs a name of its own, and none may be called local"),
        (
            {"canary": {"repository": "x", "manifest": "sha256:xyz", "blob": "sha256:" + "0" * 64}},
            "canary.manifest: a sha256 digest is needed",
        ),
        ({"timings": {"lease": 0.5}}, "timings.lease_margin: must be less than timings.lease"),
        ({"timings": {"tick": 0}}, "timings.tick: must be more than zero"),
        ({"timings": {"tick": float("nan")}}, "timings.tick: must be more than zero"),
        ({"timings": {"kill": float("inf")}}, "timings.kill: must be more than zero"),
        ({"ports": {"heartbeat": 0}}, "ports.heartbeat: must be a port, 1 to 65535"),
        ({"storage": {"unit": "x", "admin_port": 65536}}, "storage.admin_port: must be a port, 1 to 65535"),
        ({"address": "fd00::11"}, "peers[1].address: must be of the same family as address"),
        ({"peers": {}}, "peers: a list is needed"),
        ({"tls": []}, "tls: an object is needed"),
    ],
)
def test_what_cannot_be_right_is_refused(change: dict[str, Any], problem: str) -> None:
    assert problem in problems(smallest() | change)


def test_reads_never_come_from_the_address_that_writes_come_from() -> None:
    raw = smallest()
    raw["frontend"]["reads_from"] = "127.0.0.1"
    assert any(line.startswith("frontend.reads_from: must differ") for line in problems(raw))


@pytest.mark.parametrize("raw", [[], "x", None])
def test_a_file_that_is_no_object_is_refused(raw: object) -> None:
    assert problems(raw) == ["the file: an object is needed"]


def test_check_says_what_is_wrong_and_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "agent.json"
    file.write_text(json.dumps(smallest()))
    assert main(["--config", str(file), "--check"]) == 0
    assert load(file).name == "cp-1"
    file.write_text("{")
    assert main(["--config", str(file), "--check"]) == 2
    assert "not JSON" in capsys.readouterr().err
    assert main(["--config", str(tmp_path / "none"), "--check"]) == 2
