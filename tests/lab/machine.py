"""What the lab asks of this machine, and what it gives back."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.lab.command import missing

#: Program and the Debian package that brings it.
PROGRAMS = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "nft": "nftables",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "mkfs.ext4": "e2fsprogs",
    "nsenter": "util-linux",
    "losetup": "mount",
}

#: Settings of the kernel that have no namespace and that a booting host or a kubelet changes for the whole machine.
SYSCTLS = (
    "fs/file-max",
    "fs/nr_open",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
)


def problems() -> list[str]:
    """Why this machine cannot have a lab, each with the remedy; empty if it can."""
    found = []
    if os.geteuid() != 0:
        found.append("a lab needs root")
    if absent := missing(tuple(PROGRAMS)):
        packages = " ".join(sorted({PROGRAMS[name] for name in absent}))
        found.append(f"not installed: {', '.join(absent)} (apt-get install {packages})")
    if not Path("/dev/loop-control").exists():
        found.append("this machine has no loop devices")
    return found


def save_sysctls(file: Path) -> None:
    """Write down this machine's settings that hosts may change."""
    paths = [(name, Path("/proc/sys") / name) for name in SYSCTLS]
    file.write_text(json.dumps({name: path.read_text().strip() for name, path in paths if path.exists()}))


def restore_sysctls(file: Path) -> None:
    """Put them back as they were."""
    if not file.exists():
        return
    for name, value in json.loads(file.read_text()).items():
        path = Path("/proc/sys") / name
        if path.read_text().strip() != value:
            path.write_text(value)
