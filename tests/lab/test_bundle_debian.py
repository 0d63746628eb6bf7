"""Private trees of Debian packages: really built, and run from the place that they are built for.

Needs apt with a mirror of Debian, and root: the place is a tmpfs in a mount namespace of its own, so that this machine
keeps nothing of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kubeadm_registry.bundle import Bundle, Program, verify, version_command
from kubeadm_registry.bundle.make import Mirror, choose, create
from kubeadm_registry.errors import BundleError
from tests.unit.bundle_files import Said

PROGRAMS = ("distribution", "haproxy", "keepalived", "python")
#: The tool is started by a script, with the shell of the machine: test_tool.py has it on a real host.
NAMES = (*PROGRAMS, "kubeadm-registry")

#: ``$1`` the program's prefix, ``$2`` its layer, then the command.
_IN_PLACE = """
set -e
mount -t tmpfs none /opt
ip link add test0 type veth peer name test1
mkdir -p -- "$1"
tar -xzf "$2" -C "$1"
shift 2
exec "$@"
"""


def _missing() -> str:
    if os.geteuid() != 0:
        return "this needs root"
    programs = [name for name in ("apt-get", "dpkg-deb", "unshare", "ip") if not shutil.which(name)]
    return f"this machine has no {', '.join(programs)}" if programs else ""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with every program that the catalogue makes of packages, and beside it their layers."""
    if missing := _missing():
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("debian")
    create(folder / "bundle.tar", choose(NAMES), cache=folder / "cache")
    with Bundle.open(folder / "bundle.tar") as bundle:
        for program in bundle.programs.values():
            bundle.extract(program, folder / program.name)
    return folder / "bundle.tar"


def program_of(made: Path, name: str) -> Program:
    with Bundle.open(made) as bundle:
        return bundle.programs[name]


def run(made: Path, program: Program, *command: str) -> str:
    """Run *command* where *program* is in its place, and return its output."""
    layer = str(made.with_name(program.name))
    done = subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-c", _IN_PLACE, "sh", program.prefix, layer, *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert not Path(program.prefix).exists()
    return output


def test_the_bundle_is_whole_and_made_again_the_same_without_building(made: Path, tmp_path: Path) -> None:
    verify(made)
    lines = Said()
    again = create(tmp_path / "again.tar", choose(NAMES), cache=made.parent / "cache", progress=lines)
    assert again.path.read_bytes() == made.read_bytes()
    assert not [line for line in lines if "building" in line or "downloading" in line]


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_start_with_libraries_of_their_own_only(made: Path, name: str) -> None:
    program = program_of(made, name)
    version = program.version.rpartition(":")[2].partition("-")[0].partition("+")[0]
    assert version in run(made, program, *version_command(program))
    loaded = run(made, program, "env", "LD_TRACE_LOADED_OBJECTS=1", program.executable)
    paths = [word for line in loaded.splitlines() for word in line.split() if word.startswith("/")]
    assert paths
    assert all(path.startswith(program.prefix + "/lib/") for path in paths), loaded


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_start_where_there_is_no_other_file(made: Path, tmp_path: Path, name: str) -> None:
    program = program_of(made, name)
    place = tmp_path / program.prefix.removeprefix("/")
    place.mkdir(parents=True)
    subprocess.run(["tar", "-xzf", made.with_name(name), "-C", place], check=True, timeout=60)
    done = subprocess.run(["chroot", tmp_path, *version_command(program)], check=False, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_packages_are_told(made: Path, name: str) -> None:
    source = program_of(made, name).source
    assert source.kind == "distribution-package"
    assert "libc6" in {package.name for package in source.packages}
    assert all(len(package.sha256) == 64 for package in source.packages)


def test_haproxy_speaks_tls_and_lua_and_knows_the_users_of_the_host(made: Path, tmp_path: Path) -> None:
    program = program_of(made, "haproxy")
    features = run(made, program, program.executable, "-vv")
    for feature in ("+LUA", "+OPENSSL", "+PCRE2", "+SYSTEMD", "+PROMEX"):
        assert feature in features
    script = tmp_path / "hello.lua"
    script.write_text('core.log(core.info, "hello from Lua")\n')
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        f"global\n  user nobody\n  lua-load {script}\n"
        "defaults\n  mode http\n  timeout client 1s\n  timeout connect 1s\n  timeout server 1s\n"
        "frontend f\n  bind 127.0.0.1:5999\n  default_backend b\nbackend b\n  server s localhost:80\n"
    )
    assert "hello from Lua" in run(made, program, program.executable, "-c", "-f", str(config))


def test_keepalived_accepts_a_configuration(made: Path, tmp_path: Path) -> None:
    program = program_of(made, "keepalived")
    config = tmp_path / "keepalived.conf"
    config.write_text(
        "global_defs {\n  script_user nobody\n  enable_script_security\n}\n"
        "track_file fit {\n  file /run/fit\n  weight 0 reverse\n}\n"
        "vrrp_instance registry {\n  interface test0\n  virtual_router_id 5\n  virtual_ipaddress { 192.0.2.1/32 }\n"
        "  track_file { fit }\n}\n"
    )
    run(made, program, program.executable, "--config-test", f"--use-file={config}")


_MODULES = (
    "argparse, asyncio, base64, concurrent.futures, ctypes, dataclasses, datetime, encodings.idna, fcntl, "
    "hashlib, hmac, http.client, http.server, ipaddress, json, logging.handlers, pwd, resource, secrets, select, "
    "signal, socket, ssl, struct, subprocess, tempfile, threading, typing, urllib.request, zipimport, zlib"
)


def test_python_has_the_standard_library_of_a_service(made: Path, tmp_path: Path) -> None:
    program = program_of(made, "python")
    script = (
        f"import {_MODULES}, sys\n"
        "ssl.create_default_context()\n"
        "assert hmac.new(b'k', b'm', 'sha256').hexdigest()\n"
        "assert pwd.getpwuid(0).pw_name == 'root'\n"
        "assert ctypes.CDLL(None).getpid()\n"
        "async def main(): await asyncio.sleep(0)\n"
        "asyncio.run(main())\n"
        "assert all(path.startswith(sys.prefix) for path in sys.path), sys.path\n"
        "print(sys.prefix)\n"
    )
    assert run(made, program, program.executable, "-I", "-B", "-c", script).strip() == program.prefix
    package = tmp_path / "agent"
    package.mkdir()
    (package / "__main__.py").write_text("import json; print(json.dumps('from a zipapp'))\n")
    subprocess.run(
        [sys.executable, "-m", "zipapp", str(package), "-o", str(tmp_path / "agent.pyz")], check=True, timeout=60
    )
    assert "from a zipapp" in run(made, program, program.executable, "-I", "-B", str(tmp_path / "agent.pyz"))


@pytest.mark.usefixtures("made")
def test_an_index_that_nobody_signed_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mirror/dists/trixie"
    folder.mkdir(parents=True)
    (folder / "Release").write_text("Origin: Debian\nSuite: trixie\nCodename: trixie\nComponents: main\n")
    shutil.copytree(folder, folder.with_name("trixie-updates"))
    with pytest.raises(BundleError, match=r"not signed|Release file"):
        create(
            tmp_path / "a.tar",
            choose(["haproxy"]),
            cache=tmp_path / "cache",
            mirror=Mirror(debian=f"file:{tmp_path}/mirror"),
        )
    keyring = tmp_path / "empty.gpg"
    keyring.touch()
    with pytest.raises(BundleError, match="not signed"):
        create(tmp_path / "a.tar", choose(["haproxy"]), cache=tmp_path / "cache2", mirror=Mirror(keyring=keyring))
    assert not (tmp_path / "a.tar").exists()
