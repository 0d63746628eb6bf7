"""Which versions may run side by side, and what an upgrade does with which node."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from kubeadm_registry import __version__, rotation
from kubeadm_registry.bundle.programs import numbers
from kubeadm_registry.components import compatibility
from kubeadm_registry.components.compatibility import KNOWN, RULES, Move, Record, plan, way_back
from kubeadm_registry.phases.upgrade_plan import RECORDS
from kubeadm_registry.secrets import Secrets
from tests.lab import releases
from tests.unit.fake_cluster import fixed_secrets

NODES = ("a", "b", "c")
OLD = {
    "garage": "2.2.0",
    "distribution": "2.8.3+ds1-2",
    "haproxy": "3.0.11-1",
    "keepalived": "1_2.3.3-1",
    "agent": "0.1.0",
}


def all_at(versions: dict[str, str]) -> dict[str, dict[str, str]]:
    return dict.fromkeys(NODES, versions)


@pytest.mark.parametrize(
    ("version", "found"),
    [("2.3.0", (2, 3, 0)), ("v1.0", (1, 0)), ("1:2.3.3-1", (2, 3, 3)), ("1_2.3.3-1", (2, 3, 3)),
     ("0.2.0.dev0", (0, 2, 0)), ("2.8.3+ds1-2", (2, 8, 3)), ("unknown", ()), ("", ())],
)  # fmt: skip
def test_the_numbers_of_a_version(version: str, found: tuple[int, ...]) -> None:
    assert numbers(version) == found


@pytest.mark.parametrize(
    ("program", "one", "other", "allowed"),
    [
        ("garage", "2.3.0", "2.3.0", True),
        ("garage", "2.2.0", "2.3.0", True),
        ("garage", "1.3.0", "2.3.0", False),
        ("garage", "2.3.0", "3.0.0", False),
        ("garage", "2.0.0-beta1", "2.3.0", False),
        ("garage", "2.0.0-beta1", "2.0.0-beta1", True),
        ("garage", "2.0.0-rc1", "2.3.0", True),
        ("garage", "unknown", "2.3.0", False),
        ("garage", "unknown", "unknown", True),
        ("zot", "2.1.2", "2.1.20", True),
        ("zot", "2.0.4", "2.1.20", True),
        ("zot", "1.4.3", "2.1.20", False),
        ("distribution", "2.8.3+ds1-2", "2.8.3+ds1-3", True),
        ("distribution", "2.8.3", "3.1.1", False),
        ("distribution", "2.7.1", "2.8.3", False),
        ("haproxy", "2.6.12", "3.2.1", True),
        ("haproxy", "unknown", "3.2.1", True),
        ("keepalived", "1:2.2.7", "1:2.3.3", True),
        ("keepalived", "1.3.9", "2.3.3", False),
        ("python", "3.11.2", "3.13.5", True),
        ("agent", "0.1.0", "0.2.0.dev0", True),
        ("agent", "0.1.0", "0.2.4", True),
        ("agent", "0.1.0", "0.3.0", False),
        ("agent", "0.2.0", "1.2.0", False),
        ("kubeadm-registry", "0.3.0", "0.2.0", True),
    ],
)
def test_the_table(program: str, one: str, other: str, allowed: bool) -> None:
    rule = RULES[program]
    assert rule.allows(one, other) is allowed
    assert rule.allows(other, one) is allowed, "as an upgrade, so the way back"


def test_steps_come_in_order_and_name_what_changes_on_each_node() -> None:
    current = {"a": OLD, "b": {**OLD, "garage": "2.3.0"}, "c": {}}
    found = plan(current, {"garage": "2.3.0", "agent": "0.2.0"}, ("c", "b", "a"))
    assert found.refusals == ()
    assert [step.node for step in found.steps] == ["c", "b", "a"]
    assert [step.moves for step in found.steps] == [
        (Move("agent", "", "0.2.0"), Move("garage", "", "2.3.0")),
        (Move("agent", "0.1.0", "0.2.0"),),
        (Move("agent", "0.1.0", "0.2.0"), Move("garage", "2.2.0", "2.3.0")),
    ]
    assert str(found.steps[0].moves[0]) == "agent (none) -> 0.2.0"


def test_nothing_to_do_is_a_plan_without_moves() -> None:
    found = plan(all_at(OLD), OLD, NODES)
    assert found.refusals == ()
    assert [step.moves for step in found.steps] == [(), (), ()]


def test_one_incompatible_program_refuses_all_with_what_to_do() -> None:
    current = {"a": OLD, "b": {**OLD, "garage": "1.3.0"}, "c": {**OLD, "garage": "1.3.0"}}
    found = plan(current, {**OLD, "garage": "2.3.0"}, NODES)
    assert found.steps == ()
    (refusal,) = found.refusals
    assert refusal.startswith("garage 1.3.0 (on b) and garage 2.3.0 cannot run side by side: ")
    assert "migration guide" in refusal


@pytest.mark.parametrize(
    ("before", "after", "remedy"),
    [
        ("2.3.0", "sha256-3f2a11112222", "create the bundle on a machine of the nodes' architecture"),
        ("sha256-3f2a11112222", "2.3.0", "create a new registry beside this one"),
    ],
)
def test_a_version_that_is_not_known_is_not_called_another_major_version(before: str, after: str, remedy: str) -> None:
    (refusal,) = plan(all_at({"garage": before}), {"garage": after}, NODES).refusals
    assert "sha256-3f2a11112222 is a digest, and its version is not known" in refusal
    assert remedy in refusal
    assert "major version" not in refusal and "migration guide" not in refusal


def test_a_half_done_upgrade_goes_on_and_can_be_turned_round() -> None:
    new = {**OLD, "garage": "2.3.0"}
    current = {"a": new, "b": OLD, "c": OLD}
    assert [bool(step.moves) for step in plan(current, new, NODES).steps] == [False, True, True]
    assert [bool(step.moves) for step in plan(current, OLD, NODES).steps] == [True, False, False]


@pytest.mark.parametrize(("bundled", "verb"), [("0.1.0", "init"), ("0.3.0", "upgrade")])
def test_a_bundle_of_another_release_is_refused_with_its_own_tool(bundled: str, verb: str) -> None:
    (refusal,) = plan({}, {"agent": "0.2.0.dev0", "kubeadm-registry": bundled}, NODES).refusals
    assert f"created by kubeadm-registry {bundled}, and this kubeadm-registry is 0.2.0.dev0" in refusal
    assert f"tool/bin/kubeadm-registry {verb} --bundle BUNDLE" in refusal
    assert plan({}, {"agent": "0.2.0.dev0", "kubeadm-registry": "0.2.3"}, NODES).refusals == ()


def test_the_way_back_ends_where_a_record_asks_for_more() -> None:
    records = (Record("secrets", 1), Record("ledger", 2))
    assert way_back("0.1.0", records) == ("release 0.1.0 cannot read ledger: it needs version 2 of its format",)
    assert way_back("0.1.7", records[:1]) == ()
    assert way_back("0.9.0", records) == (), "nothing is known of it here: it is this one or newer"


def test_every_record_is_known_by_its_name() -> None:
    names = {one.name for one in RECORDS}
    assert len(names) == len(RECORDS)
    for known in KNOWN.values():
        assert set(known) <= names


def test_a_release_is_known_wherever_releases_are_listed(root: Path) -> None:
    """Else nothing is known of what it can read, `upgrade plan` says that it can take over again, and nobody tries."""
    newest, *earlier = re.findall(r"^## (\S+)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"] == __version__
    assert newest == ("Unreleased" if ".dev" in __version__ else __version__)
    assert earlier[::-1] == list(releases.RELEASES)
    assert RULES["agent"].allows(releases.RELEASES[-1], __version__), "there is one in between"
    assert KNOWN.keys() == {numbers(one)[:2] for one in releases.RELEASES}


def test_the_table_of_release_0_1_is_that_of_its_code(root: Path) -> None:
    commit = releases.commit("0.1.0")
    if not commit:
        pytest.skip("the history of this repository does not contain release 0.1.0")
    grep = ("git", "-C", str(root), "grep", "-hE", r"Format\(.*version=[0-9]", commit, "--", "kubeadm_registry")
    found = subprocess.run(grep, capture_output=True, text=True, check=True).stdout
    # Bundles and the journal of deletions are not of nodes; the others are named by constants or words.
    versions = dict(re.findall(r"Format\(([^,\n]+), version=([0-9]+)", found))
    assert versions == {
        "RECORD": "2", "ORIGINALS": "2", '"the record of what was seeded into the registry"': "2", "str(path)": "2",
        '"the bundle"': "2",
    }  # fmt: skip
    assert len(KNOWN[0, 1]) == 3


#: Reads the record of programs that standard input has, as ``init`` of that release does first.
OLD_READER = """
import sys
from kubeadm_registry import __version__
from kubeadm_registry.components import programs
from kubeadm_registry.errors import Error
try:
    programs.read_record(sys.stdin.buffer.read(), "cp-1")
except Error as error:
    print(__version__, error.code, error, error.hint, sep="|")
"""


#: Reads the secrets that standard input has, and says whether its ``init`` may go on with them.
OLD_VAULT = """
import sys
from kubeadm_registry.errors import Error
from kubeadm_registry.secrets import PATH, Vault
vault = Vault.read("registry", ["cp-1", "cp-2", "cp-3"], {"cp-1": {PATH: sys.stdin.buffer.read()}})
assert vault.secrets.push_password
try:
    vault.check()
    print("may be written")
except Error as error:
    print(error.code)
"""


@pytest.fixture(scope="module")
def release_0_1(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bytes], str]:
    """Runs a script with the code of release 0.1.0: what it says of its input."""
    root = Path(__file__).parents[2]
    commit = releases.commit("0.1.0")
    if not commit:
        pytest.skip("the history of this repository does not contain release 0.1.0")
    archive = subprocess.run(
        ["git", "-C", root, "archive", commit, "kubeadm_registry", "phases", "operator"],
        capture_output=True,
        check=True,
    )
    folder = tmp_path_factory.mktemp("release")
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def said(script: str, content: bytes) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script], input=content, capture_output=True, check=True, cwd=folder, env=environment
        )
        return done.stdout.decode()

    return said


def test_release_0_1_itself_refuses_a_newer_record_by_name(release_0_1: Callable[[str, bytes], str]) -> None:
    record = json.dumps({"format": {"version": 3, "minReader": 3, "minWriter": 3}, "programs": {}})
    assert release_0_1(OLD_READER, record.encode()) == (
        "0.1.0|NewerFormat|a newer release wrote /opt/kubeadm-registry/programs.json: version 3 of its format is "
        "needed to read it, and this release has version 2|use a newer kubeadm-registry\n"
    )
    needs = Record("/opt/kubeadm-registry/programs.json", 3)
    assert len(way_back("0.1.0", [needs])) == 1, "and this release says so beforehand"


def test_release_0_1_itself_writes_no_secrets_while_some_are_exchanged(
    release_0_1: Callable[[str, bytes], str],
) -> None:
    """It would have the proxies accept one password of two."""
    secrets = fixed_secrets(("cp-1", "cp-2", "cp-3"))
    both = rotation.rotate(secrets, ["push"])
    assert release_0_1(OLD_VAULT, both.to_json()) == "NewerFormat\n"
    assert release_0_1(OLD_VAULT, rotation.advance(secrets, "registry").to_json()) == "NewerFormat\n"
    done = rotation.finish(Secrets.from_json(both.to_json()), ["push"])
    assert release_0_1(OLD_VAULT, done.to_json()) == "may be written\n"


def test_docs_have_the_table(root: Path) -> None:
    page = (root / "docs/upgrade.md").read_text()
    rows = dict(re.findall(r"^\| ([a-zA-Z, -]+?) \| ([^|]+?) \|", page, re.MULTILINE))
    names = {"agent": "node agent", "python": "Python", "garage": "Garage", "distribution": "Distribution",
             "haproxy": "HAProxy", "zot": "zot"}  # fmt: skip
    for program, rule in compatibility.RULES.items():
        assert rows[names.get(program, program)] == rule.text
