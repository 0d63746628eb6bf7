"""The containerd of the unit tests reads files as real ones do: what those said is kept in tests/golden.

To ask real ones anew, or more of them, name the programs, and read the diff::

    KUBEADM_REGISTRY_CONTAINERD=/path/to/one:/path/to/another pytest --update-golden tests/unit/test_containerd_dump.py
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.unit import containerd_dump

SAID = Path(__file__).parents[1] / "golden" / "containerd-dumps.json"
PLUGINS = (containerd_dump.IMAGES, containerd_dump.LONG_CRI)

BODIES = {
    "nothing": "",
    "short": '[plugins.cri]\nsandbox_image = "own/pause:1"\n[plugins.cri.registry]\nconfig_path = "/etc/short"\n',
    "long": '[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "own/pause:2"\n'
    '[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/etc/long"\n',
    "long-other": '[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "/x"\n',
    "images": '[plugins."io.containerd.cri.v1.images".pinned_images]\nsandbox = "own/pause:3"\n'
    '[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "/etc/images"\n',
    "empty-path": '[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = ""\n',
}
VERSIONS = {"": "", "1": "version = 1\n", "2": "version = 2\n", "3": "version = 3\n"}
OTHERS = {
    "missing": {"config.toml": 'version = 2\nimports = ["missing.toml"]\n'},
    "string": {"config.toml": 'version = 2\nimports = "x"\n'},
    "directory": {"config.toml": 'version = 2\nimports = ["conf.d"]\n', "conf.d/a.toml": ""},
    "hidden": {"config.toml": 'version = 2\nimports = ["conf.d/*.toml"]\n', "conf.d/.a.toml": BODIES["long"]},
    "not-toml": {"config.toml": "version = 2\n[plugins"},
    "no-file": {},
}


def cases() -> dict[str, dict[str, str]]:
    """Configurations: name -> files."""
    found = {f"{body}-{version}": {"config.toml": VERSIONS[version] + BODIES[body]}
             for body, version in itertools.product(BODIES, VERSIONS)}  # fmt: skip
    for body, version, other, others in itertools.product(BODIES, ("", "2", "3"), BODIES, ("", "2", "3")):
        if version != others or body != other:
            main = f'{VERSIONS[version]}imports = ["b.toml"]\n{BODIES[body]}'
            found[f"{body}-{version}+{other}-{others}"] = {
                "config.toml": main,
                "b.toml": VERSIONS[others] + BODIES[other],
            }
    return found | OTHERS


def laid(files: dict[str, str], root: Path) -> str:
    """Write *files* below *root*; the main one's path."""
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root / "config.toml")


def settings_of(dump: str) -> str:
    """config_path and pause image in a dump, with a blank between."""
    plugins = tomllib.loads(dump)["plugins"]
    images, cri = (plugins.get(name, {}) for name in PLUGINS)
    path = images.get("registry", cri.get("registry", {})).get("config_path", "")
    return f"{path} {images.get('pinned_images', {}).get('sandbox') or cri['sandbox_image']}"


def ask(program: str, tmp_path: Path) -> tuple[str, dict[str, str | None]]:
    """The version of a real containerd, and what it says of each case; None where it refuses the files."""
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
    number = re.match(r"v?(\d+\.\d+\.\d+)", version)
    assert number is not None, version
    said: dict[str, str | None] = {}
    for name, files in cases().items():
        path = laid(files, tmp_path / number[1] / name)
        argv = [program, "--config", path, "config", "dump"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=Path(path).parent)
        said[name] = settings_of(done.stdout) if done.returncode == 0 else None
    return number[1], said


def test_it_reads_files_as_real_ones_do(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    known = json.loads(SAID.read_text()) if SAID.exists() else {}
    programs = os.environ.get("KUBEADM_REGISTRY_CONTAINERD", "")
    known |= dict(ask(program, tmp_path) for program in programs.split(":") if program)
    if programs and pytestconfig.getoption("update_golden"):
        SAID.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    assert known.keys() >= {"1.6.20", "1.7.24", "2.1.9", "2.4.2"}
    wrong = []
    for version, (name, files) in itertools.product(known, cases().items()):
        root = tmp_path / "stub" / version / name
        major, minor, _ = version.split(".")
        try:
            said = settings_of(containerd_dump.dump(laid(files, root), (int(major), int(minor)), str(root)))
        except containerd_dump.Refused:
            said = None
        if said != known[version][name]:
            wrong.append((version, name, said, known[version][name]))
    assert not wrong, wrong[:10]
