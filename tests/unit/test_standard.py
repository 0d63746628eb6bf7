"""The program where standard input, output or error is closed, or takes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kubeadm_registry import config


def run(redirect: str, *arguments: str, folder: Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of the program, *redirect* as a shell writes it."""
    path = ":".join(sys.path)
    done = subprocess.run(
        ["sh", "-c", f'cd "$1" && shift && exec "$@" {redirect}', "run", folder, sys.executable, "-m",
         "kubeadm_registry", *arguments],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"}, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("redirect", "arguments"),
    [
        (">&-", "config print-defaults"),
        (">&-", "config print-defaults -o json"),
        (">&-", "--version"),
        (">&-", "preflight -o json"),
        (">&-", "nonesuch -o json"),
        ("> /dev/full", "nonesuch -o json"),
    ],
)
def test_output_that_cannot_be_written_is_an_error_and_no_bug(tmp_path: Path, redirect: str, arguments: str) -> None:
    code, out, err = run(redirect, *arguments.split(), folder=tmp_path)
    assert code != 0
    assert out == ""
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert "[Bug]" not in err
    first = {"preflight": "ConfigMissing", "nonesuch": "UsageInvalid"}.get(arguments.split(maxsplit=1)[0])
    if first is not None:
        assert first in err, "what went wrong first is told in any case"
        assert code == 2
    else:
        assert "error [OutputClosed] standard output: bad file descriptor" in err


def test_a_closed_standard_error_loses_complaints_and_nothing_else(tmp_path: Path) -> None:
    code, out, err = run("2>&-", "preflight", "-o", "json", folder=tmp_path)
    assert (code, json.loads(out)["code"], err) == (2, "ConfigMissing", "")


@pytest.mark.parametrize("arguments", ["preflight", "nonesuch"])
def test_the_exit_code_is_right_where_the_error_cannot_be_written(tmp_path: Path, arguments: str) -> None:
    assert run("2> /dev/full", arguments, folder=tmp_path)[0] == 2


def test_a_closed_standard_input_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(
        "apiVersion: kubeadm-registry.dev/v1alpha1\nkind: RegistryCluster\nmetadata: {name: registry}\n"
        "spec: {nodes: [{name: a, address: 127.0.0.2, ssh: {port: 1}}], vip: {address: 127.0.0.3}}\n"
    )
    code, out, err = run("<&-", "reset", "-o", "json", folder=tmp_path)
    assert "Traceback" not in err
    assert (code, json.loads(out.splitlines()[-1])["code"]) == (2, "ConfigInvalid"), "loopback addresses are refused"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_every_character_can_be_written_whatever_the_encoding_of_the_terminal(tmp_path: Path, encoding: str) -> None:
    name = "snow-\u2603.yaml"
    (tmp_path / name).write_text(config.SMALLEST, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "kubeadm_registry", "config", "validate", "-f", name],
        capture_output=True, check=False, cwd=tmp_path, timeout=300,
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONUTF8": "1", "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    shown = name if encoding == "utf-8" else "snow-\\u2603.yaml"
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(encoding).startswith(f"{shown} is valid: 3 nodes")
