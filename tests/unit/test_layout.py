"""The folders are where Python, linters and packaging look for them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kubeadm_registry.phases import workflows

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kubeadm_registry"
LINKED = ("phases", "operator")
#: About a page of a screen too much for one thing.
LONGEST = 500
#: In the root of the package. One more: see which package it belongs to (docs/decisions/0012).
MOST_FILES = 19


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


@pytest.mark.parametrize("name", LINKED)
def test_the_package_links_to_the_folder(name: str) -> None:
    assert (PACKAGE / name).is_symlink()
    assert (PACKAGE / name).readlink() == Path("..") / name, "a relative link works in every checkout"
    assert (PACKAGE / name).resolve() == ROOT / name
    assert (ROOT / name).is_dir()


def test_a_phase_is_imported_through_the_link() -> None:
    assert Path(workflows.__file__).resolve() == ROOT / "phases" / "workflows.py"


@pytest.mark.parametrize("name", LINKED)
def test_the_folder_is_a_namespace(name: str) -> None:
    """With an __init__.py, `import operator` from a checkout would give our folder and not the standard library's."""
    assert not (ROOT / name / "__init__.py").exists()


def test_the_standard_operator_module_still_adds() -> None:
    code = "import operator, sys; sys.exit(operator.add(40, 2))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert result.returncode == 42


@pytest.mark.parametrize("name", LINKED)
def test_no_module_hides_one_of_the_standard_library(name: str) -> None:
    """`kopf run operator/x.py` would put the folder first on the path."""
    assert not {path.stem for path in modules(ROOT / name)} & sys.stdlib_module_names


def test_what_lands_has_passed_all_goals_of_make_test() -> None:
    """One by one, for the times of each; others follow, where there is time for them."""
    [goals] = re.findall(r"^test: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    script = (ROOT / ".ci/run").read_text()
    ran = re.findall(r"^(?:part|start) \S+ (?:\d+ )?(\S+)", script, re.MULTILINE)
    assert set(goals.split()) <= set(ran)
    # What runs beside something counts as well.
    assert re.findall(r"\bunit UNIT=(.+)$", script, re.MULTILINE) == ["'not slow'", "slow"]
    started = set(re.findall(r"\bstart (\S+)", script)) - {"programs"}
    assert started == set(re.findall(r"\bended (\S+)$", script, re.MULTILINE)) == {
        "unit-slow", "test-monitoring", "test-operator", "kubernetes-bundle",
    }  # fmt: skip


def test_what_is_tried_in_worlds_is_tried_in_very_many_of_them_by_the_long_target() -> None:
    [named] = re.findall(r"^IN_WORLDS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    tried = {
        path.stem for path in (ROOT / "tests/unit").glob("test_*.py") if re.search(r"\bWORLDS\b", path.read_text())
    }
    assert {f"test_{name}" for name in named.split()} == tried - {Path(__file__).stem}


def test_modules_are_short() -> None:
    folders = (PACKAGE, *(ROOT / name for name in LINKED))
    lengths = {path: len(path.read_text().splitlines()) for folder in folders for path in modules(folder)}
    assert len(lengths) > 50
    assert not {str(path): length for path, length in lengths.items() if length > LONGEST}


def test_the_root_of_the_package_holds_what_has_no_package() -> None:
    files = [path.name for path in PACKAGE.iterdir() if path.is_file()]
    assert "__init__.py" in files
    assert len(files) <= MOST_FILES, files


def test_the_agent_imports_the_standard_library_and_itself_alone() -> None:
    """It runs on nodes, where there is nothing else. That it keeps out of our other modules, the layers say."""
    foreign = set()
    for path in modules(PACKAGE / "agent"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: a relative import"
                names = [node.module or ""]
                if names == ["kubeadm_registry"]:
                    names = [f"kubeadm_registry.{alias.name}" for alias in node.names]
            else:
                continue
            foreign |= {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names}
    allowed = {"kubeadm_registry.agent", "kubeadm_registry.__version__"}
    assert not {name for name in foreign if not any(f"{name}.".startswith(f"{one}.") for one in allowed)}


@pytest.mark.parametrize("name", LINKED)
def test_the_layers_are_checked_in_linked_folders_too(name: str) -> None:
    """The linter follows no links below the package: each folder with modules is named to it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert (f"kubeadm_registry.{name}" in settings["root_packages"]) == bool(modules(ROOT / name))
