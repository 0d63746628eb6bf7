"""The tool as one file: its script under dash and under busybox, with a small program in the place of the tool.

That the real one runs where there is no Python is tested in tests/lab/test_onefile.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kubeadm_registry.bundle import tree
from kubeadm_registry.bundle.make import onefile
from kubeadm_registry.bundle.make.context import this_architecture
from kubeadm_registry.bundle.make.sources import Built
from kubeadm_registry.bundle.programs import Program, Source

ROOT = Path(__file__).parents[2]
#: Of these the script makes use.
PROGRAMS = "sh tar gzip sha256sum head tail ls mkdir mktemp mv rm sync id uname dirname readlink".split()
#: Prints how it was started and what it was given.
PROGRAM = '#!/bin/sh\necho "version 1"\nprintf "%s\\n" "$@"\ncat\n[ "$1" = --version ] || exit "${CODE:-0}"\n'


def built(folder: Path, program: str = PROGRAM) -> Built:
    """A program as ``bundle create`` packs it."""
    content = folder / "tree"
    (content / "bin").mkdir(parents=True)
    (content / "bin/kubeadm-registry").write_text(program)
    (content / "bin/kubeadm-registry").chmod(0o755)
    (content / "large").write_bytes(bytes(range(256)) * 4096)
    packed = tree.pack(content, folder / "layer.tar.gz")
    shutil.rmtree(content)
    source = Source("file", "x", "x")
    described = Program("kubeadm-registry", "1:2", this_architecture(), "/x", "bin/kubeadm-registry", source,
                        packed.digest, packed.size, packed.unpacked)  # fmt: skip
    return Built(described, folder / "layer.tar.gz")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@dataclass(frozen=True)
class Machine:
    """A shell, a folder for PATH that can be changed, a file and a cache."""

    programs: Path
    file: Path
    cache: Path

    def start(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.argv(*arguments), input="input\n", capture_output=True, text=True, check=False,
                              env=self.environment(environment))  # fmt: skip

    def argv(self, *arguments: str) -> Sequence[str | Path]:
        return [self.programs / "sh", self.file, *arguments]

    def environment(self, more: dict[str, str] | None = None) -> dict[str, str]:
        return {"PATH": str(self.programs), "XDG_CACHE_HOME": str(self.cache), **(more or {})}

    def say(self, name: str, answer: str) -> None:
        """Put a program *name* in the place of the real one, which says *answer*."""
        (self.programs / name).unlink(missing_ok=True)
        (self.programs / name).write_text(f"#!/bin/sh\necho {answer}\n")
        (self.programs / name).chmod(0o755)

    @property
    def kept(self) -> list[str]:
        """The names of what is in the cache."""
        return names(self.cache / "kubeadm-registry")


@pytest.fixture(params=["dash", "busybox"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    shell = shutil.which(request.param)
    if shell is None:
        pytest.skip(f"there is no {request.param} (Debian: apt-get install {request.param})")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in (*PROGRAMS, "cat"):
        found = shell if request.param == "busybox" or name == "sh" else shutil.which(name)
        (programs / name).symlink_to(found or "missing")
    return Machine(programs, onefile.write(built(tmp_path), tmp_path / "dist"), tmp_path / "a cache")


def test_it_unpacks_itself_once(machine: Machine) -> None:
    first = machine.start("status", "a b", CODE="5")
    assert (first.returncode, first.stdout) == (5, "version 1\nstatus\na b\ninput\n")
    assert first.stderr.startswith("kubeadm-registry: unpacking into ")
    assert first.stderr.count("\n") == 1
    assert len(machine.kept) == 1
    folder = machine.cache / "kubeadm-registry" / machine.kept[0]
    assert names(folder) == ["bin", "large"]
    for private in (machine.cache, folder.parent, folder):
        assert private.stat().st_mode & 0o777 == 0o700
    again = machine.start("status", "a b")
    assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, "")


def test_starts_at_the_same_time_do_not_disturb_each_other(machine: Machine) -> None:
    running = [
        subprocess.Popen(machine.argv("x"), env=machine.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        for _ in range(6)
    ]
    assert [process.communicate()[0] for process in running] == [b"version 1\nx\n"] * 6
    assert len(machine.kept) == 1
    assert names(machine.cache / "kubeadm-registry" / machine.kept[0]) == ["bin", "large"]


def test_what_a_killed_start_left_is_not_used(machine: Machine) -> None:
    left = machine.cache / "kubeadm-registry/.tool-abcdefgh/bin"
    left.mkdir(parents=True, mode=0o700)
    (left / "kubeadm-registry").write_text("#!/bin/sh\nexit 9\n")
    assert machine.start().returncode == 0


@pytest.mark.parametrize("size", [-1000, 0])
def test_a_damaged_file_is_refused(machine: Machine, size: int) -> None:
    content = bytearray(machine.file.read_bytes())
    content[-100] ^= 1
    machine.file.write_bytes(content[: size or None])
    result = machine.start()
    assert (result.returncode, result.stdout) == (1, "")
    assert "is damaged: its SHA-256 digest differs" in result.stderr
    assert machine.kept == []


def test_a_directory_of_another_user_is_refused(machine: Machine) -> None:
    assert machine.start().returncode == 0
    parent = machine.cache / "kubeadm-registry"
    for path in (machine.cache, parent, parent / machine.kept[0]):
        if os.getuid() == 0:
            os.chown(path, 54321, -1)
        else:
            machine.say("id", "54321")
        result = machine.start()
        assert (result.returncode, result.stdout) == (1, "")
        if os.getuid() == 0:
            os.chown(path, 0, -1)
            assert f"error: {path} belongs to another user (uid 54321)" in result.stderr
        assert "belongs to another user" in result.stderr


def test_a_directory_that_everybody_may_write_to_is_refused(machine: Machine) -> None:
    machine.cache.mkdir()
    machine.cache.chmod(0o777)
    result = machine.start()
    assert (result.returncode, result.stdout) == (1, "")
    assert f"error: every user may write to {machine.cache}" in result.stderr
    assert "hint: set XDG_CACHE_HOME to a directory of your own" in result.stderr
    machine.cache.chmod(0o1777)
    assert machine.start().returncode == 0


def test_a_program_that_does_not_start_is_not_kept(machine: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    file = onefile.write(built(folder, "#!/bin/sh\necho no such library\nexit 127\n"), tmp_path / "dist")
    result = replace(machine, file=file).start()
    assert result.returncode == 1
    assert "kubeadm-registry do not start: no such library" in result.stderr
    assert "noexec" in result.stderr
    assert machine.kept == []


@pytest.mark.parametrize("name", ["tar", "gzip", "sha256sum"])
def test_a_program_that_is_missing_is_named(machine: Machine, name: str) -> None:
    (machine.programs / name).unlink()
    result = machine.start()
    assert result.returncode == 1
    assert f"error: the program {name} is missing\n" in result.stderr
    assert not machine.cache.exists()


def test_without_room_it_says_how_much_is_needed(machine: Machine) -> None:
    (machine.programs / "tar").unlink()
    (machine.programs / "tar").write_text("#!/bin/sh\necho No space left on device >&2\nexit 1\n")
    (machine.programs / "tar").chmod(0o755)
    result = machine.start()
    assert result.returncode == 1
    assert "No space left on device\nkubeadm-registry: error: cannot unpack into " in result.stderr
    assert "hint: make 2 MB of space there, or set XDG_CACHE_HOME" in result.stderr
    assert machine.kept == []


def test_another_architecture_is_named(machine: Machine) -> None:
    machine.say("uname", "riscv64")
    result = machine.start()
    assert result.returncode == 1
    assert "this machine is riscv64" in result.stderr


def test_from_a_pipe_it_does_not_run(machine: Machine) -> None:
    result = subprocess.run([machine.programs / "sh"], input=machine.file.read_bytes(), env=machine.environment(),
                            capture_output=True, check=False)  # fmt: skip
    assert result.returncode == 1
    assert b"run it by its path" in result.stderr


def test_the_cache_is_where_the_specification_says(machine: Machine, tmp_path: Path) -> None:
    assert machine.start(HOME=str(tmp_path / "home"), XDG_CACHE_HOME="relative").returncode == 0
    assert (tmp_path / "home/.cache/kubeadm-registry").is_dir()
    result = machine.start(HOME="", XDG_CACHE_HOME="")
    assert result.returncode == 1
    assert "error: HOME is not set" in result.stderr


def test_the_same_inputs_give_the_same_bytes_and_checksums(tmp_path: Path) -> None:
    one = built(tmp_path)
    first = onefile.write(one, tmp_path / "dist")
    other = replace(
        one, program=replace(one.program, architecture="arm64" if first.name.endswith("amd64") else "amd64")
    )
    second = onefile.write(other, tmp_path / "dist")
    assert {first.name, second.name} == {"kubeadm-registry-1_2-linux-amd64", "kubeadm-registry-1_2-linux-arm64"}
    assert first.read_bytes() == onefile.write(one, tmp_path / "again").read_bytes()
    assert first.stat().st_mode & 0o777 == 0o755
    checked = subprocess.run(
        ["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path / "dist", capture_output=True, text=True, check=False
    )
    assert checked.stdout.splitlines() == [f"{name}: OK" for name in sorted((first.name, second.name))]


def test_a_path_that_cannot_be_written_is_no_traceback(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "kubeadm_registry.bundle.make.onefile", "dist"]
    environment = {**os.environ, "XDG_CACHE_HOME": "/dev/null", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: /dev/null/kubeadm-registry/bundle/debian: not a directory",
        "  hint: check the path, then run the command again",
    ]


def test_shellcheck_has_no_objection(tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("there is no shellcheck (Debian: apt-get install shellcheck)")
    script = tmp_path / "head.sh"
    script.write_bytes(onefile.head(built(tmp_path).program))
    result = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
