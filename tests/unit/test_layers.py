"""What no test of behaviour sees: layers of imports, and that nothing here knows on which machine it was written."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest


def test_each_layer_imports_only_what_stands_below_it(root: Path) -> None:
    program = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([program, "--no-cache"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 4 kept, 0 broken." in done.stdout


def tracked(root: Path) -> list[Path]:
    """The files of the project, as git knows them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [root / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def mirrors() -> set[str]:
    """Hosts that this machine takes packages from instead of the usual ones."""
    found = {value for name, value in os.environ.items() if name.lower().endswith(("_proxy", "_index_url", "goproxy"))}
    for name in ("/etc/pip.conf", str(Path.home() / ".pip/pip.conf"), str(Path.home() / ".config/pip/pip.conf")):
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(name)
        found |= {parser.get(section, "index-url", fallback="") for section in parser.sections()}
    hosts = {urlsplit(word).hostname or "" for value in found for word in value.split(",")}
    return {host for host in hosts if host and host not in ("localhost", "127.0.0.1", "::1", "pypi.org")}


def test_no_file_names_the_machine_that_it_was_written_on(root: Path) -> None:
    home = Path.home()
    machine = {str(root), *mirrors(), *([str(home)] if home.parent.name == "home" else [])}
    words = [word.encode() for word in machine]
    files = tracked(root)
    assert len(files) > 100
    assert not {str(path): word for path in files for word in words if word in path.read_bytes()}
