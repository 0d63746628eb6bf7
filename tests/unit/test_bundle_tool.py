"""The tool in a bundle: what is packed, how it starts, what a wheel may not do. That it runs is tested in the lab."""

from __future__ import annotations

import gzip
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from kubeadm_registry.bundle.make import tool
from kubeadm_registry.bundle.programs import Program, Source
from kubeadm_registry.bundle.tool import MODULE, unpack_script
from kubeadm_registry.errors import BundleError
from kubeadm_registry.oci import descriptors as oci
from tests.unit.bundle_files import member, tar


def wheel(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, name)
    return path


def python(tmp_path: Path) -> Path:
    """A tree as the packages of Python leave it, with a loader that tells how it was started."""
    for name in ("bin", "lib/python3.13"):
        (tmp_path / "tree" / name).mkdir(parents=True)
    loader = tmp_path / "tree/lib/ld-linux-x86-64.so.2"
    loader.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    loader.chmod(0o755)
    return tmp_path / "tree"


def add(tree: Path, *wheels: Path) -> None:
    tool.add(tree, tool.copy_source(tree.parent), wheels, "amd64")


def test_the_tree_starts_from_any_folder(tmp_path: Path) -> None:
    tree = python(tmp_path)
    tool.add(
        tree, tool.copy_source(tmp_path), [wheel(tmp_path / "click-8-py3-none-any.whl", "click/__init__.py")], "amd64"
    )
    assert (tree / "app/click/__init__.py").is_file()
    assert (tree / "app/kubeadm_registry/phases/workflows.py").is_file(), "also what is a link in a checkout"
    assert not list(tree.rglob("__pycache__"))
    moved = tree.rename(tmp_path / "another place")
    (tmp_path / "link").symlink_to(moved / "bin/kubeadm-registry")
    said = subprocess.run(
        [tmp_path / "link", "seed", "a b"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert said == [f"{moved}/bin/../bin/python3", "-I", "-S", f"{moved}/bin/../app", "seed", "a b"]


def test_a_module_starts_as_by_m(tmp_path: Path) -> None:
    """With this machine's Python in the place of the loader: what is tested is what Python is told."""
    tree = python(tmp_path)
    module = "import sys\nprint(__name__, sys.argv[1:], [path for path in sys.path if path.endswith('app')])\n"
    wheel = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("a/__init__.py", "")
        file.writestr("a/b.py", module)
    add(tree, wheel)
    (tree / "lib/ld-linux-x86-64.so.2").write_text(f'#!/bin/sh\nshift\nexec {sys.executable} "$@"\n')
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.py").write_text("")
    said = subprocess.run(
        [tree / MODULE, "a.b", "--config", "x y"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path / "elsewhere",
    ).stdout
    assert said == f"__main__ ['--config', 'x y'] ['{tree}/bin/../app']\n"


def test_of_a_wheel_only_packages_are_taken(tmp_path: Path) -> None:
    tree = python(tmp_path)
    names = (
        "a/__init__.py",
        "a-1.data/purelib/b.py",
        "a-1.data/scripts/run",
        "a-1.data/data/etc/x",
        "a-1.dist-info/METADATA",
    )
    tool.add(tree, tool.copy_source(tmp_path), [wheel(tmp_path / "a-1-py3-none-any.whl", *names)], "amd64")
    found = {path.relative_to(tree / "app").as_posix() for path in (tree / "app").rglob("*") if path.is_file()}
    assert {"a/__init__.py", "b.py", "a-1.dist-info/METADATA"} <= found
    assert not [name for name in found if name.endswith(("run", "/x"))]


@pytest.mark.parametrize("name", ["../evil.py", "/evil.py", "a/../../evil.py"])
def test_a_wheel_that_leads_out_of_the_tree_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="unsafe name"):
        tool.add(
            python(tmp_path), tool.copy_source(tmp_path), [wheel(tmp_path / "a-1-py3-none-any.whl", name)], "amd64"
        )


def installable(folder: Path, name: str, version: str) -> Path:
    """A wheel that pip takes."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for one, content in files.items():
            file.writestr(one, content)
    return path


def test_wheels_in_the_cache_are_compared_with_their_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip compares what it fetches; what it left in the cache may be damaged since. By pip itself, without an index."""
    links = tmp_path / "links"
    links.mkdir()
    wheel = installable(links, "click", importlib.metadata.version("click"))
    monkeypatch.setattr(importlib.metadata, "requires", lambda _name: ["click"])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    [first] = tool.wheels(tmp_path / "cache", "amd64", "3.13")
    assert first.read_bytes() == wheel.read_bytes()

    sums, held = first.with_name("sums.json"), wheel.read_bytes()
    for spoil in (
        lambda: first.write_bytes(bytes(len(held))),
        first.unlink,
        lambda: shutil.copy(wheel, first.with_name("evil-1-py3-none-any.whl")),
        sums.unlink,  # as in the cache of release 0.1
        lambda: sums.write_text("[]"),
        lambda: sums.write_text("{"),
    ):
        kept = sums.read_bytes()
        spoil()
        assert not tool._is_whole(first.parent)
        shutil.rmtree(first.parent)
        first.parent.mkdir()
        first.write_bytes(held)
        sums.write_bytes(kept)
        assert tool._is_whole(first.parent)

    first.write_bytes(b"damaged")
    assert tool.wheels(tmp_path / "cache", "amd64", "3.13") == [first]
    assert first.read_bytes() == held
    wheel.unlink()
    assert tool.wheels(tmp_path / "cache", "amd64", "3.13") == [first], "it is not fetched again"


def test_who_was_not_installed_by_pip_cannot_pack_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    with pytest.raises(BundleError, match="not installed with pip") as caught:
        tool.wheels(tmp_path, "amd64", "3.13")
    assert "--with" in caught.value.hint


@pytest.fixture(params=["these", "busybox"])
def programs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder for PATH: with this machine's own programs, or with busybox's alone."""
    if request.param == "these":
        return Path("/usr/bin")
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("there is no busybox (Debian: apt-get install busybox)")
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("sh", "tar", "gzip", "sha256sum", "mkdir", "rm"):
        (folder / name).symlink_to(busybox)
    return folder


def packed(tmp_path: Path, content: bytes = b"") -> Program:
    """A bundle with the tool's layer, or with *content* in its place."""
    layer = gzip.compress(tar((member("bin", tarfile.DIRTYPE, mode=0o755), b""), ("bin/kubeadm-registry", b"#!")))
    digest = oci.digest_of(layer)
    (tmp_path / "bundle.tar").write_bytes(tar((oci.blob_name(digest), content or layer)))
    source = Source("file", "x", "x")
    return Program("kubeadm-registry", "1:2", "amd64", "/x", "bin/kubeadm-registry", source, digest, len(layer), 2)


def unpack(tmp_path: Path, programs: Path, program: Program, *folder: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [programs / "sh", "-s", "bundle.tar", *folder], input=unpack_script(program), cwd=tmp_path,
        env={"PATH": str(programs)}, capture_output=True, check=False,
    )  # fmt: skip


def test_the_script_unpacks_the_tool(tmp_path: Path, programs: Path) -> None:
    result = unpack(tmp_path, programs, packed(tmp_path), "the tool")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == b"start it as the tool/bin/kubeadm-registry\n"
    assert [path.name for path in (tmp_path / "the tool").iterdir()] == ["bin"]
    assert (tmp_path / "the tool/bin/kubeadm-registry").read_bytes() == b"#!"


def test_the_script_checks_what_it_unpacks(tmp_path: Path, programs: Path) -> None:
    result = unpack(tmp_path, programs, packed(tmp_path, b"something else"))
    assert result.returncode != 0
    assert result.stderr == b"bundle.tar is damaged: nothing was unpacked\n"
    assert result.stdout == b""
    assert list((tmp_path / "kubeadm-registry-1_2").iterdir()) == []
