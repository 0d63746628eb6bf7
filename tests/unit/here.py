"""This machine as a host without root: for scripts, which only a real shell can judge. Paths lie in a test's folder."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from kubeadm_registry.result import Result
from kubeadm_registry.transport.host import Host

#: Who runs the tests, as a file's owner.
OWNER = f"{pwd.getpwuid(os.getuid()).pw_name}:{grp.getgrgid(os.getgid()).gr_name}"


class Here:
    """Runs argv as it is. *programs* is a folder that PATH begins with: stubs of what must not run for real."""

    def __init__(self, programs: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        path = os.environ["PATH"] + ":/usr/sbin:/sbin"
        self._environment = {
            "PATH": path if programs is None else f"{programs}:{path}",
            "LC_ALL": "C",
            **(environment or {}),
        }

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Result:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, timeout=timeout, env=self._environment, check=False
        )
        return Result(tuple(argv), done.returncode, done.stdout, done.stderr)

    def upload(self, source: Path, path: str) -> None:
        Path(path).write_bytes(source.read_bytes())

    def lock(self, who: str) -> str | None:
        raise NotImplementedError

    def dial(self, address: str, port: int) -> tuple[str, int]:
        return address, port

    def close(self) -> None:
        pass


def here(programs: Path | None = None, environment: Mapping[str, str] | None = None) -> Host:
    return Host("here", "192.0.2.1", Here(programs, environment))


def stub(folder: Path, name: str, body: str) -> None:
    """A program *name* in *folder*: a shell script of *body*."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
