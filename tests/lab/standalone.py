"""The settings of a registry by itself: on loopback, with TLS, its files on a disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ADDRESS = "127.0.0.1"


def distribution(storage: Path, port: int, certificate: Path, key: Path) -> dict[str, Any]:
    """Those of Distribution, of 2.8 and of 3."""
    return {
        "version": 0.1, "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
        "http": {"addr": f"{ADDRESS}:{port}", "tls": {"certificate": str(certificate), "key": str(key)}},
    }  # fmt: skip


def zot(storage: Path, port: int, certificate: Path, key: Path, *, shared: bool = False) -> dict[str, Any]:
    """Those of zot. Where the storage is *shared*, without deduplication, whose file is for one process."""
    return {
        "distSpecVersion": "1.1.1", "log": {"level": "warn"},
        "storage": {"rootDirectory": str(storage), "dedupe": not shared, "gc": False},
        "http": {"address": ADDRESS, "port": str(port), "tls": {"cert": str(certificate), "key": str(key)}},
    }  # fmt: skip
