"""The alert rules as Prometheus itself reads and evaluates them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubeadm_registry import pki
from tests.lab.command import run
from tests.monitoring.wrapped import MONITORING, RULES

CASES = sorted(Path(__file__).parent.glob("*.test.yaml"))


def test_the_rules_are_valid(promtool: Path) -> None:
    shown = run(promtool, "check", "rules", "--lint=all", "--lint-fatal", RULES).stdout
    assert "SUCCESS" in shown


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_alerts_fire_when_they_should_and_not_otherwise(promtool: Path, path: Path) -> None:
    run(promtool, "test", "rules", path, timeout=300)


def test_the_scrape_configuration_is_valid(promtool: Path, tmp_path: Path) -> None:
    """With the files where it looks for them; promtool reads the certificate, not only its name."""
    authority = pki.make_ca("registry")
    pair = pki.issue(authority, "metrics", [], unit=pki.METRICS_UNIT)
    folder = tmp_path / "kubeadm-registry"
    folder.mkdir()
    (folder / "ca.crt").write_text(authority.certificate)
    (folder / "metrics.pem").write_text(pair.certificate + pair.key)
    (folder / RULES.name).write_bytes(RULES.read_bytes())
    config = tmp_path / "prometheus.yml"
    config.write_bytes((MONITORING / "scrape-config.yaml").read_bytes())
    shown = run(promtool, "check", "config", config).stdout
    assert "1 rule files found" in shown


def test_prometheus_reads_what_the_dashboard_asks(promtool: Path, tmp_path: Path) -> None:
    shown = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    asked = [one["expr"] for panel in shown["panels"] for one in panel.get("targets", ())]
    asked += [one["expr"] for one in shown["annotations"]["list"]]
    filled = [text.replace("$job", "kubeadm-registry").replace("$__rate_interval", "1m") for text in asked]
    rules = [{"record": f"asked:{index}", "expr": text} for index, text in enumerate(filled)]
    path = tmp_path / "asked.yaml"
    path.write_text(json.dumps({"groups": [{"name": "asked", "rules": rules}]}))
    assert f"SUCCESS: {len(asked)} rules" in run(promtool, "check", "rules", path).stdout
