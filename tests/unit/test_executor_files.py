"""What init tells the executor, and what a run leaves behind: as the first release with retention writes both."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kubeadm_registry.components import executor_files
from kubeadm_registry.components.executor_files import Settings
from kubeadm_registry.errors import Error
from kubeadm_registry.formats import Damaged, NewerFormat

SAMPLES = Path(__file__).parents[1] / "golden" / "formats"
CONFIG, RESULT = SAMPLES / "retention-executor.json", SAMPLES / "retention-result.json"
WITH_PAUSE = SAMPLES / "retention-executor-pause.json"
ORDER = "0123456789abcdef" * 4
KEYS = ("node", "registry", "retention_key", "agent_state")
REGISTRY = ("url", "ca", "username", "password")


def test_settings_are_read_and_written_as_the_first_release_did() -> None:
    found = executor_files.load(CONFIG)
    assert found == Settings(
        node="cp-1",
        registry="https://10.0.0.11:5000",
        ca="/etc/kubeadm-registry/ca.crt",
        username="retention",
        password="the-retention-password",
        key="the-retention-key",
        agent_state="/run/kubeadm-registry/agent/state.json",
    )
    assert found.to_json() == CONFIG.read_bytes()
    assert "the-retention" not in repr(found)


def test_a_pause_image_is_a_key_more() -> None:
    found = executor_files.load(WITH_PAUSE)
    assert found == replace(executor_files.load(CONFIG), sandbox_image="10.0.0.10:5000/infra/pause:1")
    assert found.to_json() == WITH_PAUSE.read_bytes()
    with pytest.raises(Damaged, match="its key sandbox_image is not text"):
        Settings.parse(json.dumps({**json.loads(CONFIG.read_text()), "sandbox_image": 1}).encode())


def test_keys_of_a_newer_release_are_ignored_and_a_missing_one_is_named() -> None:
    document = json.loads(CONFIG.read_text())
    more = {**document, "more": 1, "registry": {**document["registry"], "more": [1]}}
    assert Settings.parse(json.dumps(more).encode()) == executor_files.load(CONFIG)
    for key in KEYS:
        less = {name: value for name, value in document.items() if name != key}
        with pytest.raises(Damaged, match=f"its key {key} is not"):
            Settings.parse(json.dumps(less).encode())
    for key in REGISTRY:
        part = {name: value for name, value in document["registry"].items() if name != key}
        with pytest.raises(Damaged, match=f"its key registry.{key} is not text"):
            Settings.parse(json.dumps({**document, "registry": part}).encode())


def test_settings_that_ask_for_a_newer_release_are_refused() -> None:
    document = {**json.loads(CONFIG.read_text()), "format": {"version": 9, "minReader": 9, "minWriter": 9}}
    with pytest.raises(NewerFormat):
        Settings.parse(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("content", "code"), [(None, "SettingsUnreadable"), (b"", "SettingsDamaged"), (b"[]", "SettingsDamaged")]
)
def test_a_file_that_is_none_is_named_with_a_remedy(tmp_path: Path, content: bytes | None, code: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Error) as caught:
        executor_files.load(path)
    assert caught.value.code == code
    assert str(path) in caught.value.message
    assert "kubeadm-registry init" in caught.value.hint


def test_a_result_names_order_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = RESULT.read_bytes()
    found = executor_files.read_result(sample)
    assert (found["order"], found["node"]) == (ORDER, "cp-1")
    monkeypatch.setenv("INVOCATION_ID", found["invocation"])
    executor_files.write_result(ORDER, {"node": "cp-1"}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{ORDER}.json"]
    assert (tmp_path / f"{ORDER}.json").read_bytes() == sample


def test_the_newest_results_are_kept_and_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_text("{}")
    orders = [f"{number:064x}" for number in range(executor_files.KEPT_RESULTS + 3)]
    for number, order in enumerate(orders):
        executor_files.write_result(order, {}, tmp_path)
        os.utime(tmp_path / f"{order}.json", (number, number))
    executor_files.write_result(ORDER, {}, tmp_path)
    left = {path.stem for path in tmp_path.iterdir()}
    assert left == {"journal", ORDER, *orders[-executor_files.KEPT_RESULTS + 1 :]}
