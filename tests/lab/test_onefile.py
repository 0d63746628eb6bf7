"""The tool as one file, as ``make dist`` makes it, in systems that have no Python. No host is booted for it.

Run: a minimal Debian 13 with dash as sh, the same with bash as sh (as on RHEL), and nothing but busybox. Not run here:
Ubuntu and RHEL themselves, since this machine's apt does not bring them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kubeadm_registry import __version__, config
from kubeadm_registry.bundle.make.context import this_architecture
from tests.lab.command import run
from tests.lab.fresh import require_machine
from tests.lab.settings import Settings
from tests.lab.system import system

ROOT = Path(__file__).parents[2]
#: Lays *layers* under an empty directory, and runs the file there: with no network, and this machine's /dev alone.
SCRIPT = """\
space=$1 layers=$2 file=$3
mount -t tmpfs tmpfs "$space"
mkdir "$space/upper" "$space/work" "$space/root"
mount -t overlay overlay -o "lowerdir=$layers,upperdir=$space/upper,workdir=$space/work" "$space/root"
mkdir -p "$space/root/root" "$space/root/dev"
mount --bind /dev "$space/root/dev"
cp "$file" "$space/root/root/kubeadm-registry"
cat > "$space/root/root/cluster.yaml"
exec env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin "$4" "$space/root" /bin/sh -ec '
    cd
    if command -v python3; then exit 1; fi
    ./kubeadm-registry --version
    ./kubeadm-registry config validate
'
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make dist`` makes, for this machine."""
    folder = tmp_path_factory.mktemp("dist")
    command = (sys.executable, "-m", "kubeadm_registry.bundle.make.onefile", folder)
    subprocess.run(command, cwd=ROOT, check=True, timeout=900)
    subprocess.run(("sha256sum", "--check", "--quiet", "SHA256SUMS"), cwd=folder, check=True)
    return folder / f"kubeadm-registry-{__version__}-linux-{this_architecture()}"


def debian(_folder: Path) -> str:
    """A minimal Debian without Python."""
    return system(Settings().suite).layers(python=False)


def debian_with_bash(folder: Path) -> str:
    """The same with bash as sh, as on RHEL."""
    (folder / "usr/bin").mkdir(parents=True)
    (folder / "usr/bin/sh").symlink_to("bash")
    return f"{folder}:{debian(folder)}"


def busybox(folder: Path) -> str:
    """Nothing but busybox, with the libraries that it may be linked with."""
    program = shutil.which("busybox")
    assert program, "PACKAGES in the Makefile has busybox"
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    for path in (Path(program), *(Path(word) for word in linked.split() if word.startswith("/"))):
        target = folder / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (folder / "bin").mkdir(exist_ok=True)
    for name in run(program, "--list").stdout.split():
        if name not in {"busybox", "bash"}:
            (folder / "bin" / name).symlink_to(program)
    return str(folder)


@pytest.mark.parametrize("layers", [debian, debian_with_bash, busybox])
def test_it_runs_without_python(layers: Callable[[Path], str], file: Path, tmp_path: Path) -> None:
    require_machine()
    space, layer = tmp_path / "space", tmp_path / "layer"
    space.mkdir()
    layer.mkdir()
    said = run(
        "unshare", "--mount", "--propagation=private", "sh", "-ec", SCRIPT, "sh", space, layers(layer), file,
        shutil.which("chroot") or "chroot", stdin=config.SMALLEST, timeout=120,
    ).stdout.splitlines()  # fmt: skip
    assert said == [f"kubeadm-registry, version {__version__}", "cluster.yaml is valid: 3 nodes, zot"]
