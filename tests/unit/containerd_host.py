"""A host whose root directory is a temporary one: the real scripts run, with stubs for systemd and containerd."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.result import Result
from kubeadm_registry.transport.host import Host
from tests.unit import containerd_dump

STUBS = {
    # Knows one unit, whose properties are the lines of one file; a restart is another invocation.
    "systemctl": """
        echo "$*" >> "$STUB/calls"
        case "$*" in
          *"--property=InvocationID --value"*) sed -n 's/^InvocationID=//p' "$STUB/unit" ;;
          *"--property=ActiveState --value"*) sed -n 's/^ActiveState=//p' "$STUB/unit" ;;
          show-environment) cat "$STUB/manager" ;;
          show*) cat "$STUB/unit" ;;
          is-active*)
            shift 2
            for unit; do
              if grep -q -x -F "$unit" "$STUB/active" 2>/dev/null; then echo active; else echo inactive; fi
            done ;;
          restart*)
            [ -e "$STUB/refuses" ] && exit 1
            id=$(sed -n 's/^InvocationID=//p' "$STUB/unit")
            sed -i "s/^InvocationID=.*/InvocationID=x$id/" "$STUB/unit" ;;
        esac""",
    "containerd": f'exec {shlex.quote(sys.executable)} -SE {shlex.quote(containerd_dump.__file__)} "$@"',
    "ctr": 'cat "$STUB/plugins"',
    "journalctl": "echo it failed",
    # Before what tries connections to the pairs of address and port behind it (``links.BLOCKED``).
    "timeout": """
        shift 5
        while [ $# -gt 1 ]; do
          grep -q -x -F "$1" "$STUB/blocked" 2>/dev/null || echo "$1 $2"
          shift 2
        done""",
    "chown": ":",
    "sync": ":",
}

#: Programs that change something.
ACTS = ("mkdir", "rm", "systemctl")

#: What a host of these tests has only if the test says so, whatever this machine has.
RUNTIMES = frozenset({"containerd", "ctr", "crictl", "crio", "docker", "dockerd", "k3s", "rke2"})


def tools() -> TemporaryDirectory[str]:
    """A folder with links to this machine's programs, but for RUNTIMES."""
    folder = TemporaryDirectory(prefix="tools-")
    for directory in os.environ["PATH"].split(":"):
        for program in Path(directory).iterdir() if Path(directory).is_dir() else ():
            link = Path(folder.name, program.name)
            if program.name not in RUNTIMES and not link.is_symlink():
                link.symlink_to(program)
    return folder


TOOLS = tools()

UNIT = """\
LoadState=loaded
ActiveState=active
KillMode=process
InvocationID=1
ExecStart={{ path={root}/usr/bin/containerd ; argv[]=/usr/bin/containerd ; ignore_errors=no }}
Environment=
"""


class Rooted:
    """A transport below *root*: absolute paths among the arguments lie there, and the output does not show it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stub = root / "stub"
        for directory in ("usr/bin", "etc/containerd", "stub", "tmp", "etc/systemd/system"):
            (root / directory).mkdir(parents=True)
        for name, body in STUBS.items():
            program = root / "usr/bin" / name
            program.write_text(f"#!/bin/sh\n{body}\n")
            program.chmod(0o755)
        (self.stub / "unit").write_text(UNIT.format(root=root))
        (self.stub / "manager").write_text("")
        (self.stub / "plugins").write_text("io.containerd.grpc.v1 cri linux/amd64 ok\n")
        self.says_version("1.7.24")
        self.calls = 0
        #: The connection breaks after the script of this name with these first parameters.
        self.breaks_after: tuple[str, ...] = ()
        #: It breaks after so many commands that change something.
        self.acts_left: int | None = None

    def says_version(self, version: str) -> None:
        (self.stub / "version").write_text(f"containerd github.com/containerd/containerd {version}~ds1 {version}\n")

    def unit(self, **properties: str) -> None:
        lines = (self.stub / "unit").read_text().splitlines()
        for name, value in properties.items():
            lines = [line for line in lines if not line.startswith(f"{name}=")] + [f"{name}={value}"]
        (self.stub / "unit").write_text("\n".join(lines) + "\n")

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Result:
        self.calls += 1
        inside = [f"{self.root}{word}" if word.startswith("/") else word for word in argv]
        environment = {"PATH": f"{self.root}/usr/bin:{TOOLS.name}", "STUB": str(self.stub), "LC_ALL": "C"}
        done = subprocess.run(inside, input=stdin, capture_output=True, timeout=timeout, env=environment, check=False)
        if self.acts_left is not None and (argv[0] in ACTS or tuple(argv[3:4]) in (("write",), ("mark",))):
            self.acts_left -= 1
            if self.acts_left == 0:
                raise ConnectionFailed("the connection broke", host="h1")
        if self.breaks_after and tuple(argv[3 : 3 + len(self.breaks_after)]) == self.breaks_after:
            raise ConnectionFailed("the connection broke", host="h1")
        hide = str(self.root).encode()
        return Result(tuple(argv), done.returncode, done.stdout.replace(hide, b""), done.stderr.replace(hide, b""))

    def upload(self, source: Path, path: str) -> None:
        raise NotImplementedError

    def lock(self, who: str) -> str | None:
        return None

    def dial(self, address: str, port: int) -> tuple[str, int]:
        return address, port

    def close(self) -> None:
        pass

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def put(self, path: str, content: str | bytes, mode: int = 0o644) -> Path:
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(mode)
        return file

    def tree(self) -> dict[str, tuple[int, bytes | None]]:
        """Every file and directory below /etc with its mode and content."""
        found = {}
        for path in sorted((self.root / "etc").rglob("*")):
            content = path.read_bytes() if path.is_file() else None
            found[str(path.relative_to(self.root))] = (path.lstat().st_mode, content)
        return found

    @property
    def restarts(self) -> int:
        calls = self.stub / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return sum(line.startswith("restart") for line in lines)


def host(rooted: Rooted) -> Host:
    return Host("h1", "10.0.0.11", rooted)
