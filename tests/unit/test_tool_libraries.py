"""The libraries that the extension modules in wheels need: they come along with the tool."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from kubeadm_registry.bundle.make import tool
from kubeadm_registry.errors import BundleError
from tests.unit.bundle_files import elf


def test_libraries_of_wheels_come_from_the_release_of_the_loader(tmp_path: Path) -> None:
    """The node's own could be of another glibc, and a node with musl has none."""
    first, second = tmp_path / "a-1-py3-none-any.whl", tmp_path / "b-1-py3-none-any.whl"
    with zipfile.ZipFile(first, "w") as file:
        file.writestr("a/_a.abi3.so", elf("amd64", needed=("librt.so.1", "libb.so.2", "libc.so.6")))
        file.writestr("a/__init__.py", "")
    with zipfile.ZipFile(second, "w") as file:
        file.writestr("b.libs/libb.so.2", elf("amd64", needed=("libc.so.6",)))
    assert tool.libraries([first, second]) == ("libc.so.6", "librt.so.1")


def test_a_file_that_is_not_a_wheel_is_named(tmp_path: Path) -> None:
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"")
    with pytest.raises(BundleError, match=r"a-1-py3-none-any\.whl is not a valid wheel"):
        tool.libraries([tmp_path / "a-1-py3-none-any.whl"])
