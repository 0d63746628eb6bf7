"""The node agent as one file that any Python from 3.9 on runs: the same bytes for the same source."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from pathlib import Path

from kubeadm_registry import __version__, agent

SHEBANG = b"#!/usr/bin/env python3\n"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file knows
MAIN = """\
import sys

from kubeadm_registry.agent.__main__ import main

sys.exit(main(sys.argv[1:]))
"""
PACKAGE = """\
\"\"\"The part of kubeadm-registry that runs on nodes.\"\"\"

__version__ = "{version}"
"""


@cache
def build() -> bytes:
    """The zipapp of ``kubeadm_registry.agent``: run it with ``python3 agent.pyz --config FILE``."""
    folder = Path(agent.__file__).parent
    content = {
        "__main__.py": MAIN.encode(),
        "kubeadm_registry/__init__.py": PACKAGE.format(version=__version__).encode(),
    }
    for path in folder.glob("*.py"):
        content[f"kubeadm_registry/agent/{path.name}"] = path.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(content):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, wherever this runs
            archive.writestr(entry, content[name])
    return SHEBANG + buffer.getvalue()
