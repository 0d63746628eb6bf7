"""Alerts, dashboard and pages name what the agents export, what the program has, and each other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeadm_registry import paths, pki
from kubeadm_registry import status as cluster_status
from kubeadm_registry.agent import status
from kubeadm_registry.agent.timings import Timings
from kubeadm_registry.operator.figures import HELP, Figures
from tests.monitoring.wrapped import MONITORING, OBJECT, RULES, wrapped
from tests.unit.agent_sample import everything
from tests.unit.test_docs import commands, unknown

#: A selector of one of our metrics: its name, and its labels between braces.
SELECTOR = re.compile(r"(kubeadm_registry_(?:agent|operator)_\w+)(?:\{([^}]*)\})?")
LABEL = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation", "Resolution"]
#: What Prometheus itself adds, by the scrape configuration.
OF_SCRAPES = {"job", "instance", "node"}
DURATIONS = {None: "immediately", "1m": "after 1 minute", "1h": "after 1 hour", "3h": "after 3 hours"}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    """Everything that Prometheus evaluates for us."""
    yield from (rule["expr"] for rule in rules())
    for panel in panels():
        yield from (target["expr"] for target in panel["targets"])
    yield from (annotation["expr"] for annotation in dashboard()["annotations"]["list"])
    for variable in dashboard()["templating"]["list"]:
        yield variable.get("definition", "")


def exported() -> dict[str, list[dict[str, str]]]:
    """The metrics of an agent and an operator that export all: the labels of each of their series."""
    found: dict[str, list[dict[str, str]]] = {}
    for line in (status.metrics(everything(), 1.0) + operators()).splitlines():
        if not line.startswith("#"):
            [(name, labels)] = SELECTOR.findall(line)
            found.setdefault(name, []).append({key: value for key, _, value in LABEL.findall(labels)})
    return found


def operators() -> str:
    """The page of an operator."""
    figures = Figures()
    for name in HELP:
        figures.set(name, 1)
    kinds = ("RetentionHealthy", "ImagesMissing", "SpaceFreed")
    series = [(("type", kind), ("status", status)) for kind in kinds for status in ("True", "False", "Unknown")]
    figures.replace("condition", dict.fromkeys(series, 1.0))
    figures.ended("health", 0.0)
    return figures.text()


def test_every_metric_and_label_that_is_used_is_exported() -> None:
    known = exported()
    used = [match for text in expressions() for match in SELECTOR.findall(text)]
    assert len(used) > 40
    assert {name for name, _ in used} <= set(known)
    for name, labels in used:
        for label, operator, value in LABEL.findall(labels):
            if label in OF_SCRAPES:
                continue
            values = {series.get(label) for series in known[name]}
            assert operator in ("=", "=~"), f"{name}{{{labels}}}"
            assert set(value.split("|")) <= values, f"{name}{{{labels}}}: there are {values}"


def test_every_recorded_series_that_is_used_is_recorded_before() -> None:
    recorded: set[str] = set()
    for rule in rules():
        assert set(re.findall(r"job\w*:\w+(?::\w+)?", rule["expr"])) <= recorded
        recorded |= {rule["record"]} if "record" in rule else set()
    assert set(re.findall(r"job\w*:\w+(?::\w+)?", " ".join(expressions()))) == recorded


def test_every_alert_says_what_it_means_and_where_its_page_is(root: Path) -> None:
    for alert in alerts():
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["runbook_url"] == f"docs/alerts/{alert['alert']}.md"
        assert (root / alert["annotations"]["runbook_url"]).is_file()
        assert all(text.endswith(".") for text in list(alert["annotations"].values())[:2])


def test_every_alert_has_a_page_and_every_page_an_alert(root: Path) -> None:
    names = {alert["alert"] for alert in alerts()}
    assert {page.stem for page in (root / "docs/alerts").iterdir()} == names
    listed = re.findall(
        r"^\| \[(\w+)\]\(alerts/\1\.md\) \| ([^|]+) \| ([^|]+) \|", (root / "docs/monitoring.md").read_text(), re.M
    )
    assert {name for name, _, _ in listed} == names
    for name, severity, after in listed:
        mine = [alert for alert in alerts() if alert["alert"] == name]
        page = (root / f"docs/alerts/{name}.md").read_text()
        assert severity == " and ".join(alert["labels"]["severity"] for alert in mine)
        waits = {alert.get("for") for alert in mine}
        [wait] = waits
        words = DURATIONS.get(wait) or f"after {str(wait).removesuffix('m')} minutes"
        assert after == words.removeprefix("after ").replace("immediately", "0")
        assert page.startswith(f"# {name}\n\nSeverity: {severity}, {words}. ")
        assert re.findall(r"^## (.*)$", page, re.M) == SECTIONS


def test_every_threshold_has_its_reason_above_it() -> None:
    lines = RULES.read_text().splitlines()
    starts = [index for index, line in enumerate(lines) if re.match(r"\s+- (alert|record):", line)]
    assert len(starts) == len(rules())
    assert [lines[index] for index in starts if not lines[index - 1].strip().startswith("# ")] == []


def test_thresholds_are_those_of_the_program() -> None:
    exprs = {(alert["alert"], alert["labels"]["severity"]): alert["expr"] for alert in alerts()}
    days = cluster_status.CERTIFICATE_WARNING_DAYS
    assert exprs["RegistryCertificateExpires", "warning"].endswith(f"< {days} * 86400")
    assert exprs["RegistryCAExpires", "warning"].endswith(f"< {pki.AUTHORITY_WARNING.days} * 86400")
    assert exprs["RegistryClockOff", "warning"].endswith("> 0.3")
    assert Timings().clock_off > 0.3, "it fires before the node stops writing"
    assert f"> {Timings().canary_deadline / 2:g}\n" in exprs["RegistrySlow", "warning"]


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(root: Path) -> None:
    cases = yaml.safe_load((root / "tests/monitoring/alerts.test.yaml").read_text())["tests"]
    seen: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}
    for case in cases:
        for tried in case["alert_rule_test"]:
            fires = bool(tried["exp_alerts"])
            assert case["name"].startswith(f"{tried['alertname']} {'fires' if fires else 'does not fire'}")
            severities = {one["exp_labels"]["severity"] for one in tried["exp_alerts"]} or {""}
            seen[fires] |= {(tried["alertname"], severity) for severity in severities}
    assert seen[True] == {(alert["alert"], alert["labels"]["severity"]) for alert in alerts()}
    assert {name for name, _ in seen[False]} == {alert["alert"] for alert in alerts()}


def test_the_object_has_the_rules() -> None:
    assert OBJECT.read_text() == wrapped(RULES.read_text()), "run make manifests"
    shown = yaml.safe_load(OBJECT.read_text())
    assert shown["kind"] == "PrometheusRule"
    assert shown["spec"] == yaml.safe_load(RULES.read_text())


def test_the_scrape_configuration_names_the_nodes_of_the_quick_start(root: Path) -> None:
    [job] = yaml.safe_load((MONITORING / "scrape-config.yaml").read_text())["scrape_configs"]
    [operator] = yaml.safe_load((MONITORING / "scrape-config-operator.yaml").read_text())["scrape_configs"]
    [example] = re.findall(r"```yaml\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    nodes = {node["name"]: node["address"] for node in yaml.safe_load(example)["spec"]["nodes"]}
    targets = {one["labels"]["node"]: one["targets"] for one in job["static_configs"]}
    assert targets == {name: [f"{address}:{paths.AGENT_PORT}"] for name, address in nodes.items()}
    assert re.fullmatch("kubeadm-registry.*", job["job_name"])
    assert job["scheme"] == "https"
    assert operator["job_name"] == f"operator-{job['job_name']}"
    [service] = [one for one in yaml.safe_load_all((root / "manifests/operator.yaml").read_text())
                 if one["kind"] == "Service"]  # fmt: skip
    assert operator["relabel_configs"][0]["regex"] == service["metadata"]["name"]
    assert operator["kubernetes_sd_configs"][0]["namespaces"] == {"names": [service["metadata"]["namespace"]]}


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    shown = dashboard()["panels"]
    assert len({panel["id"] for panel in shown}) == len(shown) > 15
    taken: set[tuple[int, int]] = set()
    for panel in shown:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not taken & cells, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert all(re.search(r'job="(operator-)?\$job"', one["expr"]) for one in panel["targets"]), panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


def test_where_a_storage_that_misses_a_node_counts_one_that_still_copies_does() -> None:
    for text in expressions():
        assert ("StoragePartial" in text) == ("StorageCopying" in text), text


def pages() -> list[Path]:
    docs = Path(__file__).parents[2] / "docs"
    return [docs / "monitoring.md", *sorted((docs / "alerts").glob("*.md"))]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_every_command_of_a_page_is_there(page: Path) -> None:
    for words in commands(page.read_text()):
        assert unknown(words) == "", words


def test_the_log_of_the_operator_is_that_of_the_replica_that_acts_too() -> None:
    """Of a Deployment's pods `kubectl logs` takes one, without --all-pods."""
    shown = [line for page in pages() for line in page.read_text().splitlines() if "kubectl logs deployment/" in line]
    assert [line for line in shown if "--all-pods" not in line] == []


def test_the_pages_use_units_and_paths_that_are_there() -> None:
    text = "\n".join(page.read_text() for page in pages())
    names = {name.rstrip("-") for name in re.findall(r"(?:-u|systemctl \w+) (kubeadm-registry-[a-z]+)", text)}
    wanted = {"agent", "keepalived", "guard", "garage", "zot"}
    assert names == {f"kubeadm-registry-{name}" for name in wanted}
    found = set(re.findall(r"/(?:etc|run)/kubeadm-registry/[a-z0-9./_-]*[a-z]", text, re.IGNORECASE))
    assert found <= {
        paths.AGENT_STATE, paths.NODE_PEM, "/run/kubeadm-registry/agent/fit", "/etc/kubeadm-registry/RUNBOOK",
        "/etc/kubeadm-registry/agent/agent.json", "/etc/kubeadm-registry/garage/garage.toml",
    }  # fmt: skip
